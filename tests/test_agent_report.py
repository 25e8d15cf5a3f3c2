"""An agent's report of a second: in steps between turns of its loop, and nothing of it lost or told twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_locust_spread import spec

from loadgen.agent import SECOND_NS, Agent, Clocked, Report, Standstills
from loadgen.board import Board
from loadgen.histogram import Histogram
from loadgen.recorder import Recorder

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

KINDS = ("ack", "schedule_lag", "e2e")
START_NS = 5 * SECOND_NS
MS_NS = 1_000_000
WINDOW_MS = 2_000


class Pipe:
    """What the fleet would hear."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def send(self, message: tuple[str, Any]) -> None:
        """Keep a report; an agent's result is of no interest here."""
        if message[0] == "report":
            self.reports.append(message[1])


def agent_of(board: Board, pipe: Pipe) -> Agent:
    """An agent whose trial has begun."""
    about = replace(spec("producer", 0), board=board.path, rows=2)
    agent = Agent(about, cast("Connection", pipe))
    agent.clock = Clocked(about, START_NS)
    agent.recorder = Recorder(KINDS, START_NS)
    agent._next_report_ns = START_NS + SECOND_NS
    return agent


turns = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, 50, 400, 1_200])), max_size=60)


@settings(max_examples=80)
@given(turns, st.booleans())
def test_each_value_is_in_one_report_with_its_count(turns: list[tuple[int, int]], is_ended_by_an_error: bool) -> None:
    """However turns and values fall: a report's histograms hold as many values as its series counts, and all come."""
    board, pipe = Board.create(1), Pipe()
    try:
        agent = agent_of(board, pipe)
        now_ns, recorded = START_NS, Histogram()
        for number, gap_ms in turns:
            now_ns += gap_ms * 1_000_000
            values = np.arange(1, number + 1) * 1_000
            for kind in KINDS:
                agent.recorder.record(kind, now_ns, values)
            if number:
                recorded.add(values)
                agent.add("acked", number)
                agent.errors["refused"] = agent.errors.get("refused", 0) + 1
            agent.heartbeat(now_ns)
        if is_ended_by_an_error:
            agent.complete_report()
            assert agent._reporting is None
        agent.finish()
    finally:
        board.remove()
    for kind in KINDS:
        told = Histogram()
        for report in pipe.reports:
            deltas = [delta for delta in report.deltas if delta.kind == kind]
            assert sum(delta.count for delta in deltas) == report.series.get("acked", 0)
            for delta in deltas:
                delta.add_to(told)
        assert (told.counts == recorded.counts).all()
    assert sum(report.errors.get("refused", 0) for report in pipe.reports) == sum(number > 0 for number, _ in turns)


def test_a_report_takes_a_turn_for_each_kind() -> None:
    """No turn of the loop does the work of a whole report; what is recorded meanwhile is in the next."""
    board, pipe = Board.create(1), Pipe()
    try:
        agent = agent_of(board, pipe)
        now_ns = START_NS + SECOND_NS
        for turn in range(len(KINDS)):
            agent.recorder.record("ack", now_ns, np.array([turn + 1]))
            agent.heartbeat(now_ns)
            assert not pipe.reports
        agent.heartbeat(now_ns)
        agent.finish()
    finally:
        board.remove()
    first, last = pipe.reports
    assert [delta.count for delta in first.deltas] == [1]
    assert [delta.count for delta in last.deltas] == [2]


@pytest.mark.parametrize(
    ("turns_ms", "expected"),
    [
        ([0, 69, 138, 207], Standstills()),
        ([0, 80, 90, 1_090], Standstills(2, 1_080 * MS_NS, 1_000 * MS_NS)),
        ([-500, 60], Standstills()),  # of the warm-up
        ([-500, 80, 100], Standstills(1, 80 * MS_NS, 80 * MS_NS)),  # what of it is in the window
        ([WINDOW_MS - 80, WINDOW_MS + 400, WINDOW_MS + 900], Standstills(1, 80 * MS_NS, 80 * MS_NS)),
        ([5_000], Standstills()),  # connecting is no turn
    ],
)
def test_a_loop_that_stands_still_is_noted(
    turns_ms: list[int], expected: Standstills, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns of 70 ms and more, as far as they lie in the window."""
    (tmp_path / "schedstat").write_text("0 0 0\n")
    monkeypatch.setattr("loadgen.agent.SPENT", tmp_path / "schedstat")
    clock = Clocked(replace(spec("producer", 0), duration_s=WINDOW_MS / 1e3), START_NS)
    for turn_ms in turns_ms:
        clock.tick(clock.window_start_ns + turn_ms * MS_NS)
    assert clock.stood_still == expected


def test_where_the_kernel_counts_no_waiting_no_standstill_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long turn may have been busy then: neither a number nor a zero is made up."""
    monkeypatch.setattr("loadgen.agent.SPENT", Path("/proc/none"))
    clock = Clocked(replace(spec("producer", 0), duration_s=WINDOW_MS / 1e3), START_NS)
    assert clock.stood_still == Standstills()
    for turn_ms in (0, 100, 300):
        clock.tick(clock.window_start_ns + turn_ms * MS_NS)
    assert clock.stood_still is None


@pytest.mark.parametrize(
    ("spent_ms", "expected"),
    [
        ([0, 0], Standstills(1, 100 * MS_NS, 100 * MS_NS)),
        ([3_000, 3_040], Standstills(1, 60 * MS_NS, 60 * MS_NS)),
        ([3_000, 3_060], Standstills()),
    ],
)
def test_a_loop_that_runs_or_waits_for_a_cpu_does_not_stand_still(
    spent_ms: list[int], expected: Standstills, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long turn that was spent on a CPU, or in the kernel's run queue, is none; what was spent before is not its."""
    schedstat = tmp_path / "schedstat"
    monkeypatch.setattr("loadgen.agent.SPENT", schedstat)
    clock = Clocked(replace(spec("producer", 0), duration_s=WINDOW_MS / 1e3), START_NS)
    for at_ms, spent in zip((0, 100), spent_ms, strict=True):
        schedstat.write_text(f"{spent * MS_NS // 2} {spent * MS_NS // 2} 7\n")
        clock.tick(START_NS + at_ms * MS_NS)
    assert clock.stood_still == expected


def test_a_stop_after_busy_turns_is_a_standstill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine tenths of a second are spent in short turns; then the thread is stopped for one, and spends nothing."""
    schedstat = tmp_path / "schedstat"
    monkeypatch.setattr("loadgen.agent.SPENT", schedstat)
    clock = Clocked(replace(spec("producer", 0), duration_s=5), START_NS)
    for at_ms in [*range(0, 901, 10), 1_901]:
        spent_ms = 0.6 * min(at_ms, 900)
        schedstat.write_text(f"{round(spent_ms / 3) * MS_NS} {round(spent_ms * 2 / 3) * MS_NS} 7\n")
        clock.tick(clock.window_start_ns + at_ms * MS_NS)
    assert clock.stood_still is not None
    assert clock.stood_still.times == 1
    assert 950 * MS_NS < clock.stood_still.longest_ns <= 1_001 * MS_NS
