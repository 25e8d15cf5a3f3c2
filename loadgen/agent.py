"""One process of a trial: a producer, a consumer or another role, from connecting to its last report.

An agent runs a loop of its own, never waits for the fleet while it is measured, and reports once a second through a
pipe: what its histograms and counters gained. What is counted when: latencies belong to the second in which a message
was *intended* (so that warm-up is excluded by intended time), rates to the second in which a thing *happened*.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import time
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loadgen.backlog import Backlog
from loadgen.board import Board, Cell
from loadgen.driver import Reconnecting, Recovering, Retrying
from loadgen.host import PROC, read_text
from loadgen.ledger import ReceivedBook, lay_to
from loadgen.membership import Membership
from loadgen.patterns import Pattern
from loadgen.payload import Payloads
from loadgen.processed import Processed
from loadgen.recorder import Recorder
from loadgen.think import Think

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    from loadgen.driver import Int64, Target
    from loadgen.ledger import SentBook
    from loadgen.recorder import IntervalDelta
    from loadgen.scenario import Message, Rate

Role = Literal["producer", "consumer", "requester", "responder", "processor"]
SIDES: dict[Role, str] = {
    "producer": "producers", "requester": "producers", "consumer": "consumers", "responder": "consumers",
    "processor": "consumers",
}  # fmt: skip
"""Which side of a trial a role's CPU time, memory and number are counted to."""
SECOND_NS = 1_000_000_000
POLL_S = 0.05  # how long an agent with nothing to do waits before it looks at the board again
SPENT = PROC / "thread-self/schedstat"  # ns on a CPU, ns ready and waiting for one
SPENT_EVERY_NS = 20_000_000  # how often that is noted: what was spent before a long turn must not be taken for its own
STOOD_STILL_NS = 70_000_000  # a loop that turned no sooner did not wait of its own will
# In a closed loop no latency is measured, and a consumer that looks two hundred times a second instead of at every
# small packet leaves the broker the cores that they share (docs/performance.md) …
CLOSED_LOOP_NAP_S = 0.005
NAP_BELOW_BYTES = 768 << 10  # … where what it heard last was less than this: then nothing piles up meanwhile
NAP_FROM_IN_FLIGHT_MSGS = 1_000  # … where so many may be under way that none of them waits for it
NAP_SHARE = 0.25  # … and for no longer than this share of the time in which so many are received
BOOK_MSGS = 256  # bookkeeping is done for so many messages at once: at a few messages a call it would cost the most
BOOK_NS = 20_000_000  # … or for what has gathered in so many nanoseconds
# Agents of one board report one after another, and not at the second's turn, when the observer samples: few processors
# serve them all.
REPORT_NS, REPORT_STEP_NS, REPORT_STEPS = 150_000_000, 40_000_000, 10
# By so long after a second all have reported it, also one that waits for messages at each turn of its loop.
REPORTED_NS = REPORT_NS + REPORT_STEPS * REPORT_STEP_NS + 350_000_000
SECONDS_KEPT = 3_600  # counts of a longer window grow as it goes on


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
    consumers: int  # of each subscriber
    board: Path
    rows: int
    cpus: tuple[int, ...] = ()
    think: Think = field(default_factory=Think)
    """How long consumers work on each message; `Think.of` says how long this one does."""
    shared: bool = False
    """Producers come and go while the trial runs: an open loop's part of the rate is what the board says."""
    backlog: Backlog = field(default_factory=Backlog)
    """What producers write before the trial begins; consumers connect when it does."""
    membership: Membership = field(default_factory=Membership)
    """When this consumer joins and leaves, and the moments around which all consumers note their deliveries."""
    comes_and_goes: bool = False
    """Whether that is this consumer."""
    is_hurt: bool = False
    """Whether the broker may be hurt meanwhile: then messages may stay away for long and come all the same."""
    ramp_s: float | None = None
    """How long a ramp takes where that is not warm-up and window together."""
    pattern: Pattern = field(default_factory=Pattern)


@dataclass(slots=True)
class Report:
    """What an agent gained since its last report; `series` are plain numbers for one second."""

    agent: str
    deltas: list[IntervalDelta]
    series: dict[str, Any]
    events: list[tuple[str, int, int, str]] = field(default_factory=list)
    """What happened to it: kind, begin and end in monotonic ns, words."""
    errors: dict[str, int] = field(default_factory=dict)
    """Messages that were refused or given up, by reason."""
    received_book: ReceivedBook | None = None
    """Pages of its book that it has passed; as `Result` names it."""
    handled_book: ReceivedBook | None = None


BookName = Literal["received_book", "handled_book"]
BOOKS: tuple[BookName, ...] = ("received_book", "handled_book")


