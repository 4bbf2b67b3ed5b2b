"""The wheel in an empty environment: minutes, most of them pip's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_installed_package_works_without_the_checkout(tmp_path):
    def run(*command):
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=900,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        ).stdout  # fmt: skip

    run(sys.executable, "-m", "venv", "environment")
    scripts = tmp_path / "environment" / "bin"
    run(scripts / "pip", "install", "-q", "--no-compile", "-c", ROOT / "constraints.txt", ROOT)
    run(scripts / "ncsn-train", "experiment=mdsm_1d", "trainer.steps=200")
    (trained,) = tmp_path.glob("outputs/train/runs/*")
    run(scripts / "ncsn-sample", f"checkpoint={trained}", "num_samples=100")
    assert len(list(tmp_path.glob("outputs/sample/runs/*/plots/*.png"))) == 4
    where = run(scripts / "python", "-c", "import ncsn_cli; print(ncsn_cli.__file__)")
    assert str(tmp_path) in where
