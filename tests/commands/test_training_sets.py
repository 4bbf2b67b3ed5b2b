"""What trainings on several training sets say together."""

import json
import math

import numpy as np
import pytest
import torch
import yaml

import ncsn_cli as ncsn
from ncsn_cli.commands.compare import compare
from tests.helpers.problems import two_modes_1d


def write_training(folder, num, seed, lr=0.01, **metrics):
    (folder / ".hydra").mkdir(parents=True)
    config = {
        "seed": seed,
        "optimizer": {"_target_": "torch.optim.Adam", "lr": lr},
        "dataset": {"_target_": "ncsn_cli.datasets.ring", "num_samples": num, "seed": seed},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "status.json").write_text(json.dumps({"state": "done", "step": 1, "error": None}))
    metrics = {"excess_loss": 0.1, "sigmas": [1.0], **metrics}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def said(folder, capsys):
    compare([str(folder), "--output", str(folder.parent / "out")])
    return " ".join(capsys.readouterr().out.split())


def test_the_exponents_are_those_of_a_least_squares_fit(tmp_path, capsys):
    sizes, rng, taus = (8, 16, 32, 64), np.random.default_rng(0), []
    for num in sizes:
        for seed in range(3):
            taus.append(round(30 * num**1.1 * math.exp(0.2 * rng.standard_normal())))
            write_training(
                tmp_path / "runs" / f"{num}_{seed}", num, seed, tau_gen=70, tau_mem=taus[-1]
            )
    write_training(tmp_path / "runs" / "last", 128, 0, tau_gen=70, tau_mem=None)
    text = said(tmp_path / "runs", capsys)
    # The covariance of the coefficients, by another library.
    x = np.log(np.repeat(sizes, 3))
    (slope, _), covariance = np.polyfit(x, np.log(taus), 1, cov=True)
    error = math.sqrt(covariance[0, 0])
    assert f"memorise, grows as n^a with a = {slope:.2f} ± {error:.2f} for n = 8 to 64" in text
    assert "(12 runs); runs that did not memorise in time: 1" in text
    assert "generalise, grows as n^a with a = 0.00 ± 0.00 for n = 8 to 128" in text
    report = (tmp_path / "out" / "report.html").read_text()
    assert f"a = {slope:.2f} ± {error:.2f}" in report


def test_trainings_of_other_kinds_have_fits_of_their_own(tmp_path, capsys):
    for lr, tau in ((0.1, 10), (0.01, 1000)):
        for num in (8, 16, 32):
            for seed in (0, 1):
                folder = tmp_path / "runs" / f"{lr}_{num}_{seed}"
                write_training(folder, num, seed, lr, tau_gen=tau, tau_mem=tau * num)
    write_training(tmp_path / "runs" / "unmeasured", 8, 5, 0.1)
    text = said(tmp_path / "runs", capsys)
    for lr in ("0.1", "0.01"):
        assert f"optimizer.lr={lr}: tau_gen, the step from which networks generalise" in text
        assert f"optimizer.lr={lr}: tau_mem, the step from which networks memorise" in text
    assert text.count("a = 1.00 ± 0.00") == text.count("a = 0.00 ± 0.00") == 2
    assert "in time" not in text


def test_two_sizes_have_no_exponent(tmp_path, capsys):
    for num in (8, 16):
        for seed in range(2):
            write_training(tmp_path / "runs" / f"{num}_{seed}", num, seed, tau_gen=9, tau_mem=9)
    assert "n^a" not in said(tmp_path / "runs", capsys)


@pytest.mark.slow
def test_scores_of_two_training_sets_are_compared_with_each_other_and_the_truth(tmp_path, capsys):
    quick = [
        "trainer.steps=50", "trainer.batch_size=16", "schedule.num_levels=2", "model.hidden=[8]",
        "schedule.sigma_max=2", "schedule.sigma_min=1", "plot=[]", "dataset.num_samples=30",
    ]  # fmt: skip
    runs = [
        ncsn.train(*quick, f"dataset.seed={seed}", folder=tmp_path / "runs" / str(seed))
        for seed in (0, 1)
    ]
    text = said(tmp_path / "runs", capsys)
    words = text.partition("the scores that they teach are ")[2].split()
    found = [float(words[place].rstrip(",")) for place in (0, 3, 5)]
    law, expected = two_modes_1d(), np.zeros(3)
    for sigma in (2.0, 1.0):
        x = torch.linspace(-15, 15, 3001).double()[:, None]
        p = law.log_prob(x, sigma).exp() * 0.01
        one, two = (run.score(x, sigma) for run in runs)
        true = law.score(x, sigma)
        for i, difference in enumerate((one - two, one - true, two - true)):
            expected[i] += sigma**2 * float(p @ difference.square()[:, 0]) / 2
    # 2 x 1000 draws of squares that scatter by less than 4 times their mean
    assert found == pytest.approx(expected.tolist(), rel=5 * 4 / math.sqrt(2000))
