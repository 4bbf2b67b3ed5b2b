"""Tables and pictures of docs/results/performance.md, from the repeats of ``speed.py``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import contestants
import numpy as np
from matplotlib.axes import Axes

from ncsn_cli.plots.canvas import MODEL, NEUTRAL, SERIES, log_scale, new_figure, own_settings

Record = dict[str, Any]
TEMPLATE = contestants.HERE / "performance.md"
LOOKS = {
    "notebook": (NEUTRAL, "s"),
    "jax": (SERIES[0], "o"),
    "kernel": (SERIES[2], "^"),
    "kernel, tuned": (SERIES[6], "v"),
    "ours": (MODEL, "D"),
}
NAMES = {
    "ours": "ncsn_cli",
    "jax": "JAX",
    "kernel": "C++ kernel",
    "kernel, tuned": "C++ kernel, tuned",
}
TITLES = {
    "P1": "P1: training, 1D", "P2": "P2: training, 2D", "P3": "P3: sampling",
    "P4": "P4: 16 seeds of P1",
}  # fmt: skip


def name_of(label: str) -> str:
    """As the page calls a contestant."""
    if label in NAMES:
        return NAMES[label]
    kind, *variant = label.split(",")
    return ",".join([NAMES.get(kind, kind), *variant])


def grouped(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """Records by a key, in their order."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def seconds(record: Record) -> float:
    """What counts: the steady pace where there is one."""
    return float(record.get("steady", record["seconds"]))


def median(records: Iterable[Record], name: str | None = None) -> float:
    """Of the seconds that count, or of a named number."""
    return float(np.median([seconds(r) if name is None else r[name] for r in records]))


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def spread(records: list[Record], name: str) -> str:
    """Median (least to most)."""
    values = [record[name] for record in records if name in record]
    if len(values) == 1:
        return number(values[0])
    if not values:
        return "-"
    return f"{number(np.median(values))} ({number(min(values))} to {number(max(values))})"


def checked(records: list[Record], key: str) -> str:
    """Median of what shows that a contestant's result is right."""
    values = [record["check"][key] for record in records if key in record.get("check", {})]
    return f"{np.median(values):.3g}" if values else "-"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def contest(records: list[Record]) -> str:
    """One work: every contestant's seconds, and how many times as fast it is as the notebook."""
    groups = grouped(records, lambda record: record["label"])
    base = groups.get("notebook")
    checks = list(dict.fromkeys(key for r in records for key in r.get("check", {})))
    with_steady = any("steady" in record for record in records)
    head = ["contestant", "seconds", *["steady"] * with_steady, "times as fast", "first",
            "compiling", "share", *checks]  # fmt: skip
    rows = []
    for label, group in sorted(groups.items(), key=lambda item: -median(item[1])):
        first = [record["first"] for record in group if "first" in record]
        compiling = [record["compile"] for record in group if "compile" in record]
        ratio = "-" if base is None else f"{median(base) / median(group):.2f}"
        rows.append([
            name_of(label), spread(group, "seconds"),
            *[spread(group, "steady")] * with_steady, ratio,
            f"{max(first):.2f}" if first else "-",
            f"{np.median(compiling):.2f}" if compiling else "-",
            "all" if group[0]["scale"] == 1 else f"1/{group[0]['scale']:g}",
            *[checked(group, key) for key in checks],
        ])  # fmt: skip
    return table(head, rows)


def commands(records: list[Record]) -> str:
    """Seconds of the real commands."""
    groups = grouped(records, lambda record: record["entry"]["command"])
    rows = [
        [f"`{command}`", f"{group[0]['seconds']:.1f}", spread(group[1:], "seconds")]
        for command, group in groups.items()
    ]
    return table(["command", "first run, s", "later runs, s"], rows)


def by_size(records: list[Record]) -> tuple[list[float], list[float]]:
    """Sizes, ascending, and their median seconds."""
    sizes = grouped(records, lambda record: record["entry"]["size"])
    return sorted(sizes), [median(sizes[size]) for size in sorted(sizes)]


def exponent(sizes: list[float], times: list[float]) -> float:
    """Slope of log time over log size, over the upper half of the sizes (at least three)."""
    upper = max(3, (len(sizes) + 1) // 2)
    if len(sizes) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes[-upper:]), np.log(times[-upper:]), 1)[0])


