"""One process of a trial: a producer or a consumer, from connecting to its last report.

An agent runs a loop of its own, never waits for the fleet while it is measured, and reports once a second through a
pipe: what its histograms and counters gained. What is counted when: latencies belong to the second in which a message
was *intended* (so that warm-up is excluded by intended time), rates to the second in which a thing *happened*.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from loadgen.board import Board, Cell
from loadgen.payload import Payloads
from loadgen.recorder import Recorder

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from loadgen.driver import Target
    from loadgen.ledger import ReceivedBook, SentBook
    from loadgen.recorder import IntervalDelta
    from loadgen.scenario import Message, Rate

Role = Literal["producer", "consumer"]
SECOND_NS = 1_000_000_000
POLL_S = 0.05  # how long an agent with nothing to do waits before it looks at the board again
# In a closed loop no latency is measured, and a client that looks a thousand times a second instead of at every small
# packet leaves the broker the cores that they share (docs/performance.md).
CLOSED_LOOP_NAP_S = 0.005
NAP_BELOW_MSGS = 512  # … where what it heard last was less than this
BOOK_MSGS = 256  # bookkeeping is done for so many messages at once: at a few messages a call it would cost the most
BOOK_NS = 20_000_000  # … or for what has gathered in so many nanoseconds


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """All that one agent needs to know; it travels to a spawned process."""

    role: Role
    name: str
    row: int
    index: int
    count: int
    driver: str
    target: Target
    message: Message
    rate: Rate
    seed: int
    token: int
    warmup_s: float
    duration_s: float
    consumers: int
    board: Path
    rows: int
    cpus: tuple[int, ...] = ()


@dataclass(slots=True)
class Report:
    """What an agent gained since its last report; `series` are plain numbers for one second."""

    agent: str
    deltas: list[IntervalDelta]
    series: dict[str, Any]


@dataclass(slots=True)
class Result:
    """What an agent says at its end."""

    agent: str
    role: Role
    sent_book: SentBook | None = None
    received_book: ReceivedBook | None = None
    due: int = 0
    in_window: dict[str, int] = field(default_factory=dict)
    cpu_s: float = 0.0
    blocked_share: float = 0.0
    window_s: float = 0.0


class StoppedError(Exception):
    """The trial ends before it has begun: leave, there is nothing to report."""


class Clocked:
    """The moments of a trial for one agent, and its own cost inside the measured window."""

    def __init__(self, spec: AgentSpec, start_ns: int) -> None:
        self.start_ns = start_ns
        self.window_start_ns = start_ns + round(spec.warmup_s * SECOND_NS)
        self.window_end_ns = self.window_start_ns + round(spec.duration_s * SECOND_NS)
        self.counts: dict[str, int] = {}
        self._cpu: list[tuple[int, float]] = []

    def tick(self, now_ns: int) -> None:
        """Note the CPU used at the first moment in the window and the first after it."""
        edges = len(self._cpu)
        if (edges == 0 and now_ns >= self.window_start_ns) or (edges == 1 and now_ns >= self.window_end_ns):
            self._cpu.append((now_ns, time.process_time()))

    def count(self, what: str, number: int, now_ns: int) -> None:
        """Add to a counter where the moment is inside the window."""
        if self.window_start_ns <= now_ns < self.window_end_ns:
            self.add(what, number)

    def add(self, what: str, number: int) -> None:
        """Add to a counter of what happened inside the window."""
        self.counts[what] = self.counts.get(what, 0) + number

    @property
    def cpu_s(self) -> float:
        """CPU seconds inside the window, scaled from the two moments that were caught to its exact length."""
        if not self._cpu:
            return 0.0
        (t0, c0), (t1, c1) = self._cpu[0], self._cpu[-1]
        if len(self._cpu) == 1:  # the window was cut short
            t1, c1 = time.monotonic_ns(), time.process_time()
        return (c1 - c0) * (self.window_end_ns - self.window_start_ns) / max(1, t1 - t0)


class Agent:
    """What both roles share: the board, the recorder, the report once a second."""

    def __init__(self, spec: AgentSpec, pipe: Connection) -> None:
        self.spec = spec
        self.pipe = pipe
        self.board = Board(spec.board, spec.rows)
        self.row = self.board.cells[spec.row]
        self.payloads = Payloads(spec.message, spec.seed, spec.token, producer=spec.index)
        self.result = Result(agent=spec.name, role=spec.role)
        self.series: dict[str, int] = {}
        self._next_report_ns = 0
        self._parent = os.getppid()

    def begin(self, kinds: tuple[str, ...]) -> None:
        """Say that this agent is ready, and wait for the fleet's start; raises StoppedError where that never comes."""
        self.pipe.send(("ready", self.spec.name))
        while (start_ns := self.board.ordered(Cell.START_NS)) == 0:
            self.row[Cell.HEARTBEAT_NS] = time.monotonic_ns()
            self._leave_if_orphaned()
            if self.board.ordered(Cell.STOP_PRODUCING) or self.board.ordered(Cell.STOP_CONSUMING):
                raise StoppedError
            time.sleep(0.002)
        self.clock = Clocked(self.spec, start_ns)
        self.recorder = Recorder(kinds, self.clock.window_start_ns)
        self._next_report_ns = start_ns + SECOND_NS
        # Nothing in the loops makes reference cycles; a collection would only be a pause in the measurement.
        gc.collect()
        gc.disable()

    def heartbeat(self, now_ns: int) -> None:
        """Tell the fleet that the loop turns, and report once a second."""
        self.row[Cell.HEARTBEAT_NS] = now_ns
        self.clock.tick(now_ns)
        if now_ns >= self._next_report_ns:
            self._next_report_ns += SECOND_NS * (1 + (now_ns - self._next_report_ns) // SECOND_NS)
            self.report(now_ns)
            self._leave_if_orphaned()

    def keep_books(self) -> None:
        """Record what has gathered since the last time; each role has its own way."""

    def report(self, now_ns: int) -> None:
        """Send what was gained since the last report."""
        self.keep_books()
        series = {**self.series, "elapsed_s": (now_ns - self.clock.start_ns) / SECOND_NS}
        self.series.clear()
        self.pipe.send(("report", Report(self.spec.name, self.recorder.take(), series)))

    def finish(self) -> None:
        """The last report and the result."""
        self.report(time.monotonic_ns())
        self.result.cpu_s = self.clock.cpu_s
        self.result.in_window = self.clock.counts
        self.pipe.send(("result", self.result))

    def add(self, what: str, number: int) -> None:
        """Add to this second's series."""
        self.series[what] = self.series.get(what, 0) + number

    def _leave_if_orphaned(self) -> None:
        """End at once where the fleet was killed: load must never go on by itself."""
        if os.getppid() != self._parent:
            os._exit(1)
