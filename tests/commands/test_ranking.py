"""Which rows are marked as better: against planted noise and planted differences."""

from pathlib import Path

import numpy as np
import pytest

from ncsn_cli.commands.found_runs import Run
from ncsn_cli.commands.ranking import incomparable, marks

RATIO = "clean.w.ratio"
TOP = 1.6  # of the 99 % band of exact draws, in units of their mean


def run(value, metric=RATIO, seed=0, *, error=None, **settings):
    numbers = {} if value is None else {metric: value}
    if metric.startswith("clean."):
        numbers |= {"num_samples": settings.pop("num", 1000), "clean.w.floor": 0.1}
    if error is not None:
        numbers[f"{metric}_standard_error"] = error
    return Run(
        Path("run"), "done", "", "", set(), {}, settings | {"seed": seed}, numbers,
        {"clean.w": 0.1 * TOP},
    )  # fmt: skip


def rows(*values, metric=RATIO, **keywords):
    """A row for each value or, with a list of values, for their seeds."""
    return [
        [run(v, metric, seed, **keywords) for seed, v in enumerate(np.atleast_1d(value).tolist())]
        for value in values
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.5, 1.55), "~~"),  # both in the band, whatever their ratio
        ((0.01, 1.0, 9.0), "~~ "),  # nearer than exact draws is no better than they are
        ((0.2, 2.4), "~~"),
        (([1e100, 2e100], [3e99, 1.0], 1.0), "~~~"),  # no overflow
        ((1.0, 2.8), "* "),
        (([1.0] * 8, [1.5, 1.51] * 4), "~~"),  # as good as exact draws, both
        ((9.0, 1.0, 20.0), " * "),
        ((8.0, 8.3), "~~"),  # as far apart as chance moves one run
        ((8.0, 8.0), "  "),  # the same: nothing to say
        ((None, 1.0), "  "),  # nothing to compare with
        ((None, 1.0, 9.0), " * "),
        (([1.0, 1.1, 0.9], [3.0, 3.1, 2.9]), "* "),
        (([1.0, 3.0, 2.0], [2.5, 4.6, 3.4]), "~~"),
    ],
)
def test_a_star_needs_more_than_the_noise(values, expected):
    assert [mark or " " for mark in marks(RATIO, rows(*values))] == [*expected]


def test_values_are_held_against_the_floor_as_ratios_are():
    for metric, unit in ((RATIO, 1.0), ("clean.w.value", 0.1)):
        found = marks(metric, rows(1.5 * unit, 0.4 * unit, 9 * unit, metric=metric))
        assert found == ["~", "~", ""]


def test_work_and_unknown_noise_have_no_mark():
    for metric in ("score_evaluations", "seconds", "clean.w.floor", "num_samples"):
        assert marks(metric, rows(1.0, 100.0, metric=metric)) == ["", ""]
    single = rows(0.1, 0.2, metric="excess_loss", error=1e-6)
    assert marks("excess_loss", single) == ["", ""]  # other seeds may differ by more
    assert marks("excess_loss", rows([0.1, 0.11, 0.09], 0.2, metric="excess_loss")) == ["*", ""]
    assert marks("excess_loss", rows([0.1, 0.2, 0.01], 0.2, metric="excess_loss")) == ["~", "~"]


def test_a_repeated_run_is_no_further_seed():
    far = rows(3.0, 4.6)
    assert marks(RATIO, far) == ["~", "~"]
    assert marks(RATIO, [[*row] * 50 for row in far]) == ["~", "~"]


@pytest.mark.parametrize("num", [2, 3, 10])
def test_rows_of_one_law_seldom_get_a_star_and_of_two_laws_mostly(num):
    """Of two rows of one Gaussian law, at most about 1 in 100 pairs is told apart, at 99 %."""
    random = np.random.default_rng(num)

    def share(shift, repeats=500):
        found = 0
        for _ in range(repeats):
            first, second = random.normal(10, 1, (2, num))
            pair = rows(first, second + shift, metric="excess_loss")
            found += "*" in marks("excess_loss", pair)
        return found / repeats

    assert share(0) < 0.01 + 3 * np.sqrt(0.01 * 0.99 / 500)
    if num > 2:  # t at 4 degrees of freedom is 4.6; 12 standard errors are beyond
        assert share(12 * np.sqrt(2 / num), 100) > 0.95


def test_what_a_metric_measures_must_not_change():
    few, many = run(1.0, num=1000), run(1.0, num=10_000)
    assert incomparable(RATIO, [few, many]) == ["num_samples"]
    assert incomparable(RATIO, [few, few]) == []
    first, second = (run(1.0, "excess_loss", **{"loss.weight_power": p}) for p in (2.0, 1.0))
    assert incomparable("excess_loss", [first, second]) == ["loss.weight_power"]
    assert incomparable("score_error", [first, second]) == []
