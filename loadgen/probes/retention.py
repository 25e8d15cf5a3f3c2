"""What remains readable after it was consumed, and what age and size take away: queues, streams and topics.

Each question is put to a queue or topic of its own, with one beside it that has no limit: a broker keeps what its
limits say for each apart from all others. What is left is counted by reading it, and by the broker itself: a queue by
the messages that wait in it, a log by the offset that it now begins at.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from confluent_kafka import TopicPartition

from loadgen.drivers.rabbitmq_management import in_path
from loadgen.errors import BrokerError
from loadgen.probes import Probe
from loadgen.probes.finding import Finding
from loadgen.probes.places import (
    TIMEOUT_S,
    asked_of_management,
    confirming,
    connected,
    depth_of,
    extent_of,
    fresh_queue,
    fresh_topic,
    policy,
    producer_of,
    publish,
    publish_to,
    reading,
)
from loadgen.probes.quantities import AGED, SIZED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from confluent_kafka import Consumer

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.probes.finding import Ground

MESSAGES = 200
SMALL_BYTES, LARGE_BYTES = 100, 10_000
AGE_MS = 1_500
QUEUE_LIMIT_BYTES = 500_000
LOG_LIMIT_BYTES, SEGMENT_BYTES = 1 << 20, 1 << 20  # Kafka takes no smaller segments
LOG_BYTES = 8 * SEGMENT_BYTES
# Kafka looks every five minutes, for the first time after half of one; the topic's own limits are what is asked about.
OFTEN = {"log.retention.check.interval.ms": "500", "log.initial.task.delay.ms": "500"}
PAUSE_S = 0.1
CONSUMED = "still there after consumption"


def look(ground: Ground, broker: BrokerName) -> Iterator[Finding]:
    """After consumption, by age, by size."""
    if broker == "rabbitmq":
        yield from _rabbitmq(ground.endpoints[broker])
        return
    yield _topic_consumed(ground.endpoints[broker])
    with ground.fresh(broker, OFTEN) as endpoint:
        yield _topic_expired(endpoint, AGED, MESSAGES * [bytes(SMALL_BYTES)], retention_ms=AGE_MS)
        bodies = (LOG_BYTES // LARGE_BYTES) * [bytes(LARGE_BYTES)]
        limits = {"retention_bytes": LOG_LIMIT_BYTES, "segment_bytes": SEGMENT_BYTES}
        yield _topic_expired(endpoint, SIZED, bodies, **limits)


def _rabbitmq(endpoint: Endpoint) -> Iterator[Finding]:
    small, large = MESSAGES * [bytes(SMALL_BYTES)], MESSAGES * [bytes(LARGE_BYTES)]
    with connected(endpoint) as connection:
        yield _stream_aged(connection)
        yield _queue_by_policy(endpoint, connection, small)
        yield _queue_consumed(connection)
        yield _stream_consumed(connection)
        yield _queue_limited(connection, AGED, small, {"x-message-ttl": AGE_MS})
        yield _queue_limited(connection, SIZED, large, {"x-max-length-bytes": QUEUE_LIMIT_BYTES})
        yield _stream_limited(connection)


def _percent(part: int, whole: int) -> tuple[float, ...]:
    return (100 * part / whole,)


def _filled(connection: Any, queue: str, bodies: list[bytes]) -> None:
    channel = confirming(connection)
    publish_to(channel, queue, bodies)
    channel.close()


def _depth(connection: Any, queue: str) -> int:
    """The broker's own count of messages that wait."""
    channel = connection.channel()
    count = depth_of(channel, queue)
    channel.close()
    return count


def _read(connection: Any, queue: str, wanted: int, arguments: Mapping[str, Any] | None = None) -> int:
    """Consume and acknowledge until so many came, or nothing more comes; how many did."""
    channel = connection.channel()
    channel.basic_qos(prefetch_count=MESSAGES)
    count = 0
    for method, _, _ in channel.consume(queue, arguments=dict(arguments or {}), inactivity_timeout=2.0):
        if method is None:
            break
        channel.basic_ack(method.delivery_tag)
        count += 1
        if count == wanted:
            break
    channel.cancel()
    channel.close()
    return count


def _queue_consumed(connection: Any) -> Finding:
    with fresh_queue(connection) as queue:
        _filled(connection, queue, MESSAGES * [bytes(SMALL_BYTES)])
        first = _read(connection, queue, MESSAGES)
        depth, again = _depth(connection, queue), _read(connection, queue, MESSAGES)
    said = f"{depth} messages left in the queue after {first} were acknowledged"
    return Finding("rabbitmq", "classic queue", CONSUMED, "percent", _percent(again, first), said, depth == again)


