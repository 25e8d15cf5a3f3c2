"""At most once, at least once, exactly once: consumers that are killed in mid-work, and what became of each message.

A consumer is a process of its own that takes messages in batches, writes down each as it processes it, and kills itself
(SIGKILL: no goodbye, no flush) in the middle of a batch. Another takes its place until nothing is left. Of `MESSAGES`
it is then known which were never processed and which more than once:

* at most once settles a batch before the work (acknowledgement, commit of the offset), at least once after it;
* exactly once makes results and settles in one step that holds as a whole or not at all: a transaction, of either
  broker. RabbitMQ's (`tx.select`) has publishes and acknowledgements of one channel in it, and promises nothing across
  queues where the broker itself fails; its clients mostly confirm a result, then acknowledge, which is shown apart, and
  so is automatic acknowledgement, by which all that was sent to a consumer goes with it.

The broker itself is not hurt here; what it loses when it is killed is a question of its own.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from confluent_kafka import TopicPartition

from loadgen.errors import BrokerError
from loadgen.hands import forkserver
from loadgen.probes import Probe
from loadgen.probes.finding import Finding
from loadgen.probes.places import (
    PERSISTENT,
    TIMEOUT_S,
    committed_of,
    confirming,
    connected,
    depth_of,
    extent_of,
    fresh_queue,
    fresh_topic,
    log_of,
    producer_of,
    publish,
    publish_to,
    reading,
)
from loadgen.probes.quantities import LOST, TWICE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.probes.finding import Ground

AUTOMATIC, CONFIRMED = "automatic acknowledgement", "confirm, then acknowledge"
PROMISES = ("at most once", "at least once", "exactly once")
MODES = {"rabbitmq": (*PROMISES, AUTOMATIC, CONFIRMED), "kafka": PROMISES}
MESSAGES = 400
BATCH = 20  # messages that are settled together
CRASHES = 3
DIES_AFTER = 3 * BATCH + BATCH // 2  # in the middle of a batch
IDLE_S, IDLE_TIMES = 0.4, 2
SETTLED_S = 5.0


def look(ground: Ground, broker: BrokerName) -> Iterator[Finding]:
    """Each mode, with `CRASHES` crashes."""
    endpoint = ground.endpoints[broker]
    for mode in MODES[broker]:
        ground.progress(f"{broker}: {mode}, {CRASHES} crashes")
        tried = TRIES[broker](endpoint, mode)
        lost = MESSAGES - len(tried.counted)
        twice = sum(1 for times in tried.counted.values() if times > 1)
        point = f"{mode}, {tried.kills} consumers killed, {MESSAGES} messages"
        for what, number in ((LOST, lost), (TWICE, twice)):
            agrees = tried.left == 0 and tried.kills == (1 if mode == AUTOMATIC else CRASHES)
            yield Finding(broker, point, what, "number", (float(number),), tried.said, agrees)


@dataclass
class Tried:
    """How often each message was processed, by how many kills; what the broker says of it, and how much is left."""

    counted: Counter[bytes]
    kills: int
    said: str = ""
    left: int = 0


def _crash_and_finish(work: Callable[..., None], *given: Any) -> Tried:
    """Let workers die one after another, as long as they find work, and a last one finish."""
    context = forkserver()
    with TemporaryDirectory(prefix="loadgen-delivery-") as folder:
        log = Path(folder) / "processed"
        log.touch()
        kills = 0
        for number in range(CRASHES + 1):
            dies_after = DIES_AFTER if number < CRASHES else None
            process = context.Process(target=_work, args=(work, *given, str(log), dies_after), daemon=True)
            process.start()
            try:
                process.join(TIMEOUT_S)
                if process.is_alive():
                    raise BrokerError(f"a consumer had not ended after {TIMEOUT_S:g} s")
            finally:
                process.kill()
                process.join()
            if (failed := _failure_of(log)).exists():
                raise BrokerError(f"a consumer failed: {failed.read_text(encoding='utf-8')}")
            if process.exitcode not in {0, -signal.SIGKILL if dies_after else 0}:
                raise BrokerError(f"a consumer ended with status {process.exitcode} by itself")
            kills += bool(process.exitcode)
        return Tried(Counter(log.read_bytes().split()), kills)


def _failure_of(log: Path) -> Path:
    return log.with_name("failed")


def _work(work: Callable[..., None], *given: Any) -> None:
    """What a consumer's process runs; why it failed is for who started it to say."""
    try:
        work(*given)
    except Exception as error:  # noqa: BLE001 - clients have errors of their own
        *_, log, _ = given
        _failure_of(Path(log)).write_text(f"{type(error).__name__}: {error}", encoding="utf-8")


