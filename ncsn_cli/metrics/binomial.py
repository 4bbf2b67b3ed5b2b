"""Mean absolute deviations of the binomial law, in closed form."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.interpolate import CubicSpline

Array = NDArray[np.float64]

_NODES = 400  # of the spline in log q(1 - q)


def mean_absolute_deviation(num: int, q: Array) -> Array:
    """Return E|K - n q|, K ~ Bin(n, q), for n = ``num`` and each ``q`` in [0, 1].

        E|K - n q| = 2 v (1 - q) P(K = v),   v = floor(n q) + 1

    Source: de Moivre (1730); Diaconis & Zabell (1991), doi:10.1214/ss/1177011699.
    """
    from scipy.stats import binom  # here: scipy is slow to import

    v = np.floor(num * q) + 1
    return np.where((q > 0) & (q < 1), 2 * v * (1 - q) * binom.pmf(v, num, q), 0.0)


def mean_absolute_difference(num: int, q: Array) -> Array:
    """Return E|K - K'|, K and K' independent Bin(n, q), for n = ``num`` and each ``q`` in [0, 1].

        E|K - K'| = 1/pi integral_0^pi (1 - (1 - 2 a (1 - cos t))^n)/(1 - cos t) dt,   a = q(1 - q)

    With s = tan(t/2) = e^y the integrand is (1 - (1 - 4 a s^2/(1 + s^2))^n)/s. It is analytic in
    y, so that the trapezoid rule converges geometrically. A cubic spline, in log-log,
    interpolates between 400 values of log a; the relative error is below 1e-6.

    Source: von Bahr (1965), doi:10.1214/aoms/1177700055, absolute moments from characteristic
    functions, here applied to the lattice of the integers.
    """
    a = q * (1 - q)
    low, spline = _log_difference(num)
    inside = np.exp(spline(np.log(np.clip(a, low, 0.25))))
    return np.where(a < low, 2 * num * a, inside)


@functools.lru_cache(maxsize=2)
def _log_difference(num: int) -> tuple[float, CubicSpline[np.float64]]:
    """Return the a below which E|K - K'| is 2 n a, and log E|K - K'| as a spline in log a."""
    from scipy.interpolate import CubicSpline

    low = 1e-12 / num
    log_a = np.linspace(np.log(low), np.log(0.25), _NODES)
    step = 0.05
    s = np.exp(np.arange(-0.5 * np.log(num) - 25, 25, step))
    shrunk = np.minimum(4 * np.exp(log_a)[:, None] * (s**2 / (1 + s**2)), 1 - 1e-16)
    terms = -np.expm1(num * np.log1p(-shrunk)) / s
    return low, CubicSpline(log_a, np.log(terms.sum(axis=1) * step / np.pi))
