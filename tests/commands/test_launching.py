"""How many jobs of a sweep run side by side."""

import glob
import os
import signal
from functools import partial

import joblib
import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from ncsn_cli.commands.launching import IN_A_SCHEDULERS_JOB, choose_launcher
from ncsn_cli.commands.submitit_tasks import run_side_by_side
from ncsn_cli.core.errors import ConfigError, NcsnError


@pytest.fixture
def chosen(monkeypatch):
    """``chosen(total, ...)``: jobs at once on 6 cores; 1 for the basic launcher."""
    for name in IN_A_SCHEDULERS_JOB:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 6)

    def jobs(total, n_jobs="auto", device="auto", gpus=0, launcher="auto", sweeper=None):
        found = [f"/dev/nvidia{i}" for i in range(gpus)]
        monkeypatch.setattr(glob, "glob", lambda path: found if "nvidia" in path else [])
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        config = OmegaConf.create(
            {
                "device": device,
                "hydra": {
                    "runtime": {"choices": {"hydra/launcher": launcher}},
                    "launcher": {"_target_": "Joblib", "n_jobs": n_jobs},
                    "sweeper": sweeper or {},
                },
            }
        )
        choose_launcher(config, total)
        found = config.hydra.launcher
        return 1 if found["_target_"].endswith(".BasicLauncher") else found.n_jobs

    return jobs


def test_there_are_as_many_jobs_as_cores_or_gpus_and_no_more_than_the_sweep_has(chosen):
    assert chosen(20) == chosen(None) == 6
    assert chosen(4) == 4
    assert chosen(1) == 1
    assert chosen(20, n_jobs=12) == 12
    assert chosen(20, n_jobs=1) == 1
    assert chosen(20, sweeper={"n_jobs": 1}) == 1  # a search, each of whose trials is chosen
    assert chosen(20, gpus=2) == 2
    assert chosen(20, gpus=2, device="cuda:1") == 1
    assert chosen(20, gpus=2, device="cpu") == 6
    assert chosen(20, device="mps") == 1
    assert chosen(20, launcher="joblib", n_jobs=-1) == -1


@pytest.mark.parametrize("name", IN_A_SCHEDULERS_JOB)
def test_in_a_schedulers_job_there_is_one_unless_the_user_says_more(name, chosen, monkeypatch):
    monkeypatch.setenv(name, "123")
    assert os.environ[name]
    assert chosen(20) == 1
    assert chosen(20, n_jobs=3) == 3


@pytest.mark.parametrize("n_jobs", [0, -1, True, 1.5, "all", None])
def test_another_number_of_jobs_is_refused(n_jobs, chosen):
    with pytest.raises(ConfigError, match=r"^hydra\.launcher\.n_jobs: it should be auto or 1 "):
        chosen(20, n_jobs=n_jobs)


def test_a_job_whose_process_is_killed_fails_no_other(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def killed():
        os.kill(os.getpid(), signal.SIGKILL)

    def works(words):
        made = JobReturn(overrides=words, status=JobStatus.COMPLETED)
        made.return_value = 0.5
        return made

    words = [[f"seed={number}"] for number in range(4)]
    jobs = [(each, killed if i % 2 == 0 else partial(works, each)) for i, each in enumerate(words)]
    found = run_side_by_side(jobs, "train", "cpu")
    assert [each.overrides[0] for each in found] == ["seed=0", "seed=1", "seed=2", "seed=3"]
    assert [each.status.name for each in found] == ["FAILED", "COMPLETED"] * 2
    assert found[3].return_value == 0.5
    with pytest.raises(NcsnError, match="ended with code -9"):
        _ = found[0].return_value
