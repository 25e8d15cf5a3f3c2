"""What an observer saw: rows for the series on disk, and a summary of a window for the trial's record.

Counters (seconds of CPU, of pressure, …) are kept as counters. A window's figure is the difference of the two
values interpolated at its edges, a row's is that of its interval; gauges (bytes, messages) are shown as read.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loadgen.events import alarm_events, in_window, pause_events
from loadgen.host import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loadgen.alarms import AlarmReading
    from loadgen.events import Event
    from loadgen.gclog import Pause

    Used = Callable[[str], float | None]  # a counter's name -> by how much it grew

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

HOST_STATES = ("user", "system", "irq", "iowait", "idle", "steal")
PRESSURES = ("cpu_some", "io_some", "io_full", "memory_some", "memory_full")
GAUGES = (
    "load_1m", "dirty_bytes", "writeback_bytes", "memory_available_bytes", "swap_used_bytes", "broker_connections",
)  # fmt: skip
AGENT_COUNTS = {
    "sent": "sent_msgs_per_s",
    "acked": "acked_msgs_per_s",
    "received": "received_msgs_per_s",
    "errors": "errors_per_s",
    "failed_requests": "failed_requests_per_s",
}
"""What all agents count together (`Live.counts`), and the columns that tell how fast it grew."""
DISK_FULL_BYTES = 64 << 20
"""RabbitMQ stops publishers at 50 MB free, and a Kafka partition's index files alone take 20 MiB."""
OTHERS_NAMED = 3
OTHERS_NAMED_CORES = 0.02


class Columns:
    """Numbers that grow by a row at a time; a column that a row does not give is NaN there."""

    def __init__(self) -> None:
        self.at_ns = array("q")
        self.values: dict[str, array[float]] = {}

    def append(self, at_ns: int, row: Mapping[str, float | None]) -> None:
        """Add one row."""
        for name in row.keys() - self.values.keys():
            self.values[name] = array("d", [math.nan]) * len(self.at_ns)
        self.at_ns.append(at_ns)
        for name, values in self.values.items():
            value = row.get(name)
            values.append(math.nan if value is None else value)


@dataclass(frozen=True, slots=True)
class Series:
    """Columns over time, complete; NaN where a value was not observed."""

    at_ns: Int64
    columns: dict[str, Float64]

    @classmethod
    def of(cls, columns: Columns) -> Series:
        """A copy of what has been gathered."""
        # A slice is a copy of its own: while numpy read the array itself another thread could not add a row to it.
        arrays = {name: np.array(values[:], np.float64) for name, values in tuple(columns.values.items())}
        at_ns = np.array(columns.at_ns[:], np.int64)
        # Another thread may be in the middle of a row.
        whole = min([len(at_ns), *(len(values) for values in arrays.values())])
        return cls(at_ns[:whole], {name: values[:whole] for name, values in arrays.items()})

    def counted(self, name: str, at_ns: Int64) -> Float64 | None:
        """A counter interpolated at these times; before its first and after its last value it stands."""
        values = self.columns.get(name)
        if values is None:
            return None
        known = np.isfinite(values)
        if not known.any():
            return None
        # Relative times: nanoseconds since boot lose digits as floats after some months.
        begin_ns = self.at_ns[0]
        counted: Float64 = np.interp(at_ns - begin_ns, self.at_ns[known] - begin_ns, values[known])
        return counted

    def used(self, name: str, start_ns: int, end_ns: int) -> float | None:
        """By how much a counter grew in a window."""
        counted = self.counted(name, np.array([start_ns, end_ns], np.int64))
        return None if counted is None else max(0.0, float(counted[1] - counted[0]))

    def seen(self, name: str, start_ns: int, end_ns: int) -> Float64:
        """A gauge's values read inside a window, and the last one before it: that was true when it began."""
        values = self.columns.get(name)
        if values is None:
            return np.empty(0)
        known = np.isfinite(values)
        at_ns, values = self.at_ns[known], values[known]
        begin = max(0, int(np.searchsorted(at_ns, start_ns, "right")) - 1)
        return values[begin : int(np.searchsorted(at_ns, end_ns, "right"))]

    def last(self, name: str, at_ns: int, age_ns_max: int) -> float | None:
        """A gauge's newest value at a moment, unless it is too old to be true."""
        values = self.columns.get(name)
        index = int(np.searchsorted(self.at_ns, at_ns, "right")) - 1
        if values is None or index < 0 or at_ns - self.at_ns[index] > age_ns_max or math.isnan(values[index]):
            return None
        return float(values[index])


