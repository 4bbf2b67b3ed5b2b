import pytest
import torch
from pydantic import ValidationError

from ncsn_cli.schedules import Geometric, Karras, Linear, Single


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