class _Notes:
    """What a consumer processed, on disk before it goes on; kills its own process when its time has come."""

    def __init__(self, log: str, dies_after: int | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for who started it, who ends it
        self._file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._left = dies_after

    def process(self, body: bytes) -> None:
        """Work on one message: what is written outlives this process."""
        os.write(self._file, body + b"\n")
        self.may_die()

    def may_die(self) -> None:
        """One message nearer to the crash, if there is to be one."""
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _bodies() -> list[bytes]:
    return [b"%06d" % number for number in range(MESSAGES)]


# --- RabbitMQ ---


def _rabbitmq(endpoint: Endpoint, mode: str) -> Tried:
    with connected(endpoint) as connection, fresh_queue(connection) as queue, fresh_queue(connection) as results:
        channel = confirming(connection)
        publish_to(channel, queue, _bodies())
        tried = _crash_and_finish(_consume_queue, endpoint, mode, queue, results)
        tried.left = depth_of(channel, queue)
        tried.said = f"{tried.left} messages left in the queue"
        if mode in {"exactly once", CONFIRMED}:
            made = depth_of(channel, results)
            tried.counted = Counter(_drained(channel, results))
            tried.said += f", {made} results made of {MESSAGES}"
    return tried


def _drained(channel: Any, queue: str) -> Iterator[bytes]:
    while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
        yield got[2]


def _consume_queue(endpoint: Endpoint, mode: str, queue: str, results: str, log: str, dies_after: int | None) -> None:
    notes = _Notes(log, dies_after)
    with connected(endpoint) as connection:
        channel = connection.channel()
        if mode == "exactly once":
            channel.tx_select()
        elif mode == CONFIRMED:
            channel.confirm_delivery()
        channel.basic_qos(prefetch_count=BATCH)
        for batch in _queue_batches(connection, channel, queue, automatic=mode == AUTOMATIC):
            last = batch[-1][0]
            if mode == "at most once":
                channel.basic_ack(last, multiple=True)
            for tag, body in batch:
                if mode in {"exactly once", CONFIRMED}:
                    channel.basic_publish("", results, body, PERSISTENT, mandatory=True)
                    notes.may_die()  # made, and perhaps confirmed, but not settled
                    if mode == CONFIRMED:
                        channel.basic_ack(tag)
                else:
                    notes.process(body)
            if mode in {"at least once", "exactly once"}:
                channel.basic_ack(last, multiple=True)
            if mode == "exactly once":
                channel.tx_commit()


def _queue_batches(connection: Any, channel: Any, queue: str, *, automatic: bool) -> Iterator[list[tuple[int, bytes]]]:
    """Delivery tags and bodies, until the broker has none left; what a dead consumer held comes back meanwhile."""
    batch: list[tuple[int, bytes]] = []
    idle = 0
    for method, _, body in channel.consume(queue, auto_ack=automatic, inactivity_timeout=IDLE_S):
        if method is not None:
            idle = 0
            batch.append((method.delivery_tag, body))
        if len(batch) == BATCH or (method is None and batch):
            yield batch
            batch = []
        if method is None:
            own = connection.channel()
            left = depth_of(own, queue)
            own.close()
            idle += left == 0
            if idle == IDLE_TIMES:
                return


# --- Kafka ---


def _kafka(endpoint: Endpoint, mode: str) -> Tried:
    with fresh_topic(endpoint) as topic, fresh_topic(endpoint) as results, reading(endpoint) as reader:
        publish(producer_of(endpoint), topic, _bodies())
        work = _transact if mode == "exactly once" else _consume_topic
        tried = _crash_and_finish(work, endpoint, mode, topic, results)
        with reading(endpoint, group__id=topic) as member:
            committed = committed_of(member, topic)
        end = extent_of(reader, topic)[1]
        tried.left = end - committed
        tried.said = f"offset {committed:,} of {end:,} is committed"
        if mode == "exactly once":
            tried.counted = _committed(endpoint, results)
            made = tried.counted.total()
            aborted = sum(1 for _ in log_of(endpoint, results, "read_uncommitted")) - made
            tried.said += f"; {made} committed results, {aborted} of aborted transactions"
    return tried


def _committed(endpoint: Endpoint, topic: str) -> Counter[bytes]:
    """What a reader of committed messages sees, as soon as the last transaction's marker is written."""
    until_s = time.monotonic() + SETTLED_S
    while (found := Counter(log_of(endpoint, topic, "read_committed"))).total() < MESSAGES:
        if time.monotonic() > until_s:
            break
        time.sleep(IDLE_S)
    return found


def _consume_topic(endpoint: Endpoint, mode: str, topic: str, _: str, log: str, dies_after: int | None) -> None:
    """Read on from the committed offset, in batches; settle each before or after it is processed."""
    notes = _Notes(log, dies_after)
    with reading(endpoint, group__id=topic) as consumer:
        for batch in _batches(consumer, topic):
            end = TopicPartition(topic, 0, (batch[-1].offset() or 0) + 1)
            if mode == "at most once":
                consumer.commit(offsets=[end], asynchronous=False)
            for message in batch:
                notes.process(message.value() or b"")
            if mode == "at least once":
                consumer.commit(offsets=[end], asynchronous=False)


def _transact(endpoint: Endpoint, _: str, topic: str, results: str, log: str, dies_after: int | None) -> None:
    """Read, make results and commit offsets, one transaction a batch; whoever comes next undoes what was left open."""
    notes = _Notes(log, dies_after)
    producer = producer_of(endpoint, transactional__id=topic)
    producer.init_transactions(TIMEOUT_S)
    with reading(endpoint, group__id=topic, isolation__level="read_committed") as consumer:
        for batch in _batches(consumer, topic):
            producer.begin_transaction()
            for message in batch:
                producer.produce(results, message.value(), partition=0)
                producer.flush(TIMEOUT_S)  # it is in the log, whatever becomes of the transaction
                notes.may_die()
            end = TopicPartition(topic, 0, (batch[-1].offset() or 0) + 1)
            producer.send_offsets_to_transaction([end], consumer.consumer_group_metadata(), TIMEOUT_S)
            producer.commit_transaction(TIMEOUT_S)


def _batches(consumer: Any, topic: str) -> Iterator[list[Any]]:
    """Partition 0 from where the group left off to its end; taken by hand, as a dead member would hold it for long."""
    at, end = max(0, committed_of(consumer, topic)), extent_of(consumer, topic)[1]
    consumer.assign([TopicPartition(topic, 0, at)])
    while at < end:
        batch = consumer.consume(min(BATCH, end - at), TIMEOUT_S)
        if not batch:
            raise BrokerError(f"kafka gave nothing from offset {at} of {end} within {TIMEOUT_S:g} s")
        at = (batch[-1].offset() or 0) + 1
        yield batch


TRIES = {"rabbitmq": _rabbitmq, "kafka": _kafka}
PROBE = Probe(
    "Which messages are lost and which processed twice when consumers are killed, by when they settle?", look, 20.0
)
