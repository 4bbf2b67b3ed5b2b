"""Which part of a network's error reaches the samples, level by level and in nats."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import counted
from ncsn_cli.metrics import FisherDivergence, SplitError
from ncsn_cli.samplers import some_levels

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
KLBounds = dict[str, dict[str, float | None] | float | None]

_MOST_LEVELS = 20  # at which the error is split: for two modes, half a second on one core


def levels_split(truth: Dataset, levels: list[float]) -> set[float]:
    """Return the levels at which ``split_error`` splits the error: for D = 2, at most 20.

    They are spread evenly over the places in ``levels``, and both ends are among them.
    """
    if truth.dim != 2:
        return set()
    return {levels[place] for place in some_levels(len(levels), _MOST_LEVELS)}


def log_failures(truth: Dataset, splits: Collection[SplitError]) -> None:
    """Log in one line why some of the ``splits`` failed, or why there are none for D > 2."""
    if truth.dim > 2:
        log.info("no visible error, because it is known for D = 1 and 2 alone")
    if failures := [each.failure for each in splits if each.failure]:
        reasons = ", or ".join(dict.fromkeys(failures))
        log.info(
            "no visible error at %d of %s, because %s",
            len(failures),
            counted(len(splits), "level"),
            reasons,
        )


def all_visible(found: FisherDivergence) -> SplitError:
    """Return the split of an error for D = 1, where every error is a gradient."""
    return SplitError(found.divergence, 0.0, found.information, 0.0)


def visible_shares(splits: Mapping[float, SplitError], levels: Iterable[float]) -> Array | None:
    """Return E||Pe||^2/E||e||^2 at each of the ``levels`` (L,), linear in sigma between splits.

    Return None without splits, or if one of them failed. Where there is no error, the share is 1.
    """
    if not splits or any(each.failure for each in splits.values()):
        return None
    pairs = sorted((sigma, each.visible, each.invisible) for sigma, each in splits.items())
    sigmas, visible, invisible = np.array(pairs).T
    total = visible + invisible
    shares = np.where(total > 0, visible, 1.0) / np.where(total > 0, total, 1.0)
    found: Array = np.interp([*levels], sigmas, shares)
    return found


def visible_errors(
    levels: list[float], score_errors: Sequence[float], splits: Mapping[float, SplitError]
) -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
    """Return visible and invisible error, E||Pe||^2/E||s*||^2 and E||e - Pe||^2/E||s*||^2.

    The first dictionary holds their means over the ``levels`` (L,), with the mean change in the
    last refinement of the grids as the standard error. The second holds both at each level: at a
    level without a split, they are the shares of the level's ``score_errors``. What is not known,
    because a split failed or there is none, is None.
    """
    shares = visible_shares(splits, levels)
    visible = np.full(len(levels), math.nan) if shares is None else shares * score_errors
    invisible = np.array(score_errors) - visible
    for place, sigma in enumerate(levels):
        if sigma in splits:
            each = splits[sigma]
            visible[place] = each.visible / each.information
            invisible[place] = each.invisible / each.information
    changes = [each.change / each.information for each in splits.values()]
    change = _or_none(float(np.mean(changes)) if changes else math.nan)
    means = {
        "visible_error": _or_none(visible.mean()),
        "visible_error_standard_error": change,
        "invisible_error": _or_none(invisible.mean()),
        "invisible_error_standard_error": change,
    }
    return means, {
        "visible_error_per_level": [*map(_or_none, visible.tolist())],
        "invisible_error_per_level": [*map(_or_none, invisible.tolist())],
    }


def kl_bounds(errors: Mapping[float, Tensor], splits: Mapping[float, SplitError]) -> KLBounds:
    """Return the bounds in nats and the standard error of the total; see ``evaluate_training``.

    ``errors`` are ||s - s*||^2 at the draws of each level. The visible bound is None if the
    visible shares are not known.
    """
    if len(errors) < 2:
        return {"kl_bound": None}
    sigmas = sorted(errors)
    halves = np.diff(np.square(sigmas)) / 2
    weights = (np.append(halves, 0.0) + np.append(0.0, halves)) / 2  # trapezoids; 1/2 of all
    means = np.array([float(errors[sigma].mean()) for sigma in sigmas])
    variances = [float(errors[sigma].var()) / len(errors[sigma]) for sigma in sigmas]
    shares = visible_shares(splits, sigmas)
    return {
        "kl_bound": {
            "visible": None if shares is None else float(weights @ (shares * means)),
            "total": float(weights @ means),
        },
        "kl_bound_standard_error": math.sqrt(float(weights**2 @ variances)),
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
