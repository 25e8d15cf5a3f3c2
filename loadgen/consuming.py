"""The consumer's loop: receive, stamp, acknowledge; check every byte and keep the books in bulk.

A batch's time is taken by the driver when it is parsed. Small batches are copied and checked some hundreds at a time,
since a check costs as much for one message as for fifty; large ones are checked where they lie.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from loadgen.agent import (
    BOOK_MSGS,
    BOOK_NS,
    CLOSED_LOOP_NAP_S,
    NAP_BELOW_BYTES,
    NAP_FROM_IN_FLIGHT_MSGS,
    NAP_SHARE,
    POLL_S,
    SECOND_NS,
    Agent,
    Drained,
)
from loadgen.board import Cell
from loadgen.driver import Attending, Crashing, Failing, Rebalancing, redelivers, start_of
from loadgen.drivers import load_driver
from loadgen.ledger import ReceivedBook
from loadgen.membership import Deliveries
from loadgen.think import Worker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.agent import BookName, Report
    from loadgen.driver import Bool, Consumer, Int64, Received, Target, UInt8
    from loadgen.payload import Parsed

LARGE_MSGS = 128  # from here on, a batch is checked at once
THINK_SEED = 0x7468696E6B
DAMAGED = "a message arrived changed"
RATED_S = 0.1  # how often a closed loop's consumer looks how long it may nap


@dataclass(slots=True)
class Kept:
    """A small batch copied out of the driver's buffer; `starts` count from the beginning of `data`.

    `at_ns` is one moment for all of it, or one for each where a worker takes them in turn.
    """

    data: UInt8
    starts: Int64
    sizes: Int64 | int
    source: int
    at_ns: Int64 | int
    redelivered: Bool | None


class ConsumerAgent(Agent):
    """Receives, checks every byte, records when it was read, and acknowledges."""

    KIND: ClassVar[str] = "e2e"
    """What is recorded from intended to received; from sent to received it is `<kind>_service`."""
    COUNTED: ClassVar[tuple[str, Cell]] = ("received", Cell.RECEIVED)
    """What it calls that which it counts, and where on the board."""
    BOOK: ClassVar[BookName] = "received_book"
    """Which of a result's books its own is."""

    def connect(self, target: Target) -> Consumer:
        """The driver's consumer."""
        return load_driver(self.spec.driver).consumer(target, self.spec.index, self.spec.count)

    def run(self) -> None:
        """Connect, wait for the start, and receive until the fleet says that it is over."""
        spec = self.spec
        self.consumer: Consumer | None = None
        if not spec.backlog.msgs and not self._joins_late:
            self.consumer = self.client = self.connect(spec.target)
        self.drained = Drained() if spec.backlog.msgs else None
        self.positions: dict[int, int | None] = {}
        self.row[Cell.SUBSCRIBER] = spec.target.subscriber
        self.book = ReceivedBook(str(spec.target.subscriber))
        self.received = self.again = 0
        self.open_loop = spec.rate.is_open_loop
        self.in_flight_msgs = _in_flight_msgs(spec.target.settings)
        self.priorities: int = spec.target.settings.get("priorities") or 0
        self.has_redeliveries = redelivers(spec.target.settings)
        think = spec.think.of(spec.index, spec.count)
        self.result.subscriber, self.result.think_ms = spec.target.subscriber, think.mean_ms
        seed = [spec.seed, THINK_SEED, spec.target.subscriber, spec.index]
        self.worker = Worker(think, seed) if think.mean_ms else None
        naps = self.may_nap and self.in_flight_msgs >= NAP_FROM_IN_FLIGHT_MSGS and self.worker is None
        naps = naps and self.drained is None
        self.nap_below_msgs = max(1, int(NAP_BELOW_BYTES / self.payloads.mean_size_bytes)) if naps else 0
        self.nap_s = 0.0
        self._kept: list[Kept] = []
        self._kept_msgs = 0
        self._spans: list[tuple[int, int]] = []
        self._booked_ns = 0
        self._rated_ns, self._rated = 0, 0
        self._crashes = 0
        self._passed: dict[int, int] = {}  # of each source with positions, the one behind the last that was taken …
        self._again_below: dict[int, int] = {}  # … before the last crash: what lies below comes again
        try:
            service = (f"{self.KIND}_service", "resolution")
            by_priority = ("e2e_high_priority", "e2e_low_priority") if self.priorities else ()
            self.begin((self.KIND, *service, *by_priority) if self.open_loop else service)
            watched_ms = spec.membership.watched_ms()
            self.deliveries = None if watched_ms is None else Deliveries(self.clock.window_start_ns, watched_ms)
            if (consumer := self.consumer or self._connect()) is not None:
                self._receive_all(consumer)
            self.keep_books()
            self._leave_early()
            self.hand_in()
            if isinstance(self.client, Failing):
                self.result.failed = self.client.failed
            self.result.drained = self.drained
            self.result.deliveries = None if self.deliveries is None else self.deliveries.by_source
            self.finish()
        finally:
            if self.consumer is not None:
                self.consumer.close()

    @property
    def _joins_late(self) -> bool:
        return self.spec.comes_and_goes and self.spec.membership.joins_at_s is not None

    def _moment_ns(self, at_s: float | None) -> int:
        """A moment of the window in monotonic ns; without one, the end of time."""
        return 1 << 62 if at_s is None else self.clock.window_start_ns + round(at_s * SECOND_NS)

    def _connect(self) -> Consumer | None:
        """Connect when it is time: with a backlog when the trial begins, else when this one joins; None if never."""
        spec = self.spec
        due_ns = self._moment_ns(spec.membership.joins_at_s) if self._joins_late else self.clock.start_ns
        while (now_ns := time.monotonic_ns()) < due_ns:
            if self.must_end(Cell.STOP_CONSUMING):
                return None
            self.heartbeat(now_ns)
            time.sleep(min(POLL_S, (due_ns - now_ns) / SECOND_NS))
        told = json.loads(self.board.note() or "null")
        target = spec.target if told is None else replace(spec.target, start=start_of(told))
        if self.drained is not None:
            self.drained.opened_ns = now_ns - self.clock.start_ns
        self.consumer = self.client = self.connect(target)
        return self.consumer

    def _leave_early(self) -> None:
        """Of a consumer that left in mid-trial: give up its share, and wait for the end."""
        if self.must_end(Cell.STOP_CONSUMING):
            return
        if self.consumer is not None:
            self.consumer.close()
            self.consumer = None
        while not self.must_end(Cell.STOP_CONSUMING):
            self.heartbeat(time.monotonic_ns())
            time.sleep(POLL_S)

    @property
    def may_nap(self) -> bool:
        """Whether it may let messages wait a little where no latency is measured."""
        return not self.open_loop

    def hand_in(self) -> None:
        """Put the book into the result."""
        setattr(self.result, self.BOOK, self.book)

    def hand_pages(self, report: Report) -> None:
        """What it shares with others is complete only where it is laid together; so nobody's book grows for hours."""
        setattr(report, self.BOOK, self.book.take_passed())

    def processed(self, batch: Received, begin: int, end: int) -> None:
        """Messages begin … end of a batch have been worked on, and are settled next; a consumer is done with them."""

    def take_events(self) -> list[tuple[str, int, int, str]]:
        """The group's rebalances, which may be what made a second slow."""
        events = super().take_events()
        if not isinstance(self.client, Rebalancing):
            return events
        text = f"{self.spec.name} without partitions"
        return [*events, *(("rebalance", began, ended, text) for began, ended in self.client.take_rebalances())]

    def _receive_all(self, consumer: Consumer) -> None:
        leaves_ns = self._moment_ns(self.spec.membership.leaves_at_s if self.spec.comes_and_goes else None)
        while not self.must_end(Cell.STOP_CONSUMING) and time.monotonic_ns() < leaves_ns:
            before = self.received
            batches = consumer.receive(POLL_S)
            crash = self.board.ordered(Cell.CRASH_CONSUMERS)
            if crash != self._crashes and batches:
                self._crashes = crash
                consumer = self._succeed(consumer, () if crash & 1 else batches)
                continue
            if self.worker is not None:
                if not self._work(self.worker, consumer, batches):
                    return
            else:
                for batch in batches:
                    self.take(batch)
                    self.processed(batch, 0, len(batch.starts))
            consumer.settle()
            self._show_counts()
            if self.received - before < self.nap_below_msgs and not consumer.has_waiting:
                time.sleep(self.nap_s)
            now = time.monotonic_ns()
            if not self.open_loop:
                self._set_nap(now)
            self._look_up(now)

    def _succeed(self, consumer: Consumer, done: Sequence[Received]) -> Consumer:
        """Crash with these batches worked on and nothing settled; the consumer that takes this one's place."""
        assert isinstance(consumer, Crashing), "other drivers are refused"
        for batch in done:
            self.take(batch)
        self.keep_books()
        self._show_counts()
        consumer.crash()
        self.row[Cell.CRASHED_CONSUMERS] += 1
        self._again_below = dict(self._passed)
        self.consumer = self.client = self.connect(self.spec.target)
        return self.consumer

    def _look_up(self, now_ns: int) -> None:
        """Keep the books where enough has gathered, and tell the fleet that the loop turns."""
        if self._kept_msgs >= BOOK_MSGS or (self._kept and now_ns - self._booked_ns > BOOK_NS):
            self.keep_books()
            self._booked_ns = now_ns
        self.heartbeat(now_ns)

    def _work(self, worker: Worker, consumer: Consumer, batches: Sequence[Received]) -> bool:
        """Think over every message in turn: received as its turn comes, settled when it is done; False: told to end.

        Of a consumer that is told to end, the message under way is finished and the rest stays unsettled.
        """
        attend = consumer.attend if isinstance(consumer, Attending) else None
        for batch in batches:
            begins, ends = worker.take(len(batch.starts), batch.parsed_ns)
            self._spans.append((batch.parsed_ns, batch.parsed_ns - batch.read_ns))
            begun = done = 0
            while done < len(ends):
                now = time.monotonic_ns()
                must_end = self.must_end(Cell.STOP_CONSUMING)
                turn = begun if must_end else int(np.searchsorted(begins, now, side="right"))
                if turn > begun:
                    self._keep(batch, begun, turn, begins[begun:turn])
                    self.clock.count("busy_ns", int(ends[turn - 1] - begins[begun]), int(begins[begun]))
                    self._show_counts()
                    begun = turn
                over = min(begun, int(np.searchsorted(ends, now, side="right")))
                if over > done:
                    self.processed(batch, done, over)
                if over > done and len(batches) == 1:
                    consumer.settle(over - done)
                if attend is not None:
                    attend()
                done = over
                self._look_up(now)
                if must_end and done == begun < len(ends):
                    return False
                left_ns = int(ends[min(done, len(ends) - 1)]) - time.monotonic_ns()
                time.sleep(max(0.0, min(POLL_S, left_ns / SECOND_NS)))
        return True

    def _set_nap(self, now_ns: int) -> None:
        """Ten times a second: a nap that leaves most of what may be in flight on its way."""
        passed_s = (now_ns - self._rated_ns) / SECOND_NS
        if passed_s < RATED_S:
            return
        rate = (self.received - self._rated) / passed_s
        self._rated_ns, self._rated = now_ns, self.received
        self.nap_s = min(CLOSED_LOOP_NAP_S, NAP_SHARE * self.in_flight_msgs / rate) if rate else 0.0

    def take(self, batch: Received) -> None:
        """Count a batch; check it now, or keep a copy for the next bulk."""
        number = len(batch.starts)
        self._spans.append((batch.parsed_ns, batch.parsed_ns - batch.read_ns))
        if self.spec.is_hurt and batch.first_position is not None:
            self._note_position(batch, batch.first_position)
        if self.drained is not None and batch.source not in self.positions:
            self.positions[batch.source] = batch.first_position
        if number < LARGE_MSGS:
            self._keep(batch, 0, number, batch.parsed_ns)
            return
        self._count(number, batch.redelivered)
        self._show_counts()  # before what takes longer: the gauge of what is under way is read meanwhile
        self.keep_books()  # in the order of arrival
        self._check(batch.buffer, batch.starts, batch.sizes, batch.source, batch.parsed_ns, batch.redelivered)

    def _note_position(self, batch: Received, first: int) -> None:
        """What was taken before a crash is marked where it comes again: a log's broker marks nothing."""
        again_below = self._again_below.get(batch.source, 0)
        if batch.redelivered is None and first < again_below:
            batch.redelivered = np.arange(first, first + len(batch.starts)) < again_below
        self._passed[batch.source] = max(self._passed.get(batch.source, 0), first + len(batch.starts))

    def _keep(self, batch: Received, begin: int, end: int, at_ns: Int64 | int) -> None:
        """Count messages begin … end of a batch, and keep a copy of them for the next bulk."""
        starts = batch.starts[begin:end]
        sizes = batch.sizes if isinstance(batch.sizes, int) else batch.sizes[begin:end]
        redelivered = None if batch.redelivered is None else batch.redelivered[begin:end]
        first = int(starts[0])
        last = int(starts[-1]) + (sizes if isinstance(sizes, int) else int(sizes[-1]))
        copied = batch.buffer[first:last].copy()
        self._kept.append(Kept(copied, starts - first, sizes, batch.source, at_ns, redelivered))
        self._kept_msgs += end - begin
        self._count(end - begin, redelivered)

    def _count(self, number: int, redelivered: Bool | None) -> None:
        """Count what came; apart, what came again because the settings say so: the fleet awaits each message once."""
        self.received += number
        if redelivered is not None and self.has_redeliveries:
            self.again += int(np.count_nonzero(redelivered))

    def _show_counts(self) -> None:
        """Tell the fleet."""
        self.row[self.COUNTED[1]] = self.received - self.again
        self.row[Cell.AGAIN] = self.again

    def keep_books(self) -> None:
        """Check and record the small batches that have gathered, as one batch for each source."""
        if self._spans:
            spans = np.array(self._spans, np.int64)
            self.recorder.record("resolution", spans[:, 0], spans[:, 1])
            self._spans.clear()
        if not self._kept:
            return
        kept, self._kept, self._kept_msgs = self._kept, [], 0
        for source in dict.fromkeys(each.source for each in kept):
            self._check_together([each for each in kept if each.source == source])

    def _check_together(self, kept: list[Kept]) -> None:
        data = np.concatenate([each.data for each in kept])
        counts = [len(each.starts) for each in kept]
        bases = np.cumsum([0] + [len(each.data) for each in kept[:-1]])
        starts = np.concatenate([each.starts for each in kept]) + np.repeat(bases, counts)
        sizes: Int64 | int = kept[0].sizes
        if not isinstance(sizes, int) or any(each.sizes != sizes for each in kept):
            sizes = np.concatenate([np.broadcast_to(each.sizes, len(each.starts)) for each in kept])
        redelivered = None
        if any(each.redelivered is not None for each in kept):
            redelivered = np.concatenate(
                [np.zeros(len(e.starts), np.bool_) if e.redelivered is None else e.redelivered for e in kept]
            )
        at_ns: Int64
        if self.worker is None:
            at_ns = np.repeat([each.at_ns for each in kept], counts)
        else:
            at_ns = np.concatenate([np.broadcast_to(each.at_ns, len(each.starts)) for each in kept])
        self._check(data, starts, sizes, kept[0].source, at_ns, redelivered)

    def _check(
        self,
        buffer: UInt8,
        starts: Int64,
        sizes: Int64 | int,
        source: int,
        at_ns: Int64 | int,
        redelivered: Bool | None,
    ) -> None:
        """Compare every byte with what was sent, enter the ledger, record the latencies."""
        parsed = self.payloads.parse(buffer, starts, sizes)
        self.book.receive(parsed, source, redelivered)
        number = len(starts)
        self.add(self.COUNTED[0], number)
        size_bytes = sizes * number if isinstance(sizes, int) else int(sizes.sum())
        self.add(f"{self.COUNTED[0]}_bytes", size_bytes)
        if self.deliveries is not None:
            self.deliveries.note(source, at_ns)
        intended, sent = parsed.intended_ns, parsed.sent_ns
        if not parsed.intact.all():
            damaged = number - int(np.count_nonzero(parsed.intact))
            self.errors[DAMAGED] = self.errors.get(DAMAGED, 0) + damaged
            self.add("errors", damaged)
            self.row[Cell.ERRORS] += damaged
            intended, sent = intended[parsed.intact], sent[parsed.intact]
            at_ns = at_ns if isinstance(at_ns, int) else at_ns[parsed.intact]
        self._count_in_window(len(intended), size_bytes, at_ns)
        if self.drained is not None and len(intended):
            self._note_drained(self.drained, parsed, source, intended, at_ns)
            # How long a message of the backlog lay there is no response time: nobody was to receive it.
            is_new = intended >= self.clock.start_ns
            at_ns = at_ns if isinstance(at_ns, int) else at_ns[is_new]
            intended, sent = intended[is_new], sent[is_new]
        if not len(intended):
            return
        if self.open_loop:
            self.recorder.record(self.KIND, intended, at_ns - intended)
            self.recorder.record(f"{self.KIND}_service", intended, at_ns - sent)
            if self.priorities:
                self._record_by_priority(parsed.seq[parsed.intact] % self.priorities, intended, at_ns)
        else:
            self.recorder.record(f"{self.KIND}_service", sent, at_ns - sent)

    def _note_drained(self, drained: Drained, parsed: Parsed, source: int, intended: Int64, at_ns: Int64 | int) -> None:
        """Note the moments of a drain, and the first message of each source."""
        came_ns = np.broadcast_to(at_ns, len(intended)) - self.clock.start_ns
        if source not in drained.firsts:
            first = int(np.argmax(parsed.intact))
            place = (int(parsed.producer[first]), int(parsed.seq[first]))
            drained.firsts[source] = (self.positions.get(source), *place)
        drained.first_ns = drained.first_ns or int(came_ns[0])
        drained.last_ns = int(came_ns[-1])
        of_backlog = np.flatnonzero(intended < self.clock.start_ns)
        if len(of_backlog):
            drained.backlog_msgs += len(of_backlog)
            drained.backlog_ns = int(came_ns[of_backlog[-1]])

    def _record_by_priority(self, priority: Int64, intended: Int64, at_ns: Int64 | int) -> None:
        """The response times of the messages of the highest and of the lowest priority, apart."""
        for kind, wanted in (("e2e_high_priority", self.priorities - 1), ("e2e_low_priority", 0)):
            theirs = priority == wanted
            self.recorder.record(kind, intended[theirs], (at_ns - intended)[theirs])

    def _count_in_window(self, number: int, size_bytes: int, at_ns: Int64 | int) -> None:
        name = self.COUNTED[0]
        if isinstance(at_ns, int):
            self.clock.count(name, number, at_ns)
            self.clock.count(f"{name}_bytes", size_bytes, at_ns)
        elif number:
            self.clock.count_each(name, 1, at_ns)
            self.clock.count_each(f"{name}_bytes", size_bytes / number, at_ns)


def _in_flight_msgs(settings: Mapping[str, Any]) -> float:
    """How many messages may be under way to one consumer; unlimited in Kafka, whose acks do not wait for consumers.

    With a prefetch of 1 a nap would be the rate, and with few messages in flight confirms wait for acknowledgements.
    """
    limits = (settings.get("prefetch") or None, settings.get("confirm_window"))
    return min((float(limit) for limit in limits if limit is not None), default=math.inf)
