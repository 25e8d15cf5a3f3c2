"""What the shared counters say of a trial: steady or not, growing or not, and Little's law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from loadgen import RabbitMQ, Rate, Scenario
from loadgen import flow as flow_module
from loadgen.agent import SECOND_NS
from loadgen.board import Cell
from loadgen.driver import Gauge
from loadgen.drivers.memory import memory_endpoint
from loadgen.events import Event
from loadgen.fleet import Outcome
from loadgen.flow import Flow, is_growing, turn_s
from loadgen.judging import _flow_facts, _settled
from loadgen.observations import Columns, Observations, Series
from loadgen.plan import Profile, make_plan
from loadgen.trial import Live

STEP_NS = SECOND_NS // 20


@dataclass
class Counters:
    """A board whose counters are set by hand."""

    sent: int = 0
    received: int = 0

    def total(self, cell: Cell) -> int:
        """As a board's."""
        return {Cell.SENT: self.sent, Cell.RECEIVED: self.received}[cell]


LEVEL_NS = np.full(10, 1e6)


def flow(rates_per_s: np.ndarray[Any, Any], under_way: np.ndarray[Any, Any] | float) -> Flow:
    """Samples every 50 ms of a trial with these rates, and this number under way."""
    made, counters = Flow(), Counters()
    received = np.cumsum(rates_per_s / 20)
    sent = received + under_way
    for index, (out, into) in enumerate(zip(sent, received, strict=True)):
        counters.sent, counters.received = round(out), round(into)
        made.sample(counters, index * STEP_NS)  # type: ignore[arg-type]
    return made


def noisy(seconds: float, rate_per_s: float, seed: int = 1) -> np.ndarray[Any, Any]:
    """Rates that vary by 3 % from sample to sample."""
    return rate_per_s * np.exp(np.random.default_rng(seed).normal(0, 0.03, round(20 * seconds)))


def test_a_steady_closed_loop_keeps_its_whole_window() -> None:
    """Noise alone is no reason to leave anything out."""
    found = flow(noisy(12, 50_000), 1_000).settled(0, 2, 10, consumed=True, is_open=False, levels_ns=LEVEL_NS)
    assert (found.cut_s, found.steady) == (0, True)


def test_a_slow_start_that_outlasts_the_warm_up_is_left_out_in_whole_seconds() -> None:
    """Half the rate for 1.5 s after the planned warm-up costs two seconds of the window, and is said."""
    rates = np.concatenate([noisy(3.5, 25_000), noisy(8.5, 50_000)])
    found = flow(rates, 1_000).settled(0, 2, 10, consumed=True, is_open=False, levels_ns=LEVEL_NS)
    assert found.cut_s == 2
    assert found.steady is True
    assert "left out" in found.reason


@pytest.mark.parametrize(("window_s", "slow_s"), [(5, 2.3), (15, 7.4), (3, 1.4)])
def test_a_slow_start_that_cannot_be_left_out_is_not_steady(window_s: float, slow_s: float) -> None:
    """In whole seconds it is more than half of the window: what stays in the mean is said."""
    rates = np.concatenate([noisy(2 + slow_s, 25_000), noisy(window_s - slow_s, 50_000)])
    found = flow(rates, 1_000).settled(0, 2, window_s, consumed=True, is_open=False, levels_ns=LEVEL_NS)
    assert (found.cut_s, found.steady) == (0, False)
    assert "over half of the window" in found.reason


def observed(*noted: Event) -> Observations:
    """Of an observer that saw nothing by itself."""
    nothing = Series.of(Columns())
    return Observations(0, SECOND_NS, SECOND_NS, (), nothing, nothing, nothing, noted=noted)


@pytest.mark.parametrize(
    ("noted", "cut_s", "steady"),
    [
        ((), 2, True),
        ((Event("outage", SECOND_NS, 3 * SECOND_NS, "producer0 without a connection"),), 0, False),
        ((Event("outage", 0, SECOND_NS, "producer0 without a connection"),), 2, True),  # that ended in the warm-up
        ((Event("outage", 9 * SECOND_NS, 10 * SECOND_NS, "producer0 without a connection"),), 2, True),
        ((Event("gc pause", 2 * SECOND_NS, 3 * SECOND_NS, "young"),), 2, True),
    ],
)
def test_seconds_without_a_connection_are_no_warm_up(noted: tuple[Event, ...], cut_s: int, steady: bool) -> None:
    """What a lost connection did to the first seconds stays in the window, and the trial is not called steady."""
    scenario = Scenario(name="cut", question="?", rate=Rate.saturate(), rabbitmq=RabbitMQ())
    (trial,) = make_plan([scenario], Profile("test", 2.0, 10.0, 1), brokers=("rabbitmq",)).trials
    live = Live(trial, memory_endpoint("rabbitmq"), None, lambda _: None, lambda _: Gauge(0))
    live.flow = flow(np.concatenate([noisy(3.5, 25_000), noisy(8.5, 50_000)]), 1_000)
    found = _settled(trial, live, Outcome(), observed(*noted), has_gone=False)
    assert (found.cut_s, found.steady) == (cut_s, steady)


def test_a_rate_that_falls_all_the_time_is_never_steady() -> None:
    """No part of it is cut: there is nothing steady to keep."""
    rates = noisy(12, 50_000) * np.linspace(1.5, 0.5, 240)
    found = flow(rates, 1_000).settled(0, 2, 10, consumed=True, is_open=False, levels_ns=LEVEL_NS)
    assert (found.cut_s, found.steady) == (0, False)


