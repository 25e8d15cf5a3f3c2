"""Histograms by kind and interval, recorded in batches at a few nanoseconds a value.

A recorder only copies what it is given; intervals and buckets are worked out a buffer at a time, since a
pass over thirty thousand bins must not be paid for a batch of three messages. `cut` hands over what is
new, sparsely: an agent sends that to the fleet every interval, and a value that comes late for an old
interval is one more delta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from loadgen.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from loadgen.driver import Int64

SPARE_A_KIND = 3  # histograms that are used again: late values of one second fall into a few intervals
BUFFER_VALUES = 1 << 14  # 256 KB a kind: small enough for a core's cache, large enough to spread a pass over the bins


@dataclass(frozen=True, slots=True)
class IntervalDelta:
    """What was recorded of one kind for one interval since the last `take`.

    `indices` (int32[m]) are the histogram's buckets and `counts` (int64[m]) how many values fell into each;
    `min_ns`, `max_ns` and `sum_ns` are exact, and 0 where `counts` is empty (all values were out of range).
    """

    kind: str
    interval: int
    indices: npt.NDArray[np.int32]
    counts: Int64
    min_ns: int
    max_ns: int
    sum_ns: int
    out_of_range_count: int

    @property
    def count(self) -> int:
        """How many values it holds, those out of range not included."""
        return int(self.counts.sum())

    def add_to(self, histogram: Histogram) -> None:
        """Add its values to a histogram."""
        histogram.add_counts(
            self.indices,
            self.counts,
            min_ns=self.min_ns,
            max_ns=self.max_ns,
            sum_ns=self.sum_ns,
            out_of_range_count=self.out_of_range_count,
        )


def delta_of(kind: str, interval: int, histogram: Histogram) -> IntervalDelta:
    """All that a histogram holds, as what an interval gained."""
    used = np.flatnonzero(histogram.counts)
    return IntervalDelta(
        kind=kind,
        interval=interval,
        indices=used.astype(np.int32),
        counts=histogram.counts[used],
        min_ns=histogram.min if len(used) else 0,
        max_ns=histogram.max if len(used) else 0,
        sum_ns=histogram.sum,
        out_of_range_count=histogram.out_of_range_count,
    )


class _Buffer:
    """Values of one kind that wait to be counted, with the moments that choose their intervals."""

    __slots__ = ("used", "values_ns", "when_ns")

    def __init__(self) -> None:
        self.when_ns: Int64 = np.empty(BUFFER_VALUES, np.int64)
        self.values_ns: Int64 = np.empty(BUFFER_VALUES, np.int64)
        self.used = 0


class Recorder:
    """Records durations of several kinds, each in the interval in which its message was intended.

    Interval i spans origin_ns + i·interval_ns up to the next, so that what was before the origin is negative.
    """

    def __init__(self, kinds: Iterable[str], origin_ns: int, interval_ns: int = 1_000_000_000) -> None:
        self.origin_ns = origin_ns
        self.interval_ns = interval_ns
        kinds = tuple(kinds)
        self._buffers = {kind: _Buffer() for kind in kinds}
        self._others = {kind: _Buffer() for kind in kinds}  # empty, or being handed over
        self._counted: dict[str, dict[int, Histogram]] = {kind: {} for kind in kinds}
        self._spare: list[Histogram] = []

    def record(self, kind: str, when_ns: Int64 | int, values_ns: Int64) -> None:
        """Record n durations of a kind.

        Args:
            kind: one of the kinds that the recorder was made for.
            when_ns: the messages' intended times in monotonic ns (int64[n]), or one moment for all.
            values_ns: the durations in ns (int64[n]); both arrays are copied.
        """
        buffer = self._buffers[kind]
        begin = buffer.used
        end = begin + len(values_ns)
        if end > BUFFER_VALUES:
            self._record_over(kind, buffer, when_ns, values_ns)
            return
        buffer.when_ns[begin:end] = when_ns
        buffer.values_ns[begin:end] = values_ns
        buffer.used = end

    def _record_over(self, kind: str, buffer: _Buffer, when_ns: Int64 | int, values_ns: Int64) -> None:
        """Record more than the buffer has room for, a full buffer at a time."""
        done = 0
        while done < len(values_ns):
            if buffer.used == BUFFER_VALUES:
                self._count(buffer, self._counted[kind])
            until = min(len(values_ns), done + BUFFER_VALUES - buffer.used)
            when = when_ns[done:until] if isinstance(when_ns, np.ndarray) else when_ns
            self.record(kind, when, values_ns[done:until])
            done = until

    def cut(self) -> Iterator[list[IntervalDelta]]:
        """All that was recorded since the last cut: a kind at a time, by interval, as it is asked for.

        What is recorded meanwhile is for the next cut, which may only come when this one is at its end.
        """
        full, self._buffers, self._others = self._buffers, self._others, self._buffers
        assert not any(buffer.used for buffer in self._buffers.values()), "the last cut is not at its end"
        counted, self._counted = self._counted, {kind: {} for kind in full}
        return (self._handed(kind, buffer, counted[kind]) for kind, buffer in full.items())

    def take(self) -> list[IntervalDelta]:
        """All that was recorded since the last time, by kind and interval."""
        return [delta for deltas in self.cut() for delta in deltas]

    def _handed(self, kind: str, buffer: _Buffer, counted: dict[int, Histogram]) -> list[IntervalDelta]:
        self._count(buffer, counted)
        deltas: list[IntervalDelta] = []
        for interval, histogram in counted.items():
            deltas.append(delta_of(kind, interval, histogram))
            if len(self._spare) < SPARE_A_KIND * len(self._buffers):
                histogram.clear(deltas[-1].indices)
                self._spare.append(histogram)
        return deltas

    def _count(self, buffer: _Buffer, counted: dict[int, Histogram]) -> None:
        """Empty the buffer into the histograms of its intervals."""
        when_ns, values_ns = buffer.when_ns[: buffer.used], buffer.values_ns[: buffer.used]
        buffer.used = 0
        for interval, values in self._by_interval(when_ns, values_ns):
            if interval not in counted:
                counted[interval] = self._spare.pop() if self._spare else Histogram()
            counted[interval].add(values)

    def _by_interval(self, when_ns: Int64, values_ns: Int64) -> Iterator[tuple[int, Int64]]:
        if not len(when_ns):
            return
        first = (int(when_ns.min()) - self.origin_ns) // self.interval_ns
        last = (int(when_ns.max()) - self.origin_ns) // self.interval_ns
        if first == last:
            yield first, values_ns
            return
        intervals = (when_ns - self.origin_ns) // self.interval_ns
        order = np.argsort(intervals, kind="stable")
        intervals, values_ns = intervals[order], values_ns[order]
        begins = np.flatnonzero(np.diff(intervals, prepend=intervals[0] - 1))
        for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(intervals)], strict=True):
            yield int(intervals[begin]), values_ns[begin:end]
