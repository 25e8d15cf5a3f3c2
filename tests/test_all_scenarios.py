"""`make scenarios`: what it says of each scenario's verdicts, and a small run of it on real brokers."""

from __future__ import annotations

import argparse
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
from all_scenarios import Look, Result, Verdict, doubts, first_look, main, second_look, verdicts

from loadgen.arguments import make_parser
from loadgen.errors import EXIT_INTERRUPTED, EXIT_INVALID
from loadgen.load import apply_sets, load_scenarios, parse_set, scenario_files
from loadgen.plan import PROFILES, make_plan
from loadgen.record import completed
from loadgen.scenario import Kafka, RabbitMQ, Rate, Scenario

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.plan import Plan

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


def test_all_scenarios_fit_into_their_minutes() -> None:
    """Each point once, by the plans' own reckoning, with time left for what is in doubt."""
    loaded = [(path, each) for path in scenario_files() for each in load_scenarios(path)]
    looks = [first_look(path, each, (), 1) for path, each in loaded if not each.faults]
    assert sum(look.planned_s for look in looks) <= 0.92 * all_scenarios.MINUTES * 60
    assert all_scenarios.MINUTES < 25


@pytest.mark.parametrize(
    ("changes", "warmup_s"),
    [
        ({}, 1.0),
        ({"warmup_s": 1.5}, 1.5),
        ({"profile_share": 0.4}, 0.8),
        ({"backlog_msgs": 100}, 0.0),
        ({"rate": Rate.burst(10, 2, 1, 3)}, 2.0),
    ],
    ids=["its own", "chosen", "short", "backlog", "burst"],
)
def test_a_first_look_is_warm_sooner(changes: dict[str, Any], warmup_s: float, tmp_path: Path) -> None:
    """Half of the profile's warm-up is enough, but where the scenario has less, none, or needs it."""
    look = first_look(tmp_path, BOTH.model_copy(update=changes), (), 1)
    assert {trial.warmup_s for trial in planned(look).trials} == {warmup_s}


def planned(look: Look) -> Plan:
    """What `loadgen run` makes of a look's words."""
    arguments = make_parser(argparse.ArgumentParser).parse_args(["run", str(look.path), *look.words])
    scenario = apply_sets(look.scenario, map(parse_set, arguments.sets))
    brokers: tuple[BrokerName, ...] = (arguments.broker,) if arguments.broker else all_scenarios.BROKERS
    return make_plan([scenario], PROFILES["quick"], brokers=brokers, repeats=arguments.repeats)


SWEPT = Scenario(
    name="both", question="?", rate=Rate.poisson([100, 200]), durability=["broker", "flushed"],
    rabbitmq=RabbitMQ(driver=["amqp", "pika"], prefetch=[1, 9]), kafka=Kafka(linger_ms=[0, 5]),
)  # fmt: skip


@pytest.mark.parametrize(
    ("doubtful", "most"),
    [(["kafka/kafka", "msgs_per_s=200", "flushed", "linger_ms=5"], 1), (["amqp", "prefetch=9"], 4), ([""], 24)],
    ids=["a point", "a value of each sweep", "all"],
)
def test_a_second_look_is_at_what_is_in_doubt(doubtful: list[str], most: int, tmp_path: Path) -> None:
    """Every point that is not valid is run again as it was, and few others; `--set` and `--broker` are enough."""
    first = Look(tmp_path, SWEPT)
    trials = []
    for each in planned(first).trials:
        judged = "unknown" if all(word in each.id for word in doubtful) else "valid"
        known = {"scenario": "both", "driver": each.driver, "durability": str(each.durability), "point": each.point}
        trials.append(trial(each.broker, judged, **known, id=each.id, rate={"kind": "poisson"}))
    again = second_look(first, Result("both", 1.0, verdicts(SWEPT, trials), trials=tuple(trials)))
    ids = {each.id for each in planned(again).trials}
    assert {each["id"] for each in trials if each["verdict"]["status"] == "unknown"} <= ids
    assert len(ids) == most


def test_what_is_invalid_is_looked_at_before_what_is_unknown(tmp_path: Path) -> None:
    """A search that found nothing on one broker is run again without the other, whose doubt can wait."""
    trials = (trial("rabbitmq", "invalid"), trial("kafka", "unknown"))
    again = second_look(Look(tmp_path, BOTH), Result("both", 1.0, verdicts(BOTH, trials), trials=trials))
    assert again.brokers == ("rabbitmq",)
    trials = (*trials, trial("rabbitmq", "unknown", 2))
    again = second_look(Look(tmp_path, BOTH), Result("both", 1.0, verdicts(BOTH, trials), trials=trials))
    assert again.brokers == ("rabbitmq", "kafka")


