"""Streams of a null broker: what was published becomes chunks, kept until every subscription has had them.

An entry of a chunk is what was published less its publishing id: entries of one length are rows of a matrix, others are
followed one by one. A stream tells every offset from 0 on as there, and gives a subscription the first chunk that it
still has.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loadgen.drivers.wire.stream_chunks import CHUNK, MAGIC, USER
from loadgen.drivers.wire.stream_frames import ID_BYTES, LENGTH_BYTES, SUB_ENTRY, SUB_ENTRY_BIT
from loadgen.drivers.wire.stream_protocol import VERSION, Key

if TYPE_CHECKING:
    from loadgen.nullbroker.kafka_log import Stock
    from loadgen.nullbroker.server import Peer

CHUNK_MAX_ENTRIES = 0xFFFF  # a chunk counts them in two bytes
CHUNK_MAX_BYTES = 1 << 20
BACKLOG_MAX_BYTES = 1 << 20  # what waits for a subscriber's socket before it is given more
# Key, version and subscription of a Deliver frame, behind its size.
_DELIVER = struct.Struct(">IHHB")
_PLAIN = struct.Struct(">QI")  # publishing id, length


class Published(NamedTuple):
    """The messages of one Publish frame: its ids as they are confirmed (big-endian), and its entries without them."""

    ids: bytes
    data: bytes
    entries: int
    records: int


def published(view: memoryview, at: int, end: int, entries: int) -> Published:
    """Read the body of a Publish frame at `at` … `end`; struct.error where it is not what it says."""
    if entries and not view[at + ID_BYTES] & SUB_ENTRY_BIT:
        _, length = _PLAIN.unpack_from(view, at)
        row_bytes = _PLAIN.size + length
        if entries * row_bytes == end - at:
            lengths: np.ndarray[Any, Any] = np.ndarray((entries,), ">u4", view, at + ID_BYTES, (row_bytes,))
            if np.count_nonzero(lengths == length) == entries:
                rows = np.frombuffer(view, np.uint8, end - at, at).reshape(entries, row_bytes)
                return Published(rows[:, :ID_BYTES].tobytes(), rows[:, ID_BYTES:].tobytes(), entries, entries)
    return _walked(view, at, end, entries)


def _walked(view: memoryview, at: int, end: int, entries: int) -> Published:
    """The same one by one: of mixed lengths, or sub-entries."""
    ids, parts, records = [], [], 0
    for _ in range(entries):
        if view[at + ID_BYTES] & SUB_ENTRY_BIT:
            _, _, messages, _, packed_bytes = SUB_ENTRY.unpack_from(view, at)
            past = at + SUB_ENTRY.size + packed_bytes
        else:
            messages, past = 1, at + _PLAIN.size + _PLAIN.unpack_from(view, at)[1]
        if past > end:
            raise struct.error("an entry reaches beyond its frame")
        ids.append(bytes(view[at : at + ID_BYTES]))
        parts.append(view[at + ID_BYTES : past])
        records += messages
        at = past
    if at != end:
        raise struct.error("a frame is longer than its entries")
    return Published(b"".join(ids), b"".join(parts), entries, records)


class Chunk(NamedTuple):
    """Entries as they are delivered, and the offset behind its last message."""

    next_offset: int
    head: bytes
    data: tuple[bytes, ...]
    size_bytes: int


def chunk_of(first_offset: int, parts: list[Published]) -> Chunk:
    """A chunk of what was published, whose first message has this offset, with the checksum that rstream looks at."""
    entries, records = sum(each.entries for each in parts), sum(each.records for each in parts)
    data_bytes = sum(len(each.data) for each in parts)
    checksum = 0
    for each in parts:
        checksum = zlib.crc32(each.data, checksum)
    now_ms = time.time_ns() // 1_000_000
    head = CHUNK.pack(MAGIC, USER, entries, records, now_ms, 0, first_offset, checksum, data_bytes, 0, 0)
    return Chunk(first_offset + records, head, tuple(each.data for each in parts), len(head) + data_bytes)


class Subscription:
    """One subscription: `chunks_left` are those that it may still be given, by the credits that it has."""

    def __init__(self, peer: Peer, number: int, chunks_left: int) -> None:
        self.chunks_left = chunks_left
        self.place = 0  # of its next chunk, counted from the stream's first
        self.greeting: Chunk | None = None  # what it is to get before that
        self._peer = peer
        self._number = number

    @property
    def has_room(self) -> bool:
        """Whether it may be given a chunk now."""
        return self.chunks_left > 0 and self._peer.backlog_bytes < BACKLOG_MAX_BYTES

    def deliver(self, chunk: Chunk) -> None:
        """Give it a chunk."""
        self.chunks_left -= 1
        size_bytes = _DELIVER.size - LENGTH_BYTES + chunk.size_bytes
        self._peer.write(_DELIVER.pack(size_bytes, Key.DELIVER, VERSION, self._number) + chunk.head, *chunk.data)


class Stream:
    """The chunks that some subscription has not had yet; `end` is the next offset, which is also how many came."""

    def __init__(self, stock: Stock) -> None:
        self.end = 0
        self.offsets: dict[str, int] = {}  # that consumers have stored, by their names
        self._stock = stock
        self._coming: list[Published] = []
        self._coming_entries = self._coming_bytes = 0
        self._chunks: deque[Chunk] = deque()
        self._dropped = 0  # chunks
        self.subscriptions: list[Subscription] = []

    def publish(self, messages: Published, publisher: Peer) -> None:
        """Take what came in a frame; without subscriptions it is counted and dropped."""
        if not self.subscriptions:
            self.end += messages.records
            return
        is_over = self._coming_entries + messages.entries > CHUNK_MAX_ENTRIES
        if is_over or self._coming_bytes + len(messages.data) > CHUNK_MAX_BYTES:
            self._close_chunk()
        self._coming.append(messages)
        self._coming_entries += messages.entries
        self._coming_bytes += len(messages.data)
        self._stock.added(len(messages.data), publisher)

    def _close_chunk(self) -> None:
        if self._coming:
            self._chunks.append(chunk_of(self.end, self._coming))
            self.end = self._chunks[-1].next_offset
            self._coming, self._coming_entries, self._coming_bytes = [], 0, 0

    def subscribe(self, subscription: Subscription, *, only_last: bool) -> None:
        """A new one: it gets what is kept; who asks for the last chunk gets an empty one that says where the end is."""
        self._close_chunk()
        subscription.place = self._dropped
        if only_last:
            subscription.place += len(self._chunks)
            subscription.greeting = chunk_of(self.end, [])
        self.subscriptions.append(subscription)

    def leave(self, subscription: Subscription) -> None:
        """A subscription has ended; after the last one everything is dropped."""
        self.subscriptions.remove(subscription)
        self.deliver()

    def deliver(self) -> None:
        """Hand out what came, as far as subscriptions have room, and drop what all of them have had."""
        self._close_chunk()
        past = self._dropped + len(self._chunks)
        for each in self.subscriptions:
            if each.greeting is not None and each.has_room:
                each.deliver(each.greeting)
                each.greeting = None
            while each.place < past and each.has_room:
                each.deliver(self._chunks[each.place - self._dropped])
                each.place += 1
        first = min((each.place for each in self.subscriptions), default=past)
        while self._dropped < first:
            self._stock.removed(self._chunks.popleft().size_bytes - CHUNK.size)
            self._dropped += 1

    def delete(self) -> None:
        """The stream is deleted: drop everything."""
        self.subscriptions.clear()
        self.deliver()
