"""Latency against load: what each fraction of its capacity does to a point's response times, and where the knee is.

**Overload is shown.** A rate above capacity, or one that was not carried, has no response time of its own: messages
queue for as long as the trial lasts, so the figure grows with the trial's length. Its trials are kept although their
verdict may be invalid, as long as none of `SOUND_CHECKS` failed: one that lost, changed or invented messages is struck
here as anywhere. A repeat that fell short where most did not stays too, unless it is invalid: what disturbed it may
come again.

**The knee is that of the medians (p50).** Kleinrock's power is defined by the mean response time, which a single pause
of the broker moves; the median follows it in a queue and hardly moves in a pause. A knee of the p99 would be the more
useful one to know, but a p99 differs by factors from one repeat to the next where points of a curve differ by tenths in
rate, so that it would fall on another point in each run. (Where response times are exponential, as in M/M/1, every
percentile has the same knee.) How far the knee moves between repeats is stated with it; the p99 there stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from loadgen.analysis import capacity_key, is_measured
from loadgen.analysis.capacity import capacities, response_ns
from loadgen.facts import came_through
from loadgen.record import enters
from loadgen.stats.confidence import Estimate, estimate
from loadgen.stats.knee import Knee, knee

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from loadgen.analysis.capacity import PointCapacity
    from loadgen.record import Record
    from loadgen.runs import Run

SOUND_CHECKS = frozenset(
    {"traffic", "integrity", "foreign", "loss", "duplicates", "broker's count", "histogram range", "clock", "disk"}
)
"""Checks that more load than a broker can carry is no excuse for; all others may fail for nothing but overload."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """One trial of a curve: rates in messages/s, response times in ns (None where it has none)."""

    trial_id: str
    repeat: int
    offered_msgs_per_s: float
    achieved_msgs_per_s: float
    p50_ns: float | None
    p99_ns: float | None
    p99_9_ns: float | None
    is_carried: bool


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A fraction of the capacity: its repeats, and the trials that are struck out.

    Where `is_overload`, latencies depend on how long a trial lasts; `why` says in words what makes it overload.
    """

    fraction: float
    repeats: tuple[Repeat, ...]
    struck: tuple[Record, ...]
    is_overload: bool
    why: str

    @property
    def offered_msgs_per_s(self) -> float | None:
        """The rate that was asked for; None where every trial is struck out."""
        return median(each.offered_msgs_per_s for each in self.repeats) if self.repeats else None

    @property
    def carried(self) -> int:
        """In how many repeats the rate was carried."""
        return sum(each.is_carried for each in self.repeats)

    @property
    def achieved(self) -> Estimate:
        """What came through in messages/s, over repeats."""
        return self._estimate(lambda each: each.achieved_msgs_per_s)

    @property
    def p50(self) -> Estimate:
        """Median response time in ns, over repeats."""
        return self._estimate(lambda each: each.p50_ns)

    @property
    def p99(self) -> Estimate:
        """99th percentile in ns, over repeats."""
        return self._estimate(lambda each: each.p99_ns)

    @property
    def p99_9(self) -> Estimate:
        """99.9th percentile in ns, over repeats."""
        return self._estimate(lambda each: each.p99_9_ns)

    def _estimate(self, measure: Callable[[Repeat], float | None]) -> Estimate:
        return estimate(measure(each) for each in self.repeats)


@dataclass(frozen=True, slots=True)
class Curve:
    """The points of one scenario, broker, driver and combination of swept values, by fraction.

    `knee` is that of the medians; `knee_by_repeat` are the fractions at which each complete repeat by itself has one.
    `capacity` is what the fractions are of; None where the run does not tell.
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
    window_s: float | None
    points: tuple[CurvePoint, ...]
    knee: Knee
    knee_by_repeat: tuple[float, ...]
    capacity: PointCapacity | None

    @property
    def shown(self) -> tuple[CurvePoint, ...]:
        """The points that have something to show."""
        return tuple(each for each in self.points if each.p50.n)

    @property
    def knee_point(self) -> CurvePoint | None:
        """The point at the knee."""
        rate = self.knee.rate_msgs_per_s
        return None if rate is None else next(each for each in self.shown if each.offered_msgs_per_s == rate)


def curves(run: Run) -> list[Curve]:
    """A run's curves, in the order in which their first trials ran."""
    gathered: dict[str, list[Record]] = {}
    for record in run.records:
        if is_measured(record) and (record["rate"] or {}).get("fractions"):
            gathered.setdefault(capacity_key(record), []).append(record)
    known = {each.key: each for each in capacities(run)}
    return [_curve(key, records, known) for key, records in gathered.items()]