def test_what_was_not_reached_is_looked_at_as_a_whole(tmp_path: Path) -> None:
    """Of a run that was cut short nobody knows which points are missing."""
    first = Look(tmp_path, SWEPT, ("warmup_s=1",), repeats=2)
    cut = Result("both", 1.0, {}, "the run is partial", (trial("kafka", "valid"),))
    assert second_look(first, cut) == Look(tmp_path, SWEPT, ("warmup_s=1",))


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
    short = ["--set", "duration_s=1", "--set", "warmup_s=0.5", "--set", "rate=500", "--looks", "1"]
    with synthetic.undrawn():
        status = main(["scenarios/latency.py", *short, "--results", str(tmp_path)])
    *lines, last = capsys.readouterr().out.splitlines()
    judged = r"RabbitMQ (valid|unknown|invalid)\b.* · Kafka (valid|unknown|invalid)\b"
    (line,) = lines
    assert re.match(rf"latency +\d+ s {{2}}{judged}", line)
    is_good = not re.search(r"(RabbitMQ|Kafka) invalid", line)
    assert status == (0 if is_good else 1)
    assert last.startswith(f"{int(is_good)} of 1 scenarios came to their end without an invalid verdict; ")


def test_a_second_look_counts_as_a_repeat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is in doubt is run again, up to three times in all, and a point stands on its best look."""
    one, two = ({"kafka.linger_ms": each} for each in (0.0, 5.0))
    looks = [
        [trial("kafka", "invalid", point=one), trial("kafka", "valid", point=two)],
        [trial("kafka", "unknown", 2, point=one)],
        [trial("kafka", "valid", 3, point=one)],
    ]
    scenario = BOTH.model_copy(update={"rabbitmq": None, "kafka": Kafka(linger_ms=[0, 5])})

    def told(arguments: list[str], _: float) -> subprocess.CompletedProcess[str]:
        document = {"status": "complete", "trials": looks.pop(0)}
        return subprocess.CompletedProcess(arguments, EXIT_INVALID, json.dumps(document), "")

    monkeypatch.setattr(all_scenarios, "loadgen", told)
    (result,) = all_scenarios._all([Look(tmp_path / "both.py", scenario)], [], time.monotonic() + 60)
    assert not looks
    assert (result.name, result.verdicts, result.is_good) == ("both (again)", {"kafka": Verdict("valid")}, True)


def test_a_second_look_without_time_takes_nothing_from_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is interrupted, and what it has is counted; one that fails with time left is a failure."""
    first = Result("both", 1.0, {}, trials=(trial("kafka", "unknown"), trial("rabbitmq", "valid")))
    document = {"status": "partial", "trials": [trial("kafka", "valid", 2)]}

    def cut(arguments: list[str], _: float) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(arguments, EXIT_INTERRUPTED, json.dumps(document), "interrupted")

    monkeypatch.setattr(all_scenarios, "loadgen", cut)
    late = all_scenarios.run_again(first, Look(tmp_path, BOTH), [], timeout_s=0.0)
    assert (late.failure, late.is_valid) == ("", True)
    assert "interrupted" in all_scenarios.run_again(first, Look(tmp_path, BOTH), [], timeout_s=60.0).failure


def test_a_second_look_is_expected_to_take_what_the_first_took(tmp_path: Path) -> None:
    """Where the first took twice as long as planned, the second will too."""
    first, again = Look(tmp_path, BOTH), Look(tmp_path, BOTH, brokers=("kafka",))
    assert again.planned_s < first.planned_s
    assert all_scenarios.expected_s(again, first, 2 * first.planned_s) == pytest.approx(2 * again.planned_s)


@pytest.mark.parametrize(("words", "status"), [([], 0), (["--strict"], 1)])
def test_an_unknown_verdict_fails_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, words: list[str], status: int
) -> None:
    """As the bar has it, every verdict valid; without `--strict` doubt is told and passes."""
    found = Result("latency", 1.0, {"kafka": Verdict("unknown", "why"), "rabbitmq": Verdict("valid")})
    monkeypatch.setattr(all_scenarios, "is_up", lambda: True)
    monkeypatch.setattr(all_scenarios, "run", lambda *_: found)
    assert main(["scenarios/latency.py", "--looks", "1", *words]) == status


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
