"""`make scenarios`: what it says of each scenario's verdicts, and a small run of it on real brokers."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import all_scenarios
import commandline
import pytest
import synthetic
from all_scenarios import Result, Verdict, doubts, main, repeats, verdicts

from loadgen.errors import EXIT_INVALID
from loadgen.load import load_scenarios, scenario_files
from loadgen.plan import PROFILES
from loadgen.record import completed
from loadgen.scenario import Kafka, RabbitMQ, Rate, Scenario

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint

BOTH = Scenario(name="both", question="?", rate=Rate.saturate(), rabbitmq=RabbitMQ(), kafka=Kafka())


def trial(broker: str, judged: str, repeat: int = 1, **given: Any) -> dict[str, Any]:
    """A record with this verdict."""
    verdict = {"status": judged, "bound_by": "broker", "reasons": [f"loss: {judged}"], "checks": []}
    known = {"id": f"both/{broker}/{repeat}", "broker": broker, "rate": {"kind": "saturate"}, "repeat": repeat}
    return completed({**known, "verdict": verdict, **given})


def test_a_point_stands_on_its_best_repeat_and_a_broker_on_its_worst_point() -> None:
    """One disturbed repeat is struck out; a point of which every repeat is invalid is told with its reason."""
    trials = [
        trial("rabbitmq", "invalid"), trial("rabbitmq", "valid", 2),
        trial("kafka", "valid", point={"p": 1}), trial("kafka", "invalid", point={"p": 2}),
        trial("kafka", "invalid", 2, point={"p": 2}),
    ]  # fmt: skip
    found = verdicts(BOTH, trials)
    assert found["rabbitmq"] == Verdict("valid")
    assert found["kafka"] == Verdict("invalid", "loss: invalid (both/kafka/1)")
    result = Result("both", 12.0, found)
    assert not result.is_good
    assert re.fullmatch(r"both +12 s {2}RabbitMQ valid · Kafka invalid: loss: invalid \(both/kafka/1\)", result.line())


@pytest.mark.parametrize(
    ("trials", "verdict", "is_good"),
    [
        ([], Verdict("invalid", "nothing was measured"), False),
        ([trial("kafka", "unknown")], Verdict("unknown", "loss: unknown (both/kafka/1)"), True),
        ([trial("kafka", "valid", status="failed", error="agent died")], Verdict("invalid", "agent died"), False),
        ([trial("kafka", "valid", purpose="probe")], Verdict("invalid", "nothing was measured"), False),
        (
            [trial("kafka", "valid", rate={"fractions": [0.5]}), trial("kafka", "invalid", rate={"fractions": [1.1]})],
            Verdict("valid"),
            True,
        ),
    ],
)
def test_what_is_no_valid_answer_is_told(trials: list[dict[str, Any]], verdict: Verdict, is_good: bool) -> None:
    """Nothing measured and a failed trial are invalid; unknown passes with its reason; overload is no failure."""
    scenario = BOTH.model_copy(update={"rabbitmq": None})
    found = verdicts(scenario, trials)
    assert found == {"kafka": verdict}
    assert Result("x", 1.0, found).is_good is is_good
    assert "RabbitMQ not driven" in Result("x", 1.0, found).line()


def test_what_cast_doubt_on_points_is_counted() -> None:
    """Of each point its best repeat counts; of an unknown one each check that could not tell and weighs."""
    checks = [
        {"name": "schedule lag", "passed": None, "weighs": True, "reason": ""},
        {"name": "disk", "passed": None, "weighs": False, "reason": ""},
        {"name": "order", "passed": True, "weighs": True, "reason": ""},
    ]
    late = trial("kafka", "unknown", point={"p": 2})
    late["verdict"]["checks"] = checks
    trials = (
        trial("rabbitmq", "invalid"),
        trial("rabbitmq", "valid", 2),
        late,
        trial("kafka", "invalid", point={"p": 3}),
    )
    told = doubts([Result("both", 1.0, {}, trials=trials)])
    assert told == "of 3 points 1 are valid, 1 unknown (schedule lag 1), 1 invalid"


def test_all_scenarios_fit_into_25_minutes() -> None:
    """Each point is repeated as often as that allows, by the plans' own reckoning, and at least once."""
    loaded = [each for path in scenario_files() for each in load_scenarios(path)]
    found = [each for each in loaded if not each.faults]
    count = repeats(found, all_scenarios.MINUTES)
    assert count >= 1
    assert sum(all_scenarios._planned_s(each, count) for each in found) <= 25 * 60
    assert repeats(found, 1e6) == PROFILES["quick"].repeats
    assert repeats(found, 1) == 1


def test_a_subset_runs_on_both_brokers(
    endpoints: dict[BrokerName, Endpoint],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line for each scenario with both verdicts; the exit status is 1 where one of them is invalid, else 0."""
    del endpoints
    # Within this process, and without charts: nobody looks at them.
    monkeypatch.setattr(all_scenarios, "loadgen", lambda words, _: commandline.loadgen(*words, folder=Path.cwd()))
    short = ["--set", "duration_s=1", "--set", "warmup_s=0.5", "--set", "rate=500", "--repeats", "1"]
    with synthetic.undrawn():
        status = main(["scenarios/latency.py", *short, "--results", str(tmp_path)])
    *lines, last = capsys.readouterr().out.splitlines()
    judged = r"RabbitMQ (valid|unknown|invalid)\b.* · Kafka (valid|unknown|invalid)\b"
    assert all(re.match(rf"latency( \(again\))? +\d+ s {{2}}{judged}", line) for line in lines)
    is_good = not re.search(r"(RabbitMQ|Kafka) invalid", lines[-1])
    assert status == (0 if is_good else 1)
    assert len(lines) == 1 or re.search(r"(RabbitMQ|Kafka) invalid", lines[0])
    assert last.startswith(f"{int(is_good)} of 1 scenarios came to their end without an invalid verdict; ")


def test_a_second_look_counts_as_a_repeat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A scenario with an invalid verdict is run again: a point that is valid then stands, one that is not fails."""
    looks = [
        [trial("kafka", "invalid", point={"p": 1}), trial("kafka", "valid", point={"p": 2})],
        [trial("kafka", "valid", 2, point={"p": 1}), trial("kafka", "invalid", 2, point={"p": 2})],
    ]
    scenario = BOTH.model_copy(update={"rabbitmq": None})

    def told(arguments: list[str], _: float) -> subprocess.CompletedProcess[str]:
        document = {"status": "complete", "trials": looks.pop(0)}
        return subprocess.CompletedProcess(arguments, EXIT_INVALID, json.dumps(document), "")

    monkeypatch.setattr(all_scenarios, "loadgen", told)
    (result,) = all_scenarios._all([(tmp_path / "both.py", scenario)], [], time.monotonic() + 60)
    assert not looks
    assert (result.name, result.verdicts, result.is_good) == ("both (again)", {"kafka": Verdict("valid")}, True)


def test_what_cannot_be_run_is_a_line_and_fails(
    endpoints: dict[BrokerName, Endpoint], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is no scenario, and what there is no time for; neither is passed over in silence."""
    del endpoints
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1")
    results = tmp_path / "results"
    assert main([str(broken), "scenarios/latency.py", "--minutes", "0", "--results", str(results)]) == 1
    said = capsys.readouterr().out
    assert "defines no Scenario" in said
    assert "left out: the time is over" in said
    assert said.splitlines()[-1].startswith("0 of 2 scenarios")
    assert not results.exists()
