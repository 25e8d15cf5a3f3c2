"""The gate's own bench: what it says of recorded trials, and of a real broker whose setting was made worse."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import gate
import gate_resampled
import gate_tried
import pytest
from gate_tried import Checked, Ci, Setting
from prove import pairs

from loadgen import cli
from loadgen.gate import judging
from loadgen.stats.confidence import Ratio

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from prove.proof import Row

    from loadgen.endpoint import Endpoint

RESAMPLES = 400
LINGER = Setting(
    "latency",
    "kafka.linger_ms=600",
    "e2e_p50_ms",
    is_lower_worse=False,
    also=("rate=50", "size_bytes=64", "kafka.linger_ms=50"),
    effect="400%",
    neglect="50%",
)
"""Both medians are times that the driver is told to wait: what disturbs a machine adds to them, and makes neither one
of the other. So few and small messages that no batch is full before."""


@pytest.fixture(scope="module")
def pool() -> gate_resampled.Pool:
    """Log-normal trials that vary by 5 %."""
    return gate_resampled.of_rates(replace(pairs.invented(0.05, 60, seed=3), title="RabbitMQ, log-normal"))


def failing(rows: Iterable[Row]) -> list[str]:
    """The rows that did not hold, by what stands after the last colon of their names."""
    return [row.name.rpartition(": ")[2] for row in rows if not row.ok]


# --- resampled ---


def test_the_gate_keeps_its_promise_on_recorded_trials() -> None:
    """Kafka's trials of the repository: few alarms, a tenth slower is found, and those in turn are told beside it."""
    (kafka,) = [each for each in gate_resampled.pools(pairs.KEPT.parent) if each.title.startswith("Kafka 4") and
                each.title.endswith("as it goes")]  # fmt: skip
    limit, *_ = kafka.limits
    assert failing(gate_resampled.single(kafka, limit, 500)) == []
    (note,) = gate_resampled.notes([kafka])
    assert "80 trials that vary by 6.7%" in note
    assert "of 5: " in note


def test_open_loops_have_their_latencies_and_are_slower_by_them() -> None:
    """The p50 and the p99 of each half of a pair, and the rate that was asked for."""
    recorded = replace(pairs.invented_latencies(14, seed=1), title="Kafka, log-normal")
    opened = gate_resampled.of_latencies(recorded)
    assert [limit.metric.name for limit in opened.limits] == ["e2e_p50_ms", "e2e_p99_ms"]
    first, *_ = recorded.pairs
    assert [limit.metric.of(opened.trials[1]) for limit in opened.limits] == [first[1][0] / 1e6, first[1][1] / 1e6]
    slower = opened.worse(gate_resampled.SLOWER)[1]
    assert opened.limits[1].metric.of(slower) == pytest.approx(first[1][1] / 0.9e6)
    found = [row.name for row in gate_resampled.rows([opened], 20)]
    for name, asked in (("e2e_p50_ms", "10%"), ("e2e_p50_ms", "30%")):
        (told,) = [each for each in found if name in each and f"{asked} slower" in each]
        assert ("with replacement" in told) == (asked == "10%"), "a tenth of what varies so much takes more than halves"


