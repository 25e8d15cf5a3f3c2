"""A consumer of a share group through confluent-kafka, as an application has it.

Where every record is simply accepted in passing (`commit_mode` auto) the library does so by itself at the next poll
(implicit acknowledgement, its default); else each record is acknowledged by a call of its own.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from confluent_kafka import AcknowledgeType, KafkaError, KafkaException, ShareConsumer

from loadgen.driver import Received
from loadgen.drivers.client.confluent_consumer import MAX_FETCH_BYTES, MAX_POLL_INTERVAL_MS, passes
from loadgen.drivers.client.confluent_watch import Watch
from loadgen.drivers.kafka_config import client_settings
from loadgen.drivers.kafka_dispositions import Dispositions
from loadgen.drivers.wire.kafka_protocol import check
from loadgen.errors import BrokerError, TrialError

if TYPE_CHECKING:
    from confluent_kafka import Message

    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint

_COMMIT_S, _CLOSE_S = 10.0, 2.0


def share_settings(target: Target, *, is_implicit: bool) -> dict[str, Any]:
    """Every setting that matters, under librdkafka's names; how a share group reads is its own configuration's."""
    knobs = target.settings
    return {
        **client_settings(target.endpoint),
        "group.id": target.group,
        "share.acknowledgement.mode": "implicit" if is_implicit else "explicit",
        "max.poll.records": knobs["max_poll_records"],
        "fetch.min.bytes": knobs["fetch_min_bytes"],
        "fetch.wait.max.ms": knobs["fetch_max_wait_ms"],
        "fetch.max.bytes": MAX_FETCH_BYTES,
        "max.poll.interval.ms": MAX_POLL_INTERVAL_MS,
        "check.crcs": True,
    }


class _Asker:
    """Asks whether a broker is there, as `Watch.look` wants it of a client: a share consumer cannot."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def list_topics(self, timeout: float) -> None:
        del timeout
        try:
            check(self._endpoint)
        except BrokerError:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT)) from None  # noqa: SLF001 - librdkafka names its own so


class ConfluentShareConsumer:
    """See `loadgen.driver.Consumer`."""

    def __init__(self, target: Target) -> None:
        check(target.endpoint)
        self._address = target.endpoint.address
        self._watch = Watch(target.endpoint)
        self._asker = _Asker(target.endpoint)
        self._commit_mode: str = target.settings["commit_mode"]
        self._accepts_at_once: bool = target.settings["commit"] == "before"
        self._dispositions = Dispositions(target.settings)
        self._is_implicit = self._commit_mode == "auto" and self._dispositions.accept_all
        self._handed: list[Message] = []
        self._is_settled = False
        settings = share_settings(target, is_implicit=self._is_implicit)
        try:
            self._client = ShareConsumer({**settings, "error_cb": self._watch.on_error})
            self._client.subscribe([target.name])
        except KafkaException as error:
            raise BrokerError(f"kafka at {self._address}: {error.args[0].str()}") from None

    @property
    def failed_requests(self) -> int:
        """What was refused or lost and tried again (`loadgen.driver.Retrying`)."""
        return self._watch.failed_requests

    @property
    def has_waiting(self) -> bool:
        """Unknown: the library hands out what one fetch acquired."""
        return False

    def receive(self, timeout_s: float) -> list[Received]:
        """What one poll hands out."""
        try:
            polled = self._client.poll(timeout_s)
        except KafkaException as error:
            self._failed(error.args[0])
            return []
        read_ns = time.monotonic_ns()
        by_partition: dict[int, list[Message]] = {}
        for message in polled:
            if (failure := message.error()) is not None:
                self._failed(failure)
            else:
                by_partition.setdefault(cast("int", message.partition()), []).append(message)
                self._handed.append(message)
                self._is_settled = False
        if not by_partition:
            self._watch.look(self._asker)
            return []
        self._watch.well()
        if self._accepts_at_once:
            self._acknowledge()
        return [_received(partition, messages, read_ns) for partition, messages in by_partition.items()]

    def _failed(self, error: KafkaError) -> None:
        if not passes(error):
            raise TrialError(f"kafka at {self._address}: {error.name()}: {error.str()}")

    def settle(self, count: int | None = None) -> None:
        """All that was handed out has been processed: acknowledge it."""
        if count is None and self._handed:
            self._acknowledge()
            self._is_settled = True

    def _acknowledge(self) -> None:
        handed, self._handed = self._handed, []
        try:
            if not self._is_implicit:
                self._say(handed)
            if self._commit_mode == "sync":
                self._client.commit_sync(_COMMIT_S)
            elif self._commit_mode == "async":
                self._client.commit_async()
        except KafkaException as error:
            self._failed(error.args[0])

    def _say(self, messages: list[Message]) -> None:
        """Say of each record what becomes of it."""
        offsets = np.array([cast("int", message.offset()) for message in messages])
        words = self._dispositions.of(offsets, _deliveries(messages))
        for message, word in zip(messages, words.tolist(), strict=True):
            self._client.acknowledge(message, AcknowledgeType(word))

    def close(self) -> None:
        """Say what is pending, leave the group; never raises."""
        with suppress(KafkaException, RuntimeError):
            if self._is_implicit and self._is_settled:  # which the next poll would have told
                self._client.commit_sync(_CLOSE_S)
            self._client.close()


def _deliveries(messages: list[Message]) -> Any:
    return np.array([message.delivery_count() or 1 for message in messages])


def _received(partition: int, messages: list[Message], read_ns: int) -> Received:
    values = [message.value() or b"" for message in messages]
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    offsets = [cast("int", message.offset()) for message in messages]
    again = _deliveries(messages) > 1
    return Received(
        buffer=np.frombuffer(b"".join(values), np.uint8),
        starts=np.cumsum(sizes) - sizes,
        sizes=int(sizes[0]) if (sizes == sizes[0]).all() else sizes,
        source=partition,
        read_ns=read_ns,
        parsed_ns=time.monotonic_ns(),
        redelivered=again if again.any() else None,
        first_position=offsets[0] if offsets[-1] - offsets[0] == len(offsets) - 1 else None,
    )
