"""The stream driver's bytes, held against rstream's codec and readers that take one message at a time."""

from __future__ import annotations

import gzip
import struct
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import mmh3
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rstream import schema
from rstream.amqp import AMQPMessage, amqp_decoder
from rstream.encoding import decode_frame, encode_frame, encode_publish

from loadgen.drivers.wire.framed import SLACK_BYTES
from loadgen.drivers.wire.kafka_codecs import CODECS
from loadgen.drivers.wire.stream_chunks import ChunkParser, DamagedChunkError, body_of, chunk_end
from loadgen.drivers.wire.stream_frames import PublishPacker, StreamCodecs, entry, key_partitions, murmur3
from loadgen.drivers.wire.stream_protocol import (
    FIRST,
    MAX_FRAME_BYTES,
    Code,
    Key,
    Metadata,
    Offset,
    Reader,
    answer,
    blob,
    command,
    properties,
    request,
    text,
    texts,
)
from loadgen.errors import ScenarioError
from loadgen.payload import Payloads
from loadgen.scenario import Message, Uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.drivers.wire.stream_chunks import Chunk

NOW_NS = 10**9
NAMES = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=30)
PAIRS = st.dictionaries(NAMES, NAMES, max_size=4)
BODIES = st.lists(st.one_of(st.binary(max_size=40), st.binary(min_size=250, max_size=270)), min_size=1, max_size=8)


def rprops(values: dict[str, str]) -> list[schema.Property]:
    """Properties as rstream has them."""
    return [schema.Property(key, value) for key, value in values.items()]


# --- rare frames ---


@settings(max_examples=30)
@given(name=NAMES, other=NAMES, pairs=PAIRS, number=st.integers(0, 2**63 - 1), correlation=st.integers(0, 2**31 - 1))
def test_requests_are_what_rstream_writes(
    name: str, other: str, pairs: dict[str, str], number: int, correlation: int
) -> None:
    """Byte by byte, for every request that rstream knows."""
    first, at = schema.OffsetSpec(schema.OffsetType.FIRST), schema.OffsetSpecOffset(schema.OffsetType.OFFSET, number)
    c, subscribed, pub = correlation, struct.pack(">B", 7) + text(name), text(name) + text(other)
    both = [
        (Key.PEER_PROPERTIES, properties(pairs), schema.PeerProperties(c, rprops(pairs))),
        (Key.SASL_HANDSHAKE, b"", schema.SaslHandshake(c)),
        (Key.SASL_AUTHENTICATE, text("PLAIN") + blob(other.encode()),
         schema.SaslAuthenticate(c, "PLAIN", other.encode())),
        (Key.OPEN, text(name), schema.Open(c, name)),
        (Key.CREATE, text(name) + properties(pairs), schema.Create(c, name, rprops(pairs))),
        (Key.DELETE, text(name), schema.Delete(c, name)),
        (Key.DECLARE_PUBLISHER, struct.pack(">B", 9) + pub, schema.DeclarePublisher(c, 9, name, other)),
        (Key.QUERY_PUBLISHER_SEQUENCE, pub, schema.QueryPublisherSequence(c, name, other)),
        (Key.METADATA, texts([name, other]), schema.Metadata(c, [name, other])),
        (Key.SUBSCRIBE, subscribed + FIRST.encode() + struct.pack(">H", 10) + properties(pairs),
         schema.Subscribe(c, 7, name, first, 10, rprops(pairs))),
        (Key.SUBSCRIBE, subscribed + Offset("offset", number).encode() + struct.pack(">H", 1) + properties({}),
         schema.Subscribe(c, 7, name, at, 1, [])),
        (Key.UNSUBSCRIBE, b"\7", schema.Unsubscribe(c, 7)),
        (Key.QUERY_OFFSET, pub, schema.QueryOffset(c, name, other)),
        (Key.CLOSE, struct.pack(">H", Code.OK) + text(name), schema.Close(c, 1, name)),
        (Key.CREATE_SUPER_STREAM, text(name) + texts([name]) + texts([other]) + properties(pairs),
         schema.CreateSuperStream(c, name, [name], [other], rprops(pairs))),
        (Key.DELETE_SUPER_STREAM, text(name), schema.DeleteSuperStream(c, name)),
    ]  # fmt: skip
    for key, body, theirs in both:
        assert request(key, c, body) == encode_frame(theirs), key
    stored = command(Key.STORE_OFFSET, pub + struct.pack(">Q", number))
    assert stored == encode_frame(schema.StoreOffset(name, other, number))
    assert command(Key.CREDIT, struct.pack(">BH", 3, 2)) == encode_frame(schema.Credit(3, 2))
    assert command(Key.TUNE, struct.pack(">II", 5, 6)) == encode_frame(schema.Tune(5, 6))
    assert command(Key.HEARTBEAT) == encode_frame(schema.Heartbeat())
    update = schema.ConsumerUpdateServerResponse(c, 1, schema.OffsetSpecification(4, number))
    assert answer(Key.CONSUMER_UPDATE, c, 1, Offset("offset", number).encode()) == encode_frame(update)