def growth_table(records: list[Record]) -> str:
    """Exponents by axis and contestant."""
    axes = grouped(records, lambda r: (r["entry"]["work"], r["entry"]["axis"]))
    labels = [label for label in LOOKS if any(r["label"] == label for r in records)]
    rows = []
    for (work, axis), group in axes.items():
        by_label = grouped(group, lambda record: record["label"])
        sizes = by_size(group)[0]
        cells = [
            f"{exponent(*by_size(by_label[label])):.2f}" if label in by_label else "-"
            for label in labels
        ]
        rows.append([work, axis, f"{sizes[0]} to {sizes[-1]}", *cells])
    return table(["work", "in", "sizes", *map(name_of, labels)], rows)


def memory(records: list[Record]) -> str:
    """Peaks by axis."""
    axes = grouped(records, lambda r: (r["entry"]["work"], r["entry"]["axis"]))
    rows = []
    for (work, axis), group in axes.items():
        found = {r["entry"]["size"]: r for r in group}
        peaks = {size: r["memory"] + r.get("workers", 0) for size, r in found.items()}
        cells = [f"{size}: {peak:.0f}" for size, peak in sorted(peaks.items())]
        before = np.median([r["memory_before"] for r in found.values()])
        rows.append([work, axis, ", ".join(cells), f"{before:.0f}"])
    return table(["work", "in", "size: peak", "before"], rows)


def quality(records: list[Record]) -> str:
    """Score errors after some seconds."""
    limits = sorted({limit for r in records for limit in r["request"]["seconds"]})
    rows = []
    for record in records:
        points = {
            min(limits, key=lambda limit: abs(math.log(limit / s))): f"{error:.2g} ({steps} steps)"
            for s, steps, error in record["points"]
        }
        loop = name_of(record["entry"]["loop"])
        cells = [points.get(limit, "-") for limit in limits]
        rows.append([f"`{record['entry']['preset']}`", loop, *cells])
    return table(["preset", "loop", *[f"{limit} s" for limit in limits]], rows)


def sampling(records: list[Record]) -> str:
    """Distance over floor and seconds, by sampler and evaluations."""
    samplers = grouped(records, lambda record: record["entry"]["sampler"])
    budgets = sorted({record["entry"]["evaluations"] for record in records})
    rows = []
    for sampler, group in samplers.items():
        by_budget = grouped(group, lambda record: record["entry"]["evaluations"])
        cells = [
            f"{median(by_budget[b], 'ratio'):.2f} in {median(by_budget[b]):.2f} s"
            if b in by_budget
            else "-"
            for b in budgets
        ]
        rows.append([sampler, *cells])
    return table(["sampler", *[f"{budget} evaluations" for budget in budgets]], rows)


@own_settings()
def draw_works(works: dict[str, list[Record]], path: Path) -> None:
    """A panel a work, a row a contestant: median, and least to most."""
    figure, axes = new_figure(2, 2, width=5.6, height=2.7)
    for panel, (work, title) in zip(axes, TITLES.items(), strict=True):
        if not works.get(work):
            panel.axis("off")
            continue
        groups = grouped(works[work], lambda record: record["label"])
        order = sorted(groups.items(), key=lambda item: median(item[1]))
        for row, (label, group) in enumerate(order):
            values = [seconds(record) for record in group]
            middle = float(np.median(values))
            colour = LOOKS.get(label.split(",")[0], (MODEL, ""))[0]
            panel.plot([min(values), max(values)], [row, row], color=colour, linewidth=4)
            panel.plot(middle, row, "o", color=colour, markersize=9)
            panel.annotate(
                f"{number(middle)} s", (max(values), row), (9, 0), textcoords="offset points",
                va="center", fontsize=12,
            )  # fmt: skip
        names = [name_of(label) for label, _ in order]
        panel.set_yticks(range(len(names)), names)
        panel.set(title=title, xlabel="seconds", ylim=(-0.6, len(names) - 0.4))
        panel.grid(axis="y", color="0.9")
        middles = [median(group) for _, group in order]
        low, high = min(middles) / 4, max(middles)
        log_scale(panel, "x", [low, high])
        panel.set_xlim(low, high * (high / low) ** 0.4)
    figure.savefig(path, dpi=110)


@own_settings()
def draw_growth(records: list[Record], path: Path) -> None:
    """P3's seconds against each size."""
    ours = [record for record in records if record["entry"]["work"] == "P3"]
    by_axis = grouped(ours, lambda record: record["entry"]["axis"])
    figure, axes = new_figure(2, 2, width=4.6, height=3.6)
    xlabels = {"steps": "steps a level", "width": "width of the network"}
    for panel, (axis, group) in zip(axes, by_axis.items(), strict=False):
        for label, (colour, marker) in LOOKS.items():
            mine = [record for record in group if record["label"] == label]
            if mine:
                name = name_of(label)
                panel.plot(*by_size(mine), color=colour, marker=marker, label=name)
        sizes, _ = by_size(group)
        log_scale(panel, "x", sizes)
        panel.set_xticks(sizes[::2], [f"{size:g}" for size in sizes[::2]])
        panel.minorticks_off()
        log_scale(panel, "y", [seconds(record) for record in group])
        panel.set(xlabel=xlabels.get(axis, axis), ylabel="seconds")
    if by_axis:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


