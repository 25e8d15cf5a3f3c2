"""The processor's loop: consume, transform, produce, and only then say that a message was processed.

At least once: what was made of a message is confirmed before the message is acknowledged (RabbitMQ), or before the
offsets behind it are committed, once an interval (Kafka). Exactly once: results and offsets are of one transaction.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from loadgen.agent import POLL_S
from loadgen.board import Cell
from loadgen.consuming import ConsumerAgent
from loadgen.driver import Committing, Crashing
from loadgen.drivers import load_driver
from loadgen.errors import TrialError
from loadgen.processed import Results

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.agent import BookName
    from loadgen.driver import Consumer, Driver, Int64, Received, Settled, Target
    from loadgen.payload import Payloads

BUSY_POLL_S = 0.0005  # how long it waits for either side while confirmations are awaited from the other
COMMIT_S = 30.0  # how long a commit may take


class Processor:
    """One consumer, one producer, and what binds them; the agent's loop turns it, and so may a test.

    The producer begins first: whoever had its transactional id before, and died, is undone before the consumer asks
    where it left off.
    """

    def __init__(self, driver: Driver, target: Target, index: int, count: int, payloads: Payloads) -> None:
        assert target.onward is not None, "results have somewhere to go"
        self.results = Results(payloads.message, payloads.seed, payloads.token, producer=index)
        self.producer = driver.producer(target.onward, self.results)
        try:
            self.consumer = driver.consumer(target, index, count)
        except BaseException:
            self.producer.close()
            raise
        self._group = target.group
        interval_ms = target.settings.get("commit_interval_ms")
        self._interval_ns = None if interval_ms is None else int(interval_ms * 1e6)
        is_exact = target.settings.get("processing_guarantee") == "exactly_once"
        self._committing = self.producer if is_exact and isinstance(self.producer, Committing) else None
        self.sent = 0
        self._confirmed = 0  # all before this one are
        self._ahead: set[int] = set()
        self._begun_ns = 0  # when the first message came that is not committed yet

    @property
    def is_busy(self) -> bool:
        """Whether something is not confirmed or not committed."""
        return self._confirmed < self.sent or self._begun_ns > 0

    def receive(self) -> list[Received]:
        """What has come; waits longer where nothing else is awaited."""
        return self.consumer.receive(BUSY_POLL_S if self.is_busy else POLL_S)

    def forward(self, batch: Received, beat: Callable[[], None] = lambda: None) -> None:
        """Produce what is made of each message of a batch that was just received."""
        begin, end = 0, len(batch.starts)
        self._begun_ns = self._begun_ns or time.monotonic_ns()
        while begin < end:
            number = min(end - begin, self.producer.room_msgs)
            if number <= 0:
                self.hear(BUSY_POLL_S)
                beat()
                continue
            now_ns = time.monotonic_ns()
            self.results.process(self.sent, batch, np.arange(begin, begin + number), now_ns)
            self.producer.send(self.sent, np.full(number, now_ns), now_ns)
            self.sent += number
            begin += number

    def turn(self, beat: Callable[[], None] = lambda: None) -> None:
        """Hear what was confirmed, and commit if it is time."""
        self.hear(0 if self._interval_ns is not None else BUSY_POLL_S * (self._confirmed < self.sent))
        if self._interval_ns is None:
            self._begun_ns = 0  # every confirmation acknowledges its message
        elif self._begun_ns and time.monotonic_ns() - self._begun_ns >= self._interval_ns:
            self.commit(beat)

    def hear(self, timeout_s: float) -> None:
        """Take confirmations; messages whose results all have theirs are settled, in the order in which they came."""
        before = self._confirmed
        self._take(self.producer.poll(timeout_s))
        if self._confirmed > before and self._committing is None:
            self.consumer.settle(self._confirmed - before)

    def _take(self, settled: list[Settled]) -> None:
        for each in settled:
            if each.error is not None:
                raise TrialError(f"a processor's results were refused: {each.error}")
            self._confirm(each.seqs)

    def _confirm(self, seqs: Int64) -> None:
        if not self._ahead and int(seqs[0]) == self._confirmed and int(seqs[-1]) == self._confirmed + len(seqs) - 1:
            self._confirmed += len(seqs)
            return
        self._ahead.update(seqs.tolist())
        while self._confirmed in self._ahead:
            self._ahead.remove(self._confirmed)
            self._confirmed += 1

    def commit(self, beat: Callable[[], None] = lambda: None) -> None:
        """Wait until all results are confirmed, and have the broker know that their messages were processed."""
        deadline_s = time.monotonic() + COMMIT_S
        if self._committing is not None and self.sent > self._confirmed:
            self._committing.commit(self._group, self.consumer)
        while self._confirmed < self.sent:
            if self._committing is None:
                self._take(self.producer.flush(POLL_S))
            else:
                self.hear(POLL_S)
            beat()
            if time.monotonic() > deadline_s:
                raise TrialError(f"a processor's results were not confirmed within {COMMIT_S:.0f} s")
        if self._committing is None:
            self.consumer.settle()
        self._begun_ns = 0

    def crash(self) -> None:
        """Leave as a killed process does, with whatever is open left so (`loadgen.driver.Crashing`)."""
        for each in (self.producer, self.consumer):
            assert isinstance(each, Crashing), "a driver that can"
            each.crash()

    def close(self) -> None:
        """Leave; never raises."""
        self.producer.close()
        self.consumer.close()


class ProcessorAgent(ConsumerAgent):
    """Receives from the first leg, and produces into the second."""

    KIND: ClassVar[str] = "hop"
    COUNTED: ClassVar[tuple[str, Cell]] = ("handled", Cell.HANDLED)
    BOOK: ClassVar[BookName] = "handled_book"

    def connect(self, target: Target) -> Consumer:
        """A consumer, and the producer that goes with it."""
        self.processor = Processor(
            load_driver(self.spec.driver), target, self.spec.index, self.spec.count, self.payloads
        )
        return self.processor.consumer

    def hand_in(self) -> None:
        """With the book goes the producer of the results."""
        super().hand_in()
        self.processor.producer.close()

    def _receive_all(self, consumer: Consumer) -> None:
        del consumer
        processor = self.processor
        while not self.must_end(Cell.STOP_CONSUMING):
            for batch in processor.receive():
                self.take(batch)
                processor.forward(batch, self._beat)
            processor.turn(self._beat)
            self.row[Cell.HANDLED] = self.received
            self._look_up(time.monotonic_ns())
        processor.commit(self._beat)

    def _beat(self) -> None:
        self.heartbeat(time.monotonic_ns())
