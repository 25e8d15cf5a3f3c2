"""Capacities: the searches of one point taken together, with what bounded them and how far off the tool's limit is.

A search answers with the highest rate that a trial of full length sustained, and brackets it: the lowest rate that
was not sustained lies above. Over repeats the interval is that of `loadgen.stats.confidence`, whose unit is the repeat.
One search has its bracket instead, which says how finely it looked and nothing of how searches vary.

Where one of the searches never reached the broker's limit, all of them together are a lower bound: a mean of values of
which one is too small is too small.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from loadgen.analysis import capacity_key
from loadgen.record import RESPONSE_KINDS, enters
from loadgen.stats.confidence import Estimate, estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.record import Record
    from loadgen.runs import Run


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What the load generator itself carries in messages/s, against what stood in for a broker, and what limited it.

    `msgs_per_s` is a closed loop's. `paced_msgs_per_s` is the highest rate that it was seen to pace as an open loop,
    which is what a capacity is; None where nobody tried, or no rate was paced: `paced_reason` says what speaks against
    the next higher one.
    """

    msgs_per_s: float
    how: str
    limits: str
    paced_msgs_per_s: float | None = None
    paced_reason: str = ""

    @property
    def held_msgs_per_s(self) -> float:
        """What a capacity is held against: the open loop's rate, or where it is not known the closed loop's."""
        return self.paced_msgs_per_s or self.msgs_per_s


@dataclass(frozen=True, slots=True)
class PointCapacity:
    """The capacity of one point: all its searches, those that count, and the trials that confirmed them.

    Rates are those of producing; each of the `subscribers`, with so many `consumers`, receives as many.
    `used` are searches that found a rate and whose confirming trial may be used; `trials` are those trials, in the same
    order. `estimate` is of their rates in messages/s. `p99_ms` is the objective, None without one. `ceiling` is None
    where nobody measured it. `producers` are the most that any search ended with.
    """

    key: str
    scenario: str
    broker: str
    driver: str
    driver_kind: str
    durability: str
    point: dict[str, Any]
    message: dict[str, Any]
    consumers: int | None
    subscribers: int
    producers: int | None
    p99_ms: float | None
    searches: tuple[Record, ...]
    used: tuple[Record, ...]
    trials: tuple[Record, ...]
    estimate: Estimate
    ceiling: Ceiling | None

    @property
    def msgs_per_s(self) -> float | None:
        """The median over the searches that count; None where none found a rate."""
        return self.estimate.median

    @property
    def bracket(self) -> tuple[float, float | None] | None:
        """Of one search: the rate that was sustained and the lowest that was not; None with more searches or none."""
        if self.estimate.n != 1:
            return None
        return self.estimate.values[0], self.used[0]["high_msgs_per_s"]

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """The interval over repeats, or of one search its bracket; None on a side that nothing bounds."""
        if self.estimate.has_interval:
            return self.estimate.low, self.estimate.high
        return self.bracket or (None, None)

    @property
    def limits_are(self) -> Literal["repeats", "bracket", "none"]:
        """What `limits` is made of."""
        return "repeats" if self.estimate.has_interval else "bracket" if self.bracket else "none"

    @property
    def resolution(self) -> float | None:
        """How far the lowest rate that was too much lies above the capacity, at the widest (a share of it)."""
        found = [
            search["high_msgs_per_s"] / search["capacity_msgs_per_s"] - 1
            for search in self.used
            if search["high_msgs_per_s"] is not None
        ]
        return max(found, default=None)

    @property
    def is_lower_bound(self) -> bool:
        """Whether one of the searches never reached the broker's limit: the capacity is "at least" this."""
        return any(search["is_lower_bound"] for search in self.used)

    @property
    def bound_by(self) -> str:
        """What limited the searches that count, the most frequent first; empty without one."""
        counted = Counter(str(search["bound_by"]) for search in self.used)
        return " / ".join(name for name, _ in counted.most_common())

    @property
    def headroom(self) -> float | None:
        """The ceiling over the capacity: how many times as much the tool itself carries."""
        if self.ceiling is None or not self.msgs_per_s:
            return None
        return self.ceiling.held_msgs_per_s / self.msgs_per_s

    @property
    def elapsed_s(self) -> float:
        """How long all its searches took together, in seconds."""
        return sum(float(search["elapsed_s"]) for search in self.searches)

    @property
    def by_repeat(self) -> dict[int, float]:
        """The rate in messages/s by repeat, for pairing."""
        return {search["repeat"]: float(search["capacity_msgs_per_s"]) for search in self.used}

    def latency(self, percentile: str) -> Estimate:
        """A percentile of the response time at capacity in ns, over the confirming trials; empty where none exists."""
        return estimate(response_ns(record, percentile) for record in self.trials)


