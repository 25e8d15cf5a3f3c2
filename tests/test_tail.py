"""Tests of loadgen.analysis.tail: planted causes are found, decoys that occur everywhere are not believed."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, hypergeom
from synthetic import HEADER, SECOND_NS, WARMUP_S, trial

from loadgen.analysis.tail import SHOWN_MAX, Cause, Tail, _attribute, explain
from loadgen.errors import ScenarioError
from loadgen.recorder import Recorder
from loadgen.runs import RunWriter, load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from loadgen.runs import Run

SECONDS = 60
USUAL_NS = 1_000_000
Event = dict[str, Any]


def event(at_s: float, duration_s: float = 0.2, kind: str = "gc pause", text: str = "Pause Full") -> Event:
    """One of the observer's events."""
    return {"kind": kind, "at_s": at_s, "duration_s": duration_s, "text": text}


def rows(seconds: int = SECONDS, **columns: Sequence[float]) -> list[dict[str, float]]:
    """The observer's rows of warm-up (quiet) and window, each told at the end of its second."""
    made = []
    for second in range(-int(WARMUP_S), seconds):
        row = {"elapsed_s": WARMUP_S + second + 1.003}
        row |= {name: values[second] if second >= 0 else 0.0 for name, values in columns.items()}
        made.append(row)
    return made


