"""Request-reply on Kafka: a topic for requests and one for replies, of which each requester reads one partition.

Kafka has no reply-to: a reply goes to the partition of the producer that its request's stamp names, and is known as
the reply to that request by the same stamp.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import numpy as np

from loadgen.drivers.wire.framed import wait
from loadgen.drivers.wire.kafka_consumer import KafkaConsumer
from loadgen.drivers.wire.kafka_producer import KafkaProducer
from loadgen.errors import LoadgenError
from loadgen.payload import Payloads, Relayed

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Int64, Received, Settled, Target

_LOOK_S = 0.02
_CLOSE_S = 2.0
_FULL_S = 0.05  # so long replies are waited for to leave, where there is no room for more


class KafkaRequester:
    """Sends requests and receives replies (see `loadgen.driver.Requester`)."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        assert target.onward is not None, "requests have a topic for their replies"
        self._producer = KafkaProducer(target, payloads)
        try:
            requesters = target.onward.settings["partitions"]
            self._consumer = KafkaConsumer(target.onward, payloads.producer, requesters)
        except BaseException:
            self._producer.close()
            raise
        self._replies: list[Received] = []

    @property
    def room_msgs(self) -> int:
        """The producer's."""
        return self._producer.room_msgs

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Hand requests over."""
        self._producer.send(first_seq, intended_ns, sent_ns)

    def poll(self, timeout_s: float) -> list[Settled]:
        """Move bytes in all directions; returns early for confirmations, for replies and for new room."""
        return self._poll(timeout_s, self._producer.poll)

    def _poll(self, timeout_s: float, poll: Callable[[float], list[Settled]]) -> list[Settled]:
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        is_starved = self.room_msgs == 0
        while True:
            settled = poll(0)
            if not self._replies:  # what a consumer hands out is valid until it is asked again
                self._replies = self._consumer.receive(0)
            left_ns = deadline_ns - time.monotonic_ns()
            if settled or self._replies or left_ns <= 0 or (is_starved and self.room_msgs):
                return settled
            event_ns = self._producer.next_event_ns()
            if event_ns is not None:
                left_ns = min(left_ns, max(0, event_ns - time.monotonic_ns()))
            wait([*self._producer.connections, *self._consumer.connections], min(left_ns / 1e9, _LOOK_S))

    def take_replies(self) -> list[Received]:
        """What came since the last call."""
        self._consumer.settle()
        taken, self._replies = self._replies, []
        return taken

    def flush(self, timeout_s: float) -> list[Settled]:
        """Send all requests, linger or not, and wait for all confirmations; replies may come meanwhile."""
        return self._producer.flush(timeout_s)

    def resent_seqs(self) -> Int64:
        """The producer's."""
        return self._producer.resent_seqs()

    def close(self) -> None:
        """Close both; never raises."""
        self._producer.close()
        self._consumer.close()


class KafkaResponder:
    """Receives requests and sends each one's reply (see `loadgen.driver.Responder`): the request's own bytes."""

    def __init__(self, target: Target, index: int, count: int, payloads: Payloads) -> None:
        assert target.onward is not None, "requests have a topic for their replies"
        self._relayed = Relayed(payloads.message, payloads.seed, payloads.token, producer=index)
        self._consumer = KafkaConsumer(target, index, count)
        try:
            self._producer = KafkaProducer(target.onward, self._relayed)
        except BaseException:
            self._consumer.close()
            raise
        self._replied = 0

    @property
    def has_waiting(self) -> bool:
        """Whether more was fetched than was handed out."""
        return self._consumer.has_waiting

    def receive(self, timeout_s: float) -> list[Received]:
        """Wait for the first request, while replies leave; then return all that has come."""
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        while True:
            self._producer.poll(0)
            received = self._consumer.receive(0)
            left_ns = deadline_ns - time.monotonic_ns()
            if received or left_ns <= 0:
                return received
            event_ns = self._producer.next_event_ns()
            if event_ns is not None:
                left_ns = min(left_ns, max(0, event_ns - time.monotonic_ns()))
            wait([*self._producer.connections, *self._consumer.connections], min(left_ns / 1e9, _LOOK_S))

    def reply(self, batch: Received, begin: int, end: int) -> None:
        """Answer messages begin … end of a batch that was received."""
        while begin < end:
            number = min(end - begin, self._producer.room_msgs)
            if number <= 0:
                self._producer.poll(_FULL_S)
                continue
            self._relayed.stage(self._replied, batch, np.arange(begin, begin + number))
            now_ns = time.monotonic_ns()
            self._producer.send(self._replied, np.full(number, now_ns), now_ns)
            self._replied += number
            begin += number
        self._producer.poll(0)

    def settle(self, count: int | None = None) -> None:
        """What was answered may be committed."""
        self._consumer.settle(count)

    def close(self) -> None:
        """Send the last replies and close; never raises."""
        with contextlib.suppress(LoadgenError):
            self._producer.flush(_CLOSE_S)
        self._producer.close()
        self._consumer.close()
