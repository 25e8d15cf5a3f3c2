"""How far searches of one point lie apart: a broker whose pace wanders, beside clients on a host that stalls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.agent import SECOND_NS
from loadgen.flow import Flow
from loadgen.search import Capacity, Probe, Seen, search, seen_in
from loadgen.stats.confidence import Estimate, estimate

if TYPE_CHECKING:
    import numpy.typing as npt

    from loadgen.search import Room

STEP_S = 0.05
MEAN_MSGS_PER_S = 50_000.0
BUDGET_S, CEILING_S, OVERHEAD_S = 90.0, 12.0, 2.0
LENGTHS_S = {"burst": (2.0, 2.5), "probe": (1.0, 2.5), "confirm": (2.0, 4.0)}  # warm-up and window, profile quick


@dataclass
class Wandering:
    """A broker that carries 50,000 a second on average, on a clock of its own that goes on from trial to trial.

    `varies` is how much its pace differs from second to second (of the log), `drifts` from minute to minute;
    `stalls_per_s` stalls of 40 … 160 ms hold everything up, and counters are read `jitter_s` early or late.
    """

    noise: np.random.Generator
    varies: float = 0.08
    drifts: float = 0.02
    stalls_per_s: float = 0.4
    jitter_s: float = 0.008
    now_s: float = 0.0
    levels: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def carries(self, rate: float | None, warmup_s: float, window_s: float) -> dict[str, Any]:
        """A trial's record: an open loop at this rate (messages/s), or a closed one."""
        steps = round((warmup_s + window_s) / STEP_S)
        room = np.cumsum(self._paces(steps)) * STEP_S
        due = room if rate is None else rate * STEP_S * np.arange(1, steps + 1)
        # What has come is bounded by what was due and by the broker's pace, since whenever nothing waited.
        received = room + np.minimum(np.minimum.accumulate(due - room), 0.0)
        seen = np.maximum.accumulate(received + self.noise.normal(0, self.jitter_s * MEAN_MSGS_PER_S, steps))
        flow, begin_ns = Flow(), round(warmup_s * SECOND_NS)
        for step in range(steps):
            flow.enter(round(step * STEP_S * SECOND_NS), round(float(due[step])), round(float(seen[step])))
        self.now_s += warmup_s + window_s + OVERHEAD_S
        first = round(warmup_s / STEP_S)
        return {
            "goodput_msgs_per_s": float(seen[-1] - seen[first - 1]) / window_s, "sent_msgs_per_s": rate,
            "offered_msgs_per_s": rate, "window_s": window_s, "errors": {},
            "under_way": flow.summary(begin_ns, window_s), "latency_ns": {"e2e": None},
            "verdict": {"status": "valid", "bound_by": "broker", "checks": []},
        }  # fmt: skip

    def _paces(self, steps: int) -> npt.NDArray[np.float64]:
        """Messages a second in each step."""
        log = np.zeros(steps)
        for which, (spread, over_s) in enumerate(((self.varies, 1.0), (self.drifts, 60.0))):
            keeps = math.exp(-STEP_S / over_s)
            shocks = self.noise.normal(0, spread * math.sqrt(1 - keeps**2), steps)
            for step in range(steps):
                self.levels[which] = keeps * self.levels[which] + float(shocks[step])
                log[step] += self.levels[which]
        stalled = np.zeros(steps)
        for begin in np.flatnonzero(self.noise.random(steps) < self.stalls_per_s * STEP_S).tolist():
            left_s = self.noise.uniform(0.04, 0.16)
            for step in range(begin, min(steps, begin + 4)):
                stalled[step] = min(1.0, stalled[step] + min(left_s, STEP_S) / STEP_S)
                left_s = max(0.0, left_s - STEP_S)
        paces: npt.NDArray[np.float64] = MEAN_MSGS_PER_S * np.exp(log) * (1 - stalled)
        return paces


def searched(broker: Wandering) -> tuple[Capacity, float]:
    """One search within the time budget of profile quick, and how long it took."""
    began_s, full_s = broker.now_s, sum(LENGTHS_S["confirm"]) + OVERHEAD_S

    def has_time(step: Room) -> bool:
        needed_s = {"last": full_s - CEILING_S, "confirm": full_s}.get(step, 0.0)
        if step in {"burst", "probe"}:
            needed_s = sum(LENGTHS_S[step]) + OVERHEAD_S + 2 * full_s
        return broker.now_s - began_s + needed_s + CEILING_S <= BUDGET_S

    def answer(probe: Probe) -> Seen:
        record = broker.carries(probe.rate_msgs_per_s, *LENGTHS_S[probe.step])
        return seen_in(record, is_confirming=probe.step == "confirm")

    steps = search(1, 8, has_objective=False, has_time=has_time)
    probe = next(steps)
    while True:
        try:
            probe = steps.send(answer(probe))
        except StopIteration as end:
            return end.value, broker.now_s - began_s


def trio(seed: int, **world: float) -> Estimate:
    """Three searches of one point, one after the other."""
    broker = Wandering(np.random.default_rng(seed), **world)
    found = []
    for _ in range(3):
        capacity, took_s = searched(broker)
        assert took_s <= BUDGET_S
        found.append(capacity.rate_msgs_per_s)
    return estimate(found)


def test_three_searches_agree_within_15_per_cent_where_the_pace_wanders_a_little() -> None:
    """Its pace differs by 4 % from second to second, and a stall meets every third probe."""
    trios = [trio(seed, varies=0.04, stalls_per_s=0.1) for seed in range(20)]
    assert np.mean([each.n == 3 and (each.reach or 0.0) <= 0.15 for each in trios]) >= 0.8
    found = [rate for each in trios for rate in each.values]
    assert 0.9 <= np.median(found) / MEAN_MSGS_PER_S <= 1.03


def test_stalls_in_every_probe_do_not_scatter_what_is_found() -> None:
    """Three stalls in each trial and a pace that wanders by an eighth: found rates vary by less than that."""
    trios = [trio(seed, varies=0.12, drifts=0.05, stalls_per_s=0.8) for seed in range(20)]
    found = [rate for each in trios for rate in each.values]
    assert len(found) >= 0.9 * 60
    assert np.std(np.log(found)) <= 0.12
    assert 0.8 <= np.median(found) / MEAN_MSGS_PER_S <= 1.03
