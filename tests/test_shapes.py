"""Published shapes, judged on rates that have them, that have not, and of which nobody can tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loadgen.analysis.shapes import PARITY, SHAPES, judged, sentences
from loadgen.load import load_scenarios
from loadgen.plan import PROFILES, make_plan

PUBLISHED = sorted((Path(__file__).parents[1] / "scenarios/published").glob("*.py"))
VARY = (1.0, 1.02, 0.98)


def run_of(scenario: str, rates: dict[Any, float], repeats: int = 3, broker: str = "rabbitmq") -> Any:
    """A run whose points had these rates, by value of the scenario's knob (or broker), give or take 2 %."""
    trials = [
        {
            "scenario": scenario, "broker": value if scenario == PARITY else broker, "purpose": "measure",
            "status": "complete", "verdict": {"status": "valid"}, "repeat": repeat + 1, "durability": "flushed",
            "goodput_msgs_per_s": rate * VARY[(repeat + number) % 3], "rate": {"kind": "saturate"},
            "point": {} if scenario == PARITY else {SHAPES[scenario].knob: value},
        }
        for number, (value, rate) in enumerate(rates.items())
        for repeat in range(repeats)
    ]  # fmt: skip
    return SimpleNamespace(records=trials)


CASES = [
    ("published-in-flight", {20: 2e3, 200: 9e3, 1000: 1.2e4, 5000: 1.2e4}, "reproduced"),
    ("published-in-flight", {20: 9e3, 200: 9e3, 1000: 1.2e4, 5000: 1.2e4}, "not reproduced"),
    ("published-in-flight", {20: 2e3, 200: 9e3, 1000: 1.2e4, 5000: 2.4e4}, "not reproduced"),
    ("published-in-flight", {20: 6e3, 200: 9e3, 1000: 1.2e4, 5000: 1.2e4}, "cannot tell"),
    ("published-in-flight", {20: 2e3, 200: 9e3}, "cannot tell"),
    ("published-prefetch", {1: 3e3, 10: 1e4, 100: 2e4, 1000: 2e4}, "reproduced"),
    ("published-prefetch", {1: 2e4, 10: 2e4, 100: 2e4, 1000: 2e4}, "not reproduced"),
    ("published-message-size", {64: 1e6, 65_536: 6e3}, "reproduced"),
    ("published-message-size", {64: 1e6, 65_536: 1e6}, "not reproduced"),
    ("published-message-size", {64: 1e6, 65_536: 9e2}, "not reproduced"),
    (PARITY, {"rabbitmq": 1.9e4, "kafka": 2.1e4}, "reproduced"),
    (PARITY, {"rabbitmq": 1.9e4, "kafka": 9e4}, "not reproduced"),
    (PARITY, {"rabbitmq": 1.9e4}, "cannot tell"),
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
    (verdict,) = judged(run_of("published-prefetch", {1: 3e3, 100: 2e4, 1000: 2e4}, repeats=1))
    assert verdict.outcome == "cannot tell"
    assert "one repeat" in verdict.reasons[0]


def test_what_is_struck_out_is_no_evidence() -> None:
    """Invalid trials enter no shape; other scenarios have none."""
    run = run_of("published-prefetch", {1: 3e3, 100: 2e4, 1000: 2e4})
    for trial in run.records:
        trial["verdict"] = {"status": "invalid"}
    assert [verdict.outcome for verdict in judged(run)] == ["cannot tell"]
    for trial in run.records:
        trial["scenario"] = "latency"
    assert judged(run) == []


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_every_published_scenario_says_its_figure_and_has_a_shape_that_its_sweep_can_show(path: Path) -> None:
    """The file names what it answers to, and each value that a rule compares is measured."""
    assert "Answers to:" in path.read_text(encoding="utf-8")
    scenarios = load_scenarios(path)
    trials = make_plan(scenarios, PROFILES["quick"]).trials
    (name,) = {trial.scenario for trial in trials}
    if name == PARITY:
        assert {trial.broker for trial in trials if str(trial.durability) == "flushed"} == {"rabbitmq", "kafka"}
        return
    shape = SHAPES[name]
    swept = {trial.point.get(shape.knob, trial.point.get(shape.knob.rpartition(".")[2])) for trial in trials}
    assert {value for rule in shape.rules for value in (rule.value, rule.base)} <= swept