@dataclass(slots=True)
class Handed:
    """What agents handed over of their books before their end: by the book's name, for each group laid together."""

    books: dict[str, dict[str, ReceivedBook]] = field(default_factory=dict)

    def add(self, report: Report) -> None:
        """Keep what came with a report."""
        for name in BOOKS:
            book = getattr(report, name)
            if book is not None:
                self._lay(name, book)

    def join(self, other: Handed) -> None:
        """Keep what others kept."""
        for name, groups in other.books.items():
            for book in groups.values():
                self._lay(name, book)

    def of(self, name: BookName, results: Iterable[Result]) -> list[ReceivedBook]:
        """All books of a name: what was handed over, and what the results brought in the end."""
        told = [getattr(result, name) for result in results]
        return [*self.books.get(name, {}).values(), *(book for book in told if book is not None)]

    def _lay(self, name: str, book: ReceivedBook) -> None:
        groups = self.books.setdefault(name, {})
        lay_to(groups.setdefault(book.group, ReceivedBook(book.group)), book)


@dataclass(slots=True)
class Standstills:
    """How often an agent's loop stood still inside the window, and for how long in all and at most (ns).

    It did where a turn took `STOOD_STILL_NS` or more, and its thread neither ran nor waited for a CPU in most of that.
    """

    times: int = 0
    total_ns: int = 0
    longest_ns: int = 0

    def add(self, turn_ns: int, spent_ns: int) -> None:
        """A turn that took so long, of which so much at the most was spent on a CPU or waiting for one."""
        still_ns = turn_ns - spent_ns
        if turn_ns >= STOOD_STILL_NS and still_ns > turn_ns / 2:
            self.times += 1
            self.total_ns += still_ns
            self.longest_ns = max(self.longest_ns, still_ns)


@dataclass(slots=True)
class Result:
    """What an agent says at its end."""

    agent: str
    role: Role
    sent_book: SentBook | None = None
    gave_up_confirms: bool = False
    """Whether the wait for a producer's last confirmations ended before all had come."""
    received_book: ReceivedBook | None = None
    failed: dict[str, int] | None = None
    """How many deliveries a consumer had fail as the settings say (`loadgen.driver.Failing`)."""
    subscriber: int = 0
    """Of a consumer: whose messages it receives."""
    think_ms: float = 0.0
    """Of a consumer: how long its own work on a message takes, on average."""
    handled_book: ReceivedBook | None = None
    """Of a role in the middle: what it received, which is not the end of it."""
    replied: int = 0
    """Requests whose reply came in time."""
    timed_out: int = 0
    """Requests that were given up."""
    due: int = 0
    per_second: dict[str, list[int]] = field(default_factory=dict)
    """Counts in each second of the measured window; of a consumer that thinks, how long its work takes (`busy_ns`)."""
    cpu_at: list[tuple[float, float]] = field(default_factory=list)
    """(s since the window's begin, CPU s of this process until then), about once a second."""
    blocked_share: float = 0.0
    stood_still: Standstills | None = field(default_factory=Standstills)
    """None where a long turn could not be told from standing still, as the kernel counts no waiting."""
    window_s: float = 0.0
    drained: Drained | None = None
    """Of a consumer of a backlog."""
    deliveries: dict[int, Any] | None = None
    """Where consumers come or go: when each source delivered (`loadgen.membership.Deliveries`)."""


@dataclass(slots=True)
class Drained:
    """What a consumer saw of a backlog; moments are ns since the trial's begin, 0 where there was none.

    `opened_ns` is when it began to connect, `first_ns` and `last_ns` when its first and its last message came,
    `backlog_ns` when its last one of the backlog did, of which it received `backlog_msgs`. `firsts` has the first
    message of each source: (offset or None, producer, sequence number).
    """

    opened_ns: int = 0
    first_ns: int = 0
    last_ns: int = 0
    backlog_ns: int = 0
    backlog_msgs: int = 0
    firsts: dict[int, tuple[int | None, int, int]] = field(default_factory=dict)


class StoppedError(Exception):
    """The trial ends before it has begun: leave, there is nothing to report."""