def response_ns(record: Record, percentile: str) -> float | None:
    """A trial's percentile of the response time in ns: end to end, or of publishing where nobody consumes."""
    for kind in RESPONSE_KINDS:
        summary = record["latency_ns"].get(kind)
        if summary and summary.get("count"):
            value: float | None = summary[percentile]
            return value
    return None


def capacities(run: Run) -> list[PointCapacity]:
    """A run's capacities, one for each key of its searches, in the order in which they were first searched."""
    gathered: dict[str, list[Record]] = {}
    for search in run.header["searches"]:
        gathered.setdefault(search["key"], []).append(search)
    trials = {record["id"]: record for record in run.records}
    return [_capacity(run, searches, trials) for searches in gathered.values()]


def _capacity(run: Run, searches: list[Record], trials: dict[str, Record]) -> PointCapacity:
    first = searches[0]
    tried = [trials[trial_id] for search in searches for trial_id in search["trials"] if trial_id in trials]
    # A plan that runs without brokers is driven by another driver than it names: the trials know.
    seen = tried[0] if tried else {**first, "driver_kind": None, "message": None, "consumers": None, "subscribers": 1}
    used = [each for each in searches if _counts(each, trials)]
    producers = max((each["producers"] for each in used or searches), default=None)
    return PointCapacity(
        key=capacity_key(seen),
        scenario=first["scenario"],
        broker=first["broker"],
        driver=seen["driver"],
        driver_kind=seen["driver_kind"] or "unknown",
        durability=str(first["durability"]),
        point=first["point"],
        message=seen["message"] or {},
        consumers=seen["consumers"],
        subscribers=seen["subscribers"],
        producers=producers,
        p99_ms=first["p99_ms"],
        searches=tuple(searches),
        used=tuple(used),
        trials=tuple(trials[each["trial"]] for each in used),
        estimate=estimate(each["capacity_msgs_per_s"] for each in used),
        ceiling=_ceiling(run, searches, producers),
    )


def _counts(search: Record, trials: dict[str, Record]) -> bool:
    confirming = trials.get(search["trial"] or "")
    return search["capacity_msgs_per_s"] is not None and confirming is not None and enters(confirming)


def _ceiling(run: Run, searches: Sequence[Record], producers: int | None) -> Ceiling | None:
    """What was measured for this point with as many producers, else what its searches were held against."""
    found = [each for each in run.header["ceilings"] if _belongs(each, searches[0]) and each.get("achieved_msgs_per_s")]
    same = [each for each in found if each.get("producers") == producers] or found
    if same:
        ordered = sorted(same, key=lambda each: float(each["achieved_msgs_per_s"]))
        middle = ordered[(len(ordered) - 1) // 2]
        return Ceiling(
            msgs_per_s=float(middle["achieved_msgs_per_s"]),
            how=_said(middle.get("how")),
            limits=_said(middle.get("limits")),
            paced_msgs_per_s=middle.get("paced_msgs_per_s"),
            paced_reason=_said(middle.get("paced_reason")),
        )
    held = [float(each["ceiling_msgs_per_s"]) for each in searches if each["ceiling_msgs_per_s"]]
    return Ceiling(median(held), "", "") if held else None


def _belongs(ceiling: Record, search: Record) -> bool:
    """Whether a ceiling is of a search's point."""
    if "key" in ceiling:
        return bool(ceiling["key"] == search["key"])
    return all(ceiling.get(name) == search[name] for name in ("scenario", "broker", "driver", "point"))


def _said(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value or "")
