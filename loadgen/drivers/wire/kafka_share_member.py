"""One member of a share group.

The group's coordinator gives partitions out, and one partition to several members where there are more of them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kio.schema.share_group_heartbeat.v1.request import ShareGroupHeartbeatRequest
from kio.schema.types import GroupId, TopicName
from kio.static.primitive import i32

from loadgen.drivers.wire.kafka_member import FENCED_MEMBER_EPOCH, JOINED_S, UNKNOWN_MEMBER_ID, Member
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from loadgen.drivers.wire.kafka_cluster import Cluster

__all__ = ["FENCED_MEMBER_EPOCH", "UNKNOWN_MEMBER_ID", "ShareMember"]

_ASK_S = 0.1  # how often a member asks for partitions until it has some


class ShareMember(Member):
    """Membership of one consumer, which has partitions from the first moment on."""

    KIND = "share group"
    EXPECTED = "Kafka 4.2 or later with share.version = 1"

    def __init__(self, cluster: Cluster, group: str) -> None:
        super().__init__(cluster, group)
        deadline_s = time.monotonic() + JOINED_S
        self._connection = self._cluster.coordinator(self.group)
        while not self.partitions:
            if time.monotonic() > deadline_s:
                self.leave()
                where = f"kafka at {self._cluster.endpoint.address}: share group {self.group}"
                raise BrokerError(f"{where}: no partitions after {JOINED_S:g} s")
            self.poll()
            time.sleep(0.002)
            if not self.partitions:
                self._due_s = min(self._due_s, time.monotonic() + _ASK_S)

    def request(self, epoch: int) -> ShareGroupHeartbeatRequest:
        """See `Member.request`."""
        topics = (TopicName(self._cluster.topic),) if epoch == 0 else None
        return ShareGroupHeartbeatRequest(
            group_id=GroupId(self.group),
            member_id=self.member_id,
            member_epoch=i32(epoch),
            rack_id=None,
            subscribed_topic_names=topics,
        )
