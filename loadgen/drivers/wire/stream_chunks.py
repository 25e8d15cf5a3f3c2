"""Delivered chunks parsed as a whole: where each message's body lies.

Entries of one length are rows of a matrix, whose constant bytes are compared and whose bodies begin at equal
distances; others are walked one by one. What stands in sub-entries is decompressed first and then is the same. The
chunk's checksum is not computed: every byte of every body is compared with what was sent (`loadgen.ledger`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.drivers.wire.framed import SLACK_BYTES
from loadgen.drivers.wire.kafka_codecs import CODECS
from loadgen.drivers.wire.stream_frames import LENGTH_BYTES, SUB_ENTRY_BIT, StreamCodecs, data_head
from loadgen.drivers.wire.stream_protocol import KEY

if TYPE_CHECKING:
    from loadgen.driver import Int64, UInt8

# After key, version and subscription: magic and version, type, entries, records, time, epoch, first offset, checksum,
# bytes of entries, bytes of trailer, bytes of filter, reserved.
CHUNK = struct.Struct(">BBHIqQQIIIB3x")
_CHUNK_AT = KEY.size + 1
MAGIC = 0x50
USER = 0
_SUB_HEAD = struct.Struct(">BHII")  # codec, messages, bytes, compressed bytes
_LENGTH = struct.Struct(">I")
_DESCRIPTOR, _SMALL_ULONG = 0x00, 0x53
_DATA, _VALUE = 0x75, 0x77
_BINARY_8, _BINARY_32, _TEXT_8, _TEXT_32 = 0xA0, 0xB0, 0xA1, 0xB1
_WIDTHS = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}  # of AMQP 1.0 values by the upper half of their type
_SIZED_8, _SIZED_32 = {0xA, 0xC, 0xE}, {0xB, 0xD, 0xF}


class DamagedChunkError(Exception):
    """A chunk that cannot be read."""


class _SubEntryMetError(Exception):
    """Not all entries are plain messages."""


@dataclass(slots=True)
class Chunk:
    """`count` messages from `first_offset` on: message i is buffer[starts[i] : starts[i] + sizes[i]]."""

    subscription: int
    first_offset: int
    count: int
    buffer: UInt8
    starts: Int64
    sizes: Int64 | int
    time_ms: int


def chunk_end(frame: bytes) -> int:
    """The offset behind the last message of the chunk in a Deliver frame (without its length)."""
    head = CHUNK.unpack_from(frame, _CHUNK_AT)
    return int(head[6]) + int(head[3])


class ChunkParser:
    """Reads Deliver frames; keeps its codecs' contexts, so one for each consumer."""

    def __init__(self) -> None:
        self._codecs = StreamCodecs()

    def parse(self, buffer: UInt8, begin: int, end: int) -> Chunk:
        """The chunk in the frame (without its length) at begin … end; DamagedChunkError where there is none.

        The buffer may be looked at up to `SLACK_BYTES` beyond the end.
        """
        view = buffer.data
        try:
            subscription = view[begin + KEY.size]
            head = CHUNK.unpack_from(view, begin + _CHUNK_AT)
        except (struct.error, IndexError):
            raise DamagedChunkError("a chunk without a whole head") from None
        magic, kind, entries, records, time_ms, _, first_offset, _, data_bytes, _, _ = head
        at = begin + _CHUNK_AT + CHUNK.size
        if magic != MAGIC or at + data_bytes > end:
            raise DamagedChunkError(f"a chunk of version {magic:#x} and {data_bytes} bytes in a frame of {end - begin}")
        if kind != USER:
            return Chunk(subscription, first_offset, 0, buffer, np.zeros(0, np.int64), 0, time_ms)
        try:
            try:
                starts, sizes = split(buffer, at, at + data_bytes, entries)
            except _SubEntryMetError:
                buffer, data_bytes = self._unpack(view, at, at + data_bytes, entries)
                starts, sizes = split(buffer, 0, data_bytes, records)
        except (struct.error, IndexError):
            raise DamagedChunkError("an entry reaches beyond its chunk") from None
        if len(starts) != records:
            raise DamagedChunkError(f"{len(starts)} messages in a chunk of {records}")
        return Chunk(subscription, first_offset, records, buffer, starts, sizes, time_ms)

    def _unpack(self, view: memoryview, at: int, end: int, entries: int) -> tuple[UInt8, int]:
        """All entries, those of sub-entries decompressed, behind each other in memory of their own."""
        parts: list[bytes | memoryview] = []
        for _ in range(entries):
            if not view[at] & SUB_ENTRY_BIT:
                past = at + LENGTH_BYTES + _LENGTH.unpack_from(view, at)[0]
                parts.append(view[at:past])
            else:
                kind, _, plain_bytes, packed_bytes = _SUB_HEAD.unpack_from(view, at)
                past = at + _SUB_HEAD.size + packed_bytes
                parts.append(self._decompress(kind >> 4 & 7, view[past - packed_bytes : past], plain_bytes))
            if past > end:
                raise DamagedChunkError("an entry reaches beyond its chunk")
            at = past
        plain = b"".join(parts)
        return np.frombuffer(plain + bytes(SLACK_BYTES), np.uint8), len(plain)

    def _decompress(self, codec: int, data: memoryview, plain_bytes: int) -> bytes:
        if codec >= len(CODECS):
            raise DamagedChunkError(f"a sub-entry compressed by codec number {codec}")
        try:
            plain = self._codecs.decompress(codec, data)
        except ValueError as error:
            raise DamagedChunkError(f"a sub-entry that cannot be decompressed: {error}") from None
        if len(plain) != plain_bytes:
            raise DamagedChunkError(f"a sub-entry of {len(plain)} bytes that says {plain_bytes}")
        return plain


