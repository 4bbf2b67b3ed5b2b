"""Make every picture of the README and of these pages anew, and the page that shows them.

    python docs/gallery.py

Runs the commands below in a temporary folder, shrinks their pictures into ``docs/pictures/`` and
writes ``docs/results/gallery.md``. The pictures of benchmarks are made by the benchmarks.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageSequence
from tqdm import tqdm

from ncsn_cli.plots.canvas import with_one_palette

DOCS = Path(__file__).parent
WIDTH = 1000  # pixels at most, of a film half as many
COLOURS = 96


class Picture(NamedTuple):
    """One picture: its name in ``docs/pictures/``, what it shows, and where it comes from."""

    name: str
    caption: str
    command: str
    file: str


FAILS = "ncsn-sample score=exact experiment=song_ermon_langevin 'animation=[chains]'"
WORKS = "ncsn-sample score=exact experiment=song_ermon_annealed 'animation=[chains]'"
LEVELS = (
    "ncsn-sample score=exact experiment=song_ermon_annealed trajectory_metrics=true"
    " num_samples=10000 'metric=[mode_weights,moments]'"
)
SIGMA_MAX = """\
ncsn-sample -m score=exact experiment=song_ermon_annealed init=normal init.mean=-5 \\
    schedule.num_levels=20 schedule.sigma_max=1.5,3,5,7,10,14,20 num_samples=10000 \\
    metric=mode_weights 'plot=[]'
ncsn-compare outputs/sample/multiruns --metric perturbed.mode_weights.value"""
FAR_MODES = (
    "ncsn-train dataset=two_modes_1d dataset.num_samples=null 'dataset.means=[[-5],[5]]'"
    " schedule=single loss=implicit model=preset/mlp_one_level trainer.steps=3000"
)
FIELDS = "ncsn-train experiment=song_ermon_fields"
NOTES = "ncsn-train experiment=mdsm_1d"
MEMORY = (
    "ncsn-sample score=empirical dataset=moons_2d dataset.num_samples=60 schedule=geometric"
    " schedule.sigma_min=0.03 sampler=reverse_diffusion"
)
PICTURES = [
    Picture(
        "song_ermon_langevin.png",
        "Langevin dynamics with the exact score puts half of the particles into each mode;"
        " .8 and .2 is right.",
        FAILS,
        "plots/samples.png",
    ),
    Picture("song_ermon_langevin.gif", "The same over time.", FAILS, "animations/chains.gif"),
    Picture(
        "song_ermon_annealed.png",
        "Annealed Langevin dynamics, same score, same number of steps.",
        WORKS,
        "plots/samples.png",
    ),
    Picture(
        "song_ermon_annealed.gif",
        "The same over time, on the density of the level.",
        WORKS,
        "animations/chains.gif",
    ),
    Picture(
        "commitment.png",
        "At which level the chains settle for a mode, and how many are in each.",
        LEVELS,
        "plots/commitment.png",
    ),
    Picture(
        "distances.png",
        "Level by level: their width, and how far from the level's density they are.",
        LEVELS,
        "plots/distances.png",
    ),
    Picture(
        "sigma_max.png",
        "From a start in the wrong mode: the error of the shares against sigma_max.",
        SIGMA_MAX,
        "plots/perturbed.mode_weights.value_schedule.sigma_max.png",
    ),
    Picture(
        "song_ermon_fields.png",
        "A score learned without levels by sliced score matching: right where there is data.",
        FIELDS,
        "plots/score.png",
    ),
    Picture(
        "song_ermon_fields_error.png",
        "Its error: wrong between the modes and beyond, where Langevin dynamics has to pass.",
        FIELDS,
        "plots/score_error.png",
    ),
    Picture(
        "far_modes_density.png",
        "Far modes in one dimension: a small score error, and the wrong weights all the same.",
        FAR_MODES,
        "plots/recovered_density.png",
    ),
    Picture(
        "mdsm_1d_score.gif",
        "A network of 64 units learns the score at 16 levels.",
        NOTES,
        "animations/score.gif",
    ),
    Picture(
        "mdsm_1d_density.gif",
        "The density whose score it is, at the smallest level: the small mode comes last.",
        NOTES,
        "animations/recovered_density.gif",
    ),
    Picture(
        "cas_point_mass.png",
        "Plain annealing ends wider than the level says, at every level.",
        "ncsn-sample score=exact experiment=cas_point_mass",
        "plots/distances.png",
    ),
    Picture(
        "memorising.png",
        "What memorising looks like: the exact score of 60 points smoothed by sigma.",
        MEMORY,
        "plots/samples.png",
    ),
]


def run(commands: str, folder: Path) -> Path:
    """Run commands, one a line, in an empty folder; returns the folder of the only run."""
    for command in commands.replace("\\\n", "").splitlines():
        name, *overrides = shlex.split(command)
        script = Path(sys.executable).parent / name
        result = subprocess.run(
            [str(script), *overrides], cwd=folder, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise SystemExit(f"{command}\n{result.stderr}")
    (run_folder,) = folder.glob("outputs/*/runs/*")
    return run_folder


def shrink(source: Path, target: Path) -> None:
    """Copy a picture with fewer colours, as wide as a page; of a film every other frame."""
    image = Image.open(source)
    is_film = source.suffix == ".gif"
    width = min(image.width, WIDTH // 2 if is_film else WIDTH)
    size = width, round(image.height * width / image.width)
    frames = [
        frame.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        for frame in ImageSequence.Iterator(image)
    ]
    frames = [*frames[:-1:2], frames[-1]]
    first, *others = with_one_palette(frames, COLOURS)
    if is_film:
        times = [160] * len(others) + [2000]
        first.save(target, save_all=True, append_images=others, duration=times, loop=0)
    else:
        first.save(target, optimize=True)


def main() -> None:
    """Make all of it."""
    (DOCS / "pictures").mkdir(exist_ok=True)
    commands = list(dict.fromkeys(picture.command for picture in PICTURES))
    for command in tqdm(commands, unit="command"):
        with tempfile.TemporaryDirectory() as folder:
            run_folder = run(command, Path(folder))
            for picture in PICTURES:
                if picture.command == command:
                    shrink(run_folder / picture.file, DOCS / "pictures" / picture.name)
    lines = ["# Gallery", "", "Made by `make gallery`; each picture by the command below it."]
    for picture in PICTURES:
        lines += ["", f"## {picture.caption}", ""]
        lines += [f"![{picture.caption}](../pictures/{picture.name})", ""]
        lines += ["```sh", picture.command, "```", f"`{picture.file}`"]
    (DOCS / "results" / "gallery.md").write_text("\n".join(lines) + "\n")
    total = sum(path.stat().st_size for path in (DOCS / "pictures").iterdir())
    print(f"docs/pictures: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
