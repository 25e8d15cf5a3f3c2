"""Tests of loadgen.doctor: what it says of a machine, on the real one and on one that is slow from outside."""

from __future__ import annotations

import itertools

import pytest

from loadgen import doctor


def test_every_finding_says_what_it_is_of_and_what_to_do() -> None:
    """On the machine that runs the tests no package is missing, and every finding has its words."""
    found = doctor.examine()
    assert {"python", "kio", "disk", "quiet", "steal", "pace"} <= {each["what"] for each in found}
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
