"""A training in TensorBoard: the numbers of ``history.csv`` and the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ncsn_cli.core.errors import ConfigError


class TensorBoard:
    """A writer of TensorBoard's event files into ``tensorboard/`` in a run's folder.

    Args:
        folder: The run's folder.
        step: Number of steps made before; events of later steps are dropped.

    Raises:
        ConfigError: If tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "trainer.tensorboard: TensorBoard is not installed; run"
                " pip install 'ncsn_cli[tensorboard]'"
            ) from None
        self._folder, self._step, self._open = folder, step, SummaryWriter

    def write(self, history: list[dict[str, Any]], with_pictures: bool = False) -> None:
        """Write the new rows of ``history`` and, ``with_pictures``, the pictures in ``plots/``."""
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
