"""Bursts: where they lie in a window, how long what piled up took to be worked off, and on real brokers that it did."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from verdicts import due

from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.bursts import spans_s, worked_off, worked_off_right
from loadgen.cost import FRAMING_BYTES
from loadgen.errors import ScenarioError
from loadgen.flow import Flow
from loadgen.pacer import NS_PER_S, make_pacer
from loadgen.plan import Profile, Trial, make_plan
from loadgen.report import phases
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint

STEP_S = 0.05
START_NS = 7 * NS_PER_S


def trials(rate: Rate, warmup_s: float, duration_s: float, **changes: Any) -> tuple[Trial, ...]:
    """Both brokers' trials at that rate."""
    values: dict[str, Any] = {"name": "burst", "question": "?", "message": Message(size_bytes=200), "rate": rate}
    scenario = Scenario(**{**values, "rabbitmq": RabbitMQ(prefetch=10), "kafka": Kafka(), **changes})
    return make_plan([scenario], Profile("test", warmup_s, duration_s, 1)).trials


def served(trial: Trial, carried_msgs_per_s: float) -> Flow:
    """Readings of a trial whose consumers take so many messages a second, as long as any are due."""
    flow, received = Flow(), 0.0
    pacer = make_pacer(trial.rate, 0, 1, 0.0, seed=0)
    for step in range(round((trial.warmup_s + trial.duration_s) / STEP_S)):
        due = pacer.due(round(step * STEP_S * NS_PER_S))
        received = min(due, received + carried_msgs_per_s * STEP_S)
        flow.enter(START_NS + round(step * STEP_S * NS_PER_S), due, round(received))
    return flow


def test_bursts_count_with_the_rest_that_follows_them() -> None:
    """Those that begin in the warm-up, or too late in the window, do not; without any there is no trial."""
    rate = Rate.burst(100, 5, 0.5, 3)
    assert spans_s(rate, 2, 4) == [(3.5, 6)]
    assert spans_s(rate, 3, 8.9) == [(3.5, 6), (6.5, 9)]
    assert spans_s(rate, 0, 2.9) == []
    with pytest.raises(ScenarioError, match=r"every_s = 3: no burst .* from 1 to 4\.9 s; expected a shorter every_s"):
        trials(rate, 1, 3.9)


def test_a_burst_is_worked_off_when_what_was_due_has_been_received() -> None:
    """Of 800 due in half a second and 300 received, the other 500 are gone 1.25 s later, but for those that are few."""
    trial, _ = trials(Rate.burst(200, 8, 0.5, 3), 3, 6)
    found = worked_off(trial, served(trial, 600), START_NS)
    assert found is not None
    assert (found["count"], found["worked_off"]) == (2, 2)
    assert found["owed_msgs_max"] == pytest.approx(500, abs=30)
    assert found["median_s"] == found["max_s"] == pytest.approx((500 - 20) / 400, abs=2 * STEP_S)
    assert worked_off_right(found) == (True, "each of 2 bursts was worked off before the next one")
    for median_s, after in ((0.5, "0.50 s after"), (0.001, "within 0.05 s of")):
        told = phases._worked_off([{"bursts": {**found, "median_s": median_s}}])
        assert f"worked off {after} a burst’s end (2 of 2 bursts)" in told


def test_a_backlog_that_outlives_the_rest_is_not_worked_off() -> None:
    """The verdict's finding says how many, and the report's sentence too; nobody's consumers have no bursts at all."""
    trial, _ = trials(Rate.burst(200, 8, 0.5, 3), 3, 6)
    found = worked_off(trial, served(trial, 350), START_NS)
    assert found is not None
    assert (found["worked_off"], found["median_s"], found["max_s"]) == (0, None, None)
    assert worked_off_right(found) == (False, "2 of 2 bursts were not worked off when the next one began")
    assert "none of 2 bursts was worked off" in phases._worked_off([{"bursts": found}])
    unread, _ = trials(Rate.burst(200, 8, 0.5, 3), 3, 6, consumers=0)
    assert worked_off(unread, Flow(), START_NS) is None
    brief = replace(trial, duration_s=0.5)  # as a window that users leave under Locust
    assert worked_off(brief, served(brief, 350), START_NS) is None
    assert worked_off(trial, Flow(), START_NS) is None


def test_a_sweep_of_bursts_has_its_names_and_words() -> None:
    """Each strength is a point of both brokers; the plan's line and a trial's bytes know it."""
    found = trials(Rate.burst(200, [2, 8], 0.5, 3), 2, 4)
    assert [(each.broker, each.rate.burst_times) for each in sorted(found, key=lambda each: each.id)] == [
        ("kafka", 2), ("kafka", 8), ("rabbitmq", 2), ("rabbitmq", 8),
    ]  # fmt: skip
    weak, strong = sorted((each for each in found if each.broker == "kafka"), key=lambda each: each.id)
    assert "burst 200/s, 8 times that for 0.5 s every 3 s" in strong.describe()
    for each in (weak, strong):
        length_s = each.warmup_s + each.duration_s
        due = make_pacer(each.rate, 0, 1, length_s, seed=0).due(round(length_s * NS_PER_S))
        stored = each.stored_bytes_max / (each.message.mean_size_bytes + FRAMING_BYTES)
        assert due <= stored < 1.5 * due, "at most what is sent, and not as if all of it were one burst"


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_bursts_on_a_real_broker(endpoints: dict[BrokerName, Endpoint], broker: BrokerName) -> None:
    """All that was due came, at the window's mean rate; slow consumers owe what they would not at an even one."""
    rate = Rate.burst(200, 8, burst_s=0.25, every_s=0.75)
    (trial,) = (each for each in trials(rate, 0.75, 1.5, think_ms=1) if each.broker == broker)
    record, outcome = run_trial(trial, Setting(endpoints[broker], lambda _: None))
    assert outcome.error is None, outcome.traceback
    assert due(record) == 3 * (400 + 100)
    assert record["sent"] == record["received"]
    assert record["offered_msgs_per_s"] == pytest.approx(1_000 / 1.5)
    assert record["latency_ns"]["e2e"]["count"] == 1_000
    bursts = record["bursts"]
    assert bursts["count"] == 2
    assert bursts["owed_msgs_max"] >= 400 - 250 - 60  # a consumer takes at most one in a ms
    checks = {check["name"]: check for check in record["verdict"]["checks"]}
    assert checks["backlog"]["reason"] == worked_off_right(bursts)[1]
    assert checks["steady state"]["passed"] is True