def _curve(key: str, records: Sequence[Record], known: dict[str, PointCapacity]) -> Curve:
    by_fraction: dict[float, list[Record]] = {}
    for record in records:
        by_fraction.setdefault(float(record["rate"]["fractions"][0]), []).append(record)
    points = tuple(_point(fraction, by_fraction[fraction]) for fraction in sorted(by_fraction))
    # Trials that never ran, as no capacity was found, know neither how many producers nor how long.
    first = next((each for each in records if each["status"] == "complete"), records[0])
    return Curve(
        key=key,
        scenario=first["scenario"],
        broker=first["broker"],
        driver=first["driver"],
        driver_kind=first["driver_kind"] or "unknown",
        durability=str(first["durability"]),
        point={name: value for name, value in first["point"].items() if name != "fraction"},
        message=first["message"] or {},
        consumers=first["consumers"],
        subscribers=first["subscribers"],
        producers=first["producers"],
        window_s=first["window_s"],
        points=points,
        knee=_knee(points),
        knee_by_repeat=_knee_by_repeat(points),
        capacity=known.get(key),
    )


def _point(fraction: float, records: Iterable[Record]) -> CurvePoint:
    complete = [record for record in records if record["status"] == "complete" and record["offered_msgs_per_s"]]
    carried = sum(_is_carried(record) for record in complete)
    fell_short = bool(complete) and 2 * carried <= len(complete)
    is_overload = fraction > 1 or fell_short
    why = f"not carried in {len(complete) - carried} of {len(complete)}"
    if fraction > 1:
        why = f"above the capacity{f', and yet carried in {carried} of {len(complete)}' if carried else ''}"
    used = [record for record in complete if enters(record) or (is_overload and _is_only_overloaded(record))]
    return CurvePoint(
        fraction=fraction,
        repeats=tuple(_repeat(record) for record in used),
        struck=tuple(record for record in records if record not in used),
        is_overload=is_overload,
        why=why if is_overload else "",
    )


def _repeat(record: Record) -> Repeat:
    return Repeat(
        trial_id=record["id"],
        repeat=record["repeat"],
        offered_msgs_per_s=float(record["offered_msgs_per_s"]),
        achieved_msgs_per_s=_achieved(record),
        p50_ns=response_ns(record, "p50"),
        p99_ns=response_ns(record, "p99"),
        p99_9_ns=response_ns(record, "p99_9"),
        is_carried=_is_carried(record),
    )


def _achieved(record: Record) -> float:
    """What came through to each subscriber in messages/s: once and intact; confirmed, where nobody consumes."""
    consumed = (record["goodput_msgs_per_s"] or 0.0) / record["subscribers"]
    return float(consumed if record["consumers"] else record["achieved_msgs_per_s"] or 0.0)


def _is_carried(record: Record) -> bool:
    return came_through(record, _achieved(record), record["subscribers"])


def _is_only_overloaded(record: Record) -> bool:
    """Whether all that speaks against a trial is what overload does; not where nobody says what does."""
    failed = {check["name"] for check in record["verdict"].get("checks") or () if check["passed"] is False}
    return bool(failed) and not failed & SOUND_CHECKS


def _knee(points: Iterable[CurvePoint]) -> Knee:
    medians = [(each.offered_msgs_per_s, each.p50.median) for each in points]
    return _knee_of([(rate, latency) for rate, latency in medians if rate is not None and latency is not None])


def _knee_by_repeat(points: Sequence[CurvePoint]) -> tuple[float, ...]:
    """The fraction at the knee of each repeat that has all points, where it has one."""
    by_repeat: dict[int, dict[float, tuple[float, float]]] = {}
    for point in points:
        for each in point.repeats:
            if each.p50_ns:
                by_repeat.setdefault(each.repeat, {})[point.fraction] = (each.offered_msgs_per_s, each.p50_ns)
    shown = sum(bool(point.p50.n) for point in points)
    found = []
    for measured in by_repeat.values():
        rate = _knee_of(list(measured.values())).rate_msgs_per_s if len(measured) == shown else None
        found += [fraction for fraction, (offered, _) in measured.items() if offered == rate]
    return tuple(found)


def _knee_of(points: Sequence[tuple[float, float]]) -> Knee:
    return knee([rate for rate, _ in points], [latency for _, latency in points])
