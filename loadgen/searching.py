"""A capacity search carried out: its probes are trials like any other, and stay on record as its proof.

It ends within its budget. What a step takes is known but for the time between windows (starting processes, draining,
waiting for the disk): the longest that was seen counts. A step is begun only if a trial of full length after it, and
another one should that fail, and the ceiling fit in as well.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from loadgen.errors import LoadgenError
from loadgen.plan import SEARCH_CONFIRMS, SEARCH_DURATION_S, SEARCH_WARMUP_S, search_length_s
from loadgen.scenario import Rate
from loadgen.search import Capacity, Seen, search, seen_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.plan import Trial
    from loadgen.search import Probe, Room

PRODUCERS_MOST = 8
CEILING_MARGIN = (
    1.1  # a null broker that carries hardly more than the broker did leaves open which of them was the limit
)
CLIENTS_LIMITS = ("generator", "host")  # what says most of the tool first
KNOWN_LIMITS = (*CLIENTS_LIMITS, "consumers", "offered")  # which stay, whatever else may have been near

Record = dict[str, Any]


class Bench(Protocol):
    """Who carries trials out and keeps their records."""

    def run(self, trial: Trial) -> Record:
        """Run one trial and keep its record; raises only what ends the whole run."""

    def keep(self, record: Record) -> None:
        """Write a record again that has changed."""

    def found(self, answer: Record) -> None:
        """Write down what a search came to, also where it was cut short by what ends the run."""

    def ceiling_s(self, trial: Trial, needed_msgs_per_s: float | None = None) -> float:
        """How long it takes at most to tell a trial's ceiling, in seconds; 0 where it is known, also of such a rate."""

    def ceiling(self, trial: Trial, needed_msgs_per_s: float) -> Record:
        """What the generator reaches without a broker, and whether it can pace so much; null where nobody knows."""


def find_capacity(trial: Trial, bench: Bench, clock_s: Callable[[], float] = time.monotonic) -> Record:
    """Search the capacity of a trial's point; the value is the search's record (run.schema.json, `searches`).

    Raises what `bench.run` raises, after the search has been written down as one that cannot tell.
    """
    budget = Budget(trial, bench.ceiling_s(trial), clock_s)
    tried: list[Record] = []
    try:
        found = _searched(trial, bench, budget, tried)
    except LoadgenError as error:  # it ends the run, and the search says so before
        unknown = Capacity(None, None, trial.producers, "unknown", False, f"cannot tell: {error}", "failed")
        bench.found(_answer(trial, unknown, tried, budget))
        raise
    answer = _answer(trial, found, tried, budget)
    if found.rate_msgs_per_s is not None and found.ended_by != "enough":  # a rate of its own asking is no limit
        needed = CEILING_MARGIN * found.rate_msgs_per_s
        at = replace(trial, producers=found.producers)
        if budget.has_time_for_ceiling(bench.ceiling_s(at, needed), is_reserved=found.ended_by != "budget"):
            _add_ceiling(answer, bench.ceiling(at, needed))
        else:
            _leave_open(answer, "there was no time to see what the tool carries without a broker")
    answer["elapsed_s"] = budget.elapsed_s
    bench.found(answer)
    return answer


def _searched(trial: Trial, bench: Bench, budget: Budget, tried: list[Record]) -> Capacity:
    """Run what the search asks for until it knows; `tried` gets every record."""
    p99_ms = trial.rate.p99_ms
    most = max(PRODUCERS_MOST, trial.producers)
    steps = search(
        trial.producers,
        most,
        has_objective=p99_ms is not None,
        has_time=budget.has_time,
        enough_msgs_per_s=trial.rate.enough_msgs_per_s,
    )
    probe = next(steps)
    while True:
        record = budget.timed(bench.run, _trial_of(trial, probe, len(tried) + 1))
        tried.append(record)
        found = None
        try:
            probe = steps.send(_seen(record, probe, p99_ms))
        except StopIteration as end:
            found = cast("Capacity", end.value)
        is_answer = found is not None and found.rate_msgs_per_s is not None
        if record["purpose"] == "measure" and not is_answer:  # not sustained over a full trial: a step on the way
            record["purpose"] = "probe"
            bench.keep(record)
        if found is not None:
            return found


