"""Check schedule and sampler by the techniques of Song & Ermon (2020), arXiv:2006.09011."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ncsn_cli.core.dataset import Dataset
from ncsn_cli.core.errors import ConfigError
from ncsn_cli.datasets import GaussianMixture
from ncsn_cli.evaluation.efficiency import data_needed
from ncsn_cli.evaluation.foretold import collapse_level, speciation_level
from ncsn_cli.samplers import Level, ProbabilityFlow, Sampler, plan_of, technique_4
from ncsn_cli.schedules import (
    POINTS_FOR_TECHNIQUE_1,
    describe_ratios,
    half_overlap_ratio,
    level_ratio,
    num_levels_between,
    overlap,
    technique_1,
    technique_2,
    technique_2_ratio,
)

log = logging.getLogger(__name__)

_WASTEFUL, _COUNTLESS = 2.0, 1e6  # times the data of maximum likelihood

_TOO_WIDE = 1.12  # sigma_min at half the smallest std, which is usual, widens by 1.118


def examine(  # noqa: PLR0913  # what is known of a request
    sigmas: Tensor,
    sampler: Sampler,
    data: Tensor,
    smallest_std: float | None,
    *,
    law: Dataset | None = None,
    num_points: int | None = None,
    learns: bool = False,
    is_published: bool = False,
    is_fixed: bool = False,
) -> dict[str, Any]:
    """Compare schedule and sampler with the choices of the techniques, and log one line.

    ``data`` (N, D) are training points, ``smallest_std`` is the standard deviation s of the
    data's narrowest component, or None if it is not known. ``law`` foretells where chains choose
    a mode and, for a score that has learned ``num_points`` points, where they choose one of these.
    ``learns`` says that the score is learned from data, so that it may take many.
    ``is_published`` says that schedule and sampler are those of a published experiment, whose
    weakness is part of it; ``is_fixed`` that the levels are those of a trained network, so that
    others need training.

    Returns:
        The numbers for ``run.json``: with ``notes``, a sentence on each technique, and
        ``warnings``, what is wrong.
    """
    notes: list[str] = []
    if smallest_std is None:
        notes.append(
            "Technique 0, and how wide chains end: left out, because the width of the data's"
            " narrowest component is not known; steps are judged as on a point"
        )
    remedy = "Train with" if is_fixed else "Try"
    report, complaints = _examine_levels(sigmas, data, smallest_std, notes, remedy, sampler)
    if law is not None:
        report |= _examine_law(sigmas, law, num_points, notes)
        if learns and float(sigmas[-1]) == 0:
            _examine_data(law, report, notes, remedy)
    tau = 0.0
    try:
        levels = plan_of(sampler, sigmas)
    except ConfigError as error:  # training works without a sampler
        complaints.append(f"ncsn-sample will refuse this sampler: {error}")
    else:
        steps, more = _examine_steps(levels, sampler, smallest_std, notes, is_fixed)
        report, complaints = report | steps, complaints + more
        tau = levels[-1].tau
    if lost := unresolved(data, sigmas, tau, smallest_std):
        complaints.append(
            f"{lost}: scores and chains are rounded there. Choose a larger sigma_min, or shift the"
            " data towards 0"
        )
    _log(complaints, is_published)
    return {**report, "notes": notes, "warnings": complaints, "is_published": is_published}


def _log(complaints: list[str], is_published: bool) -> None:
    """Log the first of ``complaints``."""
    others = f" (report.html has {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    if not complaints:
        log.info("schedule: fine")
    elif is_published:
        log.info("schedule: as published, which is known to be weak: %s%s", complaints[0], others)
    else:
        log.warning("schedule: %s%s", complaints[0], others)


def _effect_of(widening: float, denoise: bool) -> str:
    """Return what sigma_min does to samples, where it widens the data by ``widening``.

    Posterior means of a Gaussian N(0, s^2) have the variance s^4/(s^2 + sigma_min^2).
    """
    if denoise:
        return f"narrows denoised samples to {1 / widening:.2f} of the data's width"
    return f"widens the data by {widening:.2f}"


def _examine_levels(
    sigmas: Tensor,
    data: Tensor,
    smallest_std: float | None,
    notes: list[str],
    remedy: str,
    sampler: Sampler,
) -> tuple[dict[str, Any], list[str]]:
    """Return the numbers of Techniques 0, 1 and 2 and a list of complaints; add to ``notes``.

    ``remedy`` begins the sentence on other levels. A ``sampler`` that fits its levels to the score
    takes none between the first and the last: there is nothing to complain about their ratios.
    """
    report: dict[str, Any] = {"sigmas": sigmas.tolist()}
    complaints = []
    sigma_max, sigma_min, dim = float(sigmas[0]), float(sigmas[-1]), data.shape[-1]
    if smallest_std is not None and smallest_std > 0:
        widening = math.sqrt(1 + (sigma_min / smallest_std) ** 2)
        report["technique_0"] = {"smallest_std": smallest_std, "widening": widening}
        notes.append(
            f"Technique 0: sigma_min = {sigma_min:g} widens the narrowest component (standard"
            f" deviation {smallest_std:.3g}) by {widening:.3f}"
        )
        if widening > _TOO_WIDE:
            complaints.append(
                f"sigma_min = {sigma_min:g} {_effect_of(widening, sampler.denoise)}. {remedy}"
                f" schedule.sigma{'_min' if len(sigmas) > 1 else ''}={smallest_std / 2:.2g}"
            )
    if len(sigmas) < 2:
        return report, complaints
    distance, points = technique_1(data), min(len(data), POINTS_FOR_TECHNIQUE_1)
    report["technique_1"] = {"sigma_max": distance, "points": points}
    notes.append(
        f"Technique 1: sigma_max = {sigma_max:g}, the largest distance between {points} points is"
        f" {distance:.4g}"
    )
    if sigma_max < distance / 2:  # two equal Gaussians more than 2 sigma apart form two modes
        complaints.append(
            f"sigma_max = {sigma_max:g} is small for this data (largest distance {distance:.3g}):"
            f" chains may not cross between far modes. {remedy} schedule.sigma_max="
            f"{math.ceil(distance) if distance > 1 else f'{distance:.2g}'}"
        )
    report["technique_2"], more = _examine_ratios(sigmas, dim, notes, remedy)
    is_fitted = isinstance(sampler, ProbabilityFlow) and sampler.fit_levels
    return report, complaints if is_fitted else complaints + more


def _examine_law(
    sigmas: Tensor, law: Dataset, num_points: int | None, notes: list[str]
) -> dict[str, Any]:
    """Return the levels that the law foretells; add to ``notes``."""
    sigma_s, sigma_c, is_single = speciation_level(law), None, len(sigmas) == 1
    if sigma_s is not None and not is_single:
        notes.append(f"Speciation: chains should choose a mode near sigma = {sigma_s:.3g}")
    if num_points is not None and not is_single:
        sigma_c = collapse_level(law, num_points)
    if sigma_c is not None:
        notes.append(
            f"Collapse: below sigma = {sigma_c:.2g} the smoothed training set of {num_points}"
            f" points is {num_points} separate peaks"
        )
    return {"speciation": sigma_s, "collapse": sigma_c}


def _examine_data(law: Dataset, report: dict[str, Any], notes: list[str], remedy: str) -> None:
    """Add to ``report`` and to ``notes`` what a training at sigma = 0 wastes.

    The log says so if it is much. ``report`` holds the level of speciation.
    """
    sigma_s = report["speciation"]
    if sigma_s is None or not isinstance(law, GaussianMixture):
        return
    best = data_needed(law, sigma_s)  # first: its grid is the larger one
    wasted = None if best is None else data_needed(law, 0.0)
    if wasted is None or best is None:
        return
    report["data_needed"] = {"without_noise": wasted, "at_speciation": best}
    text = (
        f"without noise (sigma = 0), score matching needs {_times(wasted)} the data of maximum"
        f" likelihood for the weights of the modes; at sigma = {sigma_s:.2g}, {_times(best)}"
    )
    if wasted >= _WASTEFUL:
        levels = f"schedule=geometric, or for the weights alone schedule.sigma={sigma_s:.2g}"
        text = f"{text}. {remedy} {levels}"
        log.info("%s", text)
    notes.append(f"Weights: {text}")


def _times(number: float) -> str:
    if number >= _COUNTLESS:
        return "more than a million times"
    return f"{number:,.0f} times" if number >= 100 else f"{number:.3g} times"


def _examine_ratios(
    sigmas: Tensor, dim: int, notes: list[str], remedy: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the numbers of Technique 2 and a list of complaints; add to ``notes``."""
    ratio, best = float((sigmas[:-1] / sigmas[1:]).max()), level_ratio(dim)
    advice = {
        "ratio": ratio,
        "probability": technique_2(ratio, dim),
        "overlap": overlap(ratio, dim),
        "ratio_of_probability_half": technique_2_ratio(dim),
        "ratio_of_overlap_half": half_overlap_ratio(dim),
        "ratio_advised": best,
        "num_levels_advised": num_levels_between(float(sigmas[0]), float(sigmas[-1]), best),
        "rule": "probability 1/2" if best == technique_2_ratio(dim) else "overlap 1/2",
    }
    notes.append(
        f"Technique 2: neighbouring levels in the ratio {ratio:.3f} (probability"
        f" {advice['probability']:.2f}, overlap {advice['overlap']:.2f}); at most {best:.3f} is"
        f" advised ({describe_ratios(dim)})"
    )
    if ratio <= best * 1.001:
        return advice, []
    # The number is that of a geometric schedule; others need more for the same largest ratio.
    is_geometric = ratio <= 1.001 * float((sigmas[:-1] / sigmas[1:]).min())
    choice = "" if is_geometric and len(sigmas) > 2 else "schedule=geometric "
    return advice, [
        f"neighbouring levels are in the ratio {ratio:.3g}, above {best:.3g}. {remedy} more"
        f" levels, {choice}schedule.num_levels={advice['num_levels_advised']}"
    ]


