"""HdrHistogram logs (format 1.3): what a run measured, one line an interval, for any HDR tool to read.

A line is ``Tag=<tag>,<start s>,<length s>,<largest>,<histogram>``: the start counts from the log's base
time, the histogram is HdrHistogram's compressed encoding. The largest is in milliseconds, as
HistogramLogWriter has it for nanoseconds, but with all six decimals: so `read_hlog` gives back the exact
largest value. HdrHistogram itself splits lines at commas, blanks and line ends, which therefore no tag may
hold.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from loadgen.histogram import Counts, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

VERSION = "1.3"
NS_PER_MS = 1_000_000
LEGEND = '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'

_TAG = re.compile(r"[!-+\--~]+")  # printable ASCII without the comma
_LINE = re.compile(r"(?:Tag=([^\s,]+),)?(\d+\.\d+),(\d+\.\d+),(\d+\.\d+),([A-Za-z0-9+/=]+)\n")
_BASE_TIME = re.compile(r"#\[BaseTime: (\d+\.\d+) ")


@dataclass(frozen=True, slots=True)
class Interval:
    """One line of a log; `start_s` counts from the log's base time, or is absolute where the log has none."""

    tag: str
    start_s: float
    length_s: float
    max_ns: int
    encoded: str

    def histogram(self) -> Histogram:
        """Decode the line's histogram; its largest value is exact."""
        return Histogram.of(self.counts())

    def counts(self) -> Counts:
        """The same without its empty buckets."""
        return Counts.decode(self.encoded, self.max_ns)


class HlogWriter:
    """Writes a new log, each line complete on disk before `append` returns.

    Args:
        path: the file, which must not exist.
        started_s: when the measurement began, in seconds since 1970 (None: now); lines' starts count from it.
        comment: lines for people, put at the top.
    """

    def __init__(self, path: Path, started_s: float | None = None, comment: str = "") -> None:
        started_s = time.time() if started_s is None else started_s
        self._file = path.open("x", encoding="ascii", errors="replace")
        moment = datetime.fromtimestamp(started_s, UTC).isoformat(sep=" ", timespec="seconds")
        lines = [f"#{line}" for line in comment.splitlines()]
        lines += [
            f"#[Histogram log format version {VERSION}]",
            f"#[StartTime: {started_s:.3f} (seconds since epoch), {moment}]",
            f"#[BaseTime: {started_s:.3f} (seconds since epoch)]",
            LEGEND,
        ]
        self._file.write("\n".join(lines) + "\n")
        self._file.flush()

    def append(self, tag: str, start_s: float, length_s: float, histogram: Histogram) -> None:
        """Write one interval.

        Args:
            tag: whose histogram it is; no blanks, commas or line ends.
            start_s: the interval's start in seconds after the log's; not negative.
            length_s: its length in seconds.
            histogram: what was recorded in it, in ns.

        Raises:
            ValueError: the tag or the start cannot be written.
        """
        if not _TAG.fullmatch(tag):
            raise ValueError(f"tag {tag!r}: expected printable ASCII without blanks and commas")
        if start_s < 0:
            raise ValueError(f"start {start_s} s: before the log's own start")
        largest_ns = histogram.max if histogram.count else 0
        encoded = histogram.encode().decode("ascii")
        self._file.write(f"Tag={tag},{start_s:.3f},{length_s:.3f},{largest_ns / NS_PER_MS:.6f},{encoded}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_hlog(path: Path) -> Iterator[Interval]:
    """Every interval of a log, in its order.

    A last line that was cut short by the end of its writer is left out: it has no line end.

    Raises:
        ValueError: any other line that is no interval, comment or legend.
    """
    lines = path.read_text(encoding="ascii").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if line.startswith(("#", '"')) or not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if found is not None:
            tag, start_s, length_s, max_ms, encoded = found.groups()
            max_ns = round(float(max_ms) * NS_PER_MS)
            yield Interval(tag or "", float(start_s), float(length_s), max_ns, encoded)
        elif line.endswith("\n"):
            raise ValueError(f"{path}:{number}: not a line of a histogram log")


def read_base_time(path: Path) -> float:
    """When the log's intervals count from, in seconds since 1970; 0 where the log does not say."""
    with path.open(encoding="ascii") as file:
        for line in file:
            found = _BASE_TIME.match(line)
            if found:
                return float(found[1])
    return 0.0
