"""A proxy that delays and keeps a log of it, and a recorder that has seen every delay."""

from __future__ import annotations

import socket
import struct
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prove import delay
from prove.proof import Scale
from prove.proxy import SEQUENCE_BITS, Delay, identities_in, proxied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.endpoint import BrokerName, Endpoint

pytestmark = pytest.mark.alone  # what it provokes and measures is of the machine

STAMP = struct.Struct("<qQII")
(CASE,) = delay.cases(Scale.SMALL)
BOUNDS = delay.BOUNDS[Scale.FULL]


def test_a_known_delay_is_in_the_response_times(endpoints: dict[BrokerName, Endpoint]) -> None:
    """The small proof passes, on the real broker."""
    assert "rabbitmq" in endpoints
    proof = delay.prove(Scale.SMALL)
    assert proof.passed, [row for row in proof.rows if not row.ok]
    assert len(proof.rows) == 4


def pairs(off_ns: int = 0, count: int = 1_000) -> delay.Paired:
    """Messages delayed by 4 to 6 ms, whose response times are off by so much."""
    rng = np.random.default_rng(1)
    delay_ns, undelayed_ns = rng.integers(4_000_000, 6_000_000, count), rng.integers(100_000, 900_000, count)
    response_ns = delay_ns + undelayed_ns + off_ns
    recorded = delay.percentiles_of(response_ns, BOUNDS.percentiles).tolist()
    return delay.Paired(response_ns, undelayed_ns, delay_ns, np.zeros(count, np.int64), 0, tuple(recorded))


def test_response_times_that_are_off_fail() -> None:
    """What is right passes; 0.4 ms too much or too little does not, in any row of a delay."""
    assert delay.compare({CASE: pairs()}, BOUNDS).passed
    for off_ns in (-400_000, 400_000):
        rows = delay.compare({CASE: pairs(off_ns)}, BOUNDS).rows
        assert [row.ok for row in rows] == [True, False, False, False, False, True, True, True]


def test_trials_without_a_delay_are_told() -> None:
    """How much longer a delayed median is than an undelayed one stands in a note, beside the delay."""
    path = pairs()
    assert not [note for note in delay.compare({CASE: path}, BOUNDS).notes if "not delayed" in note]
    told = delay.compare({CASE: replace(path, without_ns=path.undelayed_ns)}, BOUNDS).notes[-1]
    longer = np.median(path.response_ns) - np.median(path.undelayed_ns)
    assert f"{longer / 1e6:.2f} ms longer than that of 1,000 messages" in told


def test_a_recorder_that_disagrees_with_the_log_fails() -> None:
    """Percentiles of the histogram a hundredth too high are noticed."""
    right = pairs()
    wrong = replace(right, recorded_ns=tuple(round(each * 1.02) for each in right.recorded_ns))
    rows = delay.compare({CASE: wrong}, BOUNDS).rows
    assert [row.ok for row in rows] == [True] * 5 + [False] * 3


def test_a_message_that_only_one_log_has_fails() -> None:
    """Nothing may be left out of the comparison."""
    assert not delay.compare({CASE: replace(pairs(), unpaired=1)}, BOUNDS).passed


def stamped(seq: int, intended_ns: int, producer: int = 0) -> bytes:
    """A message as it stands in the bytes of any protocol."""
    return STAMP.pack(intended_ns, seq | producer << SEQUENCE_BITS, 3, 4) + bytes(range(50, 90))


@given(
    st.binary(max_size=40), st.lists(st.tuples(st.integers(0, 1 << 39), st.integers(0, 63)), max_size=5),
    st.binary(max_size=40),
)  # fmt: skip
def test_stamps_are_found_wherever_they_lie(before: bytes, messages: list[tuple[int, int]], after: bytes) -> None:
    """Every message's identity, in order, whatever stands around it."""
    now_ns = 0x1234_5678_9ABC
    data = before + b"".join(stamped(seq, now_ns, producer) for seq, producer in messages) + after
    expected = [seq | producer << SEQUENCE_BITS for seq, producer in messages]
    assert identities_in(data, now_ns, now_ns) == expected


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends everything back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                while data := client.recv(1 << 16):
                    client.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        thread.join()


def exchanged(upstream: tuple[str, int], how: Delay, talk: Callable[[socket.socket], None]) -> delay.Passage:
    """A client's talk through a proxy, and the proxy's log."""
    with proxied(upstream, how) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            talk(client)
        return proxy.end()


def read(client: socket.socket, count: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < count:
        data += client.recv(count - len(data))
    return data


def test_the_proxy_changes_no_byte_and_logs_every_delay(echo: tuple[str, int]) -> None:
    """Messages one by one: none is back before its delay, and the log's times lie in order around what was seen."""
    seen: list[tuple[int, int]] = []

    def talk(client: socket.socket) -> None:
        for seq in range(20):
            begin_ns = time.monotonic_ns()
            message = stamped(seq, begin_ns)
            client.sendall(message)
            assert read(client, len(message)) == message
            seen.append((begin_ns, time.monotonic_ns()))
        client.sendall(b"answer")
        assert read(client, 6) == b"answer"

    log = exchanged(echo, Delay(3.0), talk)
    assert log.identity.tolist() == list(range(20))
    sent_ns, back_ns = np.array(seen).T
    assert (log.released_ns - log.arrived_ns >= 3_000_000).all()
    assert (sent_ns <= log.arrived_ns).all()
    assert (log.released_ns <= back_ns).all()
    # The next message is the answer to the one before it; the kernel noted it when it was sent.
    assert (log.answered_ns[:-1] >= sent_ns[1:]).all()
    assert (log.answered_ns >= log.released_ns).all()


def test_nothing_overtakes_a_message_that_is_held_back(echo: tuple[str, int]) -> None:
    """Bytes without a stamp that come behind a message wait for it; a stamp in two pieces counts as its second."""
    now_ns = 0

    def talk(client: socket.socket) -> None:
        nonlocal now_ns
        now_ns = time.monotonic_ns()
        data = stamped(1, now_ns) + stamped(2, now_ns)
        client.sendall(data[:70])
        client.sendall(data[70:])
        time.sleep(0.01)
        client.sendall(b"behind")
        assert read(client, len(data) + 6) == data + b"behind"

    log = exchanged(echo, Delay(30.0, "exponential", seed=3), talk)
    assert log.identity.tolist() == [1, 2]
    assert (np.diff(log.released_ns) >= 0).all()


def test_an_address_in_what_the_server_says_becomes_the_proxys(echo: tuple[str, int]) -> None:
    """As Kafka's metadata tell it: length, host, port."""
    host, port = echo
    told = len(host).to_bytes(2, "big") + host.encode() + port.to_bytes(4, "big")
    answers: list[bytes] = []
    own: list[int] = []

    def talk(client: socket.socket) -> None:
        client.sendall(b"before" + told + b"after")
        answers.append(read(client, 11 + len(told)))
        own.append(client.getpeername()[1])

    exchanged(echo, Delay(1.0), talk)
    assert answers[0] == b"before" + told[:-4] + own[0].to_bytes(4, "big") + b"after"
