"""Progress bars, for terminals and notebooks."""

from __future__ import annotations

import math
import sys
import time
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in a notebook without widgets, whose bar is text
    from tqdm.auto import tqdm as tqdm

HIDDEN: bool | None = False if "ipykernel" in sys.modules else None
"""What to pass as ``disable``. A bar is hidden where the stream is no terminal, such as a file.
(A notebook's stream is no terminal either, but shows bars.)"""

BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {elapsed}<{remaining}{postfix}"
"""The format of a command's main bar; tqdm's own is wider than 80 columns with a few numbers."""

_SECONDS_BETWEEN_LINES = 30.0


class Lines:
    """When to write a progress line into the log, where no bar is shown.

    A line is due after 30 s, but not before a hundredth of ``total`` steps has passed: a long
    run's log stays short.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._last_step, self._last_time = -total, time.monotonic()

    def are_due(self, step: int, share: float = math.inf) -> bool:
        """Return whether to write a line now, after ``step`` steps.

        With ``share``, a line is also due after that share of the steps, and the first at once.
        """
        passed = (step - self._last_step) / self._total
        is_late = time.monotonic() - self._last_time >= _SECONDS_BETWEEN_LINES and passed >= 0.01
        if not is_late and passed < share:
            return False
        self._last_step, self._last_time = step, time.monotonic()
        return True
