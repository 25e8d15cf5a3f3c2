"""One member of a consumer group (KIP-848), whose coordinator gives each partition to one member.

A partition that is to go to another member is given up in two steps: the group takes it out of what this member may
read, and gives it on once this member has said, by what it `owns`, that it reads it no more.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from kio.schema.consumer_group_heartbeat.v1.request import ConsumerGroupHeartbeatRequest, TopicPartitions
from kio.schema.types import GroupId, TopicName
from kio.static.primitive import i32, i32Timedelta

from loadgen.drivers.wire.kafka_cluster import offset_commit
from loadgen.drivers.wire.kafka_member import FENCED_MEMBER_EPOCH, UNKNOWN_MEMBER_ID, Member

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kio.static.protocol import RequestPayload

    from loadgen.drivers.wire.kafka_cluster import Cluster
    from loadgen.drivers.wire.kafka_protocol import Connection

BEAT_S = 1.0  # the broker asks for one in 5 s: then a user of Locust's who comes would wait as long for its partitions
REBALANCE_TIMEOUT_S = 30.0  # how long it may take to give a partition up before the group forgets it
STALE_MEMBER_EPOCH = 113
GONE = frozenset({UNKNOWN_MEMBER_ID, FENCED_MEMBER_EPOCH, STALE_MEMBER_EPOCH})
"""What a commit is refused with where the partitions are somebody else's by now."""


class GroupMember(Member):
    """Membership of one consumer; it may have no partition, where there are more members than partitions."""

    KIND = "consumer group"
    EXPECTED = "Kafka 4.0 or later"

    def __init__(self, cluster: Cluster, group: str, rebalance_timeout_s: float = REBALANCE_TIMEOUT_S) -> None:
        super().__init__(cluster, group)
        self._rebalance_timeout = i32Timedelta.parse(timedelta(seconds=rebalance_timeout_s))
        self._owned: frozenset[int] = frozenset()
        self.most_beat_s = BEAT_S

    def owns(self, partitions: frozenset[int]) -> None:
        """Say which partitions are read from now on."""
        self._owned = partitions
        self.ask_soon()

    def rejoin(self) -> None:
        """See `Member.rejoin`."""
        super().rejoin()
        self._owned = frozenset()

    def beat_s(self, asked_s: float) -> float:
        """See `Member.beat_s`."""
        return min(asked_s, self.most_beat_s)

    def request(self, epoch: int) -> ConsumerGroupHeartbeatRequest:
        """See `Member.request`."""
        owned: tuple[TopicPartitions, ...] = ()
        if self._owned and epoch > 0:
            partitions = tuple(i32(each) for each in sorted(self._owned))
            owned = (TopicPartitions(topic_id=self.topic_id, partitions=partitions),)
        return ConsumerGroupHeartbeatRequest(
            group_id=GroupId(self.group),
            member_id=self.member_id,
            member_epoch=i32(epoch),
            rebalance_timeout=self._rebalance_timeout,
            subscribed_topic_names=(TopicName(self._cluster.topic),) if epoch >= 0 else None,
            topic_partitions=owned if epoch >= 0 else None,
        )

    def commit(self, connection: Connection, offsets: Mapping[int, int]) -> int:
        """Commit as this member, and wait for it; the first error code of any partition, 0 where there is none."""
        answer = connection.call(self.committing(offsets))
        codes = [int(each.error_code) for topic in answer.topics for each in topic.partitions]
        return next((code for code in codes if code), 0)

    def committing(self, offsets: Mapping[int, int]) -> RequestPayload:
        """A commit as this member."""
        return offset_commit(self._cluster.topic, self.group, offsets, self.member_id, self.epoch)