def _answer(trial: Trial, found: Capacity, tried: list[Record], budget: Budget) -> Record:
    confirmed = tried[-1] if found.rate_msgs_per_s is not None else None
    return {
        "id": trial.id,
        "key": trial.capacity_key,
        "scenario": trial.scenario,
        "broker": trial.broker,
        "driver": trial.driver,
        "durability": str(trial.durability),
        "point": {name: getattr(value, "value", value) for name, value in trial.point.items()},
        "repeat": trial.repeat,
        "p99_ms": trial.rate.p99_ms,
        "capacity_msgs_per_s": found.rate_msgs_per_s,
        "high_msgs_per_s": found.high_msgs_per_s,
        "is_lower_bound": found.is_lower_bound,
        "bound_by": found.bound_by,
        "reason": found.reason,
        "ended_by": found.ended_by,
        "budget_s": trial.search_budget_s,
        "producers": found.producers,
        "subscribers": trial.subscribers,
        "consumed_msgs_per_s": confirmed["goodput_msgs_per_s"] if confirmed else None,
        "ceiling_msgs_per_s": None,
        "trial": confirmed["id"] if confirmed else None,
        "trials": [record["id"] for record in tried],
        "elapsed_s": budget.elapsed_s,
    }


def line_of_search(answer: Record) -> str:
    """A finished search in one line."""
    if answer["capacity_msgs_per_s"] is None:
        return f"{answer['id']}: no capacity: {answer['reason']}"
    least = "at least " if answer["is_lower_bound"] else ""
    rate = f"{answer['capacity_msgs_per_s']:,.0f} msg/s"
    if answer["subscribers"] > 1:
        rate += f" produced, {answer['consumed_msgs_per_s']:,.0f} consumed by {answer['subscribers']} subscribers"
    return (
        f"{answer['id']}: capacity {least}{rate}, bound by {answer['bound_by']} ({answer['reason']}); "
        f"{len(answer['trials'])} trials in {answer['elapsed_s']:.0f} s"
    )


class Budget:
    """A search's time: what is left of it, and whether a step and what must follow it fit in."""

    def __init__(self, trial: Trial, ceiling_s: float, clock_s: Callable[[], float]) -> None:
        self._trial, self._ceiling_s, self._clock_s = trial, ceiling_s, clock_s
        self._began_s = clock_s()
        self._overhead_s = trial.overhead_s

    @property
    def elapsed_s(self) -> float:
        """How long the search has taken so far, in seconds."""
        return self._clock_s() - self._began_s

    def timed(self, run: Callable[[Trial], Record], trial: Trial) -> Record:
        """Run a trial and learn from it how long the next ones take beside their windows."""
        began_s = self._clock_s()
        record = run(trial)
        spent_s = self._clock_s() - began_s
        self._overhead_s = max(self._overhead_s, spent_s - trial.warmup_s - trial.duration_s)
        return record

    def has_time_for_ceiling(self, ceiling_s: float, *, is_reserved: bool) -> bool:
        """Whether a ceiling of so long still fits in, or (`is_reserved`) has the time that was kept for it.

        None was kept where it was known when the search began, of fewer producers or of a lower rate.
        """
        is_kept = is_reserved and ceiling_s <= self._ceiling_s
        return not ceiling_s or is_kept or self.elapsed_s + ceiling_s <= self._trial.search_budget_s

    def has_time(self, step: Room) -> bool:
        """Whether a step, the trials of full length after it and the ceiling take no longer than is left."""
        full_s = self._trial.warmup_s + self._trial.duration_s + self._overhead_s
        if step == "last":
            needed_s = full_s - self._ceiling_s
        elif step == "confirm":
            needed_s = full_s
        else:
            length_s = search_length_s(self._trial)
            if step == "burst":
                length_s += max(0.0, self._trial.warmup_s - SEARCH_WARMUP_S)
            needed_s = length_s + self._overhead_s + SEARCH_CONFIRMS * full_s
        return self.elapsed_s + needed_s + self._ceiling_s <= self._trial.search_budget_s


