"""Tests of loadgen.doctor: what it says of a machine, on the real one and on one that is slow from outside."""

from __future__ import annotations

import itertools

import pytest

from loadgen import doctor


def test_every_finding_says_what_it_is_of_and_what_to_do() -> None:
    """On the machine that runs the tests no package is missing, and every finding has its words."""
    found = doctor.examine()
    assert {"python", "kio", "disk", "quiet", "steal", "pace", "wake-ups"} <= {each["what"] for each in found}
    assert all(each["status"] in {"ok", "missing", "warning"} and each["text"] for each in found)
    assert not [each for each in found if each["status"] == "missing" and each["what"] in {"numpy", "kio", "pandas"}]


@pytest.mark.parametrize(("times_ns", "status"), [((20_000, 21_000), "ok"), ((20_000, 35_000), "warning")])
def test_a_cpu_whose_pace_varies_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, times_ns: tuple[int, int], status: str
) -> None:
    """The same work in 20 or 35 µs of CPU is a core that something outside slows down; 21 is its own noise."""
    turns = itertools.cycle(times_ns)
    monkeypatch.setattr(doctor, "work_ns", lambda: next(turns))
    monkeypatch.setattr(doctor, "PACED_EVERY_S", 0)
    found = doctor._pace()
    assert (found["status"], found["what"]) == (status, "pace")
    assert f"20 to {times_ns[1] // 1000} µs" in found["text"]


@pytest.mark.parametrize(("late_ns", "status"), [(400_000, "ok"), (1_300_000, "warning")])
def test_a_machine_that_wakes_late_is_warned_of(monkeypatch: pytest.MonkeyPatch, late_ns: int, status: str) -> None:
    """One sleep in fifty that ends 1.3 ms late is more than a verdict allows; 0.4 ms is not."""
    monkeypatch.setattr(doctor, "_slept_late_ns", lambda: [60_000] * 980 + [late_ns] * 20)
    found = doctor._wake_ups()
    assert (found["status"], found["what"]) == (status, "wake-ups")
    assert found["text"].startswith(f"sleeps end 0.06 ms late (p50), {late_ns / 1e6:.2f} ms (p99)")


def test_sleeps_end_late_and_never_early() -> None:
    """Each of the sleeps is told, by how much it was late."""
    late_ns = doctor._slept_late_ns()
    assert len(late_ns) == doctor.WOKEN
    assert min(late_ns) >= 0
