"""What breaks the order of messages: consumers that compete, messages that are handed back, requests sent again.

Each message carries its number. One is inverted if it is processed, or stands in the log, behind a larger one. In the
order in which a single consumer reads a single queue or partition there should be none; how many there are otherwise is
what one has to live with:

* two consumers on one queue, of which one is slow: each is handed messages in order, the work is not done in order;
* a consumer that hands messages back: they come again, behind what it was sent meanwhile;
* a producer with several requests in flight that loses its connection and sends again what was not answered: some of
  it had been taken, and now stands there twice, behind what followed it. Idempotence numbers the batches, so that the
  broker takes each of them once, and in order only.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.errors import BrokerError
from loadgen.probes import Probe
from loadgen.probes.finding import Finding
from loadgen.probes.places import (
    TIMEOUT_S,
    confirming,
    connected,
    depth_of,
    extent_of,
    fresh_queue,
    fresh_topic,
    log_of,
    noting,
    producer_of,
    publish,
    publish_to,
    reading,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.probes.finding import Ground

MESSAGES = 1_000
HANDED_BACK_EVERY = 50
SLOW_S = 0.002
IDLE_S = 1.5
CUTS = {True: 8, False: 20}  # by whether the producer is idempotent: after each it waits most of a second then
CUT_EVERY_MSGS = 300
WAITING_MSGS, PAUSE_S = 20, 0.001
INVERTED = "inverted messages"


def inversions(numbers: Iterable[int]) -> int:
    """How many come behind a larger one."""
    count, largest = 0, -1
    for number in numbers:
        count += number < largest
        largest = max(largest, number)
    return count


def look(ground: Ground, broker: BrokerName) -> Iterator[Finding]:
    """The plain case, and those that break it."""
    endpoint = ground.endpoints[broker]
    yield from (_rabbitmq if broker == "rabbitmq" else _kafka)(endpoint)


def _found(broker: BrokerName, point: str, numbers: list[int], sent: int, left: int, said: str) -> Finding:
    """A finding, which the broker's own word confirms where nothing is left and all that was sent came."""
    agrees = left == 0 and set(range(sent)) <= set(numbers)
    return Finding(broker, point, INVERTED, "number", (float(inversions(numbers)),), f"of {sent:,}; {said}", agrees)


# --- RabbitMQ ---


def _rabbitmq(endpoint: Endpoint) -> Iterator[Finding]:
    for point, consumers, hands_back in (
        ("one queue, one consumer", 1, False),
        ("one queue, two consumers", 2, False),
        (f"one queue, every {HANDED_BACK_EVERY}th handed back once", 1, True),
    ):
        with connected(endpoint) as connection, fresh_queue(connection) as queue:
            processed: list[int] = []
            failed: list[Exception] = []
            threads = [
                threading.Thread(
                    target=_work, args=(endpoint, queue, processed, failed, index * SLOW_S, hands_back), daemon=True
                )
                for index in range(consumers)
            ]
            left = _fed(connection, queue, threads)
            if failed:
                raise BrokerError(f"a consumer failed: {failed[0]}")
        yield _found("rabbitmq", point, processed, MESSAGES, left, f"{left} messages left in the queue")


def _fed(connection: Any, queue: str, threads: list[threading.Thread]) -> int:
    """Let consumers have the messages, until they have nothing more; what is left then.

    Several are all there before the first message, lest one has them all; one alone begins on a full queue, else a
    message that it hands back has nothing to fall behind of.
    """
    channel = confirming(connection)
    bodies = [b"%d" % number for number in range(MESSAGES)]
    if len(threads) == 1:
        publish_to(channel, queue, bodies)
    for thread in threads:
        thread.start()
    if len(threads) > 1:
        until_s = time.monotonic() + TIMEOUT_S
        while (
            channel.queue_declare(queue, passive=True).method.consumer_count < len(threads)
            and time.monotonic() < until_s
        ):
            time.sleep(PAUSE_S)
        publish_to(channel, queue, bodies)
    for thread in threads:
        thread.join(TIMEOUT_S)
        if thread.is_alive():
            raise BrokerError(f"a consumer had not ended after {TIMEOUT_S:g} s")
    return depth_of(channel, queue)


