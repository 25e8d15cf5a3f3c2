"""A consumer through confluent-kafka: waits for the first message, then takes what is there without waiting.

A group shares its partitions out only while all of its members poll. A consumer that waits for its trial to begin
is therefore polled by a thread of its own, its partitions paused, so that it is ready when it says so.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from loadgen.driver import Received
from loadgen.drivers.client.confluent_watch import Watch, start_native_thread, wait_for
from loadgen.drivers.kafka_config import client_settings
from loadgen.drivers.wire.kafka_protocol import check
from loadgen.errors import BrokerError, TrialError
from loadgen.kafka_knobs import GROUP_PROTOCOLS

if TYPE_CHECKING:
    from confluent_kafka import Message

    from loadgen.driver import Int64, Target

MAX_FETCH_BYTES = 50 << 20  # the Java client's fetch.max.bytes
MAX_CONSUME = 1_000_000  # confluent-kafka's own limit of one call
SESSION_TIMEOUT_MS, MAX_POLL_INTERVAL_MS = 45_000, 300_000  # the Java client's
CLASSIC = {  # with the new protocol these are the broker's to say
    "group.protocol": "classic",
    "session.timeout.ms": SESSION_TIMEOUT_MS,
    "partition.assignment.strategy": "range",
}
JOINED_S = 30.0  # how long a group may take to give a consumer its partitions
_METADATA_S = 10.0
_POLL_S = 0.02
COORDINATING = {  # of a group that nobody had before; librdkafka looks for its coordinator
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}
_PASSING = COORDINATING | {
    KafkaError._PARTITION_EOF,  # noqa: SLF001 - librdkafka's local codes are named so
    KafkaError._TRANSPORT,  # noqa: SLF001
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError._TIMED_OUT,  # noqa: SLF001
}
_REBALANCING = {
    KafkaError._STATE,  # noqa: SLF001
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.STALE_MEMBER_EPOCH,
}


def consumer_settings(target: Target) -> dict[str, Any]:
    """Every setting that matters, under librdkafka's names; what has no knob is as the Java client has it."""
    knobs = target.settings
    is_automatic = bool(target.group) and knobs["commit_mode"] == "auto"
    protocol = {"group.protocol": "consumer"} if knobs["group_protocol"] == "consumer" else CLASSIC
    return {
        **client_settings(target.endpoint),
        **protocol,
        "group.id": target.group or f"loadgen-{target.name}",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": is_automatic,
        # At most once: librdkafka itself stores the offset of whatever it hands out.
        "enable.auto.offset.store": is_automatic and knobs["commit"] == "before",
        "auto.commit.interval.ms": knobs["auto_commit_interval_ms"],
        "fetch.min.bytes": knobs["fetch_min_bytes"],
        "fetch.wait.max.ms": knobs["fetch_max_wait_ms"],
        "max.partition.fetch.bytes": knobs["max_partition_fetch_bytes"],
        "fetch.max.bytes": max(MAX_FETCH_BYTES, knobs["max_partition_fetch_bytes"]),
        "message.max.bytes": min(MAX_FETCH_BYTES, max(1_000_000, knobs["max_partition_fetch_bytes"])),
        # By default it stops fetching for a whole second once 100,000 messages are queued.
        "fetch.queue.backoff.ms": 5,
        "max.poll.interval.ms": MAX_POLL_INTERVAL_MS,
        "isolation.level": knobs["isolation_level"],
        "check.crcs": True,
        "enable.partition.eof": False,
        "allow.auto.create.topics": False,
    }


