"""What the techniques of Song & Ermon (2020), arXiv:2006.09011, say of a schedule for its data."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from ncsn_cli.samplers import Level, Sampler, technique_4
from ncsn_cli.schedules import level_ratio, num_levels_between, overlap, technique_1, technique_2
from ncsn_cli.scores import ConfigError

log = logging.getLogger(__name__)


def examine(sigmas: Tensor, sampler: Sampler, data: Tensor, smallest_std: float) -> dict[str, Any]:
    """Log the schedule beside what the techniques would choose, and warn where it is bad.

    ``data`` (N, D) are training points, ``smallest_std`` the standard deviation s of the data's
    narrowest component. Returned, for ``run.json``, are the techniques' numbers and, per level,
    eta = tau/sigma^2, tau/(s^2 + sigma^2) (the chain is stable on that component below 2), and
    the standard deviation of annealed Langevin dynamics on it beside its target.
    """
    report: dict[str, Any] = {"sigmas": sigmas.tolist()}
    complaints = _examine_levels(report, sigmas, data, smallest_std)
    try:
        levels = sampler.levels(sigmas)
    except ConfigError as error:  # training does without a sampler
        complaints.append(f"ncsn-sample will refuse its sampler, {error}")
    else:
        if levels[-1].steps > 0:
            complaints += _examine_steps(report, levels, sampler, smallest_std)
    if complaints:
        log.warning("this schedule may not serve: %s", "; ".join(complaints))
    return {**report, "warnings": complaints}


def _examine_levels(
    report: dict[str, Any], sigmas: Tensor, data: Tensor, smallest_std: float
) -> list[str]:
    """Techniques 0, 1 and 2; returns what is bad."""
    complaints = []
    sigma_max, sigma_min, dim = float(sigmas[0]), float(sigmas[-1]), data.shape[-1]
    if smallest_std > 0:
        widening = math.sqrt(1 + (sigma_min / smallest_std) ** 2)
        report["technique_0"] = {"smallest_std": smallest_std, "widening": widening}
        log.info(
            "Technique 0: sigma_min = %g widens the narrowest component by %.3f",
            sigma_min,
            widening,
        )
        if widening > 1.1:
            complaints.append(
                f"sigma_min = {sigma_min:g} widens the narrowest component (standard deviation"
                f" {smallest_std:.3g}) by {widening:.2f}"
            )
    if len(sigmas) < 2:
        return complaints
    distance = technique_1(data)
    report["technique_1"] = {"sigma_max": distance, "points": len(data)}
    log.info("Technique 1: sigma_max = %g, the largest distance is %.4g", sigma_max, distance)
    if sigma_max < distance / 2:  # two equal Gaussians farther apart than 2 sigma are two modes
        complaints.append(
            f"sigma_max = {sigma_max:g} is below half the largest distance {distance:.3g}, so"
            " chains may not cross between far modes"
        )
    ratio, best = float((sigmas[:-1] / sigmas[1:]).max()), level_ratio(dim)
    report["technique_2"] = {
        "ratio": ratio,
        "probability": technique_2(ratio, dim),
        "overlap": overlap(ratio, dim),
        "ratio_advised": best,
        "num_levels_advised": num_levels_between(sigma_max, sigma_min, best),
        "rule": "Technique 2" if dim >= 10 else "overlap by half, as Technique 2 is for D >= 10",
    }
    log.info(
        "Technique 2: largest ratio of levels %.3f, overlap %.2f; at most %.3f is advised (%s)",
        ratio, report["technique_2"]["overlap"], best, report["technique_2"]["rule"],
    )  # fmt: skip
    if ratio > best * 1.001:
        complaints.append(
            f"neighbouring levels are {ratio:.3g} apart, more than {best:.3g}: take more of them"
        )
    return complaints


def _examine_steps(
    report: dict[str, Any], levels: list[Level], sampler: Sampler, smallest_std: float
) -> list[str]:
    """Technique 4, stability, and the widths to expect; returns what is bad."""
    variances = [smallest_std**2 + level.sigma**2 for level in levels]
    etas = [level.tau / level.sigma**2 for level in levels if level.sigma > 0]
    report["eta_per_level"] = etas
    if len(levels) > 1:
        steps = levels[-1].steps
        step_size = technique_4(torch.tensor([level.sigma for level in levels]), steps)
        report["technique_4"] = {"step_size": step_size, "steps_per_level": steps}
        log.info(
            "Technique 4: step size %.3g for %d steps a level; here it is %.3g, eta %.3g to %.3g",
            step_size, steps, levels[-1].tau, min(etas), max(etas),
        )  # fmt: skip
    if sampler.descends or sampler.needs_log_prob or min(variances) == 0:
        return []  # the closed form below is that of unadjusted steps on a Gaussian
    stability = [level.tau / v for level, v in zip(levels, variances, strict=True)]
    report["stability_per_level"] = stability
    if max(stability) >= 2:
        return [f"tau/(s^2 + sigma^2) reaches {max(stability):.3g}, and chains are stable below 2"]
    stds = predicted_stds(levels, smallest_std)
    report["std_per_level"] = stds
    report["target_std_per_level"] = [math.sqrt(v) for v in variances]
    excess = stds[-1] / math.sqrt(variances[-1])
    log.info("annealed Langevin ends %.3f times as wide as p_sigma_min (one Gaussian)", excess)
    if excess <= 1.1:
        return []
    settled = 1 / math.sqrt(1 - stability[-1] / 2)  # after infinitely many steps at the last level
    remedy = "a smaller sampler.step_size" if settled > 1.1 else "more steps a level"
    return [f"annealed Langevin will end {excess:.2f} times as wide as p_sigma_min: take {remedy}"]


def predicted_stds(levels: list[Level], std: float) -> list[float]:
    """Standard deviation after each level of Langevin steps on N(0, std^2), in closed form.

    Each step maps the variance u to a^2 u + 2 tau, a = 1 - tau/v, v = std^2 + sigma^2, so that T
    of them give a^(2T) (u - w) + w with w = v/(1 - tau/(2v)); chains start from p_sigma_max.
    Needs tau < 2v at every level.
    """
    u, stds = std**2 + levels[0].sigma ** 2, []
    for sigma, tau, steps in levels:
        v = std**2 + sigma**2
        stationary = v / (1 - tau / (2 * v))
        u = (1 - tau / v) ** (2 * steps) * (u - stationary) + stationary
        stds.append(math.sqrt(u))
    return stds
