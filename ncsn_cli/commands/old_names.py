"""Old names: of options, which still work, and of classes in older files."""

from __future__ import annotations

import functools
import sys
from typing import Any

import yaml
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

_TO_PRESETS = {
    "dataset": "bug_sigma_replaced cas_25_gaussians ncsn_point point_1d rosa_2d versini_2d",
    "schedule": "cas_25_gaussians cas_point_mass dsm_1d edm_karras_2d mdsm_1d mdsm_1d_fixed_noise"
    " ncsn_2d ncsn_point song_ermon_annealed versini_annealed",
    "loss": "bug_sign_flipped bug_trace_over_dim dsm_1d",
    "sampler": "bug_levels_reversed bug_linear_steps bug_noise_not_annealed cas_point_mass heun"
    " langevin_2d manifold_2d ncsn_2d ncsn_point song_ermon_annealed song_ermon_langevin"
    " versini_annealed versini_langevin",
    "init": "versini_2d",
}

OPTIONS = {
    f"{group}/{name}": f"preset/{name}"
    for group, names in _TO_PRESETS.items()
    for name in names.split()
} | {
    "model/mlp_cas_25_gaussians": "preset/cas_25_gaussians",
    "model/mlp_dsm_1d": "preset/dsm_1d",
    "model/mlp_ism_1d": "preset/ism_1d",
    "model/mlp_rosa_2d": "preset/rosa_2d",
    "model/mlp_unconditional_2d": "preset/mlp_one_level",
    "optimizer/adam_ncsn_2d": "preset/ncsn_2d",
    "optimizer/adam_ncsn_point": "preset/ncsn_point",
    "optimizer/adam_random_notes": "preset/random_notes",
    "optimizer/adam_rosa_2d": "adam",
}
"""For each ``group/old_name``, the option's new name in that group."""

CLASSES = {
    f"ncsn_cli.{old}.{name}": f"ncsn_cli.{new}.{name}"
    for old, new, names in (
        ("samplers", "inits", ("Data", "Normal", "Prior", "Uniform")),
        (
            "bugs",
            "mistakes",
            ("LevelsReversed", "LinearSteps", "NoiseNotAnnealed", "SigmaReplaced", "SignFlipped",
             "TraceOverDim"),
        ),
    )
    for name in names
}  # fmt: skip
"""For each old path of a class that configurations and checkpoints name, its new path."""


def with_new_names(config: Any) -> Any:  # noqa: ANN401
    """Return ``config`` with the new name of every ``_target_`` that has moved."""
    if not isinstance(config, dict):
        return config
    renamed = {key: with_new_names(value) for key, value in config.items()}
    target = renamed.get("_target_")
    if isinstance(target, str) and target in CLASSES:
        renamed["_target_"] = CLASSES[target]
    return renamed


def with_old_names(text: str) -> str:
    """Return ``text`` with the old names of classes.

    Digests that older runs recorded then still match.
    """
    for old, new in CLASSES.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    return text


class MovedOptions(ConfigSource):
    """A source of configs for Hydra, which loads the options that moved and lists none of them."""

    @staticmethod
    def scheme() -> str:
        """Return the name of this source in the search path."""
        return "moved"

    def available(self) -> bool:
        """Return True: this source is always available."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Return False: this source adds no group."""
        return False

    def is_config(self, config_path: str) -> bool:
        """Return whether ``config_path`` is the old name of an option."""
        return config_path in OPTIONS

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return no names, so that ``--help`` and the tab key offer new names only."""
        return []

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a config that loads the option's new name, and print that name."""
        group, new = config_path.split("/")[0], OPTIONS[config_path]
        say_new_name(config_path)
        config = OmegaConf.create({"defaults": [f"/{group}/{new}@_here_", "_self_"]})
        header: dict[str, str | None] = {"package": None}
        return ConfigResult(self.provider, self.full_path(), config, header)


@functools.cache  # once per process, however often Hydra composes
def say_new_name(old: str) -> None:
    """Print the new name of the option ``old``, and the overrides that this name stands for."""
    from ncsn_cli.commands.cli import config_dir
    from ncsn_cli.commands.names import override

    group, name = old.split("/")
    new = f"{group}={OPTIONS[old]}"
    values = yaml.safe_load((config_dir() / group / f"{OPTIONS[old]}.yaml").read_text())
    if "defaults" in values:
        base = values.pop("defaults")[0].removeprefix(f"/{group}/").partition("@")[0]
        words = [override(f"{group}.{key}", value) for key, value in values.items()]
        new += f", which is {' '.join([f'{group}={base}', *words])}"
    print(f"{group}={name} is now {new}", file=sys.stderr)
