"""A proxy that delays and keeps a log of it, and a recorder that has seen every delay."""

from __future__ import annotations

import socket
import struct
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prove import delay
from prove.proof import Scale
from prove.proxy import APART_NS, LOOK_AWAY_NS, SEQUENCE_BITS, Delay, identities_in, proxied
from prove.trials import Tapped

from loadgen.histogram import Histogram

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
    assert len(proof.rows) == 8


def pairs(off_ns: int = 0, delayed_off_ns: int = 0, count: int = 2_000) -> delay.Paired:
    """Messages held for 2 ms, every second 4 to 6 ms longer, whose response times are off by so much."""
    rng = np.random.default_rng(1)
    is_delayed = np.arange(count) % 2 == 0
    delay_ns = 2_000_000 + is_delayed * rng.integers(4_000_000, 6_000_000, count)
    undelayed_ns = rng.integers(100_000, 900_000, count)
    response_ns = delay_ns + undelayed_ns + off_ns + is_delayed * delayed_off_ns
    recorded = delay.percentiles_of(response_ns, BOUNDS.recorded).tolist()
    zeros = np.zeros(count, np.int64)
    return delay.Paired(response_ns, undelayed_ns, delay_ns, zeros, is_delayed, 0, tuple(recorded), zeros)


def failing(paired: delay.Paired) -> list[str]:
    """What the rows that fail are about."""
    rows = delay.compare({CASE: paired}, BOUNDS).rows
    return [row.name.partition(": ")[2] for row in rows if not row.ok]


def measured_by(tapped: Tapped) -> Any:
    """A trial that began at 7 s, whose recorder has what was tapped."""
    histogram = Histogram()
    histogram.add(tapped.received_ns - tapped.intended_ns)
    return SimpleNamespace(
        tapped=tapped, window_ns=(8_000_000_000 - 1_000, 12_000_000_000), histogram=lambda _: histogram,
        outcome=SimpleNamespace(start_ns=7_000_000_000),
    )  # fmt: skip


DELAYS = ["p50 of the delay", "p90 of the delay", "p99 of the delay", "messages whose own delay agrees so"]
BESIDE = [
    *(f"p{percent} of the response, beside the undelayed ones" for percent in (50, 90, 99)),
    "median of a response less its neighbour's and the log's delay",
]


def test_response_times_that_are_off_fail() -> None:
    """What is right passes; 0.4 ms too much or too little does not, in any row of a delay."""
    assert not failing(pairs())
    for off_ns in (-400_000, 400_000):
        assert failing(pairs(off_ns)) == DELAYS


def test_what_a_consumer_was_reading_after_its_answer_may_make_it_late_and_never_early() -> None:
    """0.4 ms off are explained by 0.3 ms of reading where the response is too long, and by nothing where too short."""
    reading_ns = np.full(2_000, 300_000)
    assert not failing(replace(pairs(400_000), reading_ns=reading_ns))
    assert failing(replace(pairs(-400_000), reading_ns=reading_ns)) == DELAYS
    assert failing(replace(pairs(750_000), reading_ns=reading_ns)) == DELAYS


@pytest.mark.parametrize(("broker", "known_ns"), [("rabbitmq", 0), ("kafka", 1_000_000)])
def test_only_who_answers_first_may_be_late_by_its_reading(broker: BrokerName, known_ns: int) -> None:
    """Of two milliseconds that a consumer says it was reading one counts, and none where the answer comes after."""
    seqs = np.arange(100, 400, dtype=np.int64)
    due_ns = 7_000_000_000 + seqs * 10_000_000
    tapped = Tapped(seqs, due_ns, due_ns, due_ns + 9_000_000, due_ns + 7_000_000)
    passage = delay.Passage(seqs, due_ns + 1, due_ns + 1, due_ns + 7_000_000, due_ns + 7_000_001)
    case = replace(CASE, broker=broker)
    paired = delay.pair(case, measured_by(tapped), passage, BOUNDS.recorded)
    assert set(paired.reading_ns.tolist()) == {known_ns}


@pytest.mark.parametrize("off_ns", [-450_000, 450_000])
def test_a_delay_that_is_not_all_in_the_response_fails(off_ns: int) -> None:
    """Response times of the delayed messages alone that are off differ from those beside them, too."""
    assert failing(pairs(delayed_off_ns=off_ns)) == [*DELAYS, *BESIDE]


