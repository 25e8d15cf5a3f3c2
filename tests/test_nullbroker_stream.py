"""A null broker's stream side, byte by byte: messages come out as they went in, in chunks, as credits allow."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise
from typing import Any

import nullclients
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.drivers.wire.framed import SLACK_BYTES
from loadgen.drivers.wire.stream_chunks import ChunkParser
from loadgen.drivers.wire.stream_frames import PublishPacker
from loadgen.drivers.wire.stream_protocol import (
    FIRST,
    KEY,
    LAST,
    MAX_FRAME_BYTES,
    RESPONSE_BIT,
    Code,
    Key,
    Metadata,
    Offset,
    Reader,
    command,
    properties,
    request,
    text,
    texts,
)
from loadgen.nullbroker import kafka_log, stream, stream_log
from loadgen.nullbroker.stream import StreamRelay
from loadgen.payload import Payloads
from loadgen.scenario import Message, Uniform

STREAM = "loadgen-null-1"
PORT = 5552
CHECKSUM_AT, BODY_AT = 37, 53  # in a Deliver frame without its length


class Client(nullclients.Client):
    """One session, driven by hand."""

    def heard(self) -> list[bytes]:
        """All whole frames that came, without their lengths; they are forgotten."""
        found, raw = [], bytes(self.line.written)
        while raw:
            (size,) = struct.unpack_from(">I", raw)
            assert len(raw) >= 4 + size, "a part of a frame came"
            found.append(raw[4 : 4 + size])
            raw = raw[4 + size :]
        self.line.written.clear()
        return found

    def ask(self, key: Key, body: bytes = b"") -> tuple[int, Reader]:
        """The code that a request is answered with, and what stands behind it."""
        self.say(request(key, 7, body))
        answers = [each for each in self.heard() if KEY.unpack_from(each)[0] == key | RESPONSE_BIT]
        (found,) = answers
        reader = Reader(found[KEY.size :])
        assert reader.number("I") == 7
        return (0 if key == Key.METADATA else reader.number("H")), reader

    def messages(self) -> tuple[list[bytes], list[tuple[int, int]]]:
        """The bodies that were delivered, as the wire driver reads them, and (offset, count) of each chunk."""
        bodies, chunks, parser = [], [], ChunkParser()
        for each in self.heard():
            if KEY.unpack_from(each)[0] == Key.DELIVER:
                buffer = np.frombuffer(each + bytes(SLACK_BYTES), np.uint8)
                chunk = parser.parse(buffer, 0, len(each))
                assert struct.unpack_from(">I", each, CHECKSUM_AT) == (zlib.crc32(each[BODY_AT:]),)
                sizes = np.broadcast_to(chunk.sizes, chunk.count).tolist()
                places = zip(chunk.starts.tolist(), sizes, strict=True)
                bodies += [chunk.buffer[at : at + size].tobytes() for at, size in places]
                chunks.append((chunk.first_offset, chunk.count))
        return bodies, chunks


def opened(chunks_left: int = 100, consumers: int = 1) -> tuple[Client, list[Client]]:
    """A publisher of a stream, and subscriptions to it."""
    relay = StreamRelay(PORT)
    publisher, clients = Client(relay), [Client(relay) for _ in range(consumers)]
    assert publisher.ask(Key.CREATE, text(STREAM) + properties({}))[0] == Code.OK
    assert publisher.ask(Key.DECLARE_PUBLISHER, struct.pack(">B", 0) + text("") + text(STREAM))[0] == Code.OK
    for client in clients:
        assert client.ask(Key.SUBSCRIBE, subscribe(chunks_left))[0] == Code.OK
    return publisher, clients


def subscribe(chunks_left: int, start: Offset = FIRST, name: str = STREAM, **told: str) -> bytes:
    """The body of a subscription with number 3."""
    body = struct.pack(">B", 3) + text(name) + start.encode()
    return (
        body + struct.pack(">H", chunks_left) + properties({key.replace("_", "-"): each for key, each in told.items()})
    )


def publishes(count: int, size: int | Uniform, first: int = 0, **how: Any) -> tuple[bytes, list[bytes]]:
    """The frame of messages first … as the wire driver makes it, and the messages themselves."""
    payloads, times = Payloads(Message(size_bytes=size), seed=3, token=9), np.zeros(count, np.int64)
    flat, offsets = payloads.pack(first, times, 0)
    bodies = [flat[begin:end].tobytes() for begin, end in pairwise(offsets)]
    frames, _ = PublishPacker(payloads, MAX_FRAME_BYTES, **how).pack(first, times, 0)
    return b"".join(bytes(each) for each in frames), bodies


def confirmed(publisher: Client) -> list[int]:
    """The publishing ids that were confirmed, in their order."""
    found: list[int] = []
    for each in publisher.heard():
        assert KEY.unpack_from(each)[0] == Key.PUBLISH_CONFIRM
        _, count = struct.unpack_from(">BI", each, KEY.size)
        found += np.frombuffer(each, ">u8", count, KEY.size + 5).tolist()
        assert len(each) == KEY.size + 5 + 8 * count
    return found


PUBLISHED = {
    "one size": publishes(6, 40),
    "mixed sizes": publishes(6, Uniform(min_bytes=24, max_bytes=300)),
    "sub-entries": publishes(7, 40, group_msgs=3),
    "compressed": publishes(7, 40, group_msgs=3, codec="lz4"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_messages_cut_at_any_byte_come_out_as_they_went_in(name: str) -> None:
    """Two reads that meet at any place: every message once, intact, in order, at its offset, and each id confirmed."""
    frame, bodies = PUBLISHED[name]
    ids = [3, 6, 7] if "sub" in name or "comp" in name else [1, 2, 3, 4, 5, 6]
    for cut in range(1, len(frame)):
        publisher, (consumer,) = opened()
        publisher.say(frame[:cut], frame[cut:])
        assert consumer.messages() == (bodies, [(0, len(bodies))]), f"cut at {cut}"
        assert confirmed(publisher) == ids


@given(st.lists(st.sampled_from(sorted(PUBLISHED)), min_size=1, max_size=4), st.data())
def test_messages_cut_into_any_pieces_come_out_as_they_went_in(names: list[str], data: st.DataObject) -> None:
    """Frames of any kinds one after another, with heartbeats between them, in pieces of any lengths."""
    frames = b"".join(command(Key.HEARTBEAT) + PUBLISHED[name][0] for name in names)
    cuts = data.draw(st.lists(st.integers(1, len(frames) - 1), max_size=12, unique=True).map(sorted))
    publisher, (consumer,) = opened()
    publisher.say(*(frames[begin:end] for begin, end in pairwise([0, *cuts, len(frames)])))
    bodies, chunks = consumer.messages()
    assert bodies == [body for name in names for body in PUBLISHED[name][1]]
    assert all(first + count == following for (first, count), (following, _) in pairwise(chunks))


@pytest.mark.parametrize("name", PUBLISHED)
def test_frames_larger_than_the_buffer_come_out_as_they_went_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer grows to what a frame needs."""
    monkeypatch.setattr(stream, "BUFFER_BYTES", 64)
    frame, bodies = PUBLISHED[name]
    publisher, (consumer,) = opened()
    publisher.say(frame)
    assert consumer.messages()[0] == bodies


