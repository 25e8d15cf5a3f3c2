"""A null broker's AMQP side, byte by byte: every message comes out as it went in, however its frames were cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import nullclients
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from loadgen.drivers.rabbitmq_topology import Routes
from loadgen.drivers.wire.amqp_deliveries import RESERVE_BYTES, DeliveryParser
from loadgen.drivers.wire.amqp_frames import PublishHead, PublishPacker, PublishTemplate, encode
from loadgen.nullbroker import amqp, amqp_queue
from loadgen.nullbroker.amqp import AmqpRelay, AmqpSession
from loadgen.payload import Payloads
from loadgen.scenario import Message, Uniform

QUEUE = "loadgen-null-1"
HEARTBEAT = frame.Heartbeat().marshal()


class Client(nullclients.Client):
    """One session after its handshake, driven by hand."""

    def __init__(self, relay: AmqpRelay) -> None:
        super().__init__(relay)
        self.say(frame.ProtocolHeader().marshal())
        start_ok = encode(spec.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"), 0)
        self.say(start_ok, encode(spec.Connection.TuneOk(0, 131_072, 0), 0), encode(spec.Connection.Open("/"), 0))
        self.say(encode(spec.Channel.Open()))
        self.line.written.clear()

    def heard(self) -> list[Any]:
        """All whole frames that came, by pika's codec; they are forgotten."""
        found, raw = [], bytes(self.line.written)
        while raw:
            size, each = frame.decode_frame(raw)
            raw = raw[size:]
            found.append(each)
        self.line.written.clear()
        return found

    def methods(self) -> list[Any]:
        """The methods among them."""
        return [each.method for each in self.heard() if isinstance(each, frame.Method)]

    def messages(self) -> list[bytes]:
        """The bodies of all deliveries that came, read as a wire driver reads them; they are forgotten."""
        raw = bytearray(RESERVE_BYTES) + self.line.written
        self.line.written.clear()
        parser = DeliveryParser(lambda _: None)
        found = parser.parse(raw, RESERVE_BYTES, len(raw))
        assert parser.begin == len(raw), "a part of a frame came"
        if found is None:
            return []
        sizes = np.broadcast_to(found.sizes, len(found.starts)).tolist()
        bodies = zip(found.starts.tolist(), sizes, strict=True)
        return [bytes(raw[start : start + size]) for start, size in bodies]


def opened(prefetch: int = 0, *, consumers: int = 1, is_automatic: bool = False) -> tuple[Client, list[Client]]:
    """A publisher with confirms and consumers of one queue."""
    relay = AmqpRelay()
    publisher, clients = Client(relay), [Client(relay) for _ in range(consumers)]
    publisher.say(encode(spec.Confirm.Select()) + encode(spec.Queue.Declare(queue=QUEUE, durable=True)))
    for client in clients:
        consume = spec.Basic.Consume(queue=QUEUE, consumer_tag="loadgen-0", no_ack=is_automatic)
        client.say(encode(spec.Basic.Qos(prefetch_count=prefetch)), encode(consume))
        assert [type(each) for each in client.methods()] == [spec.Basic.QosOk, spec.Basic.ConsumeOk]
    publisher.line.written.clear()
    return publisher, clients


def publishes(count: int, size: int | Uniform, frame_max: int = 131_072, first: int = 0) -> tuple[bytes, list[bytes]]:
    """The frames of messages first … as the wire driver makes them, and the messages themselves."""
    payloads = Payloads(Message(size_bytes=size), seed=3, token=9)
    times = np.zeros(count, np.int64)
    flat, offsets = payloads.pack(first, times, 0)
    bodies = [flat[begin:end].tobytes() for begin, end in pairwise(offsets)]
    head = PublishHead(Routes.of("", [QUEUE]), persistent=True, mandatory=False)
    if isinstance(size, int):
        return bytes(PublishTemplate(head, size, frame_max, count).fill(payloads, first, times, 0)), bodies
    packer = PublishPacker(head, frame_max)
    return bytes(packer.fill(payloads, first, times, 0)), bodies


def confirmed(publisher: Client) -> int:
    """Up to which tag a publisher's messages were confirmed, each time with all before."""
    tags = [each.delivery_tag for each in publisher.methods()]
    assert tags == sorted(tags)
    return tags[-1] if tags else 0


def joined(*streams: tuple[bytes, list[bytes]]) -> tuple[bytes, list[bytes]]:
    """Streams one after another."""
    return b"".join(each for each, _ in streams), [body for _, bodies in streams for body in bodies]


STREAMS = {
    "one size": publishes(6, 40),
    "mixed sizes": publishes(6, Uniform(min_bytes=24, max_bytes=80)),
    "several body frames": publishes(3, 90, frame_max=40),
    "sizes that change": joined(publishes(3, 30), publishes(4, 50, first=3), publishes(1, 30, first=7)),
}


