"""Each bug of the zoo is seen by the number that its preset names; its correct twin is not."""

import pytest

from .forked import only_run, read

SAMPLE = ["score=exact", "num_samples=1000", "plot=[]", "trajectories=0"]
TRAIN = ["trainer.steps=300", "trainer.eval_every=1000", "schedule.num_levels=3", "plot=[]"]


def metrics_of(forked, command, arguments, folder):
    folder.mkdir()
    result = forked.call(command, arguments, folder)
    assert result.returncode == 0, result.stderr
    return read(only_run(folder, command) / "metrics.json")


@pytest.mark.parametrize(
    ("bug", "correct", "target", "metric", "factor"),
    [
        ("noise_not_annealed", "sampler=song_ermon_annealed", "perturbed", "mode_weights", 8),
        ("linear_steps", "sampler=song_ermon_annealed", "perturbed", "mode_weights", 3),
        ("levels_reversed", "sampler=song_ermon_annealed", "clean", "moments", 25),
        ("sigma_replaced", "dataset=song_ermon_2d", "perturbed", "moments", 3),
    ],
)
def test_samples_show_the_bug(bug, correct, target, metric, factor, forked, tmp_path):
    # By how much at least the distance is larger; three times a fair run's largest ratio.
    arguments = [*SAMPLE, f"experiment=bug_{bug}", f"metric=[{metric}]"]
    entries = [
        metrics_of(forked, "sample", [*arguments, *more], tmp_path / name)[target][metric]
        for name, more in (("bug", []), ("correct", [correct]))
    ]
    assert entries[0]["value"] > factor * entries[1]["value"]
    assert entries[0]["value"] > entries[0]["floor_quantiles"][1]


@pytest.mark.parametrize(
    ("bug", "correct", "scale", "error"),
    [
        ("sign_flipped", "loss=denoising", -1.0, 4.0),
        ("trace_over_dim", "loss=implicit", 2.0, 0.25),
    ],
)
def test_the_best_scale_shows_the_bug(bug, correct, scale, error, forked, tmp_path):
    # A network trained for 300 steps errs by 30 % at most.
    arguments = [*TRAIN, f"experiment=bug_{bug}"]
    faulty = metrics_of(forked, "train", arguments, tmp_path / "bug")
    fair = metrics_of(forked, "train", [*arguments, correct], tmp_path / "correct")
    assert faulty["best_scale_per_level"] == pytest.approx([scale] * 3, rel=0.3)
    assert fair["best_scale_per_level"] == pytest.approx([1.0] * 3, rel=0.3)
    assert faulty["score_error"] == pytest.approx(error, rel=0.5)
    assert faulty["score_error"] > 2 * fair["score_error"]
    # The loss itself may look fine: its floor is what it should be compared with.
    assert faulty["excess_loss"] > 10 * fair["excess_loss"]
