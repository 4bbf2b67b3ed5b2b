"""The pictures and the report of a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from functools import cache
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ncsn_cli.commands.build import instantiate_list
from ncsn_cli.commands.config import Config, without_paths
from ncsn_cli.commands.report import (
    LIVE,
    drawing,
    html_report,
    schedule_table,
    sources_table,
    tables_of,
)
from ncsn_cli.commands.sources import sources_of
from ncsn_cli.core.progress import HIDDEN, tqdm
from ncsn_cli.core.scene import Scene
from ncsn_cli.evaluation.verdict import Verdict
from ncsn_cli.runs.folder import RunFolder
from ncsn_cli.runs.records import flatten, without_home
from ncsn_cli.runs.workers import CORES, run_in_processes

log = logging.getLogger(__name__)

_WORKERS = min(4, CORES)
"""Processes that draw. More would hardly help: the longest animation takes a third of all time."""


class Pictures:
    """The pictures to draw, by name: functions of a ``Scene``, which return None if inapplicable.

    A picture of training alone tests whether the scene is a ``TrainingScene``, and one of sampling
    alone whether it is a ``SamplingScene``.

    Those in ``plots`` return a matplotlib ``Figure``, those in ``animations`` an ``Animation``.
    """

    def __init__(self, config: Config) -> None:
        self.plots: dict[str, Callable[[Scene], Any]] = instantiate_list(config, "plot")
        self.animations: dict[str, Callable[[Scene], Any]] = instantiate_list(config, "animation")
        groups = [config.get(group) or {} for group in ("plot", "animation")]
        chosen = [each for group in groups for each in group.values() if each is not None]
        self._targets = [str(each["_target_"]) for each in chosen]

    def __bool__(self) -> bool:
        """Return whether there is anything to draw."""
        return bool(self.plots or self.animations)

    def may_show(self, plot: str) -> bool:
        """Return whether a picture may show what ``plot`` shows: also the user's own may."""
        ours = f"ncsn_cli.plots.{plot}"
        return any(name == ours or not name.startswith("ncsn_cli.") for name in self._targets)

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
    live: Callable[[str], str | None] | None = None,
) -> None:
    """Write every picture that applies into ``plots/`` and ``animations/``, and the report.

    ``compose`` returns the scene that the pictures show. ``verdict`` is the head of the report.
    ``live`` returns the live page under a title, or None if there is none.
    """
    missing = _draw(folder, pictures, compose) if pictures else {}
    title = (
        f"ncsn-{HydraConfig.get().job.config_name} {' '.join(HydraConfig.get().overrides.task)}"
    )
    if pictures and live is not None:
        with drawing(LIVE, missing):
            if (text := live(title)) is not None:
                folder.write(LIVE, without_home(text).encode())
    command, runtime = HydraConfig.get().job.config_name, HydraConfig.get().runtime
    before = _defaults(command, tuple(source.path for source in runtime.config_sources))
    now = flatten(without_paths(config))
    record = folder.record
    page = html_report(
        folder.path,
        title=title,
        facts=f"{record['start']}, {record['device']}, seed {record['seed']}, "
        f"{metrics['seconds']:g} s",
        command=record["command"],
        verdict=verdict,
        changed={
            key: value
            for key, value in now.items()
            if before.get(key) != value and not key.endswith("._partial_")
        },
        tables=tables_of(metrics)
        | schedule_table(record.get("schedule"))
        | sources_table(sources_of(config)),
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
    """Write the pictures; return, by name, why some are missing."""
    from ncsn_cli.plots.canvas import own_settings

    missing: dict[str, str] = {}
    scene = None
    with drawing("every picture", missing):
        scene = compose()
    if scene is None:
        return missing
    # Find out which pictures apply, then draw these: that takes most of the time.
    figures: dict[str, Any] = {}
    for key, draw in pictures.by_key.items():
        with drawing(key, missing), own_settings():
            if (figure := draw(scene)) is not None:
                figures[key] = figure
    left_out = _left_out(pictures, {*pictures.by_key} - {*figures, *missing}, scene)
    if figures:
        log.info("drawing %d picture%s", len(figures), "" if len(figures) == 1 else "s")
    with (
        tqdm(total=len(figures), desc="pictures", disable=HIDDEN, leave=False) as bar,
        closing(files_of(figures)) as files,
    ):
        for key, file in files:
            group, _, name = key.partition(".")
            if isinstance(file, str):
                missing[key] = file
            elif group == "plot":
                folder.write(f"plots/{name}.png", file)
            else:
                folder.write(f"animations/{name}.gif", file)
            bar.update()
    if left_out:
        log.info("left out: %s", "; ".join(f"{key} {why}" for key, why in left_out.items()))
    return missing | left_out


def files_of(figures: dict[str, Any]) -> Generator[tuple[str, bytes | str], None, None]:
    """Draw figures and animations; yield each name with the file, or why it could not be drawn.

    The names are ``plot.NAME`` and ``animation.NAME``. If there are animations and several cores,
    all is drawn in forks of this process, and yielded as it is finished.
    """
    left = dict(sorted(figures.items()))  # animations first, as they take longest
    keys = [*left]
    # A fork costs .2 s, which plots alone do not make good.
    workers = _WORKERS if any(key.startswith("animation.") for key in keys) else 1
    tasks = [_file_of(key, figure) for key, figure in left.items()]
    # A fork that is killed or cannot be made costs time, but no picture.
    with suppress(Exception), closing(run_in_processes(tasks, workers)) as all_news:
        for news in all_news:
            for number, file in news:
                del left[keys[number]]
                yield keys[number], file
    for key, figure in left.items():
        yield key, next(_file_of(key, figure))


def _file_of(key: str, figure: Any) -> Iterator[bytes | str]:  # noqa: ANN401
    """Yield the file of a picture, or the reason why it could not be drawn."""
    from ncsn_cli.plots.canvas import own_settings, to_gif, to_png

    file, missing = b"", dict[str, str]()
    with drawing(key, missing), own_settings():
        file = to_png(figure) if key.startswith("plot.") else to_gif(figure)
    yield missing.get(key, file)


def _left_out(pictures: Pictures, keys: set[str], scene: Scene) -> dict[str, str]:
    """Return, by name, why pictures do not apply: those with ``keys``.

    They are named only for D > 2, or if the user chose them for this command, or if the true score
    is all that they lack.
    """
    from ncsn_cli.plots import NEED_TRUTH, NEEDS

    words = HydraConfig.get().overrides.task
    named = {re.split("[=@]", word.lstrip("+~"))[0] for word in words}
    reasons: dict[str, str] = {}
    for key, draw in pictures.by_key.items():
        if key not in keys:
            continue
        is_chosen = key.partition(".")[0] in named or any(w.startswith(f"{key}.") for w in named)
        function = getattr(draw, "func", draw)  # options make partials
        is_for = next((dim for ours, dim in NEED_TRUTH.items() if ours is function), None)
        if scene.true_scores is None and is_for == scene.dim:
            reasons[key] = "needs the true score, which is not known"
        elif scene.dim > 2 or is_chosen:
            needs = (f"needs {what}" for ours, what in NEEDS.items() if ours is function)
            reasons[key] = next(needs, "does not apply")
    return reasons
