"""Samplers: chains that move points towards p_sigma using only a score.

Every Langevin step here is written

    x  <-  x + tau * score(x, sigma) + sqrt(2 tau) z,      z ~ N(0, I),

as in Song & Ermon (2020). The 2019 paper writes x + (eps/2) score + sqrt(eps) z: eps = 2 tau.
Stability depends on eta = tau / sigma^2. On N(0, sigma^2) a chain is stable for eta < 2, and its
stationary variance is sigma^2 / (1 - eta/2).
"""

from ncsn_cli.samplers.base import Level as Level
from ncsn_cli.samplers.base import LogProb as LogProb
from ncsn_cli.samplers.base import Memory as Memory
from ncsn_cli.samplers.base import Sampler as Sampler
from ncsn_cli.samplers.base import State as State
from ncsn_cli.samplers.base import Step as Step
from ncsn_cli.samplers.base import plan_of as plan_of
from ncsn_cli.samplers.base import some_levels as some_levels
from ncsn_cli.samplers.diffusion import (
    ConsistentAnnealed,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
)
from ncsn_cli.samplers.foreign import Azula, Diffusers, External
from ncsn_cli.samplers.foreign import Foreign as Foreign
from ncsn_cli.samplers.langevin import (
    AnnealedLangevin,
    AnnealedMALA,
    ConstantStepLangevin,
    Langevin,
)
from ncsn_cli.samplers.langevin import Place as Place
from ncsn_cli.samplers.langevin import technique_4 as technique_4

__all__ = [
    "AnnealedLangevin",
    "AnnealedMALA",
    "Azula",
    "ConsistentAnnealed",
    "ConstantStepLangevin",
    "Diffusers",
    "External",
    "Langevin",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
]
