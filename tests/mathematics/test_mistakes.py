"""Each bug of the zoo is seen by the number that its preset names; its correct twin is not."""

import math

import pytest
import torch

from ncsn_cli.losses import Denoising, Implicit
from ncsn_cli.metrics import fisher_divergence
from ncsn_cli.mistakes import SignFlipped, TraceOverDim
from tests.helpers.commands import only_run, read
from tests.helpers.problems import correlated_2d, stream
from tests.helpers.slow import slow_but

SAMPLE = ["score=exact", "num_samples=1000", "plot=[]", "trajectories=0"]
ANNEALED = "sampler=preset/song_ermon_annealed"


def metrics_of(forked, arguments, folder):
    folder.mkdir()
    result = forked.call("sample", arguments, folder)
    assert result.returncode == 0, result.stderr
    return read(only_run(folder, "sample") / "metrics.json")


@pytest.mark.parametrize(
    ("bug", "correct", "target", "metric", "factor"),
    slow_but(
        [
            ("noise_not_annealed", ANNEALED, "perturbed", "mode_weights", 8),
            ("linear_steps", ANNEALED, "perturbed", "mode_weights", 3),
            ("levels_reversed", ANNEALED, "clean", "moments", 25),
            ("sigma_replaced", "dataset=song_ermon_2d", "perturbed", "moments", 3),
        ],
    ),
)
def test_samples_show_the_bug(bug, correct, target, metric, factor, forked, tmp_path):
    # By how much at least the distance is larger; three times a fair run's largest ratio.
    arguments = [*SAMPLE, f"experiment=bug_{bug}", f"metric=[{metric}]"]
    entries = [
        metrics_of(forked, [*arguments, *more], tmp_path / name)[target][metric]
        for name, more in (("bug", []), ("correct", [correct]))
    ]
    assert entries[0]["value"] > factor * entries[1]["value"]
    assert entries[0]["value"] > entries[0]["floor_quantiles"][1]


@pytest.mark.parametrize(
    ("faulty", "correct", "scale"),
    [
        (
            SignFlipped(levels="all", weight_power=2.0, noise="fresh"),
            Denoising(levels="all", weight_power=2.0, noise="fresh"),
            -1.0,
        ),
        (
            TraceOverDim(levels="all", weight_power=2.0),
            Implicit(levels="all", weight_power=2.0),
            2.0,
        ),
    ],
)
def test_the_best_scale_shows_the_bug(faulty, correct, scale):
    # Along c grad log p_sigma each loss is a parabola in c; what it learns is where it is lowest.
    dataset, sigma = correlated_2d(), torch.tensor([0.5])
    x = dataset.sample(100_000, generator=stream(1))
    for loss, expected in ((faulty, scale), (correct, 1.0)):
        at = [
            float(loss(lambda x, s, c=c: c * dataset.score(x, s), x, sigma, generator=stream(2)))
            for c in (0, 1, 2)
        ]
        curvature = (at[2] - 2 * at[1] + at[0]) / 2
        c = -(at[1] - at[0] - curvature) / (2 * curvature)
        found = fisher_divergence(
            lambda x, s, c=c: c * dataset.score(x, s), dataset, 0.5, 1000, stream(3)
        )
        # c is a ratio of two means over 100 000 points, of relative deviation below 3.
        assert found.best_scale == pytest.approx(expected, rel=5 * 3 / math.sqrt(100_000))
        error = (1 / expected - 1) ** 2
        assert found.divergence / found.information == pytest.approx(error, rel=0.2, abs=0.01)
