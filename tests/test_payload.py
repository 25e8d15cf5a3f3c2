"""Every message tells whose it is and when it was meant, and no changed byte goes unnoticed."""

from __future__ import annotations

import gzip
import tracemalloc
from itertools import pairwise
from typing import TYPE_CHECKING

import cramjam
import lz4.frame
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.payload import (
    LAG_UNIT_NS,
    MAX_LAG_UNITS,
    MAX_POOL_BODIES,
    MAX_POOL_BYTES,
    MIN_POOL_BODIES,
    POOL_BYTES,
    SCALAR_MSGS,
    SEQUENCE_BITS,
    STAMP_BYTES,
    UNKNOWN,
    Payloads,
    make_pool,
    pool_bodies,
)
from loadgen.scenario import Message, Uniform

if TYPE_CHECKING:
    from collections.abc import Callable

SENT_NS = 5_000_000_000_000
CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "snappy": lambda data: bytes(cramjam.snappy.compress_raw(data)),
    "lz4": lz4.frame.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
FIXED, MIXED = Message(size_bytes=100), Message(size_bytes=Uniform(min_bytes=24, max_bytes=300))


def intended(count: int) -> np.ndarray:
    """Intended times up to the moment of sending."""
    return SENT_NS - np.arange(count)[::-1] * 1_000


@settings(max_examples=40)
@given(
    st.sampled_from([FIXED, MIXED, Message(size_bytes=24)]),
    st.integers(0, 65_535),
    st.integers(0, (1 << SEQUENCE_BITS) - 400),
    st.one_of(st.integers(1, 2 * SCALAR_MSGS), st.integers(1, 300)),
)
def test_what_was_packed_is_parsed(message: Message, producer: int, first_seq: int, count: int) -> None:
    """Times, producer and sequence numbers come back from any batch of any sizes, and all is intact."""
    payloads = Payloads(message, seed=1, token=7, producer=producer)
    flat, offsets = payloads.pack(first_seq, intended(count), SENT_NS)
    sizes = np.diff(offsets)
    assert sizes.tolist() == payloads.sizes(first_seq, count).tolist()
    parsed = Payloads(message, seed=1, token=7).parse(flat, offsets[:-1], payloads.size_bytes or sizes)
    assert parsed.intact.all()
    assert parsed.seq.tolist() == list(range(first_seq, first_seq + count))
    assert (parsed.producer == producer).all()
    assert parsed.intended_ns.tolist() == intended(count).tolist()
    late_ns = SENT_NS - parsed.sent_ns
    assert ((late_ns >= 0) & (late_ns < LAG_UNIT_NS)).all()


@settings(max_examples=30)
@given(st.integers(-(1 << 52), 1 << 52), st.integers(-(1 << 40), 1 << 40), st.integers(1, 2 * SCALAR_MSGS))
def test_stamps_are_told_by_one_clock_whatever_the_hosts_are(sender_ns: int, receiver_ns: int, count: int) -> None:
    """What a host wrote in its own time another one reads in its own; the check covers what stands in the stamp."""
    sender, receiver = (Payloads(FIXED, seed=1, token=7, producer=3) for _ in range(2))
    sender.ahead_ns, receiver.ahead_ns = sender_ns, receiver_ns
    flat, offsets = sender.pack(5, intended(count), SENT_NS)
    parsed = receiver.parse(flat, offsets[:-1], 100)
    assert parsed.intact.all()
    assert parsed.intended_ns.tolist() == (intended(count) + sender_ns - receiver_ns).tolist()
    late_ns = SENT_NS + sender_ns - receiver_ns - parsed.sent_ns
    assert ((late_ns >= 0) & (late_ns < LAG_UNIT_NS)).all()


@settings(max_examples=30)
@given(st.integers(0, 1 << 40), st.integers(0, 300), st.integers(1, SCALAR_MSGS), st.integers(0, 400))
def test_few_messages_have_the_bytes_of_many(first_seq: int, begin: int, count: int, stride: int) -> None:
    """The paths for few and for many messages write the same stamps and read the same messages."""
    payloads = Payloads(FIXED, seed=1, token=0xFFFFFFFF, producer=3)
    many = payloads.stamps(first_seq, intended(400), SENT_NS)
    few = payloads.stamps(first_seq + begin, intended(400)[begin : begin + count], SENT_NS)
    assert many[begin : begin + count].tolist() == few.tolist()
    rows = np.zeros((400, 100 + stride), np.uint8)
    payloads.write(rows[:, :100], first_seq, intended(400), SENT_NS)
    starts = np.arange(400) * (100 + stride)
    all_of, some_of = (payloads.parse(rows.reshape(-1), part, 100) for part in (starts, starts[begin : begin + count]))
    for name in ("intended_ns", "sent_ns", "producer", "seq", "intact"):
        assert getattr(all_of, name)[begin : begin + count].tolist() == getattr(some_of, name).tolist()