def write(
    folder: Path,
    slow_ns: Mapping[int, int],
    events: Sequence[Event] = (),
    seen: Sequence[Mapping[str, float]] = (),
    *,
    lags_ns: Mapping[int, int] | None = None,
    seconds: int = SECONDS,
    kind: str = "e2e",
    blocked_share: float = 0.0,
) -> Run:
    """A run of one trial whose messages take 1 ms, but for one in twenty of those intended in slow seconds."""
    rng = np.random.default_rng(5)
    record = trial("kafka", "latency", rate={"kind": "fixed", "msgs_per_s": 200.0, "to_msgs_per_s": None})
    record |= {"window_s": float(seconds), "observer": {"events": list(events), "gc": {"count": len(events)}}}
    record["blocked_share"] = blocked_share
    writer = RunWriter(folder, "tail", HEADER)
    writer.begin_trial(record, started_s=time.time() + WARMUP_S)
    recorder = Recorder([kind, "schedule_lag"], origin_ns=0)
    for second in range(-int(WARMUP_S), seconds):
        values_ns = (USUAL_NS * rng.lognormal(0, 0.1, 200)).astype(np.int64)
        values_ns[:10] += slow_ns.get(second, 0)
        intended_ns = second * SECOND_NS + np.arange(200) * (SECOND_NS // 200)
        recorder.record(kind, intended_ns, values_ns)
        recorder.record("schedule_lag", intended_ns, np.full(200, (lags_ns or {}).get(second, 50_000), np.int64))
    deltas = recorder.take()
    for agent in ("consumer0", "consumer1"):
        writer.add_intervals(record["id"], deltas, agent=agent)
    writer.add_series([{"trial": record["id"], "agent": "observer", **row} for row in seen])
    writer.add_series([{"trial": "another", "agent": "observer", "elapsed_s": 9.0, "host_steal_share": 0.9}])
    writer.add_trial({**record, "latency_ns": {kind: {"count": 200 * seconds}}})
    return load(writer.finish("complete"))


def explained(run: Run) -> Tail:
    """The explanation of the run's trial."""
    tail = explain(run, run.records[0]["id"])
    assert tail is not None
    return tail


def slow_at(tail: Tail) -> set[float]:
    """Where the slow seconds are."""
    return {each.second.at_s for each in tail.slow}


PLANTED = {11: 40_000_000, 29: 55_000_000, 47: 30_000_000}


def test_a_planted_cause_is_found_and_a_decoy_that_is_everywhere_is_not(tmp_path: Path) -> None:
    """Three pauses stand at the three slow seconds; an alarm and a short pause stand at every second."""
    pauses = [event(second + 0.4, 0.04) for second in PLANTED]
    decoys = [event(0, SECONDS, "alarm", "memory"), *(event(second + 0.1, 0.001) for second in range(SECONDS))]
    tail = explained(write(tmp_path, PLANTED, pauses + decoys))
    assert slow_at(tail) == set(PLANTED)
    assert [each.second.at_s for each in tail.slow] == [29, 11, 47]
    assert tail.explained == 3
    by_kind = {cause.kind: cause for cause in tail.causes}
    assert by_kind["gc pause"].slow == 3
    assert by_kind["gc pause"].others == 3  # the seconds right after: a queue takes its time to empty
    assert (by_kind["alarm"].slow, by_kind["alarm"].others) == (3, 57)
    assert not by_kind["alarm"].explains
    for each in tail.slow:
        assert {cause.kind for cause, _ in each.coincidences} == {"gc pause"}
        assert "explained by gc pause of 40 ms" in each.line()


SIGNALS = {
    "psi_cpu_some_share": (0.05, 0.9),
    "psi_io_some_share": (0.05, 0.9),
    "host_steal_share": (0.001, 0.2),
    "cpu_slow_share": (0.05, 0.45),
    "others_cores": (0.02, 1.5),
    "resting_cpu_cores": (0.1, 1.2),
    "disk_flush_ns": (80_000.0, 35e6),
    "disk_write_ns": (200_000.0, 35e6),
    "writeback_bytes": (8192.0, 9e7),
    "dirty_bytes": (2e6, 3e8),
    "swapped_bytes_per_s": (0.0, 1e6),
}


@pytest.mark.parametrize("column", sorted(SIGNALS))
def test_a_signal_that_stands_out_in_the_slow_seconds_explains_them(tmp_path: Path, column: str) -> None:
    """Each signal of the machine is found where it is high; another that is high throughout is not."""
    usual, high = SIGNALS[column]
    values = [high if second in PLANTED else usual * (1 + second % 3 / 10) for second in range(SECONDS)]
    decoy = next(name for name in SIGNALS if name != column)
    tail = explained(write(tmp_path, PLANTED, seen=rows(**{column: values, decoy: [SIGNALS[decoy][1]] * SECONDS})))
    assert tail.explained == 3
    assert len(tail.causes) == 1
    assert (tail.causes[0].slow, tail.causes[0].others) == (3, 0)
    assert tail.causes[0].kind not in tail.not_observed


def test_a_generator_that_was_late_explains_its_own_seconds(tmp_path: Path) -> None:
    """Messages that left late are counted against the sender, not against the broker."""
    tail = explained(write(tmp_path, PLANTED, lags_ns=dict(PLANTED)))
    assert {cause.kind for cause in tail.causes} == {"late sending"}
    assert "messages left 40.0 ms late" in tail.slow[1].line()


def test_a_sender_that_the_broker_held_back_is_no_cause(tmp_path: Path) -> None:
    """Its lag is then an effect of what is to be explained."""
    assert explained(write(tmp_path, PLANTED, lags_ns=dict(PLANTED), blocked_share=0.02)).causes == ()


def test_where_nothing_coincides_nothing_is_claimed(tmp_path: Path) -> None:
    """Pauses elsewhere, and seconds before the window, explain no second."""
    elsewhere = [event(second, 0.3) for second in (-4.0, 5.0, 20.0, 55.0)]
    tail = explained(write(tmp_path, PLANTED, elsewhere, rows(dirty_bytes=[1e6] * SECONDS)))
    assert slow_at(tail) == set(PLANTED)
    assert tail.explained == 0
    assert tail.causes == ()
    assert all("nothing observed coincides" in each.line() for each in tail.slow)
    assert "0 explained, 3 with nothing that coincides" in tail.lines()[0]


def test_what_happens_in_a_third_of_the_seconds_is_not_believed(tmp_path: Path) -> None:
    """A decoy that happens to hit two of three slow seconds may be chance, and its other seconds are told."""
    decoys = [event(second + 0.1, 0.5, "rebalance", "c0") for second in range(0, SECONDS, 6)]
    tail = explained(write(tmp_path, {12: 40_000_000, 30: 50_000_000, 47: 30_000_000}, decoys))
    assert tail.explained == 0
    (cause,) = tail.causes
    assert (cause.slow, cause.slow_of, cause.others, cause.others_of) == (2, 3, 18, 57)
    assert cause.is_rarer_elsewhere
    assert cause.chance > 0.05
    assert "(as 18 of 57 other seconds)" in tail.slow[0].line()


def test_one_hit_of_one_of_many_causes_is_not_believed(tmp_path: Path) -> None:
    """One slow second of twenty, and five signals that stood out in one second each: alone each would explain it."""
    columns = ("psi_io_some_share", "host_steal_share", "others_cores", "disk_flush_ns", "disk_write_ns")
    values = {
        name: [SIGNALS[name][second == 11 if name == "others_cores" else second == number] for second in range(20)]
        for number, name in enumerate(columns)
    }
    tail = explained(write(tmp_path / "many", {11: 40_000_000}, seen=rows(20, **values), seconds=20))
    (cause,) = tail.causes
    assert (cause.kind, cause.slow, cause.others, cause.tried) == ("other programs", 1, 0, 5)
    assert (cause.chance, cause.corrected) == (pytest.approx(1 / 20), pytest.approx(1 / 4))
    assert tail.explained == 0
    assert "coincides with other programs used 1.5 cores (as 0 of 19 other seconds)" in tail.slow[0].line()
    assert tail.lines()[-2].endswith("(so many hits by chance: 0.05, and of any of 5 causes: 0.25)")
    alone = rows(20, others_cores=values["others_cores"])
    assert explained(write(tmp_path / "one", {11: 40_000_000}, seen=alone, seconds=20)).explained == 1


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5)
def test_twelve_causes_that_come_as_they_please_explain_one_trial_in_twenty(seed: int) -> None:
    """Twelve unrelated causes, each in one to four seconds of sixty of which three are slow: 200 trials at a time."""
    rng, trials, found = np.random.default_rng(seed), 200, 0
    for _ in range(trials):
        seen = {
            str(cause): {int(second): (None, "") for second in rng.choice(60, rng.integers(1, 5), replace=False)}
            for cause in range(12)
        }
        causes, _ = _attribute(seen, dict.fromkeys((11, 29, 47), 1e6), set(range(60)))
        found += any(cause.explains for cause in causes.values())
    assert found <= binom.isf(1e-6, trials, 0.05)


