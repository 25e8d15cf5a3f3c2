"""The wire driver's bytes, held against pika's codec."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import frame, spec

from loadgen.driver import Target
from loadgen.drivers.rabbitmq_topology import Routes
from loadgen.drivers.wire.amqp_acks import Acks
from loadgen.drivers.wire.amqp_deliveries import RESERVE_BYTES, DeliveryParser, numbered_tag
from loadgen.drivers.wire.amqp_frames import (
    FRAME_END,
    PublishHead,
    PublishPacker,
    PublishTemplate,
    Unconfirmed,
    parse_confirms,
)
from loadgen.drivers.wire.amqp_producer import _Seqs
from loadgen.endpoint import Endpoint
from loadgen.errors import TrialError
from loadgen.payload import Payloads
from loadgen.scenario import Message, Uniform

QUEUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)


# --- publishes ---


def published_by_pika(
    routes: Routes, row: int, body: bytes, frame_max: int, *, persistent: bool, mandatory: bool = False
) -> bytes:
    """What pika's codec makes of one publish."""
    method = spec.Basic.Publish(exchange=routes.exchange, routing_key=routes.text(row), mandatory=mandatory)
    properties = spec.BasicProperties(delivery_mode=2 if persistent else 1, headers=routes.headers)
    largest = frame_max - 8
    bodies = [frame.Body(1, body[at : at + largest]).marshal() for at in range(0, len(body), largest)]
    return frame.Method(1, method).marshal() + frame.Header(1, len(body), properties).marshal() + b"".join(bodies)


@cache
def payloads_of(size_bytes: int | Uniform) -> Payloads:
    """Producer 2's payloads; their pool takes a moment to make."""
    return Payloads(Message(size_bytes=size_bytes), seed=3, token=5, producer=2)


def bodies_of(payloads: Payloads, first_seq: int, intended_ns: Any, sent_ns: int) -> list[bytes]:
    """The same messages one by one."""
    flat, offsets = payloads.pack(first_seq, intended_ns, sent_ns)
    return [flat[a:b].tobytes() for a, b in pairwise(offsets)]


ROUTES = st.one_of(
    QUEUES.map(lambda queue: Routes.of("", [queue])),
    st.builds(
        lambda exchange, count, headers: Routes.of(exchange, [f"q{n:03}" for n in range(count)], headers),
        QUEUES,
        st.integers(1, 5),
        st.sampled_from([None, {"route": "q000"}]),
    ),
)


def rows_of(routes: Routes, first_seq: int, count: int) -> list[int]:
    """Messages without keys take producer 2's routes in turn."""
    return [(seq + 2) % len(routes.keys) for seq in range(first_seq, first_seq + count)]


@settings(max_examples=60)
@given(
    routes=ROUTES,
    size_bytes=st.sampled_from([24, 25, 100, 700]),
    frame_max=st.sampled_from([32, 33, 100, 131_072]),
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    persistent=st.booleans(),
    mandatory=st.booleans(),
)
def test_publish_rows_are_what_pika_encodes(
    routes: Routes, size_bytes: int, frame_max: int, counts: list[int], persistent: bool, mandatory: bool
) -> None:
    """Rows of fixed size equal pika's frames byte for byte, batch after batch, by whatever route, whatever is cut."""
    payloads = payloads_of(size_bytes)
    head = PublishHead(routes, persistent=persistent, mandatory=mandatory)
    template = PublishTemplate(head, size_bytes, frame_max, 12)
    seq = 7
    for count in counts:
        intended = np.arange(count, dtype=np.int64) * 1_000 + seq
        expected = [
            published_by_pika(routes, row, body, frame_max, persistent=persistent, mandatory=mandatory)
            for row, body in zip(rows_of(routes, seq, count), bodies_of(payloads, seq, intended, 10_000), strict=True)
        ]
        assert bytes(template.fill(payloads, seq, intended, 10_000)) == b"".join(expected)
        seq += count


@settings(max_examples=40)
@given(routes=ROUTES, frame_max=st.sampled_from([40, 131_072]), count=st.integers(1, 30), persistent=st.booleans())
def test_publishes_of_mixed_sizes_are_what_pika_encodes(
    routes: Routes, frame_max: int, count: int, persistent: bool
) -> None:
    """The path for mixed sizes makes the same bytes as pika, too."""
    payloads = payloads_of(Uniform(min_bytes=24, max_bytes=300))
    packer = PublishPacker(PublishHead(routes, persistent=persistent, mandatory=False), frame_max)
    intended = np.arange(count, dtype=np.int64)
    expected = [
        published_by_pika(routes, row, body, frame_max, persistent=persistent)
        for row, body in zip(rows_of(routes, 11, count), bodies_of(payloads, 11, intended, 5_000), strict=True)
    ]
    assert bytes(packer.fill(payloads, 11, intended, 5_000)) == b"".join(expected)