@dataclass(frozen=True)
class Observations:
    """All that was seen from start to stop; `pauses` is None where no GC log was found.

    `noted` are the events that others told; `clock` is the record of the host's own clock (`loadgen.clocks`).
    `others_s` are CPU seconds by program over the whole observation, not only a window's. `defects` are the observer's
    own: after one it no longer looked.
    """

    origin_ns: int
    interval_ns: int
    watch_interval_ns: int
    groups: tuple[str, ...]
    samples: Series
    watches: Series
    depths: Series
    memories: Series = field(default_factory=lambda: Series.of(Columns()))
    cpu_limit_cores: float | None = None
    pauses: tuple[Pause, ...] | None = None
    alarms: tuple[tuple[int, AlarmReading], ...] = ()
    noted: tuple[Event, ...] = ()
    clock: Mapping[str, Any] | None = None
    others_s: Mapping[str, float] | None = None
    errors: Mapping[str, int] | None = None
    defects: tuple[str, ...] = ()
    own_cpu_s: float = 0.0
    late_ns_max: int = 0
    work_ns_min: int = 0
    """What the work that measures the CPU's pace took when it was fastest."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a sample after the first, telling of the interval that ended with it."""
        return self.rows_from(0)

    def rows_from(self, first: int, until_ns: int | None = None) -> list[dict[str, Any]]:
        """The rows from one on, of intervals that ended by a moment."""
        at_ns = self.samples.at_ns
        if len(at_ns) < 2:
            return []
        end = len(at_ns) - 1 if until_ns is None else int(np.searchsorted(at_ns, until_ns, "right")) - 1
        counters = [name for name in self.samples.columns if name not in GAUGES and "_bytes" not in name]
        grown = {name: self._grown(self.samples, name) for name in counters}
        grown["kernel_cpu_s"] = self._grown(self.watches, "kernel_cpu_s")
        grown["stored"] = self._grown(self.depths, "stored")
        rows = [
            self._row(index, {name: float(each[index]) for name, each in grown.items()}.get)
            for index in range(first, end)
        ]
        self._add_pauses(rows, first)
        return rows

    def _grown(self, series: Series, name: str) -> Float64:
        """By how much a counter grew from sample to sample; NaN where there is none."""
        counted = series.counted(name, self.samples.at_ns)
        return np.full(len(self.samples.at_ns) - 1, math.nan) if counted is None else np.diff(counted).clip(0)

    @property
    def events(self) -> list[Event]:
        """Pauses, alarms and what was noted, of the whole observation."""
        return [*pause_events(self.pauses or ()), *alarm_events(self.alarms), *self.noted]

    def summary(self, start_ns: int, end_ns: int) -> dict[str, Any]:
        """The window's figures under stable names; None is "not observed"."""
        assert end_ns > start_ns, "a window has a length"
        window_s = (end_ns - start_ns) / 1e9
        samples = self.samples

        def used(name: str) -> float | None:
            series = self.watches if name in self.watches.columns else samples
            return series.used(name, start_ns, end_ns)

        def largest(name: str) -> float | None:
            values = samples.seen(name, start_ns, end_ns)
            return float(values.max()) if len(values) else None

        cpu_s = {group: used(f"{group}_cpu_s") for group in self.groups}
        inside = (samples.at_ns >= start_ns) & (samples.at_ns <= end_ns)
        return {
            "window_s": window_s,
            "samples": int(inside.sum()),
            "cpu_s": cpu_s,
            "cpu_cores": {group: _over(seconds, window_s) for group, seconds in cpu_s.items()},
            "cpu_wait_s": {group: used(f"{group}_cpu_wait_s") for group in self.groups},
            "agent_core_share_max": {group: self._busiest(group, used, window_s) for group in self.groups},
            "rss_bytes": {group: _int(largest(f"{group}_rss_bytes")) for group in self.groups},
            **self._host(used, window_s),
            "others_names": self._others_names(),
            "load_1m_max": largest("load_1m"),
            "dirty_bytes_max": _int(largest("dirty_bytes")),
            "writeback_bytes_max": _int(largest("writeback_bytes")),
            "swap_used_bytes_max": _int(largest("swap_used_bytes")),
            "swapped_bytes": self._swapped_bytes(used),
            **self._frequency(used, start_ns, end_ns),
            **self._disk(start_ns, end_ns),
            "disk": self._disk_times(start_ns, end_ns),
            "depth_msgs": self._depth(start_ns, end_ns),
            "gc": self._gc(start_ns, end_ns),
            **self._alarmed(start_ns, end_ns),
            "events": [each.record(start_ns) for each in in_window(self.events, start_ns, end_ns)],
            "clock": None if self.clock is None else dict(self.clock),
            "errors": dict(self.errors or {}),
            "defects": list(self.defects),
            "observer_cores": self._own_cores(),
            "observer_late_ns_max": self.late_ns_max,
        }

    def _row(self, index: int, used: Used) -> dict[str, Any]:
        begin_ns, end_ns = (int(each) for each in self.samples.at_ns[index : index + 2])
        window_s = (end_ns - begin_ns) / 1e9

        def read(name: str) -> float | None:
            column = self.samples.columns.get(name)
            return None if column is None else _known(column[index + 1])

        row: dict[str, Any] = {"monotonic_ns": end_ns, "elapsed_s": (end_ns - self.origin_ns) / 1e9}
        for group in self.groups:
            row[f"{group}_cpu_s"] = read(f"{group}_cpu_s")
            row[f"{group}_cpu_cores"] = _over(used(f"{group}_cpu_s"), window_s)
            row[f"{group}_cpu_wait_cores"] = _over(used(f"{group}_cpu_wait_s"), window_s)
            row[f"{group}_core_share_max"] = self._busiest(group, used, window_s)
            row[f"{group}_rss_bytes"] = _int(read(f"{group}_rss_bytes"))
        row |= self._host(used, window_s)
        for name in GAUGES:
            row[name] = read(name) if name == "load_1m" else _int(read(name))
        row |= {column: _over(used(name), window_s) for name, column in AGENT_COUNTS.items()}
        row["stored_msgs_per_s"] = _over(used("stored"), window_s)
        row |= {f"{name}_per_s": _over(used(name), window_s) for name in ("disk_writes", "disk_flushes")}
        row["disk_write_ns"] = _mean_ns(used("disk_write_s"), used("disk_writes"))
        row["disk_flush_ns"] = _mean_ns(used("disk_flush_s"), used("disk_flushes"))
        row["swapped_bytes_per_s"] = _over(self._swapped_bytes(used), window_s)
        row["cpu_slow_share"] = self._slow(used)
        row["cpu_frequency_hz"] = self.watches.last("cpu_frequency_hz", end_ns, 2 * self.watch_interval_ns)
        for name in ("disk_free_bytes", "broker_data_bytes"):
            row[name] = _int(self.watches.last(name, end_ns, 2 * self.watch_interval_ns))
        for name in ("depth_msgs", "connected_consumers", "retained_msgs", "forgotten_msgs"):
            row[name] = _int(self.depths.last(name, end_ns, 3 * self.interval_ns))
        row["broker_memory_bytes"] = self._memory_bytes(end_ns)
        seen = bisect_right(self.alarms, end_ns, key=itemgetter(0))
        row["alarms"] = len(self.alarms[seen - 1][1].alarms) if seen else None
        row["blocked_connections"] = self.alarms[seen - 1][1].blocked_connections if seen else None
        row["gc_pauses"] = row["gc_pause_ns"] = None if self.pauses is None else 0
        return row

    def _memory_bytes(self, at_ns: int) -> int | None:
        """What the broker says it uses: RabbitMQ by its own count, a JVM's heap as the last collection left it."""
        if self.pauses is None:
            return _int(self.memories.last("broker_memory_bytes", at_ns, 3 * self.interval_ns))
        index = bisect_right(self._ordered, at_ns, key=attrgetter("ended_ns"))
        before = (self._ordered[place].heap_bytes for place in range(index - 1, -1, -1))
        return next((heap_bytes for heap_bytes in before if heap_bytes is not None), None)

    @cached_property
    def _ordered(self) -> list[Pause]:
        """The pauses in order of time."""
        return sorted(self.pauses or (), key=attrgetter("ended_ns"))

    def _add_pauses(self, rows: list[dict[str, Any]], first: int) -> None:
        """Each pause to the row in whose interval it ended."""
        begin = bisect_right(self._ordered, int(self.samples.at_ns[first]), key=attrgetter("ended_ns")) if rows else 0
        for pause in self._ordered[begin:] if rows else ():
            index = int(np.searchsorted(self.samples.at_ns, pause.ended_ns, "left")) - 1 - first
            if 0 <= index < len(rows):
                rows[index]["gc_pauses"] += 1
                rows[index]["gc_pause_ns"] += pause.duration_ns

    def _host(self, used: Used, window_s: float) -> dict[str, float | None]:
        """Shares of the host's CPU time, of stalled time, and the cores that other programs used."""
        spent = {name: used(f"host_{name}_s") or 0.0 for name in HOST_STATES}
        all_s = sum(spent.values())
        figures: dict[str, float | None] = {
            f"host_{name}_share": used_s / all_s if all_s else None for name, used_s in spent.items()
        }
        ours_s = sum(_known(used(f"{group}_cpu_s")) or 0.0 for group in self.groups)
        figures["host_busy_share"] = self._busy_share(spent, ours_s / window_s) if all_s else None
        for name in PRESSURES:
            figures[f"psi_{name}_share"] = _over(used(f"psi_{name}_s"), window_s)
        # Kernel threads write back what the broker wrote: not ours to count, and no other program either.
        kernel_s = _known(used("kernel_cpu_s"))
        figures["kernel_threads_cores"] = _over(kernel_s, window_s)
        others_s = spent["user"] + spent["system"] - ours_s - (kernel_s or 0.0)
        figures["others_cores"] = max(0.0, others_s) / window_s if all_s else None
        return figures

    def _busy_share(self, spent: Mapping[str, float], ours_cores: float) -> float:
        """Of the CPU time that the hypervisor left, or of a control group's quota where that is nearer."""
        busy_s = spent["user"] + spent["system"] + spent["irq"]
        had_s = busy_s + spent["idle"] + spent["iowait"]
        share = busy_s / had_s if had_s else 1.0
        return max(share, min(1.0, ours_cores / self.cpu_limit_cores)) if self.cpu_limit_cores else share

    def _busiest(self, group: str, used: Used, window_s: float) -> float | None:
        """The largest share of one core that a single thread of the group used."""
        prefix = f"{group}_busiest_s:"
        seconds = [_known(used(name)) for name in self.samples.columns if name.startswith(prefix)]
        return max((each / window_s for each in seconds if each is not None), default=None)

    def _own_cores(self) -> float | None:
        if len(self.samples.at_ns) < 2:
            return None
        return self.own_cpu_s * 1e9 / float(self.samples.at_ns[-1] - self.samples.at_ns[0])

    def _others_names(self) -> list[str]:
        """The busiest other programs of the whole observation, for a reason that a person can act on."""
        if len(self.samples.at_ns) < 2:
            return []
        enough_s = OTHERS_NAMED_CORES * float(self.samples.at_ns[-1] - self.samples.at_ns[0]) / 1e9
        ranked = sorted((self.others_s or {}).items(), key=lambda item: -item[1])
        return [name for name, used_s in ranked[:OTHERS_NAMED] if used_s >= enough_s]

    def _disk(self, start_ns: int, end_ns: int) -> dict[str, Any]:
        free = self.watches.seen("disk_free_bytes", start_ns, end_ns + self.watch_interval_ns)
        least = int(free.min()) if len(free) else None
        return {"disk_free_bytes_min": least, "disk_full": None if least is None else least < DISK_FULL_BYTES}

    def _disk_times(self, start_ns: int, end_ns: int) -> dict[str, float | int | None] | None:
        """Writes and flushes of the broker's disk: how many, how long on average, and in the slowest interval."""
        if "disk_writes" not in self.samples.columns:
            return None
        inside = [row for row in self.rows if start_ns < row["monotonic_ns"] <= end_ns]
        figures: dict[str, float | int | None] = {}
        for name, plural in (("write", "writes"), ("flush", "flushes")):
            number = self.samples.used(f"disk_{plural}", start_ns, end_ns)
            took_s = self.samples.used(f"disk_{name}_s", start_ns, end_ns)
            means_ns = [row[f"disk_{name}_ns"] for row in inside if row[f"disk_{name}_ns"] is not None]
            figures[plural] = None if number is None else round(number)
            figures[f"{name}_mean_ns"] = _mean_ns(took_s, number)
            figures[f"{name}_interval_mean_ns_max"] = max(means_ns, default=None)
        return figures

    def _frequency(self, used: Used, start_ns: int, end_ns: int) -> dict[str, float | None]:
        """How steadily the CPUs ran: by how much the fastest one fell, and how often one was slowed for its heat."""
        seen_hz = self.watches.seen("cpu_frequency_hz", start_ns, end_ns)
        fall_share = float(1 - seen_hz.min() / seen_hz.max()) if len(seen_hz) else None
        throttles = used("cpu_throttles")
        return {"cpu_frequency_fall_share": fall_share, "cpu_throttles": throttles, "cpu_slow_share": self._slow(used)}

    def _slow(self, used: Used) -> float | None:
        """By what share the CPU was slower than at its fastest in this trial, by the same work again and again."""
        mean_ns = _mean_ns(used("work_s"), used("works"))
        return 1 - self.work_ns_min / mean_ns if mean_ns else None

    def _swapped_bytes(self, used: Used) -> int | None:
        pages = [_known(used(f"swapped_{way}_pages")) for way in ("in", "out")]
        return None if None in pages else round(sum(each or 0.0 for each in pages) * PAGE_BYTES)

    def _depth(self, start_ns: int, end_ns: int) -> dict[str, float] | None:
        depths = self.depths.seen("depth_msgs", start_ns, end_ns)
        if not len(depths):
            return None
        return {"max": int(depths.max()), "mean": float(depths.mean()), "last": int(depths[-1])}

    def _gc(self, start_ns: int, end_ns: int) -> dict[str, int] | None:
        """Pauses that overlap the window, whole: the broker stood still in a part of it at least."""
        if self.pauses is None:
            return None
        took_ns = [
            pause.duration_ns
            for pause in self.pauses
            if start_ns < pause.ended_ns and pause.ended_ns - pause.duration_ns < end_ns
        ]
        return {"count": len(took_ns), "total_ns": sum(took_ns), "max_ns": max(took_ns, default=0)}

    def _alarmed(self, start_ns: int, end_ns: int) -> dict[str, Any]:
        """Alarms in the window or next to it: they are looked at too seldom to tell its edges apart."""
        near_ns = self.watch_interval_ns
        readings = [each for at_ns, each in self.alarms if start_ns - near_ns <= at_ns <= end_ns + near_ns]
        blocked = [each.blocked_connections for each in readings if each.blocked_connections is not None]
        return {
            "alarms": sorted({name for each in readings for name in each.alarms}) if readings else None,
            "blocked_connections_max": max(blocked, default=None),
        }


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _mean_ns(total_s: float | None, number: float | None) -> float | None:
    """The mean duration of what was counted; None where nothing was."""
    total_s, number = _known(total_s), _known(number)
    return total_s * 1e9 / number if total_s is not None and number else None


def _over(value: float | None, window_s: float) -> float | None:
    known = _known(value)
    return None if known is None else known / window_s


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)
