"""The sending half of the wire producer: produce requests in flight, their answers, retries and idempotence.

Batches stay in memory until they are answered, so that a retry sends the same bytes and nothing that is still to be
written is ever overwritten. With idempotence a partition has one batch in flight while it repeats, as in the Java
client, and until its first one is acknowledged: a broker that knows nothing of a producer accepts any sequence number
from it, so that a second batch could get in before the first.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from loadgen.driver import Settled
from loadgen.drivers.kafka_config import ABORTED, acks_number, is_transactional, transactional_id
from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_batch import Identity, RowBuffer, seal, seal_compressed
from loadgen.drivers.wire.kafka_cluster import BACKOFF_S, Cluster
from loadgen.drivers.wire.kafka_codecs import CODECS, Codecs
from loadgen.drivers.wire.kafka_produce import REQUEST_TIMEOUT_MS, produce_format
from loadgen.drivers.wire.kafka_protocol import PRODUCE_VERSION, Connection, error_name, is_retriable
from loadgen.drivers.wire.kafka_records import TRANSACTIONAL_BIT
from loadgen.drivers.wire.kafka_transactions import Transactions

if TYPE_CHECKING:
    from loadgen.driver import Int64, Target

DELIVERY_TIMEOUT_MS = 120_000  # these two as the Java client's defaults
MAX_REQUEST_BYTES = 1 << 20
OUT_OF_ORDER_SEQUENCE, DUPLICATE_SEQUENCE, INVALID_PRODUCER_EPOCH, UNKNOWN_PRODUCER = 45, 46, 47, 59
CONNECTION_LOST = "NETWORK_EXCEPTION"  # as the protocol names it
_MS, _BACKOFF_NS, _RECOVERY_LOOK_NS = 1_000_000, int(BACKOFF_S * 1e9), 20_000_000


@dataclass(slots=True, eq=False)
class Batch:
    """Messages of one partition on their way: filled (`rows`, or `loose` for mixed sizes), sealed, sent, answered."""

    order: int
    created_ns: int
    view: memoryview
    end: int
    rows: RowBuffer | None = None
    loose: bytearray | None = None
    count: int = 0
    seqs: list[Int64 | range] = field(default_factory=list)
    held_bytes: int = 0
    sequence: int | None = None
    is_packed: bool = False
    retries: int = 0

    @property
    def size_bytes(self) -> int:
        """What it takes uncompressed, with its header; one without messages takes nothing."""
        return self.end if self.count else 0

    @property
    def is_retry(self) -> bool:
        """Whether it was sent before."""
        return self.retries > 0

    def add(self, seqs: Int64 | range) -> None:
        """Note that these messages are in it."""
        last = self.seqs[-1] if self.seqs else None
        if isinstance(seqs, range) and isinstance(last, range) and last.stop == seqs.start:
            self.seqs[-1] = range(last.start, seqs.stop)
        else:
            self.seqs.append(seqs)
        self.count += len(seqs)


@dataclass(slots=True, eq=False)
class Queue:
    """One partition's batches that are not in flight: whole ones, and the one that is still being filled."""

    partition: int
    ready: deque[Batch] = field(default_factory=deque)
    open: Batch | None = None
    in_flight: int = 0
    next_sequence: int = 0
    retry_at_ns: int = 0
    is_known: bool = False

    @property
    def goes_singly(self) -> bool:
        """Whether its batches must be acknowledged one by one for now."""
        return not self.is_known or (len(self.ready) > 0 and self.ready[0].is_retry)


@dataclass(slots=True, eq=False)
class Request:
    """A produce request that is not answered (acks=0: not written) yet."""

    correlation: int
    batches: list[tuple[Queue, Batch]]
    sent_ns: int
    written_at: int


def _give_back(batch: Batch) -> None:
    if batch.rows is not None:
        batch.rows.layout.give_back(batch.rows)
        batch.rows = None


