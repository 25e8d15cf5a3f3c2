"""What the machine and the broker did while a trial ran, sampled once a second from the parent process.

Threads of their own, so that a slow answer never delays a sample: the sampler reads `/proc` and the agents' counters;
the depth thread asks how long the queue is, the memory thread what the broker says it uses; the watch thread looks
now and then at alarms, GC logs, the disk and other programs; the pace thread measures how fast the CPU is.
A process that ends keeps its last total, and what could not be read is None. Samples are taken at
origin + k intervals without drift, so that a window of whole seconds begins and ends at samples. What only agents
know, such as a consumer group's rebalance, is told to it (`note`) and joins the timeline.

The cost is measured in each run (`observer_cores` of the summary): 0.006 of a core with four agents and a broker,
of which 0.003 count connections and 0.0015 list all processes; and 0.002 for the CPU's pace.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadgen import host
from loadgen.alarms import AlarmReader, MemoryReader
from loadgen.clocks import local_clock
from loadgen.connections import ConnectionCounter
from loadgen.disks import disks_of, read_disks
from loadgen.events import Event
from loadgen.gclog import GcLogs
from loadgen.observations import Columns, Observations, Series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from loadgen.alarms import AlarmReading
    from loadgen.driver import Gauge
    from loadgen.endpoint import Endpoint
    from loadgen.gclog import Pause

__all__ = ["Observations", "Observer"]

OWN_GROUP = "loadgen"  # the process that observes, steers and writes: neither client nor broker nor "other"
AGENT_GROUPS = ("producers", "consumers")
WATCH_INTERVAL_S = 5.0
PACED_EACH = 10  # times a sample, …
PACE_INTERVAL_NS = 100_000_000  # … and no more often than this
ASKED_INTERVAL_NS = 1_000_000_000  # at the least between two questions whose answer costs the broker something
STOP_TIMEOUT_S = 5.0
# When in a sampler's interval each thread has its turn: together they would hold up agents on a few processors.
AFTER_SAMPLE = {"sampler": 0.0, "pace": 0.55, "watch": 0.6, "memory": 0.7, "depth": 0.85}


class _Group:
    """Processes counted together; those that end keep their last totals."""

    def __init__(self, name: str, pids: Iterable[int], *, with_threads: bool, proc: Path) -> None:
        self.name = name
        self.pids = list(dict.fromkeys(pids))
        self._with_threads = with_threads
        self._proc = proc
        self._started_ticks: dict[int, int] = {}
        self._first_s: dict[int, float] = {}
        self._last_s: dict[int, float] = {}
        self._threads: dict[int, dict[int, tuple[float, float]]] = {}
        self._busiest_s: dict[int, float] = defaultdict(float)
        self._waited_s = 0.0

    def add(self, pid: int) -> None:
        """One more process, all of whose time counts."""
        self._first_s[pid] = 0.0
        self.pids.append(pid)

    def read(self) -> dict[str, float | None]:
        """Counters since each process was first seen, and the memory held now."""
        rss_bytes = 0
        for pid in tuple(self.pids):
            reading = host.read_process(pid, self._proc)
            if reading is None or self._started_ticks.setdefault(pid, reading.started_ticks) != reading.started_ticks:
                continue  # gone, or its pid is another's by now
            self._first_s.setdefault(pid, reading.cpu_s)
            self._last_s[pid] = max(reading.cpu_s, self._last_s.get(pid, 0))
            rss_bytes += reading.rss_bytes
            if self._with_threads:
                self._read_threads(pid)
        if not self._last_s:
            return {}
        row: dict[str, float | None] = {
            f"{self.name}_cpu_s": sum(self._last_s.values()) - sum(self._first_s.values()),
            f"{self.name}_rss_bytes": rss_bytes,
        }
        if self._threads:
            row[f"{self.name}_cpu_wait_s"] = self._waited_s
            row |= {f"{self.name}_busiest_s:{pid}": self._busiest_s[pid] for pid in self._threads}
        return row

    def _read_threads(self, pid: int) -> None:
        """Add up, interval by interval, what the busiest thread ran and how long all threads waited.

        One counter, not one for each thread: threads come and go, and a run may last a day.
        """
        now = host.read_threads_s(pid, self._proc)
        if not now:
            return
        before = self._threads.get(pid)
        self._threads[pid] = now
        if before is not None:
            none = (0.0, 0.0)
            self._busiest_s[pid] += max(run_s - before.get(tid, none)[0] for tid, (run_s, _) in now.items())
            self._waited_s += sum(wait_s - before.get(tid, none)[1] for tid, (_, wait_s) in now.items())


@dataclass(slots=True)
class _Others:
    """CPU seconds of kernel threads and of programs that are not ours, from whole process tables."""

    kernel_s: float = 0.0
    by_name_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _last: dict[tuple[int, int], float] | None = None

    def read(self, table: Mapping[int, host.ProcessReading], ours: set[int]) -> None:
        """Count what ran since the last table: all that a new process used, nothing of the first table."""
        first = self._last is None
        last = self._last or {}
        now: dict[tuple[int, int], float] = {}
        for pid, reading in table.items():
            key = (pid, reading.started_ticks)
            now[key] = reading.cpu_s
            used_s = reading.cpu_s - last.get(key, reading.cpu_s if first else 0)
            if reading.is_kernel:
                self.kernel_s += used_s
            elif pid not in ours:
                self.by_name_s[reading.name] += used_s
        self._last = now


class Observer:
    """Samples groups of processes, the host and a broker until it is stopped.

    Args:
        groups: Pids by name (`producers`, `consumers`, `broker`); processes on other machines are left out.
        endpoint: The broker: where to ask for alarms, where its GC logs and its disk are. None: host only.
        interval_s: Between samples. Windows should hold ten or more.
        gauge: What the broker tells of the queue; called from a thread of its own, so give it an `Admin` of its own.
        counts: What all agents have counted so far, by name (`Live.counts`).
        watch_interval_s: Between looks at what changes slowly or costs the broker something.
        cpus: The CPUs that "host" means; by default those that this process may use.
        proc: Where the kernel's readings of processes and memory are.
        sys_root: Where its readings of CPUs, disks and the clock are.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[int]],
        endpoint: Endpoint | None = None,
        interval_s: float = 1.0,
        gauge: Callable[[], Gauge] | None = None,
        counts: Callable[[], Mapping[str, int]] | None = None,
        *,
        watch_interval_s: float = WATCH_INTERVAL_S,
        cpus: Sequence[int] | None = None,
        proc: Path = host.PROC,
        sys_root: Path = host.SYS,
    ) -> None:
        assert interval_s > 0
        assert watch_interval_s > 0
        self._proc = proc
        self._sys = sys_root
        self._interval_ns = round(interval_s * 1e9)
        self._watch_interval_ns = round(watch_interval_s * 1e9)
        self._cpus = tuple(host.allowed_cpus() if cpus is None else cpus)
        everyone = dict(groups)
        if not any(os.getpid() in pids for pids in groups.values()):
            everyone[OWN_GROUP] = (os.getpid(),)
        self._groups = {
            name: _Group(name, pids, with_threads=name in AGENT_GROUPS, proc=proc) for name, pids in everyone.items()
        }
        self._gauge = gauge
        self._counts = counts
        self._data_dir = endpoint.data_dir if endpoint else None
        self._disks = disks_of(self._data_dir, sys_root) if self._data_dir else ()
        self._clock_source: str | None = None
        self._alarm_reader = AlarmReader(endpoint) if endpoint and endpoint.broker == "rabbitmq" else None
        self._memory_reader: MemoryReader | None = None
        is_single = endpoint is not None and len(endpoint.hosts) == 1  # of a cluster they would be one node's
        if endpoint and is_single and endpoint.broker == "rabbitmq" and endpoint.prometheus_url:
            self._memory_reader = MemoryReader(endpoint)
        self._connections = ConnectionCounter(endpoint, proc) if endpoint and endpoint.source != "memory" else None
        self._gc_logs: GcLogs | None = None
        if endpoint and is_single and endpoint.broker == "kafka" and endpoint.log_dir and endpoint.log_dir.is_dir():
            self._gc_logs = GcLogs(endpoint.log_dir, _started_ns(endpoint.pids, proc))
        self._samples, self._watches, self._depths, self._memories = Columns(), Columns(), Columns(), Columns()
        self._others = _Others()
        self._pauses: list[Pause] = []
        self._alarms: list[tuple[int, AlarmReading]] = []
        self._noted: list[Event] = []
        self._errors: dict[str, int] = defaultdict(int)
        self._cpu_s: dict[str, float] = {}
        self._late_ns = 0
        self._works, self._worked_ns, self._work_ns_min = 0, 0, 0
        self._origin_ns = 0
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._defects: dict[str, int] = defaultdict(int)

    def add(self, group: str, pid: int) -> None:
        """Count one more process into a group, from its start on: a broker that was started again."""
        self._groups[group].add(pid)

    def note(self, kind: str, began_ns: int, ended_ns: int, text: str) -> None:
        """Put an event on the timeline that somebody else saw; times are CLOCK_MONOTONIC."""
        self._noted.append(Event(kind, began_ns, ended_ns, text))

    def newest(self) -> dict[str, float]:
        """What was seen last, by the names of the readings; counters (`…_cpu_s`, what agents count) as they stand."""
        now: dict[str, float] = {}
        for columns in (self._samples, self._depths, self._memories):
            # Another thread may be adding a row: of each column what is last, be it the new value or the one before.
            for name, values in tuple(columns.values.items()):
                if len(values) and not math.isnan(values[-1]):
                    now[name] = values[-1]
        heaps = (pause.heap_bytes for pause in reversed(tuple(self._pauses)))
        heap_bytes = next((each for each in heaps if each is not None), None)
        return now if heap_bytes is None else {**now, "broker_memory_bytes": heap_bytes}

    def start(self, origin_ns: int) -> None:
        """Begin; rows count their time from `origin_ns` (CLOCK_MONOTONIC), which may still be to come."""
        assert not self._threads, "an observer is started once"
        self._origin_ns = origin_ns
        self._clock_source = host.clock_source(self._sys)
        work: list[tuple[str, Callable[[], None], int]] = [("sampler", self._sample, self._interval_ns)]
        work.append(("watch", self._watch, self._watch_interval_ns))
        work.append(("pace", self._pace, max(PACE_INTERVAL_NS, self._interval_ns // PACED_EACH)))
        if self._memory_reader is not None:
            work.append(("memory", self._ask_memory, max(self._interval_ns, ASKED_INTERVAL_NS)))
        if self._gauge is not None:
            work.append(("depth", self._ask_depth, self._interval_ns))
        for name, step, interval_ns in work:
            after_ns = round(AFTER_SAMPLE[name] * min(interval_ns, self._interval_ns))
            arguments = (name, step, interval_ns, after_ns)
            thread = threading.Thread(target=self._repeat, args=arguments, name=f"observer-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> Observations:
        """End with a last sample and hand over what was seen, which a defect of ours cuts short and nothing more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(STOP_TIMEOUT_S)  # a depth call that hangs is left behind: its thread is a daemon
        if self._threads:
            with self._tolerating("sampler", self._defects):
                self._sample()
            with self._tolerating("watch", self._defects):
                self._watch()  # an alarm or a pause of the last seconds
        return self.seen()

    def seen(self) -> Observations:
        """What was seen until now; while it still observes, the last rows may lack what comes from other threads."""
        return Observations(
            origin_ns=self._origin_ns,
            interval_ns=self._interval_ns,
            watch_interval_ns=self._watch_interval_ns,
            groups=tuple(self._groups),
            cpu_limit_cores=host.cpu_limit_cores(self._proc),
            samples=Series.of(self._samples),
            watches=Series.of(self._watches),
            depths=Series.of(self._depths),
            memories=Series.of(self._memories),
            pauses=tuple(self._pauses) if self._gc_logs is not None and self._gc_logs.found else None,
            alarms=tuple(self._alarms),
            noted=tuple(self._noted),
            clock=local_clock(self._clock_source, self._sys),
            others_s=dict(self._others.by_name_s),
            errors=dict(self._errors),
            defects=tuple(self._defects),
            own_cpu_s=sum(self._cpu_s.values()),
            late_ns_max=self._late_ns,
            work_ns_min=self._work_ns_min,
        )

    def _repeat(self, name: str, step: Callable[[], None], interval_ns: int, after_ns: int) -> None:
        """Call `step` now, and then at origin + after + k intervals; times that passed meanwhile are left out."""
        origin_ns = self._origin_ns + after_ns
        with self._tolerating(name, self._defects):
            while True:
                step()
                self._cpu_s[name] = time.thread_time()
                now_ns = time.monotonic_ns()
                due_ns = origin_ns + ((now_ns - origin_ns) // interval_ns + 1) * interval_ns
                if self._stopping.wait((due_ns - now_ns) / 1e9):
                    if name == "depth":
                        step()  # its last reading is older than the end
                    return
                if name == "sampler":
                    self._late_ns = max(self._late_ns, time.monotonic_ns() - due_ns)

    def _sample(self) -> None:
        at_ns = time.monotonic_ns()
        row: dict[str, float | None] = {}
        for group in self._groups.values():
            row |= group.read()
        row |= {f"host_{name}_s": value for name, value in host.read_cpu_s(self._cpus, self._proc).items()}
        row |= {f"psi_{name}_s": value for name, value in host.read_pressure_s(self._proc).items()}
        memory = host.read_memory_bytes(self._proc)
        row |= {
            "load_1m": host.read_load_1m(self._proc),
            "dirty_bytes": memory.get("Dirty"),
            "writeback_bytes": memory.get("Writeback"),
            "memory_available_bytes": memory.get("MemAvailable"),
            "swap_used_bytes": memory["SwapTotal"] - memory["SwapFree"] if "SwapTotal" in memory else None,
        }
        row |= {"works": self._works, "work_s": self._worked_ns / 1e9}
        row |= self._swap_and_disk()
        if self._connections is not None:
            row["broker_connections"] = self._connections.read()
        if self._counts is not None:
            row |= self._counts()
        self._samples.append(at_ns, row)

    def _swap_and_disk(self) -> dict[str, float | None]:
        """Counters since boot of what was swapped, and of what the broker's disk did."""
        row: dict[str, float | None] = {}
        swapped = host.read_swapped_pages(self._proc)
        if swapped is not None:
            row |= {"swapped_in_pages": swapped[0], "swapped_out_pages": swapped[1]}
        counts = read_disks(self._disks)
        if counts is not None:
            row |= {
                "disk_writes": counts.writes,
                "disk_write_s": counts.write_s,
                "disk_flushes": counts.flushes,
                "disk_flush_s": counts.flush_s,
            }
        return row

    def _pace(self) -> None:
        took_ns = host.work_ns()
        self._work_ns_min = min(took_ns, self._work_ns_min or took_ns)
        self._worked_ns += took_ns
        self._works += 1

    def _watch(self) -> None:
        ours = {pid for group in self._groups.values() for pid in tuple(group.pids)}
        row: dict[str, float | None] = {}
        with self._tolerating("processes"):
            self._others.read(host.read_processes(self._proc), ours)
            row["kernel_cpu_s"] = self._others.kernel_s
        # Here and not with the samples: kernels before 5.18 take up to 10 ms to tell a CPU's frequency.
        row["cpu_frequency_hz"] = host.read_frequency_hz(self._cpus, self._sys)
        row["cpu_throttles"] = host.read_throttles(self._cpus, self._sys)
        if self._data_dir is not None:
            with self._tolerating("disk"):
                row["disk_free_bytes"] = host.disk_free(self._data_dir)
                row["broker_data_bytes"] = host.tree_bytes(self._data_dir)
        if self._gc_logs is not None:
            with self._tolerating("gc"):
                self._pauses += self._gc_logs.read()
        self._watches.append(time.monotonic_ns(), row)
        if self._alarm_reader is not None and self._alarm_reader.can_ask:
            with self._tolerating("alarms"):
                reading = self._alarm_reader.read()
                self._alarms.append((time.monotonic_ns(), reading))

    def _ask_depth(self) -> None:
        assert self._gauge is not None
        with self._tolerating("depth"):
            seen = self._gauge()
            row: dict[str, float | None] = {
                "depth_msgs": seen.depth_msgs,
                "stored": seen.stored_msgs,
                "connected_consumers": seen.consumers,
                "retained_msgs": seen.retained_msgs,
                "forgotten_msgs": seen.forgotten_msgs,
            }
            self._depths.append(time.monotonic_ns(), row)

    def _ask_memory(self) -> None:
        assert self._memory_reader is not None
        with self._tolerating("memory"):
            self._memories.append(time.monotonic_ns(), {"broker_memory_bytes": self._memory_reader.read()})

    @contextlib.contextmanager
    def _tolerating(self, what: str, kept: dict[str, int] | None = None) -> Iterator[None]:
        """Count what goes wrong with a side look, and go on: an observer must not fail a trial.

        A defect of its own threads is `kept` apart too: from then on nobody looked, which a verdict must know.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - brokers and clients raise all kinds
            self._errors[f"{what}: {type(error).__name__}"] += 1
            if kept is not None:
                kept[f"{what}: {type(error).__name__}: {error}"] += 1


def _started_ns(pids: Sequence[int], proc: Path) -> int | None:
    """When the first of these processes began, on CLOCK_MONOTONIC."""
    readings = (host.read_process(pid, proc) for pid in pids)
    ticks = [reading.started_ticks for reading in readings if reading is not None]
    if not ticks:
        return None
    # The kernel counts it since boot, suspended time included; CLOCK_MONOTONIC leaves that out.
    suspended_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return min(ticks) * 1_000_000_000 // host.TICKS_PER_S - suspended_ns