def _work(
    endpoint: Endpoint, queue: str, processed: list[int], failed: list[Exception], work_s: float, hands_back: bool
) -> None:
    """Consume until nothing comes any more; lists of the interpreter are appended to by one thread at a time."""
    try:
        with connected(endpoint) as connection:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=10)
            for method, _, body in channel.consume(queue, inactivity_timeout=IDLE_S):
                if method is None:
                    return
                if hands_back and not method.redelivered and int(body) % HANDED_BACK_EVERY == 0:
                    channel.basic_nack(method.delivery_tag, requeue=True)
                    continue
                time.sleep(work_s)
                processed.append(int(body))
                channel.basic_ack(method.delivery_tag)
    except Exception as error:  # noqa: BLE001 - told by the thread that waits for this one
        failed.append(error)


# --- Kafka ---


def _kafka(endpoint: Endpoint) -> Iterator[Finding]:
    with fresh_topic(endpoint) as topic:
        publish(producer_of(endpoint), topic, [b"%d" % number for number in range(MESSAGES)])
        numbers, end = _log(endpoint, topic)
    said = f"the log ends at offset {end:,}"
    yield _found("kafka", "one partition, one consumer", numbers, MESSAGES, end - len(numbers), said)
    for idempotent in (False, True):
        name = "idempotent" if idempotent else "not idempotent"
        with fresh_topic(endpoint) as topic:
            sent = _send_cut_off(endpoint, topic, idempotent=idempotent)
            numbers, end = _log(endpoint, topic)
        said = f"the log ends at offset {end:,}, {len(numbers) - len(set(numbers))} of them doubled"
        point = f"5 requests in flight, {name}, {CUTS[idempotent]} connections lost"
        yield _found("kafka", point, numbers, sent, end - len(numbers), said)


def _send_cut_off(endpoint: Endpoint, topic: str, *, idempotent: bool) -> int:
    """Send, and lose the connection whenever so many messages were confirmed; how many were sent."""
    producer = producer_of(
        endpoint,
        enable__idempotence=idempotent,
        max__in__flight__requests__per__connection=5,
        batch__num__messages=1,
        retries=1_000_000,
        retry__backoff__ms=1,
        reconnect__backoff__ms=1,
        reconnect__backoff__max__ms=10,
    )
    failed: list[Any] = []
    note = noting(failed)
    sent, cuts, until_s = 0, 0, time.monotonic() + TIMEOUT_S
    while cuts < CUTS[idempotent] and time.monotonic() < until_s:
        # Always some requests under way, of which some are taken and not yet answered.
        while len(producer) < WAITING_MSGS:
            producer.produce(topic, b"%d" % sent, partition=0, on_delivery=note)
            sent += 1
        producer.poll(PAUSE_S)
        if sent - len(producer) >= (cuts + 1) * CUT_EVERY_MSGS:
            _cut_connections(endpoint)
            cuts += 1
    if producer.flush(TIMEOUT_S) or failed or cuts < CUTS[idempotent]:
        raise BrokerError(f"kafka did not take all messages: {failed[0].str() if failed else 'no answer'}")
    return sent


def _cut_connections(endpoint: Endpoint) -> None:
    """Shut every connection that this process has to the broker, under the feet of whoever uses it."""
    ports = {port for _, port in endpoint.hosts}
    for entry in list(Path("/proc/self/fd").iterdir()):
        number = int(entry.name)
        with suppress(OSError):  # closed meanwhile, or not connected
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as own:
                if own.family in {socket.AF_INET, socket.AF_INET6} and own.getpeername()[1] in ports:
                    own.shutdown(socket.SHUT_RDWR)


def _log(endpoint: Endpoint, topic: str) -> tuple[list[int], int]:
    """The numbers as they stand in the log, and the offset at which it ends."""
    with reading(endpoint) as consumer:
        return [int(body) for body in log_of(endpoint, topic)], extent_of(consumer, topic)[1]


PROBE = Probe("What breaks the order: competing consumers, messages handed back, requests sent again?", look, 17.0)
