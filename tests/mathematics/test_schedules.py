import logging
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.integrate import quad
from scipy.spatial.distance import pdist

from ncsn_cli.core.errors import ConfigError
from ncsn_cli.schedules import (
    FromData,
    Geometric,
    Karras,
    Linear,
    Single,
    level_ratio,
    overlap,
    technique_1,
    technique_2,
    technique_2_ratio,
)
from tests.helpers.problems import stream


def test_geometric_levels_descend_in_one_ratio():
    sigmas = Geometric(sigma_max=20.0, sigma_min=0.1, num_levels=100).sigmas
    assert float(sigmas[0]) == 20.0
    assert float(sigmas[-1]) == 0.1
    ratios = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratios, torch.full((99,), (0.1 / 20) ** (1 / 99)).double())


def test_geometric_levels_of_the_random_notes():
    # The first, second and last but one level that the page prints.
    sigmas = Geometric(sigma_max=2.0, sigma_min=0.5, num_levels=16).sigmas
    expected = torch.tensor([2.0, 1.8234449771164336, 0.548412489847313], dtype=torch.float64)
    torch.testing.assert_close(sigmas[[0, 1, -2]], expected, rtol=1e-12, atol=0)


def test_linear_levels_descend_by_one_distance():
    sigmas = Linear(sigma_max=2.0, sigma_min=0.5, num_levels=4).sigmas
    torch.testing.assert_close(sigmas, torch.tensor([2.0, 1.5, 1.0, 0.5]).double())


def test_karras_levels_of_the_paper():
    # Equation 5: sigma^(1/rho) runs in equal steps.
    sigmas = Karras(sigma_max=80.0, sigma_min=0.002, num_levels=18, rho=7.0).sigmas
    assert (float(sigmas[0]), float(sigmas[-1])) == (80.0, 0.002)
    roots = sigmas ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(17))
    linear = Linear(sigma_max=80.0, sigma_min=0.002, num_levels=18).sigmas
    torch.testing.assert_close(Karras(80.0, 0.002, 18, 1.0).sigmas, linear)


def test_single_is_one_level():
    assert Single(sigma=0.0).sigmas.tolist() == [0.0]


@pytest.mark.parametrize(
    "values",
    [
        {"sigma_min": 3.0},
        {"sigma_min": -0.5},
        {"sigma_min": 0.0},
        {"num_levels": 1},
        {"num_levels": 2.5},
        {"sigma_max": float("inf")},
        {"sigma_max": "2"},
        {"sigma_mx": 2.0},
    ],
)
def test_impossible_schedules_are_refused(values):
    with pytest.raises(ValidationError):
        Geometric(**{"sigma_max": 2.0, "sigma_min": 0.5, "num_levels": 4, **values})


