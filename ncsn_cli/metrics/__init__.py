"""Metrics: how far samples, or a score, are from the truth."""

from ncsn_cli.metrics.base import Distance as Distance
from ncsn_cli.metrics.base import SampleMetric as SampleMetric
from ncsn_cli.metrics.base import ScoreMetric as ScoreMetric
from ncsn_cli.metrics.base import random_subset as random_subset
from ncsn_cli.metrics.commitment import count_commitment as count_commitment
from ncsn_cli.metrics.commitment import mode_commitment as mode_commitment
from ncsn_cli.metrics.commitment import settled_from as settled_from
from ncsn_cli.metrics.commitment import settled_point as settled_point
from ncsn_cli.metrics.kernels import MMD, EnergyDistance
from ncsn_cli.metrics.likelihood import KL
from ncsn_cli.metrics.likelihood import LogLikelihood as LogLikelihood
from ncsn_cli.metrics.likelihood import check_flow as check_flow
from ncsn_cli.metrics.likelihood import in_float64 as in_float64
from ncsn_cli.metrics.likelihood import log_likelihood as log_likelihood
from ncsn_cli.metrics.memorisation import Memorisation
from ncsn_cli.metrics.moments import ModeWeights, Moments, Width
from ncsn_cli.metrics.moments import relative_width as relative_width
from ncsn_cli.metrics.recovered import NOT_RECOVERED as NOT_RECOVERED
from ncsn_cli.metrics.recovered import recovered_density as recovered_density
from ncsn_cli.metrics.score_error import FisherDivergence as FisherDivergence
from ncsn_cli.metrics.score_error import ScoreError
from ncsn_cli.metrics.score_error import compared_scores as compared_scores
from ncsn_cli.metrics.score_error import divergence_of as divergence_of
from ncsn_cli.metrics.score_error import fisher_divergence as fisher_divergence
from ncsn_cli.metrics.score_error import in_parts as in_parts
from ncsn_cli.metrics.score_error import products_at as products_at
from ncsn_cli.metrics.score_error import relative_error as relative_error
from ncsn_cli.metrics.transport import SlicedWasserstein, Wasserstein
from ncsn_cli.metrics.visible import SplitError as SplitError
from ncsn_cli.metrics.visible import split_error as split_error
from ncsn_cli.metrics.visible import visible_field as visible_field

__all__ = [
    "KL",
    "MMD",
    "EnergyDistance",
    "Memorisation",
    "ModeWeights",
    "Moments",
    "ScoreError",
    "SlicedWasserstein",
    "Wasserstein",
    "Width",
]
