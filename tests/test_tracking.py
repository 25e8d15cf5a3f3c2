"""Another host's clock followed while it is used: what is said of its error afterwards bounds the true one."""

from __future__ import annotations

import time

import pytest

from loadgen.clocks import ClockServer
from loadgen.errors import HostError
from loadgen.tracking import FIRST_TRIPS, Tracker, clock_id, together

OFFSET_NS = 777_000_000_000_123
PPM = 80.0


def test_what_was_used_of_a_clock_that_drifts_lies_within_the_error_told_afterwards() -> None:
    """A reference that is far ahead and runs faster: every correction that was used errs by no more than the record."""
    began_ns = time.monotonic_ns()

    def reference() -> int:
        now_ns = time.monotonic_ns()
        return now_ns + OFFSET_NS + round((now_ns - began_ns) * PPM * 1e-6)

    used: list[tuple[int, int]] = []
    with ClockServer(clock=reference) as server, Tracker(server.address, every_s=0.05) as tracker:
        tracker.begin()
        while len(used) < 60:
            now_ns = time.monotonic_ns()
            used.append((now_ns, tracker.ahead_ns(now_ns)))
            time.sleep(0.01)
        found = tracker.record()
    worst_ns = max(abs(at + ahead - (at + OFFSET_NS + round((at - began_ns) * PPM * 1e-6))) for at, ahead in used)
    assert worst_ns <= found["error_ns"]
    assert abs(found["offset_ns"] - OFFSET_NS) < 100_000_000
    assert found["samples"] > FIRST_TRIPS / 2  # the quicker half of all trips, of which there were more than the first


def test_a_reference_that_is_not_there_is_one_line() -> None:
    """No server, no tracker: the error names host and port."""
    with ClockServer() as server:
        port = server.address[1]
    with pytest.raises(HostError, match=f"clock of 127.0.0.1, UDP port {port}: no answer"):
        Tracker(("127.0.0.1", port))


def clock(error_ns: int, samples: int = 40, offset_ns: int = 5, source: str = "tsc") -> dict[str, object]:
    """A worker's record."""
    return {
        "source": source,
        "offset_ns": offset_ns,
        "error_ns": error_ns,
        "drift_ppm": 1.0,
        "samples": samples,
        "changed": False,
    }


def test_the_errors_of_the_two_ends_add_up_and_one_end_has_none() -> None:
    """Between two workers it is the sum, of the worst pair; on one worker, and on one clock, nothing is added."""
    clocks = {"w0": clock(30), "w1": clock(500), "w2": clock(1, samples=0, offset_ns=0), "w3": clock(1, 0, 0)}
    assert together(clocks, {"w0"}, {"w1", "w2"})["error_ns"] == 530
    assert together(clocks, {"w0"}, {"w2"})["error_ns"] == 31
    assert together(clocks, {"w1"}, {"w1"})["error_ns"] < 10
    assert together(clocks, {"w2"}, {"w3"})["error_ns"] < 10


def test_a_clock_has_a_name_of_its_own() -> None:
    """Processes of one boot and time namespace read one clock, and say so by one name."""
    assert clock_id() == clock_id() != ""
