"""How high response times were in each interval of a trial: their geometric means, at two numbers an interval.

A geometric mean stands for most messages of an interval, as a median does: of a hundred, one that took a hundred times
as long moves it by 5 %. And it is a sum, so that nothing needs to be kept of an interval but that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from loadgen.histogram import LOWEST_OF_BUCKET_NS

if TYPE_CHECKING:
    import numpy.typing as npt

    from loadgen.recorder import IntervalDelta

MESSAGES_MIN = 10
"""Of fewer messages even a geometric mean is mostly chance."""
BLOCKS_MOST = 40
_LOGS = np.log(np.maximum(LOWEST_OF_BUCKET_NS, 1))


class Levels:
    """Sums of the logarithms of durations, by intervals of so many seconds."""

    def __init__(self, interval_s: int = 1) -> None:
        self._interval_s = interval_s
        self._sums: dict[int, tuple[int, float]] = {}

    def add(self, delta: IntervalDelta) -> None:
        """Take what was recorded for a second; a duration counts as its bucket's lower end (at most 0.1 % too low)."""
        if len(delta.counts):
            interval = delta.interval // self._interval_s
            number, logs = self._sums.get(interval, (0, 0.0))
            self._sums[interval] = number + delta.count, logs + float(delta.counts @ _LOGS[delta.indices])

    def by_interval(self) -> list[tuple[int, float]]:
        """Each interval that has ten messages, and their geometric mean (ns), in order."""
        return [
            (interval, math.exp(logs / number))
            for interval, (number, logs) in sorted(self._sums.items())
            if number >= MESSAGES_MIN
        ]

    def blocks(self) -> npt.NDArray[np.float64]:
        """Geometric means (ns, float[n]) of 40 blocks at most, in order: as many intervals each as have ten messages.

        What is left at the end belongs to the last one.
        """
        enough = max(MESSAGES_MIN, sum(number for number, _ in self._sums.values()) / BLOCKS_MOST)
        found: list[tuple[int, float]] = []
        gathered, logs = 0, 0.0
        for interval in sorted(self._sums):
            more, sum_of_logs = self._sums[interval]
            gathered, logs = gathered + more, logs + sum_of_logs
            if gathered >= enough:
                found.append((gathered, logs))
                gathered, logs = 0, 0.0
        if gathered and found:
            last, its_logs = found.pop()
            found.append((last + gathered, its_logs + logs))
        return np.exp([logs / number for number, logs in found])
