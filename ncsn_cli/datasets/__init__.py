"""Distributions whose density and score are known exactly, and those of which draws are."""

from ncsn_cli.datasets.checkerboard import Checkerboard
from ncsn_cli.datasets.circle import Circle
from ncsn_cli.datasets.denoised import Denoised as Denoised
from ncsn_cli.datasets.mixture import GaussianMixture
from ncsn_cli.datasets.sampled import Sampled as Sampled
from ncsn_cli.datasets.sampled import gives_draws_only as gives_draws_only
from ncsn_cli.datasets.shapes import grid, moons, ring, spiral

__all__ = ["Checkerboard", "Circle", "GaussianMixture", "grid", "moons", "ring", "spiral"]
