"""Tests of loadgen.clocks: the stated error bounds the true one, in simulated networks and over a real socket."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.clocks import ClockClient, ClockFit, ClockServer, Sample, fit, local_clock
from loadgen.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECOND_NS = 1_000_000_000


class World:
    """Two clocks: the client's is the true time, the reference's is ahead by `offset_ns` and runs `ppm` faster."""

    def __init__(self, offset_ns: int, ppm: float) -> None:
        self.offset_ns, self.ppm = offset_ns, ppm

    def reference(self, ns: int) -> int:
        """The reference's clock at the client's time `ns`."""
        return ns + self.offset_ns + round(ns * self.ppm * 1e-6)

    def round_trip(self, sent_ns: int, there_ns: int, busy_ns: int, back_ns: int) -> Sample:
        """What the two see of a request that takes so long each way, and so long to answer."""
        received_ns = sent_ns + there_ns
        answered_ns = received_ns + busy_ns
        return Sample(sent_ns, self.reference(received_ns), self.reference(answered_ns), answered_ns + back_ns)


DELAYS_NS = st.integers(0, 50_000_000)
TRIPS = st.tuples(st.integers(0, 3_600 * SECOND_NS), DELAYS_NS, st.integers(0, 1_000_000), DELAYS_NS)
WORLDS = st.builds(World, st.integers(-(10**16), 10**16), st.floats(-500, 500))


@given(WORLDS, st.lists(TRIPS, min_size=1, max_size=60), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_the_true_offset_lies_within_the_stated_error(
    world: World, trips: list[tuple[int, int, int, int]], shares: list[float]
) -> None:
    """However uneven the ways were, and at every moment between the first and the last sample."""
    samples = [world.round_trip(*trip) for trip in trips]
    found = fit(samples)
    first, last = min(each.at_ns for each in samples), max(each.at_ns for each in samples)
    for share in (0.0, 1.0, *shares):
        now_ns = first + round((last - first) * share)
        assert abs(found.to_reference(now_ns) - world.reference(now_ns)) <= found.error_ns


def holds(world: World, samples: list[Sample]) -> bool:
    """Whether the true offset lies within the stated error at the first and the last of the samples."""
    found = fit(samples)
    ends_ns = [samples[0].at_ns, samples[-1].at_ns]
    return all(abs(found.to_reference(ns) - world.reference(ns)) <= found.error_ns for ns in ends_ns)


@given(WORLDS)
def test_a_drift_that_the_ways_feign_is_in_the_error(world: World) -> None:
    """Ways that grow uneven look like a drift: the good sample that the line then misses tells how wrong it is."""
    second_ns, both_ns = SECOND_NS, 50_000_000
    good = world.round_trip(0, 1_000, 0, 1_000)
    feigned = [
        world.round_trip((30 + 4 * k) * second_ns, both_ns * k // 7, 0, both_ns * (7 - k) // 7) for k in range(8)
    ]
    assert holds(world, [good, *feigned])


@given(WORLDS)
def test_the_error_reaches_to_samples_that_were_not_used(world: World) -> None:
    """A slow first round trip lies before the best ones: the line errs more there than where it was fitted."""
    span_ns, way_ns = 160 * SECOND_NS, 1_000_000
    slow = world.round_trip(0, 400_000_000, 0, 400_000_000)
    first = world.round_trip(span_ns // 17, way_ns, 0, 0)
    last = world.round_trip(span_ns, 0, 0, way_ns)
    assert holds(world, [slow, first, last])


@given(WORLDS, TRIPS)
def test_one_round_trip_bounds_the_offset_by_half_of_its_way(world: World, trip: tuple[int, int, int, int]) -> None:
    """The bound of a sample holds for itself, and is little more than half of the time on the way."""
    sample = world.round_trip(*trip)
    true_ns = world.reference(sample.at_ns) - sample.at_ns
    assert abs(sample.offset_ns - true_ns) <= sample.error_ns
    on_the_way_ns = trip[1] + trip[3]
    assert sample.error_ns <= on_the_way_ns / 2 + 2e-3 * sum(trip[1:]) + 4


@given(WORLDS, st.integers(0, 1000), st.integers(2, 30))
def test_even_and_quick_ways_find_drift_and_offset(world: World, delay_ns: int, number: int) -> None:
    """With ways of at most a microsecond, a minute finds the drift; the error is little more than a way."""
    span_ns = 60 * SECOND_NS
    samples = [world.round_trip(k * span_ns // (number - 1), delay_ns, 0, delay_ns) for k in range(number)]
    found = fit(samples)
    assert found.drift_ppm == pytest.approx(world.ppm, abs=0.1)
    assert found.error_ns <= 1.25 * delay_ns + 100


def test_slow_round_trips_do_not_move_the_line() -> None:
    """Of each part of the time the quickest counts: a congested half changes neither line nor error."""
    world = World(123_456_789, 40.0)
    quick = [world.round_trip(k * SECOND_NS, 20_000, 1_000, 20_000) for k in range(10)]
    slow = [world.round_trip(k * SECOND_NS + 1_000_000, 9_000_000, 1_000, 20_000) for k in range(9)]
    alone, together = fit(quick), fit(quick + slow)
    assert together.error_ns == alone.error_ns
    assert together.offset_ns == alone.offset_ns
    assert together.samples == 19


def test_no_sample_is_no_estimate_and_a_single_one_has_no_drift() -> None:
    """Nothing is made up: without samples there is no line, with one no slope."""
    with pytest.raises(ValueError, match="no round trip"):
        fit([])
    assert fit([World(5, 0).round_trip(0, 10, 0, 10)]).drift_ppm is None


@given(
    st.builds(
        ClockFit,
        at_ns=st.integers(0, 10**15),
        offset_ns=st.integers(-(10**15), 10**15),
        drift_ppm=st.none() | st.floats(-1000, 1000),
        error_ns=st.just(1),
        samples=st.just(1),
    ),
    st.integers(-(10**13), 10**13),
)
def test_there_and_back_is_the_same_time(line: ClockFit, since_ns: int) -> None:
    """A time turned into the reference's and back is itself, but for the rounding."""
    now_ns = line.at_ns + since_ns
    assert abs(line.from_reference(line.to_reference(now_ns)) - now_ns) <= 2


