"""What the numbers of a run mean: three words, and a few lines for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import fill
from typing import Any

from ncsn_cli.core.errors import counted
from ncsn_cli.evaluation.parts import in_words

GOOD, VISIBLE, WRONG = "as good as exact draws", "visible", "wrong"
"""The three words; see ``word_for``."""

_WORDS = (GOOD, VISIBLE, WRONG)

_MOST_LINES = 4  # on metrics; with causes, the flow, the report and the next command: 8

_MOST_MODES = 3  # whose shares fit on a line

_FEW = 100  # samples, below which an error of the mean by a quarter of the width does not show

_ENOUGH = 1000  # samples, among which it does

_WRAPPED: dict[str, Any] = {"subsequent_indent": "  ", "break_long_words": False}

_FEWEST_EVALUATIONS = 6  # of the excess loss, to see whether it still falls

_STILL_FALLING = 0.8  # of the excess loss at half of the steps; evaluations scatter by .1

_RISEN = 2.0  # times the lowest excess loss

Entry = Mapping[str, Any]
"""What ``evaluate_samples`` returns for one metric."""


def word_for(entry: Entry) -> str | None:
    """Return the verdict on a distance from the truth.

    With u the upper end of the band that holds 99 % of exact draws, it is *as good as exact
    draws* up to u, *visible* up to 2 u, and *wrong* above. It is None where neither the samples
    nor exact draws can have a distance, as with the mode weights of a law with one mode.
    """
    value, upper = entry["value"], entry["floor_quantiles"][1]
    if value == upper == 0:
        return None
    return GOOD if value <= upper else VISIBLE if value <= 2 * upper else WRONG


def excess(value: float, upper: float) -> float:
    """Return a distance over ``upper``, the upper end of the band of exact draws.

    Above 1 it shows. It is 0 where neither the samples nor exact draws can have a distance.
    """
    return value / upper if upper > 0 else math.inf if value > 0 else 0.0


@dataclass(frozen=True)
class Verdict:
    """What a run's numbers mean.

    Args:
        rows: Rows of cells. The last but one, which is the longest, is left out where the rows do
            not fit the terminal.
        sentences: Further lines.
    """

    rows: list[list[str]]
    sentences: list[str]

    def as_text(self, columns: int) -> str:
        """Return the lines, with aligned cells, for a terminal of this many columns."""
        without_bands = [[*row[:-2], row[-1]] for row in self.rows]
        for rows, gap in ((self.rows, "  "), (without_bands, "  "), (without_bands, " ")):
            lines = _aligned(rows, gap)
            if max(map(len, lines), default=0) <= columns:
                break
        return "\n".join(fill(line, columns, **_WRAPPED) for line in [*lines, *self.sentences])


@dataclass(frozen=True)
class Line:
    """A metric of samples against the law that they were asked for.

    Args:
        name: The metric's name in the configuration.
        entry: Its entry against that law: p_sigma, or the law of denoised draws.
        clean: Its entry against p itself.
    """

    name: str
    entry: Entry
    clean: Entry | None

    @property
    def word(self) -> str:
        """The verdict."""
        return str(word_for(self.entry))

    @property
    def excess(self) -> float:
        """See ``excess``."""
        return excess(self.entry["value"], self.entry["floor_quantiles"][1])

    @property
    def is_worse_against_data(self) -> bool:
        """Whether the verdict against p itself is worse, and not by chance alone."""
        word = None if self.clean is None else word_for(self.clean)
        if self.clean is None or word is None:
            return False
        excess = self.clean["value"] - self.entry["value"]
        is_more = excess > self.clean["floor_quantiles"][1] / 2
        return is_more and _WORDS.index(word) > _WORDS.index(self.word)

    @property
    def cells(self) -> list[str]:
        """Name, what was found, the true value, the band of exact draws, and the verdict."""
        entry, upper = self.entry, self.entry["floor_quantiles"][1]
        true = ""
        if entry.keys() >= {"weights", "expected", "interval"}:
            found, true, band = _of_modes(entry)
        elif self.name == "width" and "width" in entry:
            digits = _digits(2 * upper, 2)
            found = f"{entry['width']:.{digits}f} of the truth"
            if self.word != GOOD and entry["width"] > 1 and entry.get("sigma") is not None:
                found += f", as at sigma = {entry['sigma']:.2g}"  # such as a level before the last
            band = f"{1 - upper:.{digits}f} to {1 + upper:.{digits}f}"
        elif "copies" in entry:  # a share, which exact draws have, too
            shares = (entry["value"], entry["floor"], *entry["floor_quantiles"])
            copies, expected, low, high = (f"{100 * share:.1f}" for share in shares)
            found, true, band = f"{copies} % copies", f"true {expected} %", f"{low} to {high} %"
        else:
            found, true, band = f"{entry['value']:.3g}", "true 0", f"up to {upper:.3g}"
        verdict, is_share = self.word, "copies" in entry
        if is_share and verdict != GOOD:
            verdict += f": {_rounded(entry['ratio'])} times as many copies as exact draws"
        elif is_share and entry["value"] < entry["floor_quantiles"][0]:
            verdict = "fewer copies than exact draws: off the data"
        elif verdict == WRONG and entry["ratio"] is not None:
            verdict += f": {_rounded(entry['ratio'])} times the noise"
        elif entry["value"] < entry["floor_quantiles"][0]:
            verdict += ", even nearer: not independent"
        word = None if self.clean is None else word_for(self.clean)
        if word not in (None, self.word):
            verdict += f" (against the data itself: {word})"
        return [self.name.replace("_", " "), found, true, f"(exact draws: {band})", verdict]


def verdict_lines(report: Mapping[str, Any]) -> list[Line]:
    """Return a line for each metric of the samples in a ``metrics.json`` that has a verdict."""
    asked = report.get("denoised") if "denoised" in report else report.get("perturbed")
    return [
        Line(name, entry, (report.get("clean") or {}).get(name))
        for name, entry in (asked or {}).items()
        if entry is not None and word_for(entry) is not None
    ]


def of_samples(report: Mapping[str, Any]) -> Verdict:
    """Return the verdict on the samples of a ``metrics.json``, of at most six lines."""
    lines, sentences = verdict_lines(report), _on_few(report.get("num_samples", _FEW))
    shown = lines
    if len(lines) > _MOST_LINES:
        # Errors come first, and one sentence is on the rest.
        by_error = sorted(lines, key=lambda line: -max(1.0, line.excess))
        first, rest = by_error[: _MOST_LINES - 1], by_error[_MOST_LINES - 1 :]
        shown = [line for line in lines if line in first]
        sentences.append(f"others: {_summary({each.name: each.entry for each in rest})}")
    if "budget" in report:
        sentences.append(in_words(report["budget"], _worst_against_data(report)))
    elif causes := report.get("causes"):
        sentences.append(f"cause: {'; '.join(causes)}")
    flow = report.get("probability_flow") or {"metrics": {}}
    if summary := _summary(flow["metrics"]):
        sentences.append(
            f"probability flow instead, {flow['score_evaluations']} evaluations: {summary}"
        )
    return Verdict([line.cells for line in shown], sentences)


def _on_few(num: int) -> list[str]:
    """Return a line if ``num`` samples are too few to tell; else none.

    99 % of the means of n exact draws are within 2.58/sqrt(n) standard deviations, on each axis.
    """
    if num >= _FEW:
        return []
    return [
        f"{counted(num, 'point')}: too few to tell; even samples whose mean is"
        f" {2.58 / math.sqrt(num):.1f} standard deviations off pass as exact draws;"
        f" take {_ENOUGH} or more"
    ]


def _worst_against_data(report: Mapping[str, Any]) -> str | None:
    """Return the metric of the budget in which the data are missed most; None without metrics.

    A metric in which a part is beyond its noise comes before those without such a part.
    """
    clean, found = report["clean"], report["budget"]["metrics"]

    def missed(name: str) -> tuple[bool, float]:
        return found[name]["first"] is not None, Line(name, clean[name], None).excess

    return max(found, key=missed, default=None)


def of_network(
    metrics: Mapping[str, Any],
    excess_losses: Sequence[float],
    more_work: str,
    more_data: str | None = None,
) -> Verdict:
    """Return what the ``metrics.json`` of a training run says about the network.

    ``excess_losses`` are those of the history, in order. ``more_work`` and ``more_data`` are the
    overrides that make the training longer and the training set larger; the latter is None if the
    data are endless.
    """
    sentences = []
    error, levels = metrics["score_error"], metrics["score_error_per_level"]
    if error is not None:
        worst = max(range(len(levels)), key=lambda i: levels[i])
        sentences.append(
            f"score: {_root(error)} off the true one (root mean square)"
            f", at most {_root(levels[worst])}, at sigma = {metrics['sigmas'][worst]:.3g}"
        )
    if metrics["excess_loss"] is not None:
        above = "" if (floor := metrics["loss_floor"]) is None else f" its floor, {floor:.4f}"
        text = f"loss: {metrics['excess_loss']:.2e} above{above or ' that of the true score'}"
        sentences.append(f"{text} (± {metrics['excess_loss_standard_error']:.1g})")
    elif error is None:
        sentences.append(f"loss: {metrics['loss']:.4f}; its floor is not known")
    if metrics.get("kl_bound") is not None:
        visible, total = metrics["kl_bound"]["visible"], f"{metrics['kl_bound']['total']:.2g}"
        least = total if visible is None else f"{visible:.2g}"
        sentences.append(
            f"samples of the exact reverse diffusion: this error costs at most {least} nats (KL)"
            + (f", {total} if all of it reached them" if least != total else "")
        )
    if len(excess_losses) >= _FEWEST_EVALUATIONS and min(excess_losses) > 0:
        sentences.append(f"change first: {_first_change(excess_losses, more_work, more_data)}")
    return Verdict([], sentences)


def _first_change(excess_losses: Sequence[float], more_work: str, more_data: str | None) -> str:
    """Return what to change first, from how the excess loss fell or rose.

    If it rose far above its lowest value, the network learns the training set instead of p.
    Otherwise the last value is compared with that at half of the steps. Each is the mean of two
    evaluations, because one alone is a little noisy.
    """
    pairs = [(a + b) / 2 for a, b in pairwise(excess_losses)]
    lowest, before, after = min(pairs), pairs[len(excess_losses) // 2 - 1], pairs[-1]
    if more_data is not None and after > _RISEN * lowest:
        return (
            f"{more_data} (the excess loss was {lowest:.2g} and rose to {after:.2g}: the network"
            " memorises its training set)"
        )
    fall = f"over the last half of the steps, the excess loss fell by {1 - after / before:.0%}"
    if after < _STILL_FALLING * before:
        return f"{more_work} ({fall})"
    return "model or loss; more steps change little"


def _aligned(rows: list[list[str]], gap: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(c.ljust(w) for c, w in zip(row, widths, strict=True) if w).rstrip()
        for row in rows
    ]


def _root(square: float) -> str:
    return f"{_rounded(100 * math.sqrt(square))} %"


def _summary(entries: Mapping[str, Entry | None]) -> str:
    """Return the verdicts on several metrics in a few words."""
    words = {name.replace("_", " "): entry["verdict"] for name, entry in entries.items() if entry}
    errors = "; ".join(
        f"{word} in {', '.join(name for name, each in words.items() if each == word)}"
        for word in (VISIBLE, WRONG)
        if word in words.values()
    )
    good = GOOD if GOOD in words.values() else ""
    return f"{errors}; otherwise {good}" if errors and good else errors or good


def _of_modes(entry: Entry) -> tuple[str, str, str]:
    """Return the shares of the modes, the true shares, and the band of one mode's share.

    It is the mode that is farthest from the truth, measured by its band. Of more than three modes
    it is the only one shown.
    """
    found, true, bands = entry["weights"], entry["expected"], entry["interval"]

    def error(k: int) -> float:
        return float(abs(found[k] - true[k]) / (bands[k][1] - bands[k][0] or 1.0))

    k = 0 if len(found) == 2 else max(range(len(found)), key=error)
    low, high = bands[k]
    digits = _digits(100 * (high - low), 1)

    def percent(share: float) -> str:
        return f"{100 * share:.{digits}f}"

    band = f"{percent(low)} to {percent(high)} %"
    if len(found) > _MOST_MODES:
        share = f"{percent(found[k])} % in mode {k + 1} of {len(found)}"
        return share, f"true {percent(true[k])} %", band
    shares, expected = (" / ".join(f"{percent(share)} %" for share in s) for s in (found, true))
    return shares, f"true {expected}", band + (f" in mode {k + 1}" if len(found) > 2 else "")


def _digits(band: float, least: int) -> int:
    """Return how many digits after the point show a ``band`` of values, at least ``least``."""
    return max(least, -math.floor(math.log10(band))) if band > 0 else least


def _rounded(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"
