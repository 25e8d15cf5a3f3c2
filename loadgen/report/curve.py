"""Latency against load in numbers, as data for all three formats."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadgen.report import detail, words
from loadgen.report import points as pt
from loadgen.report.capacity import found_producers, home, load_text, one_run_of, order
from loadgen.report.detail import NOTHING, Quantity, quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.analysis.curve import Curve, CurvePoint
    from loadgen.runs import Run

OVERLOAD_NOTE = (
    "In overload messages queue for as long as the trial lasts: its times say that the rate was too much, and grow "
    "with the length of the trial."
)


@dataclass(frozen=True)
class CurveLine:
    """A fraction of the capacity."""

    fraction: str
    offered: str
    achieved: Quantity
    carried: str
    p50: Quantity
    p99: Quantity
    p99_9: Quantity
    remark: str
    is_overload: bool
    struck_ids: tuple[str, ...]


@dataclass(frozen=True)
class CurveSheet:
    """One curve in numbers, and its knee in words."""

    broker: str
    driver: str
    driver_kind: str
    own_label: str
    scenario: str
    durability: str
    load: str
    knee: str
    lines: tuple[CurveLine, ...]

    @property
    def has_overload(self) -> bool:
        """Whether times in overload are shown."""
        return any(line.is_overload and line.p50 != NOTHING for line in self.lines)

    @property
    def has_single_runs(self) -> bool:
        """Whether a figure of it stands on one repeat."""
        return any(detail.ONE_RUN in line.p99.interval for line in self.lines)


def curve_sheets(run: Run, found: Sequence[Curve]) -> list[CurveSheet]:
    """Every curve of the run in numbers."""
    return [
        CurveSheet(
            broker=words.broker_name(curve.broker),
            driver=curve.driver,
            driver_kind=curve.driver_kind,
            own_label=pt.own_label(curve.broker, curve.point, found_producers(curve)),
            scenario=curve.scenario,
            durability=curve.durability,
            load=load_text(curve, objective(curve)),
            knee=knee_text(curve),
            lines=tuple(_curve_line(run, curve, point) for point in curve.points),
        )
        for curve in sorted(found, key=lambda curve: (curve.scenario, pt.class_rank(curve.durability), order(curve)))
    ]


def grouped(found: Sequence[Curve]) -> list[list[Curve]]:
    """The curves that may be compared with each other, of those that have something to show."""
    groups: dict[tuple[Any, ...], list[Curve]] = {}
    for curve in found:
        if curve.shown:
            groups.setdefault(home(curve, objective(curve)), []).append(curve)
    return [sorted(each, key=order) for each in groups.values()]


def objective(curve: Curve) -> float | None:
    """The objective of the capacity that a curve's fractions are of."""
    return curve.capacity.p99_ms if curve.capacity else None


def knee_text(curve: Curve) -> str:
    """Where the knee is, how far repeats agree on it, and the latency there; or why there is none."""
    point = curve.knee_point
    if not curve.shown:
        return f"nothing was measured{_first_error(curve)}"
    if point is None:
        return f"no knee: {curve.knee.reason}"
    p50, p99 = (words.duration(each.median) for each in (point.p50, point.p99))
    where = f"{words.rate(point.offered_msgs_per_s)}, {pt.fraction_label(point.fraction)} of capacity"
    return f"knee at {where}: p50 {p50}, p99 {p99}{_agreement(curve)}"


def _first_error(curve: Curve) -> str:
    errors = [record["error"] for point in curve.points for record in point.struck if record["error"]]
    return f": {errors[0]}" if errors else ""


def _agreement(curve: Curve) -> str:
    """How far single repeats agree on the knee; nothing where there is but one."""
    counted = Counter(curve.knee_by_repeat)
    if max((point.p50.n for point in curve.shown), default=0) < 2 or not counted:
        return ""
    if len(counted) == 1:
        return f"; every repeat ({counted.total()}) has it at {pt.fraction_label(next(iter(counted)))}"
    return f"; single repeats have it from {pt.fraction_label(min(counted))} to {pt.fraction_label(max(counted))}"


def _curve_line(run: Run, curve: Curve, point: CurvePoint) -> CurveLine:
    trials = [run.trial(each.trial_id) for each in point.repeats]

    def tail(percentile: str) -> str:
        return one_run_of(run, trials, percentile)

    remarks: list[str] = []
    if point.is_overload:
        remarks.append(f"overload: {point.why}")
    if curve.knee_point is point:
        remarks.append("knee")
    return CurveLine(
        fraction=pt.fraction_label(point.fraction),
        offered=words.rate(point.offered_msgs_per_s),
        achieved=quantity(point.achieved, "msgs_per_s"),
        carried=f"{point.carried} of {len(point.repeats)}" if point.repeats else words.NOTHING,
        p50=quantity(point.p50, "ns"),
        p99=quantity(point.p99, "ns", tail("p99")),
        p99_9=quantity(point.p99_9, "ns", tail("p99_9")),
        remark="; ".join([*remarks, *([f"{len(point.struck)} struck out"] if point.struck else [])]),
        is_overload=point.is_overload,
        struck_ids=tuple(record["id"] for record in point.struck),
    )


CURVE_COLUMNS: tuple[tuple[str, Callable[[CurveLine], Quantity]], ...] = (
    ("of capacity", lambda line: Quantity(line.fraction, "")),
    ("offered", lambda line: Quantity(line.offered, "")),
    ("came through", lambda line: line.achieved),
    ("carried", lambda line: Quantity(line.carried, "")),
    ("p50", lambda line: line.p50),
    ("p99", lambda line: line.p99),
    ("p99.9", lambda line: line.p99_9),
    ("", lambda line: Quantity(line.remark, "")),
)