def _stream_consumed(connection: Any) -> Finding:
    beginning = {"x-stream-offset": "first"}
    with fresh_queue(connection, {"x-queue-type": "stream"}) as queue:
        _filled(connection, queue, MESSAGES * [bytes(SMALL_BYTES)])
        first = _read(connection, queue, MESSAGES, beginning)
        again = _read(connection, queue, MESSAGES, beginning)
        begin, _ = _first(connection, queue)
    said = f"the stream still begins at offset {begin} after {first} messages were acknowledged"
    return Finding("rabbitmq", "stream", CONSUMED, "percent", _percent(again, first), said, begin == first - again)


def _queue_limited(connection: Any, what: str, bodies: list[bytes], limit: dict[str, Any]) -> Finding:
    """A queue with a limit, and beside it one without: what the first lost and the second kept."""
    with fresh_queue(connection, limit) as limited, fresh_queue(connection) as free:
        for queue in (limited, free):
            _filled(connection, queue, bodies)
        if what == AGED:
            time.sleep(AGE_MS / 1000 + 0.5)
        depth, unlimited = _depth(connection, limited), _depth(connection, free)
        left = _read(connection, limited, len(bodies))
    ((name, value),) = limit.items()
    said = f"{depth} of {len(bodies)} messages left in the queue, {unlimited} in one beside it without the limit"
    agrees = depth == left and unlimited == len(bodies)
    point = f"classic queue, {name} {value:,}"
    return Finding("rabbitmq", point, what, "percent", _percent(len(bodies) - left, len(bodies)), said, agrees)