OTHER_HOST = """
import sys, time
from loadgen.clocks import ClockServer
offset_ns, ppm, began_ns = (int(each) for each in sys.argv[1:])
def clock():
    now_ns = time.monotonic_ns()
    return now_ns + offset_ns + (now_ns - began_ns) * ppm // 1_000_000
with ClockServer(clock=clock) as server:
    print(server.address[1], flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(("offset_ns", "ppm"), [(7_000_000_123_456, 300), (-987_654_321, -450), (0, 0)])
def test_the_clock_of_another_process_is_found(offset_ns: int, ppm: int) -> None:
    """A clock that is shifted and drifts on purpose is followed over a real socket, within the stated error."""
    began_ns = time.monotonic_ns()
    command = [sys.executable, "-c", OTHER_HOST, str(offset_ns), str(ppm), str(began_ns)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        client = ClockClient(("127.0.0.1", int(other.stdout.readline())))
        for _ in range(8):
            client.sample(10, timeout_s=60)
            time.sleep(0.05)
        client.close()
        other.communicate("")
    found = client.fit()
    first, last = client.samples[0].at_ns, client.samples[-1].at_ns
    for now_ns in (first, (first + last) // 2, last):
        true_ns = offset_ns + (now_ns - began_ns) * ppm // 1_000_000
        assert abs(found.offset_ns_at(now_ns) - true_ns) <= found.error_ns
    # The line's two ends err by at most that much each, which bounds its slope.
    assert found.drift_ppm is not None
    assert abs(found.drift_ppm - ppm) <= 2e6 * found.error_ns / (last - first) + 1
    assert found.samples == 80


@pytest.fixture
def nobody() -> Iterator[tuple[str, int]]:
    """An address that is taken and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()


def test_a_clock_that_does_not_answer_is_an_error_for_people(nobody: tuple[str, int]) -> None:
    """One line that names the address and the firewall, and nothing is kept."""
    client = ClockClient(nobody)
    with pytest.raises(HostError, match=rf"clock of 127\.0\.0\.1, UDP port {nobody[1]}: no answer to 2 requests"):
        client.sample(2, timeout_s=0.01)
    assert client.samples == []
    client.close()


def test_an_address_in_use_is_an_error_for_people(nobody: tuple[str, int]) -> None:
    """One line, no traceback."""
    with pytest.raises(HostError, match="cannot be listened on"):
        ClockServer(*nobody)


def test_strange_messages_are_neither_answered_nor_believed() -> None:
    """What is no request gets no answer, and the server goes on to answer what is one."""
    with ClockServer() as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for text in (b"", b"hello", b"lgclock1" + bytes(500)):
            stranger.sendto(text, server.address)
        client = ClockClient(server.address)
        assert len(client.sample(3, timeout_s=10)) == 3
        client.close()
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(100)


def test_answers_to_earlier_requests_are_not_believed() -> None:
    """An answer of another number is passed over: its times are of another round trip."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        client = ClockClient(held.getsockname())
        held.connect(client._socket.getsockname())
        held.send(b"lgclock1" + bytes(24))
        with pytest.raises(HostError):
            client.sample(1, timeout_s=0.01)
        client.close()


def test_one_hosts_clock_is_its_own_reference(tmp_path: Path) -> None:
    """No offset, the error of its resolution, and whether the kernel changed its source meanwhile."""
    folder = tmp_path / "devices/system/clocksource/clocksource0"
    folder.mkdir(parents=True)
    (folder / "current_clocksource").write_text("hpet\n")
    seen = local_clock("tsc", tmp_path)
    assert (seen["source"], seen["changed"], seen["offset_ns"]) == ("hpet", True, 0)
    assert seen["error_ns"] >= 1
    assert local_clock("hpet", tmp_path)["changed"] is False
    assert local_clock(None, tmp_path)["changed"] is None
    assert local_clock("tsc", tmp_path / "none")["source"] is None


def test_both_records_have_the_same_fields(tmp_path: Path) -> None:
    """A run on one host and one on many are read alike."""
    line = fit([World(5, 0).round_trip(0, 10, 0, 10)])
    assert line.record(tmp_path).keys() == local_clock().keys()
    assert line.record(tmp_path)["error_ns"] == line.error_ns
