"""What TensorBoard shows of a training: the numbers of ``history.csv`` and the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ncsn_cli.core.errors import ConfigError


class TensorBoard:
    """Event files in ``tensorboard/`` of a run's folder.

    Args:
        folder: The run's folder.
        step: Steps made before; what was written of later ones is dropped.

    Raises:
        ConfigError: If tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "trainer.tensorboard: it needs pip install 'ncsn_cli[tensorboard]'"
            ) from None
        self._folder, self._step, self._open = folder, step, SummaryWriter

    def write(self, history: list[dict[str, Any]], with_pictures: bool = False) -> None:
        """Write those rows of the history that have come since, and the pictures in ``plots/``."""
        from PIL import Image

        files = self._folder.glob("plots/*.png") if with_pictures else []
        with self._open(str(self._folder / "tensorboard"), purge_step=self._step + 1) as writer:
            for row in history:
                for name in row.keys() - {"step", "seconds"}:
                    if row["step"] > self._step and row[name] is not None:
                        writer.add_scalar(name, row[name], row["step"])
            self._step = max([self._step, *(row["step"] for row in history)])
            for path in sorted(files):
                pixels = np.asarray(Image.open(path).convert("RGB"))
                writer.add_image(path.stem, pixels, self._step, dataformats="HWC")
