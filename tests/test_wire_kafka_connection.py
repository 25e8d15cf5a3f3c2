"""Kafka connections: frames come out whole however they arrive, through TLS too, and a login is made or refused."""

from __future__ import annotations

import socket
import ssl
import threading
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.drivers.wire import kafka_protocol
from loadgen.drivers.wire.framed import LinkError, wait
from loadgen.drivers.wire.kafka_protocol import Connection
from loadgen.endpoint import Credentials, Endpoint, Tls
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Pair:
    """A connection of ours whose other end the test holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, self.theirs = socket.socketpair()
        monkeypatch.setattr(kafka_protocol.Connection, "_connect", lambda *_: ours)
        self.connection = Connection(Endpoint("kafka", (("nowhere", 1),)), "nowhere", 1)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """A connection to the test itself."""
    made = Pair(monkeypatch)
    yield made
    made.connection.close()
    made.theirs.close()


def taken(connection: Connection) -> list[bytes]:
    """Every whole response that has come."""
    out = []
    while connection.read():
        while (found := connection.frame()) is not None:
            out.append(connection.buffer[found[0] : found[1]].tobytes())
    return out


def test_responses_split_at_every_byte(pair: Pair) -> None:
    """Wherever the network cuts a stream of responses, each comes out whole, once and in order."""
    frames = [bytes([at]) * size for at, size in enumerate((4, 5, 70, 300))]
    stream = b"".join(len(each).to_bytes(4, "big") + each for each in frames)
    for cut in range(len(stream) + 1):
        pair.theirs.sendall(stream[:cut])
        found = taken(pair.connection)
        pair.theirs.sendall(stream[cut:])
        assert found + taken(pair.connection) == frames


@given(sizes=st.lists(st.integers(4, 300_000), min_size=1, max_size=4), chunk=st.integers(1, 70_000))
@settings(max_examples=15)
def test_responses_of_any_size(sizes: list[int], chunk: int) -> None:
    """A response larger than the buffer makes it grow, and loses nothing of those around it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        pair = Pair(monkeypatch)
        frames = [zlib.crc32(bytes([at])).to_bytes(4, "big") * (size // 4) for at, size in enumerate(sizes)]
        stream = b"".join(len(each).to_bytes(4, "big") + each for each in frames)
        found: list[bytes] = []
        step = max(chunk, len(stream) // 100)
        for at in range(0, len(stream), step):
            pair.theirs.sendall(stream[at : at + step])
            found += taken(pair.connection)
        assert found == frames
        pair.connection.close()
        pair.theirs.close()


def test_partial_writes_lose_nothing(pair: Pair) -> None:
    """What the socket does not take now is written later, in order."""
    blocks = [bytes([at]) * 150_000 for at in range(20)]
    pair.connection.queue(blocks)
    got = bytearray()
    pair.theirs.setblocking(False)
    while len(got) < 3_000_000:
        pair.connection.write()
        got += pair.theirs.recv(1 << 16)
    assert bytes(got) == b"".join(blocks)
    assert pair.connection.written_bytes == pair.connection.queued_bytes == len(got)
    assert not pair.connection.has_output


def test_another_protocol_is_told(pair: Pair) -> None:
    """A server that is no Kafka broker is recognised by its first bytes."""
    pair.theirs.sendall(b"AMQP\x00\x00\x09\x01")
    assert pair.connection.read()
    with pytest.raises(LinkError, match="another protocol"):
        pair.connection.frame()


def test_closed_by_the_broker(pair: Pair) -> None:
    """The end of the stream is an error, not an empty response."""
    pair.theirs.close()
    with pytest.raises(LinkError, match="closed"):
        pair.connection.read()


def serve(talk: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> tuple[int, threading.Thread]:
    """A server for one connection, in a thread; its port."""
    server = socket.create_server(("127.0.0.1", 0))
    port: int = server.getsockname()[1]

    def run() -> None:
        with server:
            plain, _ = server.accept()
            plain.settimeout(10)
            with context.wrap_socket(plain, server_side=True) if context else plain as connection:
                talk(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return port, thread


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < count:
        data += connection.recv(count - len(data))
    return data


def test_tls_carries_large_frames_both_ways(certificate: tuple[Path, Path]) -> None:
    """Through TLS everything that was queued arrives, and a large answer comes back whole."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    frame = bytes(range(256)) * 12_000
    heard: list[bytes] = []

    def echo(connection: socket.socket) -> None:
        heard.append(read_exactly(connection, len(frame)))
        connection.sendall(len(frame).to_bytes(4, "big") + frame)

    port, thread = serve(echo, context)
    endpoint = Endpoint("kafka", (("127.0.0.1", port),), tls=Tls(ca_file=certificate[0]))
    connection = Connection(endpoint, "127.0.0.1", port)
    connection.queue([frame[:1_000_000], frame[1_000_000:]])
    found = None
    while found is None:
        connection.write()
        while found is None and connection.read():
            found = connection.frame()
        wait([connection], 0.01)
    assert connection.buffer[found[0] : found[1]].tobytes() == frame
    assert heard == [frame]
    connection.close()
    thread.join(60)


def test_a_certificate_of_nobody_is_told(certificate: tuple[Path, Path]) -> None:
    """A server that no authority vouches for is refused in one line."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    heard: list[Exception] = []

    def refuse() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ports.append(server.getsockname()[1])
            is_up.set()
            plain, _ = server.accept()
            try:
                context.wrap_socket(plain, server_side=True)
            except OSError as error:
                heard.append(error)
            finally:
                plain.close()

    ports: list[int] = []
    is_up = threading.Event()
    thread = threading.Thread(target=refuse, daemon=True)
    thread.start()
    assert is_up.wait(60)
    with pytest.raises(BrokerError, match="certificate is not trusted: self-signed"):
        Connection(Endpoint("kafka", (("127.0.0.1", ports[0]),), tls=Tls()), "127.0.0.1", ports[0])
    thread.join(60)
    assert heard


def test_tls_files_that_are_not_there(tmp_path: Path) -> None:
    """A file that cannot be read is named."""
    port, thread = serve(lambda _: None)
    endpoint = Endpoint("kafka", (("127.0.0.1", port),), tls=Tls(ca_file=tmp_path / "none.pem"))
    with pytest.raises(BrokerError, match=r"none\.pem cannot be used: No such file"):
        Connection(endpoint, "127.0.0.1", port)
    thread.join(60)


@pytest.mark.parametrize(
    ("shake", "login", "told"),
    [
        (b"\0\0\0\0\0\1\0\5PLAIN", b"\0\0\xff\xff\0\0\0\0" + bytes(8), None),
        (b"\0\0\0\0\0\1\0\5PLAIN", b"\0\x3a\0\2no\0\0\0\0" + bytes(8), "user 'me' was refused"),
        (b"\0\x21\0\0\0\1\0\x05OTHER", None, "offers OTHER; expected PLAIN"),
    ],
)
def test_login(shake: bytes, login: bytes | None, told: str | None) -> None:
    """Name and password go to the broker as SASL/PLAIN has them, and its refusal is one line without the password."""
    heard: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        for answer in (shake, login):
            if answer is not None:
                request = read_exactly(connection, int.from_bytes(read_exactly(connection, 4), "big"))
                heard.append(request)
                connection.sendall((4 + len(answer)).to_bytes(4, "big") + request[4:8] + answer)

    port, thread = serve(talk)
    endpoint = Endpoint("kafka", (("127.0.0.1", port),), credentials=Credentials("me", "s3cret"))
    if told is None:
        Connection(endpoint, "127.0.0.1", port).close()
        assert heard[1].endswith(b"\0me\0s3cret")
    else:
        with pytest.raises(BrokerError, match=told) as error:
            Connection(endpoint, "127.0.0.1", port)
        assert "s3cret" not in str(error.value)
    thread.join(60)