@pytest.mark.parametrize(
    ("levels_ms", "steady", "weighs"),
    [
        ([1, 1.1, 0.9, 1, 1.2, 1, 0.8, 1, 1, 1.1], True, True),
        ([1, 1, 1, 1], True, True),
        ([1, 1, 1, 90], True, True),  # a pause is a finding, and no other state
        ([1, 1, 90, 90], None, True),  # half of so short a window: who knows
        ([4, 4.1, 4.2, 4.3, 1, 1.1, 1.2, 1.3], False, True),
        ([1, 1, 1], None, False),
        ([], None, False),
    ],
)
def test_with_few_messages_under_way_response_times_tell_whether_it_was_steady(
    levels_ms: list[float], steady: bool | None, weighs: bool
) -> None:
    """The number under way is 0 or 1 and says nothing; where too little was sent to tell, that is nobody's fault."""
    found = flow(noisy(12, 100), 1).settled(
        0, 2, 10, consumed=True, is_open=True, levels_ns=1e6 * np.array(levels_ms, np.float64)
    )
    assert (found.cut_s, found.steady, found.weighs) == (0, steady, weighs)
    assert found.reason.startswith("fewer than 20 messages under way on average; of response times, ")


def test_with_more_under_way_response_times_are_not_asked() -> None:
    """The gauge tells by itself."""
    rising = 1e6 * np.arange(1.0, 11.0)
    assert flow(noisy(12, 50_000), 1_000).settled(
        0, 2, 10, consumed=True, is_open=True, levels_ns=rising
    ).steady  # fmt: skip


def test_without_consumers_an_open_loop_cannot_tell() -> None:
    """Nobody receives: there is no number under way."""
    assert flow(noisy(12, 100), 1).settled(0, 2, 10, consumed=False, is_open=True, levels_ns=LEVEL_NS).steady is None


@pytest.mark.parametrize(("growth_per_s", "expected"), [(0.0, False), (30.0, False), (500.0, True)])
def test_a_backlog_grows_where_its_slope_is_shown_and_matters(growth_per_s: float, expected: bool) -> None:
    """A hundredth of the rate is within what a carried rate may lack; a twentieth is not."""
    noise = np.random.default_rng(3).normal(0, 20, 240)
    under_way = 500 + noise + growth_per_s * np.arange(240) / 20
    summary = flow(noisy(12, 10_000), under_way).summary(0, 12)
    assert summary["samples"] == 240
    assert is_growing(summary, 10_000) is expected


@pytest.mark.parametrize(("samples", "expected"), [(3, None), (19, None), (20, False)])
def test_of_too_few_samples_nobody_knows_whether_a_backlog_grew(samples: int, expected: bool | None) -> None:
    """A slope without an interval is no test, and what was not tested did not pass."""
    summary = flow(noisy(12, 10_000), 500).summary(0, samples / 20)
    assert summary["samples"] == samples
    assert is_growing(summary, 10_000) is expected
    steady = {"steady": True, "reason": "?", "weighs": True}
    seen = {"steady": steady, "under_way": summary, "offered_msgs_per_s": 10_000, "subscribers": 1}
    told = f"{samples} samples are too few to test its slope" if expected is None else "it did not grow"
    assert _flow_facts(seen)["backlog"] == (None if expected is None else True, told)


def record(rate: float, mean_s: float, **more: Any) -> dict[str, Any]:
    """The fields of a trial's record that Little's law looks at."""
    return {
        "latency_ns": {"e2e_service": {"mean": mean_s * 1e9}},
        "achieved_msgs_per_s": rate,
        "window_s": 12.0,
        "resolution_ns": {"p50": 1e5},
        **more,
    }


@pytest.mark.parametrize(("mean_s", "expected"), [(0.02, True), (0.04, False), (0.01, False)])
def test_littles_law_finds_a_latency_that_does_not_fit_the_gauge(mean_s: float, expected: bool) -> None:
    """10,000 a second for 20 ms each are 200 under way; half or twice that latency is a mistake somewhere."""
    noise = np.random.default_rng(5).normal(0, 10, 240)
    gauge = flow(noisy(12, 10_000), 200 + noise)
    assert gauge.little(record(10_000, mean_s), 0)[0] is expected


def test_littles_law_says_nothing_where_messages_were_lost() -> None:
    """A lost message never leaves the gauge."""
    gauge = flow(noisy(12, 10_000), 200)
    assert gauge.little(record(10_000, 0.02, lost=3), 0)[0] is None


def test_samples_keep_their_distance() -> None:
    """A fleet that turns a thousand times a second is sampled forty times."""
    made = Flow()
    for index in range(1_000):
        made.sample(Counters(), index * 1_000_000)  # type: ignore[arg-type]
    at_s, _, _ = made.between(0, SECOND_NS)
    assert 40 <= len(at_s) <= 41


@pytest.mark.parametrize("period_s", [0.01, 0.045, 0.047, 0.05, 0.1])
def test_what_goes_round_is_not_read_in_step(period_s: float) -> None:
    """Each phase of a cycle is read as often as the others, whatever the cycle's length."""
    flow_module.RANDOM.seed(7)
    phases = np.cumsum([turn_s() for _ in range(4_000)]) / period_s % 1
    assert np.histogram(phases, bins=4, range=(0, 1))[0] == pytest.approx(np.full(4, 1_000), rel=0.15)
