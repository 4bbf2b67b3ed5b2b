"""Every ``experiment=`` preset beside its source and the truth: docs/results/presets.md.

    python benchmarks/presets.py [--quick] [--only NAME ...]

Runs the real commands in a temporary folder and prints the rows as they come. ``--quick`` shrinks
every run, to see that all presets work; it and ``--only`` write no file. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from quality import read, run
from tqdm import tqdm

from ncsn_cli.commands.cli import config_dir

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "presets.md"
QUIET = ["plot=[]", "animation=[]"]
METRICS = "metric=[wasserstein,mode_weights,moments]"
HEADER = """\
| `experiment=` | source | what the source shows or reports | what we got \
| true value or noise floor | seconds |
|---|---|---|---|---|---|"""
INTRODUCTION = """\
# Every preset, its source, and what it gives

Each `experiment=` beside the source that it follows and the truth. The last column has the
seconds of its commands.

Written by `python benchmarks/presets.py`: seed 0, on two shared CPU cores. Trained presets are run
by `ncsn-train experiment=NAME`, and where shares or distances are given by `ncsn-sample
checkpoint=RUN`; the others by `ncsn-sample score=exact experiment=NAME`. *With* is the same
command with other options. In brackets: what 99 % of sets of as many exact draws give. Seconds
are those of the preset's own commands without pictures: start, evaluation and noise floors
included. More seeds and explanations: [reproductions.md](reproductions.md).
"""

Metrics = dict[str, Any]  # a metrics.json
Report = Callable[[Metrics], tuple[str, str]]  # what we got, what is true


def short(value: float) -> str:
    """Two digits; rounding errors are 0."""
    return f"{value:.2g}" if abs(value) > 1e-6 else "0"


def learned(key: str) -> Report:
    """A number of a training, beside its floor; without one the least possible is 0."""

    def report(run: Metrics) -> tuple[str, str]:
        digits, floor = (4, "floor {:.4g}") if key == "loss" else (2, "0")
        text = f"{key.replace('_', ' ')} {run[key]:.{digits}g}"
        return text, floor.format(run["loss_floor"])

    return report


def best_scale(run: Metrics) -> tuple[str, str]:
    """The factor that would make the score best."""
    scales = run["best_scale_per_level"]
    return f"best scale {min(scales):.3g} to {max(scales):.3g} over the levels", "1"


def width(run: Metrics) -> tuple[str, str]:
    """How much too wide the chains of a point mass end."""
    std, error = run["trajectory"]["std"], (2 * run["num_samples"]) ** -0.5
    ratio = std["value"][-1] / std["true"][-1]
    return f"{ratio:.4f} times as wide as p_sigma_min", f"1 (standard error {error:.2g})"


def distance(name: str, target: str = "perturbed") -> Report:
    """A distance of the samples, beside its noise floor."""

    def report(run: Metrics) -> tuple[str, str]:
        against = "denoised" if target not in run else target
        entry = run[against][name]
        low, high = entry["floor_quantiles"]
        return (
            f"`{against}.{name}` {entry['value']:.3g}, {entry['ratio']:.3g} times its floor",
            f"floor {short(entry['floor'])} ({short(low)} to {short(high)})",
        )

    return report


def shares(run: Metrics) -> tuple[str, str]:
    """The share of the samples in each mode."""
    entry = (run.get("perturbed") or run["denoised"])["mode_weights"]
    truth = zip(entry["expected"], entry["interval"], strict=True)
    return (
        "shares " + ", ".join(f"{share:.3f}" for share in entry["weights"]),
        ", ".join(f"{share:.3f} ({low:.3f} to {high:.3f})" for share, (low, high) in truth),
    )


LEARNED = (learned("loss"), learned("excess_loss"), learned("score_error"))
SCALED = (learned("loss"), best_scale, learned("score_error"))
W, WEIGHTS = distance("wasserstein"), distance("mode_weights")
SHARES = (shares, W)


@dataclass(frozen=True)
class Preset:
    """What its source shows, what to report, and what to run."""

    shows: str
    trained: tuple[Report, ...] = ()  # reported of ncsn-train; none: the exact score is sampled
    sampled: tuple[Report, ...] = ()  # reported of ncsn-sample; none: nothing is sampled
    sample: tuple[str, ...] = ()  # overrides of ncsn-sample
    twin: tuple[str, ...] = ()  # overrides with which all is run and reported again
    why: str = ""  # what explains a distance from the source or from the truth


ANNEALED = ("sampler=preset/song_ermon_annealed",)
PRESETS = {
    "cas_25_gaussians": Preset("settings only, for this data", LEARNED, (W, WEIGHTS),
        why="Sigma enters the network as it is, as in the source: 2000 steps leave a score error "
        "of .04 at the widest levels and of .98 at the narrowest."),
    "cas_point_mass": Preset("annealing ends 1.062 times too wide, consistent annealing does not",
        sampled=(width,), twin=("sampler=consistent_annealed",),
        why="The law of annealing itself is the source's 1.062."),
    "dsm_1d": Preset("pictures", LEARNED),
    "dsm_continuous_2d": Preset("the loss; the data are of another source", LEARNED),
    "edm_karras_2d": Preset("network, levels and solver, for images", LEARNED, (W, WEIGHTS),
        why="Levels are drawn log-normally, as published: few are near sigma = 80 and .002, where "
        "the score error is (.2 to .5 where the levels shape the modes). With log-uniform levels, "
        "`loss=denoising_continuous`, the mode weights are at 1.7 times their floor."),
    "efficiency_1d": Preset("how many data score matching wastes without noise", LEARNED,
        twin=("schedule.sigma=2",),
        why="The weight of a mode is all that is learned: see learn/why_noise.md."),
    "ism_1d": Preset("pictures", LEARNED, twin=("trainer.steps=2000", "dataset.num_samples=null"),
        why="500 steps are too few, and 1024 points are soon overfitted."),
    "ism_1d_regularized": Preset("pictures", LEARNED,
        why="The penalty's minimiser is not the score: the excess loss does not go to 0."),
    "langevin_2d": Preset('"highly probable to fail"', sampled=SHARES),
    "manifold_2d": Preset("data on a curve has no score to learn; perturbed a little it has",
        LEARNED, twin=("schedule.sigma=0.1",),
        why="The true score grows as one over the blur squared; the network's is far smaller."),
    "memorisation_2d": Preset("networks first learn the law, then their training set", LEARNED,
        why="It memorises its 32 training points: see learn/memorising.md."),
    "mdsm_1d": Preset("loss .263 to .334 in its last 950 steps", LEARNED, SHARES,
        why="The network misses part of the small mode (.079 to .094 in three seeds): the exact "
        "score finds .113 by the same sampler."),
    "mdsm_1d_fixed_noise": Preset("pictures", LEARNED),
    "ncsn_2d": Preset("settings only", LEARNED, SHARES, ("++sampler.steps_per_level=100",),
        why="The share of the small mode is a matter of the seed; the exact score finds .054."),
    "ncsn_point": Preset("settings only", (*LEARNED, best_scale), (*SHARES, WEIGHTS),
        why="In two dimensions the score is not f(x)/sigma: at the smallest level the learned one "
        "is many times too large."),
    "rosa_2d": Preset("pictures", LEARNED, SHARES,
        why="The exact score gives .382, .373, .245 by the same sampler; the rest is the network, "
        "which has 16 units."),
    "song_ermon_annealed": Preset("figure: both modes with their weights", sampled=SHARES,
        why="The law of the sampler itself has .782 in the .8 mode; more steps approach .80."),
    "song_ermon_fields": Preset("figure: the score is right where there is data, wrong between "
        "and beyond", LEARNED, SHARES,
        why="Langevin dynamics, as in figure 3(b), forgets the weights with the exact score too."),
    "song_ermon_langevin": Preset("figure: wrong weights, with the exact score", sampled=SHARES,
        why="The law of the sampler itself has .49 to .52 in the .8 mode."),
    "versini_annealed": Preset("the weights are found", sampled=SHARES,
        why="Seed 1 gives .304, and 1500 steps a level instead of 300 give .303."),
    "versini_langevin": Preset("two clusters of the same importance", sampled=SHARES),
    "bug_levels_reversed": Preset("ends as wide as the widest level",
        sampled=(distance("moments", "clean"),), twin=ANNEALED),
    "bug_linear_steps": Preset("steps grow as sigma, not its square: early levels hardly mix",
        sampled=(WEIGHTS, shares), twin=ANNEALED),
    "bug_noise_not_annealed": Preset("drift grows with the level, noise does not: all chains end "
        "in one mode", sampled=(WEIGHTS, shares), twin=ANNEALED),
    "bug_sigma_replaced": Preset("sigma instead of sqrt(s² + sigma²): modes too narrow",
        sampled=(distance("moments"),), twin=("dataset=song_ermon_2d",)),
    "bug_sign_flipped": Preset("learns the score's negative, at an innocent loss", SCALED,
        twin=("loss=denoising",)),
    "bug_trace_over_dim": Preset("learns the score over D", SCALED, twin=("loss=implicit",)),
}  # fmt: skip


def names() -> list[str]:
    """All presets, the mistakes last."""
    found = [path.stem for path in config_dir().glob("experiment/*.yaml")]
    return sorted(found, key=lambda name: (name.startswith("bug_"), name))


def source(name: str) -> str:
    """What the preset's file says of its source, up to the first colon or full stop."""
    lines = (config_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
    text = " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))
    return re.split(r"(?:(?<! al)\.|:)\s", text.split("Source: ")[1])[0].rstrip(".")


def shrunk(name: str) -> tuple[list[str], list[str]]:
    """The overrides of ``--quick`` for training, and for sampling."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("train", [f"experiment={name}"])
    levels = ["schedule.num_levels=2"] if "num_levels" in config.schedule else []
    keys = [f"++sampler.{key}=3" for key in ("steps", "steps_per_level") if key in config.sampler]
    training = ["trainer.steps=10", *levels]
    return training, ["num_samples=200", *keys, *(() if PRESETS[name].trained else levels)]


def measured(command: str, folder: Path, *overrides: str) -> Metrics:
    """Run a command into ``folder``, its noise floors kept for the other presets; its metrics."""
    outputs = f"paths.outputs={folder.parent.parent}"
    return read(run(command, folder, *overrides, *QUIET, outputs) / "metrics.json")


def reported(name: str, folder: Path, twin: bool, quick: bool) -> list[tuple[str, str]]:
    """Run a preset, or its twin; what all its reports say."""
    preset, lines = PRESETS[name], []
    training, sampling = shrunk(name) if quick else ([], [])
    chosen = [f"experiment={name}", *(preset.twin if twin else ())]
    if preset.trained:
        metrics = measured("ncsn-train", folder / "train", *chosen, *training)
        lines += [report(metrics) for report in preset.trained]
        chosen = [f"checkpoint={folder / 'train'}"]
    else:
        chosen.append("score=exact")
    if preset.sampled:
        words = [*chosen, METRICS, *preset.sample, *sampling]
        metrics = measured("ncsn-sample", folder / "sample", *words)
        lines += [report(metrics) for report in preset.sampled]
    return lines


def row(name: str, root: Path, quick: bool) -> str:
    """One row of the table."""
    preset, start = PRESETS[name], time.perf_counter()
    lines = reported(name, root / name, False, quick)
    seconds = time.perf_counter() - start
    if preset.twin and not quick:
        lines.append((f"with `{' '.join(preset.twin)}`:", ""))
        lines += reported(name, root / f"{name}_twin", True, quick)
    got, truth = ("<br>".join(column) for column in zip(*lines, strict=True))
    return f"| `{name}` | {source(name)} | {preset.shows} | {got} | {truth} | {seconds:.0f} |"


def main(chosen: list[str], quick: bool, write: bool) -> None:
    """Run the presets; print their rows, and write the page."""
    print(HEADER, flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for name in tqdm(chosen, unit="preset"):
            rows.append(row(name, Path(root), quick))
            print(rows[-1], flush=True)
    notes = [f"- `{name}`: {PRESETS[name].why}" for name in chosen if PRESETS[name].why]
    print("", *notes, sep="\n")
    if write:
        PAGE.write_text("\n".join([INTRODUCTION, HEADER, *rows, "", *notes, ""]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    options = parser.parse_args()
    partial = options.quick or options.only
    main(options.only or names(), options.quick, not partial)
