"""What a Kafka client must know of a cluster: leaders, offsets, coordinators, producer ids. Rare, and waited for."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from kio.schema.find_coordinator.v2.request import FindCoordinatorRequest
from kio.schema.init_producer_id.v1.request import InitProducerIdRequest
from kio.schema.list_offsets.v1.request import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from kio.schema.metadata.v5.request import MetadataRequest, MetadataRequestTopic
from kio.schema.offset_commit.v7 import request as commit_by_anybody
from kio.schema.offset_commit.v9 import request as commit_by_member
from kio.schema.offset_fetch.v1.request import OffsetFetchRequest, OffsetFetchRequestTopic
from kio.schema.types import BrokerId, GroupId, TopicName
from kio.static.primitive import i8, i32, i32Timedelta, i64

from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_protocol import (
    Connection,
    check_versions,
    demand,
    error_name,
    feature_levels,
    open_any,
    patiently,
)
from loadgen.errors import BrokerError, TrialError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kio.static.protocol import RequestPayload

    from loadgen.endpoint import Endpoint

T = TypeVar("T")
Coordinated = Literal["group", "transaction"]
# A broker that was killed may register again only when its session has ended, after 9 s; then it recovers its logs,
# which takes longer than 30 s on a busy machine. RabbitMQ's clients wait as long (`faults.RECOVER_WITHIN_S`).
GIVE_UP_S = 60.0
BACKOFF_S = 0.1  # as the Java client's retry.backoff.ms
START_S = 5.0  # a topic just created has no leader yet; a refused connection at the start is told at once
EARLIEST, LATEST = i64(-2), i64(-1)
_NO_TIMEOUT = i32Timedelta.parse(timedelta(minutes=1))  # of transactions, which such a producer has none of


class Cluster:
    """The brokers of one endpoint and the leaders of one topic, as last heard."""

    def __init__(self, endpoint: Endpoint, topic: str) -> None:
        self.endpoint = endpoint
        self.topic = topic
        self.addresses: dict[int, tuple[str, int]] = {}
        self.leaders: dict[int, int] = {}
        self._failing_since_s: float | None = None
        self.failed_requests = 0
        self._not_before_s = 0.0
        self._start()

    def _start(self) -> None:
        """Hear of the topic for the first time; what is wrong now a person can mend."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                connection = open_any(self.endpoint, self.endpoint.hosts)
            except LinkError as error:
                raise BrokerError(f"kafka at {self.endpoint.address}: {error}") from None
            try:
                check_versions(connection)
                problem = self._ask_leaders(connection)
            except LinkError as error:
                raise BrokerError(f"kafka at {self.endpoint.address}: {error}") from None
            finally:
                connection.close()
            if problem is None:
                return
            if time.monotonic() > deadline:
                raise BrokerError(f"kafka at {self.endpoint.address}: topic {self.topic}: {problem}")
            time.sleep(BACKOFF_S)

    def _ask_leaders(self, connection: Connection) -> str | None:
        """Read the metadata; what is not as it should be, or None."""
        answer = connection.call(topic_metadata(self.topic))
        self.addresses = addresses_in(answer)
        code = int(answer.topics[0].error_code)
        if code:
            return error_name(code)
        self.leaders, lost = leaders_in(answer)
        return f"no leader for partition {lost[0]}" if lost else None

    @property
    def partitions(self) -> int:
        """How many partitions the topic has."""
        return max(self.leaders) + 1

    def refresh(self) -> bool:
        """Ask again who leads, no more often than the back-off; TrialError when nobody has answered for too long."""
        now_s = time.monotonic()
        if now_s < self._not_before_s:
            return False
        self._not_before_s = now_s + BACKOFF_S
        try:
            connection = open_any(self.endpoint, self._known)
            try:
                problem = self._ask_leaders(connection)
            finally:
                connection.close()
        except LinkError as error:
            problem = str(error)
        if problem is not None:
            self.trouble(problem)
        return problem is None

    def trouble(self, problem: str) -> None:
        """Something failed that may pass; TrialError when it has lasted too long."""
        self.failed_requests += 1
        now_s = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        if now_s - self._failing_since_s > GIVE_UP_S:
            raise TrialError(f"kafka at {self.endpoint.address}: gone for {GIVE_UP_S:g} s: {problem}")

    def well(self) -> None:
        """A broker answered as it should."""
        self._failing_since_s = None

    def connect(self, node: int) -> Connection:
        """A connection to a broker by its number; LinkError if it is not there."""
        if node not in self.addresses:
            raise LinkError(f"broker {node} is not in the metadata")
        return Connection(self.endpoint, *self.addresses[node])

    def until(self, what: str, attempt: Callable[[], T]) -> T:
        """Repeat `attempt` while it fails by LinkError, but not for ever."""
        try:
            return patiently(attempt, GIVE_UP_S, BACKOFF_S)
        except LinkError as error:
            raise TrialError(f"kafka at {self.endpoint.address}: {what}: {error}") from None

    def demand(self, what: str, code: int) -> None:
        """See `kafka_protocol.demand`."""
        demand(self.endpoint.address, what, code)

    def producer_id(self) -> tuple[int, int]:
        """A fresh producer id and epoch."""
        return self.until("no producer id", self.ask_producer_id)

    def ask_producer_id(self) -> tuple[int, int]:
        """The same without patience: LinkError if there is none now."""
        answer = self._call_any(InitProducerIdRequest(transactional_id=None, transaction_timeout=_NO_TIMEOUT))
        self.demand("no producer id", answer.error_code)
        return int(answer.producer_id), int(answer.producer_epoch)

    def feature_level(self, name: str) -> int:
        """The cluster's level of a feature; 0 where it has none."""
        return self.until("no features are told", lambda: feature_levels(self.endpoint, self._known)).get(name, 0)

    def coordinator(self, key: str, kind: Coordinated = "group") -> Connection:
        """A connection to the coordinator of a consumer group, or of a transactional id."""
        return self.until(f"no coordinator for {kind} {key}", lambda: self.ask_coordinator(key, kind))

    def ask_coordinator(self, key: str, kind: Coordinated = "group") -> Connection:
        """The same without patience: LinkError if there is none now."""
        answer = self._call_any(FindCoordinatorRequest(key=key, key_type=i8(kind == "transaction")))
        self.demand(f"no coordinator for {kind} {key}", answer.error_code)
        return Connection(self.endpoint, answer.host, int(answer.port))

    def _call_any(self, request: RequestPayload) -> Any:
        """Ask whichever broker answers."""
        connection = open_any(self.endpoint, self._known)
        try:
            return connection.call(request)
        finally:
            connection.close()

    @property
    def _known(self) -> list[tuple[str, int]]:
        return list(dict.fromkeys([*self.addresses.values(), *self.endpoint.hosts]))

    def committed(self, connection: Connection, group: str, partitions: Iterable[int]) -> dict[int, int]:
        """The group's committed offsets, of those partitions that have one."""
        request, what = offset_fetch(self.topic, group, partitions), f"no committed offsets of group {group}"
        return self.until(what, lambda: committed_in(connection.call(request), lambda code: self.demand(what, code)))

    def earliest(self, partitions: Iterable[int]) -> dict[int, int]:
        """The first offset there is in each of these partitions."""
        return self._offsets(partitions, EARLIEST)

    def latest(self, partitions: Iterable[int]) -> dict[int, int]:
        """The offset that the next message of each of these partitions will have."""
        return self._offsets(partitions, LATEST)

    def from_time(self, partitions: Iterable[int], time_ms: int) -> dict[int, int]:
        """The first offset of this time (ms since the epoch) or later; of a partition that has none its end."""
        found = self._offsets(partitions, i64(time_ms))
        older = [partition for partition, offset in found.items() if offset < 0]
        return found | (self.latest(older) if older else {})

    def _offsets(self, partitions: Iterable[int], at: i64) -> dict[int, int]:
        wanted = list(partitions)

        def attempt() -> dict[int, int]:
            found: dict[int, int] = {}
            by_leader: dict[int, list[int]] = {}
            for partition in wanted:
                if partition not in self.leaders:
                    raise LinkError(f"no leader for partition {partition}")
                by_leader.setdefault(self.leaders[partition], []).append(partition)
            for node, led in by_leader.items():
                connection = self.connect(node)
                try:
                    answer = connection.call(list_offsets(self.topic, led, at))
                finally:
                    connection.close()
                found |= offsets_in(answer, lambda code: self.demand("no offsets", code))
            return found

        def attempt_anew() -> dict[int, int]:
            try:
                return attempt()
            except LinkError:  # the leader has died, or is another by now
                self.refresh()
                raise

        return self.until("no offsets", attempt_anew)


