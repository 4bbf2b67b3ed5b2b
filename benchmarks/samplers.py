"""Which settings each sampler gets for so many evaluations of the score, for the benchmarks."""

from __future__ import annotations

import math

from ncsn_cli.metrics import SlicedWasserstein
from ncsn_cli.samplers import (
    AnnealedLangevin,
    AnnealedMALA,
    ConsistentAnnealed,
    ConstantStepLangevin,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    Sampler,
)

SIGMA_MAX, NUM = 20.0, 10_000
METRIC = SlicedWasserstein(num_directions=100)


def samplers(budget: int, sigma_min: float, std: float) -> dict[str, tuple[Sampler, int]]:
    """Each sampler with a number of levels that takes ``budget`` evaluations, or a few less.

    Langevin dynamics at several levels makes about as many steps at each as there are levels. Its
    step at sigma_min is a tenth of the narrowest component's variance, which widens that by 5 %;
    sigma_min^2 with a Metropolis test; Technique 4's for ``annealed_langevin``.
    """
    levels = max(2, math.isqrt(budget))
    steps = budget // levels
    tau = 0.1 * (std**2 + sigma_min**2)
    return {
        "langevin": (Langevin(step_size=tau, steps=budget, denoise=False), 2),
        "constant_step_langevin": (
            ConstantStepLangevin(step_size=tau, steps_per_level=steps, denoise=False),
            levels,
        ),
        "annealed_langevin": (
            AnnealedLangevin(step_size="auto", steps_per_level=steps, denoise=False),
            levels,
        ),
        "annealed_mala": (
            AnnealedMALA(step_size=sigma_min**2, steps_per_level=steps - 1, denoise=False),
            levels,
        ),
        "predictor_corrector": (
            PredictorCorrector(snr=0.16, corrector_steps=1, denoise=False),
            (budget + 1) // 2,
        ),
        "reverse_diffusion": (ReverseDiffusion(denoise=False), budget + 1),
        "consistent_annealed": (ConsistentAnnealed(eta="auto", denoise=False), budget + 1),
        "probability_flow, euler": (ProbabilityFlow(solver="euler", denoise=False), budget + 1),
        "probability_flow, heun": (
            ProbabilityFlow(solver="heun", denoise=False),
            budget // 2 + 1,
        ),
        "probability_flow": (ProbabilityFlow(solver="multistep", denoise=False), budget + 1),
    }
