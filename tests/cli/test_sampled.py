"""A user's class with nothing but draws, in every command."""

import csv

import pytest

from tests.helpers.commands import (
    QUICK,
    assert_refused,
    assert_same_run,
    digest_of_samples,
    only_run,
    read,
)

MINE = """
import torch
from ncsn_cli.core.dataset import Dataset

class Plain:
    def __init__(self, dim):
        self.dim = dim

    def sample(self, num, generator):
        side = torch.rand(num, 1, generator=generator) < 0.3
        x = torch.randn(num, self.dim, generator=generator)
        return 0.5 * x + torch.where(side, -2.0, 2.0)

class Derived(Dataset):
    def sample(self, num, *, generator):
        return torch.rand(num, 2, generator=generator)

class Thief:
    def __call__(self, num, truth, sigma_max, generator):
        return truth.score(torch.zeros(num, truth.dim), sigma_max)
"""
SHORT = [*(word for word in QUICK if not word.startswith(("dataset", "plot"))), "device=cpu"]
UNKNOWN = [
    "loss_floor", "excess_loss", "score_error", "visible_error", "invisible_error", "kl_bound",
    "score_error_per_level", "visible_error_per_level", "invisible_error_per_level",
    "fisher_divergence_per_level", "best_scale_per_level",
]  # fmt: skip
METRICS = "metric=[wasserstein,sliced_wasserstein,moments,mode_weights,score_error,kl]"


def plain(dim):
    return ["~dataset", "+dataset._target_=mine.Plain", f"+dataset.dim={dim}"]


@pytest.fixture
def here(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def call(forked, command, *arguments, folder):
    result = forked.call(command, arguments, folder)
    assert result.returncode == 0, result.stderr
    assert "could not be drawn" not in result.stdout, result.stdout
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "pictures", "samples", "films"),
    [
        (1, {"density", "loss", "score"}, {"samples", "chains", "distances", "score"}, {"score"}),
        (
            2,
            {"density", "loss", "score", "score_norm"},
            {"samples", "chains", "distances", "score", "score_norm"},
            {"score"},
        ),
        (3, {"density", "loss", "score"}, {"samples", "chains", "distances", "score"}, set()),
    ],
)
def test_a_plain_class_is_trained_sampled_and_measured(
    forked, here, dim, pictures, samples, films
):
    def drawn(out, kind):
        return {path.stem for path in out.glob(f"{kind}/*")}

    # Train: what needs the truth is null, and one line says why.
    films_of_few = ["animation=[score,recovered_density]", "trainer.snapshots=2"]
    result = call(forked, "train", *plain(dim), *SHORT, *films_of_few, folder=here)
    out = only_run(here, "train")
    metrics = read(out / "metrics.json")
    assert [name for name, value in metrics.items() if value is None] == UNKNOWN
    assert metrics["loss"] > 0
    assert result.stdout.count("null, because only draws of the dataset are known") == 1
    assert "excess" not in result.stdout.replace("excess_loss", "")
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    assert {row["excess_loss"] for row in rows} == {""}
    assert (drawn(out, "plots"), drawn(out, "animations")) == (pictures, films)
    missing = {1: "plot.recovered_density needs the true score", 2: "plot.score_error needs the"}
    assert missing.get(dim, "plot.score_norm needs D = 2") in result.stdout
    assert (out / "report.html").is_file()
    # Sample from it.
    result = call(
        forked, "sample", f"checkpoint={out}", "plugins=[mine]", METRICS, "num_samples=60",
        "trajectory_metrics=true", "animation=[chains]", f"log_density={dim < 3}",
        folder=here,
    )  # fmt: skip
    out = only_run(here, "sample")
    metrics = read(out / "metrics.json")
    for against in ("clean", "perturbed"):
        entries = metrics[against]
        assert entries.pop("mode_weights") is None
        assert all(entry["value"] > 0 and entry["floor"] > 0 for entry in entries.values())
    assert metrics["score_error"] is metrics["kl"] is metrics["mode_commitment"] is None
    assert metrics["trajectory"]["mode_weights"] is None
    assert len(metrics["trajectory"]["wasserstein"]["ratio"]) == 4
    assert metrics.get("log_density") is None
    assert result.stdout.count("null, because only draws of the dataset are known") == 1
    assert (drawn(out, "plots"), drawn(out, "animations")) == (samples, {"chains"})


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(forked, here):
    words = [*plain(2), *SHORT, "plot=[]"]
    call(forked, "train", *words, "hydra.run.dir=whole", folder=here)
    call(forked, "train", *words, "trainer.steps=15", "hydra.run.dir=half", folder=here)
    call(forked, "train", *words, "trainer.resume=half", "hydra.run.dir=resumed", folder=here)
    assert_same_run(here / "whole", here / "resumed")