def topic_metadata(topic: str) -> MetadataRequest:
    """A question for the brokers there are and the leaders of one topic, which is not made by it."""
    return MetadataRequest(topics=(MetadataRequestTopic(name=TopicName(topic)),), allow_auto_topic_creation=False)


def addresses_in(answer: Any) -> dict[int, tuple[str, int]]:
    """The brokers in the answer to it, by number."""
    return {int(each.node_id): (each.host, int(each.port)) for each in answer.brokers}


def leaders_in(answer: Any) -> tuple[dict[int, int], list[int]]:
    """The leaders' numbers in the answer to it, by partition, and the partitions that have none now."""
    (topic,) = answer.topics
    there = addresses_in(answer)
    led = {int(each.partition_index): int(each.leader_id) for each in topic.partitions}
    leaders = {partition: leader for partition, leader in led.items() if leader in there}
    return leaders, sorted(led.keys() - leaders.keys())


def list_offsets(topic: str, partitions: Iterable[int], at: i64) -> ListOffsetsRequest:
    """A question to their leader for the offsets of partitions at a time (ms since the epoch), or at an end."""
    wanted = tuple(ListOffsetsPartition(partition_index=i32(each), timestamp=at) for each in partitions)
    return ListOffsetsRequest(
        replica_id=BrokerId(-1), topics=(ListOffsetsTopic(name=TopicName(topic), partitions=wanted),)
    )