def test_what_comes_in_one_turn_is_one_chunk_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several frames are delivered together, until that would be too many."""
    frames = [publishes(4, 40, first) for first in (0, 4, 8)]
    publisher, (consumer,) = opened()
    publisher.say(b"".join(each for each, _ in frames))
    assert consumer.messages()[1] == [(0, 12)]
    monkeypatch.setattr(stream_log, "CHUNK_MAX_ENTRIES", 9)
    publisher.say(b"".join(each for each, _ in frames))
    assert consumer.messages()[1] == [(12, 8), (20, 4)]


def test_a_subscription_gets_a_chunk_for_each_credit() -> None:
    """No more than it has credits for, and the rest when it gives more."""
    publisher, (consumer,) = opened(chunks_left=2)
    for first in range(5):
        publisher.say(publishes(1, 40, first)[0])
    assert consumer.messages()[1] == [(0, 1), (1, 1)]
    consumer.say(command(Key.CREDIT, struct.pack(">BH", 3, 2)))
    assert consumer.messages()[1] == [(2, 1), (3, 1)]
    consumer.say(command(Key.CREDIT, struct.pack(">BH", 3, 9)))
    assert consumer.messages()[1] == [(4, 1)]


def test_every_subscription_gets_everything() -> None:
    """Also where one of them is slower."""
    frame, bodies = PUBLISHED["one size"]
    publisher, (quick, slow) = opened(chunks_left=1, consumers=2)
    publisher.say(frame)
    quick.say(command(Key.CREDIT, struct.pack(">BH", 3, 1)))
    publisher.say(frame)
    assert quick.messages()[0] == bodies * 2
    slow.say(command(Key.CREDIT, struct.pack(">BH", 3, 1)))
    assert slow.messages()[0] == bodies * 2


@pytest.mark.parametrize("leaves", ["unsubscribe", "close", "hang up", "delete"])
def test_what_waits_is_bounded_and_nobody_waits_for_who_has_gone(leaves: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that is too fast is not read from, until there is room again or nobody to wait for."""
    monkeypatch.setattr(kafka_log, "KEPT_MAX_BYTES", 200)
    publisher, (consumer,) = opened(chunks_left=0)
    publisher.say(PUBLISHED["one size"][0])
    assert publisher.line.is_held
    if leaves == "unsubscribe":
        assert consumer.ask(Key.UNSUBSCRIBE, struct.pack(">B", 3))[0] == Code.OK
    elif leaves == "close":
        assert consumer.ask(Key.CLOSE, struct.pack(">H", 1) + text("goodbye"))[0] == Code.OK
    elif leaves == "delete":
        assert consumer.ask(Key.DELETE, text(STREAM))[0] == Code.OK
    consumer.session.closed()
    assert not publisher.line.is_held