@pytest.mark.parametrize("name", STREAMS)
def test_messages_cut_at_any_byte_come_out_as_they_went_in(name: str) -> None:
    """Two reads that meet at any place, within any frame: every message once, intact, in order and confirmed."""
    stream, bodies = STREAMS[name]
    for cut in range(1, len(stream)):
        publisher, (consumer,) = opened()
        publisher.say(stream[:cut], stream[cut:])
        assert consumer.messages() == bodies, f"cut at {cut}"
        assert confirmed(publisher) == len(bodies)


@given(st.lists(st.sampled_from(sorted(STREAMS)), min_size=1, max_size=4), st.data())
def test_messages_cut_into_any_pieces_come_out_as_they_went_in(names: list[str], data: st.DataObject) -> None:
    """Streams of any kinds one after another, with heartbeats between messages, in pieces of any lengths."""
    stream = b"".join(HEARTBEAT + STREAMS[name][0] for name in names)
    cuts = data.draw(st.lists(st.integers(1, len(stream) - 1), max_size=12, unique=True).map(sorted))
    publisher, (consumer,) = opened()
    publisher.say(*(stream[begin:end] for begin, end in pairwise([0, *cuts, len(stream)])))
    assert consumer.messages() == [body for name in names for body in STREAMS[name][1]]


