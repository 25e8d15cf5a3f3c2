"""Kafka record batches by numpy, held against kio's own codec and a reader that takes one record at a time."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cramjam
import lz4.frame
import numpy as np
import pytest
import zstandard
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from kio.records.readers import read_batch
from kio.records.schema import NewRecordBatch, Record, RecordHeader
from kio.records.writers import write_new_batch
from kio.static.primitive import TZAwareMicros, i8, i16, i32, i64

from loadgen.drivers.wire.kafka_batch import (
    HEADER_BYTES,
    Identity,
    Layout,
    key_partitions,
    key_table,
    murmur2,
    pack_record,
    seal,
    seal_compressed,
)
from loadgen.drivers.wire.kafka_codecs import CODECS, Codecs
from loadgen.drivers.wire.kafka_records import RecordReader, Records, batch_headers
from loadgen.drivers.wire.kafka_shape import DamagedBatchError, decode_section, find_shape
from loadgen.payload import Payloads
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadgen.driver import UInt8

NOBODY = Identity()


def stamped(layout: Layout, payloads: Payloads, cuts: Sequence[int]) -> memoryview:
    """A sealed batch, filled in as many calls as there are cuts."""
    rows = layout.take()
    at = 0
    for count in filter(None, cuts):
        intended = np.arange(at, at + count) * 1000
        stamps = payloads.stamps(at, intended, 10**9)
        indices = payloads.key_indices(at, count)
        if indices is None:
            rows.fill(at, stamps, payloads, at)
        else:
            messages, _ = payloads.pack(at, intended, 10**9)
            keys = key_table(payloads.message.keys)[indices]
            rows.fill_whole(at, messages.reshape(count, -1), keys)
        at += count
    return seal(rows.view, layout.bytes_of(at), at, 1_700_000_000_000, Identity(7, 1, 42))


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 8191, 8192, 8193])
@pytest.mark.parametrize("keys", [0, 5])
def test_batch_is_what_kio_reads(count: int, keys: int) -> None:
    """Every value, key, offset and identity is read back by another codec, at the varints' boundaries too."""
    payloads = Payloads(Message(size_bytes=30, keys=keys), seed=1, token=2)
    layout = Layout(30, 1 << 20, keyed=bool(keys))
    batch, size = read_batch(bytes(stamped(layout, payloads, [count // 2, count - count // 2])), 0)
    flat, offsets = payloads.pack(0, np.arange(count) * 1000, 10**9)
    assert size == layout.bytes_of(count)
    assert [each.value for each in batch.records] == [flat[a:b].tobytes() for a, b in pairwise(offsets)]
    assert [each.offset for each in batch.records] == list(range(count))
    indices = payloads.key_indices(0, count)
    expected = [None] * count if indices is None else [int(each).to_bytes(8, "big") for each in indices]
    assert [each.key for each in batch.records] == expected
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (7, 1, 42)


@given(value_bytes=st.integers(24, 20_000), limit_bytes=st.integers(1, 300_000), keyed=st.booleans())
@settings(max_examples=60)
def test_layout_keeps_to_its_limit(value_bytes: int, limit_bytes: int, *, keyed: bool) -> None:
    """A batch is as large as its limit allows, and holds one record however large that is."""
    layout = Layout(value_bytes, limit_bytes, keyed=keyed)
    assert layout.bytes_of(layout.capacity) == layout.max_bytes
    if layout.capacity > 1:
        assert layout.max_bytes <= limit_bytes
    assert layout.bytes_of(layout.capacity) + value_bytes + 40 > limit_bytes
    sizes = [layout.bytes_of(each) for each in range(min(layout.capacity, 70) + 1)]
    assert sizes == sorted(set(sizes))


def test_buffers_are_used_again() -> None:
    """A buffer that was given back makes the same batch as a fresh one, whatever was in it."""
    payloads = Payloads(Message(size_bytes=40), seed=1, token=2)
    layout = Layout(40, 8_000, keyed=False)
    fresh = bytes(stamped(layout, payloads, [5]))
    rows = layout.take()
    rows.fill(0, payloads.stamps(900, np.arange(90), 5), payloads, 900)
    layout.give_back(rows)
    assert bytes(stamped(layout, payloads, [5])) == fresh


def signed32(value: int) -> int:
    """As Java prints an int."""
    return value - (1 << 32) if value >= 1 << 31 else value


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_as_kafka_has_it(key: bytes, expected: int) -> None:
    """The vectors of Kafka's own unit test."""
    assert signed32(int(murmur2(np.frombuffer(key, np.uint8).reshape(1, -1))[0])) == expected


def test_keys_spread_over_partitions() -> None:
    """Every key has one partition, and none of the partitions stays empty."""
    places = key_partitions(key_table(1_000), 7)
    assert sorted(set(places.tolist())) == list(range(7))
    assert np.bincount(places).max() < 200


def kio_batch(records: Iterable[Record], codec: int = 0, producer_id: int = -1) -> bytes:
    """A batch made by kio, its records compressed by `codec` if any."""
    out = io.BytesIO()
    new = NewRecordBatch(
        producer_id=i64(producer_id),
        producer_epoch=i16(-1),
        base_sequence=i32(-1),
        records=tuple(records),
        attributes=i16(codec),
    )
    write_new_batch(out, new)
    plain = bytearray(out.getvalue())
    if codec:
        packed = Codecs().compress(codec, memoryview(plain)[HEADER_BYTES:])
        plain = plain[:HEADER_BYTES] + packed
        struct.pack_into(">i", plain, 8, len(plain) - 12)
        struct.pack_into(">I", plain, 17, crc32c(bytes(plain[21:])))
    return bytes(plain)


def record(
    offset: int, value: bytes | None, key: bytes | None = None, headers: int = 0, millis: int = 1_700_000_000_000
) -> Record:
    """A record in kio's terms."""
    when = dt.datetime.fromtimestamp(millis / 1000, dt.UTC)
    each = RecordHeader(key=b"trace", value=b"x" * 9)
    return Record(
        attributes=i8(0),
        timestamp=TZAwareMicros.parse(when),
        offset=i64(offset),
        key=key,
        value=value,
        headers=(each,) * headers,
    )


def flat_of(*batches: bytes) -> tuple[UInt8, int]:
    """Batches in one buffer with the slack that the parsers ask for, and where they end."""
    data = b"".join(batches)
    return np.frombuffer(data + bytes(16), np.uint8), len(data)


def values_of(found: Iterable[Records]) -> list[bytes]:
    """The values, copied out."""
    out = []
    for each in found:
        sizes = np.broadcast_to(np.asarray(each.sizes), len(each.starts))
        out += [each.buffer[a : a + n].tobytes() for a, n in zip(each.starts, sizes, strict=True)]
    return out


RECORDS = st.lists(
    st.tuples(
        st.sampled_from([b"", b"v" * 24, b"w" * 24, b"w" * 100, None]) | st.binary(max_size=300),
        st.sampled_from([None, None, b"", b"12345678", b"k" * 70]),
        st.sampled_from([0, 0, 0, 1, 3]),
        st.integers(0, 300_000),
    ),
    min_size=1,
    max_size=40,
)


@given(
    batches=st.lists(st.tuples(RECORDS, st.integers(1, 90), st.integers(0, 4)), min_size=1, max_size=4),
    first=st.integers(0, 1 << 40),
)
@settings(max_examples=100)
def test_any_producers_batches_are_read(batches: list[tuple[list[Any], int, int]], first: int) -> None:
    """Keys, headers, nulls, mixed sizes, times and codecs: the values are those that kio wrote, in order."""
    made, expected, offset = [], [], first
    for rows, repeats, codec in batches:
        chosen = (rows * repeats)[:700]
        records = [
            record(offset + at, value, key, headers, 1_700_000_000_000 + millis)
            for at, (value, key, headers, millis) in enumerate(chosen)
        ]
        made.append(kio_batch(records, codec))
        expected += [value or b"" for value, _, _, _ in chosen]
        offset += len(chosen)
    flat, end = flat_of(*made)
    reader = RecordReader()
    for _ in range(2):  # the second time through the shapes that were remembered
        found = list(reader.read(flat, batch_headers(flat.data, 0, end)))
        assert values_of(found) == expected
        assert found[0].first_offset == first
        assert sum(len(each.starts) for each in found) == offset - first


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.sampled_from([24, 100]))
@settings(max_examples=40)
def test_batches_of_one_shape_are_read_together(counts: list[int], value_bytes: int) -> None:
    """Runs of our own batches, of changing counts, are one `Records` with every value in its place."""
    payloads = Payloads(Message(size_bytes=value_bytes), seed=1, token=2)
    layout = Layout(value_bytes, 1 << 20, keyed=False)
    made, total = [], 0
    for count in [each for each in counts for _ in range(3)]:
        rows = layout.take()
        rows.fill(0, payloads.stamps(total, np.full(count, 5), 9), payloads, total)
        batch = bytearray(seal(rows.view, layout.bytes_of(count), count, 1, NOBODY))
        struct.pack_into(">q", batch, 0, total)
        made.append(bytes(batch))
        total += count
    flat, end = flat_of(*made)
    (found,) = RecordReader().read(flat, batch_headers(flat.data, 0, end))
    assert found.sizes == value_bytes
    parsed = payloads.parse(flat, found.starts, value_bytes)
    assert parsed.intact.all()
    assert parsed.seq.tolist() == list(range(total))


def test_a_batch_like_another_in_length_only() -> None:
    """Two batches of equal length and count but other record sizes are told apart."""
    one = kio_batch([record(0, b"a" * 30), record(1, b"b" * 50)])
    other = kio_batch([record(2, b"c" * 50), record(3, b"d" * 30)])
    assert len(one) == len(other)
    flat, end = flat_of(one, other)
    expected = [b"a" * 30, b"b" * 50, b"c" * 50, b"d" * 30]
    assert values_of(RecordReader().read(flat, batch_headers(flat.data, 0, end))) == expected


def test_partial_trailing_batch_is_left_out() -> None:
    """A fetch that ends anywhere within a batch brings the whole batches before it."""
    first, second = kio_batch([record(0, b"x" * 40)]), kio_batch([record(1, b"y" * 40)])
    for cut in range(len(second)):
        flat, end = flat_of(first, second[:cut])
        headers = batch_headers(flat.data, 0, end)
        assert [each.base_offset for each in headers] == [0]


def test_from_the_middle_of_a_batch() -> None:
    """Records before the wanted offset are left out."""
    flat, end = flat_of(kio_batch([record(10 + at, bytes([at]) * 30) for at in range(9)]))
    (found,) = RecordReader().read(flat, batch_headers(flat.data, 0, end), from_offset=14)
    assert found.first_offset == 14
    assert values_of([found]) == [bytes([at]) * 30 for at in range(4, 9)]


def test_gaps_and_control_batches() -> None:
    """A control batch holds no messages, and after a gap a new run begins."""
    control = bytearray(kio_batch([record(3, b"\0\0\0\0\0\0", b"\0\0\0\1")]))
    struct.pack_into(">h", control, 21, 0x30)
    struct.pack_into(">I", control, 17, crc32c(bytes(control[21:])))
    ahead = [record(0, b"a" * 30), record(1, b"b" * 30), record(2, b"c" * 30)]
    gapped = [record(4, b"d" * 30), record(6, b"f" * 30)]
    flat, end = flat_of(kio_batch(ahead), bytes(control), kio_batch(gapped), kio_batch([record(7, b"g" * 30)]))
    headers = batch_headers(flat.data, 0, end)
    found = list(RecordReader().read(flat, headers))
    assert headers[-1].next_offset == 8
    assert [each.first_offset for each in found] == [0, None, 7]
    assert values_of(found) == [letter.encode() * 30 for letter in "abcdfg"]
    assert values_of(RecordReader().read(flat, headers[2:3], from_offset=5)) == [b"f" * 30]


@given(st.data())
@settings(max_examples=100)
def test_damage_is_noticed(data: st.DataObject) -> None:
    """A changed byte breaks the checksum; and behind a right checksum nonsense is an error, never a wrong place."""
    batch = bytearray(kio_batch([record(at, b"v" * 40, b"key") for at in range(9)]))
    at = data.draw(st.integers(21, len(batch) - 1))
    batch[at] ^= data.draw(st.integers(1, 255))
    flat, end = flat_of(bytes(batch))
    with pytest.raises(DamagedBatchError, match="checksum"):
        batch_headers(flat.data, 0, end)
    struct.pack_into(">I", batch, 17, crc32c(bytes(batch[21:])))
    flat, end = flat_of(bytes(batch))
    for read in (decode_section, find_shape):
        try:
            found = read(flat, HEADER_BYTES, end, 9)
        except DamagedBatchError:
            continue
        starts, sizes = (found[0], found[1]) if isinstance(found, tuple) else (found.starts + HEADER_BYTES, found.sizes)  # type: ignore[union-attr]
        assert ((starts >= HEADER_BYTES) & (starts + sizes <= end)).all()


def test_old_formats_are_refused() -> None:
    """A message set from before Kafka 0.11 is told, not misread."""
    batch = bytearray(kio_batch([record(0, b"x" * 40)]))
    batch[16] = 1
    flat, end = flat_of(bytes(batch))
    with pytest.raises(DamagedBatchError, match="format 1"):
        batch_headers(flat.data, 0, end)


@given(codec=st.integers(1, 4), data=st.binary(max_size=200_000) | st.binary(max_size=200).map(lambda b: b * 900))
@settings(max_examples=60)
def test_codecs_bring_back_what_they_took(codec: int, data: bytes) -> None:
    """Whatever the bytes, and over several of a codec's blocks."""
    codecs = Codecs()
    assert codecs.decompress(codec, memoryview(codecs.compress(codec, memoryview(data)))) == data


@pytest.mark.parametrize(
    ("codec", "packed"),
    [
        (1, gzip.compress(b"abc" * 99)),
        (2, bytes(cramjam.snappy.compress_raw(b"abc" * 99))),
        (3, lz4.frame.compress(b"abc" * 99, content_checksum=True, block_linked=True)),
        (4, zstandard.ZstdCompressor(level=9).compress(b"abc" * 99)),
        (4, zstandard.ZstdCompressor(write_content_size=False).compress(b"abc" * 99)),
    ],
    ids=["gzip", "snappy", "lz4", "zstd", "zstd without size"],  # gzip's bytes hold the time: no name for a test
)
def test_other_clients_framing_is_read(codec: int, packed: bytes) -> None:
    """Raw snappy, linked lz4 blocks and zstd with or without a content size: librdkafka's and others' choices."""
    assert Codecs().decompress(codec, memoryview(packed)) == b"abc" * 99


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_damaged_compression_is_told(codec: int) -> None:
    """A broken stream is a damaged batch and nothing else, cut short or overwritten."""
    whole = Codecs().compress(codec, memoryview(bytes(range(256)) * 400))
    for broken in (whole[: len(whole) // 2], b"\0" * 40):
        with pytest.raises(ValueError, match=CODECS[codec]):
            Codecs().decompress(codec, memoryview(broken))


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_compressed_batches(codec: int) -> None:
    """A batch compressed by us is read by us, and its checksum covers the compressed bytes."""
    loose = bytearray(HEADER_BYTES)
    values = [bytes([at]) * (at + 24) for at in range(100)]
    for delta, value in enumerate(values):
        pack_record(loose, delta, None, memoryview(value))
    packed = seal_compressed(Codecs(), codec, memoryview(loose), len(loose), 100, 1, NOBODY)
    flat, end = flat_of(bytes(packed))
    (header,) = batch_headers(flat.data, 0, end)
    assert header.codec == codec
    assert values_of(RecordReader().read(flat, [header])) == values
