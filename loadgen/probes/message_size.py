"""The largest message that a broker takes, as it comes and with its limit raised, and what it says to a larger one.

The limit is found by messages alone, not by reading a setting: sizes are doubled until one is refused, then the gap
between the last one taken and the first one refused is halved until they are a byte apart. A message counts as taken
when the broker confirmed it and the same bytes came back.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from confluent_kafka import TopicPartition
from pika.exceptions import ChannelClosedByBroker

from loadgen.driver import Target
from loadgen.drivers.kafka_admin import KafkaAdmin
from loadgen.errors import BrokerError
from loadgen.probes import Probe
from loadgen.probes.finding import Finding, NotHereError
from loadgen.probes.places import (
    PERSISTENT,
    TIMEOUT_S,
    confirming,
    connected,
    fresh_queue,
    fresh_topic,
    producer_of,
    reading,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from confluent_kafka import Consumer

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.probes.finding import Ground

MIB = 1 << 20
FIRST_BYTES = 256 << 10
MOST_BYTES = 512 * MIB
# Over what the article grants either broker (128 MB, 10 MB), under what their memory here carries at ease.
RAISED_BYTES = {"rabbitmq": 256 * MIB, "kafka": 64 * MIB}
# librdkafka's own limits at their highest, which must not be what is found.
CLIENT_BYTES_MAX = 1_000_000_000
MOST_KB = 2_097_151


class Place(Protocol):
    """Where messages of any size are sent to and read back from."""

    def refusal(self, size_bytes: int) -> str | None:
        """The broker's answer to a message that it does not take; None where it took it, and gave it back intact."""
        ...

    def limit(self, said: str) -> int | None:
        """The limit by the broker's own word, after this refusal; None where the refusal is about something else."""
        ...


def largest(refusal: Callable[[int], str | None], low: int, high: int) -> tuple[int, str]:
    """The largest size that is taken, and what was said to one byte more; by halving.

    `low` is known to be taken and `high` to be refused.
    """
    said = ""
    while high - low > 1 or not said:
        middle = (low + high) // 2 if high - low > 1 else high
        answer = refusal(middle)
        if answer is None:
            low = middle
        else:
            high, said = middle, answer
    return low, said


def bracket(refusal: Callable[[int], str | None], first: int, most: int) -> tuple[int, int]:
    """Sizes of which the first is taken and the second refused, by doubling; BrokerError where `most` is taken, too."""
    low, high = 0, min(first, most)
    while refusal(high) is None:
        if high == most:
            raise BrokerError(f"no size was refused up to {most:,} bytes")
        low, high = high, min(high * 2, most)
    return low, high


def look(ground: Ground, broker: BrokerName) -> Iterator[Finding]:
    """The largest message by default, and with the limit raised as far as this probe dares."""
    with PLACES[broker](ground.endpoints[broker], None) as place:
        size_bytes, said = largest(place.refusal, *bracket(place.refusal, FIRST_BYTES, MOST_BYTES))
        yield _finding(broker, "as it comes", size_bytes, said, place)
    raised = RAISED_BYTES[broker]
    try:
        with _raised(ground, broker, raised) as place:
            taken, said = largest(place.refusal, raised - RECORD_BYTES_MAX[broker], raised + 1)
            yield _finding(broker, "limit raised", taken, said, place)
    except NotHereError as error:
        yield Finding(broker, "limit raised", "largest message", "bytes", error=str(error))


@contextmanager
def _raised(ground: Ground, broker: BrokerName, limit_bytes: int) -> Iterator[Place]:
    """A place with a higher limit: Kafka's is the topic's own, RabbitMQ's the node's."""
    if broker == "kafka":
        with PLACES[broker](ground.endpoints[broker], limit_bytes) as place:
            yield place
        return
    with (
        ground.fresh(broker, {"max_message_size": str(limit_bytes)}) as endpoint,
        PLACES[broker](endpoint, None) as place,
    ):
        yield place


# What a batch of one record holds beside its value: 61 bytes of the batch, up to 20 of the record, and room to be sure.
RECORD_BYTES_MAX = {"rabbitmq": 1, "kafka": 128}


