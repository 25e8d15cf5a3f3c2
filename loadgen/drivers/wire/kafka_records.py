"""Reading Kafka record batches (format v2) of any producer: which there are, and where their values lie.

Most batches are shaped like one read before (`kafka_shape`) and are only held against its shape, batches of one shape
that follow each other all at once. Others are decoded record by record.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from crc32c import crc32c

from loadgen.drivers.wire.kafka_batch import CRC_FROM, HEADER_BYTES
from loadgen.drivers.wire.kafka_codecs import CODEC_MASK, Codecs
from loadgen.drivers.wire.kafka_shape import DamagedBatchError, Shape, decode_section, find_shape, varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from loadgen.driver import Int64, UInt8

TRANSACTIONAL_BIT, CONTROL_BIT = 0x10, 0x20
LENGTH_FROM = 12  # a batch's length counts from here on
_HEADER = struct.Struct(">qiibIhiqqqhii")
_MAX_SHAPES = 256


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """Where a record batch lies in a buffer and what its header says."""

    at: int
    size_bytes: int
    base_offset: int
    last_delta: int
    count: int
    attributes: int
    producer_id: int = -1

    @property
    def next_offset(self) -> int:
        """The offset after the batch's last."""
        return self.base_offset + self.last_delta + 1

    @property
    def is_gapless(self) -> bool:
        """Whether no record of it was taken out by compaction."""
        return self.count == self.last_delta + 1

    @property
    def codec(self) -> int:
        """The number of its codec."""
        return self.attributes & CODEC_MASK

    @property
    def is_control(self) -> bool:
        """Whether it marks the end of a transaction instead of holding messages."""
        return bool(self.attributes & CONTROL_BIT)

    @property
    def is_transactional(self) -> bool:
        """Whether it is part of a transaction; the mark of its end is too."""
        return bool(self.attributes & TRANSACTIONAL_BIT)


def batch_headers(view: memoryview, begin: int, end: int) -> list[BatchHeader]:
    """The whole record batches in view[begin:end]; a fetch may end in a part of one, which is left out."""
    found = []
    while end - begin >= HEADER_BYTES:
        (offset, length, _, magic, checksum, attributes, last_delta, _, _, producer_id, _, _,
         count) = _HEADER.unpack_from(view, begin)  # fmt: skip
        if magic != 2:
            raise DamagedBatchError(
                f"record batch at offset {offset} has format {magic}; expected 2 (Kafka 0.11 and later)"
            )
        size_bytes = LENGTH_FROM + length
        if size_bytes < HEADER_BYTES:
            raise DamagedBatchError(f"record batch at offset {offset} says it has {length} bytes")
        if begin + size_bytes > end:
            break
        if crc32c(view[begin + CRC_FROM : begin + size_bytes]) != checksum:
            raise DamagedBatchError(f"record batch at offset {offset} has another checksum than its header")
        found.append(BatchHeader(begin, size_bytes, offset, last_delta, count, attributes, producer_id))
        begin += size_bytes
    return found


def committed(
    view: memoryview, headers: Sequence[BatchHeader], aborted: Iterable[tuple[int, int]]
) -> list[BatchHeader]:
    """Those of the batches of one fetched partition that no aborted transaction wrote.

    Args:
        view: what holds the batches.
        headers: the batches in the order of their offsets.
        aborted: producer id and first offset of each aborted transaction, as the fetch's answer tells them.
    """
    waiting = deque(sorted(aborted, key=lambda each: each[1]))
    aborting: set[int] = set()
    kept = []
    for each in headers:
        while waiting and waiting[0][1] < each.next_offset:
            aborting.add(waiting.popleft()[0])
        if each.is_control:
            if _is_abort(view, each):
                aborting.discard(each.producer_id)
        elif each.is_transactional and each.producer_id in aborting:
            continue
        kept.append(each)
    return kept


def _is_abort(view: memoryview, control: BatchHeader) -> bool:
    """Whether a control batch ends a transaction by undoing it: the key of its record is a version and a type."""
    _, attributes_at = varint(view, control.at + HEADER_BYTES)  # after the record's length
    at = attributes_at + 1
    for _ in ("timestamp delta", "offset delta", "size of the key"):
        _, at = varint(view, at)
    (kind,) = struct.unpack_from(">h", view, at + 2)
    return bool(kind == 0)


@dataclass(frozen=True, slots=True)
class Records:
    """n values in a buffer; their offsets follow each other from `first_offset` on, or are `offsets` (int64[n])."""

    buffer: UInt8
    starts: Int64
    sizes: Int64 | int
    first_offset: int | None
    offsets: Int64 | None = None


