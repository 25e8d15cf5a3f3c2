"""What a Kafka user reads of one topic: its group's share of the partitions, or all of them where it has no group.

In a group the broker gives out the partitions, anew whenever a user of the group comes or goes, on whatever worker.
What the user was given is committed (now and then, and before a partition goes to another user), never what only lies
here; so each message reaches one user of the group, and after a user's end in order nobody gets it again.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import gevent
import numpy as np
from gevent.lock import RLock

from loadgen.driver import Target
from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_cluster import Cluster
from loadgen.drivers.wire.kafka_consumer import KafkaConsumer
from loadgen.drivers.wire.kafka_group_member import GONE, STALE_MEMBER_EPOCH, GroupMember
from loadgen.drivers.wire.kafka_protocol import error_name, is_retriable
from loadgen.errors import LoadgenError, TrialError

if TYPE_CHECKING:
    from loadgen.drivers.wire.kafka_protocol import Connection

LOOK_S = 0.05
FRESH_S = 2.0  # so long a member's number may be behind the group's


class Reader:
    """A consumer of one topic, alone or as one of a group; used by one greenlet.

    Args:
        target: the topic, and the group if there is one.
        begin: where to begin in a partition in which the group has committed nothing.
    """

    def __init__(self, target: Target, begin: Literal["earliest", "latest"] = "earliest") -> None:
        self._target = Target(target.endpoint, target.name, target.settings)
        self._cluster = Cluster(target.endpoint, target.name)
        self._begin = self._cluster.earliest if begin == "earliest" else self._cluster.latest
        self._consumer: KafkaConsumer | None = None
        self._waiting: deque[tuple[int, int, bytes]] = deque()
        self._returned: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._reads: frozenset[int] = frozenset()
        self._coordinator: Connection | None = None
        self._commit_due_s = 0.0
        self._interval_s = target.settings["auto_commit_interval_ms"] / 1000
        self._failed: LoadgenError | None = None
        self._lock = RLock()
        self._member: GroupMember | None = None
        if target.group:
            self._member = GroupMember(self._cluster, target.group)
            self._keeper = gevent.spawn(self._keep, self._member)
        else:
            self._read(frozenset(range(self._cluster.partitions)))

    def take(self, count: int, timeout_s: float) -> list[bytes]:
        """Wait for a message, then return what has come, at most `count`; nothing if none comes in time."""
        deadline_s = time.monotonic() + timeout_s
        if time.monotonic() >= self._commit_due_s:  # what was returned before; this call's has not reached anybody yet
            with self._lock:
                self._commit()
        while not self._waiting:
            if self._failed is not None:
                raise self._failed
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return []
            with self._lock:
                self._follow()
                if self._consumer is not None:
                    self._receive(self._consumer, min(left_s, LOOK_S))
            gevent.sleep(0 if self._reads else min(left_s, LOOK_S))
        bodies: list[bytes] = []
        while self._waiting and len(bodies) < count:
            partition, self._returned[partition], body = self._waiting.popleft()
            bodies.append(body)
        if not self._waiting and self._consumer is not None:
            self._returned |= self._consumer.positions
        return bodies

    def _receive(self, consumer: KafkaConsumer, timeout_s: float) -> None:
        for batch in consumer.receive(timeout_s):
            sizes = np.broadcast_to(np.asarray(batch.sizes), len(batch.starts)).tolist()
            for number, (start, size) in enumerate(zip(batch.starts.tolist(), sizes, strict=True), 1):
                # Where offsets have gaps, the position is known at the end of all that was handed out.
                known = self._returned[batch.source] if batch.first_position is None else batch.first_position + number
                self._waiting.append((batch.source, known, batch.buffer[start : start + size].tobytes()))

    # The group.

    def _keep(self, member: GroupMember) -> None:
        """Stay in the group also while the user does something else."""
        try:
            while True:
                member.poll()
                if member.partitions != self._reads and self._lock.acquire(blocking=False):
                    try:
                        self._follow()
                    finally:
                        self._lock.release()
                gevent.sleep(LOOK_S)
        except LoadgenError as error:
            self._failed = error

    def _follow(self) -> None:
        """Read what the group says by now, and tell it."""
        member = self._member
        if member is None or member.partitions == self._reads:
            return
        given = member.partitions
        self._commit()
        self._read(given)
        member.owns(given)

    def _read(self, partitions: frozenset[int]) -> None:
        """Read these partitions from now on, those kept from where the user is."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        self._waiting.clear()
        begins = {each: self._returned[each] for each in partitions & self._returned.keys()}
        new = partitions - begins.keys()
        if new and self._member is not None:
            begins |= self._cluster.committed(self._demand_coordinator(), self._member.group, new)
        if missing := new - begins.keys():
            begins |= self._begin(missing)
        self._returned = dict(begins)
        self._committed = dict(begins)
        self._reads = partitions
        if begins:
            self._consumer = KafkaConsumer(self._target, 0, 1, begins)

    def _demand_coordinator(self) -> Connection:
        assert self._member is not None
        if self._coordinator is None:
            self._coordinator = self._cluster.coordinator(self._member.group)
        return self._coordinator

    def _commit(self) -> None:
        """Commit what was returned; what cannot be committed now is tried again, or read again by somebody else."""
        self._commit_due_s = time.monotonic() + self._interval_s
        changed = {each: at for each, at in self._returned.items() if self._committed.get(each) != at}
        if self._member is None or not changed:
            return
        try:
            code = self._member.commit(self._demand_coordinator(), changed)
            until_s = time.monotonic() + FRESH_S
            while code == STALE_MEMBER_EPOCH and time.monotonic() < until_s:  # the group's answer is under way
                if gevent.getcurrent() is self._keeper:
                    self._member.poll()
                gevent.sleep(LOOK_S)
                code = self._member.commit(self._demand_coordinator(), changed)
        except LinkError:
            self._drop_coordinator()
            return
        if not code:
            self._committed |= changed
        elif code not in GONE and not is_retriable(code):
            where = f"kafka at {self._target.endpoint.address}: group {self._member.group}"
            raise TrialError(f"{where}: offsets were refused: {error_name(code)}")

    def _drop_coordinator(self) -> None:
        if self._coordinator is not None:
            self._coordinator.close()
            self._coordinator = None

    def close(self) -> None:
        """Commit what was returned, and leave; never raises."""
        if self._member is not None:
            self._keeper.kill()
            with suppress(LoadgenError):  # what is not committed will be read again
                self._commit()
            self._member.leave()
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        self._drop_coordinator()