def test_a_text_is_counted_in_bytes() -> None:
    """A name beyond ASCII is as long as its UTF-8, and comes back."""
    encoded = text("Größe")
    assert struct.unpack_from(">h", encoded)[0] == len("Größe".encode()) == 7
    assert Reader(encoded).text() == "Größe"


@given(names=st.lists(NAMES, max_size=4), pairs=PAIRS)
def test_what_is_written_is_read_back_and_never_beyond_its_end(names: list[str], pairs: dict[str, str]) -> None:
    """Arrays of strings and properties survive; cut anywhere they are an error, never a shorter answer."""
    whole = texts(names) + properties(pairs)
    reader = Reader(whole)
    assert (reader.texts(), reader.properties()) == (names, pairs)
    for cut in range(4, len(texts(names))):
        with pytest.raises(struct.error):
            Reader(whole[:cut]).texts()


def test_metadata_is_what_rstream_reads() -> None:
    """Leaders by stream; a stream that does not exist, or has no leader now, is told with its code."""
    brokers = [schema.Broker(0, "a", 1), schema.Broker(1, "b", 2)]
    streams = [
        schema.StreamMetadata("x", 1, 1, [0]),
        schema.StreamMetadata("gone", 2, 0xFFFF, []),
        schema.StreamMetadata("y", 1, 0xFFFF, []),
    ]
    frame = encode_frame(schema.MetadataResponse(1, brokers, streams))
    found = Metadata.read(Reader(frame[12:]))
    assert found == Metadata(2, {"x": ("b", 2)}, {"gone": 2, "y": Code.STREAM_NOT_AVAILABLE})


@pytest.mark.parametrize(("kind", "value"), [("first", 3), ("offset", None), ("timestamp", None)])
def test_an_offset_without_its_value_is_refused(kind: Any, value: int | None) -> None:
    """What takes a value has one, and nothing else has."""
    with pytest.raises(ScenarioError, match="offset specification"):
        Offset(kind, value)


# --- publishes ---


def payloads_of(message: Message, producer: int = 0) -> Payloads:
    """A producer's messages."""
    return Payloads(message, seed=3, token=5, producer=producer)


def bodies_of(payloads: Payloads, first_seq: int, count: int) -> list[bytes]:
    """The same messages one by one."""
    flat, offsets = payloads.pack(first_seq, np.full(count, NOW_NS), NOW_NS)
    return [flat[a:b].tobytes() for a, b in pairwise(offsets)]


def packed(packer: PublishPacker, first_seq: int, count: int) -> tuple[list[bytes], list[Any]]:
    """The frames of a batch, and its groups."""
    frames, groups = packer.pack(first_seq, np.full(count, NOW_NS), NOW_NS)
    return [bytes(each) for each in frames], groups


SIZES = [Message(size_bytes=size) for size in (24, 100, 255, 256, 3_000)]
MIXED = Message(size_bytes=Uniform(min_bytes=24, max_bytes=700))


@pytest.mark.parametrize("message", [*SIZES, MIXED], ids=lambda message: str(message.size_bytes))
@pytest.mark.parametrize("count", [1, 2, 40])
def test_publishes_are_what_rstream_writes(message: Message, count: int) -> None:
    """One frame of many messages, each an AMQP 1.0 data section behind its publishing id, identical byte by byte."""
    payloads = payloads_of(message)
    packer = PublishPacker(payloads, MAX_FRAME_BYTES)
    for first_seq in (0, count, 10**12):
        bodies = bodies_of(payloads, first_seq, count)
        theirs = [
            schema.Message(first_seq + 1 + number, None, bytes(AMQPMessage(body=body)))
            for number, body in enumerate(bodies)
        ]
        assert packed(packer, first_seq, count) == ([encode_publish(schema.Publish(0, theirs))], [])


