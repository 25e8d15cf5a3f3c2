"""The proxy alone, in front of an echo: bytes pass unchanged, late, slowly, not at all, or the connection is reset."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S, until

from loadgen import Cut, Delay, Throttle
from loadgen.brokers.orders import _condition
from loadgen.brokers.process import ProcessId
from loadgen.brokers.through import Through
from loadgen.brokers.way import NS_PER_S, PACKET_BYTES, Bucket, Condition
from loadgen.endpoint import Endpoint
from loadgen.errors import BrokerError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTHING_S = 0.3  # so long nothing comes where nothing may


class Echo:
    """A server that sends back what it is sent, and keeps when how much of it came."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.came: list[tuple[int, int]] = []
        self.ended: list[str] = []
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                stream, _ = self.listener.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream: socket.socket) -> None:
        with closing(stream):
            try:
                while data := stream.recv(1 << 16):
                    self.came.append((time.monotonic_ns(), len(data)))
                    stream.sendall(data)
                self.ended.append("in order")
            except OSError as error:
                self.ended.append(type(error).__name__)

    @property
    def heard_bytes(self) -> int:
        """All that has come."""
        return sum(size for _, size in self.came)


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    """One for all."""
    server = Echo()
    yield server
    server.listener.close()


@pytest.fixture(scope="module")
def proxy(echo: Echo) -> Iterator[Through]:
    """A proxy in front of it, as node 1; every test leaves it mended."""
    made = Through(Endpoint("rabbitmq", (("127.0.0.1", echo.port),)), [(1, 0, echo.port)])
    yield made
    made.close()


@pytest.fixture
def client(proxy: Through) -> Iterator[socket.socket]:
    """A connection through the proxy that is known to work."""
    with connected(proxy) as stream:
        yield stream
    proxy.mend()


def connected(proxy: Through) -> socket.socket:
    """Another one."""
    stream = socket.create_connection(proxy.endpoint.hosts[0], PATIENCE_S)
    assert echoed(stream, b"hello") == b"hello"
    return stream


