"""One process of a trial: a producer or a consumer, from connecting to its last report.

An agent runs a loop of its own, never waits for the fleet while it is measured, and reports once a second through a
pipe: what its histograms and counters gained. What is counted when: latencies belong to the second in which a message
was *intended* (so that warm-up is excluded by intended time), rates to the second in which a thing *happened*.
"""

from __future__ import annotations

import gc
import os
import signal
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loadgen.board import Board, Cell
from loadgen.drivers import load_driver
from loadgen.errors import LoadgenError
from loadgen.ledger import ReceivedBook, SentBook
from loadgen.pacer import make_pacer
from loadgen.payload import Payloads
from loadgen.recorder import Recorder

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from loadgen.driver import Consumer, Int64, Producer, Received, Settled, Target
    from loadgen.recorder import IntervalDelta
    from loadgen.scenario import Message, Rate

Role = Literal["producer", "consumer"]
SECOND_NS = 1_000_000_000
POLL_S = 0.05  # how long an agent with nothing to do waits before it looks at the board again
SEND_BYTES = {"rabbitmq": 16 << 10, "kafka": 256 << 10}  # of payload handed over in one call of a closed loop
FLUSH_S = 30.0  # how long confirmations may be awaited after the last message
LATE_S = 1.0  # how long an open loop may go on sending what was due, once its time is over
FORGIVE_S = 0.5  # without confirms: messages unseen for this long count as lost, so that the window opens again


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
    cpu_total_s: float = 0.0
    rss_bytes: int = 0
    blocked_share: float = 0.0
    window_s: float = 0.0


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
        """Say that this agent is ready, and wait for the fleet's start."""
        self.pipe.send(("ready", self.spec.name))
        while (start_ns := self.board.ordered(Cell.START_NS)) == 0:
            self.row[Cell.HEARTBEAT_NS] = time.monotonic_ns()
            self._leave_if_orphaned()
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

    def report(self, now_ns: int) -> None:
        """Send what was gained since the last report."""
        series = {**self.series, "elapsed_s": (now_ns - self.clock.start_ns) / SECOND_NS}
        self.series.clear()
        self.pipe.send(("report", Report(self.spec.name, self.recorder.take(), series)))

    def finish(self) -> None:
        """The last report and the result."""
        self.report(time.monotonic_ns())
        self.result.cpu_s = self.clock.cpu_s
        self.result.cpu_total_s = time.process_time()
        self.result.in_window = self.clock.counts
        self.pipe.send(("result", self.result))

    def add(self, what: str, number: int) -> None:
        """Add to this second's series."""
        self.series[what] = self.series.get(what, 0) + number

    def _leave_if_orphaned(self) -> None:
        """End at once where the fleet was killed: load must never go on by itself."""
        if os.getppid() != self._parent:
            os._exit(1)