def _examine_steps(
    levels: list[Level],
    sampler: Sampler,
    smallest_std: float | None,
    notes: list[str],
    is_fixed: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Return eta, Technique 4 and the expected widths, and a list of complaints; add to ``notes``.

    Each level with a Langevin step has eta = tau/sigma^2. On the narrowest component, of standard
    deviation s, unadjusted Langevin steps are stable for tau/(s^2 + sigma^2) < 2. If the data are
    this component alone, the standard deviation of the chains is known in closed form. If s is not
    known, steps are judged as for s = 0. ``is_fixed``: see ``examine``.
    """
    narrowest = smallest_std or 0.0
    etas = [level.tau / level.sigma**2 for level in levels if level.tau > 0 and level.sigma > 0]
    if etas:
        notes.append(f"Steps: eta = tau/sigma^2 from {min(etas):.3g} to {max(etas):.3g}")
    variances = [narrowest**2 + level.sigma**2 for level in levels]
    is_langevin = levels[-1].steps > 0 and levels[-1].tau > 0
    if not is_langevin or sampler.needs_log_prob or min(variances) == 0:
        return {"eta_per_level": etas}, []  # no Langevin step, or a Metropolis test corrects it
    stability = [level.tau / v for level, v in zip(levels, variances, strict=True)]
    report: dict[str, Any] = {"eta_per_level": etas, "stability_per_level": stability}
    # A sampler of the user's own may have no step_size. With a checkpoint, ++ changes a value.
    key = ("++" if is_fixed else "") + "sampler.step_size"
    step_key = key if hasattr(sampler, "step_size") else None
    if max(stability) >= 2:
        longest = f", {step_key}={levels[-1].tau / max(stability):.2g}" if step_key else ""
        return report, [
            f"steps are too large: tau/(s^2 + sigma^2) reaches {max(stability):.3g} on the"
            f" narrowest component (s = {narrowest:.3g}), and chains are stable below 2. Try"
            f" smaller steps{longest}"
        ]
    if sampler.descends:
        return report, []
    if len(levels) > 1:
        report["technique_4"] = _examine_step_size(levels, notes)
    if smallest_std is None:
        return report, []
    widths, complaints = _examine_widths(levels, smallest_std, notes, step_key)
    return report | widths, complaints


def _examine_widths(
    levels: list[Level], std: float, notes: list[str], step_key: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the expected and the true widths, and a list of complaints; add to ``notes``."""
    stds = predicted_stds(levels, std)
    targets = [math.hypot(std, level.sigma) for level in levels]
    report = {"std_per_level": stds, "target_std_per_level": targets}
    excess = stds[-1] / targets[-1]
    notes.append(f"Steps: on one Gaussian, chains end {excess:.3f} times as wide as p_sigma_min")
    if excess <= _TOO_WIDE:
        return report, []
    remedy, best = _best_step_size(levels, std)
    advice = f"{step_key}={remedy:.2g} for {best:.2f}"
    if best > _TOO_WIDE or step_key is None:
        advice = "other steps" if best <= _TOO_WIDE else "more steps per level"
    return report, [f"chains will end {excess:.2f} times as wide as p_sigma_min. Try {advice}"]


def _examine_step_size(levels: list[Level], notes: list[str]) -> dict[str, Any]:
    """Return the numbers of Technique 4; add to ``notes``."""
    steps = levels[-1].steps
    step_size = technique_4(torch.tensor([level.sigma for level in levels]), steps)
    notes.append(
        f"Technique 4: step size {step_size:.3g} for {steps} steps per level; here it is"
        f" {levels[-1].tau:.3g}"
    )
    return {"step_size": step_size, "steps_per_level": steps}


def unresolved(data: Tensor, sigmas: Tensor, tau: float, smallest_std: float | None) -> str | None:
    """Return a line that names the lengths that float32 cannot resolve; None if there are none.

    Such a length is below 8 spacings of float32 at the data's largest coordinate: rounding adds
    more than .1 % to its square.

    Args:
        data: Points (N, D) in the coordinates in which scores are evaluated and chains run.
        sigmas: Noise levels (L,), descending.
        tau: The last level's Langevin step size, data units squared; 0 without Langevin steps.
        smallest_std: See ``examine``.
    """
    sigma_min, largest = float(sigmas[-1]), float(data.abs().max())
    spacing = float(np.spacing(np.float32(largest)))
    lengths = {
        "sigma_min": sigma_min,
        "the noise of a step, sqrt(2 tau)": math.sqrt(2 * tau),
        "the narrowest width": math.hypot(smallest_std or 0.0, sigma_min),
    }
    lost = [f"{name} = {value:.3g}" for name, value in lengths.items() if 0 < value < 8 * spacing]
    if not lost:
        return None
    return (
        f"float32 numbers near {largest:.3g}, the largest coordinate, are {spacing:.2g} apart, too"
        f" coarse for {', '.join(lost)}"
    )


def _best_step_size(levels: list[Level], std: float) -> tuple[float, float]:
    """Return a better tau for the last level, and the relative width at which chains then end.

    The steps of all levels are scaled by the same factor. The result is the longest step that ends
    within 5 % of the right width or, if there is none, the step that ends nearest to it.

    (Technique 4 assumes a point mass, and chains that enter the last level with the right width.
    Otherwise, for example on wider data, a longer step forgets the start sooner.)
    """
    target = math.sqrt(std**2 + levels[-1].sigma ** 2)
    longest = min(2 * (std**2 + level.sigma**2) / level.tau for level in levels)
    widths = {}
    for factor in longest * np.geomspace(0.99, 1e-6, 300):
        scaled = [level._replace(tau=level.tau * factor) for level in levels]
        width = widths[scaled[-1].tau] = predicted_stds(scaled, std)[-1] / target
        if width <= 1.05:
            break
    tau = min(widths, key=lambda tau: abs(math.log(widths[tau])))
    return float(tau), widths[tau]


def predicted_stds(levels: list[Level], std: float) -> list[float]:
    """Return the standard deviation after each level of Langevin steps on N(0, std^2).

    Each step maps the variance u to a^2 u + 2 tau, a = 1 - tau/v, v = std^2 + sigma^2, so that T
    steps give a^(2T) (u - w) + w with w = v/(1 - tau/(2v)). Chains start from p_sigma_max. The
    closed form needs tau < 2v at every level.
    """
    u, stds = std**2 + levels[0].sigma ** 2, []
    for sigma, tau, steps in levels:
        v = std**2 + sigma**2
        stationary = v / (1 - tau / (2 * v))
        u = (1 - tau / v) ** (2 * steps) * (u - stationary) + stationary
        stds.append(math.sqrt(u))
    return stds
