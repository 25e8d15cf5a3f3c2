"""A capacity search carried out: its probes are trials like any other, and stay on record as its proof."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from loadgen.plan import SEARCH_DURATION_S, SEARCH_WARMUP_S
from loadgen.scenario import Rate
from loadgen.search import Probe, Seen, search, seen_in

if TYPE_CHECKING:
    from loadgen.plan import Trial

PRODUCERS_MOST = 8
CEILING_MARGIN = (
    1.1  # a null broker that carries hardly more than the broker did leaves open which of them was the limit
)

Record = dict[str, Any]


class Bench(Protocol):
    """Who carries trials out and keeps their records."""

    def run(self, trial: Trial) -> Record:
        """Run one trial and keep its record; raises only what ends the whole run."""

    def keep(self, record: Record) -> None:
        """Write a record again that has changed."""

    def ceiling(self, trial: Trial) -> Record:
        """What the generator reaches without a broker; its rate is null where nobody could measure it."""


def find_capacity(trial: Trial, bench: Bench) -> Record:
    """Search the capacity of a trial's point; the value is the search's record (docs/results.md, `searches`)."""
    began_s = time.monotonic()
    p99_ms = trial.rate.p99_ms
    tried: list[Record] = []
    steps = search(trial.producers, max(PRODUCERS_MOST, trial.producers), has_objective=p99_ms is not None)
    probe = next(steps)
    while True:
        record = bench.run(_trial_of(trial, probe, len(tried) + 1))
        seen = _seen(record, probe, p99_ms)
        tried.append(record)
        try:
            probe = steps.send(seen)
        except StopIteration as end:
            found = end.value
            break
        if record["purpose"] == "measure":  # it was not sustained over a full trial: no answer, a step on the way
            record["purpose"] = "probe"
            bench.keep(record)
    confirmed = tried[-1] if found.rate_msgs_per_s is not None else None
    answer: Record = {
        "id": trial.id,
        "key": trial.capacity_key,
        "scenario": trial.scenario,
        "broker": trial.broker,
        "driver": trial.driver,
        "durability": str(trial.durability),
        "point": {name: getattr(value, "value", value) for name, value in trial.point.items()},
        "repeat": trial.repeat,
        "p99_ms": p99_ms,
        "capacity_msgs_per_s": found.rate_msgs_per_s,
        "high_msgs_per_s": found.high_msgs_per_s,
        "is_lower_bound": found.is_lower_bound,
        "bound_by": found.bound_by,
        "reason": found.reason,
        "producers": found.producers,
        "ceiling_msgs_per_s": None,
        "trial": confirmed["id"] if confirmed else None,
        "trials": [record["id"] for record in tried],
        "elapsed_s": time.monotonic() - began_s,
    }
    if confirmed:
        _add_ceiling(answer, bench.ceiling(replace(trial, producers=found.producers)))
    answer["elapsed_s"] = time.monotonic() - began_s
    return answer


def _add_ceiling(answer: Record, ceiling: Record) -> None:
    """Say so where the tool itself could hardly have carried more than was found."""
    if not ceiling["achieved_msgs_per_s"]:
        return
    most = answer["ceiling_msgs_per_s"] = ceiling["achieved_msgs_per_s"]
    is_own = ceiling["bound_by"] == "generator"  # else what stood in for the broker, or the machine, was the limit
    if is_own and most < CEILING_MARGIN * answer["capacity_msgs_per_s"] and answer["p99_ms"] is None:
        answer |= {
            "is_lower_bound": True,
            "bound_by": "generator",
            "reason": f"without a broker the tool itself carries {most:,.0f} msg/s here; {answer['reason']}",
        }


def _trial_of(trial: Trial, probe: Probe, number: int) -> Trial:
    """The trial that answers a probe: short, but for the one that confirms."""
    rate = Rate.saturate() if probe.rate_msgs_per_s is None else Rate.fixed(probe.rate_msgs_per_s)
    made = replace(trial, rate=rate, asked=trial.rate, producers=probe.producers)
    if probe.step == "confirm":
        return replace(made, id=f"{trial.id}/confirm-{number}")
    return replace(
        made,
        id=f"{trial.id}/{probe.step}-{number}",
        purpose=probe.step,
        warmup_s=min(trial.warmup_s, SEARCH_WARMUP_S),
        duration_s=min(trial.duration_s, SEARCH_DURATION_S),
    )


def _seen(record: Record, probe: Probe, p99_ms: float | None) -> Seen:
    if record["status"] != "complete":
        return Seen(0.0, False, record["error"] or "the trial was cut short")
    return seen_in(record, None if probe.step == "burst" else p99_ms, is_confirming=probe.step == "confirm")
