"""What a command does before a job: answers, completion, imports."""

import os
import subprocess
import sys

import pytest

from ncsn_cli.commands.startup import let_threads_sleep
from tests.helpers.commands import BIN, QUICK
from tests.helpers.slow import slow_but


@pytest.mark.parametrize("command", ["ncsn-train", "ncsn-sample"])
@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["nosuchkey=1"]])
def test_answers_without_a_job_do_not_import_torch(command, arguments, tmp_path):
    script = (
        "import sys, runpy\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "sys.stderr.write('imported torch' if 'torch' in sys.modules else 'no torch')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(BIN / command), *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.stderr.endswith("no torch")
    if arguments == ["--help"]:
        for text in (
            "ncsn-train experiment=mdsm_1d",
            "checkerboard_2d, circle_2d",
            "sampler: annealed",
        ):
            assert text in result.stdout


def with_modules(arguments, folder):
    """The command's result; the last line printed names the modules that were imported."""
    script = (
        "import sys\nfrom ncsn_cli.commands import cli\n"
        f"sys.argv = {arguments}\n{arguments[0].replace('ncsn-', 'cli.')}()\n"
        "print(*sys.modules)"
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "arguments",
    slow_but([
        ["ncsn-train", *QUICK, "trainer.steps=1"],
        ["ncsn-sample", "score=exact", "dataset=two_modes_1d", "sampler=langevin",
         "sampler.steps=2", "num_samples=10", "metric=[moments]", "plot=[]"],
    ], 1),
)  # fmt: skip
def test_a_job_imports_nothing_that_it_does_not_use(arguments, tmp_path):
    result = with_modules(arguments, tmp_path)
    assert result.returncode == 0, result.stderr
    unused = {"matplotlib", "PIL", "tensorboard", "scipy.stats", "scipy.interpolate"}
    assert not unused & set(result.stdout.split())


@pytest.mark.slow
def test_the_process_that_starts_a_sweep_leaves_torch_to_its_jobs(tmp_path):
    arguments = ["ncsn-train", "-m", "seed=0,1", *QUICK, "trainer.steps=1"]
    result = with_modules(arguments, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "next: ncsn-sample checkpoint=" in result.stdout
    modules = result.stdout.splitlines()[-1].split()
    assert "ncsn_cli.commands.sweep" in modules
    assert "torch" not in modules


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("ncsn-train experiment=mds", ["experiment=mdsm_1d", "experiment=mdsm_1d_fixed_noise"]),
        ("ncsn-train schedule.sig", ["schedule.sigma_max=", "schedule.sigma_min="]),
        ("ncsn-sample sampler=annealed", ["sampler=annealed_langevin", "sampler=annealed_mala"]),
    ],
)
def test_the_tab_key_completes_in_bash(typed, completed, tmp_path):
    # What README says to type, then what bash does at the key.
    command = typed.split()[0]
    script = f"""
        eval "$({command} -sc install=bash)"
        COMP_LINE='{typed}'; COMP_POINT={len(typed)}; COMP_CWORD=1
        hydra_bash_completion; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert result.stdout.split() == completed


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_threads_sleep_soon_unless_the_user_says_how_they_wait(name, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv(name, "7")
    let_threads_sleep()
    assert {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys() == {name}
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    let_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