@pytest.mark.slow
def test_a_subclass_has_a_training_set(forked, here):
    words = ["~dataset", "+dataset._target_=mine.Derived", "+dataset.num_samples=50"]
    call(forked, "train", *words, *SHORT, "plot=[]", "hydra.run.dir=trained", folder=here)
    quick = ["num_samples=20", "plot=[]", "metric=[moments]", "plugins=[mine]"]
    found = []
    for number in (1, 2):  # of the same seed
        more = ["score=empirical", "checkpoint=trained", f"hydra.run.dir=sampled{number}"]
        call(forked, "sample", *quick, *more, folder=here)
        found.append(digest_of_samples(here / f"sampled{number}"))
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_denoised_sample_has_no_target(forked, here):
    call(forked, "train", *plain(1), *SHORT, "plot=[]", "hydra.run.dir=t", folder=here)
    for number, sampler in enumerate(("annealed_langevin", "probability_flow")):
        out = here / f"s{number}"
        call(
            forked, "sample", "checkpoint=t", "plugins=[mine]", "metric=[moments]",
            "num_samples=20", f"sampler={sampler}", "++sampler.denoise=true",
            "trajectory_metrics=true", f"hydra.run.dir={out}", folder=here,
        )  # fmt: skip
        metrics = read(out / "metrics.json")
        assert metrics["denoised"] is None
        assert metrics["clean"]["moments"]["value"] > 0
        assert len(metrics["trajectory"]["sigmas"]) == 3  # all levels but the denoised one


@pytest.mark.slow
def test_a_sweep_is_compared_by_its_loss(forked, here):
    words = ["-m", "seed=0,1", "hydra.sweep.dir=sweep", *plain(1), *SHORT, "plot=[]"]
    result = call(forked, "train", *words, folder=here)
    assert "sweep: 2 of 2 jobs done\n" in result.stdout
    result = call(forked, "compare", "sweep", folder=here)
    assert "loss" in result.stdout.splitlines()[0]
    search = ["-m", *plain(1), *SHORT, "hparams_search=optuna", "hydra.sweeper.n_trials=1"]
    result = forked.call("train", search, here)
    assert result.returncode != 0
    why = "objective: excess_loss is not known for this dataset; choose objective=loss"
    assert why in result.stdout + result.stderr
    call(forked, "train", *search, "objective=loss", "plot=[]", folder=here)


@pytest.mark.parametrize(
    ("command", "words", "named"),
    [
        ("train", ["loss=explicit", *plain(1), *SHORT], "loss: this loss needs the true score"),
        ("train", ["~dataset", "+dataset._target_=mine.Derived", "+dataset.num_samples=0"],
         "dataset.num_samples: it should be greater than 0"),
        ("sample", ["score=exact", *plain(1), "schedule=geometric", "sampler=langevin"],
         "score: exact needs a dataset whose score is known"),
    ],
)  # fmt: skip
def test_what_needs_the_truth_is_refused_beforehand(forked, here, command, words, named):
    assert_refused(forked.call(command, words, here), command, 2, named, here)


@pytest.mark.slow
def test_what_needs_the_truth_is_refused_with_a_checkpoint(forked, here):
    call(forked, "train", *plain(1), *SHORT, "plot=[]", "hydra.run.dir=t", folder=here)
    base = ["checkpoint=t", "plugins=[mine]", "metric=[]", "plot=[]"]
    thief = [*base, "~init", "+init._target_=mine.Thief"]
    mala = [*base, "sampler=annealed_mala"]
    for words, named in ((thief, "init: this one needs"), (mala, "sampler: this sampler needs")):
        assert_refused(forked.call("sample", words, here), "sample", 2, named, here)