def test_a_full_socket_is_given_no_more() -> None:
    """Credits are no reason to fill memory with what a client does not read."""
    publisher, (consumer,) = opened()
    consumer.line.backlog_bytes = stream_log.BACKLOG_MAX_BYTES
    publisher.say(PUBLISHED["one size"][0])
    assert consumer.messages() == ([], [])
    consumer.line.backlog_bytes = 0
    consumer.say(command(Key.HEARTBEAT))
    assert consumer.messages()[0] == PUBLISHED["one size"][1]


def test_without_subscriptions_it_is_a_sink_that_counts() -> None:
    """Everything is confirmed; the stream's statistics and its last chunk say how much came."""
    publisher, _ = opened(consumers=0)
    publisher.say(PUBLISHED["sub-entries"][0], PUBLISHED["one size"][0])
    assert len(confirmed(publisher)) == 9
    assert publisher.ask(Key.STREAM_STATS, text(STREAM))[1].stats() == {"first_chunk_id": 0, "committed_chunk_id": 12}
    publisher.say(request(Key.SUBSCRIBE, 7, subscribe(1, LAST)))
    assert publisher.messages() == ([], [(13, 0)])


def test_an_empty_stream_has_no_chunk() -> None:
    """As the broker says it."""
    publisher, _ = opened(consumers=0)
    assert publisher.ask(Key.STREAM_STATS, text(STREAM))[1].stats() == {"first_chunk_id": -1, "committed_chunk_id": -1}


def test_offsets_are_stored_by_name() -> None:
    """What was stored is told to whoever asks by that name, and nothing to others."""
    client, _ = opened(consumers=0)
    client.say(command(Key.STORE_OFFSET, text("group") + text(STREAM) + struct.pack(">Q", 41)))
    code, reader = client.ask(Key.QUERY_OFFSET, text("group") + text(STREAM))
    assert (code, reader.number("Q")) == (Code.OK, 41)
    assert client.ask(Key.QUERY_OFFSET, text("other") + text(STREAM))[0] == Code.NO_OFFSET