# --- deliveries ---


@dataclass
class Feed:
    """Hands a parser its bytes in pieces and keeps the buffer as the consumer does."""

    is_spread: bool = False
    parser: DeliveryParser = field(init=False)
    sources: list[int] = field(default_factory=list)
    messages: list[tuple[bytes, bool]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    last_tag: int = 0

    def __post_init__(self) -> None:
        self.parser = DeliveryParser(self.handle, is_spread=self.is_spread)
        self.rest = b""

    def handle(self, found: Any) -> None:
        """What the connection would do: remember it, and raise at a close."""
        name = found.method.NAME if isinstance(found, frame.Method) else found.NAME
        self.others.append(name)
        if name == "Connection.Close":
            raise TrialError(found.method.reply_text)

    def take(self, piece: bytes) -> None:
        """Parse the rest and this piece; keep what is incomplete."""
        raw = bytearray(bytes(RESERVE_BYTES - 1) + bytes([FRAME_END]) + self.rest + piece)
        end = len(raw)
        before = end - RESERVE_BYTES
        found = self.parser.parse(raw, RESERVE_BYTES, end)
        self.rest = bytes(raw[self.parser.begin : end])
        assert self.parser.need_bytes > len(self.rest), "another pass over the same bytes would find nothing"
        assert before >= len(self.rest)
        if found is None:
            return
        count = len(found.starts)
        self.last_tag = found.last_tag
        sizes = np.broadcast_to(found.sizes, count)
        flags = np.zeros(count, np.bool_) if found.redelivered is None else found.redelivered
        assert found.redelivered is None or found.redelivered.any(), "None where no flag is set"
        assert len(flags) == count
        assert (found.sources is not None) == self.is_spread
        self.sources += [] if found.sources is None else found.sources.tolist()
        for start, size, flag in zip(found.starts.tolist(), sizes.tolist(), flags.tolist(), strict=True):
            self.messages.append((bytes(raw[start : start + size]), flag))


def delivered(
    tag: int,
    body: bytes,
    *,
    redelivered: bool,
    frame_max: int = 131_072,
    between: bytes = b"",
    consumer: str = "loadgen-0",
    route: str = "queue",
) -> bytes:
    """One delivery as pika encodes it, with `between` standing before each of its later frames."""
    deliver = spec.Basic.Deliver(consumer, tag, redelivered, "", route)
    largest = frame_max - 8
    frames = [
        frame.Method(1, deliver).marshal(),
        frame.Header(1, len(body), spec.BasicProperties(delivery_mode=2)).marshal(),
        *(frame.Body(1, body[at : at + largest]).marshal() for at in range(0, len(body), largest)),
    ]
    return between.join(frames)


HEARTBEAT = frame.Heartbeat().marshal()
OTHERS = {
    "Heartbeat": HEARTBEAT,
    "Connection.Blocked": frame.Method(0, spec.Connection.Blocked("low on memory")).marshal(),
    "Connection.Unblocked": frame.Method(0, spec.Connection.Unblocked()).marshal(),
    "Basic.QosOk": frame.Method(1, spec.Basic.QosOk()).marshal(),
}
BODY = st.builds(
    lambda size, seed: np.random.default_rng(seed).bytes(size),
    st.sampled_from([24, 24, 24, 25, 40, 130, 0]),
    st.integers(0, 9),
)
RUN = st.tuples(BODY, st.booleans(), st.integers(1, 9))
EVENTS = st.lists(st.one_of(RUN, st.sampled_from(list(OTHERS))), max_size=12)


def render(events: list[Any], frame_max: int) -> tuple[bytes, list[tuple[bytes, bool]], list[str]]:
    """The stream, the messages and the other frames of a list of events."""
    stream, messages, others, tag = b"", [], [], 0
    for event in events:
        if isinstance(event, str):
            stream += OTHERS[event]
            others.append(event)
            continue
        body, redelivered, count = event
        for _ in range(count):
            tag += 1
            stream += delivered(tag, body, redelivered=redelivered, frame_max=frame_max)
            messages.append((body, redelivered))
    return stream, messages, others


@settings(max_examples=100)
@given(events=EVENTS, frame_max=st.sampled_from([40, 64, 131_072]), data=st.data())
def test_deliveries_are_parsed_however_they_arrive(events: list[Any], frame_max: int, data: Any) -> None:
    """Runs, mixed sizes, redelivered ones, bodies in several frames, other frames between: all in order, none lost."""
    stream, messages, others = render(events, frame_max)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    feed = Feed()
    bounds = [0, *sorted(cuts), len(stream)]
    for begin, end in pairwise(bounds):
        feed.take(stream[begin:end])
    assert feed.messages == messages
    assert feed.others == others
    assert feed.rest == b""
    assert feed.last_tag == len(messages)


SPREAD_RUN = st.tuples(RUN, st.integers(0, 255), st.sampled_from(["0001", "9999", "another length"]))


@settings(max_examples=100)
@given(runs=st.lists(SPREAD_RUN, max_size=12), frame_max=st.sampled_from([40, 131_072]), data=st.data())
def test_deliveries_of_several_queues_and_keys_are_told_apart(runs: list[Any], frame_max: int, data: Any) -> None:
    """The queue of each message is known by its consumer's tag, whatever the routing key, however it arrives."""
    stream, messages, sources = b"", [], []
    for (body, redelivered, count), number, route in runs:
        for _ in range(count):
            tag = numbered_tag("loadgen-7", number)
            messages.append((body, redelivered))
            sources.append(number)
            stream += delivered(
                len(messages), body, redelivered=redelivered, frame_max=frame_max, consumer=tag, route=route
            )
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    feed = Feed(is_spread=True)
    for begin, end in pairwise([0, *sorted(cuts), len(stream)]):
        feed.take(stream[begin:end])
    assert (feed.messages, feed.sources, feed.rest) == (messages, sources, b"")
    assert feed.last_tag == len(messages)


def test_interleaved_queues_are_read_in_bulk() -> None:
    """Deliveries that differ in queue and key only are one run of rows: none of them goes the general way."""
    feed = Feed(is_spread=True)
    calls: list[int] = []
    general = feed.parser._general
    feed.parser._general = lambda *args: calls.append(1) or general(*args)  # type: ignore[method-assign, func-returns-value]
    stream = b"".join(
        delivered(n + 1, b"x" * 50, redelivered=False, consumer=numbered_tag("c", n % 3), route=f"{n % 7}")
        for n in range(90)
    )
    # Two of a size make a likeness; from then on all are rows.
    feed.take(stream)
    assert len(calls) <= 2
    assert feed.sources == [n % 3 for n in range(90)]


@pytest.mark.parametrize("frame_max", [40, 131_072])
def test_a_stream_may_be_split_at_every_byte(frame_max: int) -> None:
    """Cut in two at each byte, and fed byte by byte, a stream says the same."""
    body = bytes(range(100))
    events = [(body, False, 6), "Heartbeat", (body[:50], True, 2), (body, False, 1), (body, True, 5), (body, False, 5)]
    stream, messages, others = render(events, frame_max)
    for cut in range(len(stream) + 1):
        feed = Feed()
        feed.take(stream[:cut])
        feed.take(stream[cut:])
        assert (feed.messages, feed.others, feed.rest) == (messages, others, b"")
    feed = Feed()
    for at in range(len(stream)):
        feed.take(stream[at : at + 1])
    assert (feed.messages, feed.others, feed.rest) == (messages, others, b"")


def test_frames_of_the_connection_may_stand_within_a_message() -> None:
    """A heartbeat between method, header and bodies is heeded, and the body is put together without it."""
    body = bytes(range(200))
    feed = Feed()
    feed.take(delivered(1, body, redelivered=False, frame_max=64, between=HEARTBEAT) * 2)
    assert feed.messages == [(body, False)] * 2
    assert set(feed.others) == {"Heartbeat"}


def test_a_close_between_deliveries_raises_the_reason() -> None:
    """What stands before a close does not hide it."""
    close = frame.Method(0, spec.Connection.Close(320, "CONNECTION_FORCED", 0, 0)).marshal()
    with pytest.raises(TrialError, match="CONNECTION_FORCED"):
        Feed().take(delivered(1, b"x" * 30, redelivered=False) * 5 + close)


@pytest.mark.parametrize("damaged", [0, 3, 60, -1])
def test_bytes_that_are_no_frames_are_refused(damaged: int) -> None:
    """A wrong frame type, length or end mark in the midst of a run raises instead of being guessed at."""
    one = delivered(1, b"x" * 60, redelivered=False)
    wrong = bytearray(one)
    at = len(one) - 61 - 7 if damaged == 60 else damaged
    wrong[at] ^= 0xF0
    feed = Feed()
    with pytest.raises(TrialError):
        feed.take(one * 6 + bytes(wrong) + one * 20_000)


# --- confirms ---


def confirmed(tag: int, *, multiple: bool, nack: bool) -> bytes:
    """One confirm as pika encodes it."""
    method = spec.Basic.Nack(tag, multiple=multiple) if nack else spec.Basic.Ack(tag, multiple=multiple)
    return frame.Method(1, method).marshal()


CONFIRM = st.tuples(st.integers(1, 60), st.booleans(), st.integers(0, 9).map(lambda n: n == 0))


@settings(max_examples=100)
@given(confirms=st.lists(CONFIRM, max_size=60), data=st.data())
def test_every_tag_is_settled_exactly_once(confirms: list[tuple[int, bool, bool]], data: Any) -> None:
    """Single and multiple, acks and nacks, in any order and repeated: the first to name a tag settles it."""
    expected: dict[int, bool] = {}
    for tag, multiple, nack in confirms:
        for each in range(1 if multiple else tag, tag + 1):
            expected.setdefault(each, nack)
    stream = b"".join(confirmed(tag, multiple=multiple, nack=nack) for tag, multiple, nack in confirms)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=3))
    unconfirmed = Unconfirmed(60)
    unconfirmed.sent(60)
    got: dict[int, bool] = {}
    begin = 0
    for end in [*sorted(cuts), len(stream)]:
        begin, settled = parse_confirms(np.frombuffer(stream, np.uint8), begin, end, unconfirmed)
        for tags, refused in settled:
            for tag in tags.tolist():
                assert tag not in got, "settled twice"
                got[tag] = refused
    assert begin == len(stream)
    assert got == expected
    assert unconfirmed.count == 60 - len(expected)
    assert unconfirmed.room == len(expected)


