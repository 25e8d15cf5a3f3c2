"""Published shapes, judged on rates that have them, that have not, and of which nobody can tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from published import rows

from loadgen.analysis.shapes import PARITY, PARITY_RULES, SHAPES, Step, judged, sentences
from loadgen.load import load_scenarios
from loadgen.plan import PROFILES, make_plan

PUBLISHED = sorted((Path(__file__).parents[1] / "scenarios/published").glob("*.py"))
VARY = (1.0, 1.02, 0.98)


def run_of(scenario: str, rates: dict[Any, float], repeats: int = 3, broker: str = "rabbitmq") -> Any:
    """A run whose points had these rates, by value of the scenario's knob, give or take 2 %.

    Of the parity the values are (durability, broker).
    """
    trials = [
        {
            "scenario": scenario, "broker": value[1] if scenario == PARITY else broker, "purpose": "measure",
            "status": "complete", "verdict": {"status": "valid"}, "repeat": repeat + 1,
            "durability": value[0] if scenario == PARITY else "flushed",
            "goodput_msgs_per_s": rate * VARY[(repeat + number) % 3], "rate": {"kind": "saturate"},
            "point": {} if scenario == PARITY else {SHAPES[scenario].knob: value},
        }
        for number, (value, rate) in enumerate(rates.items())
        for repeat in range(repeats)
    ]  # fmt: skip
    return SimpleNamespace(records=trials)


IN_FLIGHT: dict[Any, float] = {1: 1.4e3, 20: 1.2e4, 200: 2.65e4, 1000: 2.65e4, 10_000: 2.65e4}
PREFETCH: dict[Any, float] = {1: 3e2, 10: 2e3, 100: 2.3e4, 1000: 2.4e4}
SIZES: dict[Any, float] = {64: 1e6, 256: 9e5, 1024: 5e5, 4096: 1.6e5, 16_384: 4.4e4, 65_536: 1.1e4}
FLUSHED: dict[Any, float] = {("flushed", "rabbitmq"): 1.9e4, ("flushed", "kafka"): 2.08e4}
SHIPPED: dict[Any, float] = {("broker", "rabbitmq"): 4e4, ("broker", "kafka"): 9e5}
CASES = [
    ("published-in-flight", IN_FLIGHT, "reproduced"),
    ("published-in-flight", {**IN_FLIGHT, 20: 2.6e4}, "not reproduced"),  # no step
    ("published-in-flight", {**IN_FLIGHT, 1: 1e2, 20: 1.6e4, 200: 2.5e4}, "not reproduced"),  # 1 to 20 is larger
    ("published-in-flight", {**IN_FLIGHT, 1000: 6e4, 10_000: 6e4}, "not reproduced"),  # 200 to 1,000 is larger
    ("published-in-flight", {**IN_FLIGHT, 10_000: 3.2e4}, "not reproduced"),
    ("published-in-flight", {**IN_FLIGHT, 10_000: 1.9e4}, "not reproduced"),
    ("published-in-flight", {**IN_FLIGHT, 20: 1.75e4, 1: 1.2e4}, "cannot tell"),  # 1.5, give or take
    ("published-in-flight", {20: 1.2e4, 200: 2.65e4}, "cannot tell"),
    ("published-prefetch", PREFETCH, "reproduced"),
    ("published-prefetch", {**PREFETCH, 1: 6e3}, "not reproduced"),
    ("published-prefetch", {**PREFETCH, 10: 1.4e4}, "not reproduced"),
    ("published-prefetch", {**PREFETCH, 1000: 3.2e4}, "not reproduced"),
    ("published-message-size", SIZES, "reproduced"),
    ("published-message-size", {**SIZES, 1024: 1.1e6}, "not reproduced"),  # a rise between the ends
    ("published-message-size", {**SIZES, 4096: 8e4}, "not reproduced"),  # a dent in bytes between the ends
    ("published-message-size", dict.fromkeys(SIZES, 1e6), "not reproduced"),
    ("published-message-size", {64: 1e6, 65_536: 6e3}, "cannot tell"),
    (PARITY, {**FLUSHED, **SHIPPED}, "reproduced"),
    (PARITY, {**FLUSHED, **SHIPPED, ("flushed", "kafka"): 3e4}, "not reproduced"),  # 1.6 times
    (PARITY, {**FLUSHED, **SHIPPED, ("flushed", "kafka"): 1.5e4}, "not reproduced"),  # 0.8 times
    (PARITY, {**FLUSHED, **SHIPPED, ("broker", "kafka"): 2e5}, "not reproduced"),  # 5 times
    (PARITY, FLUSHED, "cannot tell"),
    (PARITY, {("flushed", "rabbitmq"): 1.9e4, **SHIPPED}, "cannot tell"),
]


@pytest.mark.parametrize(("scenario", "rates", "outcome"), CASES)
def test_a_shape_is_judged_by_its_intervals(scenario: str, rates: dict[Any, float], outcome: str) -> None:
    """All rules shown to hold, one shown not to, or neither; each with what was seen."""
    (verdict,) = judged(run_of(scenario, rates))
    assert (verdict.scenario, verdict.outcome) == (scenario, outcome)
    assert all(": " in reason for reason in verdict.reasons)
    (said,) = sentences(run_of(scenario, rates))
    assert outcome in said
    assert scenario in said


def test_one_repeat_cannot_tell() -> None:
    """Without an interval nothing is shown, whatever the rates."""
    for scenario, rates in (("published-prefetch", PREFETCH), ("published-in-flight", IN_FLIGHT)):
        (verdict,) = judged(run_of(scenario, rates, repeats=1))
        assert verdict.outcome == "cannot tell"
        assert all("one repeat" in reason for reason in verdict.reasons)


def test_what_is_struck_out_is_no_evidence() -> None:
    """Invalid trials enter no shape; other scenarios have none."""
    run = run_of("published-prefetch", PREFETCH)
    for trial in run.records:
        trial["verdict"] = {"status": "invalid"}
    assert [verdict.outcome for verdict in judged(run)] == ["cannot tell"]
    for trial in run.records:
        trial["scenario"] = "latency"
    assert judged(run) == []


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_every_published_scenario_says_its_figure_and_has_a_shape_that_its_sweep_can_show(path: Path) -> None:
    """The file names what it answers to, with a link, and each value that a rule compares is measured."""
    text = path.read_text(encoding="utf-8")
    assert "Answers to:" in text
    assert "https://" in text
    scenarios = load_scenarios(path)
    trials = make_plan(scenarios, PROFILES["quick"]).trials
    (name,) = {trial.scenario for trial in trials}
    if name == PARITY:
        measured = {(str(trial.durability), trial.broker) for trial in trials}
        assert measured == {(each, broker) for each in PARITY_RULES for broker in ("rabbitmq", "kafka")}
        return
    shape = SHAPES[name]
    swept = {trial.point.get(shape.knob, trial.point.get(shape.knob.rpartition(".")[2])) for trial in trials}
    compared = [rule.along if isinstance(rule, Step) else (rule.value, rule.base) for rule in shape.rules]
    assert {value for values in compared for value in values} <= swept


@pytest.mark.parametrize(
    ("scenario", "rates", "seen", "outcome"),
    [
        ("published-prefetch", PREFETCH, "1: 300 msg/s, 10: 2.00 k msg/s, 100: 23.0 k msg/s, 1000: 24.0 k msg/s", "|"),
        ("published-prefetch", {**PREFETCH, 1: 6e3}, "1: 6.00 k msg/s, ", ": a prefetch of 1 collapses"),
        (PARITY, {**FLUSHED, **SHIPPED}, "broker Kafka: 900 k msg/s, ", "|"),
    ],
)
def test_the_table_of_the_docs_has_figure_rates_and_verdict(
    scenario: str, rates: dict[Any, float], seen: str, outcome: str
) -> None:
    """The figure as the file of the scenario has it, a rate for each value, and what speaks against the shape."""
    (row,) = list(rows(run_of(scenario, rates)))[2:]
    assert row.startswith(f"| {scenario}")
    assert "](https://" not in row
    assert "(<https://" in row
    assert f"| {seen}" in row
    verdict = row.rpartition("reproduced")[2] if outcome == "|" else row.rpartition("reproduced: ")[2]
    assert verdict.strip().startswith(outcome.removeprefix(": "))