def _stream_limited(connection: Any) -> Finding:
    """A stream drops whole segments, whenever it begins a new one."""
    limits = {"x-max-length-bytes": LOG_LIMIT_BYTES, "x-stream-max-segment-size-bytes": SEGMENT_BYTES // 4}
    bodies = [b"%08d" % number + bytes(LARGE_BYTES - 8) for number in range(LOG_BYTES // LARGE_BYTES)]
    with fresh_queue(connection, {"x-queue-type": "stream", **limits}) as queue:
        _filled(connection, queue, bodies)
        first, number, left = _limited(connection, queue, len(bodies))
    gone = len(bodies) - left
    said = f"the stream begins at offset {first:,} with message {number:,} of {len(bodies):,}"
    point = f"stream, x-max-length-bytes {LOG_LIMIT_BYTES:,}"
    # What a stream notes about its writers takes offsets, too.
    return Finding("rabbitmq", point, SIZED, "percent", _percent(gone, len(bodies)), said, first >= gone == number)


def _limited(connection: Any, queue: str, count: int) -> tuple[int, int, int]:
    """Once a stream's limit has worked: its first offset, the number of the message there, and how many are left."""
    _until_steady(lambda: _first(connection, queue)[0])
    first, body = _first(connection, queue)
    return first, int(body[:8]), _read(connection, queue, count, {"x-stream-offset": "first"})


def _stream_aged(connection: Any) -> Finding:
    """A stream looks at its segments' age when it begins a new one: what is younger is written after the pause."""
    limits = {"x-max-age": f"{AGE_MS // 1000}s", "x-stream-max-segment-size-bytes": SEGMENT_BYTES // 4}
    half = LOG_BYTES // LARGE_BYTES // 2
    bodies = [b"%08d" % number + bytes(LARGE_BYTES - 8) for number in range(2 * half)]
    with fresh_queue(connection, {"x-queue-type": "stream", **limits}) as queue:
        _filled(connection, queue, bodies[:half])
        time.sleep(AGE_MS / 1000 + 0.5)
        _filled(connection, queue, bodies[half:])
        first, number, left = _limited(connection, queue, len(bodies))
    gone = len(bodies) - left
    said = f"the stream begins at offset {first:,} with message {number:,} of {len(bodies):,}, {half:,} of them too old"
    point = f"stream, x-max-age {limits['x-max-age']}"
    return Finding("rabbitmq", point, AGED, "percent", _percent(gone, len(bodies)), said, first >= gone == number)


def _queue_by_policy(endpoint: Endpoint, connection: Any, bodies: list[bytes]) -> Finding:
    """The same limit of age by a policy, which an operator sets on queues that are there already."""
    point = f"classic queue, policy message-ttl {AGE_MS:,}"
    if endpoint.management_url is None:
        return Finding(
            "rabbitmq", point, AGED, "percent", error="policies are set by the management API, which is not here"
        )
    with (
        fresh_queue(connection) as limited,
        fresh_queue(connection) as free,
        policy(endpoint, limited, "message-ttl", AGE_MS),
    ):
        shown = _until_shown(endpoint, limited)
        for queue in (limited, free):
            _filled(connection, queue, bodies)
        time.sleep(AGE_MS / 1000 + 0.5)
        depth, unlimited = _depth(connection, limited), _depth(connection, free)
        left = _read(connection, limited, len(bodies))
    said = (
        f"the queue's effective policy is {shown}; {depth} of {len(bodies)} messages left, {unlimited} in one beside it"
    )
    agrees = depth == left and unlimited == len(bodies) and shown == {"message-ttl": AGE_MS}
    return Finding("rabbitmq", point, AGED, "percent", _percent(len(bodies) - left, len(bodies)), said, agrees)


def _until_shown(endpoint: Endpoint, queue: str) -> Any:
    """The queue's effective policy as the management API tells it, which learns of it late; None: it never does."""
    until_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until_s:
        told = asked_of_management(endpoint, f"queues/{in_path(endpoint.virtual_host)}/{queue}")
        if shown := told.get("effective_policy_definition"):
            return shown
        time.sleep(PAUSE_S)
    return None


def _first(connection: Any, queue: str) -> tuple[int, bytes]:
    """The offset at which a stream begins, and the message there."""
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1)
    wanted = channel.consume(queue, arguments={"x-stream-offset": "first"}, inactivity_timeout=TIMEOUT_S)
    _, properties, body = next(wanted)
    channel.cancel()
    channel.close()
    if properties is None:
        raise BrokerError("rabbitmq's stream delivered nothing from its beginning")
    return int(properties.headers["x-stream-offset"]), bytes(body)


def _topic_consumed(endpoint: Endpoint) -> Finding:
    with fresh_topic(endpoint) as topic, reading(endpoint) as consumer:
        publish(producer_of(endpoint), topic, MESSAGES * [bytes(SMALL_BYTES)])
        first = _read_topic(consumer, topic, 0, MESSAGES)
        consumer.commit(offsets=[TopicPartition(topic, 0, first)], asynchronous=False)
        again = _read_topic(consumer, topic, 0, MESSAGES)
        low, high = extent_of(consumer, topic)
    said = f"the log holds offsets {low:,} to {high:,} after offset {first:,} was committed"
    return Finding("kafka", "topic", CONSUMED, "percent", _percent(again, first), said, high - low == again)


def _topic_expired(endpoint: Endpoint, what: str, bodies: list[bytes], **limits: int) -> Finding:
    """A topic with a limit, and beside it one without: what the first lost and the second kept."""
    with fresh_topic(endpoint, **limits) as limited, fresh_topic(endpoint) as free, reading(endpoint) as consumer:
        producer = producer_of(endpoint)
        for topic in (limited, free):
            publish(producer, topic, bodies)
        low = _until_steady(lambda: extent_of(consumer, limited)[0])
        left = _read_topic(consumer, limited, low, len(bodies))
        kept = extent_of(consumer, free)[0]
    said = f"the log now begins at offset {low:,} of {len(bodies):,}; one beside it without the limit at {kept}"
    named = ", ".join(f"{name.replace('_', '.')} {value:,}" for name, value in limits.items())
    agrees = len(bodies) - left == low and kept == 0
    return Finding("kafka", f"topic, {named}", what, "percent", _percent(len(bodies) - left, len(bodies)), said, agrees)


def _read_topic(consumer: Consumer, topic: str, begin: int, wanted: int) -> int:
    """Read partition 0 from an offset until so many came, or nothing more comes; how many did."""
    consumer.assign([TopicPartition(topic, 0, begin)])
    count, until_s = 0, time.monotonic() + 2.0
    while count < wanted and time.monotonic() < until_s:
        if (message := consumer.poll(PAUSE_S)) is not None and not message.error():
            count, until_s = count + 1, time.monotonic() + 2.0
    return count


def _until_steady(low: Callable[[], int]) -> int:
    """Ask where a log begins until it has moved, and moves no more."""
    until_s, seen, since_s = time.monotonic() + TIMEOUT_S, low(), time.monotonic()
    while time.monotonic() < until_s and (not seen or time.monotonic() - since_s < 2.0):
        time.sleep(PAUSE_S)
        if (now := low()) != seen:
            seen, since_s = now, time.monotonic()
    return seen


PROBE = Probe("What is still readable after it was consumed, and what do limits of age and size take away?", look, 40.0)
