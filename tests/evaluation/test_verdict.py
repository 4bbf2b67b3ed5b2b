"""The words for numbers, and the lines that a run ends with."""

import re

import pytest

from ncsn_cli.evaluation.verdict import (
    GOOD,
    VISIBLE,
    WRONG,
    of_network,
    of_samples,
    verdict_lines,
    word_for,
)


def entry(value, upper=1.0, floor=0.5, **details):
    found = {"value": value, "floor": floor, "floor_quantiles": [0.001, upper]}
    found["ratio"] = value / floor if floor else None
    return {**found, "verdict": word_for(found), **details}


def report(**entries):
    return {"perturbed": entries, "clean": entries, "score_evaluations": 2000}


@pytest.mark.parametrize(
    ("value", "upper", "word"),
    [
        (1, 1, GOOD), (0.01, 1, GOOD), (1.01, 1, VISIBLE), (2, 1, VISIBLE), (2.01, 1, WRONG),
        (0, 0, None), (1e-9, 0, WRONG),  # exact draws that cannot err
    ],
)  # fmt: skip
def test_the_word_follows_the_band_of_exact_draws(value, upper, word):
    assert word_for(entry(value, upper, floor=upper / 2)) == word


def test_two_modes_and_a_width_as_a_student_reads_them():
    shares = {"weights": [0.51, 0.49], "expected": [0.8, 0.2]}
    weights = entry(0.29, 0.03, 0.009, **shares, interval=[[0.77, 0.83], [0.17, 0.23]])
    width = entry(0.01, 0.02, width=1.01)
    text = of_samples(report(mode_weights=weights, width=width)).as_text(120)
    first, second = text.splitlines()
    assert first.split("  ")[0] == "mode weights"
    shown = ["51.0 % / 49.0 %", "true 80.0 % / 20.0 %", "(exact draws: 77.0 to 83.0 %)"]
    assert [each in first for each in shown] == [True] * 3
    assert first.endswith("wrong: 32 times the noise")
    assert "1.01 of the truth" in second and "(exact draws: 0.98 to 1.02)" in second
    assert second.endswith(GOOD)


def test_of_many_modes_the_worst_is_shown():
    shares = {"weights": [0.24, 0.26, 0.2, 0.3], "expected": [0.25] * 4}
    one = entry(0.06, **shares, interval=[[0.23, 0.27]] * 4)
    assert "20.0 % in mode 3 of 4" in of_samples(report(mode_weights=one)).as_text(120)


def test_a_narrow_band_has_the_digits_that_it_needs():
    shares = {"weights": [0.9501, 0.0499], "expected": [0.95, 0.05]}
    weights = entry(1e-4, 2e-4, **shares, interval=[[0.9498, 0.9502], [0.0498, 0.0502]])
    rows = of_samples(report(mode_weights=weights, width=entry(3e-4, 4e-4, width=1.0003))).rows
    assert rows[0][1:4] == [
        "95.01 % / 4.99 %", "true 95.00 % / 5.00 %", "(exact draws: 94.98 to 95.02 %)"
    ]  # fmt: skip
    assert rows[1][1:4] == ["1.0003 of the truth", "", "(exact draws: 0.9996 to 1.0004)"]


def test_errors_come_first_and_no_more_than_six_lines():
    entries = {f"metric_{i}": entry(0.5) for i in range(7)} | {"last_one": entry(9.0)}
    numbers = report(**entries) | {"causes": ["the start", "sigma_min = 1"]}
    numbers["probability_flow"] = {
        "score_evaluations": 19,
        "metrics": {"a": entry(0.5), "b_c": entry(1.5), "d": entry(3), "e": None},
    }
    lines = of_samples(numbers).as_text(120).splitlines()
    assert len(lines) == 6
    assert lines[2].startswith("last one")
    assert lines[3:] == [
        f"others: {GOOD}",
        "cause: the start; sigma_min = 1",
        f"probability flow instead, 19 evaluations: visible in b c; wrong in d; otherwise {GOOD}",
    ]


@pytest.mark.parametrize(("num", "off"), [(5, "1.2"), (99, "0.3"), (100, None)])
def test_few_samples_get_no_clean_bill_of_health(num, off):
    # The mean of n draws of N(0, 1) is within 2.58/sqrt(n) of 0, with probability .99.
    text = of_samples(report(moments=entry(0.5)) | {"num_samples": num}).as_text(200)
    assert (f"{num} points: too few to tell" in text) == (off is not None)
    assert off is None or f"whose mean is {off} standard deviation" in text


def test_the_data_are_named_where_they_give_another_word():
    numbers = {"perturbed": {"moments": entry(0.5)}, "clean": {"moments": entry(5.0)}}
    assert of_samples(numbers).as_text(120).endswith(f"{GOOD} (against the data itself: wrong)")
    denoised = {"denoised": {"moments": entry(5.0)}, "clean": {"moments": entry(5.0)}}
    assert of_samples(denoised).as_text(120).endswith("wrong: 10 times the noise")