def split(buffer: UInt8, begin: int, end: int, count: int) -> tuple[Int64, Int64 | int]:
    """Where the bodies of `count` entries lie: their starts, and their sizes (one int where all are alike)."""
    if not count:
        return np.zeros(0, np.int64), 0
    (length,) = _LENGTH.unpack_from(buffer.data, begin)
    row_bytes = LENGTH_BYTES + length
    if count * row_bytes == end - begin:
        found = _rows(buffer, begin, count, row_bytes)
        if found is not None:
            return found
    return _walk(buffer.data, begin, end, count)


def _rows(buffer: UInt8, begin: int, count: int, row_bytes: int) -> tuple[Int64, int] | None:
    """The same where every entry is one data section of the first one's size, else None."""
    length = row_bytes - LENGTH_BYTES
    size = length - 5 if length - 5 <= 0xFF else length - 8
    if size < 0 or len(head := data_head(size)) + size != length:
        return None
    constant = _LENGTH.pack(length) + head
    # As whole words: the first eight bytes of each row, then the last eight of the constant ones.
    for at in {0, max(0, len(constant) - 8)}:
        words: np.ndarray[Any, Any] = np.ndarray((count,), "<u8", buffer, begin + at, (row_bytes,))
        wanted = int.from_bytes(constant[at : at + 8], "little")
        if np.count_nonzero(words == wanted) < count:
            return None
    first = begin + len(constant)
    return np.arange(first, first + count * row_bytes, row_bytes), size


def _walk(view: memoryview, begin: int, end: int, count: int) -> tuple[Int64, Int64]:
    """The same one by one."""
    starts, sizes = np.empty(count, np.int64), np.empty(count, np.int64)
    at = begin
    for number in range(count):
        if view[at] & SUB_ENTRY_BIT:
            raise _SubEntryMetError
        past = at + LENGTH_BYTES + _LENGTH.unpack_from(view, at)[0]
        if past > end:
            raise DamagedChunkError("an entry reaches beyond its chunk")
        starts[number], sizes[number] = body_of(view, at + LENGTH_BYTES, past)
        at = past
    return starts, sizes


def body_of(view: memoryview, begin: int, end: int) -> tuple[int, int]:
    """Where the body of an AMQP 1.0 message begins and its size: its data section, or a value of bytes or text.

    What is not AMQP 1.0 is its own body: clients may store plain bytes.
    """
    at = begin
    while at + 3 < end and view[at] == _DESCRIPTOR and view[at + 1] == _SMALL_ULONG:
        section, kind = view[at + 2], view[at + 3]
        at += 3
        if section in {_DATA, _VALUE} and kind in {_BINARY_8, _BINARY_32, _TEXT_8, _TEXT_32}:
            wide = kind in {_BINARY_32, _TEXT_32}
            size = int.from_bytes(view[at + 1 : at + (5 if wide else 2)], "big")
            start = at + (5 if wide else 2)
            if start + size > end:
                break
            return start, size
        at = _past_value(view, at)
    return begin, end - begin


def _past_value(view: memoryview, at: int) -> int:
    """Where the AMQP 1.0 value at `at` ends; sections other than the body are skipped so."""
    kind = view[at] >> 4
    if kind in _SIZED_8:
        return at + 2 + view[at + 1]
    if kind in _SIZED_32:
        return at + 5 + int.from_bytes(view[at + 1 : at + 5], "big")
    return at + 1 + _WIDTHS.get(kind, 0)