class ConfluentConsumer:
    """See `loadgen.driver.Consumer`. With a group the partitions are shared out by one of Kafka's own protocols.

    With the classic one all of a member's partitions are taken back and given anew, with the new one some of them.
    """

    def __init__(self, target: Target, index: int, count: int) -> None:
        check(target.endpoint)
        self._watch = Watch(target.endpoint)
        self._target = target
        self._max_poll_records = min(target.settings["max_poll_records"], MAX_CONSUME)
        self._handed: dict[int, int] = {}
        self._highest: dict[int, int] = {}
        protocol = target.settings["group_protocol"] or GROUP_PROTOCOLS["confluent"]
        self._is_member = bool(target.group) and protocol != "static"
        self._gives_some = protocol == "consumer"
        self._commit_mode: str = target.settings["commit_mode"]
        self._commits_before: bool = target.settings["commit"] == "before"
        self._settles = bool(target.group) and not self._commits_before
        self._joined, self._begun = threading.Event(), threading.Event()
        self._was_full = False
        self._waiting: threading.Event | None = None  # set when the thread that polls until the beginning has ended
        self._mine: list[TopicPartition] = []
        self._refused: KafkaError | None = None
        self._revoked_ns = 0
        self._rebalances: list[tuple[int, int]] = []
        settings = consumer_settings(target)
        try:
            self._client = Consumer({**settings, "error_cb": self._watch.on_error})
            if self._is_member:
                self._client.subscribe([target.name], on_assign=self._assigned, on_revoke=self._revoked)
            else:
                self._client.assign(self._placed(self._share(index, count)))
        except KafkaException as error:
            raise BrokerError(f"kafka at {target.endpoint.address}: {error.args[0].str()}") from None
        if self._is_member:
            self._join()

    def _join(self) -> None:
        """Wait until the group has given this consumer its partitions; raises BrokerError after `JOINED_S`."""
        self._waiting = start_native_thread(self._poll_until_begun)
        wait_for(self._joined, JOINED_S)
        if self._refused is None and self._joined.is_set():
            return
        reason = f"no partitions after {JOINED_S:g} s" if self._refused is None else self._refused.name()
        self.close()
        raise BrokerError(f"kafka at {self._target.endpoint.address}: group {self._target.group}: {reason}")

    def _poll_until_begun(self) -> None:
        """The thread's work: take part in the group; its partitions are paused, so that no message comes."""
        while not self._begun.is_set() and self._refused is None:
            message = self._client.poll(_POLL_S)
            error = None if message is None else message.error()
            if error is not None and not passes(error):
                self._refused = error
                self._joined.set()

    def _assigned(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        """A callback of whoever polls: the group gave these partitions."""
        if not self._begun.is_set():
            partitions = self._placed(partitions)
        # Kept here, since asking the client itself while another thread polls it may block for good.
        if self._gives_some:
            client.incremental_assign(partitions)
            self._mine += partitions
        else:
            client.assign(partitions)
            self._mine = partitions
        if self._revoked_ns:
            self._rebalances.append((self._revoked_ns, time.monotonic_ns()))
            self._revoked_ns = 0
        if self._begun.is_set():
            # One that this member had, paused, and gave away before it began may come back as it left.
            client.resume(partitions)
        else:
            client.pause(partitions)
        self._joined.set()

    def _placed(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """The same partitions, to be read from the target's start on, if it has one."""
        start = self._target.start
        if start is None:
            return partitions
        if start.time_ms is not None:
            asked = [TopicPartition(each.topic, each.partition, start.time_ms) for each in partitions]
            return self._client.offsets_for_times(asked, timeout=_METADATA_S)
        known = start.offsets or {}
        return [
            TopicPartition(each.topic, each.partition, known.get(each.partition, each.offset)) for each in partitions
        ]

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """A callback of whoever polls: the group takes these partitions back; librdkafka lets go of them by itself."""
        taken = {each.partition for each in partitions}
        self._mine = [each for each in self._mine if each.partition not in taken]
        if self._mine:
            return  # it goes on with the others
        if self._begun.is_set():  # before that, members join one after another and nobody waits for a message
            self._revoked_ns = time.monotonic_ns()

    def take_rebalances(self) -> list[tuple[int, int]]:
        """The rebalances since the last call: (begin, end) in monotonic ns, without partitions meanwhile."""
        taken, self._rebalances = self._rebalances, []
        return taken

    def _begin(self) -> None:
        """The first call that wants messages: from here on it is the caller who polls."""
        self._stop_waiting()
        try:
            self._client.resume(self._mine)
        except KafkaException as error:
            raise TrialError(f"kafka at {self._target.endpoint.address}: {error.args[0].str()}") from None
        if self._refused is not None:
            self._failed(self._refused)

    def _stop_waiting(self) -> None:
        self._begun.set()
        if self._waiting is not None:
            wait_for(self._waiting, JOINED_S)
            self._waiting = None

    def _share(self, index: int, count: int) -> list[TopicPartition]:
        topic = self._client.list_topics(self._target.name, timeout=_METADATA_S).topics[self._target.name]
        return [TopicPartition(self._target.name, each) for each in sorted(topic.partitions) if each % count == index]

    @property
    def failed_requests(self) -> int:
        """What was refused or lost and tried again (`loadgen.driver.Retrying`)."""
        return self._watch.failed_requests

    @property
    def has_waiting(self) -> bool:
        """Whether the last call took as many as it may: librdkafka has more, most likely."""
        return self._was_full

    def receive(self, timeout_s: float) -> list[Received]:
        """Wait for the first message, then take what librdkafka has fetched already, at most `max_poll_records`."""
        if self._waiting is not None:
            self._begin()
        self._was_full = False
        first = self._client.poll(timeout_s)
        if first is None:
            self._watch.look(self._client)
            return []
        read_ns = time.monotonic_ns()
        # consume() with a timeout would wait for the whole number; without, it only drains.
        rest = self._client.consume(self._max_poll_records - 1, 0) if self._max_poll_records > 1 else []
        self._was_full = len(rest) >= self._max_poll_records - 1
        by_partition: dict[int, list[Message]] = {}
        for message in (first, *rest):
            if (error := message.error()) is not None:
                self._failed(error)
            elif (partition := message.partition()) is not None:
                by_partition.setdefault(partition, []).append(message)
        if by_partition:
            self._watch.well()
        received = [self._received(partition, messages, read_ns) for partition, messages in by_partition.items()]
        if self._commits_before and self._commit_mode != "auto" and self._target.group:
            self._commit()
        return received

    def _failed(self, error: KafkaError) -> None:
        if not passes(error):
            raise TrialError(f"kafka at {self._target.endpoint.address}: {error.name()}: {error.str()}")

    def _received(self, partition: int, messages: list[Message], read_ns: int) -> Received:
        values = [message.value() or b"" for message in messages]
        sizes: Int64 | int = len(values[0])
        flat = b"".join(values)
        if len(flat) == sizes * len(values) and len(set(map(len, values))) == 1:
            starts = np.arange(len(values)) * sizes
        else:
            sizes = np.fromiter(map(len, values), np.int64, len(values))
            starts = np.cumsum(sizes) - sizes
        first, last = cast("int", messages[0].offset()), cast("int", messages[-1].offset())
        seen = self._highest.get(partition, 0)
        redelivered = None
        if first < seen:
            redelivered = np.array([cast("int", message.offset()) < seen for message in messages])
        self._highest[partition] = max(seen, last + 1)
        self._handed[partition] = last + 1
        return Received(
            buffer=np.frombuffer(flat, np.uint8),
            starts=starts,
            sizes=sizes,
            source=partition,
            read_ns=read_ns,
            parsed_ns=time.monotonic_ns(),
            redelivered=redelivered,
            first_position=first if last - first == len(messages) - 1 else None,
        )

    def settle(self, count: int | None = None) -> None:
        """Commit the offsets of what was handed out, or let them be (with commit = before, they may have been)."""
        if count is not None or not (self._handed and self._settles):
            return
        if self._commit_mode != "auto":
            self._commit()
            return
        handed, self._handed = self._handed, {}
        for partition, offset in handed.items():
            try:
                self._client.store_offsets(offsets=[TopicPartition(self._target.name, partition, offset)])
            except KafkaException as error:
                # A partition that the group has given to another meanwhile: that one will read these again.
                if error.args[0].code() != KafkaError._STATE:  # noqa: SLF001
                    raise TrialError(f"kafka at {self._target.endpoint.address}: {error.args[0].str()}") from None

    def _commit(self) -> None:
        """Commit what was handed out: wait for the answer (sync), or go on at once (async)."""
        handed, self._handed = self._handed, {}
        offsets = [TopicPartition(self._target.name, partition, offset) for partition, offset in handed.items()]
        if not offsets:
            return
        try:
            if self._commit_mode == "async":
                self._client.commit(offsets=offsets, asynchronous=True)
            else:
                self._client.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            # Refused in the middle of a rebalance: whoever has the partition then reads these again.
            if error.args[0].code() not in _REBALANCING:
                raise TrialError(f"kafka at {self._target.endpoint.address}: {error.args[0].str()}") from None

    def close(self) -> None:
        """Commit what was stored, leave the group; never raises."""
        self._stop_waiting()
        try:
            self._client.close()
        except (KafkaException, RuntimeError):
            return


def passes(error: KafkaError) -> bool:
    """Whether librdkafka mends this by itself."""
    return bool(error.retriable() or error.code() in _PASSING)
