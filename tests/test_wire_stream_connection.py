"""Stream connections against a broker that the test itself plays: frames however they arrive, heartbeats, silence."""

from __future__ import annotations

import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from loadgen.driver import Target
from loadgen.drivers.wire import stream_connection
from loadgen.drivers.wire.stream_connection import StreamConnection
from loadgen.drivers.wire.stream_consumer import StreamConsumer
from loadgen.drivers.wire.stream_frames import entry
from loadgen.drivers.wire.stream_producer import StreamProducer
from loadgen.drivers.wire.stream_protocol import (
    KEY,
    RESPONSE_BIT,
    Code,
    Key,
    Reader,
    answer,
    command,
    properties,
    request,
    text,
    texts,
)
from loadgen.endpoint import Credentials, Endpoint
from loadgen.errors import BrokerError, TrialError
from loadgen.knobs import resolve
from loadgen.payload import Payloads
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STREAM = "played"
HEARTBEAT = command(Key.HEARTBEAT)


class Player:
    """A broker of one node and one stream for one connection; `then` goes on once a role has begun."""

    def __init__(self, then: Callable[[Player], None], tune: tuple[int, int] = (1 << 20, 60)) -> None:
        self._then, self._tune = then, tune
        self.heard: list[int] = []
        self.played = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> Endpoint:
        """As a driver is given it."""
        return Endpoint("rabbitmq", (("127.0.0.1", 1),), Credentials("guest", "guest"), stream_port=self.port)

    def _run(self) -> None:
        with self._server:
            self.socket, _ = self._server.accept()
        self.socket.settimeout(20)
        with self.socket:
            try:
                while not self._play(*self.hear()):
                    pass
                self._then(self)
                self.played.set()
                while self.hear()[0] != Key.CLOSE:  # a socket closed with bytes unread would be a reset
                    pass
            except OSError:
                return

    def _play(self, key: int, reader: Reader) -> bool:
        """Answer one request; True once the role is ready."""
        if key in {Key.TUNE, Key.HEARTBEAT}:
            return False
        correlation = reader.number("I")
        bodies = {
            Key.PEER_PROPERTIES: properties({"product": "RabbitMQ", "version": "4.3"}),
            Key.SASL_HANDSHAKE: texts(["PLAIN", "AMQPLAIN"]),
        }
        if key == Key.METADATA:
            node = struct.pack(">iH", 1, 0) + text("elsewhere") + struct.pack(">I", 1)
            stream = struct.pack(">i", 1) + text(STREAM) + struct.pack(">HHi", Code.OK, 0, 0)
            self.say(command(key | RESPONSE_BIT, struct.pack(">I", correlation) + node + stream))
            return False
        if key == Key.QUERY_OFFSET:
            self.say(answer(key, correlation, Code.NO_OFFSET, struct.pack(">Q", 0)))
            return False
        self.say(answer(key, correlation, Code.OK, bodies.get(Key(key), b"")))
        if key == Key.SASL_AUTHENTICATE:
            self.say(command(Key.TUNE, struct.pack(">II", *self._tune)))
        return key in {Key.DECLARE_PUBLISHER, Key.SUBSCRIBE}

    def hear(self) -> tuple[int, Reader]:
        """The next frame that the role sent."""
        (size,) = struct.unpack(">I", self._take(4))
        frame = self._take(size)
        key, _ = KEY.unpack_from(frame)
        self.heard.append(key)
        return key, Reader(frame[KEY.size :])

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            if not (more := self.socket.recv(count - len(data))):
                raise OSError("the role has left")
            data += more
        return data

    def say(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def end(self) -> None:
        """Wait until all was played."""
        self._thread.join(60)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Player, Target]]]:
    """Make a player, and the target that leads to it."""
    monkeypatch.setattr(stream_connection, "CLOSE_TIMEOUT_S", 0.2)
    players: list[Player] = []

    def make(then: Callable[[Player], None], heartbeat: int = 60, **how: Any) -> tuple[Player, Target]:
        players.append(Player(then, **how))
        settings = resolve("rabbitmq", {"driver": "stream", "heartbeat": heartbeat}, "broker", "default")
        return players[-1], Target(players[-1].endpoint, STREAM, settings)

    yield make
    for each in players:
        each.end()


def payloads() -> Payloads:
    """Small messages."""
    return Payloads(Message(size_bytes=30), seed=1, token=2)


