"""The wheels in an environment with what they declare, and nothing else."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_classes"


def declared(name, extras=()):
    """The distributions that ``name`` declares, and those that they declare."""
    found, to_see = set(), [(name, frozenset(extras))]
    while to_see:
        name, extras = to_see.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in (extras or [""])):
                to_see.append((needed.name, frozenset(needed.extras)))
    return {name for name, _ in found}


def link(name, packages):
    """Make links in ``packages`` to what this environment has installed for ``name``."""
    for file in distribution(name).files:
        place = Path(
            *file.parts[: 2 if file.parts[0] == "hydra_plugins" else 1]
        )  # which is shared
        if ".." not in file.parts and not (packages / place).exists():
            (packages / place).parent.mkdir(exist_ok=True)
            (packages / place).symlink_to(distribution(name).locate_file(place))


@pytest.mark.slow
def test_the_package_and_the_example_work_without_the_checkout(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)

    def run(*command):
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=900,
            env=environment,
        ).stdout  # fmt: skip

    run(sys.executable, "-m", "venv", "--without-pip", "environment")
    scripts = tmp_path / "environment" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python"]
    run(*pip, "install", "-q", "--no-deps", ROOT, EXAMPLE)
    (packages,) = (tmp_path / "environment").glob("lib/*/site-packages")
    for name in declared("ncsn_cli", set()) - {"ncsn_cli"}:
        link(name, packages)
    few = ["trainer.steps=20", "trainer.snapshots=2", "schedule.num_levels=2"]
    run(scripts / "ncsn-train", "experiment=mdsm_1d", *few)
    (trained,) = tmp_path.glob("outputs/train/runs/*")
    run(scripts / "ncsn-sample", f"checkpoint={trained}", "num_samples=100")
    assert len(list(tmp_path.glob("outputs/sample/runs/*/plots/*.png"))) == 4
    where = run(scripts / "python", "-c", "import ncsn_cli; print(ncsn_cli.__file__)")
    assert str(tmp_path) in where
    # The seven classes of the example, by its own wheel: train, resume, sample, sweep.
    shutil.copytree(EXAMPLE / "configs", tmp_path / "options")
    own = ["--config-dir", "options", "experiment=own_classes", "schedule.num_levels=5"]
    own += ["hydra.run.dir=own/${trainer.steps}", "trainer.lr_decay=none", "plot=[]"]
    run(scripts / "ncsn-train", *own, "trainer.steps=20")
    run(scripts / "ncsn-train", *own, "trainer.steps=40", "trainer.resume=own/20")
    chosen = ["metric=[radii]", "plot=[radii]", "num_samples=100", "hydra.run.dir=own/samples"]
    named = ["--config-dir", "options", "checkpoint=own/40", "plugins=[own_classes]"]
    run(scripts / "ncsn-sample", *named, *chosen)
    assert (tmp_path / "own" / "samples" / "plots" / "radii.png").is_file()
    measured = ["own/samples", "dataset=cross", "metric=[radii]", "plot=[radii]"]
    run(scripts / "ncsn-measure", "--config-dir", "options", *measured)
    assert list(tmp_path.glob("outputs/measure/runs/*/plots/radii.png"))
    sweep = [
        "trainer.steps=20",
        "seed=0,1",
        "hydra.launcher.n_jobs=2",
        "hydra.sweep.dir=own/sweep",
    ]
    run(scripts / "ncsn-train", "-m", *own, *sweep)
    assert len(list(tmp_path.glob("own/sweep/seed-*/metrics.json"))) == 2
    where = run(scripts / "python", "-c", "import own_classes; print(own_classes.__file__)")
    assert str(tmp_path) in where