# Published by Song & Ermon (2020), table 4: sigma_max, L and D; sigma_min = .01.
PUBLISHED = {
    "CIFAR-10": (50, 232, 3 * 32**2),
    "CelebA": (90, 500, 3 * 64**2),
    "bedroom": (190, 1086, 3 * 128**2),
    "FFHQ": (348, 2311, 3 * 256**2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_technique_2_of_the_published_schedules(name):
    # They all have C = .566 to .567 (not the paper's .5), so L is that of a ratio for .567.
    sigma_max, num_levels, dim = PUBLISHED[name]
    sigmas = Geometric(float(sigma_max), 0.01, num_levels).sigmas
    assert 0.566 <= technique_2(float(sigmas[0] / sigmas[1]), dim) <= 0.567 + 0.0005


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_technique_2_has_no_solution_in_low_dimensions(dim):
    assert min(technique_2(ratio, dim) for ratio in np.geomspace(1.001, 1e6, 500)) > 0.99
    assert technique_2(19.5, 5) == pytest.approx(0.5, abs=0.01)  # and a useless one at D = 5


# The overlap at Technique 2's ratio reaches .1 between D = 147 and 148.
@pytest.mark.parametrize(("dim", "overlaps"), [(148, 0.10002), (150, 0.1002), (3072, 0.1262)])
def test_technique_2_is_advised_where_its_levels_overlap_by_a_tenth(dim, overlaps):
    ratio = technique_2_ratio(dim)
    assert level_ratio(dim) == ratio
    assert technique_2(ratio, dim) == pytest.approx(0.5, abs=1e-6)
    assert overlap(ratio, dim) == pytest.approx(overlaps, abs=5e-5)


@pytest.mark.parametrize(("dim", "overlaps"), [(5, 0.0001), (10, 0.0179), (147, 0.0999)])
def test_technique_2_is_not_advised_where_its_levels_hardly_overlap(dim, overlaps):
    ratio = technique_2_ratio(dim)
    assert technique_2(ratio, dim) == pytest.approx(0.5, abs=1e-6)
    assert overlap(ratio, dim) == pytest.approx(overlaps, abs=5e-5)
    assert level_ratio(dim) < ratio
    assert overlap(level_ratio(dim), dim) == pytest.approx(0.5, abs=1e-6)


def test_the_advised_ratio_does_not_jump_at_ten_dimensions():
    assert level_ratio(9) == pytest.approx(1.3838, abs=5e-5)
    assert level_ratio(10) == pytest.approx(1.3600, abs=5e-5)


@pytest.mark.parametrize(("dim", "ratio"), [(1, 3.133), (2, 2.098), (3, 1.798), (4, 1.649)])
def test_the_advised_ratio_halves_the_overlap(dim, ratio):
    assert level_ratio(dim) == pytest.approx(ratio, abs=0.0005)
    assert technique_2_ratio(dim) is None

    def smaller(r):  # min of both densities on the sphere of radius r, times its area
        area = 2 * math.pi ** (dim / 2) / math.gamma(dim / 2) * r ** (dim - 1)
        densities = [
            (2 * math.pi * s**2) ** (-dim / 2) * math.exp(-(r**2) / (2 * s**2)) for s in (1, ratio)
        ]
        return area * min(densities)

    crossing = math.sqrt(2 * dim * math.log(ratio) / (1 - ratio**-2))
    integral = quad(smaller, 0, 40, points=[crossing], limit=200)[0]
    assert overlap(ratio, dim) == pytest.approx(integral, abs=1e-6)
    assert integral == pytest.approx(0.5, abs=0.0005)


def test_technique_1_is_the_largest_distance():
    data = torch.randn(3000, 3, generator=stream())
    expected = pdist(data.double().numpy()).max()
    assert technique_1(data) == pytest.approx(expected, rel=1e-5)
    # Far from the origin too.
    shifted = technique_1(data.double() + 1e4)
    assert shifted == pytest.approx(expected, rel=1e-5)
    # Beyond 10 000 points only the first are looked at.
    line = torch.arange(10_010.0)[:, None]
    assert technique_1(line) == 9999


@pytest.mark.parametrize("dim", [1, 2, 12, 150])
def test_from_data_has_the_advised_ratio_and_says_where_there_is_none(dim, caplog):
    data = torch.randn(500, dim, generator=stream(1))
    with caplog.at_level(logging.INFO):
        schedule = FromData(sigma_min=0.01).fit(data)
    assert schedule.sigma_max == technique_1(data)
    assert schedule.sigma_min == 0.01
    ratios = schedule.sigmas[:-1] / schedule.sigmas[1:]
    one_level_less = (schedule.sigma_max / 0.01) ** (1 / (schedule.num_levels - 2))
    assert float(ratios.max()) <= level_ratio(dim) * (1 + 1e-9) < one_level_less
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    kind = {1: "no", 2: "no", 12: "no useful"}.get(dim)
    assert [f"{kind} solution for D = {dim}" in line for line in warned] == [True] * (dim < 148)
    told = {1: "overlap 1/2: 3.133; probability 1/2: none",
            12: "overlap 1/2: 1.323; probability 1/2: 2.580, of overlap 0.025",
            150: "overlap 1/2: 1.081; probability 1/2: 1.209, of overlap 0.1"}  # fmt: skip
    assert told.get(dim, "overlap 1/2: 2.098; probability 1/2: none") in caplog.text


def test_from_data_refuses_a_sigma_min_beyond_the_data():
    with pytest.raises(ConfigError, match="sigma_min"):
        FromData(sigma_min=5.0).fit(torch.rand(10, 2, generator=stream()))