def _add_ceiling(answer: Record, ceiling: Record) -> None:
    """Say so where the tool itself could hardly have carried more than was found, or where nobody knows that it could.

    A ceiling is a lower bound of what the generator can do. Where the generator set one near the capacity, that is the
    generator's. Where the machine set it, or what stood in for the broker, nothing shows that the generator had more to
    give: the capacity is "at least", too. A schedule that was disturbed shows nothing.
    """
    most, unpaced = ceiling["achieved_msgs_per_s"], ceiling["unpaced_msgs_per_s"]
    if not most:
        _leave_open(answer, ceiling["error"] or "no ceiling is known: without a broker nothing came through")
        return
    answer["ceiling_msgs_per_s"] = most
    needed = CEILING_MARGIN * answer["capacity_msgs_per_s"]
    near: list[tuple[str, str]] = []
    if most < needed:
        near.append((ceiling["bound_by"], f"carries {most:,.0f} msg/s"))
    if unpaced is not None and unpaced <= needed:
        near.append((ceiling["unpaced_bound_by"], f"paces less than {unpaced:,.0f} msg/s"))
    if not near:
        return
    limit, what = min(near, key=lambda each: [*CLIENTS_LIMITS, each[0]].index(each[0]))
    if limit == "unknown":
        _leave_open(answer, f"whether the tool itself paces {unpaced:,.0f} msg/s without a broker is not known")
        return
    doubt = {"generator": "", "host": " and uses up the machine, whose limit this may be"}.get(
        limit, f", held by the {limit}, so that nobody knows whether it could do more"
    )
    answer |= {
        "is_lower_bound": True,
        "bound_by": next((each for each in KNOWN_LIMITS if each in {limit, answer["bound_by"]}), "unknown"),
        "reason": f"without a broker the tool itself {what} here{doubt}; {answer['reason']}",
    }


def _leave_open(answer: Record, why: str) -> None:
    """Say that nobody knows what the tool carries; a capacity that the machine bounds is "at least" then.

    Where the broker was the limit, with room left on the machine and in the clients, that is shown without a ceiling.
    """
    answer["reason"] += f"; {why}"
    if answer["bound_by"] in {"host", "unknown"}:
        answer["is_lower_bound"] = True


def tells(ceiling: Record, needed_msgs_per_s: float | None) -> bool:
    """Whether a ceiling says if the tool can pace such a rate; between what it paced and what it did not, nobody knows.

    True also where no ceiling can be known, where the closed loop carried less, and where no open loop could be tried.
    """
    most, paced, unpaced = (ceiling[f"{name}_msgs_per_s"] for name in ("achieved", "paced", "unpaced"))
    if needed_msgs_per_s is None or not most or most < needed_msgs_per_s or paced is unpaced is None:
        return True
    return (paced or 0.0) >= needed_msgs_per_s or (unpaced is not None and unpaced <= needed_msgs_per_s)


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
        # A burst says where to look: what it says of a cold broker or topic misleads all that follows.
        warmup_s=trial.warmup_s if probe.step == "burst" else min(trial.warmup_s, SEARCH_WARMUP_S),
        duration_s=min(trial.duration_s, SEARCH_DURATION_S),
    )


def _seen(record: Record, probe: Probe, p99_ms: float | None) -> Seen:
    if record["status"] != "complete":
        return Seen(0.0, False, record["error"] or "the trial was cut short", has_run=False)
    objective = None if probe.step == "burst" else p99_ms
    return seen_in(record, objective, record["subscribers"], is_confirming=probe.step == "confirm")
