"""Tests of loadgen.facts: what a trial's record says to its verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loadgen.facts import facts_of
from loadgen.histogram import Histogram


def trial_record(**changes: Any) -> dict[str, Any]:
    """The part of a small trial's record that the facts are taken from."""
    return {
        "durability": "broker",
        "rate": {"kind": "saturate"},
        "consumers": 1,
        "settings": {},
        "window_s": 1.0,
        "sent": 10,
        "received": 10,
        "latency_ns": {"schedule_lag": None, "e2e": None},
        "broker_counts": {"stored": None, "depth_at_end": None},
        "out_of_range": 0,
        "offered_msgs_per_s": None,
        "sent_msgs_per_s": 10.0,
        "goodput_msgs_per_s": 10.0,
        "cpu_s": {},
        "blocked_share": 0.0,
        **changes,
    }


@pytest.mark.parametrize(
    ("depth", "counted", "drained"), [(0, False, True), (3, True, False), (None, True, True), (None, False, False)]
)
def test_the_broker_decides_whether_a_queue_was_drained(depth: int | None, counted: bool, drained: bool) -> None:
    """A duplicate in place of a missing message makes the counts equal; a depth that is known is not deceived."""
    record = trial_record(broker_counts={"stored": None, "depth_at_end": depth})
    assert facts_of(record, drained=counted, due=None).drained is drained


def summary_of(*values_ns: int) -> dict[str, Any]:
    """A latency's summary as a record holds it."""
    histogram = Histogram()
    histogram.add(np.array(values_ns, np.int64))
    return histogram.summary()


@pytest.mark.parametrize(("value_ns", "widest"), [(4, 1 / 4), (2_000, 1 / 2_000), (5_000_000, 1 / 1024)])
def test_a_bucket_is_as_coarse_as_it_is_wide(value_ns: int, widest: float) -> None:
    """Single nanoseconds are coarse beside a few of them; three digits are kept of everything longer."""
    summary = summary_of(value_ns)
    seen = facts_of(trial_record(latency_ns={"ack": summary}), drained=True, due=None)
    assert seen.bucket_share_max is not None
    assert widest / 2.1 < seen.bucket_share_max <= widest
    assert facts_of(trial_record(), drained=True, due=None).bucket_share_max is None


def test_what_the_consumer_resolves_and_the_clock_knows_are_facts() -> None:
    """They come from the record; its own clock, of many hosts, goes before that of the observer's host."""
    clock = {"source": "tsc", "offset_ns": 0, "error_ns": 1, "drift_ppm": 0.0, "samples": 0, "changed": False}
    record = trial_record(
        latency_ns={"e2e": summary_of(1_000, 9_000)},
        resolution_ns={"p50": 5, "p99": 7},
        clock={**clock, "error_ns": 77, "changed": True},
    )
    seen = facts_of(record, drained=True, due=None)
    assert (seen.resolution_p50_ns, seen.resolution_p99_ns) == (5, 7)
    assert (seen.e2e_p50_ns, seen.e2e_p99_ns) == (1_000, record["latency_ns"]["e2e"]["p99"])
    assert (seen.clock_source, seen.clock_error_ns, seen.clock_changed) == ("tsc", 77, True)
    assert facts_of(trial_record(), drained=True, due=None).clock_error_ns is None


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, None),
        ({"think": {"kind": "fixed", "mean_ms": 0.0}}, None),
        ({"think": {"kind": "fixed", "mean_ms": 40.0}}, 0.4),
        ({"think": {"kind": "fixed", "mean_ms": 40.0}, "consumers": 2, "subscribers": 2}, 0.1),
        ({"think": {"kind": "fixed", "mean_ms": 40.0}, "membership": {}}, None),
    ],
)
def test_how_busy_consumers_are_is_their_rate_times_their_work(changes: dict[str, Any], share: float | None) -> None:
    """10 messages a second of 40 ms each keep one consumer busy 40 % of the time."""
    assert facts_of(trial_record(**changes), drained=True, due=None).consumers_busy_share == share
