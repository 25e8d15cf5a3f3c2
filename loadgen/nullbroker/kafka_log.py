"""Partitions of a null broker: record batches as they came, kept in the requests' own buffers until they were fetched.

Of a batch only the base offset is written, which the checksum does not cover. A partition tells every offset from 0
on as there, and gives a fetch the first batch that it still has: what is gone looks like a compacted topic's gaps.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loadgen.nullbroker.server import Peer

KEPT_MAX_BYTES = 8 << 20  # what waits for consumers beyond this holds producers back
_SMALLEST_BLOCK_BYTES = 4 << 10
_BASE = struct.Struct(">q")
_LENGTH = struct.Struct(">i")
_LENGTH_AT, _BATCH_FROM, _MAGIC_AT, _LAST_DELTA_AT, _SHORTEST = 8, 12, 16, 23, 61


class Block:
    """The bytes of one request, used again once nobody needs them."""

    __slots__ = ("_shelf", "_uses", "view")

    def __init__(self, size_bytes: int, shelf: list[Block]) -> None:
        self.view = memoryview(bytearray(size_bytes))
        self._shelf = shelf
        self._uses = 0

    def use(self) -> None:
        """One more needs it."""
        self._uses += 1

    def release(self) -> None:
        """One less does."""
        self._uses -= 1
        if not self._uses:
            self._shelf.append(self)


class Blocks:
    """Blocks by size, powers of two; the one that was released last is still in the processor's cache."""

    def __init__(self) -> None:
        self._shelves: dict[int, list[Block]] = {}

    def take(self, size_bytes: int) -> Block:
        """A block of at least this size with one use."""
        size_bytes = max(_SMALLEST_BLOCK_BYTES, 1 << (size_bytes - 1).bit_length())
        shelf = self._shelves.setdefault(size_bytes, [])
        block = shelf.pop() if shelf else Block(size_bytes, shelf)
        block.use()
        return block


class Kept(NamedTuple):
    """A batch that waits to be fetched, and the offset after its last record."""

    next_offset: int
    batch: memoryview
    block: Block


class Stock:
    """What all partitions keep together, and who is held back because it is too much."""

    def __init__(self) -> None:
        self.bytes = 0
        self._held: set[Peer] = set()

    def added(self, size_bytes: int, producer: Peer) -> None:
        """A batch is kept; where that is too much, nothing more is read from its producer."""
        self.bytes += size_bytes
        if self.bytes >= KEPT_MAX_BYTES:
            self._held.add(producer)
            producer.hold(is_held=True)

    def removed(self, size_bytes: int) -> None:
        """A batch is not needed any more."""
        self.bytes -= size_bytes
        if self._held and self.bytes < KEPT_MAX_BYTES:
            for producer in self._held:
                producer.hold(is_held=False)
            self._held.clear()


class Partition:
    """The batches that no reader has had yet; `end` is the next offset, which is also how many records came."""

    def __init__(self, stock: Stock) -> None:
        self.end = 0
        self._stock = stock
        self._kept: deque[Kept] = deque()
        self._readers: dict[object, int] = {}  # the offset that each asked for last

    def append(self, records: memoryview, block: Block, producer: Peer) -> int:
        """Take the batches of a produce request; the first one's offset. Raises EOFError where they are damaged."""
        first, at = self.end, 0
        while at < len(records):
            if len(records) - at < _SHORTEST or records[at + _MAGIC_AT] != 2:
                raise EOFError
            (length,) = _LENGTH.unpack_from(records, at + _LENGTH_AT)
            batch = records[at : at + _BATCH_FROM + length]
            if not _SHORTEST <= len(batch) == _BATCH_FROM + length:
                raise EOFError
            (last_delta,) = _LENGTH.unpack_from(batch, _LAST_DELTA_AT)
            if self._readers:
                _BASE.pack_into(batch, 0, self.end)
                block.use()
                self._kept.append(Kept(self.end + last_delta + 1, batch, block))
                self._stock.added(len(batch), producer)
            self.end += last_delta + 1
            at += len(batch)
        return first

    def asked(self, reader: object, offset: int) -> None:
        """A reader wants to go on here: what all readers have had is dropped."""
        self._readers[reader] = offset
        self._drop_before(min(self._readers.values()))

    def left(self, reader: object) -> None:
        """A reader has gone; after the last one everything is dropped."""
        self._readers.pop(reader, None)
        self._drop_before(min(self._readers.values(), default=self.end))

    def delete(self) -> None:
        """The topic is deleted: drop everything."""
        self._readers.clear()
        self._drop_before(self.end)

    def _drop_before(self, offset: int) -> None:
        kept = self._kept
        while kept and kept[0].next_offset <= offset:
            old = kept.popleft()
            old.block.release()
            self._stock.removed(len(old.batch))

    def read(self, offset: int, limit_bytes: int) -> list[memoryview]:
        """The batches from this offset on, as many as the limit allows but at least one if there is one."""
        found: list[memoryview] = []
        for each in self._kept:
            if each.next_offset > offset:
                limit_bytes -= len(each.batch)
                if found and limit_bytes < 0:
                    break
                found.append(each.batch)
        return found