def _finding(broker: BrokerName, point: str, size_bytes: int, said: str, place: Place) -> Finding:
    """The size that was found, beside the limit that the broker tells: of a batch, in Kafka, with its own head."""
    limit = place.limit(said)
    agrees = limit is not None and 0 <= limit - size_bytes < RECORD_BYTES_MAX[broker]
    said += "" if limit is None or str(limit) in said else f"; max.message.bytes is {limit:,}"
    return Finding(broker, point, "largest message", "bytes", (float(size_bytes),), said, agrees)


def _body(size_bytes: int) -> bytes:
    """Bytes that differ from one another and from size to size, so that a truncated or mixed message would show."""
    block = hashlib.shake_256(str(size_bytes).encode()).digest(1 << 16)
    return (block * (size_bytes // len(block) + 1))[:size_bytes]


class _Queue:
    """A durable classic queue, by a blocking client with confirms; a refusal closes the channel, a new one opens."""

    def __init__(self, connection: Any, name: str) -> None:
        self._connection, self._name = connection, name
        self._channel = confirming(connection)

    def limit(self, said: str) -> int | None:
        """See `Place`: the refusal names it."""
        named = re.search(r"max size (\d+)", said)
        return int(named.group(1)) if named else None

    def refusal(self, size_bytes: int) -> str | None:
        """See `Place`."""
        body = _body(size_bytes)
        try:
            self._channel.basic_publish("", self._name, body, PERSISTENT, mandatory=True)
        except ChannelClosedByBroker as refused:
            self._channel = confirming(self._connection)
            return f"{refused.reply_code} {refused.reply_text}"
        _, _, back = self._channel.basic_get(self._name, auto_ack=True)
        if back != body:
            raise BrokerError(f"rabbitmq confirmed {size_bytes:,} bytes and gave back something else")
        return None


class _Topic:
    """A topic of one partition, by librdkafka with limits of its own that are out of the way."""

    def __init__(self, endpoint: Endpoint, consumer: Consumer, name: str) -> None:
        self._endpoint, self._name, self._consumer = endpoint, name, consumer
        self._producer = producer_of(
            endpoint, message__max__bytes=CLIENT_BYTES_MAX, queue__buffering__max__kbytes=MOST_KB
        )
        self._read = 0

    def limit(self, said: str) -> int | None:
        """See `Place`: the topic's configuration has it."""
        if "MSG_SIZE_TOO_LARGE" not in said:
            return None
        admin = KafkaAdmin(self._endpoint)
        return int(admin.effective(Target(self._endpoint, self._name, {"partitions": 1}))["max.message.bytes"])

    def refusal(self, size_bytes: int) -> str | None:
        """See `Place`."""
        body, told = _body(size_bytes), list[Any]()
        self._producer.produce(self._name, body, partition=0, on_delivery=lambda error, _: told.append(error))
        if self._producer.flush(TIMEOUT_S):
            raise BrokerError(f"kafka neither took nor refused {size_bytes:,} bytes within {TIMEOUT_S:g} s")
        if told[0] is not None:
            return f"{told[0].code()} {told[0].name()}: {told[0].str()}"
        self._consumer.assign([TopicPartition(self._name, 0, self._read)])
        message = self._consumer.poll(TIMEOUT_S)
        if message is None or message.error() or message.value() != body:
            raise BrokerError(f"kafka confirmed {size_bytes:,} bytes and gave back something else")
        self._read = (message.offset() or 0) + 1
        return None


@contextmanager
def _queue(endpoint: Endpoint, _: int | None) -> Iterator[Place]:
    with connected(endpoint) as connection, fresh_queue(connection) as name:
        yield _Queue(connection, name)


@contextmanager
def _topic(endpoint: Endpoint, limit_bytes: int | None) -> Iterator[Place]:
    wide = {
        "fetch__message__max__bytes": MOST_BYTES,
        "fetch__max__bytes": MOST_BYTES,
        "receive__message__max__bytes": CLIENT_BYTES_MAX,
    }
    with fresh_topic(endpoint, max_message_bytes=limit_bytes) as name, reading(endpoint, **wide) as consumer:
        yield _Topic(endpoint, consumer, name)


PLACES = {"rabbitmq": _queue, "kafka": _topic}
PROBE = Probe(
    "How large may a message be, by default and at most, and what does the broker say to a larger one?", look, 12.0
)
