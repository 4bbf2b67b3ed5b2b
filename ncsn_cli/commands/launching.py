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
    at_once = _most_at_once(str(config.get("device"))) if asked == AUTO else asked
    # A search that chooses its jobs by earlier results starts a few at a time.
    for most in (total, config.hydra.sweeper.get("n_jobs")):
        at_once = min(at_once, most or at_once)
    if at_once > 1:
        config.hydra.launcher.n_jobs = at_once
    else:
        basic = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
        config.hydra.launcher = OmegaConf.create(basic)


def _most_at_once(device: str) -> int:
    """Return how many jobs on ``device`` this machine should run at once."""
    if any(name in os.environ for name in IN_A_SCHEDULERS_JOB):
        return 1  # others have been given the rest of the machine
    if device == "mps":
        return 1
    if device != "cpu" and glob.glob("/dev/nvidia[0-9]*"):  # torch takes a second to import
        import torch

        if gpus := torch.cuda.device_count():
            return gpus if device == AUTO else 1
    from joblib import cpu_count

    return int(cpu_count())
