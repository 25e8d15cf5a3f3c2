"""Kafka's control plane, shared by both drivers: a topic made and deleted by librdkafka's admin client, and watched.

What is asked while load flows, and brokers may be hurt, goes by frames of our own (`kafka_topics`, `kafka_groups`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from confluent_kafka import (
    KafkaError,
    KafkaException,
    TopicCollection,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from loadgen.driver import Gauge
from loadgen.drivers.kafka_asking import PATIENCE_S
from loadgen.drivers.kafka_config import FILE_DELETE_DELAY_MS, client_settings, is_transactional
from loadgen.drivers.kafka_groups import FIRST_S, Groups
from loadgen.drivers.kafka_reread import reread
from loadgen.drivers.kafka_share_admin import ShareGroups
from loadgen.drivers.kafka_topics import Topics, UnknownTopicError
from loadgen.drivers.wire.kafka_cluster import EARLIEST, LATEST
from loadgen.drivers.wire.kafka_protocol import check
from loadgen.errors import BrokerError
from loadgen.retention import is_limited

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint

CALL_S = 10.0
CREATED_S = 15.0
TOPIC_KNOBS = {
    "min_insync_replicas": "min.insync.replicas",
    "retention_ms": "retention.ms",
    "retention_bytes": "retention.bytes",
    "segment_bytes": "segment.bytes",
    "max_message_bytes": "max.message.bytes",
    "flush_messages": "flush.messages",
}
_PAUSE_S = 0.05


class KafkaAdmin:
    """Creates, watches and deletes topics (see `loadgen.driver.Admin`).

    The client is kept for as long as any of its futures may live: librdkafka fails them when it goes.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        check(endpoint)
        self._endpoint = endpoint
        self._address = endpoint.address
        self._client = AdminClient(client_settings(endpoint))
        self._topics, self._groups, self._share_groups = Topics(endpoint), Groups(endpoint), ShareGroups(endpoint)
        # What never changes of a topic while it lives, so that a gauge that asks each second asks for little.
        self._begins: dict[str, int] = {}

    def _result(self, what: str, future: Any) -> Any:
        try:
            return future.result(CALL_S)
        except KafkaException as error:
            inner = error.args[0]
            is_unknown = isinstance(inner, KafkaError) and inner.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
            kind = UnknownTopicError if is_unknown else BrokerError
            raise kind(f"kafka at {self._address}: {what}: {_text(error)}") from None
        except TimeoutError:
            raise BrokerError(f"kafka at {self._address}: {what}: no answer within {CALL_S:g} s") from None

    def create(self, target: Target) -> None:
        """Create the trial's topic and wait until each of its partitions has a leader that answers."""
        settings = target.settings
        config = {"file.delete.delay.ms": str(FILE_DELETE_DELAY_MS)}
        config |= {name: str(settings[knob]) for knob, name in TOPIC_KNOBS.items() if settings.get(knob) is not None}
        replicas = settings.get("replication_factor", 1)
        topic = NewTopic(target.name, num_partitions=settings["partitions"], replication_factor=replicas, config=config)
        future = self._client.create_topics([topic], operation_timeout=CALL_S)[target.name]
        self._result(f"topic {target.name} cannot be created", future)
        self._begins[target.name] = 0
        self._wait_until_led(target)
        if settings.get("group") == "share":
            self._share_groups.check()
            for group in target.groups:
                self._share_groups.configure(group, settings)
                self._share_groups.begin(group, target.name)
            return
        # A cluster's first group makes the topic of all groups, and a coordinator that has not read it yet refuses:
        # librdkafka (2.16) never asks it for the group's offsets again.
        for group in target.groups:
            self._groups.committed(target.name, group, range(settings["partitions"]), FIRST_S)

    def _wait_until_led(self, target: Target) -> None:
        deadline_s = time.monotonic() + CREATED_S
        while True:
            try:
                if len(self._topics.offsets(target.name, LATEST, patience_s=0)) == target.settings["partitions"]:
                    return
            except BrokerError:
                if time.monotonic() > deadline_s:
                    raise
            if time.monotonic() > deadline_s:
                raise BrokerError(f"kafka at {self._address}: topic {target.name} has no leader after {CREATED_S:g} s")
            time.sleep(_PAUSE_S)

    def _describe(self, target: Target) -> Any:
        """The topic as the controller knows it. Unlike listing, this never makes it."""
        future = self._client.describe_topics(TopicCollection([target.name]), request_timeout=CALL_S)[target.name]
        return self._result(f"topic {target.name} cannot be described", future)

    def delete(self, target: Target) -> None:
        """Delete the topic and what its groups have committed; what is gone already is no error."""
        self._topics.forget(target.name)
        self._begins.pop(target.name, None)
        check(self._endpoint)  # librdkafka waits in silence for a broker that has gone
        is_shared = target.settings.get("group") == "share"
        for group in target.groups if is_shared else ():  # before its topic, of which it holds a state
            self._share_groups.delete(group)
        future = self._client.delete_topics([target.name], operation_timeout=CALL_S)[target.name]
        self._unless(KafkaError.UNKNOWN_TOPIC_OR_PART, f"topic {target.name} cannot be deleted", future)
        for group in () if is_shared else target.groups:
            self._groups.delete(group)

    def _unless(self, harmless: int, what: str, future: Any) -> None:
        try:
            error = future.exception(CALL_S)
        except TimeoutError as late:
            error = late  # `_result` tells it
        if isinstance(error, KafkaException) and error.args[0].code() == harmless:
            return
        self._result(what, future)

    def depth(self, target: Target, received: int | None = None) -> int:
        """How many messages consumers have not been handed yet or, without `received`, not committed yet.

        The latter too where a transaction's end takes up an offset.
        """
        return self._depth(target, self.ends(target), received)

    def gauge(self, target: Target, received: int | None = None) -> Gauge:
        """The depth, end offsets less first ones, and the members of all groups; few requests, as it is asked often.

        BrokerError at once where a partition's leader does not answer: who asks each second asks again.
        """
        ends = self._topics.offsets(target.name, LATEST, patience_s=0)
        stored_msgs = None if is_transactional(target.settings) else sum(ends.values()) - self._begin(target)
        begin = first = self._begin(target)
        if is_limited(target.settings):
            begin = sum(self._topics.offsets(target.name, EARLIEST, patience_s=0).values())
        depth = self._depth(target, ends, received, patience_s=0)
        return Gauge(depth, stored_msgs, self._members(target), sum(ends.values()) - begin, begin - first)

    def _begin(self, target: Target) -> int:
        """The sum of the topic's first offsets when it was first asked for; one with retention forgets some later."""
        if target.name not in self._begins:
            self._begins[target.name] = sum(self._topics.offsets(target.name, EARLIEST).values())
        return self._begins[target.name]

    def _members(self, target: Target) -> int | None:
        """How many members the groups have; None where consumers join none, or none that can be described now."""
        settings = target.settings
        protocol: str = "share" if settings.get("group") == "share" else settings.get("group_protocol", "static")
        if protocol == "static" or not target.groups:
            return None
        try:
            return sum(self._groups.members(each, protocol, patience_s=0) for each in target.groups)
        except BrokerError:  # a group has no coordinator now: how full the topic is can be told all the same
            return None

    def _depth(self, target: Target, ends: dict[int, int], received: int | None, patience_s: float = PATIENCE_S) -> int:
        if received is not None and not is_transactional(target.settings):
            # What is handed out a second time without being marked so counts twice in `received`.
            return max(0, target.subscribers * (sum(ends.values()) - self._begin(target)) - received)
        begins = self._topics.offsets(target.name, EARLIEST, patience_s)
        if target.settings.get("group") == "share":
            lags = [self._share_groups.lags(group, target.name, list(ends)) for group in target.groups]
            return sum(each.get(partition, end - begins[partition]) for each in lags for partition, end in ends.items())
        committed = [self._groups.committed(target.name, each, ends, patience_s) for each in target.groups] or [{}]
        return sum(
            end - int(each.get(partition, begins[partition])) for each in committed for partition, end in ends.items()
        )

    def committed(self, target: Target, group: str, partitions: list[int]) -> dict[int, int]:
        """The offsets that a group has committed, by partition; none of a partition of which it has not."""
        return self._groups.committed(target.name, group, partitions)

    def ends(self, target: Target) -> dict[int, int]:
        """The offset behind the last message of each partition (see `loadgen.abilities.Seekable`)."""
        return self._topics.offsets(target.name, LATEST)

    def stored(self, target: Target) -> int | None:
        """How many messages the topic ever took by its own offsets; None where these count ends of transactions too."""
        if is_transactional(target.settings):
            return None
        return sum(self.ends(target).values()) - self._begin(target)

    def reread(self, target: Target) -> Iterator[bytes]:
        """Every message of the topic, by a fresh consumer (see `loadgen.abilities.Rereadable`)."""
        return reread(self._endpoint, target, self._topics.offsets(target.name, EARLIEST))

    def effective(self, target: Target) -> dict[str, Any]:
        """The topic's configuration as the broker tells it, and how many partitions and replicas it has.

        Each node of a cluster learns of a new topic by itself, and which of them answers is not ours to choose.
        """
        deadline_s = time.monotonic() + CREATED_S
        while True:
            try:
                return self._effective(target)
            except UnknownTopicError:
                if time.monotonic() > deadline_s:
                    raise
            time.sleep(_PAUSE_S)

    def _effective(self, target: Target) -> dict[str, Any]:
        resource = ConfigResource(ResourceType.TOPIC, target.name)
        future = self._client.describe_configs([resource], request_timeout=CALL_S)[resource]
        entries = self._result(f"topic {target.name} tells no configuration", future)
        told: dict[str, Any] = {name: entry.value for name, entry in entries.items() if not entry.is_sensitive}
        partitions = self._describe(target).partitions
        told["partitions"] = len(partitions)
        told["replication.factor"] = min(len(each.replicas) for each in partitions)
        if target.settings.get("group") == "share":
            told |= self._share_groups.configuration(target.groups[0])
        return told

    def close(self) -> None:
        """Nothing to do: the client goes with the object, after its futures."""


def _text(error: KafkaException) -> str:
    """One line of what librdkafka says, its name in front."""
    inner = error.args[0]
    if not isinstance(inner, KafkaError):
        return str(inner)
    return f"{inner.name()}: {inner.str()}".replace("\n", " ")
