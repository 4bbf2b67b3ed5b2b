"""Tolerances from theory, with both error rates."""

import math

import torch

# Dvoretzky-Kiefer-Wolfowitz: P(sup |F_n - F| > LIMIT) < 1e-6 for exact draws, and a law that is
# 2 * LIMIT = 0.02 away in Kolmogorov distance passes with probability below 1e-6.
NUM_DRAWS = 72_544
LIMIT = math.sqrt(math.log(2 / 1e-6) / (2 * NUM_DRAWS))


def kolmogorov_distance(draws, cdf):
    """sup |F_n - F| for draws (n,) and their supposed distribution function."""
    x = draws.double().cpu().sort().values
    values = cdf(x)
    n = len(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum((steps[1:] - values).max(), (values - steps[:-1]).max()))


def assert_mean(values, expected, standard_errors=5.0):
    """The mean of independent values (n,) is ``expected`` within 5 standard errors (p = 6e-7)."""
    values = torch.as_tensor(values, dtype=torch.float64)
    error = float(values.std() / math.sqrt(len(values)))
    difference = abs(float(values.mean()) - expected)
    assert difference <= standard_errors * error + 1e-12, (
        f"{float(values.mean()):.6g} against {expected:.6g}: {difference / error:.1f} SE"
    )


def assert_variance(values, expected):
    """The variance of Gaussian values (n,) is ``expected`` within 5 standard errors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    error = expected * math.sqrt(2 / len(values))
    assert abs(float(values.var()) - expected) <= 5 * error
