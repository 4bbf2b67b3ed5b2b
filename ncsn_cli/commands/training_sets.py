"""What trainings on several training sets of one law say together: lines of ``ncsn-compare``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ncsn_cli.commands.differences import IGNORED, by_law, differ, group, show
from ncsn_cli.commands.found_runs import TRAINING_SEED, Run
from ncsn_cli.core.errors import NcsnError

_FEWEST_SIZES = 3  # of training sets, for a slope and its error

_MOST_PAIRS = 10  # each loads two networks

_SIZE, _DRAWS = "dataset.num_samples", "dataset.seed"

_POINTS = 1000  # draws per level


def of_training_sets(runs: list[Run]) -> list[str]:
    """Return lines on how tau_gen and tau_mem grow, and on pairs of training sets of one size."""
    lines = []
    for some in by_law([run for run in runs if not run.has_samples]).values():
        sized = [run for run in some if isinstance(run.config.get(_SIZE), int)]
        for name, alike in _alike(sized, "seed", _DRAWS, _SIZE):
            lines += [f"{name}{line}" for line in _growth(alike)]
        lines += _pairs(sized)
    return lines


def _alike(runs: list[Run], *apart: str) -> Iterator[tuple[str, list[Run]]]:
    """Yield runs that differ in the keys ``apart`` alone, after what tells them from others.

    That is empty, or such as ``optimizer.lr=0.01: ``. Small training sets come first, and their
    size is not named.
    """
    ignored = (*apart, TRAINING_SEED, *IGNORED)
    keys = [
        key
        for key in dict.fromkeys(key for run in runs for key in run.settings)
        if not key.startswith(ignored) and differ(runs, key)
    ]
    groups = group(sorted(runs, key=lambda run: float(str(run.config[_SIZE]))), keys)
    for values, some in groups.items():
        pairs = zip(keys, values, strict=True)
        name = " ".join(f"{key}={show(value)}" for key, value in pairs if key != _SIZE)
        yield (f"{name}: " if name else ""), some


def _growth(runs: list[Run]) -> Iterator[str]:
    """Yield how tau_gen and tau_mem grow with the size of the training set.

    The exponent a of tau = c n^a is that of the least squares fit of log tau to log n, and its
    standard error that of the residuals.
    """
    measured = [run for run in runs if "tau_gen" in run.metrics]
    for name, event in (("tau_gen", "generalise"), ("tau_mem", "memorise")):
        points = [
            (float(str(run.config[_SIZE])), run.metrics[name])
            for run in measured
            if name in run.metrics
        ]
        sizes = {n for n, _ in points}
        if len(sizes) < _FEWEST_SIZES or len(points) < _FEWEST_SIZES + 1:
            continue
        x, y = np.log(np.array(points)).T
        (slope, start), *_ = np.polyfit(x, y, 1, full=True)
        residuals = y - start - slope * x
        error = math.sqrt(
            float(residuals @ residuals) / (len(x) - 2) / float(((x - x.mean()) ** 2).sum())
        )
        exponent = f"{round(slope, 2) + 0.0:.2f} ± {error:.2f}"  # 0 has no sign
        line = (
            f"{name}, the step from which networks {event}, grows as n^a with a = {exponent} for"
            f" n = {min(sizes):g} to {max(sizes):g} training points ({len(x)} runs)"
        )
        others = len(measured) - len(points)
        yield line + (f"; runs that did not {event} in time: {others}" if others else "")


def _pairs(runs: list[Run]) -> Iterator[str]:
    """Yield, for two runs on training sets of one size, how far apart their scores are.

    The runs differ in ``dataset.seed``, and perhaps in their own seed, alone.

    Source: Kadkhodaie et al. (2024), arXiv:2310.02557: networks that generalise learn the same
    score from two halves of the data, networks that memorise do not.
    """
    pairs = 0
    for name, alike in _alike(runs, "seed", _DRAWS):
        by_set = {run.config.get(_DRAWS): run for run in reversed(alike)}
        if len(by_set) < 2 or pairs == _MOST_PAIRS:
            continue
        first, second, *_ = reversed(by_set.values())
        try:
            found = distances_of_pair(first, second)
        except (NcsnError, LookupError, TypeError, ValueError):  # such as a class of one's own
            continue
        if found is None:
            continue
        pairs += 1
        apart, errors = found
        yield (
            f"{name}two training sets of {first.config[_SIZE]} points: the scores that they teach"
            f" are {apart:.3g} apart, and {errors[0]:.3g} and {errors[1]:.3g} from the true one"
            " (sigma² E‖difference‖², mean over the levels)"
        )


def distances_of_pair(first: Run, second: Run) -> tuple[float, tuple[float, float]] | None:
    """Return sigma^2 E||s_1 - s_2||^2 and each one's distance from s*; means over the levels.

    Return None if no level is above 0.
    """
    import torch  # here: it takes a second to import

    from ncsn_cli.commands.build import build_from_checkpoint
    from ncsn_cli.commands.notebook import load_run
    from ncsn_cli.core.dataset import Dataset
    from ncsn_cli.core.settings import random_stream

    both = [load_run(run.folder) for run in (first, second)]
    law: Dataset = build_from_checkpoint(both[0].config["dataset"], "dataset", [])
    stream, rows = random_stream(0, "two training sets"), []
    for sigma in (level for level in both[0].metrics["sigmas"] if level > 0):
        x = law.truth.sample(_POINTS, sigma=sigma, generator=stream)
        with torch.no_grad():
            one, two = (run.score(x, sigma) for run in both)
        true = law.truth.score(x, sigma)
        differences = (one - two, one - true, two - true)
        rows.append([sigma**2 * float(d.square().sum(-1).mean()) for d in differences])
    if not rows:
        return None
    apart, one_off, two_off = np.mean(rows, axis=0).tolist()
    return apart, (one_off, two_off)
