"""The wire driver's manners on the socket, towards a broker that is only pretended and can misbehave at will."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pika import frame, spec

from loadgen.driver import Target
from loadgen.drivers.wire import amqp_connection
from loadgen.drivers.wire.amqp import DRIVER
from loadgen.endpoint import Credentials, Endpoint, Tls
from loadgen.errors import BrokerError, TrialError
from loadgen.payload import Payloads
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SETTINGS: dict[str, Any] = {
    "queue_type": "classic",
    "persistent": True,
    "confirms": True,
    "confirm_window": 100,
    "mandatory": False,
    "prefetch": 100,
    "ack": "manual",
    "ack_every": 10,
    "heartbeat": 0,
}
PASSWORD = "not-to-be-shown"  # noqa: S105 - looked for in error texts
PAYLOADS = Payloads(Message(size_bytes=4_000), seed=1, token=2)


@pytest.fixture(autouse=True)
def _short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended broker never answers a goodbye."""
    monkeypatch.setattr(amqp_connection, "CLOSE_TIMEOUT_S", 0.05)


class Pretender:
    """The broker's side of one connection, by pika's codec; `serve` is what it does once the channel is open."""

    def __init__(
        self,
        serve: Callable[[Pretender], None],
        *,
        opens: bool = True,
        heartbeat_s: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._serve, self._opens, self._heartbeat_s, self._tls = serve, opens, heartbeat_s, tls
        self.done = threading.Event()
        self.failure: BaseException | None = None
        self.received = b""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with contextlib.closing(self._listener):
                self.socket = self._listener.accept()[0]
                if self._tls is not None:
                    self.socket = self._tls.wrap_socket(self.socket, server_side=True)
            with contextlib.closing(self.socket):
                self.socket.settimeout(10)
                if self._opens:
                    self._open()
                self._serve(self)
                self.done.wait(60)
        except OSError:
            pass  # the client has left
        except BaseException as error:  # noqa: BLE001 - told to the test's thread
            self.failure = error

    def _open(self) -> None:
        self.take(8)
        self.say(spec.Connection.Start(0, 9, {}, "PLAIN", "en_US"), 0)
        assert isinstance(self.hear(), spec.Connection.StartOk)
        self.say(spec.Connection.Tune(2047, 131_072, self._heartbeat_s), 0)
        assert isinstance(self.hear(), spec.Connection.TuneOk)
        assert isinstance(self.hear(), spec.Connection.Open)
        self.say(spec.Connection.OpenOk(), 0)
        assert isinstance(self.hear(), spec.Channel.Open)
        self.say(spec.Channel.OpenOk())

    def take(self, count: int) -> bytes:
        """Exactly so many bytes."""
        while len(self.received) < count:
            self._read()
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def _read(self) -> None:
        piece = self.socket.recv(1 << 16)
        if not piece:
            raise ConnectionError
        self.received += piece

    def hear(self) -> Any:
        """The next frame's method, or the frame itself where it has none."""
        while True:
            used, found = frame.decode_frame(self.received)
            if used:
                self.received = self.received[used:]
                return getattr(found, "method", found)
            self._read()

    def say(self, method: Any, channel: int = 1) -> None:
        """One method."""
        self.socket.sendall(frame.Method(channel, method).marshal())

    def confirm(self) -> None:
        """Answer a producer's wish for confirms."""
        assert isinstance(self.hear(), spec.Confirm.Select)
        self.say(spec.Confirm.SelectOk())

    def consume(self) -> None:
        """Answer a consumer's opening."""
        assert isinstance(self.hear(), spec.Basic.Qos)
        self.say(spec.Basic.QosOk())
        assert isinstance(self.hear(), spec.Basic.Consume)
        self.say(spec.Basic.ConsumeOk("loadgen-0"))

    def end(self) -> None:
        """Let go, and raise what went wrong on this side."""
        self.done.set()
        self._thread.join(60)
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def pretend() -> Iterator[Callable[..., tuple[Pretender, Target]]]:
    """Makes brokers, each with the target that leads to it."""
    made: list[Pretender] = []

    def make(serve: Callable[[Pretender], None], *, client_tls: Tls | None = None, **how: Any) -> Any:
        knobs = {name: how.pop(name) for name in list(how) if name in SETTINGS}
        broker = Pretender(serve, **how)
        made.append(broker)
        credentials = Credentials("somebody", PASSWORD)
        endpoint = Endpoint("rabbitmq", (("127.0.0.1", broker.port),), credentials, client_tls)
        return broker, Target(endpoint, "queue", {**SETTINGS, **knobs})

    yield make
    for broker in made:
        broker.end()


def send(producer: Any, first_seq: int, count: int) -> None:
    """Some messages, now."""
    now = time.monotonic_ns()
    producer.send(first_seq, np.full(count, now), now)


def one_line(error: BaseException) -> str:
    """The error's text, which must be one line without the password."""
    text = str(error)
    assert "\n" not in text
    assert PASSWORD not in text
    return text


def test_a_port_that_never_answers_is_given_up(pretend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handshake ends in time, in one line."""
    monkeypatch.setattr(amqp_connection, "CONNECT_TIMEOUT_S", 0.2)
    broker, target = pretend(lambda _: None, opens=False)
    with pytest.raises(BrokerError, match="did not answer") as caught:
        DRIVER.producer(target, PAYLOADS)
    assert f"127.0.0.1:{broker.port}" in one_line(caught.value)


def test_a_port_that_speaks_something_else_is_told(pretend: Any) -> None:
    """An HTTP server's answer is no AMQP."""
    _, target = pretend(lambda broker: broker.socket.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), opens=False)
    with pytest.raises(BrokerError, match="does not speak AMQP") as caught:
        DRIVER.consumer(target, 0, 1)
    one_line(caught.value)


def test_a_port_that_hangs_up_is_told(pretend: Any) -> None:
    """So does a server that closes without a word."""
    _, target = pretend(lambda broker: (broker.take(8), broker.done.set()), opens=False)
    with pytest.raises(BrokerError, match="hung up") as caught:
        DRIVER.consumer(target, 0, 1)
    one_line(caught.value)


def test_nobody_listening_is_told() -> None:
    """A refused connection is one line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    target = Target(Endpoint("rabbitmq", (("127.0.0.1", port),)), "queue", SETTINGS)
    with pytest.raises(BrokerError, match="cannot be reached") as caught:
        DRIVER.producer(target, PAYLOADS)
    one_line(caught.value)


def test_back_pressure_holds_the_producer_and_loses_nothing(pretend: Any) -> None:
    """While the broker does not read there is no room; when it does, every byte arrives in order, once."""
    reads = threading.Event()
    bodies: list[bytes] = []

    def serve(broker: Pretender) -> None:
        reads.wait(60)
        while len(bodies) < total[0] or not reads.is_set():
            found = broker.hear()
            if isinstance(found, frame.Body):
                bodies.append(found.fragment)

    total = [1]
    _, target = pretend(serve, confirms=False)
    producer = DRIVER.producer(target, PAYLOADS)
    sent = 0
    while count := min(200, producer.room_msgs):
        send(producer, sent, count)
        sent += count
    assert producer.room_msgs == 0
    assert producer.poll(0.01) == []
    total[0] = sent
    reads.set()
    assert producer.flush(60) == []
    assert producer.room_msgs > 0
    deadline = time.monotonic() + 60
    while len(bodies) < sent and time.monotonic() < deadline:
        time.sleep(0.01)
    received = np.frombuffer(b"".join(bodies), np.uint8)
    parsed = PAYLOADS.parse(received, np.arange(sent) * 4_000, 4_000)
    assert parsed.intact.all()
    assert parsed.seq.tolist() == list(range(sent))
    producer.close()


@pytest.mark.parametrize(
    ("stop", "go", "channel"),
    [
        (spec.Connection.Blocked("memory"), spec.Connection.Unblocked(), 0),
        (spec.Channel.Flow(active=False), spec.Channel.Flow(active=True), 1),
    ],
)
def test_a_blocked_producer_has_no_room(pretend: Any, stop: Any, go: Any, channel: int) -> None:
    """connection.blocked and channel.flow close the producer's door until they are taken back."""
    goes = threading.Event()

    def serve(broker: Pretender) -> None:
        broker.confirm()
        broker.say(stop, channel)
        goes.wait(60)
        broker.say(go, channel)

    _, target = pretend(serve)
    producer = DRIVER.producer(target, PAYLOADS)
    deadline = time.monotonic() + 60
    while not producer.blocked and time.monotonic() < deadline:
        producer.poll(0.01)
    assert (producer.blocked, producer.room_msgs) == (True, 0)
    goes.set()
    producer.poll(5)
    assert (producer.blocked, producer.room_msgs) == (False, 100)
    producer.close()


def test_heartbeats_are_sent_and_silence_is_noticed(pretend: Any) -> None:
    """Idle roles send heartbeats; a broker silent for two of them is given up in one line."""
    heard: list[Any] = []

    def serve(broker: Pretender) -> None:
        broker.consume()
        while True:
            heard.append(broker.hear())

    _, target = pretend(serve, heartbeat_s=60, heartbeat=1)
    consumer = DRIVER.consumer(target, 0, 1)
    assert consumer._connection.heartbeat_s == 1
    consumer._connection._heartbeat_ns = 50_000_000  # the protocol knows whole seconds only
    consumer._connection.beat_due_ns = 0

    def wait() -> None:
        for _ in range(100):
            assert consumer.receive(0.02) == []

    with pytest.raises(TrialError, match="silent") as caught:
        wait()
    one_line(caught.value)
    assert any(isinstance(each, frame.Heartbeat) for each in heard)
    consumer.close()


def test_deliveries_right_behind_the_answer_are_not_lost(pretend: Any) -> None:
    """Messages in one packet with basic.consume-ok are handed out by the first receive."""

    def serve(broker: Pretender) -> None:
        assert isinstance(broker.hear(), spec.Basic.Qos)
        broker.say(spec.Basic.QosOk())
        assert isinstance(broker.hear(), spec.Basic.Consume)
        parts = [frame.Method(1, spec.Basic.ConsumeOk("loadgen-0")).marshal()]
        for tag in (1, 2, 3):
            parts += [
                frame.Method(1, spec.Basic.Deliver("loadgen-0", tag, False, "", "queue")).marshal(),
                frame.Header(1, 30, spec.BasicProperties()).marshal(),
                frame.Body(1, bytes([tag]) * 30).marshal(),
            ]
        broker.socket.sendall(b"".join(parts))

    _, target = pretend(serve)
    consumer = DRIVER.consumer(target, 0, 1)
    (received,) = consumer.receive(1)
    assert [int(received.buffer[start]) for start in received.starts] == [1, 2, 3]
    consumer.close()


@pytest.mark.parametrize("role", ["producer", "consumer"])
def test_the_brokers_reason_survives_a_dead_socket(pretend: Any, role: str) -> None:
    """A close followed by the socket's end is told with the broker's reason, also by a write that fails."""

    def serve(broker: Pretender) -> None:
        broker.confirm() if role == "producer" else broker.consume()
        broker.say(spec.Connection.Close(320, "CONNECTION_FORCED - test", 0, 0), 0)
        broker.done.set()

    _, target = pretend(serve)
    client: Any = DRIVER.producer(target, PAYLOADS) if role == "producer" else DRIVER.consumer(target, 0, 1)
    time.sleep(0.05)

    def use() -> None:
        for first_seq in range(0, 100, 10):
            if role == "producer":
                send(client, first_seq, 10)
            else:
                client.receive(0.1)

    with pytest.raises(TrialError, match="320 CONNECTION_FORCED") as caught:
        use()
    one_line(caught.value)
    client.close()


def test_close_is_bounded_in_time(pretend: Any) -> None:
    """A broker that never answers the goodbye does not hold the client."""
    _, target = pretend(lambda broker: broker.confirm())
    producer = DRIVER.producer(target, PAYLOADS)
    begun = time.monotonic()
    producer.close()
    assert time.monotonic() - begun < 30
    producer.close()


def test_tls_carries_batches_both_ways(pretend: Any, certificate: tuple[Path, Path]) -> None:
    """Through TLS records, too, everything sent arrives and is heard, and nothing waits unseen in the TLS layer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    bodies: list[bytes] = []

    def serve(broker: Pretender) -> None:
        broker.confirm()
        while len(bodies) < 90:
            found = broker.hear()
            if isinstance(found, frame.Body):
                bodies.append(found.fragment)
        acks = [frame.Method(1, spec.Basic.Ack(tag)).marshal() for tag in range(1, 91)]
        broker.socket.sendall(b"".join(acks))

    _, target = pretend(serve, tls=context, client_tls=Tls(ca_file=certificate[0]))
    producer = DRIVER.producer(target, PAYLOADS)
    send(producer, 0, 90)
    settled = producer.flush(60)
    assert sorted(seq for each in settled for seq in each.seqs.tolist()) == list(range(90))
    parsed = PAYLOADS.parse(np.frombuffer(b"".join(bodies), np.uint8), np.arange(90) * 4_000, 4_000)
    assert parsed.intact.all()
    producer.close()


def test_an_unknown_certificate_is_refused(pretend: Any, certificate: tuple[Path, Path]) -> None:
    """A broker that the system's authorities do not vouch for is told in one line."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    _, target = pretend(lambda _: None, tls=context, client_tls=Tls())
    with pytest.raises(BrokerError, match="TLS failed") as caught:
        DRIVER.producer(target, PAYLOADS)
    one_line(caught.value)
