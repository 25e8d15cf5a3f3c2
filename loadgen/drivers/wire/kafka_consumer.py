"""The wire consumer: fetches ahead from every leader, hands out whole batches, commits what was processed."""

from __future__ import annotations

import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from loadgen.driver import Received
from loadgen.drivers.kafka_config import CLIENT_ID
from loadgen.drivers.wire.framed import LinkError, wait
from loadgen.drivers.wire.kafka_cluster import BACKOFF_S, Cluster
from loadgen.drivers.wire.kafka_commits import Commits
from loadgen.drivers.wire.kafka_protocol import (
    API_FETCH,
    FETCH_VERSION,
    Connection,
    error_name,
    is_retriable,
)
from loadgen.drivers.wire.kafka_records import BatchHeader, RecordReader, Records, batch_headers, committed
from loadgen.drivers.wire.kafka_shape import DamagedBatchError
from loadgen.errors import TrialError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from loadgen.driver import Start, Target, UInt8

MAX_FETCH_BYTES = 50 << 20  # the Java client's fetch.max.bytes
OFFSET_OUT_OF_RANGE = 1
REQUEST_TIMEOUT_S = 30.0
_LOOK_S = 0.02
ASK_FIRST_BYTES = 64 << 10
"""From so large an answer on the next fetch is sent before this one is parsed, so that the broker works meanwhile.

Of a smaller one the messages are stamped first: the request would take as long as they do, and be part of their
latency (docs/performance.md has it measured)."""
_FETCH = struct.Struct(">iiiibiii")  # replica, max wait, min and max bytes, isolation, session and its epoch, topics
_ASKED = struct.Struct(">iiqqi")  # partition, leader epoch, offset, log start, max bytes
_ABORTED = struct.Struct(">qq")  # producer id, first offset
_ANSWER = struct.Struct(">ihqqqi")  # partition, error, high watermark, last stable, log start, aborted transactions


@dataclass(slots=True, eq=False)
class Link:
    """A connection to one leader and the fetch that is under way on it."""

    connection: Connection
    asked: frozenset[int] = frozenset()
    correlation: int = 0
    sent_s: float = 0.0
    read_ns: int = 0


@dataclass(slots=True, eq=False)
class Piece:
    """What one fetch brought of one partition, not parsed yet."""

    partition: int
    buffer: UInt8
    headers: list[BatchHeader]
    from_offset: int
    next_offset: int
    read_ns: int


@dataclass(slots=True, eq=False)
class Reading:
    """The piece that is being handed out, and how far."""

    piece: Piece
    records: Iterator[Records]
    current: Records | None = None
    taken: int = 0


@dataclass(slots=True)
class Progress:
    """How far each partition has come: asked for, handed out, processed."""

    fetched: dict[int, int] = field(default_factory=dict)
    handed: dict[int, int] = field(default_factory=dict)
    highest: dict[int, int] = field(default_factory=dict)


