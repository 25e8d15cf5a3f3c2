"""A Kafka client for hand-written Locust users: publish, consume, request and reply, by the wire drivers."""

from __future__ import annotations

import secrets
import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.driver import Target
from loadgen.drivers.wire.kafka_producer import KafkaProducer
from loadgen.errors import TrialError
from loadgen.knobs import resolve
from loadgen.locust.client import CONFIRM_S, BrokerClient, Delivery, RequestTimeoutError, Timed
from loadgen.locust.kafka_reader import Reader
from loadgen.locust.topic import ensure_topic
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.driver import Int64, UInt8
    from loadgen.endpoint import Endpoint

ASKED = b"loadgen-request:"  # Kafka has no reply-to: a request begins with this and 16 bytes that the reply repeats
ID_BYTES = 16
REPLIES_MOST = 10_000


class Bodies:
    """What the wire producer takes its messages from: here those that somebody gives, of any sizes."""

    size_bytes = None
    mean_size_bytes = 1024.0
    producer = 0
    message = Message()

    def __init__(self) -> None:
        self.seed = secrets.randbits(32)  # of the partitions that are drawn: users are not to go together
        self._next: Sequence[bytes] = ()

    def give(self, bodies: Sequence[bytes]) -> None:
        """The messages of the next call of `send`."""
        self._next = bodies

    def pack(self, first_seq: int, intended_ns: Int64, sent_ns: int | Int64) -> tuple[UInt8, Int64]:
        """They end to end (uint8), and where each begins (int64[n+1])."""
        del first_seq, intended_ns, sent_ns
        sizes = [len(body) for body in self._next]
        flat = np.frombuffer(b"".join(self._next), np.uint8)
        return flat, np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))

    def key_indices(self, first_seq: int, count: int) -> Int64 | None:
        """No keys."""
        del first_seq, count
        return None


class KafkaClient(BrokerClient):
    """A producer with acks=all, and a reader of all partitions or of its group's share; each made when first used.

    Args:
        endpoint: gives the broker; asked when the first request is made.
        topic: the topic unless a call says otherwise; made where it does not exist.
        group: the consumer group whose users share out the partitions, wherever they run; none: all are read.
        knobs: of `loadgen.Kafka`, for producer and consumer.
        fire: Locust's request event.
        context: what the user adds to each event.
    """

    def __init__(
        self, endpoint: Callable[[], Endpoint], topic: str, group: str, knobs: dict[str, Any],
        fire: Callable[..., None], context: Callable[[], dict[str, Any]],
    ) -> None:  # fmt: skip
        super().__init__(fire, context)
        self._endpoint, self._topic, self._group = endpoint, topic, group
        self._settings = resolve("kafka", knobs, "broker", "low_latency")
        self._producers: dict[str, tuple[KafkaProducer, Bodies]] = {}
        self._readers: dict[str, Reader] = {}
        self._sent = 0

    # Requests.

    def publish(self, body: bytes, topic: str | None = None) -> bool:
        """Publish a message and wait until the broker has confirmed it; whether it has."""
        return self.publish_batch([body], topic) == 1

    def publish_batch(self, bodies: Sequence[bytes], topic: str | None = None) -> int:
        """Publish messages at once and wait for all confirmations; how many were confirmed.

        Each message is a request of its own, timed until its confirmation.
        """
        name, timed, told, confirmed = topic or self._topic, Timed(), 0, 0
        with self._failing("publish", name, timed):
            for settled in self._publish(name, bodies):
                error = None if settled.error is None else TrialError(settled.error)
                for _ in range(len(settled.seqs)):
                    self._tell("publish", name, timed, len(bodies[min(told, len(bodies) - 1)]), error)
                    told, confirmed = told + 1, confirmed + (error is None)
            if told < len(bodies):
                raise RequestTimeoutError("the broker did not confirm")
            return confirmed
        for _ in range(len(bodies) - told - 1):  # one was told with the failure
            self._tell("publish", name, timed, 0, timed.error)
        return confirmed

    def consume(self, count: int = 1, timeout_s: float = 1.0, topic: str | None = None) -> list[Delivery]:
        """Wait for a message, then return what has come, at most `count`; nothing if none comes in time.

        Each message is a request, timed from the call on. What was returned is committed in a moment, and when the
        client is closed.
        """
        name, timed = topic or self._topic, Timed()
        with self._failing("consume", name, timed):
            taken = [_delivery(body, name) for body in self._reader(name).take(count, timeout_s)]
            for delivery in taken:
                self._tell("consume", name, timed, len(delivery.body), None, delivery)
            return taken
        return []

    def request(self, body: bytes, topic: str | None = None, timeout_s: float = 5.0) -> bytes | None:
        """Send a request and wait for its reply on the topic's `-replies`; None where none comes in time."""
        name, timed, asked = topic or self._topic, Timed(), uuid.uuid4().bytes
        replies = f"{name}-replies"
        with self._failing("request", name, timed):
            reader = self._reader(replies, from_end=True)
            self._publish(name, [ASKED + asked + body])
            deadline_s = time.monotonic() + timeout_s
            while (left_s := deadline_s - time.monotonic()) > 0:
                came = reader.take(REPLIES_MOST, left_s)  # the others' replies, too
                found = [reply[ID_BYTES:] for reply in came if reply[:ID_BYTES] == asked]
                if found:
                    self._tell("request", name, timed, len(found[0]), None, found[0])
                    return found[0]
            raise RequestTimeoutError(f"no reply within {timeout_s:g} s")
        return None

    def reply(self, delivery: Delivery, body: bytes) -> bool:
        """Answer a message that somebody waits on (`request`); whether it could be sent."""
        timed = Timed()
        with self._failing("reply", "reply", timed):
            self._publish(delivery.reply_to, [delivery.correlation_id + body])
            self._tell("reply", "reply", timed, len(body), None)
            return True
        return False

    def close(self) -> None:
        """Commit what was consumed, and leave."""
        for producer, _ in self._producers.values():
            producer.close()
        for reader in self._readers.values():
            reader.close()
        self._producers.clear()
        self._readers.clear()

    def _drop(self) -> None:
        self.close()

    # The connections.

    def _target(self, topic: str) -> Target:
        endpoint = self._endpoint()
        ensure_topic(endpoint, topic)
        return Target(endpoint, topic, self._settings, group=self._group)

    def _publish(self, topic: str, bodies: Sequence[bytes]) -> list[Any]:
        """Send messages, and return what the broker said about them within `CONFIRM_S`."""
        if topic not in self._producers:
            made = Bodies()
            self._producers[topic] = (KafkaProducer(self._target(topic), made), made)  # type: ignore[arg-type]
        producer, given = self._producers[topic]
        given.give(bodies)
        now_ns = time.monotonic_ns()
        producer.send(self._sent, np.full(len(bodies), now_ns), now_ns)
        self._sent += len(bodies)
        return producer.flush(CONFIRM_S)

    def _reader(self, topic: str, *, from_end: bool = False) -> Reader:
        if topic not in self._readers:
            target = self._target(topic)
            if from_end:  # of no group, and nothing that came before
                self._readers[topic] = Reader(Target(target.endpoint, topic, self._settings), "latest")
            else:
                self._readers[topic] = Reader(target)
        return self._readers[topic]


def _delivery(body: bytes, topic: str) -> Delivery:
    if not body.startswith(ASKED):
        return Delivery(body)
    begin = len(ASKED)
    return Delivery(body[begin + ID_BYTES :], f"{topic}-replies", body[begin : begin + ID_BYTES])