class ProducerAgent(Agent):
    """Sends what the pacer says is due, and observes every confirmation as it comes."""

    def __init__(self, spec: AgentSpec, pipe: Connection) -> None:
        super().__init__(spec, pipe)
        self.pacer = make_pacer(spec.rate, spec.index, spec.count, spec.warmup_s + spec.duration_s, spec.seed)
        self.open_loop = spec.rate.is_open_loop
        self.sent = 0
        self.settled = 0
        settings = spec.target.settings
        self.confirms = settings.get("confirms", settings.get("acks") != "0")
        self.book = SentBook(spec.index, confirms=self.confirms)
        mean_bytes = self.payloads.mean_size_bytes
        self.window_msgs = int(settings.get("confirm_window") or settings.get("buffer_memory", 32 << 20) / mean_bytes)
        self.send_msgs = max(1, int(SEND_BYTES[spec.target.endpoint.broker] / mean_bytes))
        if not self.open_loop:
            self.send_msgs = min(self.send_msgs, max(1, self.window_msgs // 4))
        ring_msgs = 1 << (4 * (self.window_msgs + self.send_msgs)).bit_length()
        self.mask = ring_msgs - 1
        self.sent_ns = np.zeros(ring_msgs, np.int64)
        self.intended_ns = self.sent_ns if not self.open_loop else np.zeros(ring_msgs, np.int64)
        self.ring_seq = np.full(ring_msgs, -1, np.int64)
        self.forgiven = 0
        self.last_progress = (0, 0)

    def run(self) -> None:
        """Connect, wait for the start, send until the trial's time is over, and wait for the last confirmation."""
        driver = load_driver(self.spec.driver)
        producer = driver.producer(self.spec.target, self.payloads)
        try:
            kinds = ("ack", "ack_service", "schedule_lag") if self.open_loop else ("ack_service",)
            self.begin(kinds)
            self._send_all(producer)
            self.observe(producer.flush(FLUSH_S))
            self.row[Cell.FINISHED_PRODUCING] = 1
            self.result.sent_book = self.book
            self.finish()
        finally:
            producer.close()

    def _send_all(self, producer: Producer) -> None:
        end_ns, start_ns = self.clock.window_end_ns, self.clock.start_ns
        duration_ns = end_ns - start_ns
        while time.monotonic_ns() < start_ns:
            self.row[Cell.HEARTBEAT_NS] = time.monotonic_ns()
            time.sleep(max(0.0, min(0.05, (start_ns - time.monotonic_ns()) / SECOND_NS)))
        blocked_ns = 0
        now = time.monotonic_ns()
        while not self.board.ordered(Cell.STOP_PRODUCING):
            if self.open_loop:
                # Every message whose time lies before the end is sent, however late; none after it.
                due = self.pacer.due(min(now - start_ns, duration_ns - 1))
                over = now >= end_ns and (self.sent >= due or now >= end_ns + LATE_S * SECOND_NS)
            else:
                due = self.sent + self._allowed(now)
                over = now >= end_ns
            self.result.due = due if self.open_loop else self.sent
            if over:
                break
            room = producer.room_msgs
            number = min(due - self.sent, room, self.send_msgs)
            if number > 0 and (self.open_loop or number >= min(self.send_msgs, self.window_msgs)):
                self.hand_over(producer, number)
                self.observe(producer.poll(0))
            else:
                self.observe(producer.poll(self._wait_s(due, now)))
                if due > self.sent:  # something was due, and the driver had no room for it
                    blocked_ns += time.monotonic_ns() - now
            now = time.monotonic_ns()
            self.heartbeat(now)
        self.clock.tick(now)
        self.result.blocked_share = blocked_ns / max(1, duration_ns)

    def _wait_s(self, due: int, now_ns: int) -> float:
        """How long to wait for confirmations: until the next message is due, or a moment where room is what lacks."""
        if not self.open_loop or due > self.sent:
            return POLL_S if self.confirms else 0.0005
        next_ns = self.clock.start_ns + self.pacer.next_due_ns(self.sent)
        return min(POLL_S, max(0.0, (min(next_ns, self.clock.window_end_ns) - now_ns) / SECOND_NS))

    def _allowed(self, now_ns: int) -> int:
        """How many more a closed loop may send; the driver bounds the unconfirmed, here the unseen are bounded."""
        if self.confirms or self.spec.consumers == 0:
            return self.send_msgs
        sent, received = self.board.total(Cell.SENT), self.board.total(Cell.RECEIVED)
        if received != self.last_progress[0]:
            self.last_progress = (received, now_ns)
        unseen = sent - received - self.forgiven
        window = self.window_msgs * self.spec.count
        if unseen + self.send_msgs > window and now_ns - self.last_progress[1] > FORGIVE_S * SECOND_NS:
            self.forgiven += unseen
            return self.send_msgs
        return max(0, (window - unseen) // self.spec.count)

    def _intended(self, first: int, number: int) -> Int64:
        offsets = self.pacer.intended(first, number)
        assert offsets is not None, "only an open loop has intended times"
        return offsets + self.clock.start_ns

    def hand_over(self, producer: Producer, number: int) -> None:
        """Send `number` messages now, remembering when each was intended and sent."""
        first = self.sent
        if self.open_loop:
            intended = self._intended(first, number)
            now = time.monotonic_ns()
            self.recorder.record("schedule_lag", intended, now - intended)
        else:
            now = time.monotonic_ns()
            intended = np.full(number, now)
        producer.send(first, intended, now)
        begin = first & self.mask
        if begin + number <= self.mask + 1:
            where: slice | Int64 = slice(begin, begin + number)
        else:
            where = np.arange(first, first + number) & self.mask
        self.sent_ns[where] = now
        if self.open_loop:
            self.intended_ns[where] = intended
        self.ring_seq[where] = np.arange(first, first + number)
        self.sent += number
        self.book.sent(number)
        self.row[Cell.SENT] = self.sent
        self.clock.count("sent", number, now)
        self.add("sent", number)

    def observe(self, settled: list[Settled]) -> None:
        """Record what the broker said."""
        for each in settled:
            number = len(each.seqs)
            self.settled += number
            if each.error is not None:
                self.book.failed(each.seqs, each.error)
                self.add("errors", number)
                continue
            self.book.confirmed(each.seqs)
            self.clock.count("acked", number, each.at_ns)
            self.add("acked", number)
            slots = each.seqs & self.mask
            assert (self.ring_seq[slots] == each.seqs).all(), "a confirmation came for a message long overwritten"
            sent = self.sent_ns[slots]
            if self.open_loop:
                intended = self.intended_ns[slots]
                self.recorder.record("ack", intended, each.at_ns - intended)
                self.recorder.record("ack_service", intended, each.at_ns - sent)
            else:
                self.recorder.record("ack_service", sent, each.at_ns - sent)
        if settled:
            self.row[Cell.SETTLED] = self.settled


class ConsumerAgent(Agent):
    """Receives, checks every byte, records when it was read, and acknowledges after that work is done."""

    def run(self) -> None:
        """Connect, wait for the start, and receive until the fleet says that it is over."""
        spec = self.spec
        consumer = load_driver(spec.driver).consumer(spec.target, spec.index, spec.count)
        self.book = ReceivedBook()
        self.received = 0
        self.open_loop = spec.rate.is_open_loop
        try:
            kinds = ("e2e", "e2e_service", "resolution") if self.open_loop else ("e2e_service", "resolution")
            self.begin(kinds)
            self._receive_all(consumer)
            self.result.received_book = self.book
            self.finish()
        finally:
            consumer.close()

    def _receive_all(self, consumer: Consumer) -> None:
        while not self.board.ordered(Cell.STOP_CONSUMING):
            for batch in consumer.receive(POLL_S):
                self.process(batch)
            consumer.settle()
            self.row[Cell.RECEIVED] = self.received
            self.heartbeat(time.monotonic_ns())

    def process(self, batch: Received) -> None:
        """Check and record one batch."""
        parsed = self.payloads.parse(batch.buffer, batch.starts, batch.sizes)
        self.book.receive(parsed, batch.source, batch.redelivered)
        number = len(batch.starts)
        self.received += number
        self.add("received", number)
        at_ns = batch.parsed_ns
        intended, sent = parsed.intended_ns, parsed.sent_ns
        intact = number
        if not parsed.intact.all():
            intended, sent = intended[parsed.intact], sent[parsed.intact]
            intact = len(intended)
        self.clock.count("received", intact, at_ns)
        size_bytes = batch.sizes * number if isinstance(batch.sizes, int) else int(batch.sizes.sum())
        self.clock.count("received_bytes", size_bytes, at_ns)
        self.add("received_bytes", size_bytes)
        if intact == 0:
            return
        if self.open_loop:
            self.recorder.record("e2e", intended, at_ns - intended)
            self.recorder.record("e2e_service", intended, at_ns - sent)
        else:
            self.recorder.record("e2e_service", sent, at_ns - sent)
        self.recorder.record("resolution", at_ns, np.array([at_ns - batch.read_ns]))


def main(spec: AgentSpec, pipe: Connection) -> None:
    """The spawned process: run the role, and tell the fleet whatever goes wrong."""
    # Ctrl-C reaches the whole process group; the fleet alone decides how a trial ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if spec.cpus:
        os.sched_setaffinity(0, spec.cpus)
    try:
        (ProducerAgent if spec.role == "producer" else ConsumerAgent)(spec, pipe).run()
    except LoadgenError as error:
        pipe.send(("error", (spec.name, str(error), type(error), traceback.format_exc())))
    except BaseException as error:  # noqa: BLE001 - a dead agent fails the trial, with its traceback
        pipe.send(("error", (spec.name, f"{type(error).__name__}: {error}", None, traceback.format_exc())))
    finally:
        pipe.close()
