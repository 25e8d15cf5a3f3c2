"""Limits of a Locust test: read, kept, missed, and refused where they mean nothing."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.errors import ScenarioError
from loadgen.locust.thresholds import missed, parse_threshold

LATENCY = {"p50": 400_000, "p99": 9_000_000}
RECORD: dict[str, Any] = {
    "id": "latency/kafka/kafka/1",
    "broker": "kafka",
    "latency_ns": {"e2e": LATENCY, "ack": None},
    "achieved_msgs_per_s": 2_000.0,
    "goodput_msgs_per_s": None,
    "errors": {"nack": 2},
}


@pytest.mark.parametrize(
    ("text", "is_missed"),
    [
        ("p99_ms<10", False),
        ("p99_ms<9", True),
        ("p99_ms<=9", False),
        ("kafka.p50_ms<0.1", True),
        ("rabbitmq.p50_ms<0.1", False),
        ("achieved_msgs_per_s>=2e3", False),
        ("errors<1", True),
        ("goodput_msgs_per_s>0", True),
    ],
)
def test_a_limit_is_kept_or_missed(text: str, is_missed: bool) -> None:
    """Each limit is held against its own broker's trials; what was not measured does not keep one."""
    lines = missed([parse_threshold(text)], [RECORD])
    assert bool(lines) == is_missed
    assert all(RECORD["id"] in line for line in lines)


@pytest.mark.parametrize("text", ["p98_ms<1", "p99_ms=1", "p99_ms<", "<1", "kafka.p99_ms<1.2.3", "mysql.p99_ms<1"])
def test_a_limit_that_means_nothing_is_refused(text: str) -> None:
    """One line that names the option."""
    with pytest.raises(ScenarioError, match="--threshold"):
        parse_threshold(text)