def deliver(first: int, bodies: list[bytes]) -> bytes:
    """A Deliver frame."""
    entries = b"".join(entry(body) for body in bodies)
    count = len(bodies)
    head = struct.pack(">BBHIqQQIIII", 0x50, 0, count, count, 0, 1, first, 0, len(entries), 0, 0)
    return command(Key.DELIVER, b"\0" + head + entries)


def taken(consumer: StreamConsumer, count: int) -> list[bytes]:
    """The bodies of the next `count` messages, copied while they are valid."""
    found: list[bytes] = []
    deadline_s = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline_s:
        for batch in consumer.receive(0.1):
            sizes = np.broadcast_to(np.asarray(batch.sizes), len(batch.starts)).tolist()
            pairs = zip(batch.starts.tolist(), sizes, strict=True)
            found += [batch.buffer[start : start + size].tobytes() for start, size in pairs]
    return found


def test_deliveries_split_at_every_byte(play: Any) -> None:
    """Wherever the network cuts chunks and heartbeats, each message comes out whole, once and in order."""
    bodies = [[bytes([48 + number]) * (number + 20)] * 3 for number in range(3)]
    whole = deliver(0, bodies[0]) + HEARTBEAT + deliver(3, bodies[1]) + deliver(6, bodies[2])

    def then(player: Player) -> None:
        for cut in range(len(whole) + 1):
            player.say(whole[:cut])
            time.sleep(0.0005)  # so that both parts are read apart, mostly
            player.say(whole[cut:])

    _, target = play(then)
    consumer = StreamConsumer(target, 0, 1)
    count = len(whole) + 1
    # The offsets begin anew with each round, which to a consumer are messages that come again.
    assert taken(consumer, 9 * count) == [body for _ in range(count) for each in bodies for body in each]
    consumer.close()


def test_batches_handed_out_together_do_not_overwrite_each_other(play: Any) -> None:
    """Many chunks in one read, with the last one cut at the buffer's end: all are as they were sent."""
    bodies = [bytes([number % 251]) * 3_000 for number in range(2_000)]

    def then(player: Player) -> None:
        for number in range(0, 2_000, 10):
            player.say(deliver(number, bodies[number : number + 10]))

    _, target = play(then)
    consumer = StreamConsumer(target, 0, 1)
    time.sleep(0.2)  # so that much is there at once
    assert taken(consumer, 2_000) == bodies
    consumer.close()


def test_credit_is_given_for_each_chunk(play: Any) -> None:
    """As many credits come back as chunks were sent."""
    given: list[int] = []

    def then(player: Player) -> None:
        for number in range(7):
            player.say(deliver(number, [b"x" * 30]))
        while sum(given) < 7:
            key, reader = player.hear()
            assert key == Key.CREDIT
            assert reader.number("B") == 0
            given.append(reader.number("H"))

    player, target = play(then)
    consumer = StreamConsumer(target, 0, 1)
    taken(consumer, 7)
    assert player.played.wait(60)
    assert sum(given) == 7
    consumer.close()


def test_confirms_and_errors_split_at_every_byte(play: Any) -> None:
    """Each message is settled once, as confirmed or with its error, however the frames are cut."""
    confirm = command(Key.PUBLISH_CONFIRM, struct.pack(">BiQQ", 0, 2, 3, 1))
    refused = command(Key.PUBLISH_ERROR, struct.pack(">BiQH", 0, 1, 2, Code.INTERNAL_ERROR))
    whole = confirm + HEARTBEAT + refused
    cuts = iter(range(len(whole) + 1))

    def then(player: Player) -> None:
        for cut in cuts:
            assert player.hear()[0] == Key.PUBLISH
            player.say(whole[:cut])
            time.sleep(0.0005)
            player.say(whole[cut:])

    _, target = play(then)
    producer = StreamProducer(target, payloads())
    for _ in range(len(whole) + 1):
        producer.send(0, np.full(3, 1), 1)  # the same publishing ids again: to this player they are all new
        settled = producer.flush(20)
        assert sorted(seq for each in settled if each.error is None for seq in each.seqs.tolist()) == [0, 2]
        errors = [(each.seqs.tolist(), each.error) for each in settled if each.error]
        assert errors == [([1], "publish error: internal error")]
    producer.close()