@pytest.mark.parametrize("message", [Message(size_bytes=60, keys=50), MIXED.model_copy(update={"keys": 50})])
@pytest.mark.parametrize("group_msgs", [1, 7])
def test_keys_decide_the_partition(message: Message, group_msgs: int) -> None:
    """A key's messages go to its partition alone, in order; together the frames hold every message once."""
    payloads = payloads_of(message)
    packer = PublishPacker(payloads, MAX_FRAME_BYTES, partitions=3, group_msgs=group_msgs)
    bodies = bodies_of(payloads, 0, 90)
    indices = payloads.key_indices(0, 90)
    assert indices is not None
    wanted = key_partitions(50, 3)[indices]
    frames, groups = packed(packer, 0, 90)
    assert [frame[8] for frame in frames] == sorted(set(wanted.tolist()))
    for frame in frames:
        mine = np.flatnonzero(wanted == frame[8])
        if group_msgs == 1:
            read = decode_frame(frame[4:]).messages
            assert [each.publishing_id for each in read] == (mine + 1).tolist()
            assert [amqp_decoder(each.data).body for each in read] == [bodies[row] for row in mine]
        else:
            own = [seqs.tolist() for publisher, _, seqs in groups if publisher == frame[8]]
            assert own == [mine[at : at + 7].tolist() for at in range(0, len(mine), 7)]


def test_without_keys_batches_take_partitions_in_turn() -> None:
    """Each batch goes to one partition as a whole, the next one to the next."""
    packer = PublishPacker(payloads_of(Message(size_bytes=30), producer=1), MAX_FRAME_BYTES, partitions=3)
    assert [[frame[8] for frame in packed(packer, at, 5)[0]] for at in range(0, 30, 5)] == [[2], [0], [1]] * 2


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("message", [Message(size_bytes=100, compressibility=0.5), MIXED])
def test_sub_entries_hold_their_messages(codec: str, message: Message) -> None:
    """Groups of a size and a rest, each under its last message's id; what is unpacked is what was sent."""
    payloads = payloads_of(message)
    packer = PublishPacker(payloads, MAX_FRAME_BYTES, group_msgs=10, codec=codec)
    (frame,), groups = packed(packer, 5, 33)
    assert [(publisher, identity) for publisher, identity, _ in groups] == [(0, 15), (0, 25), (0, 35), (0, 38)]
    assert np.concatenate([seqs for _, _, seqs in groups]).tolist() == list(range(5, 38))
    assert struct.unpack_from(">i", frame, 9)[0] == 4
    sub_entries, at = b"", 13
    while at < len(frame):  # in a chunk they stand without their ids
        size = 19 + struct.unpack_from(">I", frame, at + 15)[0]
        sub_entries += frame[at + 8 : at + size]
        at += size
    assert bodies_in(parse(deliver(sub_entries, 4, 33))) == bodies_of(payloads, 5, 33)
    if codec in {"none", "gzip"}:  # rstream has the others by registration only
        theirs = decode_frame(deliver(sub_entries, 4, 33)[4:])
        assert [amqp_decoder(each).body for each in theirs.get_messages()] == bodies_of(payloads, 5, 33)


@pytest.mark.parametrize("group_msgs", [1, 2, 50])
@pytest.mark.parametrize("message", [Message(size_bytes=24), Message(size_bytes=300_000), MIXED])
def test_a_full_batch_fits_a_frame(message: Message, group_msgs: int) -> None:
    """However many messages the packer says that it takes, their frame is within the broker's limit."""
    for codec in ("none", "gzip") if group_msgs > 1 else ("none",):
        packer = PublishPacker(payloads_of(message), MAX_FRAME_BYTES, group_msgs=group_msgs, codec=codec)
        frames, _ = packed(packer, 0, packer.rows)
        assert all(len(each) - 4 <= MAX_FRAME_BYTES for each in frames)