def test_a_super_stream_is_its_partitions() -> None:
    """All are made, told and deleted together; each is led by this broker."""
    client = Client(StreamRelay(PORT))
    names = [f"{STREAM}-0", f"{STREAM}-1"]
    made = text(STREAM) + texts(names) + texts(["0", "1"]) + properties({})
    assert client.ask(Key.CREATE_SUPER_STREAM, made)[0] == Code.OK
    assert client.ask(Key.CREATE_SUPER_STREAM, made)[0] == Code.STREAM_ALREADY_EXISTS
    found = Metadata.read(client.ask(Key.METADATA, texts([*names, "nowhere"]))[1])
    assert found.leaders == dict.fromkeys(names, ("127.0.0.1", PORT))
    assert found.missing == {"nowhere": Code.STREAM_DOES_NOT_EXIST}
    assert client.ask(Key.DELETE_SUPER_STREAM, text(STREAM))[0] == Code.OK
    assert not client.relay.streams


@pytest.mark.parametrize(
    ("key", "body", "code"),
    [
        (Key.CREATE, text(STREAM) + properties({}), Code.STREAM_ALREADY_EXISTS),
        (Key.DELETE, text("nowhere"), Code.STREAM_DOES_NOT_EXIST),
        (Key.DECLARE_PUBLISHER, b"\0" + text("") + text("nowhere"), Code.STREAM_DOES_NOT_EXIST),
        (Key.DELETE_PUBLISHER, b"\7", Code.PUBLISHER_DOES_NOT_EXIST),
        (Key.STREAM_STATS, text("nowhere"), Code.STREAM_DOES_NOT_EXIST),
        (Key.QUERY_OFFSET, text("group") + text("nowhere"), Code.STREAM_DOES_NOT_EXIST),
        (Key.SUBSCRIBE, subscribe(1, name="nowhere"), Code.STREAM_DOES_NOT_EXIST),
        (Key.SUBSCRIBE, subscribe(1, single_active_consumer="true"), Code.PRECONDITION_FAILED),
        (Key.UNSUBSCRIBE, b"\3", Code.SUBSCRIPTION_ID_DOES_NOT_EXIST),
    ],
)
def test_what_cannot_be_is_refused_as_a_broker_does(key: Key, body: bytes, code: Code) -> None:
    """By the protocol's own codes."""
    assert opened(consumers=0)[0].ask(key, body)[0] == code


def test_a_publisher_that_was_not_declared_is_told_so_of_each_message() -> None:
    """None of them is confirmed."""
    client = Client(StreamRelay(PORT))
    client.say(publishes(2, 40)[0])
    told = [struct.unpack(">HHBIQH", each) for each in client.heard()]
    assert told == [
        (Key.PUBLISH_ERROR, 1, 0, 1, identity, Code.PUBLISHER_DOES_NOT_EXIST) for identity in (1, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        bytes.fromhex("16030100c8010000c40303") + bytes(16),
        command(Key.METADATA_UPDATE, bytes(8)),
        command(99, bytes(8)),
        request(Key.SUBSCRIBE, 7, b"\3"),
        command(Key.PUBLISH, struct.pack(">Bi", 0, 3) + bytes(10)),
        command(Key.PUBLISH, struct.pack(">BiQI", 0, 1, 1, 99) + bytes(10)),
        command(Key.PUBLISH, struct.pack(">BiQI", 0, 1, 1, 1) + bytes(10)),
    ],
)
def test_what_it_does_not_understand_is_hung_up_on(said: bytes) -> None:
    """HTTP, TLS, frames that it does not know, and frames that are not what they say."""
    with pytest.raises(EOFError):
        opened(consumers=0)[0].say(said)
