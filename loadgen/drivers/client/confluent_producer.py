"""A producer through confluent-kafka: batches handed over, a callback for every message, a thread that polls.

librdkafka tells of an acknowledgement only to who polls, so a thread of its own polls all the time and takes the time
in the callback; who asks `poll` gets what it has gathered.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from confluent_kafka import KafkaError, KafkaException, Producer

from loadgen.driver import Settled
from loadgen.drivers.client.confluent_watch import Watch, start_native_thread, wait_for
from loadgen.drivers.kafka_config import (
    acks_number,
    client_settings,
    is_transactional,
    transaction_timeout_ms,
    transactional_id,
)
from loadgen.drivers.wire.kafka_batch import key_table
from loadgen.drivers.wire.kafka_partitioner import Partitioner
from loadgen.drivers.wire.kafka_protocol import check
from loadgen.errors import BrokerError
from loadgen.payload import SEQUENCE_BITS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confluent_kafka import Message

    from loadgen.driver import Int64, Target
    from loadgen.payload import Payloads

KEY_BYTES = 8
MOCK_BROKERS = "test.mock.num.brokers"
MESSAGE_TIMEOUT_MS = 120_000  # these two as the Java client's defaults
REQUEST_TIMEOUT_MS = 30_000
_MAX_QUEUE = 2_147_483_647
_CHUNK_NS = 100_000  # acknowledgements heard within so long share one time
_POLL_S = 0.05
_CLOSE_S = 2.0
_SWITCH_S = 0.0005  # how long one thread may keep the interpreter from the other; Python's 5 ms would show in every ack
_IDENTITY_AT, _IDENTITY_END = 8, 16  # where a message's stamp holds its sequence number


def producer_settings(target: Target, payloads: Payloads) -> dict[str, Any]:
    """Every setting that matters, under librdkafka's names; what has no knob is as the Java client has it."""
    knobs = target.settings
    largest_bytes = int(payloads.pool.sizes.max()) + KEY_BYTES
    # A ceiling's endpoint asks for librdkafka's own mock cluster within this process (`loadgen.ceiling`); 0 is none.
    mock_brokers = target.endpoint.configuration.get(MOCK_BROKERS, 0)
    return {
        **client_settings(target.endpoint),
        MOCK_BROKERS: mock_brokers,
        "acks": acks_number(knobs["acks"]),
        "enable.idempotence": knobs["enable_idempotence"],
        "linger.ms": knobs["linger_ms"],
        "batch.size": knobs["batch_size"],
        "batch.num.messages": 1_000_000,  # bytes bound a batch, not this
        "message.max.bytes": max(1_000_000, knobs["batch_size"], largest_bytes + 1024),
        "max.in.flight.requests.per.connection": knobs["max_in_flight_requests_per_connection"],
        "compression.type": knobs["compression_type"],
        # `room_msgs` keeps to buffer_memory; librdkafka's own bound is only a little higher, so as not to interfere.
        "queue.buffering.max.kbytes": min(_MAX_QUEUE, knobs["buffer_memory"] // 1024 + 1024),
        "queue.buffering.max.messages": 0,
        "message.send.max.retries": knobs["retries"],
        "message.timeout.ms": MESSAGE_TIMEOUT_MS,
        "request.timeout.ms": REQUEST_TIMEOUT_MS,
        "retry.backoff.ms": 100,
        "partitioner": "murmur2_random",
        "sticky.partitioning.linger.ms": 10,
        "delivery.report.only.error": False,
        "allow.auto.create.topics": mock_brokers > 0,  # whose topics nobody else can make
        **_transactional(target, payloads),
    }


def _transactional(target: Target, payloads: Payloads) -> dict[str, Any]:
    if not is_transactional(target.settings):
        return {}
    timeout_ms = transaction_timeout_ms(target.settings)
    # A message may not be tried for longer than its transaction may last.
    return {
        "transactional.id": transactional_id(target, payloads.producer),
        "transaction.timeout.ms": timeout_ms,
        "message.timeout.ms": min(MESSAGE_TIMEOUT_MS, timeout_ms),
    }


def _partitioner(target: Target, payloads: Payloads) -> Partitioner | None:
    """What names the partitions where librdkafka has no partitioner for it; else its own one chooses (None)."""
    name = target.settings["partitioner"]
    if name not in {"round_robin", "explicit"}:
        return None
    keys = key_table(payloads.message.key_count) if payloads.message.key_count else None
    return Partitioner(name, payloads, keys, target.settings["partitions"])


class ConfluentProducer:
    """See `loadgen.driver.Producer`."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        check(target.endpoint)
        self._watch = Watch(target.endpoint)
        self._topic = target.name
        self._payloads = payloads
        self._has_acks = acks_number(target.settings["acks"]) != 0
        self._is_idempotent = bool(target.settings["enable_idempotence"])
        self._mean_bytes = int(payloads.mean_size_bytes) + (KEY_BYTES if payloads.message.key_count else 0)
        self._buffer_bytes: int = target.settings["buffer_memory"]
        self._partitioner = _partitioner(target, payloads)
        self._outstanding = 0
        self._unsent: deque[dict[str, Any]] = deque()
        # Written by the polling thread, taken by ours; appends and pops of a deque are atomic.
        self._heard: deque[tuple[int, str | None, list[bytes]]] = deque()
        self._news = threading.Event()
        self._chunk: tuple[int, dict[str | None, list[bytes]]] = (0, {})
        self._is_closing = False
        sys.setswitchinterval(_SWITCH_S)
        settings = self._settings(target, payloads)
        try:
            self._client = Producer({**settings, "error_cb": self._watch.on_error})
        except KafkaException as error:
            raise BrokerError(f"kafka at {target.endpoint.address}: {error.args[0].str()}") from None
        self._begin()

    def _settings(self, target: Target, payloads: Payloads) -> dict[str, Any]:
        """What its client is made with."""
        return producer_settings(target, payloads)

    def _begin(self) -> None:
        """Have a thread of its own poll all the time."""
        self._stopped = start_native_thread(self._poll_for_ever)

    @property
    def failed_requests(self) -> int:
        """What was refused or lost and tried again (`loadgen.driver.Retrying`)."""
        return self._watch.failed_requests

    @property
    def room_msgs(self) -> int:
        """How many messages fit into `buffer_memory`; none while some wait for librdkafka's queue."""
        if self._unsent:
            return 0
        room = self._buffer_bytes // self._mean_bytes - self._outstanding
        return room if room > 0 else int(self._outstanding == 0)

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Hand the messages over in one call."""
        messages = self._messages(first_seq, intended_ns, sent_ns)
        self._outstanding += len(messages)
        self._produce(messages)

    def _messages(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> list[dict[str, Any]]:
        """The messages as confluent-kafka takes them."""
        flat, offsets = self._payloads.pack(first_seq, intended_ns, sent_ns)
        data = flat.tobytes()
        messages: list[dict[str, Any]] = [{"value": data[begin:end]} for begin, end in pairwise(offsets.tolist())]
        indices = self._payloads.key_indices(first_seq, len(messages))
        if indices is not None:
            for message, key in zip(messages, indices.tolist(), strict=True):
                message["key"] = key.to_bytes(KEY_BYTES, "big")
        places = None if self._partitioner is None else self._partitioner.places(first_seq, len(messages), indices)
        if places is not None:
            for message, partition in zip(messages, places.tolist(), strict=True):
                message["partition"] = partition
        return messages

    def _produce(self, messages: list[dict[str, Any]]) -> None:
        """Queue what librdkafka takes; the rest waits here, and leaves no room meanwhile."""
        for partition, placed in by_partition(messages):
            self._produce_to(partition, placed)

    def _produce_to(self, partition: int, messages: list[dict[str, Any]]) -> None:
        try:
            queued = self._client.produce_batch(self._topic, messages, partition, on_delivery=self._delivered)
        except BufferError:
            queued = 0
        if queued == len(messages):
            return
        for message in messages:
            error = message.pop("_error", None)
            if queued and error is None:
                continue
            if error is None or error.code() == KafkaError._QUEUE_FULL:  # noqa: SLF001 - librdkafka's local codes are named so
                self._unsent.append(message)
            else:
                self._heard.append((time.monotonic_ns(), error.name(), [message["value"]]))

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        """A callback of the polling thread, once for every message."""
        now_ns = time.monotonic_ns()
        if now_ns - self._chunk[0] > _CHUNK_NS:
            self._publish()
            self._chunk = (now_ns, {})
        name = None if error is None else error.name()
        self._chunk[1].setdefault(name, []).append(message.value() or b"")

    def _publish(self) -> None:
        at_ns, by_error = self._chunk
        for name, values in by_error.items():
            self._heard.append((at_ns, name, values))
        self._chunk = (0, {})
        if by_error:
            self._news.set()

    def _poll_for_ever(self) -> None:
        while not self._is_closing:
            try:
                self._client.poll(_POLL_S)
            except KafkaException as error:  # a producer past mending says so to who polls; `look` tells it on
                self._watch.on_error(error.args[0])
                time.sleep(_POLL_S)
            self._publish()

    def poll(self, timeout_s: float) -> list[Settled]:
        """What the polling thread has heard; waits for it up to `timeout_s`."""
        if self._unsent:
            waiting, self._unsent = list(self._unsent), deque()
            self._produce(waiting)
        if not self._heard and timeout_s > 0:
            wait_for(self._news, timeout_s)
        self._news.clear()
        settled: list[Settled] = []
        while self._heard:
            at_ns, name, values = self._heard.popleft()
            self._outstanding -= len(values)
            if self._has_acks:
                settled.append(Settled(_sequence_numbers(values), at_ns, name))
        if settled:
            self._watch.well()
        elif self._outstanding:
            self._watch.look(self._client)
        return settled

    def flush(self, timeout_s: float) -> list[Settled]:
        """Wait until every message is acknowledged or refused; librdkafka lets go of what lingers."""
        settled: list[Settled] = []
        deadline_s = time.monotonic() + timeout_s
        while self._outstanding and (left_s := deadline_s - time.monotonic()) > 0:
            settled += self.poll(min(left_s, _POLL_S))
        return settled

    def resent_seqs(self) -> Int64 | None:
        """None where librdkafka may repeat: it does not tell (`loadgen.driver.Resending`).

        With idempotence its repetitions double nothing, and without acknowledgements a written message is done.
        """
        return None if self._has_acks and not self._is_idempotent else np.zeros(0, np.int64)

    def close(self) -> None:
        """Stop the thread and drop what was not sent; never raises."""
        self._is_closing = True
        self._stopped.wait(_CLOSE_S)
        try:
            self._client.purge()
            self._client.flush(_CLOSE_S)
        except KafkaException:
            return


def by_partition(messages: list[dict[str, Any]]) -> Iterable[tuple[int, list[dict[str, Any]]]]:
    """The messages of each partition that was named (−1: none), each in their order.

    A call for each is needed: confluent-kafka 2.16 documents a partition in a message's own dict, and ignores it.
    """
    if not messages or "partition" not in messages[0]:
        return [(-1, messages)]
    placed: dict[int, list[dict[str, Any]]] = {}
    for message in messages:
        placed.setdefault(message["partition"], []).append(message)
    return placed.items()


def _sequence_numbers(values: list[bytes]) -> Int64:
    stamps = b"".join([value[_IDENTITY_AT:_IDENTITY_END] for value in values])
    return (np.frombuffer(stamps, "<u8") & np.uint64((1 << SEQUENCE_BITS) - 1)).astype(np.int64)