@own_settings()
def draw_quality(training: list[Record], samples: list[Record], path: Path) -> None:
    """Score error and distance against seconds."""
    figure, axes = new_figure(1, 2, width=5.4, height=4.6)
    for record in training:
        entry = record["entry"]
        times, _, errors = zip(*record["points"], strict=True)
        colour = {"ours, plain": MODEL, "ours, compiled": SERIES[0]}.get(entry["loop"], NEUTRAL)
        dashes = "-" if entry["preset"] == "default" else "--"
        name = f"{name_of(entry['loop'])}, {entry['preset']}"
        axes[0].plot(times, errors, dashes, color=colour, marker="o", label=name)
    axes[0].set(xlabel="seconds of training", ylabel="score error")
    for i, (sampler, group) in enumerate(
        grouped(samples, lambda record: record["entry"]["sampler"]).items()
    ):
        budgets = grouped(group, lambda record: record["entry"]["evaluations"])
        points = [(median(g), median(g, "ratio")) for _, g in sorted(budgets.items())]
        axes[1].plot(*zip(*points, strict=True), color=SERIES[i], marker="o", label=sampler)
    axes[1].axhline(1, color="0.5", linewidth=1)
    axes[1].set(xlabel="seconds of sampling", ylabel="distance / noise floor")
    _logarithmic(axes[0], [(p[0], p[2]) for r in training for p in r["points"]])
    _logarithmic(axes[1], [(seconds(r), r["ratio"]) for r in samples])
    for panel in axes:
        if panel.get_legend_handles_labels()[0]:
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.savefig(path, dpi=110)


def _logarithmic(panel: Axes, points: list[tuple[float, float]]) -> None:
    if points:
        log_scale(panel, "x", [x for x, _ in points])
        log_scale(panel, "y", [y for _, y in points])


def write(records: list[Record], docs: Path) -> None:
    """``results/performance.md`` and its pictures, in the folder ``docs``."""
    pictures = docs / "pictures"
    pictures.mkdir(exist_ok=True)
    parts = grouped(records, lambda record: record["part"])
    machine = parts.get(
        "machine", [{"cores": 0, "instructions": "", "python": "", "versions": {}}]
    )
    last = machine[-1]
    versions = ", ".join(f"{name} {found}" for name, found in last["versions"].items())
    grown = [r for part, group in parts.items() if part.startswith("growth") for r in group]
    training, samples = (parts.get(f"quality of {what}", []) for what in ("training", "sampling"))
    counts = [
        len(group)
        for part in ("P1", "P2", "P3")
        for group in grouped(parts.get(part, []), lambda record: record["label"]).values()
    ]
    values = {
        "machine": f"{last['cores']} cores, {last['instructions']}, Python {last['python']},"
        f" {versions}",
        "repeats": str(min(counts, default=0)),
        **{work: contest(parts.get(work, [])) for work in (*TITLES, "P5")},
        "commands": commands(parts.get("commands", [])),
        "growth": growth_table(grown),
        "memory": memory(parts.get("memory", [])),
        "quality": quality(training),
        "sampling": sampling(samples),
    }
    text = TEMPLATE.read_text()
    for name, value in values.items():
        is_empty = value.count("\n") < 2 and value.startswith("|")
        text = text.replace("{{" + name + "}}", "Not measured yet." if is_empty else value)
    works = {work: parts.get(work, []) for work in TITLES}
    draw_works(works, pictures / "performance.png")
    if grown:
        draw_growth(grown, pictures / "performance_growth.png")
    else:
        text = re.sub(r"!\[[^]]*\]\([^)]*growth.png\)\n+", "", text)
    if training and samples:
        draw_quality(training, samples, pictures / "performance_quality.png")
    else:
        text = re.sub(r"!\[[^]]*\]\([^)]*quality.png\)\n+", "", text)
    (docs / "results").mkdir(exist_ok=True)
    (docs / "results/performance.md").write_text(text)
    print(json.dumps({work: _ratios(parts.get(work, [])) for work in TITLES}, indent=1))


def _ratios(records: list[Record]) -> dict[str, float]:
    groups = grouped(records, lambda record: record["label"])
    return {
        f"{other} / {label}": round(median(groups[other]) / median(group), 3)
        for label, group in groups.items()
        if label.startswith("ours")
        for other in groups.keys() - {label}
    }