@pytest.mark.parametrize("message", [FIXED, MIXED], ids=["fixed", "mixed"])
@pytest.mark.parametrize("count", [1, 20])
def test_a_change_of_any_byte_is_noticed(message: Message, count: int) -> None:
    """Each byte of a message changed in turn: that message is not intact, and every other one still is."""
    payloads = Payloads(message, seed=1, token=7, producer=2)
    flat, offsets = payloads.pack(1_000, intended(count), SENT_NS)
    victim = count // 2
    for place in range(int(offsets[victim]), int(offsets[victim + 1])):
        for change in (0x01, 0x80, 0xFF):
            flat[place] ^= change
            parsed = payloads.parse(flat, offsets[:-1], payloads.size_bytes or np.diff(offsets))
            flat[place] ^= change
            assert np.flatnonzero(~parsed.intact).tolist() == [victim]
            in_body = place >= offsets[victim] + STAMP_BYTES
            assert parsed.seq[victim] == (1_000 + victim if in_body else UNKNOWN)


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("size_bytes", [0, 1, 23, 24, 99, 101])
def test_a_message_of_another_size_is_not_intact(size_bytes: int, count: int) -> None:
    """Too short for a stamp, cut or lengthened: it is told, and nothing breaks."""
    payloads = Payloads(FIXED, seed=1, token=7)
    flat, offsets = payloads.pack(0, intended(count), SENT_NS)
    flat = flat[: int(offsets[-2]) + size_bytes] if size_bytes < 100 else np.append(flat, np.uint8(0))
    sizes = np.full(count, 100)
    sizes[-1] = size_bytes
    parsed = payloads.parse(flat, offsets[:-1], sizes)
    assert parsed.intact.tolist() == [True] * (count - 1) + [False]
    if count == 1:
        assert not payloads.parse(flat, offsets[:-1], size_bytes).intact.any()


def test_a_message_of_another_run_is_not_intact() -> None:
    """Another token, left from a run before, is noticed."""
    for count in (1, 50):
        flat, offsets = Payloads(FIXED, seed=1, token=7).pack(0, intended(count), SENT_NS)
        assert not Payloads(FIXED, seed=1, token=8).parse(flat, offsets[:-1], 100).intact.any()


def test_no_messages_are_parsed_as_none() -> None:
    """An empty batch is no error."""
    for message, sizes in ((FIXED, 100), (MIXED, np.empty(0, np.int64))):
        parsed = Payloads(message, seed=1, token=7).parse(np.empty(0, np.uint8), np.empty(0, np.int64), sizes)
        assert len(parsed.seq) == len(parsed.intact) == 0


def test_a_lag_beyond_its_field_stays_at_the_largest() -> None:
    """A message minutes late does not look early, one sent before its time does not look very late."""
    payloads = Payloads(FIXED, seed=1, token=7)
    for count in (1, 50):
        late_ns = np.full(count, SENT_NS - 2 * MAX_LAG_UNITS * LAG_UNIT_NS)
        early_ns = np.full(count, SENT_NS + 1_000)
        for times, lag_ns in ((late_ns, MAX_LAG_UNITS * LAG_UNIT_NS), (early_ns, 0)):
            flat, offsets = payloads.pack(0, times, SENT_NS)
            parsed = payloads.parse(flat, offsets[:-1], 100)
            assert (parsed.sent_ns - parsed.intended_ns == lag_ns).all()
            assert parsed.intact.all()


