"""The import directions of the design, and that Hydra and matplotlib stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ncsn_cli

PACKAGE = Path(ncsn_cli.__file__).parent
SHARED = ["errors", "expectation", "scene", "scores"]
LEAVES = ["datasets", "schedules", "models", "losses", "samplers", "metrics", "plots"]
ORCHESTRATION = [
    "files",
    "runs",
    "checkpoints",
    "compiled",
    "compiled_langevin",
    "compiler_cache",
    "doctor",
    "evaluation",
    "floors",
    "log_density",
    "report",
    "sampling",
    "snapshots",
    "streams",
    "tensorboard",
    "training",
    "views",
    "workers",
]
CONSOLE = [
    "__main__",
    "cli",
    "compare",
    "configuration",
    "jobs",
    "moved",
    "names",
    "sweep",
    "train",
    "sample",
]
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "scene": set(),
    "expectation": set(),
    "scores": {"expectation"},
    "bugs": {*SHARED, "datasets", "losses", "samplers"},
    **{leaf: {*SHARED, leaf} for leaf in LEAVES},
    **{name: {*SHARED, *LEAVES, *ORCHESTRATION} - {"plots"} for name in ORCHESTRATION},
    **{name: {*SHARED, *LEAVES, *ORCHESTRATION, *CONSOLE} for name in CONSOLE},
}


def imports(module):
    """Every module that ``module`` imports, anywhere in it."""
    found = set()
    folder = PACKAGE / module
    files = folder.glob("*.py") if folder.is_dir() else [PACKAGE / f"{module}.py"]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_every_module_has_its_layer():
    files = {path.stem for path in PACKAGE.glob("*.py")}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert files | folders == set(ALLOWED)


@pytest.mark.parametrize("module", ALLOWED)
def test_imports_go_one_way(module):
    names = imports(module)
    own = {n.split(".")[1] for n in names if n.startswith("ncsn_cli.")} - {"__version__"}
    assert own <= ALLOWED[module], f"{module} may not import {own - ALLOWED[module]}"
    roots = {name.split(".")[0] for name in names}
    if module not in CONSOLE:
        assert not roots & {"hydra", "omegaconf"}
    if module != "plots":
        assert "matplotlib" not in roots


def test_the_start_imports_neither_torch_nor_matplotlib():
    code = "import sys, ncsn_cli.cli; print(*({'torch', 'matplotlib'} & {*sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.split() == []