class Clocked:
    """The moments of a trial for one agent, and by the second: what it counted, and its own cost."""

    def __init__(self, spec: AgentSpec, start_ns: int) -> None:
        self.start_ns = start_ns
        self.window_start_ns = start_ns + round(spec.warmup_s * SECOND_NS)
        self.window_end_ns = self.window_start_ns + round(spec.duration_s * SECOND_NS)
        self.seconds = max(1, math.ceil(min(spec.duration_s, SECONDS_KEPT)))
        self.counts: dict[str, array[int]] = {}
        self.cpu_at: list[tuple[float, float]] = []
        self.stood_still: Standstills | None = Standstills()
        self._turned_ns = 1 << 62  # when the loop turned last: before its first turn it stands nowhere
        self._spent_ns = 0
        self._next_spent_ns = 0
        self._edge_step_ns = SECOND_NS
        self._next_edge_ns = self.window_start_ns

    def tick(self, now_ns: int) -> None:
        """Note the CPU used at the first moment of each second of the window, and at the first after it.

        Of a window of hours every second note is dropped as often as there are too many. Turns that took long are
        noted, too.
        """
        if now_ns - self._turned_ns >= STOOD_STILL_NS:
            turn_ns = min(now_ns, self.window_end_ns) - max(self._turned_ns, self.window_start_ns)
            spent_ns = self._newly_spent_ns()
            if spent_ns is None:  # what nobody observed was no standstill
                self.stood_still = None
            elif self.stood_still is not None:
                self.stood_still.add(turn_ns, spent_ns)
        self._turned_ns = now_ns
        if now_ns >= self._next_spent_ns:
            self._newly_spent_ns()
            self._next_spent_ns = now_ns + SPENT_EVERY_NS
        if now_ns < self._next_edge_ns or self._next_edge_ns > self.window_end_ns:
            return
        self.cpu_at.append(((now_ns - self.window_start_ns) / SECOND_NS, time.process_time()))
        if len(self.cpu_at) > 2 * SECONDS_KEPT:
            del self.cpu_at[1::2]
            self._edge_step_ns *= 2
        passed = (now_ns - self.window_start_ns) // self._edge_step_ns
        following_ns = self.window_start_ns + (passed + 1) * self._edge_step_ns
        is_over = now_ns >= self.window_end_ns
        self._next_edge_ns = self.window_end_ns + 1 if is_over else min(following_ns, self.window_end_ns)

    def _newly_spent_ns(self) -> int | None:
        """What this thread spent on a CPU and waiting for one since it was asked last; None where no kernel tells."""
        text = read_text(SPENT)
        if not text:
            return None
        spent_ns, self._spent_ns = self._spent_ns, sum(map(int, text.split()[:2]))
        return self._spent_ns - spent_ns

    def close(self, now_ns: int) -> list[tuple[float, float]]:
        """All notes of CPU, with a last one: a trial that is cut short ends between two."""
        self.cpu_at.append(((now_ns - self.window_start_ns) / SECOND_NS, time.process_time()))
        return self.cpu_at

    def count(self, what: str, number: int, now_ns: int) -> None:
        """Add to the count of the second that this moment is in; outside the window nothing is counted."""
        if self.window_start_ns <= now_ns < self.window_end_ns:
            second = (now_ns - self.window_start_ns) // SECOND_NS
            self._of(what, second)[second] += number

    def count_each(self, what: str, amount: float, at_ns: Int64) -> None:
        """Add the same amount for each of many moments (int64[n])."""
        inside = (at_ns >= self.window_start_ns) & (at_ns < self.window_end_ns)
        seconds = (at_ns[inside] - self.window_start_ns) // SECOND_NS
        if not len(seconds):
            return
        first = int(seconds.min())
        counts = self._of(what, int(seconds.max()))
        for second, number in enumerate(np.bincount(seconds - first).tolist(), first):
            counts[second] += round(number * amount)

    def _of(self, what: str, second: int) -> array[int]:
        """The counts of all seconds until this one at least; of a window without an end they grow."""
        counts = self.counts.setdefault(what, array("q"))
        counts.extend([0] * (max(self.seconds, second + 1) - len(counts)))
        return counts


