"""Pictures of the truth and of what was learned or sampled: a ``Scene`` in, a ``Figure`` out.

A function returns None where its picture does not apply.
"""

from ncsn_cli.plots.data import density
from ncsn_cli.plots.fields import log_density, recovered_density, score, score_error, score_norm
from ncsn_cli.plots.learning import loss
from ncsn_cli.plots.sampling import chains, commitment, distances, samples

__all__ = [
    "chains",
    "commitment",
    "density",
    "distances",
    "log_density",
    "loss",
    "recovered_density",
    "samples",
    "score",
    "score_error",
    "score_norm",
]