@settings(max_examples=50)
@given(rounds=st.lists(st.integers(1, 20), min_size=1, max_size=60), data=st.data())
def test_the_window_holds_while_confirms_come_out_of_order(rounds: list[int], data: Any) -> None:
    """Sending into the room there is, with random tags confirmed, never settles twice and never overflows."""
    unconfirmed = Unconfirmed(20)
    open_tags: set[int] = set()
    for wanted in rounds:
        count = min(wanted, unconfirmed.room)
        open_tags |= set(range(unconfirmed.high + 1, unconfirmed.high + count + 1))
        unconfirmed.sent(count)
        assert unconfirmed.count == len(open_tags) <= 20
        if open_tags:
            chosen = data.draw(st.lists(st.sampled_from(sorted(open_tags)), min_size=1, max_size=8))
            settled = set(unconfirmed.each(np.array(chosen)).tolist())
            assert settled == set(chosen)
            open_tags -= settled
    assert set(unconfirmed.through(unconfirmed.high).tolist()) == open_tags
    assert unconfirmed.count == 0


def test_other_frames_stop_the_confirms_without_harm() -> None:
    """A heartbeat among many or few confirms is left to the frame parser; those before it are settled."""
    for before in (1, 5, 40):
        unconfirmed = Unconfirmed(100)
        unconfirmed.sent(100)
        stream = b"".join(confirmed(tag + 1, multiple=False, nack=False) for tag in range(before))
        whole = np.frombuffer(stream + HEARTBEAT + confirmed(90, multiple=True, nack=False) * 20, np.uint8)
        begin, settled = parse_confirms(whole, 0, len(whole), unconfirmed)
        assert begin == len(stream)
        assert sum(len(tags) for tags, _ in settled) == before