@pytest.mark.parametrize("name", STREAMS)
def test_messages_larger_than_the_buffer_come_out_as_they_went_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer grows to what a message needs."""
    monkeypatch.setattr(amqp, "BUFFER_BYTES", 16)
    stream, bodies = STREAMS[name]
    publisher, (consumer,) = opened()
    publisher.say(stream)
    assert consumer.messages() == bodies


def test_acknowledgements_cut_at_any_byte_open_the_window_again() -> None:
    """Single and multiple ones, in two reads: as many messages follow as were acknowledged."""
    stream, bodies = publishes(8, 40)
    acks = encode(spec.Basic.Ack(1)) + encode(spec.Basic.Ack(3, multiple=True)) + HEARTBEAT + encode(spec.Basic.Ack(4))
    for cut in range(1, len(acks)):
        publisher, (consumer,) = opened(prefetch=4)
        publisher.say(stream)
        assert consumer.messages() == bodies[:4]
        consumer.say(acks[:cut], acks[cut:])
        assert consumer.messages() == bodies[4:]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 7), st.integers(1, 3))
def test_no_consumer_ever_has_more_than_its_prefetch(batches: list[int], prefetch: int, consumers: int) -> None:
    """Whatever comes, each message goes to one consumer in order, and never more than are allowed unacknowledged."""
    publisher, clients = opened(prefetch, consumers=consumers)
    got: list[list[bytes]] = [[] for _ in clients]
    first, all_bodies = 0, []
    for count in batches:
        stream, bodies = publishes(count, 40, first=first)
        publisher.say(stream)
        first, all_bodies = first + count, all_bodies + bodies
    while True:
        came = [client.messages() for client in clients]
        assert all(len(each) <= prefetch for each in came)
        if not any(came):
            break
        for client, mine, new in zip(clients, got, came, strict=True):
            mine.extend(new)
            if new:
                client.say(encode(spec.Basic.Ack(len(mine), multiple=True)))
    assert sorted(body for mine in got for body in mine) == sorted(all_bodies)
    places = {body: place for place, body in enumerate(all_bodies)}
    for mine in got:
        assert [places[body] for body in mine] == sorted(places[body] for body in mine)


def test_what_waits_goes_before_what_comes_in_the_same_turn() -> None:
    """Room that acknowledgements make is for the messages that waited, also where newer ones are read right after."""
    stream, bodies = publishes(9, 40)
    row_bytes = len(stream) // 9
    publisher, (consumer,) = opened(prefetch=2)
    publisher.say(stream[: 5 * row_bytes])
    consumer.line.waiting, publisher.line.waiting = encode(spec.Basic.Ack(2, multiple=True)), stream[5 * row_bytes :]
    consumer.session.readable()
    publisher.session.readable()
    consumer.relay.turn()
    assert consumer.messages() == bodies[:4]


def test_a_heartbeat_is_answered_by_another() -> None:
    """A client that hears nothing else knows that the connection lives."""
    _, (consumer,) = opened()
    consumer.say(HEARTBEAT)
    assert [type(each) for each in consumer.heard()] == [frame.Heartbeat]


def test_with_automatic_acknowledgement_nothing_is_awaited() -> None:
    """A consumer that acknowledges on delivery gets everything, beyond any prefetch."""
    stream, bodies = publishes(50, 40)
    publisher, (consumer,) = opened(prefetch=5, is_automatic=True)
    publisher.say(stream)
    assert consumer.messages() == bodies


def test_what_waits_is_bounded_and_the_publisher_waits_then() -> None:
    """Beyond the bound a publisher is not read from until a consumer has taken enough; nothing is lost."""
    publisher, (consumer,) = opened(prefetch=100)
    sent, got, rounds = 0, [], 0
    while not publisher.line.is_held:
        stream, _ = publishes(100, 1_000, first=sent)
        publisher.say(stream)
        sent, rounds = sent + 100, rounds + 1
        assert sent * 1_000 < 2 * amqp_queue.WAITING_MAX_BYTES, "nothing ever held it back"
    while new := consumer.messages():
        got += new
        consumer.say(encode(spec.Basic.Ack(len(got), multiple=True)))
    assert not publisher.line.is_held
    assert len(got) == sent
    assert confirmed(publisher) == sent


def test_a_consumer_whose_socket_is_full_is_given_no_more() -> None:
    """What waits for a socket bounds what is rendered for it."""
    stream, bodies = publishes(10, 40)
    publisher, (consumer,) = opened()
    consumer.line.backlog_bytes = amqp_queue.BACKLOG_MAX_BYTES
    publisher.say(stream)
    assert consumer.messages() == []
    consumer.line.backlog_bytes = 0
    consumer.relay.turn()
    assert consumer.messages() == bodies


def test_without_consumers_it_is_a_sink_that_counts() -> None:
    """Messages are confirmed and dropped, the depth tells how many, and the publisher never waits."""
    publisher, (consumer,) = opened()
    consumer.session.closed()
    for _ in range(40):
        publisher.say(publishes(500, 1_000)[0])
    assert confirmed(publisher) == 20_000
    assert not publisher.line.is_held
    publisher.say(encode(spec.Queue.Declare(queue=QUEUE, passive=True)))
    assert publisher.methods()[0].message_count == 20_000


@pytest.mark.parametrize("leaves", ["consumer", "queue"])
def test_a_publisher_that_waits_goes_on_when_nobody_is_left_to_wait_for(leaves: str) -> None:
    """After the last consumer has gone, or the queue has been deleted, what waits is dropped."""
    publisher, (consumer,) = opened(prefetch=1)
    for _ in range(10):
        publisher.say(publishes(500, 1_000)[0])
    assert publisher.line.is_held
    if leaves == "consumer":
        consumer.session.closed()
    else:
        consumer.say(encode(spec.Queue.Delete(queue=QUEUE)))
    assert not publisher.line.is_held


def test_a_queue_that_is_not_there_is_refused_as_a_broker_does() -> None:
    """A passive declaration and a consumer close the channel with 404; a message to it is dropped and confirmed."""
    client = Client(AmqpRelay())
    client.say(encode(spec.Queue.Declare(queue="nowhere", passive=True)))
    client.say(encode(spec.Channel.CloseOk()), encode(spec.Channel.Open()))
    client.say(encode(spec.Basic.Consume(queue="nowhere")))
    closes = [each for each in client.methods() if isinstance(each, spec.Channel.Close)]
    assert [(each.reply_code, each.class_id, each.method_id) for each in closes] == [(404, 50, 10), (404, 60, 20)]
    client.say(encode(spec.Confirm.Select()), publishes(5, 40)[0])
    assert [type(each) for each in client.methods()] == [spec.Confirm.SelectOk, spec.Basic.Ack]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (encode(spec.Tx.Select()), 540),
        (frame.Body(1, b"body").marshal(), 505),
        (encode(spec.Basic.Publish(exchange="", routing_key=QUEUE)) + frame.Body(1, b"body").marshal(), 505),
        (encode(spec.Basic.Ack(17)), 505),
        (b"\x09\0\1\0\0\0\0\xce", 505),
        (encode(spec.Channel.Open())[:-1] + b"\0", 505),
    ],
)
def test_what_it_does_not_understand_closes_the_connection_with_a_reason(said: bytes, code: int) -> None:
    """A method that it does not know, frames out of place, tags never given, bytes that are no frames."""
    _, (consumer,) = opened()
    consumer.say(said)
    (close,) = consumer.methods()
    assert (type(close), close.reply_code) == (spec.Connection.Close, code)
    consumer.say(publishes(3, 40)[0])
    assert consumer.heard() == [], "nothing that follows is looked at"


def test_another_protocol_is_hung_up_on() -> None:
    """Who does not begin with AMQP's header gets no answer."""
    line = nullclients.Line(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(EOFError):
        AmqpSession(AmqpRelay(), line).readable()  # type: ignore[arg-type]
    assert not line.written
