"""The last minutes of a long trial by the second, in two files that rotate.

A trial of hours keeps its whole window in intervals of many seconds. What happened just before it went wrong is asked
by the second; so each second is also written to `seconds.hlog`, which becomes `seconds.hlog.1` after five minutes, and
what was that is gone. Both are HdrHistogram logs of their own, and no figure of a report is made from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.histogram import Histogram
from loadgen.hlog import HlogWriter

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from loadgen.recorder import IntervalDelta

SECONDS_FILE, BEFORE_FILE = "seconds.hlog", "seconds.hlog.1"
TURN_S = 300


class SecondsLog:
    """Writes seconds of one trial after the other; `log_started_s` (UNIX time) is what their times count from.

    Raises OSError where the disk does not take them; what was written then may end in a torn line.
    """

    def __init__(self, folder: Path, log_started_s: float) -> None:
        self._folder, self._log_started_s = folder, log_started_s
        self._writer: HlogWriter | None = None
        self._begun = (0.0, 0)

    def add(self, tag: str, window_start_s: float, deltas: Iterable[IntervalDelta]) -> None:
        """Write an agent's seconds; what comes late to a second gets a line of its own.

        Args:
            tag: of the trial and the agent: "trial/{kind}/agent".
            window_start_s: where the trial's second 0 lies in the log.
            deltas: what was recorded in them.
        """
        for delta in deltas:
            turn = (window_start_s, delta.interval // TURN_S)
            if self._writer is None or turn > self._begun:
                self._turn(turn)
            assert self._writer is not None
            start_s = max(0.0, window_start_s + delta.interval)
            whole = Histogram()
            delta.add_to(whole)
            self._writer.append(tag.format(kind=delta.kind), start_s, 1.0, whole)

    def _turn(self, turn: tuple[float, int]) -> None:
        """Begin a file; the one before it stays, that before is gone."""
        self.close()
        current = self._folder / SECONDS_FILE
        if current.exists():
            current.replace(self._folder / BEFORE_FILE)
        self._writer, self._begun = HlogWriter(current, self._log_started_s), turn

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