def offsets_in(answer: Any, demand: Callable[[int], None]) -> dict[int, int]:
    """The offsets in the answer to it, by partition; `demand` is shown each partition's error code."""
    found = {}
    for each in answer.topics[0].partitions:
        demand(each.error_code)
        found[int(each.partition_index)] = int(each.offset)
    return found


def offset_fetch(topic: str, group: str, partitions: Iterable[int]) -> OffsetFetchRequest:
    """A question for what a group has committed."""
    wanted = OffsetFetchRequestTopic(name=TopicName(topic), partition_indexes=tuple(i32(each) for each in partitions))
    return OffsetFetchRequest(group_id=GroupId(group), topics=(wanted,))


def committed_in(answer: Any, demand: Callable[[int], None]) -> dict[int, int]:
    """The offsets in the answer to it, by partition; `demand` is shown each partition's error code."""
    found = {}
    for each in answer.topics[0].partitions:
        demand(each.error_code)
        if each.committed_offset >= 0:
            found[int(each.partition_index)] = int(each.committed_offset)
    return found


def offset_commit(
    topic: str, group: str, offsets: Mapping[int, int], member_id: str = "", epoch: int = -1
) -> RequestPayload:
    """A commit by a member of a KIP-848 group, or by a consumer that is no member of any (generation −1)."""
    make: Any = commit_by_member if member_id else commit_by_anybody
    partitions = tuple(
        make.OffsetCommitRequestPartition(
            partition_index=i32(each), committed_offset=i64(offset), committed_metadata=None
        )
        for each, offset in sorted(offsets.items())
    )
    request: RequestPayload = make.OffsetCommitRequest(
        group_id=GroupId(group),
        generation_id_or_member_epoch=i32(epoch),
        member_id=member_id,
        topics=(make.OffsetCommitRequestTopic(name=TopicName(topic), partitions=partitions),),
    )
    return request