def test_sigma_min_is_not_blamed_for_chance():
    for clean, is_worse in ((2.1, False), (2.6, True)):
        numbers = {"perturbed": {"moments": entry(1.9)}, "clean": {"moments": entry(clean)}}
        (line,) = verdict_lines(numbers)
        assert (line.word, line.clean["verdict"]) == (VISIBLE, WRONG)
        assert line.is_worse_against_data == is_worse


def test_lines_fit_eighty_columns():
    shares = {"weights": [0.931, 0.069], "expected": [0.95, 0.05]}
    weights = entry(0.0195, 0.006, 0.0017, **shares, interval=[[0.944, 0.956], [0.044, 0.056]])
    verdict = of_samples(report(mode_weights=weights, width=entry(0.5, width=1.5)))
    assert max(map(len, verdict.as_text(80).splitlines())) <= 80


def test_no_line_is_longer_than_the_terminal():
    # A verdict with a second one against the data, and a long sentence, continue on a new line.
    numbers = report(width=entry(0.5, width=1.5)) | {"causes": ["too few steps"] * 10}
    numbers["clean"] = {"width": entry(5.0, width=6.0)}
    whole = re.sub(r" \(exact draws: .*?\)", "", of_samples(numbers).as_text(1000))
    assert "(against the data itself: wrong)" in whole
    for columns in (40, 60, 80):
        lines = of_samples(numbers).as_text(columns).splitlines()
        assert max(map(len, lines)) <= columns
        assert " ".join(lines).split() == whole.split()


def test_own_metrics_may_call_their_details_as_they_like():
    one = entry(0.5, interval=[1, 2], width=7)
    assert of_samples(report(mine=one)).rows == [
        ["mine", "0.5", "true 0", "(exact draws: up to 1)", GOOD]
    ]


def test_a_flow_without_a_verdict_and_an_older_run_say_less():
    flow = {"score_evaluations": 19, "metrics": {"moments": None, "mode_weights": entry(0, 0)}}
    numbers = report(moments=entry(0.5)) | {"probability_flow": flow}
    del numbers["perturbed"]["moments"]["verdict"]
    assert of_samples(numbers).as_text(120).endswith(GOOD)


def test_nothing_known_is_nothing_said():
    unknown = {"perturbed": {"moments": None}, "clean": {"moments": None}}
    assert of_samples(unknown).as_text(80) == ""
    assert of_samples({"denoised": None, "clean": {}}).as_text(80) == ""


def test_a_network_in_words():
    numbers = {
        "loss": 0.52, "loss_floor": 0.5, "excess_loss": 0.02, "excess_loss_standard_error": 1e-4,
        "score_error": 0.04, "score_error_per_level": [0.01, 0.09], "sigmas": [10.0, 0.1],
        "kl_bound": {"visible": None, "total": 0.18},
    }  # fmt: skip
    falling, flat = [9.0, 4, 2, 1, 0.5, 0.5], [9.0, 1, 1, 1.1, 0.9, 1]
    assert of_network(numbers, falling, "trainer.steps=200").sentences[-1] == (
        "change first: trainer.steps=200 (over the last half of the steps, the excess loss fell"
        " by 67%)"
    )
    assert (
        of_network(numbers, flat, "trainer.steps=200")
        .sentences[-1]
        .endswith("more steps change little")
    )
    rising, data = [9.0, 1, 0.5, 0.5, 2, 3], "dataset.num_samples=120"
    assert of_network(numbers, rising, "trainer.steps=200", data).sentences[-1] == (
        "change first: dataset.num_samples=120 (the excess loss was 0.5 and rose to 2.5: the"
        " network memorises its training set)"
    )
    assert "num_samples" not in of_network(numbers, flat, "trainer.steps=200", data).sentences[-1]
    assert of_network(numbers, [1.0, 0.1], "").as_text(120).splitlines() == [
        "score: 20 % off the true one (root mean square), at most 30 %, at sigma = 0.1",
        "loss: 2.00e-02 above its floor, 0.5000 (± 0.0001)",
        "samples of the exact reverse diffusion: this error costs at most 0.18 nats (KL)",
    ]
    for visible, words in ((0.18, "0.18 nats (KL)"), (0.07, "0.07 nats (KL), 0.18 if all of it")):
        split = numbers | {"kl_bound": {"visible": visible, "total": 0.18}}
        line = of_network(split, [1.0, 0.1], "").sentences[-1]
        assert line.split("at most ")[1].startswith(words)


def test_copies_stand_beside_the_share_that_exact_draws_have():
    found = entry(0.4, upper=0.13, floor=0.11, copies=400) | {"floor_quantiles": [0.09, 0.13]}
    (line,) = of_samples(report(memorisation=found)).as_text(120).splitlines()
    assert "40.0 % copies" in line and "true 11.0 %" in line
    assert "(exact draws: 9.0 to 13.0 %)" in line
    assert line.endswith("wrong: 3.6 times as many copies as exact draws")
    few = found | {"value": 0.02}
    (line,) = of_samples(report(memorisation=few)).as_text(120).splitlines()
    assert line.endswith("fewer copies than exact draws: off the data")
