"""Does a broker carry what was demanded? The rules by which `loadgen decide` answers, from a run's files.

Each broker (and each setting of it that was swept) is a candidate. Three things speak for or against it:

* its **trials at the demanded rate**, each held to the rules of a capacity search's trial of full length
  (`loadgen.search`): carried within 1 %, no growing backlog, nothing lost, the p99 kept. One that failed is `missed`
  where the broker set the limit. It is `unclear` where clients or machine did, or where it was invalid for something
  else: that says nothing of the broker;
* the **edge**, the highest rate at which searches still found the p99 kept, with its interval over the searches;
* the **loss**: what became of confirmed messages when the leader was killed.

A candidate *carries* the demand where all its trials kept it, the interval of their p99 lies below the objective and
that of the edge above the demand. It *does not carry* it where the broker missed it in all trials and neither interval
allows for chance, or where confirmed messages were lost. All else *cannot be told*, and why is said. One trial has no
interval, and so never tells.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from statistics import stdev
from typing import TYPE_CHECKING, Any, Literal

from loadgen.analysis.capacity import capacities, response_ns
from loadgen.demand import DEMAND, LOSS, Demand
from loadgen.record import enters, surely_lost
from loadgen.search import seen_in
from loadgen.stats.confidence import Estimate, Ratio, estimate, log_ratios, paired_ratio
from loadgen.stats.power import repeats_needed, spread_bound

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.analysis.capacity import PointCapacity
    from loadgen.record import Record
    from loadgen.runs import Run

Outcome = Literal["kept", "missed", "unclear"]
Answer = Literal["carries", "does not carry", "cannot tell"]
BROKERS_OWN = frozenset({"broker", "objective"})
"""Limits that are the broker's, where a trial missed its rate or its objective."""
POWER = 0.9


@dataclass(frozen=True, slots=True)
class Tried:
    """One trial at the demanded rate; `why` says what speaks against it (or what it carried), `limit` whose limit.

    `disturbed` says that something else than the trial used the machine meanwhile.
    """

    trial_id: str
    repeat: int
    outcome: Outcome
    why: str
    limit: str
    p99_ns: float | None
    disturbed: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One broker as it was set: its trials at the demanded rate, its edge, and what its leader's death showed.

    `p99` is of the response time in ns over the trials that count; `edge` is None where no search was made. `why` says
    why it does not carry the demand, or why that cannot be told.
    """

    broker: str
    driver: str
    driver_kind: str
    point: dict[str, Any]
    settings: dict[str, Any]
    producers: int
    consumers: int
    demand: Demand
    trials: tuple[Tried, ...]
    p99: Estimate
    edge: PointCapacity | None
    loss: Record | None
    answer: Answer = "cannot tell"
    why: tuple[str, ...] = ()

    @property
    def has_edge(self) -> bool:
        """Whether a search found a rate that keeps the objective."""
        return self.edge is not None and self.edge.msgs_per_s is not None

    @property
    def headroom(self) -> tuple[float | None, float | None, float | None]:
        """The edge over the demand: the median, and the ends of its interval; None where they are not known."""
        if self.edge is None:
            return None, None, None
        low, high = self.edge.limits
        ends = (self.edge.msgs_per_s, low, high)
        middle, low, high = (None if each is None else each / self.demand.msgs_per_s for each in ends)
        return middle, low, high

    @property
    def repeats_needed(self) -> int | None:
        """How many trials would tell such a p99 from the objective, nine times in ten; None where nobody knows."""
        logs = log_ratios((value, 1.0) for value in self.p99.values)
        objective_ns = self.demand.p99_ms * 1e6
        if len(logs) < 2 or self.p99.median is None or self.p99.median == objective_ns:
            return None
        spread = spread_bound(stdev(logs), len(logs) - 1)
        return repeats_needed(objective_ns / self.p99.median, spread, POWER)

    def of(self, outcome: Outcome) -> list[Tried]:
        """Its trials that ended so."""
        return [each for each in self.trials if each.outcome == outcome]


@dataclass(frozen=True, slots=True)
class Decision:
    """What was demanded, and every candidate's answer; RabbitMQ's first."""

    run: Run
    demand: Demand
    candidates: tuple[Candidate, ...]

    @property
    def is_told(self) -> bool:
        """Whether of every candidate it is known whether it carries the demand."""
        return bool(self.candidates) and all(each.answer != "cannot tell" for each in self.candidates)

    def answer_of(self, broker: str) -> Answer | None:
        """A broker's answer: that of its best candidate; None where it was not asked."""
        answers = [each.answer for each in self.candidates if each.broker == broker]
        order: tuple[Answer, ...] = ("carries", "cannot tell", "does not carry")
        return min(answers, key=order.index, default=None)

    def described(self) -> dict[str, Any]:
        """Plain data for machines."""
        return {
            "demand": {name: getattr(self.demand, name) for name in Demand.__slots__},
            "durability": str(self.demand.durability),
            "is_told": self.is_told,
            "candidates": [_described(each) for each in self.candidates],
        }