def test_a_pause_far_shorter_than_the_delay_is_not_its_cause(tmp_path: Path) -> None:
    """A millisecond's pause cannot hold a message up for 40 ms on a broker that is not overloaded."""
    tail = explained(write(tmp_path, PLANTED, [event(second + 0.4, 0.0015) for second in PLANTED]))
    assert tail.causes == ()


def test_an_event_of_the_second_before_coincides(tmp_path: Path) -> None:
    """What was held up at the end of a second comes through in the next; two seconds later it does not."""
    late = explained(write(tmp_path / "a", PLANTED, [event(second - 0.5, 0.1) for second in PLANTED]))
    assert late.explained == 3
    gone = explained(write(tmp_path / "b", PLANTED, [event(second - 1.5, 0.1) for second in PLANTED]))
    assert gone.explained == 0


def test_even_seconds_are_not_slow(tmp_path: Path) -> None:
    """Chance alone makes no second slow, and a report says that none stands out."""
    tail = explained(write(tmp_path, {}))
    assert tail.slow == ()
    assert len(tail.seconds) == SECONDS
    assert len(tail.lines()) == 1
    assert "0 of 60 seconds are slow" in tail.lines()[0]


def test_a_seconds_figures_are_those_of_its_messages(tmp_path: Path) -> None:
    """All agents' lines of a second are one: its count, its median, and the delay of one in twenty as its p99."""
    tail = explained(write(tmp_path, PLANTED))
    assert {each.count for each in tail.seconds} == {400}
    slowest = tail.slow[0].second
    assert slowest.at_s == 29
    assert slowest.p99_ns == pytest.approx(USUAL_NS + PLANTED[29], rel=0.02)
    assert slowest.p50_ns == pytest.approx(USUAL_NS, rel=0.05)
    assert slowest.p99_ns <= slowest.max_ns