@pytest.mark.parametrize("message", [FIXED, MIXED], ids=["fixed", "mixed"])
def test_bodies_of_a_batch_do_not_overlap(message: Message) -> None:
    """Messages one after another take bodies one after another of a pool larger than the codecs' windows."""
    pool = Payloads(message, seed=1, token=7).pool
    assert (np.diff(pool.offsets) == pool.sizes - STAMP_BYTES).all()
    assert pool.offsets[0] == 0
    assert pool.offsets[-1] == len(pool.data) >= 0.9 * POOL_BYTES
    for producer in (0, 5):
        payloads = Payloads(message, seed=1, token=7, producer=producer)
        indices = payloads._indices(pool.count - 3, pool.count)
        assert len(set(indices.tolist())) == pool.count


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size_bytes", [100, 1024])
def test_random_bodies_cannot_be_compressed(codec: str, size_bytes: int) -> None:
    """A batch of 1 MB shrinks by no more than the regularity of its stamps: the bodies not at all."""
    count = (1 << 20) // size_bytes
    payloads = Payloads(Message(size_bytes=size_bytes), seed=1, token=7)
    rows = np.empty((count, size_bytes), np.uint8)
    payloads.write(rows, 123, intended(count), SENT_NS)
    bodies = rows[:, STAMP_BYTES:].tobytes()
    assert len(CODECS[codec](bodies)) > 0.97 * len(bodies)
    if size_bytes >= 1024:
        assert len(CODECS[codec](rows.tobytes())) > 0.97 * rows.size


@pytest.mark.parametrize("codec", CODECS)
def test_compressibility_is_the_share_that_a_codec_removes(codec: str) -> None:
    """At 0.5 a batch of 1 MB shrinks to about a half with every codec, not further across messages."""
    payloads = Payloads(Message(size_bytes=1024, compressibility=0.5), seed=1, token=7)
    flat, _ = payloads.pack(99, intended(1024), SENT_NS)
    assert 1.8 < len(flat) / len(CODECS[codec](flat.tobytes())) < 2.1


def test_pools_are_the_same_in_every_process() -> None:
    """A pool comes from message and seed alone, and differs with the seed."""
    first, other = (Payloads(FIXED, seed=seed, token=7).pool.data[:4096] for seed in (1, 2))
    assert (Payloads(FIXED, seed=1, token=9).pool.data[:4096] == first).all()
    assert (first != other).mean() > 0.9


def test_keys_are_spread_evenly_and_fixed_by_the_sequence_number() -> None:
    """Every key is used, and a message asked for twice has the same one."""
    payloads = Payloads(Message(size_bytes=100, keys=10), seed=1, token=7)
    keys = payloads.key_indices(0, 10_000)
    assert keys is not None
    assert np.bincount(keys, minlength=10).min() > 800
    again = payloads.key_indices(5_000, 10)
    assert again is not None
    assert again.tolist() == keys[5_000:5_010].tolist()
    assert Payloads(FIXED, seed=1, token=7).key_indices(0, 3) is None


def test_zipf_keys_are_as_frequent_as_their_law_says() -> None:
    """Key k comes 1/(k + 1)^s as often as key 0, for any exponent; none is out of range."""
    for exponent in (0.5, 1.0, 2.0):
        message = Message(size_bytes=100, keys=1_000, key_exponent=exponent)
        keys = Payloads(message, seed=1, token=2).key_indices(0, 100_000)
        assert keys is not None
        counts = np.bincount(keys, minlength=1_000)
        expected = np.arange(1, 1_001.0) ** -exponent
        expected *= 100_000 / expected.sum()
        assert len(counts) == 1_000
        assert (np.abs(counts[:5] - expected[:5]) < 5 * np.sqrt(expected[:5])).all()


@pytest.mark.parametrize("mean_bytes", [1, 8, 100, 1_000, 1 << 20, 1_048_600, 16 << 20, 128 << 20, 512 << 20])
def test_a_pool_is_bounded_in_bytes_and_bodies(mean_bytes: int) -> None:
    """Larger bodies are fewer, down to two; of small ones there are enough for the codecs' windows."""
    count = pool_bodies(mean_bytes)
    assert 2 <= count <= MAX_POOL_BODIES
    assert count == 2 or count * mean_bytes <= MAX_POOL_BYTES
    assert count >= MIN_POOL_BODIES or (count + 1) * mean_bytes > MAX_POOL_BYTES


@pytest.mark.parametrize("size_bytes", [2 << 20, Uniform(min_bytes=24, max_bytes=3 << 20)], ids=["fixed", "mixed"])
def test_making_a_pool_needs_little_more_than_the_pool(size_bytes: int | Uniform) -> None:
    """Compressibility costs no index for each byte: the peak stays below one and a half pools."""
    message = Message(size_bytes=size_bytes, compressibility=0.5)
    tracemalloc.start()
    try:
        pool = make_pool.__wrapped__(message, 1)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.5 * len(pool.data)
    bodies = [pool.data[begin:end] for begin, end in pairwise(pool.offsets.tolist())]
    for body in bodies:
        zeros = round(len(body) * 0.5)
        assert not body[:zeros].any()
        assert len(body) < 100 or body[zeros:].any()
