"""A broker that stands still: what theory says of it, and what is measured of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prove import stall
from prove.proof import Scale
from prove.stall import ONE, Model, Run, Stall
from prove.trials import Tapped

from loadgen.histogram import Histogram

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint

pytestmark = pytest.mark.alone  # what it provokes and measures is of the machine

BOUNDS = stall.BOUNDS[Scale.FULL]


def test_a_stall_is_in_every_response_time_that_it_held_up(endpoints: dict[BrokerName, Endpoint]) -> None:
    """The small proof passes: the real broker is stopped for a second, with a window of one."""
    assert "rabbitmq" in endpoints
    proof = stall.prove(Scale.SMALL)
    assert proof.passed, [row for row in proof.rows if not row.ok]
    assert len(proof.rows) == 7


def test_the_model_is_the_straight_line_that_it_says() -> None:
    """A thousand messages a second, a tenth of capacity, a second of stall in twenty: counted one by one."""
    model = Model(1_000, 0.1, 1.0, 20.0)
    due_s = np.arange(20_000) / 1_000
    responses_s = np.sort(np.maximum(0.0, 1.0 - 0.9 * due_s))
    for share in (0.5, 0.95, 0.975, 0.99, 1.0):
        assert model.quantile_s(share) == pytest.approx(responses_s[round(share * 20_000) - 1], abs=0.002)
    assert model.over(0.05) == pytest.approx((responses_s > 0.05).sum(), rel=0.01)


def run_of(stall_s: float = 1.0, *, hides: bool = True, noise: int = 0) -> Run:
    """A run of 20 s at 100 messages a second as the model has it, with the broker stopped for `stall_s` after 12 s."""
    model = Model(100, 0.05, 1.0, 20.0)
    due_ns = (np.arange(2_000) * 1e7).astype(np.int64)
    into_s = due_ns / 1e9 - 12
    held_s = np.where(into_s >= 0, np.maximum(0.0, stall_s - 0.95 * into_s), 0.0)
    held_s[:noise] += 0.2
    response_ns = 300_000 + (held_s * 1e9).astype(np.int64)
    service_ns = np.full(2_000, 300_000) if hides else response_ns
    seconds: dict[str, dict[int, Histogram]] = {"e2e": {}, "e2e_service": {}}
    for kind, values in (("e2e", response_ns), ("e2e_service", service_ns)):
        for second in range(20):
            seconds[kind][second] = Histogram()
            seconds[kind][second].add(values[second * 100 : second * 100 + 100])
    measured: Any = SimpleNamespace(seconds=seconds, window_ns=(0, 20 * 10**9))
    measured.histogram = lambda *arguments: stall.Measured.histogram(measured, *arguments)
    came_ns = due_ns + response_ns
    measured.tapped = Tapped(np.arange(2_000), due_ns, came_ns - service_ns, came_ns, came_ns)
    return Run("rabbitmq", ONE, 2_000, model, measured, Stall((), 0, 1.0, 12 * 10**9, 13 * 10**9))


def failed(run: Run) -> list[str]:
    """The rows of a run that fail, without its title."""
    rows = stall.compare([run], BOUNDS).rows
    return [row.name.partition(": ")[2] for row in rows if not row.ok]


def test_a_run_as_the_model_has_it_passes() -> None:
    """And its picture has both times and the stall."""
    proof = stall.compare([run_of()], BOUNDS)
    assert proof.passed, proof.rows
    assert all(each in proof.charts[0].svg for each in ("response time", "service time", "broker stopped", "model"))


def test_a_recorder_that_omits_what_was_held_up_fails() -> None:
    """Without the stall in its response times every row about them fails; with half of it too."""
    rows = ["p97.5 response", "p99 response", "the longest response", "responses over 50 ms"]
    assert failed(run_of(0.0)) == rows
    assert failed(run_of(0.5)) == rows


def test_a_service_time_that_shows_the_stall_fails() -> None:
    """With a window of one it must not: then it was not service that was measured."""
    assert failed(run_of(hides=False)) == ["service times over 50 ms"]


def test_service_times_that_nobody_took_fail() -> None:
    """What has no service time is not over any limit, and shows nothing."""
    run = run_of()
    del run.measured.seconds["e2e_service"][0]
    assert failed(run) == ["messages with a service time beside their response time"]


def test_a_load_over_a_tenth_fails() -> None:
    """The model is for a lightly loaded broker."""
    run = run_of()
    assert "load" in failed(replace(run, model=replace(run.model, load=0.2)))


def test_what_others_do_to_the_machine_is_told_from_the_stall() -> None:
    """Slow messages of other seconds disturb a run and are not counted as the stall's."""
    run = run_of(noise=20)
    assert run.disturbance == pytest.approx(20 / run.model.over(0.05), rel=1e-6)
    assert run.over == run_of().over
    assert run_of().disturbance == 0


def test_a_whole_group_stands_still_and_goes_on() -> None:
    """A process that heads its group is stopped with its children; afterwards all of them run."""
    script = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    head = subprocess.Popen([sys.executable, "-c", script + "time.sleep(60)"], start_new_session=True)
    try:
        children = Path(f"/proc/{head.pid}/task/{head.pid}/children")
        while not (child := children.read_text()):
            time.sleep(0.01)
        pids = (head.pid, int(child))
        pause = Stall((head.pid,), 0.0, 0.3)
        pause("begun")
        pause("goes on")  # told again and again, it stops them once
        while not pause.stopped_ns or any(state_of(pid) != "T" for pid in pids):
            assert not pause.continued_ns
            time.sleep(0.005)
        pause.end()
        assert pause.length_s >= 0.3
        assert all(state_of(pid) != "T" for pid in pids)
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
