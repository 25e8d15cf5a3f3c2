"""What many workers report comes together without loss, and the window is cut out of it exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen import Kafka, Rate, Scenario
from loadgen.agent import SECOND_NS, Report, Result
from loadgen.driver import Gauge
from loadgen.drivers.memory import memory_endpoint
from loadgen.fleet import Outcome
from loadgen.histogram import Histogram
from loadgen.locust.crew import Gathered
from loadgen.locust.gathering import HELD_S, Gathering
from loadgen.locust.messages import unpack
from loadgen.plan import PROFILES, make_plan
from loadgen.recorder import Recorder

if TYPE_CHECKING:
    from loadgen.driver import Int64

ORIGIN_NS = 7_000_000_000_000
LENGTH_S = 90  # longer than anything is kept apart


def gathering() -> Gathering:
    """A trial that has begun, without an observer or files."""
    scenario = Scenario(name="demo", question="How fast?", rate=Rate.fixed(100), kafka=Kafka())
    (trial,) = make_plan([scenario], PROFILES["quick"], repeats=1).trials
    live = Gathering(
        trial=trial, endpoint=memory_endpoint("kafka"), writer=None, progress=lambda _: None, gauge=lambda _: Gauge(0)
    )
    live.start_ns = ORIGIN_NS
    return live


def values_of(seed: int) -> tuple[Int64, Int64]:
    """A worker's intended times and durations in ns, over the whole test."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, LENGTH_S * SECOND_NS, 1_000)) + ORIGIN_NS
    return times, rng.lognormal(13, 2, len(times)).astype(np.int64)


def reports_of(worker: int, seed: int, stopped_ns: int = ORIGIN_NS + LENGTH_S * SECOND_NS) -> list[bytes]:
    """A worker's reports, one a second, each of two agents; some messages come seconds late, none after the stop."""
    when, values = values_of(100 * seed + worker)
    when, values = when[when < stopped_ns], values[when < stopped_ns]
    agents = [Recorder(["e2e"], ORIGIN_NS) for _ in range(2)]
    packed = []
    late = np.random.default_rng(seed).integers(0, HELD_S - 2, len(when)) * SECOND_NS
    for second in range(LENGTH_S + HELD_S):
        now_ns = ORIGIN_NS + second * SECOND_NS
        here = (when + late >= now_ns) & (when + late < now_ns + SECOND_NS)
        gathered = Gathered()
        for number, agent in enumerate(agents):
            mine = np.flatnonzero(here)[number::2]
            agent.record("e2e", when[mine], values[mine])
            report = Report(f"consumer{number}", agent.take(), {"received": len(mine), "elapsed_s": second + 1.0})
            gathered.add("consumer", report)
        gathered.flow.extend((now_ns, 10 * (worker + 1) * second, 10 * (worker + 1) * second - 3))
        packed.append(gathered.packed())
    return packed


@settings(max_examples=6)
@given(st.integers(1, 4), st.integers(0, 9), st.integers(0, 80), st.integers(0, 30), st.integers(0, 5))
def test_the_windows_histogram_is_the_sum_of_all_workers_own_bucket_for_bucket(
    workers: int, seed: int, reached_s: int, length_s: int, cut_s: int
) -> None:
    """Whatever window it comes to, and however late a message was: all in it are counted once, no other."""
    live = gathering()
    stopped_ns = ORIGIN_NS + min(LENGTH_S, reached_s + 2 + length_s) * SECOND_NS + SECOND_NS // 3
    streams = [reports_of(worker, seed, stopped_ns) for worker in range(workers)]
    for second, blobs in enumerate(zip(*streams, strict=True)):
        if second == min(reached_s, 20):
            live.open_window(reached_s)
        for worker, blob in enumerate(blobs):
            live.take(f"w{worker}", unpack(blob))
    outcome = Outcome()
    trial = live.close(outcome, 2.0, stopped_ns)
    measured = live.measured(cut_s).get("e2e", Histogram())
    begin_ns = ORIGIN_NS + round(trial.warmup_s + cut_s) * SECOND_NS
    end_ns = ORIGIN_NS + round(trial.warmup_s + trial.duration_s) * SECOND_NS
    expected = Histogram()
    for worker in range(workers):
        when, values = values_of(100 * seed + worker)
        expected.add(values[(when >= begin_ns) & (when < end_ns)])
    assert trial.warmup_s + trial.duration_s == (stopped_ns - ORIGIN_NS) // SECOND_NS
    assert (measured.counts == expected.counts).all()
    assert measured.summary() == expected.summary()


def test_agents_seconds_are_told_from_the_windows_first_on() -> None:
    """Counts and CPU of before and after the window fall off; the flow of several workers is their sum."""
    live = gathering()
    for number, worker in enumerate(("w0", "w1")):
        for blob in reports_of(number, 1):
            live.take(worker, unpack(blob))
    live.open_window(3)
    result = Result("producer0", "producer", per_second={"sent": list(range(20))}, cpu_at=[(0.0, 0.0), (10.0, 5.0)])
    trial = live.close(Outcome(results=[result]), 2.0, ORIGIN_NS + 12 * SECOND_NS)
    assert (trial.warmup_s, trial.duration_s) == (5.0, 7.0)
    assert result.per_second == {"sent": list(range(5, 12))}
    assert result.cpu_at == [(-5.0, 0.0), (5.0, 5.0)]
    at_s, sent, received = live.flow.between(ORIGIN_NS + 20 * SECOND_NS, ORIGIN_NS + 21 * SECOND_NS)
    assert len(at_s) == 20
    assert sent[0] == 20 * 10 + 20 * 20
    assert (sent - received == 6).all()


def test_a_later_window_forgets_the_earlier() -> None:
    """When the number of users changes, what was measured with the others is not mixed in."""
    live = gathering()
    blobs = reports_of(0, 2)
    live.open_window(1)
    for blob in blobs[:40]:
        live.take("w0", unpack(blob))
    live.open_window(40)
    for blob in blobs[40:]:
        live.take("w0", unpack(blob))
    live.close(Outcome(), 0.0, ORIGIN_NS + LENGTH_S * SECOND_NS)
    # What came in before the window moved had been merged already, but for its last seconds.
    when, values = values_of(200)
    expected = Histogram()
    expected.add(values[when >= ORIGIN_NS + 60 * SECOND_NS])
    assert live.measured(20)["e2e"].summary() == expected.summary()