class RecordReader:
    """Reads record batches and remembers their shapes; one for each consumer."""

    def __init__(self) -> None:
        self._codecs = Codecs()
        self._shapes: dict[tuple[int, int], Shape] = {}

    def read(self, buffer: UInt8, headers: list[BatchHeader], from_offset: int = 0) -> Iterator[Records]:
        """The values of these batches of one partition, as few `Records` as buffers and gaps allow.

        `buffer` must go on for eight bytes beyond the last batch. Records before `from_offset` are left out: a fetch
        from the middle of a batch brings all of it.
        """
        for group in _alike(headers):
            if group[0].is_control:
                continue
            flat, begins, ends = self._unpacked(buffer, group) if group[0].codec else _as_they_are(buffer, group)
            if not group[0].is_gapless:
                yield _read_gapped(flat, begins[0], ends[0], group[0], from_offset)
                continue
            starts, sizes = self._locate(flat, begins, ends, [each.count for each in group])
            skip = max(0, from_offset - group[0].base_offset)
            if skip:
                starts, sizes = starts[skip:], sizes if isinstance(sizes, int) else sizes[skip:]
            if len(starts):
                yield Records(flat, starts, sizes, group[0].base_offset + skip)

    def _unpacked(self, buffer: UInt8, headers: list[BatchHeader]) -> tuple[UInt8, list[int], list[int]]:
        """The records of compressed batches, end to end in one buffer, and where each batch's begin and end."""
        view = buffer.data
        parts = []
        for each in headers:
            try:
                parts.append(
                    self._codecs.decompress(each.codec, view[each.at + HEADER_BYTES : each.at + each.size_bytes])
                )
            except ValueError as error:
                raise DamagedBatchError(f"record batch at offset {each.base_offset}: {error}") from None
        ends = list(accumulate(len(part) for part in parts))
        return np.frombuffer(b"".join([*parts, bytes(8)]), np.uint8), [0, *ends[:-1]], ends

    def _locate(self, flat: UInt8, begins: list[int], ends: list[int], counts: list[int]) -> tuple[Int64, Int64 | int]:
        """Where the values of these batches begin in `flat`, and their sizes."""
        starts: list[Int64] = []
        sizes: list[Int64 | int] = []
        first = 0
        while first < len(begins):
            past = first + 1
            length, count = ends[first] - begins[first], counts[first]
            stride = begins[past] - begins[first] if past < len(begins) else 0
            while (
                past < len(begins)
                and counts[past] == count
                and ends[past] - begins[past] == length
                and begins[past] - begins[past - 1] == stride
            ):
                past += 1
            shape = self._shape(flat, begins[first], length, count)
            if shape is not None and shape.fits(flat, begins[first], past - first, stride):
                each = np.asarray(begins[first:past])[:, None] + shape.starts
                starts.append(each.reshape(-1))
                sizes.append(shape.sizes if isinstance(shape.sizes, int) else np.tile(shape.sizes, past - first))
            else:
                # Not like the batch that had this length before, or not like each other: one by one, then.
                self._shapes.pop((length, count), None)
                for index in range(first, past):
                    at, size, _ = decode_section(flat, begins[index], ends[index], count)
                    starts.append(at)
                    sizes.append(size)
            first = past
        return _joined(starts, sizes)

    def _shape(self, flat: UInt8, begin: int, length: int, count: int) -> Shape | None:
        shape = self._shapes.get((length, count))
        if shape is None:
            shape = find_shape(flat, begin, begin + length, count)
            if shape is not None:
                if len(self._shapes) >= _MAX_SHAPES:
                    self._shapes.clear()
                self._shapes[length, count] = shape
        return shape


def _as_they_are(buffer: UInt8, headers: list[BatchHeader]) -> tuple[UInt8, list[int], list[int]]:
    return (
        buffer,
        [each.at + HEADER_BYTES for each in headers],
        [each.at + each.size_bytes for each in headers],
    )


def _alike(headers: list[BatchHeader]) -> Iterator[list[BatchHeader]]:
    """Batches that can be read together: all plain or all compressed, of offsets that follow each other."""
    group: list[BatchHeader] = []
    for each in headers:
        if group:
            last = group[-1]
            alike = bool(last.codec) == bool(each.codec) and not (last.is_control or each.is_control)
            if not (alike and last.is_gapless and each.is_gapless and last.next_offset == each.base_offset):
                yield group
                group = []
        group.append(each)
    if group:
        yield group


def _read_gapped(flat: UInt8, begin: int, end: int, header: BatchHeader, from_offset: int) -> Records:
    """A compacted batch: its offsets must be read one by one."""
    starts, sizes, deltas = decode_section(flat, begin, end, header.count)
    wanted = deltas + header.base_offset >= from_offset
    return Records(flat, starts[wanted], sizes[wanted], None, deltas[wanted] + header.base_offset)


def _joined(starts: list[Int64], sizes: list[Int64 | int]) -> tuple[Int64, Int64 | int]:
    if len(starts) == 1:
        return starts[0], sizes[0]
    first = sizes[0]
    if isinstance(first, int) and all(isinstance(each, int) and each == first for each in sizes):
        return np.concatenate(starts), first
    every = [np.broadcast_to(np.asarray(each), len(at)) for each, at in zip(sizes, starts, strict=True)]
    return np.concatenate(starts), np.concatenate(every)
