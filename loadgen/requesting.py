"""The requester's loop: a producer's, which hears the replies to its requests and gives up those that wait too long.

A reply brings its request's own stamp back, so that nothing has to be looked up; its correlation id must say the same.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from loadgen.agent import POLL_S, AgentSpec
from loadgen.board import Cell
from loadgen.consuming import DAMAGED
from loadgen.driver import Replying
from loadgen.errors import TrialError
from loadgen.ledger import ReceivedBook
from loadgen.payload import SEQUENCE_BITS
from loadgen.producing import ProducerAgent
from loadgen.requests import OpenRequests

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from loadgen.agent import Report
    from loadgen.driver import Producer, Received, Requester, Settled
    from loadgen.payload import Parsed

TIMED_OUT = "timed out"
MISCORRELATED = "a reply came under another request's correlation id"
STRANGE = "a reply to another requester came"
LOOK_NS = 1_000_000  # how often it looks for requests that have waited too long


class RequesterAgent(ProducerAgent):
    """Sends requests as the pacer says; records how long each took from its intended moment until its reply came."""

    KINDS: ClassVar[tuple[str, ...]] = ("ack", "ack_service", "schedule_lag", "rtt", "rtt_service", "resolution")
    END_TO_END: ClassVar[str] = "rtt"

    def __init__(self, spec: AgentSpec, pipe: Connection) -> None:
        super().__init__(spec, pipe)
        self.timeout_ns = round(spec.pattern.timeout_ms * 1e6)
        self.requests = OpenRequests(self.timeout_ns)
        self.replies = ReceivedBook()
        self.takes_parts = True  # a request does not wait until others have had their replies
        self.requester: Requester
        self._looked_ns = 0

    def connect(self) -> Requester:
        """The driver's requester."""
        if not isinstance(self.driver, Replying):
            raise TrialError(f"driver {self.driver.name} cannot do request-reply")
        self.requester = self.driver.requester(self.spec.target, self.payloads)
        return self.requester

    def hand_pages(self, report: Report) -> None:
        """Replies come from several responders in any order, and are no other requester's."""
        super().hand_pages(report)
        for copies in self.replies.copies.values():
            copies.close_full()

    def await_end(self, producer: Producer) -> None:
        """Hear the last replies, until the fleet says that it is over."""
        while not self.must_end(Cell.STOP_CONSUMING):
            self.observe(producer.poll(POLL_S))
            self.heartbeat(time.monotonic_ns())
        self.result.received_book = self.replies
        self.result.replied, self.result.timed_out = self.requests.replied, self.requests.timed_out

    def _allowed(self, now_ns: int) -> int:
        """In a closed loop, how many more requests may be open."""
        del now_ns
        return max(0, self.spec.pattern.requests_in_flight - self.requests.count)

    def hand_over(self, producer: Producer, number: int) -> None:
        """Send `number` requests now, and wait for their replies from now on."""
        first = self.sent
        super().hand_over(producer, number)
        where = np.arange(first, self.sent) & self.mask
        self.requests.sent(self.intended_ns[where], int(self.sent_ns[where[0]]))

    def observe(self, settled: list[Settled]) -> None:
        """Take confirmations and replies, and give up what has waited too long."""
        super().observe(settled)
        for batch in self.requester.take_replies():
            self._hear(batch)
        now_ns = time.monotonic_ns()
        if now_ns - self._looked_ns < min(LOOK_NS, self.timeout_ns):
            return
        self._looked_ns = now_ns
        given_up = self.requests.expire(now_ns)
        if len(given_up):
            self.add("errors", len(given_up))
            self.row[Cell.ERRORS] += len(given_up)
            self.errors[TIMED_OUT] = self.errors.get(TIMED_OUT, 0) + len(given_up)
            self.row[Cell.GIVEN_UP] = self.requests.timed_out
            if self.open_loop:  # so long it has taken at least
                self.recorder.record("rtt", given_up, now_ns - given_up)

    def _hear(self, batch: Received) -> None:
        parsed = self.payloads.parse(batch.buffer, batch.starts, batch.sizes)
        at_ns = batch.parsed_ns
        own = parsed.intact & (parsed.producer == self.spec.index)
        if not own.all():
            damaged = int(np.count_nonzero(~parsed.intact))
            self._fault(DAMAGED, damaged)
            self._fault(STRANGE, int(np.count_nonzero(~own)) - damaged)
        if batch.answers is not None:
            self._compare(batch, parsed)
        self.replies.receive(parsed, batch.source, batch.redelivered)
        fresh = np.zeros(len(own), np.bool_)
        fresh[own] = self.requests.answered(parsed.seq[own], at_ns - parsed.sent_ns[own])
        number = int(np.count_nonzero(fresh))
        self.row[Cell.RECEIVED] = self.requests.replied
        size_bytes = batch.sizes * number if isinstance(batch.sizes, int) else int(batch.sizes[fresh].sum())
        self.add("received", number)
        self.add("received_bytes", size_bytes)
        self.clock.count("received", number, at_ns)
        self.clock.count("received_bytes", size_bytes, at_ns)
        self.recorder.record("resolution", at_ns, np.array([at_ns - batch.read_ns]))
        intended, sent = parsed.intended_ns[fresh], parsed.sent_ns[fresh]
        if self.open_loop:
            self.recorder.record("rtt", intended, at_ns - intended)
        self.recorder.record("rtt_service", intended if self.open_loop else sent, at_ns - sent)

    def _compare(self, batch: Received, parsed: Parsed) -> None:
        """Whether the correlation ids are those of the requests whose stamps came back."""
        assert batch.answers is not None, "asked only where there are any"
        told = parsed.intact & (parsed.producer >= 0)
        stamped = (parsed.producer[told].astype(np.uint64) << np.uint64(SEQUENCE_BITS)) | parsed.seq[told].astype(
            np.uint64
        )
        self._fault(MISCORRELATED, int(np.count_nonzero(batch.answers[told] != stamped)))

    def _fault(self, what: str, number: int) -> None:
        if number:
            self.add("errors", number)
            self.row[Cell.ERRORS] += number
            self.errors[what] = self.errors.get(what, 0) + number
            self.book.errors[what] += number