def test_a_confirm_of_a_message_never_sent_is_an_error() -> None:
    """Such a broker's confirms mean nothing."""
    unconfirmed = Unconfirmed(10)
    unconfirmed.sent(3)
    stream = np.frombuffer(confirmed(4, multiple=True, nack=False), np.uint8)
    with pytest.raises(TrialError, match="delivery tag 4"):
        parse_confirms(stream, 0, len(stream), unconfirmed)


@given(every=st.integers(1, 12), batches=st.lists(st.integers(0, 30), max_size=20))
def test_acks_come_for_each_ack_every_and_the_rest_when_idle(every: int, batches: list[int]) -> None:
    """Between idle moments each ack covers exactly `ack_every` messages; idle leaves nothing unacknowledged."""
    acks = Acks(Target(Endpoint("rabbitmq", ()), "queue", {"ack": "manual", "ack_every": every}))
    tags: list[int] = []
    for batch in batches:
        acks.handed += batch
        tags += [tag for tag, _ in acks.settle()]
        assert acks.handed - (tags[-1] if tags else 0) < every
    assert tags == list(range(every, sum(batches) + 1, every))
    rest = [tag for tag, _ in acks.rest()]
    assert [*tags, *rest][-1:] == ([sum(batches)] if sum(batches) else [])
    assert not acks.has_rest


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=20))
def test_tags_are_told_from_the_batches_that_a_channel_got(batches: list[tuple[int, int]]) -> None:
    """Each tag stands for its message, both ways, whatever went to other channels in between, until it is settled."""
    seqs, expected = _Seqs(), []
    first = 0
    for skipped, count in batches:
        first += skipped
        seqs.sent(first, count, low=1)
        expected += range(first, first + count)
        first += count
    tags = np.arange(1, len(expected) + 1)
    assert seqs.of(tags).tolist() == expected
    assert [seqs.tag_of(each) for each in expected] == tags.tolist()
    seqs.sent(first + 1, 3, low=len(expected) + 1)
    assert seqs.of(tags[-1:] + 3).tolist() == [first + 3]