def test_back_pressure_holds_the_producer(play: Any) -> None:
    """While the socket takes no more there is no room; once the broker reads again, all arrives whole."""
    go = threading.Event()
    ids: list[int] = []

    def then(player: Player) -> None:
        go.wait(60)
        while len(ids) < 10_000:
            _, reader = player.hear()
            reader.number("B")
            count = reader.number("i")
            mine = []
            for _ in range(count):
                mine.append(reader.number("Q"))
                size = reader.number("I")
                reader._at += size
            ids.extend(mine)
            player.say(command(Key.PUBLISH_CONFIRM, struct.pack(f">Bi{count}Q", 0, count, *mine)))

    _, target = play(then)
    producer = StreamProducer(target, Payloads(Message(size_bytes=3_000), seed=1, token=2))
    sent = 0
    while (room := min(producer.room_msgs, 10_000 - sent)) > 0:
        producer.send(sent, np.full(room, 1), 1)
        sent += room
    assert producer.room_msgs == 0
    assert producer.poll(0.05) == []
    go.set()
    settled = producer.flush(20)
    while sent < 10_000:
        room = min(producer.room_msgs, 10_000 - sent)
        producer.send(sent, np.full(room, 1), 1)
        sent += room
        settled += producer.flush(20)
    assert ids == list(range(1, 10_001))
    assert sorted(seq for each in settled for seq in each.seqs.tolist()) == list(range(10_000))
    producer.close()


@pytest.mark.parametrize("role", ["producer", "consumer"])
def test_heartbeats_are_sent_and_silence_is_noticed(play: Any, role: str) -> None:
    """A role that has nothing to say sends heartbeats; after two of them without a word it gives up, in one line."""

    def then(player: Player) -> None:
        while True:
            player.hear()

    player, target = play(then, heartbeat=1)
    made = StreamProducer(target, payloads()) if role == "producer" else StreamConsumer(target, 0, 1)
    step: Callable[[float], Any] = made.poll if isinstance(made, StreamProducer) else made.receive
    with pytest.raises(TrialError, match="silent for two heartbeats of 1 s"):
        step(20.0)
    assert player.heard.count(Key.HEARTBEAT) >= 2
    made.close()


def test_a_close_of_the_brokers_is_told_with_its_reason(play: Any) -> None:
    """Its code and its words, and it is answered."""

    def then(player: Player) -> None:
        player.say(request(Key.CLOSE, 9, struct.pack(">H", Code.INTERNAL_ERROR) + text("going down")))
        player.hear()

    player, target = play(then)
    consumer = StreamConsumer(target, 0, 1)
    with pytest.raises(TrialError, match="internal error going down"):
        taken(consumer, 1)
    assert player.played.wait(60)
    assert player.heard[-1] == Key.CLOSE | RESPONSE_BIT
    consumer.close()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"", "closed the connection"),
        (b"AMQP\x00\x00\x09\x01", "another protocol"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "another protocol"),
        (
            command(Key.PEER_PROPERTIES | RESPONSE_BIT, struct.pack(">IH", 1, Code.OK) + b"\0\0\0\x05\0"),
            "another protocol",
        ),
    ],
)
def test_what_is_no_stream_listener_is_told(said: bytes, words: str) -> None:
    """A port that hangs up, or speaks something else, is one line that asks the right question."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def run() -> None:
            made, _ = server.accept()
            with made:
                made.recv(1_000)
                made.sendall(said)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        with pytest.raises(BrokerError, match=words) as caught:
            StreamConnection(Endpoint("rabbitmq", (("127.0.0.1", port),)), "127.0.0.1", port)
        thread.join(60)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_there_and_nobody_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where nobody listens, and one that never answers, are given up in one line."""
    monkeypatch.setattr(stream_connection, "CALL_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        endpoint = Endpoint("rabbitmq", (("127.0.0.1", port),))
        with pytest.raises(BrokerError, match="no answer"):
            StreamConnection(endpoint, "127.0.0.1", port)
    with pytest.raises(BrokerError, match="connection refused"):
        StreamConnection(endpoint, "127.0.0.1", port)


def test_what_nobody_sent_is_not_confirmed(play: Any) -> None:
    """A confirm too many is an error, not a negative number of messages under way."""
    _, target = play(lambda player: player.say(command(Key.PUBLISH_CONFIRM, struct.pack(">BiQ", 0, 1, 5))))
    producer = StreamProducer(target, payloads())
    with pytest.raises(TrialError, match="confirmed more messages than were sent"):
        producer.poll(5)
    producer.close()