def test_what_knows_nothing_of_the_proxys_view_fails_alone() -> None:
    """Responses and the undelayed path off by the same, as with wrong intended times: only the neighbours tell."""
    right = pairs()
    off_ns = right.is_delayed * 450_000
    wrong = replace(
        right, response_ns=right.response_ns + off_ns, undelayed_ns=right.undelayed_ns + off_ns,
        recorded_ns=tuple(delay.percentiles_of(right.response_ns + off_ns, BOUNDS.recorded).tolist()),
    )  # fmt: skip
    assert failing(wrong) == BESIDE


def test_a_long_tail_is_allowed_as_far_as_nobody_knows_it() -> None:
    """The more the undelayed path's own p99 varies, the further the response's may lie; its median may not."""
    calm = pairs()
    stretched_ns = np.where(np.arange(len(calm.delay_ns)) % 50 < 2, 3_000_000, 0)
    wild = replace(calm, response_ns=calm.response_ns + stretched_ns, undelayed_ns=calm.undelayed_ns + stretched_ns)
    reaches = []
    for paired in (calm, wild):
        bounds = [delay.expected_ns(paired, percent, delay.CONFIDENCE) for percent in (50.0, 99.0)]
        reaches.append([high_ns - low_ns for _, low_ns, high_ns in bounds])
    assert reaches[1][1] > reaches[0][1] > 2 * delay.TOLERANCE_NS
    assert reaches[1][0] < 1.3 * reaches[0][0]


@pytest.mark.parametrize("off_ns", [-1, 1, 3_000_000])
def test_intended_times_that_are_not_the_schedules_fail(off_ns: int) -> None:
    """A nanosecond beside the arithmetic is noticed, and a message that came before it was due; neither counts at 0."""

    def laid(off_ns: int) -> delay.Paired:
        seqs = np.arange(100, 400, dtype=np.int64)
        due_ns = 7_000_000_000 + seqs * 10_000_000
        came_ns, intended_ns = due_ns + 300_000, due_ns + off_ns
        tapped = Tapped(seqs, intended_ns, intended_ns, came_ns + 7_100_000, came_ns + 7_050_000)
        passage = delay.Passage(seqs, came_ns, came_ns, came_ns + 7_000_000, came_ns + 7_200_000)
        return delay.pair(CASE, measured_by(tapped), passage, BOUNDS.recorded)

    right, wrong = laid(0), laid(off_ns)
    assert (right.unpaired, right.off_schedule, right.early) == (0, 0, 0)
    assert right.is_delayed.tolist() == [True, False] * 150
    assert (wrong.off_schedule, wrong.early) == (300, 300 if off_ns > 300_000 else 0)
    named = "messages that were not due by the schedule"
    assert named in failing(wrong)
    assert named not in failing(right)


def test_a_recorder_that_disagrees_with_the_log_fails() -> None:
    """Percentiles of the histogram a twentieth too high are noticed."""
    right = pairs()
    wrong = replace(right, recorded_ns=tuple(round(each * 1.05) for each in right.recorded_ns))
    rows = delay.compare({CASE: wrong}, BOUNDS).rows
    assert [row.ok for row in rows] == [True] * 11 + [False] * 3


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


def test_every_second_message_is_delayed_and_all_are_held(echo: tuple[str, int]) -> None:
    """By sequence number; the log has what each was kept."""

    def talk(client: socket.socket) -> None:
        for seq in range(8):
            message = stamped(seq, time.monotonic_ns())
            client.sendall(message)
            assert read(client, len(message)) == message

    how = Delay(20.0, hold_ms=2.0, every=2)
    log = exchanged(echo, how, talk)
    kept_ns = log.due_ns - log.arrived_ns
    assert [bool(each) for each in how.delays(log.identity)] == [True, False] * 4
    assert kept_ns.tolist() == [22_000_000, 2_000_000] * 4


def test_messages_that_caught_up_with_another_are_let_go_apart(echo: tuple[str, int]) -> None:
    """Of two answers that are read at once only the second's time is known: messages leave too far apart for that."""

    def talk(client: socket.socket) -> None:
        for seq in range(3):
            client.sendall(stamped(seq, time.monotonic_ns()))
            time.sleep(0.02)
        assert read(client, 3 * len(stamped(0, 0)))

    log = exchanged(echo, Delay(300.0, hold_ms=2.0, every=4), talk)
    moments_ns = np.unique(log.due_ns)  # a server that was held up echoes several in one piece
    assert (np.diff(moments_ns) == APART_NS).all()
    assert APART_NS > LOOK_AWAY_NS
    assert len(log.due_ns) == 3


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