def exactly(stream: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer where the stream ends."""
    data = bytearray()
    while len(data) < size and (more := stream.recv(size - len(data))):
        data += more
    return bytes(data)


def echoed(stream: socket.socket, data: bytes) -> bytes:
    """What comes back."""
    stream.sendall(data)
    return exactly(stream, len(data))


@settings(max_examples=40)
@given(chunks=st.lists(st.binary(min_size=1, max_size=40_000), min_size=1, max_size=12))
def test_bytes_pass_unchanged_however_they_are_cut_up(proxy: Through, chunks: list[bytes]) -> None:
    """In order, none lost, none doubled, in both directions; and the end passes, too, after all of them."""
    with connected(proxy) as stream:
        reader: list[bytes] = []
        thread = threading.Thread(target=lambda: reader.append(exactly(stream, sum(map(len, chunks)) + 1)))
        thread.start()
        for chunk in chunks:
            stream.sendall(chunk)
        stream.shutdown(socket.SHUT_WR)
        thread.join(PATIENCE_S)
        assert reader == [b"".join(chunks)]


def test_whoever_reads_slowly_holds_up_only_itself(proxy: Through, client: socket.socket) -> None:
    """What its reader does not take waits, at last in the sender; another connection goes on meanwhile."""
    client.setblocking(False)
    sent = 0
    while select.select([], [client], [], NOTHING_S)[1]:
        with suppress(BlockingIOError):
            sent += client.send(bytes(1 << 16))
    with connected(proxy) as other:
        assert echoed(other, b"meanwhile") == b"meanwhile"
    client.settimeout(PATIENCE_S)
    assert exactly(client, sent) == bytes(sent)


def test_what_is_late_takes_half_on_each_way(echo: Echo, proxy: Through, client: socket.socket) -> None:
    """No sooner than that; once it is mended nothing overtakes what was late."""
    fault = Delay("leader", delay_ms=400.0)
    proxy.begin(fault, [1])
    echo.came.clear()
    began_ns = time.monotonic_ns()
    client.sendall(b"late")
    assert exactly(client, 4) == b"late"
    assert time.monotonic_ns() - began_ns >= 0.4 * NS_PER_S
    assert echo.came[0][0] - began_ns >= 0.2 * NS_PER_S
    client.sendall(b"before")
    proxy.end(fault, [1])
    client.sendall(b" and after")
    assert exactly(client, 16) == b"before and after"


def test_never_more_passes_than_the_bucket_holds(echo: Echo, proxy: Through, client: socket.socket) -> None:
    """At no moment has more come than burst and rate allow since it began; and who sends little has its turn."""
    rate, size = 4_000, 400_000
    echo.came.clear()
    began_ns = time.monotonic_ns()
    proxy.begin(Throttle("leader", rate_bytes_per_s=rate), [1])
    client.sendall(bytes(size))
    with connected(proxy):
        seen = list(echo.came)
    came = 0
    for at_ns, count in seen:
        came += count
        assert came <= Bucket(rate, 0).burst_bytes + rate * (at_ns - began_ns) / NS_PER_S
    assert 5 < came < size, "the small one did not wait for all of the large one, nor the large one for it"
    proxy.mend()
    assert exactly(client, size) == bytes(size)


@given(
    rate=st.integers(1_000, 10**9),
    steps=st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 10**7)), max_size=40),
)
def test_no_span_of_time_has_more_than_burst_and_rate(rate: int, steps: list[tuple[int, int]]) -> None:
    """Whatever is asked for and when, between any two moments; and what a bucket says it will have, it then has."""
    bucket, now_ns = Bucket(rate, 0), 0
    taken: list[tuple[int, int]] = []
    for gap_ns, wanted in steps:
        now_ns += gap_ns
        has = bucket.has_bytes(now_ns)
        if 0 < min(wanted, bucket.burst_bytes) <= has:
            bucket.take(min(wanted, has))
            taken.append((now_ns, min(wanted, has)))
        else:
            now_ns = max(now_ns, bucket.full_at_ns(min(wanted, bucket.burst_bytes)))
            assert bucket.has_bytes(now_ns) >= min(wanted, bucket.burst_bytes)
    for first, (from_ns, _) in enumerate(taken):
        passed = 0
        for at_ns, count in taken[first:]:
            passed += count
            assert passed <= bucket.burst_bytes + rate * (at_ns - from_ns) / NS_PER_S
    assert bucket.burst_bytes >= PACKET_BYTES


def test_a_cut_lets_nothing_pass_and_then_all_of_it(echo: Echo, proxy: Through, client: socket.socket) -> None:
    """No byte, no end and nobody new, and no RST; once it is mended all comes, in order, also of who left meanwhile."""
    leaver = connected(proxy)
    fault = Cut("all")
    proxy.begin(fault, [1])
    echo.came.clear()
    heard, accepted, ended = echo.heard_bytes, echo.accepted, len(echo.ended)
    client.sendall(b"first ")
    leaver.sendall(b"goodbye")
    leaver.close()
    with pytest.raises(TimeoutError):
        socket.create_connection(proxy.endpoint.hosts[0], NOTHING_S)
    client.sendall(b"second")
    assert not select.select([client], [], [], NOTHING_S)[0], "nothing comes back, no end either"
    assert (echo.heard_bytes, echo.accepted, len(echo.ended)) == (heard, accepted, ended)
    proxy.end(fault, [1])
    assert exactly(client, 12) == b"first second"
    assert until(lambda: echo.heard_bytes >= 19 and len(echo.ended) > ended), "what was sent before leaving"
    with connected(proxy):  # one that gave up is forgotten, and others are let in again
        pass


def test_cuts_that_overlap_are_mended_by_the_last(proxy: Through, client: socket.socket) -> None:
    """Each for itself; and a proxy's nodes are one another's business as little as their faults are."""
    short, long = Cut("all", for_s=1), Cut("all", for_s=2)
    proxy.begin(short, [1])
    proxy.begin(long, [1])
    client.sendall(b"x")
    proxy.end(short, [1])
    assert not select.select([client], [], [], NOTHING_S)[0]
    proxy.end(long, [1])
    assert client.recv(1) == b"x"


def test_faults_at_once_come_to_one_condition() -> None:
    """Delays add up, the lowest rate holds, and nothing passes where one of them cuts."""
    slow = [Throttle(1, rate_bytes_per_s=5_000), Throttle(1, rate_bytes_per_s=3_000)]
    late = [Delay(1, delay_ms=10), Delay(1, delay_ms=20)]
    assert _condition([*slow, *late]) == Condition(late_ns=15_000_000, rate_bytes_per_s=3_000)
    assert _condition([Cut(1), *late]).is_cut
    assert _condition([]) == Condition()


def test_a_reset_is_one_on_both_sides(echo: Echo, proxy: Through, client: socket.socket) -> None:
    """ECONNRESET at the client and at the server; whoever connects then is served."""
    ended = len(echo.ended)
    proxy.reset([1])
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert until(lambda: len(echo.ended) > ended), "the server's side ends"
    assert echo.ended[-1] == "ConnectionResetError"
    with connected(proxy):
        pass


def test_a_node_that_is_not_there_refuses_by_a_reset() -> None:
    """As a node that died: whoever connects is told at once; and what passed is told."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    proxy = Through(Endpoint("rabbitmq", (("127.0.0.1", port),)), [(1, 0, port)])
    with closing(proxy), closing(socket.create_connection(proxy.endpoint.hosts[0], PATIENCE_S)) as stream:
        with pytest.raises(ConnectionResetError):
            stream.recv(1)
        told = proxy.account()
        assert (told["connections"], told["bytes"]) == (1, 0)
        assert told["cpu_s"] > 0


def test_a_proxy_that_died_is_told(echo: Echo) -> None:
    """Whoever orders something hears of it, in one line; what had passed nobody knows."""
    proxy = Through(Endpoint("rabbitmq", (("127.0.0.1", echo.port),)), [(1, 0, echo.port)])
    with closing(proxy):
        os.kill(proxy.pid, signal.SIGKILL)
        with pytest.raises(BrokerError, match="the proxy in front of rabbitmq does not answer"):
            proxy.reset([1])
        assert proxy.account() == {"connections": None, "bytes": None, "cpu_s": None}


def test_a_port_that_is_taken_is_one_line(echo: Echo) -> None:
    """Kafka's nodes advertise one port: who else has it is in the way."""
    with pytest.raises(HostError, match=rf"no proxy can listen on 127.0.0.1:{echo.port} \(.*\); end what") as told:
        Through(Endpoint("kafka", (("127.0.0.1", 1),)), [(1, echo.port, 1)])
    assert "\n" not in str(told.value)


def test_no_proxy_outlives_its_maker() -> None:
    """Killed without a chance to clean up, it leaves none behind."""
    text = (
        "import time\nfrom loadgen.brokers.through import Through\nfrom loadgen.endpoint import Endpoint\n"
        "proxy = Through(Endpoint('kafka', (('127.0.0.1', 1),)), [(1, 0, 1)])\n"
        "proxy.account()\nprint(proxy.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        proxy = ProcessId.of(int(maker.stdout.readline()))
        assert proxy is not None
        os.kill(maker.pid, signal.SIGKILL)
    assert until(lambda: not proxy.is_alive()), "it has ended"
