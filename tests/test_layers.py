"""The import directions of the design, and that Hydra and matplotlib stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ncsn_cli

PACKAGE = Path(ncsn_cli.__file__).parent
LEAVES = ["datasets", "schedules", "losses", "models", "samplers", "inits", "metrics", "plots"]
FLOORS = [
    {"core"},
    {*LEAVES},
    {"mistakes"},  # each a leaf's class with one override
    {"runs"},
    {"evaluation"},
    {"training", "sampling"},
    {"commands", "__main__", "__init__"},  # the last: names for notebooks, imported on demand
]
"""A wing or a leaf may import from the floors below it; from its own floor, from itself alone."""
WINGS = [name for floor in FLOORS for name in sorted(floor)]
CONSOLE = FLOORS[-1]


def imports(wing):
    """Every module that ``wing`` imports, anywhere in it."""
    found = set()
    folder = PACKAGE / wing
    files = folder.glob("*.py") if folder.is_dir() else [PACKAGE / f"{wing}.py"]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_every_module_has_its_floor():
    files = {path.stem for path in PACKAGE.glob("*.py")}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert files | folders == set(WINGS)


@pytest.mark.parametrize("wing", WINGS)
def test_imports_point_downwards(wing):
    names = imports(wing)
    (floor,) = (i for i, wings in enumerate(FLOORS) if wing in wings)
    allowed = {wing, "__version__"}.union(*FLOORS[:floor])
    if wing in CONSOLE:
        allowed |= CONSOLE
    if wing not in CONSOLE:
        allowed -= {"plots"} - {wing}
    own = {name.split(".")[1] for name in names if name.startswith("ncsn_cli.")}
    assert own <= allowed, f"{wing} may not import {own - allowed}"
    roots = {name.split(".")[0] for name in names}
    if wing not in CONSOLE:
        assert not roots & {"hydra", "omegaconf"}
    if wing != "plots":
        assert "matplotlib" not in roots


def test_the_start_imports_neither_torch_nor_matplotlib():
    code = "import sys, ncsn_cli.commands.cli; print(*({'torch', 'matplotlib'} & {*sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.split() == []


TESTS = sorted(Path(__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_tests_share_helpers_and_public_names_alone(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        assert node.level == 0
        if node.module.startswith("ncsn_cli"):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]
        if node.module.startswith("tests"):
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert not [part for part in parts if part.startswith(("test_", "conftest"))]