def test_a_rule_that_takes_the_spread_for_known_is_noticed(
    pool: gate_resampled.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.64 standard errors of a few repeats are exceeded too often."""
    (limit,) = pool.limits
    monkeypatch.setattr(judging, "repeats_to_tell", lambda *_: None)  # it takes the longest, and decides nothing
    assert failing(gate_resampled.alarms("t", [limit], [pool], 4, RESAMPLES)) == []

    def by_normal(top: list[float], bottom: list[float], confidence: float) -> Ratio:
        logs = [[math.log(value) for value in values] for values in (top, bottom)]
        means = [math.fsum(each) / len(each) for each in logs]
        errors = [sum((value - mean) ** 2 for value in each) / (len(each) - 1) / len(each)
                  for each, mean in zip(logs, means, strict=True)]  # fmt: skip
        reach, told = 1.64 * math.sqrt(sum(errors)), means[0] - means[1]
        return Ratio(math.exp(told), math.exp(told - reach), math.exp(told + reach), len(top), confidence)

    monkeypatch.setattr(judging, "unpaired_ratio", by_normal)
    (said,) = failing(gate_resampled.alarms("t", [limit], [pool], 4, RESAMPLES))
    assert "which is neglected" in said


def test_too_few_repeats_are_noticed(pool: gate_resampled.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With half of the repeats that are recommended a tenth slower is found too seldom."""
    (limit,) = pool.limits
    assert failing(gate_resampled.single(pool, limit, RESAMPLES)) == []
    enough = gate_resampled.recommended(pool, limit)
    monkeypatch.setattr(gate_resampled, "recommended", lambda *_: enough // 2)
    assert "a tenth slower is found" in failing(gate_resampled.single(pool, limit, RESAMPLES))


# --- on a broker ---


def test_a_setting_made_worse_fails_and_restored_it_passes(
    kafka_endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CI does it, on a real broker: one line with metric, effect and interval; JUnit and summary hold the same."""
    assert kafka_endpoint.broker == "kafka"
    short = ("warmup_s=0.6", "duration_s=2.4")
    monkeypatch.setattr(cli, "_write_report", lambda *_: 0)  # seconds of charts that nobody looks at
    rows = list(gate_tried.made_worse("kafka", LINGER, tmp_path, repeats=3, short=short, is_alone=False))
    assert failing(rows) == [], rows
    assert [row.name.rpartition(": ")[2] for row in rows] == [
        "missed",
        "passes",
        "JUnit and summary as printed",
    ]


def test_what_comes_out_wrong_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    """Statuses, lines and files that are not what they should be, each by itself."""
    line = "missed: p: goodput_msgs_per_s -81.2% (-85.0% … -76.1% at 0.9, 30,000 msg/s → 5,640 msg/s)"
    verdict = ("missed", "p", line.removeprefix("missed: p: "))
    good = Checked(1, (line, "run: 1 missed"), (verdict,), (verdict,), (verdict,))
    metric = "goodput_msgs_per_s"
    assert gate_tried.is_missed("n", good, metric, is_lower_worse=True).ok
    assert not gate_tried.is_missed("n", good, metric, is_lower_worse=False).ok
    assert not gate_tried.is_missed("n", good, "e2e_p50_ms", is_lower_worse=True).ok
    assert not gate_tried.is_missed("n", replace(good, status=3), metric, is_lower_worse=True).ok
    bare = replace(good, lines=("missed: p: goodput_msgs_per_s -81.2% (30,000 msg/s → 5,640 msg/s)",))
    assert not gate_tried.is_missed("n", bare, metric, is_lower_worse=True).ok, "no interval"
    assert [gate_tried.not_missed("n", replace(good, status=status)).ok for status in (0, 1, 3)] == [True, False, True]
    assert [gate_tried.passes("n", replace(good, status=status)).ok for status in (0, 1, 3)] == [True, False, False]
    assert gate_tried.agreed("n", [good, good]).ok
    assert not gate_tried.agreed("n", [good, replace(good, junit=())]).ok
    assert not gate_tried.agreed("n", [replace(good, summary=(("kept", *verdict[1:]),))]).ok
    assert gate.told([gate_tried.passes("n", good)]) == 1
    assert capsys.readouterr().out.startswith("MISSED  n: passes: status 1, missed: p: ")


@pytest.mark.long
def test_a_run_that_fails_ends_the_trial_of_the_gate(tmp_path: Path) -> None:
    """Nothing is held against what was not measured."""
    with pytest.raises(gate_tried.TrialError, match="exit status 64"):
        Ci(tmp_path, "rabbitmq", "throughput", ("bogus=1",), is_alone=False).run()