def test_many_slow_seconds_are_counted_and_the_slowest_are_shown(tmp_path: Path) -> None:
    """The report stays short, the counts are whole."""
    slow = {second: 5_000_000 + second * 100_000 for second in range(0, SECONDS, 4)}
    tail = explained(write(tmp_path, slow))
    assert slow_at(tail) == set(slow)
    shown = [line for line in tail.lines() if line.startswith("second ")]
    assert len(shown) == SHOWN_MAX
    assert "and 5 more slow seconds" in tail.lines()


def test_what_nobody_looked_for_is_said(tmp_path: Path) -> None:
    """An unexplained second of an unobserved machine is not the same as one of an observed machine."""
    tail = explained(write(tmp_path, PLANTED, seen=rows(host_steal_share=[0.0] * SECONDS)))
    assert "slow flushes" in tail.not_observed
    assert "stolen CPU" not in tail.not_observed
    assert tail.lines()[-1].startswith("not observed: ")


def test_seconds_without_a_flush_are_seconds_without_a_slow_one(tmp_path: Path) -> None:
    """A broker that flushes now and then is judged by the flushes that it made."""
    flushes = [35e6 if second in PLANTED else math.nan for second in range(SECONDS)]
    tail = explained(write(tmp_path, PLANTED, seen=rows(disk_flush_ns=flushes)))
    assert tail.explained == 3
    assert "flushes of 35.0 ms on average" in tail.slow[0].line()


def test_a_short_window_has_no_usual_second(tmp_path: Path) -> None:
    """Four seconds are too few to tell."""
    tail = explained(write(tmp_path, {2: 50_000_000}, seconds=4))
    assert tail.slow == ()
    assert "too few" in tail.lines()[0]


def test_confirmations_stand_in_where_nobody_consumes(tmp_path: Path) -> None:
    """Without end-to-end latency the publisher's is explained; a trial without either has nothing to explain."""
    run = write(tmp_path, PLANTED, kind="ack")
    assert explained(run).kind == "ack"
    assert explain(run, run.records[0]["id"], "e2e") is None
    with pytest.raises(ScenarioError, match="no trial"):
        explain(run, "another")


def test_a_closed_loop_has_no_response_times(tmp_path: Path) -> None:
    """Its service times are explained only when they are asked for."""
    run = write(tmp_path, PLANTED, kind="e2e_service")
    trial_id = run.records[0]["id"]
    assert explain(run, trial_id) is None
    asked = explain(run, trial_id, "e2e_service")
    assert asked is not None
    assert slow_at(asked) == set(PLANTED)


@given(st.integers(1, 30), st.integers(1, 60), st.data())
def test_chance_is_the_hypergeometric_tail(slow_of: int, others_of: int, data: st.DataObject) -> None:
    """The same figure as scipy's, and certainty for a cause that hits nothing or everything."""
    slow = data.draw(st.integers(0, slow_of))
    others = data.draw(st.integers(0, others_of))
    cause = Cause("x", slow, slow_of, others, others_of)
    expected = hypergeom.sf(slow - 1, slow_of + others_of, slow + others, slow_of)
    assert cause.chance == pytest.approx(expected, abs=1e-9)
    everywhere = Cause("x", slow_of, slow_of, others_of, others_of)
    assert everywhere.chance == 1
    assert not everywhere.explains
