"""The pictures and the report of a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ncsn_cli.commands.build import instantiate_list
from ncsn_cli.commands.config import Config, without_paths
from ncsn_cli.commands.report import drawing, html_report, schedule_table, tables_of
from ncsn_cli.core.scene import Scene
from ncsn_cli.evaluation.verdict import Verdict
from ncsn_cli.runs.folder import RunFolder
from ncsn_cli.runs.records import flatten

log = logging.getLogger(__name__)


class Pictures:
    """The pictures to draw, by name: functions of a ``Scene``, which return None if inapplicable.

    A picture of training alone tests whether the scene is a ``TrainingScene``, and one of sampling
    alone whether it is a ``SamplingScene``.

    Those in ``plots`` return a matplotlib ``Figure``, those in ``animations`` an ``Animation``.
    """

    def __init__(self, config: Config) -> None:
        self.plots: dict[str, Callable[[Scene], Any]] = instantiate_list(config, "plot")
        self.animations: dict[str, Callable[[Scene], Any]] = instantiate_list(config, "animation")

    def __bool__(self) -> bool:
        """Return whether there is anything to draw."""
        return bool(self.plots or self.animations)

    @property
    def by_key(self) -> dict[str, Callable[[Scene], Any]]:
        """All functions, under ``plot.NAME`` and ``animation.NAME``."""
        plots = {f"plot.{name}": plot for name, plot in self.plots.items()}
        return plots | {f"animation.{name}": film for name, film in self.animations.items()}


def present(
    folder: RunFolder,
    pictures: Pictures,
    compose: Callable[[], Scene],
    config: Config,
    metrics: dict[str, Any],
    verdict: Verdict,
) -> None:
    """Write every picture that applies into ``plots/`` and ``animations/``, and the report.

    ``compose`` returns the scene that the pictures show. ``verdict`` is the head of the report.
    """
    missing = _draw(folder, pictures, compose) if pictures else {}
    command, runtime = HydraConfig.get().job.config_name, HydraConfig.get().runtime
    before = _defaults(command, tuple(source.path for source in runtime.config_sources))
    now = flatten(without_paths(config))
    record = folder.record
    page = html_report(
        folder.path,
        title=f"ncsn-{command} {' '.join(HydraConfig.get().overrides.task)}",
        facts=f"{record['start']}, {record['device']}, seed {record['seed']}, "
        f"{metrics['seconds']:g} s",
        command=record["command"],
        verdict=verdict,
        changed={
            key: value
            for key, value in now.items()
            if before.get(key) != value and not key.endswith("._partial_")
        },
        tables=tables_of(metrics) | schedule_table(record.get("schedule")),
        missing=missing,
    )
    folder.write("report.html", page)


@cache
def _defaults(command: str, sources: tuple[str, ...]) -> dict[str, Any]:
    """Return a command's configuration without overrides, nested keys joined by dots.

    To compose it takes .2 s, which a sweep's jobs spend once. ``sources`` are the folders in which
    Hydra looks for options.
    """
    defaults = OmegaConf.to_container(hydra.compose(command), resolve=True)
    return flatten(without_paths(cast("Config", defaults)))


def _draw(folder: RunFolder, pictures: Pictures, compose: Callable[[], Scene]) -> dict[str, str]:
    """Write the pictures; return, by name, why some are missing.

    Pictures that do not apply are named only for D > 2, or if the user chose them for this
    command.
    """
    from ncsn_cli.plots import NEED_TRUTH, NEEDS
    from ncsn_cli.plots.canvas import own_settings, to_gif, to_png

    missing: dict[str, str] = {}
    left_out: dict[str, str] = {}
    scene = None
    with drawing("every picture", missing):
        scene = compose()
    if scene is None:
        return missing
    words = HydraConfig.get().overrides.task
    named = {re.split("[=@]", word.lstrip("+~"))[0] for word in words}
    # Find out which pictures apply, then draw these: that takes most of the time.
    drawn: dict[str, Any] = {}
    for key, draw in pictures.by_key.items():
        with drawing(key, missing), own_settings():
            drawn[key] = draw(scene)
    if num := sum(each is not None for each in drawn.values()):
        log.info("drawing %d picture%s", num, "" if num == 1 else "s")
    for key, draw in pictures.by_key.items():
        group, _, name = key.partition(".")
        data = None
        with drawing(key, missing), own_settings():
            if (figure := drawn.pop(key, None)) is not None:
                data = to_png(figure) if group == "plot" else to_gif(figure, name)
        if data is not None:
            folder.write(
                f"plots/{name}.png" if group == "plot" else f"animations/{name}.gif", data
            )
        elif key not in missing:
            is_chosen = group in named or any(word.startswith(f"{key}.") for word in named)
            function = getattr(draw, "func", draw)  # options make partials
            is_for = next((dim for ours, dim in NEED_TRUTH.items() if ours is function), None)
            if scene.true_scores is None and is_for == scene.dim:
                left_out[key] = "needs the true score, which is not known"
            elif scene.dim > 2 or is_chosen:
                needs = (f"needs {what}" for ours, what in NEEDS.items() if ours is function)
                left_out[key] = next(needs, "does not apply")
    if left_out:
        log.info("left out: %s", "; ".join(f"{key} {why}" for key, why in left_out.items()))
    return missing | left_out
