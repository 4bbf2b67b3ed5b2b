"""Tables of text within the width of a terminal, without a number lost."""

import pytest

from ncsn_cli.commands.columns import aligned, wrapped

TITLES = ["schedule.sigma_min", "sampler.steps_per_level", "runs"]
METRICS = [f"clean.{name}.ratio" for name in ("wasserstein", "mode_weights", "moments", "mmd")]


def table(num_metrics=4, num_keys=2, label="annealed_langevin"):
    keys = TITLES[:num_keys]
    rows = [[*keys, "runs", *METRICS[:num_metrics]]]
    for i in range(3):
        cells = [f"{i}.{j}234 ± 0.{i}{j} ~" for j in range(num_metrics)]
        rows.append([*[label, f"1{i}"][:num_keys], "3", *cells])
    return rows


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize(
    "label", ["0.05", "a_name_that_somebody_has_chosen_" * 4, "[0.25, 64] " * 9]
)
@pytest.mark.parametrize("num_keys", [0, 1, 2])
def test_no_line_is_wider_and_every_number_is_there(width, label, num_keys):
    rows = table(num_keys=num_keys, label=label.strip())
    text = aligned(rows, num_keys, width)
    assert max(map(len, text.splitlines())) <= width
    if width >= 60:
        for row in rows[1:]:
            assert all(cell in text for cell in row[num_keys + 1 :])
    if num_keys:
        assert text.count("h") >= 3 * label.count("h")
        assert text.count("64") >= 3 * label.count("64")


def test_a_table_that_fits_or_has_no_terminal_keeps_its_titles():
    rows = table()
    whole = aligned(rows, 2, None)
    assert whole.splitlines()[0].split() == rows[0]
    assert aligned(rows, 2, len(whole.splitlines()[1])) == whole


def test_short_titles_are_named_above():
    lines = aligned(table(num_metrics=3), 2, 100).splitlines()
    assert lines[:3] == [
        "sigma_min: schedule.sigma_min",
        "steps_per_level: sampler.steps_per_level",
        "wasserstein, mode_weights, moments: clean.*.ratio",
    ]
    assert lines[3].split() == ["sigma_min", "steps_per_level", "runs", "wasserstein",
                                "mode_weights", "moments"]  # fmt: skip
    assert len(lines) == 3 + 2 + 3  # one block


def test_titles_that_would_be_the_same_stay_whole():
    rows = [["loss.levels", "schedule.levels", "runs", "x" * 60], ["a", "b", "1", "2"]]
    assert "loss.levels  schedule.levels" in aligned(rows, 2, 80)


def test_each_block_begins_with_what_tells_the_rows_apart():
    blocks = aligned(table(), 1, 60).split("\n\n")
    assert len(blocks) > 1
    assert all("0.0" not in block.splitlines()[-1] for block in blocks)
    assert {block.splitlines()[-1].split()[0] for block in blocks} == {"annealed_langevin"}


def test_lines_about_a_table_are_wrapped():
    text = wrapped("samples of ring_2d: " + "key=value " * 30, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("key=value") == 30
    assert wrapped("x " * 100, None) == "x " * 100
