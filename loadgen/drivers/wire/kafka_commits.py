"""Offset commits of a consumer, be it a member of its group or not: while it reads, and once at its end.

Now and then, as `auto_commit_interval_ms` says (auto), or whenever a batch is processed: awaited (sync), or under way
while the next one is (async; what is processed meanwhile goes with the next commit, since a later one replaces it).
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from loadgen.drivers.wire.framed import LinkError, wait
from loadgen.drivers.wire.kafka_cluster import BACKOFF_S, Cluster, offset_commit
from loadgen.drivers.wire.kafka_group_member import GONE, STALE_MEMBER_EPOCH
from loadgen.drivers.wire.kafka_protocol import CALL_TIMEOUT_S, Connection, error_name, is_retriable
from loadgen.errors import LoadgenError, TrialError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from kio.static.protocol import RequestPayload

    from loadgen.drivers.wire.kafka_group_member import GroupMember

_CLOSE_S = 5.0
_SYNC_S = 5.0  # so long one commit is awaited at once: the agent must be seen to live
_LOOK_S = 0.02


class Commits:
    """The committed offsets of one group on one topic, written by one consumer.

    Args:
        cluster: where the topic is.
        group: the group.
        settings: of the trial.
        member: who commits; None is nobody that the group knows.
    """

    def __init__(
        self, cluster: Cluster, group: str, settings: Mapping[str, Any], member: GroupMember | None = None
    ) -> None:
        self._cluster = cluster
        self._group = group
        self._member = member
        self._incarnation = 0
        self._is_awaited = settings["commit_mode"] == "sync"
        self._interval_s = settings["auto_commit_interval_ms"] / 1000 if settings["commit_mode"] == "auto" else 0.0
        self._connection: Connection | None = None
        self._processed: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._under_way: tuple[RequestPayload, int, dict[int, int]] | None = None
        self._due_s = time.monotonic() + self._interval_s

    def start(self, partitions: Collection[int]) -> dict[int, int]:
        """Find the coordinator; the offsets that are committed already in partitions that are now read."""
        if self._member is not None:
            self._incarnation = self._member.incarnation
        self._drop_connection()  # which may have been silent for long
        if not partitions:
            return {}
        self._connection = self._cluster.coordinator(self._group)
        found = self._cluster.committed(self._connection, self._group, partitions)
        self._committed |= found
        return found

    @property
    def has_lost(self) -> bool:
        """Whether the group has forgotten this member since `start`: then nothing is committed any more."""
        return self._member is not None and self._member.incarnation != self._incarnation

    def end(self, partitions: Iterable[int], within_s: float) -> None:
        """Commit what was processed, if that can be so soon; these partitions are somebody else's from now on."""
        self._finish(within_s)
        for each in partitions:
            self._processed.pop(each, None)
            self._committed.pop(each, None)

    def processed(self, offsets: dict[int, int]) -> None:
        """Everything before these offsets may be committed."""
        if self.has_lost:
            return
        self._processed = dict(offsets)
        self.poll()
        deadline_s = time.monotonic() + _SYNC_S
        while self._is_awaited and self._is_behind and time.monotonic() < deadline_s:
            wait([self._connection] if self._connection is not None else [], _LOOK_S)
            self.poll()

    def poll(self) -> None:
        """Hear of the commit under way, or begin one when it is time; a member stays in its group meanwhile."""
        if self._member is not None:
            self._member.poll()
        if self.has_lost:
            self._processed, self._committed = {}, {}
            self._drop_connection()
            return
        try:
            if self._under_way is not None:
                self._hear()
            elif time.monotonic() >= self._due_s:
                self._due_s = time.monotonic() + self._interval_s
                self._begin()
        except LinkError as error:
            self._cluster.trouble(str(error))
            self._lose()

    @property
    def _is_behind(self) -> bool:
        """Whether something that was processed is not known to be committed."""
        return self._under_way is not None or bool(self._changed())

    def _lose(self) -> None:
        self._drop_connection()
        self._due_s = time.monotonic() + BACKOFF_S

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._under_way = None

    def _changed(self) -> dict[int, int]:
        return {each: offset for each, offset in self._processed.items() if self._committed.get(each, 0) != offset}

    def _begin(self) -> None:
        changed = self._changed()
        if not changed:
            return
        if self._connection is None:
            self._connection = self._cluster.ask_coordinator(self._group)
        request = (
            offset_commit(self._cluster.topic, self._group, changed)
            if self._member is None
            else self._member.committing(changed)
        )
        correlation = self._connection.post(request)
        self._under_way = (request, correlation, changed)

    def _hear(self) -> None:
        assert self._connection is not None
        assert self._under_way is not None
        request, correlation, changed = self._under_way
        answer = self._connection.heard(request, correlation, CALL_TIMEOUT_S)
        if answer is None:
            return
        self._under_way = None
        for each in answer.topics[0].partitions:
            if not each.error_code:
                continue
            if self._member is not None and each.error_code in GONE:
                self._refused(self._member, int(each.error_code))
                return
            if not is_retriable(each.error_code):
                where = f"kafka at {self._cluster.endpoint.address}: group {self._group}"
                raise TrialError(f"{where}: offsets were refused: {error_name(each.error_code)}")
            raise LinkError(f"offsets were refused: {error_name(each.error_code)}")
        self._committed |= changed

    def _refused(self, member: GroupMember, code: int) -> None:
        if code == STALE_MEMBER_EPOCH:  # its number will be known with the next heartbeat
            member.ask_soon()
            self._due_s = time.monotonic() + _LOOK_S
        else:
            member.rejoin()

    def crash(self) -> None:
        """Commit nothing more; never raises."""
        if self._connection is not None:
            self._connection.close()

    def close(self) -> None:
        """Commit what was processed and close; never raises."""
        with suppress(LoadgenError):  # the broker is gone: what is not committed will be read again
            self._finish(_CLOSE_S)
        if self._connection is not None:
            self._connection.close()

    def _finish(self, within_s: float) -> None:
        deadline_s = time.monotonic() + within_s
        self._due_s = 0.0
        while self._is_behind and time.monotonic() < deadline_s:
            self.poll()
            self._due_s = min(self._due_s, time.monotonic() + _LOOK_S)
            time.sleep(0.001)
        self._due_s = time.monotonic() + self._interval_s