@given(rows=st.integers(1, 9), length=st.integers(1, 17), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_murmur3_is_the_reference(rows: int, length: int, seed: int, data: st.DataObject) -> None:
    """Every row's hash is mmh3's."""
    keys = [data.draw(st.binary(min_size=length, max_size=length)) for _ in range(rows)]
    ours = murmur3(np.frombuffer(b"".join(keys), np.uint8).reshape(rows, length), seed)
    assert ours.tolist() == [mmh3.hash(key, seed, signed=False) for key in keys]


@pytest.mark.parametrize("keys", [1, 2, 10, 11, 100, 1_234])
def test_keys_are_hashed_as_decimal_text(keys: int) -> None:
    """Key k goes where RabbitMQ's Java client sends the text of k."""
    expected = [mmh3.hash(str(key), 104_729, signed=False) % 5 for key in range(keys)]
    assert key_partitions(keys, 5).tolist() == expected


# --- chunks ---


def deliver(entries: bytes, entry_count: int, records: int, *, first: int = 7, kind: int = 0) -> bytes:
    """A Deliver frame as rstream's schema writes it."""
    crc, trailer = zlib.crc32(entries), 0
    if kind:
        head = struct.pack(">BBHIqQQIIII", 0x50, kind, entry_count, records, 1, 2, first, crc, len(entries), trailer, 0)
        body = struct.pack(">HHB", Key.DELIVER, 1, 3) + head + entries
        return struct.pack(">I", len(body)) + body
    made = schema.Deliver(3, 0x50, kind, entry_count, records, 1, 2, first, crc, len(entries), trailer, 0, entries)
    return bytes(encode_frame(made))


def parse(frame: bytes, before: int = 0) -> Chunk:
    """A frame somewhere in a buffer, read by us."""
    buffer = np.frombuffer(bytes(before) + frame[4:] + bytes(SLACK_BYTES), np.uint8)
    return ChunkParser().parse(buffer, before, before + len(frame) - 4)


def bodies_in(chunk: Chunk) -> list[bytes]:
    """Each message's body."""
    sizes = np.broadcast_to(np.asarray(chunk.sizes), len(chunk.starts)).tolist()
    pairs = zip(chunk.starts.tolist(), sizes, strict=True)
    return [chunk.buffer[start : start + size].tobytes() for start, size in pairs]


def written(bodies: Sequence[bytes]) -> bytes:
    """Entries as rstream writes messages."""
    data = [bytes(AMQPMessage(body=body)) for body in bodies]
    return b"".join(struct.pack(">I", len(each)) + each for each in data)


@settings(max_examples=60)
@given(bodies=BODIES, before=st.integers(0, 20))
def test_chunks_of_any_sizes_are_what_rstream_wrote(bodies: list[bytes], before: int) -> None:
    """Every body of a chunk, in order; offsets count from the chunk's first."""
    bodies = [body or b"." for body in bodies]  # rstream leaves out an empty body
    frame = deliver(written(bodies), len(bodies), len(bodies))
    chunk = parse(frame, before)
    assert bodies_in(chunk) == bodies
    assert (chunk.subscription, chunk.first_offset, chunk.count, chunk.time_ms) == (3, 7, len(bodies), 1)
    assert chunk_end(frame[4:]) == 7 + len(bodies)
    assert b"".join(entry(body) for body in bodies) == written(bodies)


@pytest.mark.parametrize("size", [1, 24, 252, 253, 255, 256, 257, 70_000])
@pytest.mark.parametrize("count", [1, 2, 33])
def test_chunks_of_one_size_are_rows(size: int, count: int) -> None:
    """They have one size for all, on both sides of the limit between AMQP's short and long binaries."""
    bodies = [bytes([number]) * size for number in range(count)]
    chunk = parse(deliver(written(bodies), count, count))
    assert isinstance(chunk.sizes, int)
    assert bodies_in(chunk) == bodies


@given(place=st.integers(0, 9), size=st.integers(5, 300), other=st.integers(0, 300))
def test_rows_that_differ_in_their_head_are_not_taken_for_rows(place: int, size: int, other: int) -> None:
    """One message among equals that is as long but made otherwise is still found where it is."""
    bodies = [bytes([number]) * size for number in range(10)]
    entries = [written([body]) for body in bodies]
    length = len(entries[0])
    padded = b"\x00\x53\x75\xb0" + struct.pack(">I", max(0, length - 12)) + bytes(max(0, length - 12))
    plain = bytes([other % 256 | 1]) * (length - 4)  # no AMQP at all
    for odd in (padded, plain):
        if len(odd) == length - 4:
            changed = [*entries[:place], struct.pack(">I", len(odd)) + odd, *entries[place + 1 :]]
            found = bodies_in(parse(deliver(b"".join(changed), 10, 10)))
            expected = odd[8:] if odd is padded else odd
            assert found == [*bodies[:place], expected, *bodies[place + 1 :]]


@settings(max_examples=40)
@given(parts=st.lists(st.tuples(st.integers(0, 5), BODIES), min_size=1, max_size=4))
def test_plain_messages_and_sub_entries_in_one_chunk(parts: list[tuple[int, list[bytes]]]) -> None:
    """Several producers' entries of every kind stand in one chunk: all come out, in order (5 stands for plain)."""
    codecs, entries, number, expected = StreamCodecs(), b"", 0, []
    for codec, bodies in parts:
        whole = b"".join(entry(body) for body in bodies)
        expected += bodies
        if codec == 5:
            entries += whole
            number += len(bodies)
        else:
            data = codecs.compress(codec, memoryview(whole))
            entries += struct.pack(">BHII", 0x80 | codec << 4, len(bodies), len(whole), len(data)) + data
            number += 1
    assert bodies_in(parse(deliver(entries, number, len(expected)))) == expected


def test_gzip_of_another_client_is_read() -> None:
    """What rstream compresses comes out whole."""
    bodies = [b"abc" * 50, b"defg" * 10]
    plain = written(bodies)
    data = gzip.compress(plain)
    entries = struct.pack(">BHII", 0x90, 2, len(plain), len(data)) + data
    assert bodies_in(parse(deliver(entries, 1, 2))) == bodies


def test_bodies_of_other_clients() -> None:
    """Sections before the data are skipped, values of bytes or text are bodies too, and plain bytes their own."""
    properties_too = AMQPMessage(body=b"payload", application_properties={b"k": b"v", b"n": 12})
    cases = [
        (bytes(properties_too), b"payload"),
        (b"\x00\x53\x77\xa1\x03abc", b"abc"),
        (b"\x00\x53\x77\xb0\x00\x00\x00\x03abc", b"abc"),
        (b"\x00\x53\x70\xc0\x02\x01\x41\x00\x53\x75\xa0\x01x", b"x"),
        (b"\x00\x53\x73\x45\x00\x53\x75\xa0\x01y", b"y"),
        (b"plain", b"plain"),
        (b"", b""),
        (b"\x00\x53\x75\xa0\x09cut", b"\x00\x53\x75\xa0\x09cut"),
    ]
    for stored, body in cases:
        start, size = body_of(memoryview(stored), 0, len(stored))
        assert stored[start : start + size] == body


@pytest.mark.parametrize("kind", [1, 2])
def test_chunks_that_are_no_messages_are_empty(kind: int) -> None:
    """Stored offsets and snapshots of them hold no messages."""
    assert bodies_in(parse(deliver(b"\x00\x00\x00\x02hi", 1, 1, kind=kind))) == []


def test_a_chunk_cut_or_changed_anywhere_is_an_error_or_as_it_was() -> None:
    """Split at every byte: what is missing is noticed, never read beyond the frame's end."""
    codecs = StreamCodecs()
    whole = b"".join(entry(bytes([number]) * (20 + number)) for number in range(4))
    data = codecs.compress(4, memoryview(whole))
    grouped = struct.pack(">BHII", 0x80 | 4 << 4, 4, len(whole), len(data)) + data
    for entries, count in ((whole, 4), (grouped, 1)):
        frame = deliver(entries, count, 4)
        for cut in range(len(frame) - 1, 9, -1):
            with pytest.raises(DamagedChunkError):
                parse(frame[:cut])
    for size in (0, 3, 200, 2**30):
        broken = bytearray(deliver(whole, 4, 4))
        struct.pack_into(">I", broken, 4 + 5 + 48, size)
        with pytest.raises(DamagedChunkError):
            parse(bytes(broken))
    for codec in (1, 2, 3, 4, 5, 7):
        entries = struct.pack(">BHII", 0x80 | codec << 4, 4, len(whole), len(whole)) + whole
        with pytest.raises(DamagedChunkError, match="sub-entry"):
            parse(deliver(entries, 1, 4))
