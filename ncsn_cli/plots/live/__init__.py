"""The live page: particles, score and shares of a law of one or two dimensions, in a browser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, Literal

from jinja2 import Environment
from markupsafe import Markup

from ncsn_cli.plots.live.program import UnknownOperationError as UnknownOperationError
from ncsn_cli.plots.live.program import program_of as program_of

_SCRIPTS = ("law", "samplers", "network", "drawing", "page")

Law = list[list[list[float]]]
"""A mixture as the page takes it: [[weight], mean (D), [c11, c12, c22]] for each component."""


@dataclass(frozen=True)
class LiveState:
    """What the controls of the page say at first. Numbers are in data units.

    Args:
        law: Name of one of the page's laws.
        sampler: What moves the particles.
        score: The score that they follow.
        start: Where they start: the moments of p at the highest level, N(0, max^2), uniform on
            [-8, 8]^D, or exact draws at the highest level.
        max: The highest level.
        min: The lowest level.
        levels: Number of levels.
        steps: Langevin steps at each level.
        tau: Size of a Langevin step at the lowest level.
        num: Number of particles.
        points: Number of points of the empirical score.
        seed: Seed of all random numbers.
        speed: Steps in a frame.
        particles: Whether to show the particles.
        density: Whether to show the density.
        arrows: Whether to show the score.
        denoise: Whether to end with the posterior mean.
    """

    law: str
    sampler: Literal["langevin", "annealed_langevin", "reverse_diffusion", "probability_flow"] = (
        "annealed_langevin"
    )
    score: Literal["exact", "empirical", "network"] = "exact"
    start: Literal["prior", "normal", "uniform", "data"] = "prior"
    max: float = 20.0
    min: float = 1.0
    levels: int = 10
    steps: int = 100
    tau: float = 0.1
    num: int = 2000
    points: int = 50
    seed: int = 0
    speed: int = 2
    particles: bool = True
    density: bool = True
    arrows: bool = True
    denoise: bool = False


def live_page(
    title: str,
    laws: Mapping[str, Law],
    state: LiveState,
    *,
    sigmas: Sequence[float] | None = None,
    program: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Return the page: one HTML file that needs no other file and no network.

    Args:
        title: Its heading.
        laws: The laws to choose from, by name.
        state: What its controls say at first.
        sigmas: The levels while ``max``, ``min`` and ``levels`` are as in ``state``; None for a
            constant ratio.
        program: The network, see ``program_of``; None without one.
        notes: Sentences under the controls.
    """
    folder = files(__package__)
    known = {"laws": laws, "state": asdict(state), "sigmas": sigmas, "program": program}
    # No text in the data may end the script.
    data = json.dumps(known, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    scripts = (folder / f"{name}.js" for name in _SCRIPTS)
    page = (folder / "page.html").read_text(encoding="utf-8")
    return (
        Environment(autoescape=True, trim_blocks=True)
        .from_string(page)
        .render(
            title=title,
            laws=laws,
            has_network=program is not None,
            notes=notes,
            scene=Markup(data),
            scripts=Markup("\n".join(path.read_text(encoding="utf-8") for path in scripts)),
        )
    )