class Link:
    """A connection to one leader and the requests in flight on it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.requests: deque[Request] = deque()


class Sender:
    """Moves batches of `queues` to their leaders and tells what became of them."""

    def __init__(self, target: Target, producer: int) -> None:
        settings = target.settings
        self.cluster = Cluster(target.endpoint, target.name)
        self.queues = [Queue(partition) for partition in range(self.cluster.partitions)]
        self.active: dict[int, Queue] = {}
        self.acks = acks_number(settings["acks"])
        self._linger_ns = int(settings["linger_ms"] * _MS)
        self._max_in_flight = settings["max_in_flight_requests_per_connection"]
        self._most_retries: int = settings["retries"]
        self._codec = CODECS.index(settings["compression_type"])
        self._codecs = Codecs()
        self.held_bytes = 0
        self.resent: list[Int64 | range] = []
        self._is_idempotent = bool(settings["enable_idempotence"])
        self.transactions: Transactions | None = None
        self._attributes = 0
        if is_transactional(settings):
            self.transactions = Transactions(self.cluster, transactional_id(target, producer), settings)
            self._identity, self._attributes = self.transactions.identity, TRANSACTIONAL_BIT
        else:
            self._identity = self.cluster.producer_id() if self._is_idempotent else (-1, -1)
        self._needs_identity = False
        self._is_stale = False
        self._links: dict[int, Link] = {}
        self._unreported: list[Settled] = []
        self._checked_ns = self._pumped_ns = time.monotonic_ns()
        own, version = None, PRODUCE_VERSION
        if self.transactions is not None:
            own, version = self.transactions.transactional_id, self.transactions.produce_version
        self._format = produce_format(target.name, own, self.acks, version)
        for node in set(self.cluster.leaders.values()):
            self._link(node)

    @property
    def connections(self) -> list[Connection]:
        """The open connections, to wait on."""
        others = [] if self.transactions is None else self.transactions.connections
        return [*(link.connection for link in self._links.values()), *others]

    @property
    def is_busy(self) -> bool:
        """Whether anything is unsent or unanswered, or part of a transaction that has not ended."""
        return self.held_bytes > 0 or (self.transactions is not None and self.transactions.msgs > 0)

    def pump(self, *, flushing: bool = False) -> None:
        """Send what is due as far as requests in flight allow, and write what the sockets take."""
        now_ns = self._pumped_ns = time.monotonic_ns()
        if now_ns - self._checked_ns > 500 * _MS:
            self._expire(now_ns)
        if self._is_stale and self.cluster.refresh():
            self._is_stale = False
        if self._needs_identity:
            self._renew_identity()
        if self.transactions is not None and not self._needs_identity:
            self.transactions.turn(now_ns, is_drained=self.held_bytes == 0)
            if self._identity != self.transactions.identity:
                self._begin_anew(self.transactions.identity)
            flushing |= self.transactions.is_ending
        if self.active and not self._needs_identity:
            self._send_all_due(now_ns, flushing=flushing)
        if self.transactions is not None:
            self.transactions.ask(now_ns)
        self._write()

    def _write(self) -> None:
        """Write what the sockets take."""
        for node, link in list(self._links.items()):
            if link.connection.has_output:
                try:
                    link.connection.write()
                except LinkError as error:
                    self._lose(node, error)
            if self.acks == 0:
                self._finish_written(link)

    def _send_all_due(self, now_ns: int, *, flushing: bool) -> None:
        by_node: dict[int, list[Queue]] = {}
        for queue in self.active.values():
            by_node.setdefault(self.cluster.leaders.get(queue.partition, -1), []).append(queue)
        for node, queues in by_node.items():
            link = self._link(node)
            if link is not None:
                self._send_due(link, queues, now_ns, flushing=flushing)

    def _link(self, node: int) -> Link | None:
        link = self._links.get(node)
        if link is None and not self._is_stale:
            try:
                link = self._links[node] = Link(self.cluster.connect(node))
            except LinkError as error:
                self._is_stale = True
                self.cluster.trouble(str(error))
        return link

    def _send_due(self, link: Link, queues: list[Queue], now_ns: int, *, flushing: bool) -> None:
        while len(link.requests) < self._max_in_flight:
            batches: list[tuple[Queue, Batch]] = []
            size_bytes = 0
            for queue in queues:
                batch = self._next(queue, now_ns, flushing=flushing)
                if batch is None:
                    continue
                batches.append((queue, batch))
                size_bytes += batch.end
                if size_bytes >= MAX_REQUEST_BYTES:
                    break
            if not batches:
                return
            self._send(link, batches, now_ns)

    def _next(self, queue: Queue, now_ns: int, *, flushing: bool) -> Batch | None:
        if queue.retry_at_ns > now_ns or (self._is_idempotent and queue.in_flight and queue.goes_singly):
            return None
        if self.transactions is not None and not self.transactions.may_send(queue.partition):
            return None
        if queue.ready:
            batch = queue.ready.popleft()
        elif queue.open is not None and (flushing or now_ns - queue.open.created_ns >= self._linger_ns):
            batch, queue.open = queue.open, None
        else:
            return None
        if not queue.ready and queue.open is None:
            self.active.pop(queue.partition, None)
        return batch

    def _send(self, link: Link, batches: list[tuple[Queue, Batch]], now_ns: int) -> None:
        connection = link.connection
        correlation = connection.next_correlation()
        sealed: list[tuple[int, memoryview]] = []
        for queue, batch in batches:
            # Under the sequence number that it had before, the broker stores it once however often it comes.
            if batch.is_retry and batch.sequence in {None, -1}:
                self.resent += batch.seqs
            sealed.append((queue.partition, self._seal(queue, batch)))
            queue.in_flight += 1
        connection.queue(self._format.request(correlation, sealed))
        link.requests.append(Request(correlation, batches, now_ns, connection.queued_bytes))

    def _seal(self, queue: Queue, batch: Batch) -> memoryview:
        if batch.sequence is not None:  # a repetition: the same bytes
            return batch.view[: batch.end]
        if batch.loose is not None and not batch.is_packed:
            batch.view = memoryview(batch.loose)
        identity = Identity()
        batch.sequence = -1
        if self._is_idempotent:
            batch.sequence = queue.next_sequence
            queue.next_sequence = (queue.next_sequence + batch.count) & 0x7FFFFFFF
            identity = Identity(*self._identity, batch.sequence, self._attributes)
        time_ms = time.time_ns() // _MS
        if self._codec == 0:
            return seal(batch.view, batch.end, batch.count, time_ms, identity)
        if batch.is_packed:  # compressed before, under another identity
            return seal(batch.view, batch.end, batch.count, time_ms, identity, self._codec)
        packed = seal_compressed(self._codecs, self._codec, batch.view, batch.end, batch.count, time_ms, identity)
        _give_back(batch)
        batch.view, batch.end, batch.is_packed = packed, len(packed), True
        return packed

    def _drop(self, batch: Batch) -> None:
        """A batch is done with, whatever became of it."""
        _give_back(batch)
        self.held_bytes -= batch.held_bytes

    def receive(self) -> list[Settled]:
        """Read once from every connection; what the broker said."""
        settled, self._unreported = self._unreported, []
        for node, link in list(self._links.items()):
            try:
                if link.connection.read():
                    at_ns = time.monotonic_ns()
                    while (found := link.connection.frame()) is not None:
                        self._answered(link, link.connection.buffer.data[slice(*found)], at_ns, settled)
            except LinkError as error:
                self._lose(node, error)
        return settled if self.transactions is None else self.transactions.heard(settled)

    def _answered(self, link: Link, frame: memoryview, at_ns: int, settled: list[Settled]) -> None:
        (correlation,) = struct.unpack_from(">i", frame)
        if not link.requests or link.requests[0].correlation != correlation:
            raise LinkError(f"an answer to request {correlation} came out of turn")
        try:
            answers = self._format.answered(frame)
        except (struct.error, IndexError):
            raise LinkError("a produce answer is cut short") from None
        request = link.requests.popleft()
        by_partition = {queue.partition: (queue, batch) for queue, batch in request.batches}
        done: list[Batch] = []
        for partition, code in answers:
            queue, batch = by_partition[partition]
            queue.in_flight -= 1
            if code in {0, DUPLICATE_SEQUENCE}:
                queue.is_known = True
                done.append(batch)
            else:
                self._refused(queue, batch, code, at_ns)
        if done:
            self.cluster.well()
            settled.append(self._settle(done, at_ns))
        settled += self._unreported
        self._unreported = []

    def _refused(self, queue: Queue, batch: Batch, code: int, at_ns: int) -> None:
        """Send it again, or give it up with the error's name."""
        name = error_name(code)
        is_behind_a_retry = any(each.order < batch.order for each in queue.ready if each.is_retry)
        is_out_of_order = code == OUT_OF_ORDER_SEQUENCE
        # As the Java client: where the broker's count is another than ours, begin to count anew and send it again.
        lost_count = code in {INVALID_PRODUCER_EPOCH, UNKNOWN_PRODUCER} or (is_out_of_order and not is_behind_a_retry)
        if is_retriable(code) or is_out_of_order or lost_count:
            self.cluster.failed_requests += 1
            self._needs_identity |= lost_count and self._is_idempotent
            self._is_stale |= not is_out_of_order
            self._repeat(queue, [batch], at_ns, name)
        else:
            self._give_up(batch, at_ns, name)

    def _repeat(self, queue: Queue, batches: list[Batch], at_ns: int, error: str) -> None:
        """Have them sent again after a while, but for those that were as often as is allowed."""
        again = [batch for batch in batches if batch.retries < self._most_retries]
        for batch in batches:
            if batch.retries >= self._most_retries:
                self._give_up(batch, at_ns, error)
        if not again:
            return
        for batch in again:
            batch.retries += 1
        queue.ready = deque(sorted([*queue.ready, *again], key=lambda batch: batch.order))
        queue.retry_at_ns = at_ns + _BACKOFF_NS
        self.active[queue.partition] = queue

    def _give_up(self, batch: Batch, at_ns: int, error: str) -> None:
        """Its messages have failed; the sequence numbers after its own would be refused, and begin anew."""
        self._needs_identity |= self._is_idempotent
        self._unreported.append(self._settle([batch], at_ns, error))

    def _settle(self, batches: list[Batch], at_ns: int, error: str | None = None) -> Settled:
        seqs = [np.arange(each.start, each.stop) if isinstance(each, range) else each
                for batch in batches for each in batch.seqs]  # fmt: skip
        for batch in batches:
            self._drop(batch)
        return Settled(seqs[0] if len(seqs) == 1 else np.concatenate(seqs), at_ns, error)

    def _finish_written(self, link: Link) -> None:
        """Without acknowledgements a request is done once it is written."""
        while link.requests and link.requests[0].written_at <= link.connection.written_bytes:
            for queue, batch in link.requests.popleft().batches:
                queue.in_flight -= 1
                self._drop(batch)
            self.cluster.well()

    def _lose(self, node: int, error: LinkError) -> None:
        """The connection is gone: what was in flight is sent again, but for acks=0, where nobody would know."""
        link = self._links.pop(node)
        link.connection.close()
        self._is_stale = True
        lost: dict[int, list[Batch]] = {}
        for request in link.requests:
            for queue, batch in request.batches:
                queue.in_flight -= 1
                if self.acks == 0:
                    self._drop(batch)
                else:
                    lost.setdefault(queue.partition, []).append(batch)
        link.requests.clear()
        for partition, batches in lost.items():
            self._repeat(self.queues[partition], batches, time.monotonic_ns(), CONNECTION_LOST)
        self.cluster.trouble(str(error))

    def _renew_identity(self) -> None:
        """Begin all sequences anew under a fresh producer id, once nothing is in flight under the old one."""
        if any(queue.in_flight for queue in self.queues):
            return
        try:
            if self.transactions is None:
                identity = self.cluster.ask_producer_id()
            else:
                identity = self.transactions.restart()
                self._abandon()
        except LinkError as error:
            self.cluster.trouble(str(error))
            return
        self._needs_identity = False
        self._begin_anew(identity)
        for queue in self.queues:
            for batch in queue.ready:
                batch.sequence = None

    def _begin_anew(self, identity: tuple[int, int]) -> None:
        """Count each partition's messages from 0 under another producer id or epoch; nothing is in flight.

        Of a producer that a broker knows it takes nothing but 0 as the first number of another epoch.
        """
        is_same = identity[0] == self._identity[0]
        self._identity = identity
        for queue in self.queues:
            queue.next_sequence = 0
            queue.is_known &= is_same

    def _abandon(self) -> None:
        """Give up what has not been sent of a transaction that cannot be committed any more."""
        for queue in self.active.values():
            batches = [*queue.ready, *([] if queue.open is None else [queue.open])]
            self._unreported += [self._settle([each], time.monotonic_ns(), ABORTED) for each in batches]
            queue.ready.clear()
            queue.open = None
        self.active.clear()

    def _expire(self, now_ns: int) -> None:
        """Give up requests without an answer and batches without a leader, as late as the Java client does."""
        self._checked_ns = now_ns
        for node, link in list(self._links.items()):
            if link.requests and now_ns - link.requests[0].sent_ns > REQUEST_TIMEOUT_MS * _MS and self.acks:
                self._lose(node, LinkError(f"no answer within {REQUEST_TIMEOUT_MS / 1000:g} s"))
        for queue in list(self.active.values()):
            while queue.ready and now_ns - queue.ready[0].created_ns > DELIVERY_TIMEOUT_MS * _MS:
                self._give_up(queue.ready.popleft(), now_ns, "DELIVERY_TIMEOUT")

    def next_event_ns(self) -> int | None:
        """When something becomes due that no socket will tell; what was due already waits for a socket."""
        if self._unreported:
            return self._pumped_ns
        if self._is_stale or self._needs_identity:
            return self._pumped_ns + _RECOVERY_LOOK_NS
        times = []
        event_ns = None if self.transactions is None else self.transactions.next_event_ns()
        if event_ns is not None:
            times.append(event_ns)
        for queue in self.active.values():
            due_ns = queue.open.created_ns + self._linger_ns if queue.open is not None and not queue.ready else 0
            due_ns = max(due_ns, queue.retry_at_ns)
            if due_ns > self._pumped_ns:
                times.append(due_ns)
        return min(times, default=None)

    def crash(self) -> None:
        """Close the connections with whatever is under way; an open transaction stays open until it times out."""
        if self.transactions is not None:
            self.transactions.crash()
        self._hang_up()

    def close(self) -> None:
        """Close the connections; without acknowledgements, after the broker has read what was written."""
        if self.transactions is not None:
            self.transactions.close()
        for link in self._links.values() if self.acks == 0 else ():
            link.connection.finish(timeout_s=2.0)
        self._hang_up()

    def _hang_up(self) -> None:
        for link in self._links.values():
            link.connection.close()
        self._links.clear()