class Agent:
    """What both roles share: the board, the recorder, the report once a second."""

    def __init__(self, spec: AgentSpec, pipe: Connection) -> None:
        self.spec = spec
        self.pipe = pipe
        self.board = Board(spec.board, spec.rows)
        self.row = self.board.cells[spec.row]
        is_of_results = spec.role == "consumer" and spec.pattern.kind == "process"
        self.payloads = (Processed if is_of_results else Payloads)(
            spec.message, spec.seed, spec.token, producer=spec.index
        )
        self.result = Result(agent=spec.name, role=spec.role)
        self.series: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.client: object = None  # the driver's producer or consumer, once it is connected
        self._failed_requests = 0
        self._next_report_ns = 0
        self._reporting: Iterator[None] | None = None
        self._fleet = multiprocessing.parent_process()
        self._has_own_clock = False

    def begin(self, kinds: tuple[str, ...], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Say that this agent is ready, and wait for the fleet's start; raises StoppedError where that never comes.

        `meanwhile` is called again and again until then.
        """
        self.pipe.send(("ready", self.spec.name))
        while (start_ns := self.board.ordered(Cell.START_NS)) == 0:
            self.row[Cell.HEARTBEAT_NS] = time.monotonic_ns()
            self._leave_if_orphaned()
            if self.must_end(Cell.STOP_PRODUCING) or self.must_end(Cell.STOP_CONSUMING):
                raise StoppedError
            meanwhile()
            time.sleep(0.002)
        self._has_own_clock = self.board.ordered(Cell.AHEAD_NS) != 0
        self._follow_clock()
        self.clock = Clocked(self.spec, start_ns)
        if self.spec.target.settings.get("reconnect_every_s") is not None:
            kinds = (*kinds, "connect")
        self.recorder = Recorder(kinds, self.clock.window_start_ns)
        self._next_report_ns = start_ns + SECOND_NS + REPORT_NS + REPORT_STEP_NS * (self.spec.row % REPORT_STEPS)
        # Nothing in the loops makes reference cycles; a collection would only be a pause in the measurement.
        gc.collect()
        gc.disable()

    def must_end(self, cell: Cell) -> bool:
        """Whether all agents of a role are to stop (its cell of the fleet's row), or this one alone."""
        return bool(self.board.ordered(cell) or self.row[Cell.RETIRE])

    def heartbeat(self, now_ns: int) -> None:
        """Tell the fleet that the loop turns, and report once a second."""
        self.row[Cell.HEARTBEAT_NS] = now_ns
        self._follow_clock()
        self.clock.tick(now_ns)
        if self._reporting is None and now_ns >= self._next_report_ns:
            self._next_report_ns += SECOND_NS * (1 + (now_ns - self._next_report_ns) // SECOND_NS)
            self._reporting = self._report(now_ns)
            self._leave_if_orphaned()
        if self._reporting is not None and next(self._reporting, "sent"):
            self._reporting = None

    def _follow_clock(self) -> None:
        """Let stamps be told by the clock of all agents where this host's is another one."""
        if self._has_own_clock:
            self.payloads.ahead_ns = self.board.ordered(Cell.AHEAD_NS)

    def keep_books(self) -> None:
        """Record what has gathered since the last time; each role has its own way."""

    def hand_pages(self, report: Report) -> None:
        """Give away what is done with of the books; most have nothing."""

    def take_events(self) -> list[tuple[str, int, int, str]]:
        """What happened to this agent since the last report: times without a connection, of those that recover."""
        if not isinstance(self.client, Recovering):
            return []
        text = f"{self.spec.name} without a connection"
        return [("outage", began_ns, ended_ns, text) for began_ns, ended_ns in self.client.take_outages()]

    def _report(self, now_ns: int) -> Iterator[None]:
        """Send what was gained since the last report, a turn of the loop for each kind: no turn is to take long."""
        self.keep_books()
        if isinstance(self.client, Retrying):
            failed = self.client.failed_requests
            self.add("failed_requests", failed - self._failed_requests)
            self.row[Cell.FAILED_REQUESTS] = self._failed_requests = failed
        if isinstance(self.client, Reconnecting) and (connects := self.client.take_connects()):
            times = np.array(connects, np.int64)
            self.recorder.record("connect", times[:, 0], times[:, 1] - times[:, 0])
        series = {**self.series, "elapsed_s": (now_ns - self.clock.start_ns) / SECOND_NS}
        self.series.clear()
        errors, self.errors = self.errors, {}
        report = Report(self.spec.name, [], series, self.take_events(), errors)
        self.hand_pages(report)
        for deltas in self.recorder.cut():
            report.deltas += deltas
            yield
        self.pipe.send(("report", report))

    def complete_report(self) -> None:
        """Send what is left of a report at once: where nothing is paced, or nothing more will come."""
        deque(self._reporting or (), maxlen=0)
        self._reporting = None

    def finish(self) -> None:
        """The last report and the result."""
        self.complete_report()
        self._reporting = self._report(time.monotonic_ns())
        self.complete_report()
        self.result.cpu_at = self.clock.close(time.monotonic_ns())
        self.result.stood_still = self.clock.stood_still
        self.result.per_second = {what: list(counts) for what, counts in self.clock.counts.items()}
        self.pipe.send(("result", self.result))

    def add(self, what: str, number: int) -> None:
        """Add to this second's series."""
        self.series[what] = self.series.get(what, 0) + number

    def _leave_if_orphaned(self) -> None:
        """End at once where the fleet was killed: load must never go on by itself."""
        if self._fleet is not None and not self._fleet.is_alive():
            os._exit(1)
