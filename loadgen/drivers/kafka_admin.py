"""Kafka's control plane through librdkafka's admin client, shared by both drivers: make, watch and delete a topic."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from loadgen.drivers.kafka_config import client_settings
from loadgen.drivers.wire.kafka_protocol import check
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint

CALL_S = 10.0
CREATED_S = 15.0
FILE_DELETE_DELAY_MS = 1_000  # else a trial's files stay on the disk for a minute into the next trial
_PAUSE_S = 0.05
_NO_COORDINATOR_YET = frozenset(
    {KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE}
)
EARLIEST, LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]


class KafkaAdmin:
    """Creates, watches and deletes topics (see `loadgen.driver.Admin`).

    The client is kept for as long as any of its futures may live: librdkafka fails them when it goes.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        check(endpoint)
        self._address = endpoint.address
        self._client = AdminClient(client_settings(endpoint))
        # What never changes of a topic while it lives, so that a gauge that asks each second asks for little.
        self._known: dict[str, list[TopicPartition]] = {}
        self._begins: dict[str, int] = {}

    def _result(self, what: str, future: Any) -> Any:
        try:
            return future.result(CALL_S)
        except KafkaException as error:
            raise BrokerError(f"kafka at {self._address}: {what}: {_text(error)}") from None
        except TimeoutError:
            raise BrokerError(f"kafka at {self._address}: {what}: no answer within {CALL_S:g} s") from None

    def create(self, target: Target) -> None:
        """Create the trial's topic and wait until each of its partitions has a leader that answers."""
        settings = target.settings
        config = {"file.delete.delay.ms": str(FILE_DELETE_DELAY_MS)}
        if settings.get("flush_messages") is not None:
            config["flush.messages"] = str(settings["flush_messages"])
        topic = NewTopic(target.name, num_partitions=settings["partitions"], replication_factor=1, config=config)
        future = self._client.create_topics([topic], operation_timeout=CALL_S)[target.name]
        self._result(f"topic {target.name} cannot be created", future)
        self._wait_until_led(target)

    def _wait_until_led(self, target: Target) -> None:
        deadline_s = time.monotonic() + CREATED_S
        while True:
            try:
                if len(self._partitions(target)) == target.settings["partitions"]:
                    self._offsets(target, LATEST)
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

    def _partitions(self, target: Target) -> list[TopicPartition]:
        """The topic's partitions that have a leader; asked for until all of them have one."""
        if target.name not in self._known:
            led = [each.id for each in self._describe(target).partitions if each.leader is not None]
            found = [TopicPartition(target.name, each) for each in led]
            if len(found) < target.settings["partitions"]:
                return found
            self._known[target.name] = found
        return self._known[target.name]

    def _offsets(self, target: Target, which: OffsetSpec) -> dict[int, int]:
        try:
            return self._list_offsets(target, which)
        except BrokerError:
            # Where a broker went and came back, librdkafka looks for the leaders when the topic is described.
            if self._known.pop(target.name, None) is None:
                raise
        return self._list_offsets(target, which)

    def _list_offsets(self, target: Target, which: OffsetSpec) -> dict[int, int]:
        futures = self._client.list_offsets(dict.fromkeys(self._partitions(target), which), request_timeout=CALL_S)
        what = f"topic {target.name} tells no offsets"
        return {each.partition: self._result(what, future).offset for each, future in futures.items()}

    def delete(self, target: Target) -> None:
        """Delete the topic and what its group has committed; what is gone already is no error."""
        self._known.pop(target.name, None)
        self._begins.pop(target.name, None)
        future = self._client.delete_topics([target.name], operation_timeout=CALL_S)[target.name]
        self._unless(KafkaError.UNKNOWN_TOPIC_OR_PART, f"topic {target.name} cannot be deleted", future)
        if target.group:
            self._delete_group(target.group)

    def _unless(self, harmless: int, what: str, future: Any) -> None:
        try:
            error = future.exception(CALL_S)
        except TimeoutError as late:
            error = late  # `_result` tells it
        if isinstance(error, KafkaException) and error.args[0].code() == harmless:
            return
        self._result(what, future)

    def _delete_group(self, group: str) -> None:
        def ask() -> None:
            self._client.delete_consumer_groups([group], request_timeout=CALL_S)[group].result(CALL_S)

        what = f"kafka at {self._address}: group {group} cannot be deleted"
        try:
            self._coordinated(ask)
        except KafkaException as error:
            if error.args[0].code() not in {KafkaError.GROUP_ID_NOT_FOUND, KafkaError.NON_EMPTY_GROUP}:
                raise BrokerError(f"{what}: {_text(error)}") from None
        except TimeoutError:
            raise BrokerError(f"{what}: no answer within {CALL_S:g} s") from None

    def depth(self, target: Target, received: int | None = None) -> int:
        """How many messages consumers have not been handed yet or, without `received`, not committed yet."""
        ends = self._offsets(target, LATEST)
        if received is not None:
            if target.name not in self._begins:
                self._begins[target.name] = sum(self._offsets(target, EARLIEST).values())
            # What is handed out a second time counts twice in `received`.
            return max(0, sum(ends.values()) - self._begins[target.name] - received)
        begins = self._offsets(target, EARLIEST)
        committed = self._committed(target, list(ends)) if target.group else {}
        return sum(end - int(committed.get(partition, begins[partition])) for partition, end in ends.items())

    def _committed(self, target: Target, partitions: list[int]) -> dict[int, int]:
        # Asked as a member that never joins: where the group's coordinator is not ready yet, as on a broker that has
        # just started, the admin client's ListConsumerGroupOffsets ends the whole process (librdkafka 2.16: it hands
        # the retry to a consumer group that an admin client does not have).
        wanted = [TopicPartition(target.name, each) for each in partitions]
        asking = Consumer({**client_settings(target.endpoint), "group.id": target.group})
        try:
            found = self._coordinated(lambda: asking.committed(wanted, timeout=CALL_S))
        except KafkaException as error:
            raise BrokerError(
                f"kafka at {self._address}: group {target.group} tells no offsets: {_text(error)}"
            ) from None
        finally:
            asking.close()
        return {each.partition: each.offset for each in found if each.offset >= 0}

    def _coordinated(self, ask: Callable[[], Any]) -> Any:
        """What a group's coordinator says; one that a broker is only just making is waited for."""
        deadline_s = time.monotonic() + CALL_S
        while True:
            try:
                return ask()
            except KafkaException as error:
                if error.args[0].code() not in _NO_COORDINATOR_YET or time.monotonic() > deadline_s:
                    raise
            time.sleep(_PAUSE_S)

    def stored(self, target: Target) -> int:
        """How many messages the topic holds by its own offsets."""
        begins = self._offsets(target, EARLIEST)
        ends = self._offsets(target, LATEST)
        return sum(end - begins[partition] for partition, end in ends.items())

    def effective(self, target: Target) -> dict[str, Any]:
        """The topic's configuration as the broker tells it, and how many partitions and replicas it has."""
        resource = ConfigResource(ResourceType.TOPIC, target.name)
        future = self._client.describe_configs([resource], request_timeout=CALL_S)[resource]
        entries = self._result(f"topic {target.name} tells no configuration", future)
        told: dict[str, Any] = {name: entry.value for name, entry in entries.items() if not entry.is_sensitive}
        partitions = self._describe(target).partitions
        told["partitions"] = len(partitions)
        told["replication.factor"] = min(len(each.replicas) for each in partitions)
        return told

    def close(self) -> None:
        """Nothing to do: the client goes with the object, after its futures."""


def _text(error: KafkaException) -> str:
    """One line of what librdkafka says, its name in front."""
    inner = error.args[0]
    if not isinstance(inner, KafkaError):
        return str(inner)
    return f"{inner.name()}: {inner.str()}".replace("\n", " ")
