"""Garbage collection pauses of a Java broker, read from its unified log as the log grows.

Kafka's start script writes `kafkaServer-gc.log` with `-Xlog:gc*:…:time,tags`; `uptime` and the other time
decorations are read too. A line tells of a pause when it ends, so `ended_ns` is its stamp on CLOCK_MONOTONIC.
Collectors that mostly run beside the program (ZGC, Shenandoah) log their short pauses in the same form.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

READ_BYTES_MAX = 16 << 20
"""A log that grew by more between two reads is read from its last 16 MiB: the rest is counted as skipped."""

_PAUSE = re.compile(rb"GC\(\d+\) (?:[yYoO]: )?(Pause [^\n]*?) (\d+(?:[.,]\d+)?)ms\s*$")
_HEAP = re.compile(r"->(\d+)([BKMG])\b")
_UNIT_BITS = {"B": 0, "K": 10, "M": 20, "G": 30}
_DECORATION = re.compile(rb"\[([^\]]+)\]")
_UPTIME = re.compile(r"^(\d+(?:[.,]\d+)?)(s|ms|ns)$")
_UNIT_NS = {"s": 1e9, "ms": 1e6, "ns": 1.0}
_EPOCH_MS_MIN = 1e12
"""Milliseconds above this are since 1970 (`timemillis`), below it since the start of the JVM."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The whole JVM stood still for `duration_ns` until `ended_ns`."""

    ended_ns: int
    duration_ns: int
    kind: str

    @property
    def heap_bytes(self) -> int | None:
        """Heap in use when it ended; None where its line did not tell."""
        match = _HEAP.search(self.kind)
        return None if match is None else int(match[1]) << _UNIT_BITS[match[2]]


class GcLogs:
    """All GC logs of a folder, followed from where they end when this is made.

    `started_ns` is when the JVM started, on CLOCK_MONOTONIC, for logs that are stamped with its uptime only.
    """

    def __init__(
        self,
        folder: Path,
        started_ns: int | None = None,
        wall_minus_monotonic_ns: Callable[[], int] = lambda: time.time_ns() - time.monotonic_ns(),
    ) -> None:
        self._folder = folder
        self._started_ns = started_ns
        self._wall_minus_monotonic_ns = wall_minus_monotonic_ns
        self._read_to: dict[tuple[int, int], int] = {}
        self.skipped_bytes = 0
        for path in self._paths():
            status = path.stat()
            self._read_to[status.st_dev, status.st_ino] = status.st_size

    @property
    def found(self) -> bool:
        """Whether there is any log to read: without one, no pause seen means nothing."""
        return bool(self._read_to)

    def read(self) -> list[Pause]:
        """The pauses logged since the last call."""
        pauses: list[Pause] = []
        for path in self._paths():
            try:
                pauses += parse(self._grown(path), self._started_ns, self._wall_minus_monotonic_ns())
            except OSError:  # rotated away between listing and opening: its successor is read next time
                continue
        return pauses

    def _paths(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("*gc*.log*") if path.is_file())

    def _grown(self, path: Path) -> Iterable[bytes]:
        """The complete lines added since the last read; a rotated file keeps its inode, hence its place."""
        with path.open("rb") as file:
            status = path.stat()
            key = (status.st_dev, status.st_ino)
            begin = self._read_to.get(key, 0)
            if status.st_size < begin:  # truncated, as some rotations do
                begin = 0
            if status.st_size - begin > READ_BYTES_MAX:
                self.skipped_bytes += status.st_size - READ_BYTES_MAX - begin
                begin = status.st_size - READ_BYTES_MAX
            file.seek(begin)
            text = file.read(READ_BYTES_MAX)
        whole = text.rfind(b"\n") + 1
        self._read_to[key] = begin + whole
        return text[:whole].splitlines()


def parse(lines: Iterable[bytes], started_ns: int | None, wall_minus_monotonic_ns: int) -> list[Pause]:
    """The pauses that `lines` tell of; a pause whose line carries no usable stamp is left out."""
    pauses: list[Pause] = []
    for line in lines:
        if b"Pause" not in line or (match := _PAUSE.search(line)) is None:
            continue
        stamps = (found.decode(errors="replace") for found in _DECORATION.findall(line[: match.start()]))
        times = (_stamp_ns(stamp.strip(), started_ns, wall_minus_monotonic_ns) for stamp in stamps)
        ended_ns = next((each for each in times if each is not None), None)
        if ended_ns is not None:
            duration_ms = float(match[2].replace(b",", b"."))
            pauses.append(Pause(ended_ns, round(duration_ms * 1e6), match[1].decode(errors="replace")))
    return pauses


def _stamp_ns(stamp: str, started_ns: int | None, wall_minus_monotonic_ns: int) -> int | None:
    """A time decoration on CLOCK_MONOTONIC; None for a level, tag, pid or host name."""
    uptime = _UPTIME.match(stamp)
    if uptime is not None:
        value = float(uptime[1].replace(",", "."))
        if uptime[2] == "ms" and value > _EPOCH_MS_MIN:
            return round(value * 1e6) - wall_minus_monotonic_ns
        return None if started_ns is None else started_ns + round(value * _UNIT_NS[uptime[2]])
    if len(stamp) < 20 or stamp[4] != "-":
        return None
    try:
        wall = datetime.strptime(stamp.replace(",", "."), "%Y-%m-%dT%H:%M:%S.%f%z")
    except ValueError:
        return None
    return round(wall.timestamp() * 1e6) * 1_000 - wall_minus_monotonic_ns