def _described(candidate: Candidate) -> dict[str, Any]:
    edge, (middle, low, high) = candidate.edge, candidate.headroom
    return {
        **{name: getattr(candidate, name) for name in ("broker", "driver", "point", "settings", "answer", "why")},
        "trials": [{name: getattr(each, name) for name in Tried.__slots__} for each in candidate.trials],
        "p99_ns": {name: getattr(candidate.p99, name) for name in ("median", "low", "high", "n")},
        "edge_msgs_per_s": None if edge is None else {"median": edge.msgs_per_s, "low": edge.limits[0],
                                                      "high": edge.limits[1], "is_at_least": edge.is_lower_bound,
                                                      "bound_by": edge.bound_by, "searches": edge.estimate.n},
        "headroom": {"median": middle, "low": low, "high": high},
        "confirmed_lost": None if candidate.loss is None else candidate.loss["confirmed_lost"],
    }  # fmt: skip


def demand_of(run: Run) -> Demand | None:
    """What a run of `loadgen decide` was asked; None of every other run."""
    asked = (run.header.get("plan") or {}).get("demand")
    return Demand(**asked) if asked else None


def decide(run: Run) -> Decision | None:
    """Every candidate's answer; None where nothing was demanded."""
    demand = demand_of(run)
    if demand is None:
        return None
    gathered: dict[str, list[Record]] = {}
    for record in run.records:
        if record["scenario"] == DEMAND and record["broker"] is not None:
            gathered.setdefault(_key(record), []).append(record)
    found = {_key(each.searches[0], each.driver): each for each in capacities(run)}
    lost = {_key(record): record for record in run.records if record["scenario"] == LOSS}
    candidates = [
        _candidate(demand, records, found.get(key), lost.get(key)) for key, records in sorted(gathered.items())
    ]
    return Decision(run, demand, tuple(sorted(candidates, key=lambda each: each.broker != "rabbitmq")))


def _key(record: Record, driver: str | None = None) -> str:
    """What tells candidates apart."""
    return json.dumps([record["broker"], driver or record["driver"], record["point"]], sort_keys=True, default=str)


def _candidate(demand: Demand, records: list[Record], edge: PointCapacity | None, loss: Record | None) -> Candidate:
    first = records[0]
    trials = tuple(tried(record, demand) for record in records)
    counted = [response_ns(record, "p99") for record in records if enters(record)]
    bare = Candidate(
        broker=first["broker"],
        driver=first["driver"],
        driver_kind=first["driver_kind"] or "unknown",
        point=first["point"],
        settings=first["settings"],
        producers=first["producers"] or 1,
        consumers=first["consumers"] or 1,
        demand=demand,
        trials=trials,
        p99=estimate(counted),
        edge=edge,
        loss=loss,
    )
    return answered(bare)


def tried(record: Record, demand: Demand) -> Tried:
    """What a trial at the demanded rate says."""
    name, repeat = record["id"], record["repeat"] or 1
    if record["status"] != "complete":
        return Tried(name, repeat, "unclear", f"it did not run: {record['error'] or 'cut short'}", "unknown", None)
    seen = seen_in(record, demand.p99_ms, demand.subscribers, is_confirming=True)
    is_missed = seen.limit in BROKERS_OWN and not seen.disturbed
    outcome: Outcome = "kept" if seen.sustained else "missed" if is_missed else "unclear"
    return Tried(name, repeat, outcome, seen.why, seen.limit, response_ns(record, "p99"), seen.disturbed)