class KafkaConsumer:
    """Reads its share of the partitions (see `loadgen.driver.Consumer`) without a group's rebalancing.

    It begins at the group's committed offsets, else at the target's start, else at the earliest; or it is told where
    (`begins`: offsets by partition, those that it reads), and then commits nothing by itself. `highest` are the offsets
    behind what was handed out before, by partition: below them a message comes again. The next fetch is under way while
    a batch is handed out; nothing more is read from the sockets until all that came has been handed out.
    """

    def __init__(
        self,
        target: Target,
        index: int,
        count: int,
        begins: Mapping[int, int] | None = None,
        *,
        cluster: Cluster | None = None,
        highest: dict[int, int] | None = None,
    ) -> None:
        settings = target.settings
        self._max_poll_records: int = settings["max_poll_records"]
        self._max_partition_bytes: int = settings["max_partition_fetch_bytes"]
        self._cluster = cluster or Cluster(target.endpoint, target.name)
        self._partitions: Sequence[int] = range(index, self._cluster.partitions, count) if begins is None else [*begins]
        self._is_committed_only: bool = settings["isolation_level"] == "read_committed"
        name, self._topic = CLIENT_ID.encode(), target.name.encode()
        self._client = struct.pack(f">h{len(name)}s", len(name), name)
        self._wants = _FETCH.pack(-1, settings["fetch_max_wait_ms"], settings["fetch_min_bytes"], MAX_FETCH_BYTES,
                                  self._is_committed_only, 0, -1, 1)  # fmt: skip
        self._answer_at = 4 + 4 + 2 + 4 + 4 + 2 + len(self._topic)  # up to the one topic's number of partitions
        self._patience_s = settings["fetch_max_wait_ms"] / 1000 + REQUEST_TIMEOUT_S
        self._links: dict[int, Link] = {}
        self._not_before_s: dict[int, float] = {}
        self._is_stale = False
        self._pending: deque[Piece] = deque()
        self._reading: Reading | None = None
        self._reader = RecordReader()
        self._progress = Progress(highest={} if highest is None else highest)
        self._commits: Commits | None = None
        self._commits_before: bool = settings["commit"] == "before"
        if self._partitions:
            self._start(target, dict(begins or {}))

    def _start(self, target: Target, begins: dict[int, int]) -> None:
        if target.group and not begins:
            self._commits = Commits(self._cluster, target.group, target.settings)
            begins = self._commits.start(self._partitions)
        missing = [each for each in self._partitions if each not in begins]
        self._progress.fetched = {**begins_of(self._cluster, missing, target.start), **begins}
        self._progress.handed = dict(self._progress.fetched)
        self._fetch()

    @property
    def failed_requests(self) -> int:
        """What was refused or lost and tried again (`loadgen.driver.Retrying`)."""
        return self._cluster.failed_requests

    @property
    def positions(self) -> dict[int, int]:
        """By partition: the offset after the last message that was handed out."""
        return dict(self._progress.handed)

    @property
    def topic(self) -> str:
        """What it reads."""
        return self._cluster.topic

    @property
    def connections(self) -> list[Connection]:
        """What messages may come from, for whoever waits for more than this consumer."""
        return [link.connection for link in self._links.values()]

    @property
    def has_waiting(self) -> bool:
        """Whether more was fetched than `max_poll_records`."""
        return self._reading is not None or bool(self._pending)

    def receive(self, timeout_s: float) -> list[Received]:
        """Wait for the first message, then return all that has come, at most `max_poll_records`."""
        received = self._take()
        deadline_s = time.monotonic() + timeout_s
        while not received:
            self._read()
            received = self._take()
            self._fetch()
            left_s = deadline_s - time.monotonic()
            if received or left_s <= 0:
                break
            if self._is_stale or self._not_before_s:
                left_s = min(left_s, _LOOK_S)
            connections = [link.connection for link in self._links.values()]
            wait(connections, left_s)
        if self._commits_before:
            self._processed()
        elif self._commits is not None:
            self._commits.poll()
        return received

    def settle(self, count: int | None = None) -> None:
        """What was handed out has been processed: it may be committed (with commit = before, it may have been)."""
        if count is None and not self._commits_before:
            self._processed()

    def _processed(self) -> None:
        if self._commits is not None:
            self._commits.processed(self._progress.handed)

    def crash(self) -> None:
        """See `loadgen.driver.Crashing`."""
        if self._commits is not None:
            self._commits.crash()
        self._hang_up()

    def close(self) -> None:
        """Commit what was processed and close; never raises."""
        if self._commits is not None:
            self._commits.close()
        self._hang_up()

    def _hang_up(self) -> None:
        for link in self._links.values():
            link.connection.close()
        self._links.clear()

    def _fetch(self) -> None:
        """Have a fetch under way for every partition, as far as its leader is known."""
        if self._is_stale and self._cluster.refresh():
            self._is_stale = False
        asked: set[int] = set()
        for link in self._links.values():
            asked |= link.asked
        if len(asked) == len(self._partitions):
            self._expire()
            return
        now_s = time.monotonic()
        self._not_before_s = {each: due_s for each, due_s in self._not_before_s.items() if due_s > now_s}
        by_node: dict[int, list[int]] = {}
        for partition in self._partitions:
            if partition not in asked and partition not in self._not_before_s:
                by_node.setdefault(self._cluster.leaders.get(partition, -1), []).append(partition)
        for node, partitions in by_node.items():
            found = self._link(node)
            if found is not None and not found.asked:
                self._ask(node, found, partitions)

    def _expire(self) -> None:
        now_s = time.monotonic()
        for node, link in list(self._links.items()):
            if link.asked and now_s - link.sent_s > self._patience_s:
                self._lose(node, LinkError(f"no answer within {self._patience_s:g} s"))

    def _link(self, node: int) -> Link | None:
        if node not in self._links and not self._is_stale:
            try:
                self._links[node] = Link(self._cluster.connect(node))
            except LinkError as error:
                self._is_stale = True
                self._cluster.trouble(str(error))
        return self._links.get(node)

    def _ask(self, node: int, link: Link, partitions: list[int]) -> None:
        asked = [
            _ASKED.pack(each, -1, self._progress.fetched[each], -1, self._max_partition_bytes) for each in partitions
        ]
        topic = struct.pack(f">h{len(self._topic)}si", len(self._topic), self._topic, len(asked))
        link.correlation = link.connection.next_correlation()
        head = struct.pack(">hhi", API_FETCH, FETCH_VERSION, link.correlation)
        request = b"".join([head, self._client, self._wants, topic, *asked, bytes(4)])  # nothing to forget
        link.connection.queue([struct.pack(">i", len(request)) + request])
        link.asked = frozenset(partitions)
        link.sent_s = time.monotonic()
        try:
            link.connection.write()
        except LinkError as error:
            self._lose(node, error)

    def _read(self) -> None:
        for node, link in list(self._links.items()):
            try:
                if link.connection.has_output:
                    link.connection.write()
                self._read_from(node, link)
            except LinkError as error:
                self._lose(node, error)

    def _read_from(self, node: int, link: Link) -> None:
        connection = link.connection
        is_begun = connection.is_mid_frame
        while connection.read():
            if not is_begun:
                link.read_ns = time.monotonic_ns()
                is_begun = True
            found = connection.frame()
            if found is not None:
                self._pending += self._answered(link, *found)
                if found[1] - found[0] >= ASK_FIRST_BYTES:
                    self._fetch_next(node, link)
                return

    def _fetch_next(self, node: int, link: Link) -> None:
        """Ask the same leader again, in another order so that none of its partitions is served last for ever."""
        led = [each for each in self._partitions
               if self._cluster.leaders.get(each) == node and each not in self._not_before_s]  # fmt: skip
        turn = link.correlation % max(len(led), 1)
        if led and not self._is_stale:
            self._ask(node, link, led[turn:] + led[:turn])

    def _answered(self, link: Link, begin: int, end: int) -> list[Piece]:
        """Note what a fetch brought: errors at once, records as pieces to be parsed later."""
        buffer = link.connection.buffer
        view = buffer.data
        correlation, _, error, _, topics = struct.unpack_from(">iihii", view, begin)
        if correlation != link.correlation:
            raise LinkError(f"an answer to request {correlation} came out of turn")
        asked, link.asked = link.asked, frozenset()
        if error:
            raise LinkError(f"fetch: {error_name(error)}")
        pieces: list[Piece] = []
        at = begin + self._answer_at
        (count,) = struct.unpack_from(">i", view, at) if topics else (0,)
        at += 4
        for _ in range(count):
            partition, code, _, _, _, aborted = _ANSWER.unpack_from(view, at)
            at += _ANSWER.size
            undone = [_ABORTED.unpack_from(view, at + _ABORTED.size * each) for each in range(aborted)]
            at += _ABORTED.size * len(undone)
            (size_bytes,) = struct.unpack_from(">i", view, at)
            at += 4
            past = at + max(size_bytes, 0)
            if past > end or partition not in asked:
                raise LinkError("a fetch's answer cannot be read")
            if code:
                self._refused(partition, code)
            elif size_bytes > 0:
                pieces += self._piece(link, partition, at, past, undone)
            at = past
        self._cluster.well()
        return pieces

    def _piece(
        self, link: Link, partition: int, begin: int, end: int, aborted: Sequence[tuple[int, int]]
    ) -> list[Piece]:
        buffer = link.connection.buffer
        try:
            headers = batch_headers(buffer.data, begin, end)
        except DamagedBatchError as error:
            raise self._damaged(partition, error) from None
        if not headers:
            return []
        from_offset = self._progress.fetched[partition]
        next_offset = self._progress.fetched[partition] = headers[-1].next_offset
        if self._is_committed_only and aborted:
            headers = committed(buffer.data, headers, aborted)
        return [Piece(partition, buffer, headers, from_offset, next_offset, link.read_ns)]

    def _damaged(self, partition: int, error: DamagedBatchError) -> TrialError:
        where = f"kafka at {self._cluster.endpoint.address}: {self._cluster.topic}-{partition}"
        return TrialError(f"{where}: {error}")

    def _refused(self, partition: int, code: int) -> None:
        if code == OFFSET_OUT_OF_RANGE:
            self._progress.fetched |= self._cluster.earliest([partition])
            return
        name = error_name(code)
        if not is_retriable(code):
            where = f"kafka at {self._cluster.endpoint.address}: {self._cluster.topic}-{partition}"
            raise TrialError(f"{where}: fetch was refused: {name}")
        self._cluster.failed_requests += 1
        self._is_stale = True
        self._not_before_s[partition] = time.monotonic() + BACKOFF_S

    def _lose(self, node: int, error: LinkError) -> None:
        self._links.pop(node).connection.close()
        self._is_stale = True
        self._cluster.trouble(str(error))

    def _take(self) -> list[Received]:
        """Hand out what has come, at most `max_poll_records`."""
        received: list[Received] = []
        room = self._max_poll_records
        while room > 0:
            if self._reading is None:
                if not self._pending:
                    break
                piece = self._pending.popleft()
                self._reading = Reading(piece, self._reader.read(piece.buffer, piece.headers, piece.from_offset))
            try:
                batch = self._slice(self._reading, room)
            except DamagedBatchError as error:
                raise self._damaged(self._reading.piece.partition, error) from None
            if batch is None:
                piece = self._reading.piece
                self._progress.handed[piece.partition] = piece.next_offset
                self._reading = None
            elif len(batch.starts):
                received.append(batch)
                room -= len(batch.starts)
        return received

    def _slice(self, reading: Reading, room: int) -> Received | None:
        """The next messages of a piece, at most `room`; None at its end."""
        if reading.current is None or reading.taken == len(reading.current.starts):
            reading.current, reading.taken = next(reading.records, None), 0
            if reading.current is None:
                return None
        records, begin = reading.current, reading.taken
        end = min(begin + room, len(records.starts))
        reading.taken = end
        partition = reading.piece.partition
        sizes = records.sizes if isinstance(records.sizes, int) else records.sizes[begin:end]
        batch = Received(
            records.buffer,
            records.starts[begin:end],
            sizes,
            partition,
            reading.piece.read_ns,
            time.monotonic_ns(),
        )
        if records.first_offset is not None:
            first, past = records.first_offset + begin, records.first_offset + end
            seen = self._progress.highest.get(partition, 0)
            if first < seen:
                batch.redelivered = np.arange(first, past) < seen
            batch.first_position = first
            self._progress.highest[partition] = max(seen, past)
            self._progress.handed[partition] = past
        return batch


def begins_of(cluster: Cluster, partitions: Collection[int], start: Start | None) -> dict[int, int]:
    """Where to begin in partitions of which nothing is committed."""
    if not partitions:
        return {}
    if start is not None and start.time_ms is not None:
        return cluster.from_time(partitions, start.time_ms)
    known = {} if start is None or start.offsets is None else start.offsets
    rest = [each for each in partitions if each not in known]
    return {each: known[each] for each in partitions if each in known} | (cluster.earliest(rest) if rest else {})
