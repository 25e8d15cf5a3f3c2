"""One member of a share group: joins, hears which partitions it may read, keeps its membership, leaves.

The group's coordinator gives partitions out, and one partition to several members where there are more of them.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kio.schema.share_group_heartbeat.v1.request import ShareGroupHeartbeatRequest
from kio.schema.types import GroupId, TopicName
from kio.static.primitive import i32

from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_cluster import BACKOFF_S
from loadgen.drivers.wire.kafka_protocol import error_name, is_retriable
from loadgen.errors import BrokerError, TrialError

if TYPE_CHECKING:
    from loadgen.drivers.wire.kafka_cluster import Cluster
    from loadgen.drivers.wire.kafka_protocol import Connection

JOINED_S = 30.0  # how long a group may take to give a member its partitions
_ASK_S = 0.1  # how often a member asks for them until then
_CLOSE_S = 2.0
UNKNOWN_MEMBER_ID, UNSUPPORTED_VERSION, FENCED_MEMBER_EPOCH = 25, 35, 110


class ShareMember:
    """Membership of one consumer; `partitions` are those that it may read now, of the topic `topic_id`."""

    def __init__(self, cluster: Cluster, group: str) -> None:
        self._cluster = cluster
        self.group = group
        self.member_id = str(uuid.uuid4())
        self.topic_id: uuid.UUID | None = None
        self.partitions: frozenset[int] = frozenset()
        self._epoch = 0
        self._connection: Connection | None = None
        self._under_way: tuple[ShareGroupHeartbeatRequest, int] | None = None
        self._due_s = 0.0
        self._join()

    def _join(self) -> None:
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

    def ask_soon(self) -> None:
        """Hear at the next `poll` whether the group has given out partitions anew."""
        self._due_s = 0.0

    def poll(self) -> None:
        """Hear of the heartbeat under way, or send one when it is time; TrialError where the group does not want us."""
        try:
            if self._under_way is not None:
                self._hear()
            elif time.monotonic() >= self._due_s:
                self._beat()
        except LinkError as error:
            self._lose(error)

    def rejoin(self) -> None:
        """The group does not know this member any more: come as a new one."""
        self._epoch, self.partitions = 0, frozenset()
        self._due_s = 0.0

    def _request(self, epoch: int) -> ShareGroupHeartbeatRequest:
        topics = (TopicName(self._cluster.topic),) if epoch == 0 else None
        return ShareGroupHeartbeatRequest(
            group_id=GroupId(self.group),
            member_id=self.member_id,
            member_epoch=i32(epoch),
            rack_id=None,
            subscribed_topic_names=topics,
        )

    def _beat(self) -> None:
        if self._connection is None:
            self._connection = self._cluster.ask_coordinator(self.group)
        request = self._request(self._epoch)
        self._under_way = (request, self._connection.post(request))
        self._due_s = time.monotonic() + JOINED_S  # until its answer says when the next one is due

    def _hear(self) -> None:
        assert self._connection is not None
        assert self._under_way is not None
        answer = self._connection.heard(*self._under_way)
        if answer is None:
            return
        self._under_way = None
        if answer.error_code:
            self._refused(int(answer.error_code), answer.error_message)
            return
        self._cluster.well()
        self._epoch = int(answer.member_epoch)
        self._due_s = time.monotonic() + answer.heartbeat_interval.total_seconds()
        if answer.assignment is not None:
            self._take(answer.assignment)

    def _take(self, assignment: Any) -> None:
        given: frozenset[int] = frozenset()
        for each in assignment.topic_partitions:  # there is one topic
            self.topic_id = each.topic_id
            given = frozenset(int(partition) for partition in each.partitions)
        self.partitions = given

    def _refused(self, code: int, text: str | None) -> None:
        if code in {UNKNOWN_MEMBER_ID, FENCED_MEMBER_EPOCH}:
            self.rejoin()
            return
        if is_retriable(code):
            raise LinkError(error_name(code))
        where = f"kafka at {self._cluster.endpoint.address}: share group {self.group}"
        if code == UNSUPPORTED_VERSION:
            raise BrokerError(f"{where}: the broker has none; expected Kafka 4.2 or later with share.version = 1")
        raise TrialError(f"{where}: {error_name(code)}: {text or 'no reason given'}")

    def _lose(self, error: LinkError) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._under_way = None
        self._due_s = time.monotonic() + BACKOFF_S
        self._cluster.trouble(str(error))

    def leave(self) -> None:
        """Tell the group, so that others get the partitions at once; never raises."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with suppress(LinkError):
            if self._under_way is not None:
                deadline_s = time.monotonic() + _CLOSE_S
                while connection.heard(*self._under_way) is None and time.monotonic() < deadline_s:
                    time.sleep(0.002)
            connection.call(self._request(-1), _CLOSE_S)
        connection.close()