def answered(candidate: Candidate) -> Candidate:
    """The candidate with its answer, and what speaks against it."""
    lost = has_lost(candidate)
    if lost:
        return replace(candidate, answer="does not carry", why=(lost,))
    doubts = tuple(text for rule in DOUBTS if (text := rule(candidate)))
    if doubts:
        return replace(candidate, answer="cannot tell", why=doubts)
    if candidate.of("kept"):
        return replace(candidate, answer="carries")
    return replace(candidate, answer="does not carry", why=tuple(dict.fromkeys(each.why for each in candidate.trials)))


def has_lost(candidate: Candidate) -> str | None:
    """Confirmed messages that were gone after the leader's death, which no p99 makes good."""
    lost = surely_lost(candidate.loss) if candidate.loss is not None else None
    return f"{lost:,} confirmed messages were lost when its leader was killed" if lost else None


def doubt_unclear(candidate: Candidate) -> str | None:
    """Trials that failed for what was not shown to be the broker's."""
    unclear = candidate.of("unclear")
    if not unclear:
        return None
    limits = {"disturbed" if each.disturbed else each.limit for each in unclear}
    whose = {
        "disturbed": ": something else used the machine meanwhile",
        "host": ": clients and broker together used up this machine, and the broker alone may carry more",
        "generator": ": the clients were the limit, and the broker may carry more",
        "consumers": ": the consumers’ own work was the limit, and the broker may carry more",
    }.get(next(iter(limits)) if len(limits) == 1 else "", "")
    verb = "does" if len(candidate.trials) == 1 else "do"
    first = ", the first: " if len(unclear) > 1 else ": "
    return f"{len(unclear)} of {_trials(candidate)} {verb} not tell{first}{unclear[0].why}{whose}"


def doubt_mixed(candidate: Candidate) -> str | None:
    """Some trials kept it and others did not."""
    kept, missed = candidate.of("kept"), candidate.of("missed")
    if not kept or not missed:
        return None
    return f"it kept it in {len(kept)} of {_trials(candidate)}; in another one {missed[0].why}"


def doubt_single(candidate: Candidate) -> str | None:
    """One trial has no interval."""
    return "one trial has no interval" if len(candidate.trials) == 1 else None


def doubt_p99(candidate: Candidate) -> str | None:
    """The interval of its p99 holds the objective, which decides nothing where the rate alone was missed."""
    low, high = candidate.p99.low, candidate.p99.high
    if low is None or high is None or any(each.limit != "objective" for each in candidate.of("missed")):
        return None
    objective_ns = candidate.demand.p99_ms * 1e6
    return "the interval of its p99 over the trials includes the objective" if low <= objective_ns <= high else None


def doubt_edge(candidate: Candidate) -> str | None:
    """The interval of its edge holds the demand, or lies on the other side of it than the trials say."""
    if candidate.edge is None:
        return None
    if not candidate.has_edge:
        return "its searches found no rate that keeps the objective" if candidate.of("kept") else None
    (low, high), demanded = candidate.edge.limits, candidate.demand.msgs_per_s
    if candidate.of("kept") and low is not None and low <= demanded:
        return "the interval of its edge over the searches includes the demand"
    if candidate.of("missed") and (high is None or high >= demanded):
        return "searches found its edge not clearly below the demand, which its trials at that rate missed"
    return None


def doubt_loss(candidate: Candidate) -> str | None:
    """The leader was to be killed, and what became of confirmed messages is not known."""
    loss = candidate.loss
    if loss is None or not candidate.of("kept"):
        return None
    failed = next((each["error"] for each in loss["faults"] or () if each.get("error")), None)
    if failed:
        return f"its leader was not killed: {failed}"
    if loss["status"] != "complete" or surely_lost(loss) is None:
        return f"what the death of its leader cost is not known: {loss['error'] or 'its trial did not come to its end'}"
    return None


DOUBTS: tuple[Callable[[Candidate], str | None], ...] = (
    doubt_unclear, doubt_mixed, doubt_single, doubt_p99, doubt_edge, doubt_loss,
)  # fmt: skip
"""Why a candidate's answer cannot be told; the first that holds comes first."""


def _trials(candidate: Candidate) -> str:
    count = len(candidate.trials)
    return f"{count} trial{'s' * (count != 1)}"


def p99_ratio(one: Candidate, other: Candidate) -> Ratio:
    """One candidate's p99 at the demanded rate over another's, paired by repeat, over trials that kept it."""
    top, bottom = ({each.repeat: each.p99_ns for each in of.of("kept")} for of in (one, other))
    return paired_ratio((top[repeat], bottom[repeat]) for repeat in sorted(top.keys() & bottom.keys()))
