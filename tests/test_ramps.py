"""Ramps: the rate at which response times leave the ground, from levels made up, and ramps on real brokers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import trial as invented

from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.levels import Levels
from loadgen.plan import Profile, Trial, make_plan
from loadgen.ramps import PARTS_MIN, risen
from loadgen.record import completed
from loadgen.recorder import Recorder
from loadgen.report.phases import notes
from loadgen.report.points import comparisons
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint

SECOND_NS = 1_000_000_000
GROUND_NS = 1_000_000


def planned(broker: BrokerName, rate: Rate, warmup_s: float, duration_s: float) -> Trial:
    """A trial of one point."""
    part: dict[str, Any] = {broker: RabbitMQ() if broker == "rabbitmq" else Kafka()}
    scenario = Scenario(name="ramp", question="?", message=Message(size_bytes=200), rate=rate, **part)
    return make_plan([scenario], Profile("test", warmup_s, duration_s, 1)).trials[0]


def levels_of(seconds: list[float], messages: int = 20) -> Levels:
    """Levels of a window whose seconds have this response time (ns) each."""
    levels, recorder = Levels(), Recorder(("e2e",), origin_ns=0)
    for second, value in enumerate(seconds):
        recorder.record("e2e", second * SECOND_NS, np.full(messages, value, np.int64))
    for delta in recorder.take():
        levels.add(delta)
    return levels


@given(st.integers(PARTS_MIN, 40), st.integers(0, 40), st.booleans())
def test_the_ground_is_left_where_all_that_follows_lies_above(seconds: int, slow: int, is_falling: bool) -> None:
    """Up and down: the last seconds, at the highest rates, take three times as long as all others."""
    slow = min(slow, seconds // 2)
    times = [GROUND_NS] * (seconds - slow) + [3 * GROUND_NS] * slow
    rate = Rate.ramp(100 * seconds, 0.001) if is_falling else Rate.ramp(0.001, 100 * seconds)
    found = risen(planned("kafka", rate, 0, seconds), levels_of(times[::-1] if is_falling else times))
    assert found is not None
    assert found["ground_ns"] == pytest.approx(GROUND_NS, rel=0.01)
    assert found["top_msgs_per_s"] == pytest.approx(100 * seconds - 50, rel=0.01)
    left = None if slow < 2 else pytest.approx(100 * (seconds - slow) + 50, rel=0.01)
    assert found["left_at_msgs_per_s"] == left


def test_a_pause_on_the_way_is_no_rise() -> None:
    """Of what comes back to the ground nobody says that it was left; warm-up counts for the rate, not as a second."""
    times = [GROUND_NS] * 3 + [50 * GROUND_NS] * 3 + [GROUND_NS] + [4 * GROUND_NS] * 3
    found = risen(planned("kafka", Rate.ramp(100, 1_300), 2, 10), levels_of(times))
    assert found is not None
    assert found["left_at_msgs_per_s"] == pytest.approx(100 + 100 * (2 + 7.5))
    assert found["top_ns"] == pytest.approx(4 * GROUND_NS, rel=0.01)


def test_too_little_is_no_ramp() -> None:
    """Seven seconds, ten with too few messages in them, and any other rate."""
    ramp = planned("kafka", Rate.ramp(100, 200), 0, 10)
    assert risen(ramp, levels_of([GROUND_NS] * 7)) is None
    assert risen(ramp, levels_of([GROUND_NS] * 10, messages=9)) is None
    assert risen(planned("kafka", Rate.fixed(100), 0, 10), levels_of([GROUND_NS] * 10)) is None


def test_the_report_says_where_the_ground_was_left() -> None:
    """Medians over repeats, how many of them left it, and what none did."""
    ramp = {"ground_ns": 800_000.0, "left_at_msgs_per_s": 4_000.0, "top_ns": 9e6, "top_msgs_per_s": 5_900.0}
    flat = {**ramp, "left_at_msgs_per_s": None, "top_ns": 1e6}
    rate = Rate.ramp(200, 6_000).model_dump()
    both = [
        completed({**invented("kafka"), "rate": rate, "ramp": each, "repeat": number, "id": str(number)})
        for number, each in enumerate((ramp, flat), 1)
    ]
    (comparison,) = comparisons(both)
    (note,) = notes(comparison.points)
    assert note.endswith(
        "response times of 0.800 ms at the lowest rates are more than doubled from 4.00 k msg/s on (1 of 2 repeats); "
        "5.00 ms at 5.90 k msg/s"
    )
    (comparison,) = comparisons(both[1:])
    assert notes(comparison.points)[0].endswith("and not twice that up to 5.90 k msg/s")


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_a_ramp_on_a_real_broker(endpoints: dict[BrokerName, Endpoint], broker: BrokerName) -> None:
    """As many come as the rate integrates to, and that it changes casts no doubt on the trial."""
    trial = planned(broker, Rate.ramp(200, 800), 0.5, 1.0)
    record, outcome = run_trial(trial, Setting(endpoints[broker], lambda _: None))
    assert outcome.error is None, outcome.traceback
    assert record["sent"] == record["received"] == 750
    assert record["latency_ns"]["e2e"]["count"] == pytest.approx(600, abs=1)
    assert {check["name"]: check["passed"] for check in record["verdict"]["checks"]}["steady state"] is True
    assert record["ramp"] is None, "a second is too little to tell"
