"""The producer's loop: send what is due, observe every confirmation as it comes, keep the books in bulk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from loadgen.agent import BOOK_MSGS, BOOK_NS, POLL_S, SECOND_NS, Agent, AgentSpec
from loadgen.board import Cell
from loadgen.driver import Crashing, Resending, confirms
from loadgen.drivers import load_driver
from loadgen.ledger import SentBook
from loadgen.pacer import Grouping, make_pacer
from loadgen.shares import AHEAD_MS, MS_NS, Changing, Share
from loadgen.writing import Writing

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from loadgen.agent import Report
    from loadgen.driver import Int64, Producer, Settled
    from loadgen.pacer import Pacer

FLUSH_S = 30.0  # how long confirmations may be awaited after the last message …
FLUSH_STOPPED_S = 5.0  # … and where the trial is ended early
FLUSH_SLICE_S = 1.0  # after so long the fleet hears that the loop still turns
HANDOVER_S = 3.0  # how long a producer that is to leave waits until others have its share
LATE_S = 1.0  # how long an open loop may go on sending what was due, once its time is over
LATE_NS = int(LATE_S * SECOND_NS)
UNSENT_MSGS = 1 << 16  # so many given up at the end are recorded at once
FORGIVE_S = 3.0  # without confirms: what nobody has seen for so long counts as lost, so that the window opens again
UNCONFIRMED_POLL_S = 0.0005  # how often a full window without confirms looks at what consumers have received
WORK_MSGS = 1_000  # in a closed loop whose consumers work on each message, so many wait for them: more only take longer
WORK_POLL_S = 0.005
EARLY_NS, EARLY_SHARE = 300_000, 0.1
"""How long before a message is due an open loop stops sleeping: a virtual machine wakes up 0.2 ms late, and all of that
would be in the response time. At most a tenth of the gap before it, so that no more of a core goes into waiting."""
CLOSED_KINDS = frozenset(("ack_service", "rtt_service", "resolution"))


class ProducerAgent(Agent):
    """Sends what the pacer says is due, and observes every confirmation as it comes."""

    KINDS: ClassVar[tuple[str, ...]] = ("ack", "ack_service", "schedule_lag", "e2e")
    """What is recorded in an open loop; of a closed one only what is named service."""
    END_TO_END: ClassVar[str] = "e2e"

    def __init__(self, spec: AgentSpec, pipe: Connection) -> None:
        super().__init__(spec, pipe)
        self.open_loop = spec.rate.is_open_loop
        self.ramp_s = spec.warmup_s + spec.duration_s if spec.ramp_s is None else spec.ramp_s
        self.shared = Changing() if spec.shared and self.open_loop else None
        self.pacer: Pacer = self.shared or make_pacer(spec.rate, spec.index, spec.count, self.ramp_s, spec.seed)
        self.grouping = Grouping(self.pacer, spec.index, spec.count) if self.open_loop else None
        self.orders_taken = 0
        self.retired_ns = 0
        self._crashes = 0
        self._late_orders: list[tuple[str, int, int, str]] = []
        self.sent = 0
        self.base = 0  # how many of them were written before the trial began: a backlog
        settings = spec.target.settings
        self.confirms = confirms(settings)
        self.book = SentBook(spec.index, confirms=self.confirms)
        mean_bytes = self.payloads.mean_size_bytes
        self.window_msgs = int(settings.get("confirm_window") or settings.get("buffer_memory", 32 << 20) / mean_bytes)
        transaction_msgs = settings.get("transaction_msgs") or 0  # of which none is confirmed before all are
        self.window_msgs = max(1, self.window_msgs, transaction_msgs)
        self.takes_parts = self.open_loop or bool(transaction_msgs)
        self.awaits_work = spec.think.mean_ms > 0 and not self.open_loop
        if self.awaits_work and settings.get("transaction_ms") is None:
            self.window_msgs = min(self.window_msgs, max(1, WORK_MSGS // spec.count, 2 * transaction_msgs))
        self.driver = load_driver(spec.driver)
        self.send_msgs = max(1, int(self.driver.send_bytes / mean_bytes))
        if not self.open_loop:
            self.send_msgs = min(self.send_msgs, max(1, self.window_msgs // 4))
        # Up to BOOK_MSGS confirmations wait to be booked: with a window of one, those are what the ring must hold.
        ring_msgs = 1 << (4 * (self.window_msgs + self.send_msgs + BOOK_MSGS)).bit_length()
        self.mask = ring_msgs - 1
        self.sent_ns = np.zeros(ring_msgs, np.int64)
        self.intended_ns = self.sent_ns if not self.open_loop else np.zeros(ring_msgs, np.int64)
        self.forgiven = 0
        self.room_seen = 1
        self.last_progress = (0, 0)
        self._unbooked: list[Settled] = []
        self._unbooked_msgs = 0
        self._lags: list[tuple[Int64, int]] = []
        self.booked_sent = 0
        self._booked_ns = 0

    def run(self) -> None:
        """Connect, wait for the start, send until the trial's time is over, and wait for the last confirmation."""
        producer = self.client = self.connect()
        try:
            kinds = self.KINDS if self.open_loop else tuple(kind for kind in self.KINDS if kind in CLOSED_KINDS)
            writing = Writing(self, producer)
            self.begin(kinds, writing.turn)
            self.base = self.booked_sent = self.sent
            if self.base and not self.open_loop:  # a replay: all is written
                self.result.due = self.sent
            else:
                producer = self._send_all(producer)
            self._flush(producer)
            self.row[Cell.FINISHED_PRODUCING] = 1
            self.await_end(producer)
            self.keep_books()
            self._note_resent(producer)
            self.result.sent_book = self.book
            self.finish()
        finally:
            producer.close()

    def hand_pages(self, report: Report) -> None:
        """Nobody shares its messages with it: what is complete is closed here."""
        del report
        self.book.confirmed_bits.close_full()

    def connect(self) -> Producer:
        """The driver's producer."""
        return self.driver.producer(self.spec.target, self.payloads)

    def await_end(self, producer: Producer) -> None:
        """What is left to be done when all has been sent and confirmed: for a producer nothing."""

    def _flush(self, producer: Producer) -> None:
        """Wait for the last confirmations, in slices: the fleet must see that this agent lives."""
        began_ns = now_ns = time.monotonic_ns()
        while True:
            left_s = (FLUSH_STOPPED_S if self.must_end(Cell.STOP_PRODUCING) else FLUSH_S) - (
                now_ns - began_ns
            ) / SECOND_NS
            if left_s <= 0:
                self.result.gave_up_confirms = self.confirms
                return
            slice_s = min(FLUSH_SLICE_S, left_s)
            self.observe(producer.flush(slice_s))
            then_ns, now_ns = now_ns, time.monotonic_ns()
            if now_ns - then_ns < slice_s * SECOND_NS:  # it had nothing left to wait for
                return
            self.heartbeat(now_ns)
            self.complete_report()

    def _send_all(self, producer: Producer) -> Producer:
        """Send until it is over; the producer that is there at the end."""
        start_ns, end_ns = self.clock.start_ns, self.clock.window_end_ns
        while (now := time.monotonic_ns()) < start_ns:
            self.row[Cell.HEARTBEAT_NS] = now
            time.sleep(max(0.0, min(POLL_S, (start_ns - now) / SECOND_NS)))
        blocked_ns = due = 0
        while not self._is_over(now):
            if self.shared is not None and self.row[Cell.SHARES] != self.orders_taken:
                self._take_shares(self.shared, now)
            if self.board.ordered(Cell.CRASH_PRODUCERS) != self._crashes:
                producer = self._succeed(producer)
            due = self._due(self._until(now))
            if now >= end_ns and (self.sent >= due or now >= end_ns + LATE_NS):
                break
            room = producer.room_msgs
            self.room_seen = max(self.room_seen, room)
            number = min(due - self.sent, room, self.send_msgs)
            # A closed loop waits until a whole batch has room (or all the room that this driver ever has): single
            # messages would cost more than they carry. A transaction has room for its own rest only.
            if number > 0 and (self.takes_parts or number >= min(self.send_msgs, self.room_seen)):
                self.hand_over(producer, number)
                self.observe(producer.poll(0))
            else:
                self.observe(producer.poll(self._wait_s(due, now)))
                if due > self.sent:  # something was due, and the driver had no room for it
                    blocked_ns += time.monotonic_ns() - now
            now = time.monotonic_ns()
            if now - self._booked_ns > BOOK_NS or self._unbooked_msgs >= BOOK_MSGS:
                self.keep_books()
                self._booked_ns = now
            self.heartbeat(now)
        self.clock.tick(now)
        self.result.due = due if self.open_loop else self.sent
        self.result.window_s = max(0, min(now, end_ns) - self.clock.window_start_ns) / SECOND_NS
        if self.open_loop:
            self._account_for_due(due, now)
        self.result.blocked_share = blocked_ns / max(1, min(now, end_ns) - start_ns)
        return producer

    def _succeed(self, producer: Producer) -> Producer:
        """Crash; the producer that takes this one's place, and knows of nothing that was not confirmed."""
        assert isinstance(producer, Crashing), "other drivers are refused"
        self._crashes = self.board.ordered(Cell.CRASH_PRODUCERS)
        self._note_resent(producer)
        producer.crash()
        self.row[Cell.CRASHED_PRODUCERS] += 1
        self.client = self.connect()
        return self.client

    def _note_resent(self, producer: Producer) -> None:
        if isinstance(producer, Resending):
            self.book.resent(producer.resent_seqs())

    def _is_over(self, now_ns: int) -> bool:
        """Whether to end: because all do, or because this one is asked to and others have its share by now."""
        if self.shared is None:
            return self.must_end(Cell.STOP_PRODUCING)
        if self.board.ordered(Cell.STOP_PRODUCING):
            return True
        if not self.row[Cell.RETIRE]:  # looked at once: asked for again it may be set by now
            return False
        self.retired_ns = self.retired_ns or now_ns
        elapsed_ns = now_ns - self.clock.start_ns
        if self.shared.is_silent(elapsed_ns):  # what was due before that is sent first, as at a trial's end
            return self.sent >= self._due(now_ns) or self.shared.is_silent(elapsed_ns - LATE_NS)
        if now_ns - self.retired_ns < HANDOVER_S * SECOND_NS:
            return False
        # Nobody has its share yet, and will not for the time that an order is given ahead.
        lost = self.shared.due(elapsed_ns + AHEAD_MS * MS_NS) - self.shared.due(elapsed_ns)
        self._misshared(np.full(max(1, lost), elapsed_ns), now_ns)
        return True

    def _take_shares(self, schedule: Changing, now_ns: int) -> None:
        """Follow the fleet's orders, each from its moment on."""
        words, missed = self.board.shares_after(self.spec.row, self.orders_taken)
        self.orders_taken += missed + len(words)
        if missed:  # what they would have had sent is not known: at least a message each
            self._misshared(np.full(missed, now_ns - self.clock.start_ns), now_ns)
        for share in map(Share.of, words):
            seed = [self.spec.seed, self.spec.index, share.at_ms]
            pacer = share.pacer(self.spec.rate, self.ramp_s, seed)
            self._misshared(schedule.follow(share.at_ms * MS_NS, pacer, self.sent), now_ns)

    def _misshared(self, times_ns: Int64, now_ns: int) -> None:
        """Note messages (by intended time, ns from the start) that were not sent as they were shared out."""
        if len(times_ns):
            at_ns = times_ns + self.clock.start_ns
            self.clock.count_each("misshared", 1, at_ns)
            text = f"{self.spec.name} heard late of its share: {len(times_ns):,} messages sent twice or left out"
            self._late_orders.append(("late share", int(at_ns[0]), now_ns, text))

    def take_events(self) -> list[tuple[str, int, int, str]]:
        """The orders that came late, too."""
        events, self._late_orders = self._late_orders, []
        return [*super().take_events(), *events]

    def _account_for_due(self, due: int, now_ns: int) -> None:
        """Note which messages were due in the window, and record those that were given up after it.

        A message that was due and never sent has waited until now at least: with that lower bound it is in the
        percentiles, which would otherwise be the better the more an overloaded broker leaves unsent.
        """
        clock = self.clock
        before = self.pacer.due(clock.window_start_ns - 1 - clock.start_ns) if self.spec.warmup_s else 0
        before += self.base
        self.book.due = range(min(before, due), due)
        receivers = self.spec.target.subscribers if self.spec.consumers else 0
        kinds = ["schedule_lag"] + ["ack"] * self.confirms + [self.END_TO_END] * receivers
        for first in range(self.sent, due if now_ns >= clock.window_end_ns else 0, UNSENT_MSGS):
            intended = self._intended(first, min(UNSENT_MSGS, due - first))
            for kind in kinds:
                self.recorder.record(kind, intended, now_ns - intended)

    def _due(self, now_ns: int) -> int:
        """How many messages should have been sent by now; also after the end, what was due before it."""
        clock = self.clock
        if self.open_loop:
            return self.base + self.pacer.due(min(now_ns, clock.window_end_ns - 1) - clock.start_ns)
        return self.sent + (self._allowed(now_ns) if now_ns < clock.window_end_ns else 0)

    def _until(self, now_ns: int) -> int:
        """The moment until which what is due is sent now; once its time is over, all of it."""
        if self.grouping is None or now_ns >= self.clock.window_end_ns:
            return now_ns
        return self.clock.start_ns + self.grouping.until(now_ns - self.clock.start_ns)

    def _wait_s(self, due: int, now_ns: int) -> float:
        """How long to wait for confirmations: until the next message is due, or a moment where room is what lacks."""
        if not self.open_loop or due > self.sent:
            return UNCONFIRMED_POLL_S if not self.confirms else WORK_POLL_S if self.awaits_work else POLL_S
        next_ns = None if self.grouping is None else self.grouping.next_edge_ns
        if next_ns is None:
            number = self.sent - self.base
            next_ns = self.pacer.next_due_ns(number)
            gap_ns = next_ns - self.pacer.next_due_ns(number - 1) if number else next_ns
            next_ns -= min(EARLY_NS, round(EARLY_SHARE * gap_ns))
        until_ns = min(self.clock.start_ns + next_ns, self.clock.window_end_ns)
        return min(POLL_S, max(0.0, (until_ns - now_ns) / SECOND_NS))

    def _allowed(self, now_ns: int) -> int:
        """How many more a closed loop may send; the driver bounds the unconfirmed, here the unseen are bounded.

        Unseen is what has not reached the subscriber that is the furthest behind.
        """
        if (self.confirms and not self.awaits_work) or self.spec.consumers == 0:
            return self.send_msgs
        sent, received = self.board.total(Cell.SENT), self.board.least_received(self.spec.target.subscribers)
        if received != self.last_progress[0] or not self.last_progress[1]:
            self.last_progress = (received, now_ns)
        unseen = sent - received - self.forgiven
        window = self.window_msgs * self.spec.count
        if unseen + self.send_msgs > window and now_ns - self.last_progress[1] > FORGIVE_S * SECOND_NS:
            self.forgiven += unseen
            return self.send_msgs
        return max(0, (window - unseen) // self.spec.count)

    def _intended(self, first: int, number: int) -> Int64:
        offsets = self.pacer.intended(first - self.base, number)
        assert offsets is not None, "only an open loop has intended times"
        return offsets + self.clock.start_ns

    def hand_over(self, producer: Producer, number: int) -> None:
        """Send `number` messages now, remembering when each was intended and sent."""
        first = self.sent
        if self.open_loop:
            intended = self._intended(first, number)
            now = time.monotonic_ns()
            self._lags.append((intended, now))
        else:
            now = time.monotonic_ns()
            intended = np.full(number, now)
        # From the moment that their stamps tell: a driver may compress for milliseconds before it returns, and the
        # number under way would lack what is in its hands.
        self.row[Cell.SENT] = first + number
        producer.send(first, intended, now)
        begin = first & self.mask
        if begin + number <= self.mask + 1:
            where: slice | Int64 = slice(begin, begin + number)
        else:
            where = np.arange(first, first + number) & self.mask
        self.sent_ns[where] = now
        if self.open_loop:
            self.intended_ns[where] = intended
        self.sent += number
        self.clock.count("sent", number, now)

    def observe(self, settled: list[Settled]) -> None:
        """Take what the broker said; it is recorded in bulk, long before the ring comes round."""
        for each in settled:
            number = len(each.seqs)
            self._unbooked_msgs += number
            if each.error is None:
                self.clock.count("acked", number, each.at_ns)
                self.row[Cell.ACKED] += number
            else:
                self.row[Cell.ERRORS] += number
        if settled:
            self._unbooked += settled

    def keep_books(self) -> None:
        """Record the confirmations and lags that have gathered."""
        gained = self.sent - self.booked_sent
        self.book.sent(gained)
        self.add("sent", gained)
        self.booked_sent = self.sent
        if self._lags:
            intended = np.concatenate([times for times, _ in self._lags])
            sent = np.repeat([at_ns for _, at_ns in self._lags], [len(times) for times, _ in self._lags])
            self.recorder.record("schedule_lag", intended, sent - intended)
            self._lags.clear()
        if not self._unbooked:
            return
        for each in self._unbooked:
            if each.error is not None:
                self.book.failed(each.seqs, each.error)
                self.add("errors", len(each.seqs))
                self.errors[each.error] = self.errors.get(each.error, 0) + len(each.seqs)
        confirmed = [each for each in self._unbooked if each.error is None]
        self._unbooked = []
        self._unbooked_msgs = 0
        if confirmed:
            seqs = np.concatenate([each.seqs for each in confirmed])
            at_ns = np.repeat([each.at_ns for each in confirmed], [len(each.seqs) for each in confirmed])
            self._confirmed(seqs, at_ns)

    def _confirmed(self, seqs: Int64, at_ns: Int64) -> None:
        self.book.confirmed(seqs)
        self.add("acked", len(seqs))
        first, last = int(seqs.min()), int(seqs.max())
        assert first >= self.sent - self.mask - 1, "a confirmation came for a message long overwritten"
        # Nearly always whole batches in order, which need no gathering.
        begin = first & self.mask
        consecutive = last - first == len(seqs) - 1 and begin + len(seqs) <= self.mask + 1 and _ascends(seqs)
        slots = slice(begin, begin + len(seqs)) if consecutive else seqs & self.mask
        sent = self.sent_ns[slots]
        if self.open_loop:
            intended = self.intended_ns[slots]
            self.recorder.record("ack", intended, at_ns - intended)
            self.recorder.record("ack_service", intended, at_ns - sent)
        else:
            self.recorder.record("ack_service", sent, at_ns - sent)


def _ascends(seqs: Int64) -> bool:
    return bool((seqs[1:] > seqs[:-1]).all())
