"""Each fault planted in a sampler is named by its number; the sampler without it is not."""

import pytest
import torch

from benchmarks.referee_faults import FAULTS, order, sigma, temperature, width
from ncsn_cli.samplers import ProbabilityFlow
from tests.helpers.slow import slow_but

EXPECTED = {
    # Levels end at .82, .64, .5: from .5 the widths tell the next ones by more than twice the
    # flow's own error at 19 steps (1.08 of the width of N(0, 1.25), .04 of sigma).
    "a last step that leads nowhere": (0.5, 0.643, 0.06),
    # Half the temperature; Langevin steps of eta = .08 widen by 1/(1 - .016/2).
    "eps where 2 tau is meant": (1.0, 0.5, 0.05),
    # As wide as p_20: 17.9 times as wide as p_.5, less what lies nearer to the other mode's centre
    # (at 20, which is more than the modes' distance, each mode is cut in half: 1 - 2/pi is left
    # of the variance along the line between them, so at least 13.0).
    "levels reversed": (1.0, 15.4, 2.6),
    # Order p between 32 and 64 steps: the next terms of the error are of the order h.
    "levels shifted by one": (3.0, 1.0, 0.3),
    "a solver of order 2 that has order 1": (2.0, 1.0, 0.2),
    "another last level": (0.5, 1.0, 0.06),
}


@pytest.mark.parametrize("fault", slow_but([*FAULTS], 0, 4))
def test_the_number_names_the_fault(fault):
    number, right, faulty = FAULTS[fault]
    without, with_fault, tolerance = EXPECTED[fault]
    with torch.no_grad():
        assert number(right) == pytest.approx(without, abs=min(tolerance, without / 4))
        assert number(faulty) == pytest.approx(with_fault, abs=tolerance)


def test_each_number_is_of_use():
    assert {number for number, *_ in FAULTS.values()} == {order, sigma, temperature, width}
    assert order(ProbabilityFlow(solver="euler")) == pytest.approx(1.0, abs=0.1)
