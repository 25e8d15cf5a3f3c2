"""The wire consumer of a share group: acquires records, hands them out, says of each what became of it.

Several consumers read one partition. What the broker hands to one of them is locked for that one until it is accepted,
released (it comes again, to whomever) or rejected, or until its lock ends; each delivery is counted. As in the Java
client a fetch carries what is to be said of the batch before it (`commit_mode` auto), or a request of its own does,
awaited (sync) or not (async), and nothing more is fetched while a batch is being processed.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.driver import Received
from loadgen.drivers.kafka_dispositions import ACCEPT, GAP, Dispositions
from loadgen.drivers.wire.framed import SLACK_BYTES, LinkError, wait
from loadgen.drivers.wire.kafka_cluster import BACKOFF_S, Cluster
from loadgen.drivers.wire.kafka_protocol import error_name, is_retriable
from loadgen.drivers.wire.kafka_records import RecordReader, batch_headers
from loadgen.drivers.wire.kafka_shape import DamagedBatchError
from loadgen.drivers.wire.kafka_share_member import FENCED_MEMBER_EPOCH, UNKNOWN_MEMBER_ID, ShareMember
from loadgen.drivers.wire.kafka_share_session import ShareSession, said_of
from loadgen.errors import LoadgenError, TrialError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Int64, Target, UInt8

INVALID_RECORD_STATE = 121  # what is said of a record whose lock has ended is too late: it comes again
_LOST_SESSION = {122, 123, 133}  # not found, another epoch, too many of them
_SYNC_S = 5.0  # so long one acknowledgement is awaited at once: the agent must be seen to live
_CLOSE_S = 2.0
_LOOK_S = 0.02


@dataclass(slots=True, eq=False)
class Acquired:
    """Records of one partition that were acquired together (n of them), and how far they have been handed out."""

    partition: int
    buffer: UInt8
    starts: Int64
    sizes: Int64
    offsets: Int64
    deliveries: Int64
    read_ns: int
    taken: int = 0


class KafkaShareConsumer:
    """A member of a share group (see `loadgen.driver.Consumer`); which partitions it reads is the group's choice."""

    def __init__(self, target: Target) -> None:
        settings = target.settings
        self._settings = settings
        self._max_poll_records: int = settings["max_poll_records"]
        self._commit_mode: str = settings["commit_mode"]
        self._accepts_at_once: bool = settings["commit"] == "before"
        self._dispositions = Dispositions(settings)
        self._cluster = Cluster(target.endpoint, target.name)
        self._sessions: dict[int, ShareSession] = {}
        self._reader = RecordReader()
        self._pending: deque[Acquired] = deque()
        self._handed: list[tuple[int, Int64, Int64]] = []  # partition, offsets, deliveries of what is not settled
        self._not_before_s = 0.0
        self._is_stale = self._has_begun = False
        self._member = ShareMember(self._cluster, target.group)

    @property
    def failed_requests(self) -> int:
        """What was refused or lost and tried again (`loadgen.driver.Retrying`)."""
        return self._cluster.failed_requests

    @property
    def has_waiting(self) -> bool:
        """Whether more was acquired than `max_poll_records`."""
        return bool(self._pending)

    def receive(self, timeout_s: float) -> list[Received]:
        """Wait for the first record, then return what was acquired with it, at most `max_poll_records`."""
        if not self._has_begun:  # others have joined meanwhile
            self._has_begun = True
            self._member.ask_soon()
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._turn()
            if self._pending:
                return self._hand_out()
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return []
            waits = [each.connection for each in self._sessions.values() if each.is_busy]
            wait(waits, min(left_s, _LOOK_S) if self._is_stale or not waits else min(left_s, 1.0))

    def _turn(self) -> None:
        """Keep the membership, hear what came, and have a fetch under way where nothing waits to be handed out."""
        self._member.poll()
        if self._is_stale and time.monotonic() >= self._not_before_s and self._cluster.refresh():
            self._is_stale = False
        for node, session in list(self._sessions.items()):
            if session.is_busy:
                self._attempt(node, session, self._hear)
        if self._pending or self._is_stale:
            return
        by_node: dict[int, set[int]] = {}
        for partition in self._member.partitions:
            by_node.setdefault(self._cluster.leaders.get(partition, -1), set()).add(partition)
        for node, partitions in by_node.items():
            found = self._session(node)
            if found is not None and not found.is_busy:
                self._attempt(node, found, lambda session, wanted=frozenset(partitions): session.fetch(wanted))

    def _session(self, node: int) -> ShareSession | None:
        if node not in self._sessions:
            try:
                self._sessions[node] = ShareSession(self._cluster.connect(node), self._member, self._settings)
            except LinkError as error:
                self._trouble(error)
        return self._sessions.get(node)

    def _attempt(self, node: int, session: ShareSession, what: Any) -> None:
        try:
            what(session)
        except LinkError as error:
            self._sessions.pop(node).connection.close()
            self._trouble(error)

    def _trouble(self, error: LinkError) -> None:
        self._is_stale = True
        self._not_before_s = time.monotonic() + BACKOFF_S
        self._cluster.trouble(str(error))

    def _hear(self, session: ShareSession) -> None:
        answer = session.hear()
        if answer is None:
            return
        read_ns = time.monotonic_ns()
        code = int(answer.error_code)
        if code in {UNKNOWN_MEMBER_ID, FENCED_MEMBER_EPOCH}:
            session.reopen()
            self._member.rejoin()
        elif code in _LOST_SESSION:
            session.reopen()
        elif code:
            self._demand("share fetch", code)
        else:
            self._cluster.well()
            for topic in answer.responses:
                for each in topic.partitions:
                    self._heard_of(session, each, read_ns)

    def _demand(self, what: str, code: int) -> None:
        """LinkError for an error that may pass, TrialError for one that will not."""
        if is_retriable(code):
            raise LinkError(f"{what}: {error_name(code)}")
        where = f"kafka at {self._cluster.endpoint.address}: {self._cluster.topic}"
        raise TrialError(f"{where}: {what} was refused: {error_name(code)}")

    def _heard_of(self, session: ShareSession, answer: Any, read_ns: int) -> None:
        """One partition's part of an answer, to a fetch or to an acknowledgement."""
        code = int(answer.error_code)
        said = int(getattr(answer, "acknowledge_error_code", 0))
        is_fetch = hasattr(answer, "acquired_records")
        if said not in {0, INVALID_RECORD_STATE}:
            self._demand("an acknowledgement", said)
        if code and not (code == INVALID_RECORD_STATE and not is_fetch):
            self._demand("share fetch" if is_fetch else "an acknowledgement", code)
        if not is_fetch or not answer.acquired_records:
            return
        partition = int(answer.partition_index)
        try:
            self._acquire(session, partition, answer, read_ns)
        except DamagedBatchError as error:
            where = f"kafka at {self._cluster.endpoint.address}: {self._cluster.topic}-{partition}"
            raise TrialError(f"{where}: {error}") from None

    def _acquire(self, session: ShareSession, partition: int, answer: Any, read_ns: int) -> None:
        """Find the records that were acquired among those that came; of offsets without a record that is said."""
        ranges = [(int(each.first_offset), int(each.last_offset), int(each.delivery_count))
                  for each in answer.acquired_records]  # fmt: skip
        firsts, lasts, counts = (np.array(column, np.int64) for column in zip(*sorted(ranges), strict=True))
        found = []
        for whole in self._read(bytes(answer.records or b"")):
            which = np.searchsorted(firsts, whole.offsets, side="right") - 1
            mine = (which >= 0) & (whole.offsets <= lasts[which])
            if mine.any():
                deliveries = counts[which[mine]]
                found.append(
                    Acquired(partition, whole.buffer, whole.starts[mine], whole.sizes[mine], whole.offsets[mine],
                             deliveries, read_ns)
                )  # fmt: skip
        if sum(len(each.offsets) for each in found) < int((lasts - firsts + 1).sum()):
            locked = np.concatenate([np.arange(first, last + 1) for first, last, _ in ranges])
            gaps = np.setdiff1d(locked, np.concatenate([np.zeros(0, np.int64), *(each.offsets for each in found)]))
            session.say(partition, said_of(gaps, np.full(len(gaps), GAP)))
        self._pending += found

    def _read(self, data: bytes) -> Iterator[Acquired]:
        """All records of some record batches, each with its offset."""
        flat = np.frombuffer(data + bytes(SLACK_BYTES), np.uint8)
        for each in self._reader.read(flat, batch_headers(flat.data, 0, len(data))):
            count = len(each.starts)
            offsets = each.offsets
            if offsets is None:
                assert each.first_offset is not None, "records have offsets, one way or the other"
                offsets = np.arange(each.first_offset, each.first_offset + count)
            sizes = np.broadcast_to(np.asarray(each.sizes), count)
            yield Acquired(-1, each.buffer, each.starts, sizes, offsets, offsets, 0)

    def _hand_out(self) -> list[Received]:
        received: list[Received] = []
        room = self._max_poll_records
        while room > 0 and self._pending:
            piece = self._pending[0]
            part = slice(piece.taken, piece.taken + room)
            starts, sizes, offsets = piece.starts[part], piece.sizes[part], piece.offsets[part]
            deliveries = piece.deliveries[part]
            piece.taken += len(starts)
            room -= len(starts)
            if piece.taken == len(piece.starts):
                self._pending.popleft()
            is_run = int(offsets[-1]) - int(offsets[0]) == len(offsets) - 1
            received.append(
                Received(
                    piece.buffer,
                    starts,
                    int(sizes[0]) if (sizes == sizes[0]).all() else sizes,
                    piece.partition,
                    piece.read_ns,
                    time.monotonic_ns(),
                    redelivered=deliveries > 1 if (deliveries > 1).any() else None,
                    first_position=int(offsets[0]) if is_run else None,
                )
            )
            self._handed.append((piece.partition, offsets, deliveries))
        if self._accepts_at_once:
            self._say()
        return received

    def settle(self, count: int | None = None) -> None:
        """All that was handed out has been processed: say of each record what became of it."""
        if count is None:
            self._say()
        self._member.poll()

    def _say(self) -> None:
        handed, self._handed = self._handed, []
        for partition, offsets, deliveries in handed:
            session = self._sessions.get(self._cluster.leaders.get(partition, -1))
            if session is not None:  # else its broker went away, and the records come again
                words = np.full(len(offsets), ACCEPT)
                if not self._dispositions.accept_all:
                    words = self._dispositions.of(offsets, deliveries)
                session.say(partition, said_of(offsets, words))
        if handed and self._commit_mode != "auto":
            self._say_now()

    def _say_now(self) -> None:
        """Say it in a request of its own, and in mode sync wait until that is answered."""
        for node, session in list(self._sessions.items()):
            if session.has_unsaid and not session.is_busy:
                self._attempt(node, session, ShareSession.acknowledge)
        deadline_s = time.monotonic() + _SYNC_S
        while self._commit_mode == "sync" and time.monotonic() < deadline_s:
            busy = {node: each for node, each in self._sessions.items() if each.is_busy}
            if not busy:
                return
            wait([each.connection for each in busy.values()], _LOOK_S)
            for node, session in busy.items():
                self._attempt(node, session, self._hear)

    def attend(self) -> None:
        """See `loadgen.driver.Attending`."""
        self._member.poll()

    def close(self) -> None:
        """Say what was settled, end the sessions and leave the group; never raises."""
        for session in self._sessions.values():
            session.close(_CLOSE_S)
        self._sessions.clear()
        try:
            self._member.leave()
        except LoadgenError:
            return
