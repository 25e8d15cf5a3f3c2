"""What disturbs a trial is named by its verdict, and the proof of it fails where it is not."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from prove import turns
from prove.proof import Scale

from loadgen.checks import timing

if TYPE_CHECKING:
    from loadgen.endpoint import Endpoint

pytestmark = pytest.mark.alone  # what it provokes and measures is of the machine


@pytest.fixture(scope="module")
def found(rabbitmq_endpoint: Endpoint) -> list[turns.Seen]:
    """The small scale's trials on the session's RabbitMQ: undisturbed, and with each of its cases.

    A busy or slow machine lags by more than the millisecond that a trial may, undisturbed as well, and a test is to
    hold there too: 60 ms are allowed here, and a second's standstill is still hopeless.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "LAG_FLOOR_NS", 60_000_000)
        return turns.measure(rabbitmq_endpoint, turns.CASES[Scale.SMALL]["rabbitmq"], turns.DURATION_S[Scale.SMALL])


def changed(seen: turns.Seen, **checks: Any) -> turns.Seen:
    """The same trial with other findings of the checks that are named (blanks as underscores)."""
    others = {name.replace("_", " "): passed for name, passed in checks.items()}
    told = [{**each, "passed": others.get(each["name"], each["passed"])} for each in seen.verdict["checks"]]
    return replace(seen, verdict={**seen.verdict, "checks": told})


def test_each_cause_is_named_and_none_without_one(found: list[turns.Seen]) -> None:
    """A stopped producer and busy neighbours, on a real broker."""
    proof = turns.compare(found)
    assert proof.passed, [row for row in proof.rows if not row.ok]
    assert [row.name for row in proof.rows] == [
        "RabbitMQ, undisturbed",
        "RabbitMQ, producer stopped for a second",
        "RabbitMQ, neighbours use the CPU",
    ]
    assert proof.notes[-1].count("\n") == len(found) + 1


def test_a_verdict_that_does_not_turn_fails(found: list[turns.Seen]) -> None:
    """Where the check found nothing, its row fails, and only that one."""
    undisturbed, stopped, burning = found
    rows = turns.compare([undisturbed, changed(stopped, schedule_lag=True), burning]).rows
    assert [row.ok for row in rows] == [True, False, True]


def test_the_wrong_name_fails(found: list[turns.Seen]) -> None:
    """A stopped producer of which only other programs are told is not named; neither are neighbours by other names."""
    undisturbed, stopped, burning = found
    other = replace(burning, case=replace(turns.BURNING, reason="somebody-else"))
    rows = turns.compare([undisturbed, changed(stopped, schedule_lag=None, other_programs=False), other]).rows
    assert [row.ok for row in rows] == [True, False, False]


def test_an_alarm_that_is_always_raised_fails(found: list[turns.Seen]) -> None:
    """What the undisturbed trial has as well was not found: both rows fail."""
    undisturbed, stopped, burning = found
    rows = turns.compare([replace(undisturbed, verdict=stopped.verdict), stopped, burning]).rows
    assert [row.ok for row in rows] == [False, False, True]
    assert "undisturbed as well" in rows[1].seen


def test_a_lag_that_nobody_caused_fails(found: list[turns.Seen]) -> None:
    """An undisturbed trial is not to be invalid for another reason either."""
    undisturbed, stopped, burning = found
    rows = turns.compare([changed(undisturbed, schedule_lag=False), stopped, burning]).rows
    assert [row.ok for row in rows] == [False, True, True]


def test_a_cause_by_another_causes_name_fails(found: list[turns.Seen]) -> None:
    """Stopped once is not starved, and a backlog that is bound by who knows what is no slow consumer's."""
    undisturbed, stopped, burning = found
    starved = replace(stopped, case=turns.STARVED)
    grew = {"name": "backlog", "passed": False, "reason": "it grew: the consumers were slow, at work", "weighs": True}
    verdict = {**stopped.verdict, "checks": [*stopped.verdict["checks"], grew]}
    slow = [
        turns.Seen("rabbitmq", turns.SLOW, {**verdict, "bound_by": bound_by}) for bound_by in ("unknown", "consumers")
    ]
    rows = turns.compare([undisturbed, starved, burning, *slow]).rows
    assert [row.ok for row in rows] == [True, False, True, False, True]


def test_a_valid_verdict_fails_whatever_a_check_says(found: list[turns.Seen]) -> None:
    """A finding that does not reach the verdict has warned nobody."""
    undisturbed, stopped, burning = found
    ignored = replace(stopped, verdict={**stopped.verdict, "status": "valid"})
    assert [row.ok for row in turns.compare([undisturbed, ignored, burning]).rows] == [True, False, True]


def test_nothing_undisturbed_proves_nothing(found: list[turns.Seen]) -> None:
    """Without the trial to compare with no cause counts as found."""
    assert not any(row.ok for row in turns.compare(found[1:]).rows)


def test_a_stopped_process_goes_on(rabbitmq_endpoint: Endpoint) -> None:
    """Whenever a disturbance ends, also in the middle of a stop, its process runs again."""
    with psutil.Popen(["sleep", "60"]) as sleeper:
        try:
            stage = turns.Stage(rabbitmq_endpoint, {"producer0": psutil.Process(sleeper.pid)}, 3600)
            thread = threading.Thread(target=turns.limited("producer", 0.001), args=(stage,))
            thread.start()
            stage.ended.wait(0.3)
            stage.ended.set()
            thread.join()
            assert sleeper.status() != psutil.STATUS_STOPPED
        finally:
            sleeper.kill()


def test_neighbours_end(rabbitmq_endpoint: Endpoint) -> None:
    """When a disturbance is over, none of its processes is left."""
    stage = turns.Stage(rabbitmq_endpoint, {}, 3600)
    stage.ended.set()
    before = {each.pid for each in psutil.Process(os.getpid()).children()}
    turns.burning(stage)
    assert {each.pid for each in psutil.Process(os.getpid()).children()} <= before


def test_what_goes_wrong_beside_a_trial_is_told(rabbitmq_endpoint: Endpoint) -> None:
    """An error of the disturbance reaches the one who waits for it."""

    def fail(_: turns.Stage) -> None:
        raise OSError("no such tool")

    beside = turns.Beside(fail, rabbitmq_endpoint, 1.0)
    beside("the trial began")
    with pytest.raises(OSError, match="no such tool"):
        beside.end()
