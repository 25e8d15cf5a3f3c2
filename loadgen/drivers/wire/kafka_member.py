"""One member of a group whose coordinator gives out its partitions: joins, hears which it may read, stays, leaves.

Both kinds of such groups (share groups and those of KIP-848) speak alike: a heartbeat joins, keeps the membership,
brings what was given, and leaves.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_cluster import BACKOFF_S
from loadgen.drivers.wire.kafka_protocol import CALL_TIMEOUT_S, error_name, is_retriable
from loadgen.errors import BrokerError, TrialError

if TYPE_CHECKING:
    from kio.static.protocol import RequestPayload

    from loadgen.drivers.wire.kafka_cluster import Cluster
    from loadgen.drivers.wire.kafka_protocol import Connection

JOINED_S = 30.0  # how long a group may take to give a member its partitions
_CLOSE_S = 2.0
UNKNOWN_MEMBER_ID, UNSUPPORTED_VERSION, FENCED_MEMBER_EPOCH = 25, 35, 110


class Member(ABC):
    """Membership of one consumer; `partitions` are those that it may read now, of the topic `topic_id`."""

    KIND: ClassVar[str]
    EXPECTED: ClassVar[str]
    """Which brokers have such groups, for people."""

    def __init__(self, cluster: Cluster, group: str) -> None:
        self._cluster = cluster
        self.group = group
        self.member_id = str(uuid.uuid4())
        self.topic_id: uuid.UUID | None = None
        self.partitions: frozenset[int] = frozenset()
        self.epoch = 0
        self.incarnation = 0
        """How often the group has forgotten it: all that it was given before is somebody else's."""
        self._connection: Connection | None = None
        self._under_way: tuple[RequestPayload, int] | None = None
        self._due_s = 0.0
        self._is_urgent = False

    @abstractmethod
    def request(self, epoch: int) -> RequestPayload:
        """A heartbeat: of epoch 0 to join, of -1 to leave."""

    def ask_soon(self) -> None:
        """Speak to the group with the next `poll` that can, be it only to hear whether it has given partitions out."""
        self._due_s, self._is_urgent = 0.0, True

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
        self.epoch, self.partitions = 0, frozenset()
        self.incarnation += 1
        self._due_s = 0.0

    def _beat(self) -> None:
        if self._connection is None:
            self._connection = self._cluster.ask_coordinator(self.group)
        request = self.request(self.epoch)
        self._under_way = (request, self._connection.post(request))
        self._is_urgent = False

    def _hear(self) -> None:
        assert self._connection is not None
        assert self._under_way is not None
        answer = self._connection.heard(*self._under_way, CALL_TIMEOUT_S)
        if answer is None:
            return
        self._under_way = None
        if answer.error_code:
            self._refused(int(answer.error_code), answer.error_message)
            return
        self._cluster.well()
        self.epoch = int(answer.member_epoch)
        if not self._is_urgent:
            self._due_s = time.monotonic() + self.beat_s(answer.heartbeat_interval.total_seconds())
        if answer.assignment is not None:
            self._take(answer.assignment)

    def beat_s(self, asked_s: float) -> float:
        """When the next heartbeat is due, where the group asks for one so often."""
        return asked_s

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
        where = f"kafka at {self._cluster.endpoint.address}: {self.KIND} {self.group}"
        if code == UNSUPPORTED_VERSION:
            raise BrokerError(f"{where}: the broker has none; expected {self.EXPECTED}")
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
            connection.call(self.request(-1), _CLOSE_S)
        connection.close()
