"""How many jobs of a sweep run side by side."""

from __future__ import annotations

import glob
import os

from omegaconf import DictConfig, OmegaConf

from ncsn_cli.commands.names import AUTO
from ncsn_cli.core.errors import ConfigError

IN_A_SCHEDULERS_JOB = (
    "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_JOB_SPOOL_DIR", "OAR_JOB_ID", "FLUX_JOB_ID",
    "_CONDOR_SLOT",
)  # fmt: skip

_GPUS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")  # Nvidia's, AMD's, and in WSL


def choose_launcher(config: DictConfig, total: int | None) -> None:
    """Set ``hydra/launcher=auto`` in ``config`` to Joblib's launcher or the basic one.

    ``total`` is the number of jobs, None if unknown. Results do not depend on the launcher.

    Raises:
        ConfigError: If ``hydra.launcher.n_jobs`` is no number of jobs.
    """
    if config.hydra.runtime.choices.get("hydra/launcher") != AUTO:
        return
    asked = config.hydra.launcher.get("n_jobs")
    if asked != AUTO and (not isinstance(asked, int) or isinstance(asked, bool) or asked < 1):
        raise ConfigError(f"hydra.launcher.n_jobs: it should be auto or 1 and more, got {asked!r}")
    at_once = asked
    if asked == AUTO:  # in a scheduler's job the rest of the machine is for others
        is_alone = not any(name in os.environ for name in IN_A_SCHEDULERS_JOB)
        at_once = most_at_once(str(config.get("device"))) if is_alone else 1
    # A search that chooses its jobs by earlier results starts a few at a time.
    for most in (total, config.hydra.sweeper.get("n_jobs")):
        at_once = min(at_once, most or at_once)
    if at_once > 1:
        config.hydra.launcher.n_jobs = at_once
    else:
        basic = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
        config.hydra.launcher = OmegaConf.create(basic)


def most_at_once(device: str) -> int:
    """Return how many jobs on ``device`` this machine, or a scheduler's task, should run at once.

    These are as many as there are cores, or GPUs if the jobs use them.
    """
    if device not in (AUTO, "cpu"):
        return 1
    if device == AUTO and any(map(glob.glob, _GPUS)):  # torch takes a second to import
        import torch

        if gpus := torch.cuda.device_count():
            return gpus
    from joblib import cpu_count

    return int(os.environ.get("SLURM_CPUS_PER_TASK") or cpu_count())
