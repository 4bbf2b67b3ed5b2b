"""Write docs/live.html: the live page with the mixtures among the datasets.

python docs/live.py
"""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ncsn_cli.commands.cli import config_dir
from ncsn_cli.commands.live import law_of
from ncsn_cli.plots.live import LiveState, live_page

PAGE = Path(__file__).parent / "live.html"
LAWS = [
    "song_ermon_2d", "two_modes_1d", "two_modes_2d", "three_modes_2d", "grid_2d", "ring_2d",
    "moons_2d", "spiral_2d",
]  # fmt: skip
STATE = LiveState("song_ermon_2d", max=20.0, min=1.0, levels=10, steps=200, tau=0.1, speed=5)
"""The levels of experiment=song_ermon_annealed, with twice as many steps of twice the size."""


def main() -> None:
    """Write the page."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        laws = {
            name: law_of(
                instantiate(compose("train", [f"dataset={name}"]).dataset, _convert_="all")
            )
            for name in LAWS
        }
    PAGE.write_text(live_page("Langevin dynamics and its relatives, live", laws, STATE))


if __name__ == "__main__":
    main()
