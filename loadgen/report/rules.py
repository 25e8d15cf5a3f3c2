"""The article's claims as rules: what a measurement would have to show to support or contradict each of them.

A rule sees intervals over repeats, never single figures, and answers with a reason. Clients and broker share
one machine here as a rule, and a crowded machine only ever makes a broker look slower. So a figure that is
*better* than a claim allows may contradict it wherever it was measured, and one that is worse may not unless
the broker itself was the limit; then it says "cannot tell here".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from loadgen.report import words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.stats.confidence import Estimate

MS = 1e6
RECEIVED, OUT_OF_ORDER, LATE_AGAIN = "received", "out of order", "late by redelivery"
INTERLEAVED = "of them through several queues or partitions, from several producers"
ORDER_LEAST_MSGS = 10_000
Judgement = Literal["supports", "contradicts", "cannot tell here", "not measured"]
Opinion = tuple[Judgement, str]
NOT_MEASURED: Opinion = ("not measured", "nothing in this run answers it")


@dataclass(frozen=True)
class Figure:
    """One measured number over the repeats of one point, and the trials or the finding behind it.

    `said` is the broker's own word on a finding, `at` the number that was varied where the claim is about one. `under`
    are the faults that its trials were under, in words, and `run_id` is another run's where it is of one.
    """

    what: str
    unit: Literal["ns", "msgs_per_s", "us", "count", "bytes", "s", "percent", "number"]
    point: str
    durability: str
    estimate: Estimate
    trial_ids: tuple[str, ...]
    struck_ids: tuple[str, ...]
    bound_by: str
    said: str = ""
    is_found: bool = False
    at: float | None = None
    under: str = ""
    run_id: str = ""
    by_repeat: Mapping[int, float] = field(default_factory=dict)
    chosen: str = ""
    """Settings that its scenario chose for this broker alone."""

    @property
    def caveat(self) -> str:
        """What a reader must know beside the number, or nothing."""
        caveats = []
        if "host" in self.bound_by:
            caveats.append("with this client on this host")
        if "generator" in self.bound_by:
            is_time = self.unit == "ns"
            caveats.append(
                "the client was late: part of it is its own" if is_time else "the client's limit, not the broker's"
            )
        if "consumers" in self.bound_by:
            caveats.append("the consumers' own work, not the broker's limit")
        if self.estimate.n == 1 and self.unit != "count" and not self.is_found:
            caveats.append("one repeat, no interval")
        return "; ".join(caveats)


@dataclass(frozen=True)
class LatencyClaim:
    """`low (< 1 ms)`, `low (1-5 ms)`: the article names no percentile; its median is the kindest reading."""

    low_ns: float
    high_ns: float

    def judge(self, figures: Sequence[Figure]) -> Opinion:
        """Every measured point must agree; points that disagree cannot tell one answer."""
        return _together([self._judge_one(figure) for figure in figures if figure.what == "p50"])

    def _judge_one(self, figure: Figure) -> tuple[Judgement, str, str]:
        """The judgement, the point, and what is true there."""
        low, high = figure.estimate.low, figure.estimate.high
        if low is None or high is None:
            return "cannot tell here", figure.point, "one repeat has no interval"
        claimed = f"{self.low_ns / MS:g}–{self.high_ns / MS:g} ms"
        if high < self.low_ns:
            return (
                "contradicts",
                figure.point,
                f"the median's interval lies below {claimed}: faster than claimed",
            )
        if low >= self.low_ns and high < self.high_ns:
            return "supports", figure.point, f"the median's interval lies within {claimed}"
        if low >= self.high_ns:
            said = f"the median's interval lies above {claimed}"
            if figure.bound_by in {"offered", "broker"}:
                return "contradicts", figure.point, said
            return "cannot tell here", figure.point, f"{said}, but bound by {figure.bound_by or 'unknown'}"
        return "cannot tell here", figure.point, f"the median's interval reaches over a bound of {claimed}"


@dataclass(frozen=True)
class CeilingClaim:
    """`up to 100K msg/s`: more than that contradicts it; less says only that this machine carried less."""

    ceiling_msgs_per_s: float

    def judge(self, figures: Sequence[Figure]) -> Opinion:
        """Judge the fastest point: the claim is an upper bound of what can be had."""
        best = _best(figures)
        if best is None or best.estimate.low is None:
            return "cannot tell here", "one repeat has no interval"
        claimed = words.rate(self.ceiling_msgs_per_s)
        if best.estimate.low > self.ceiling_msgs_per_s:
            return "contradicts", f"{_named(best)} carried more than {claimed} on this machine"
        return "cannot tell here", _why_less(best, self.ceiling_msgs_per_s)


@dataclass(frozen=True)
class ReachClaim:
    """`up to millions msg/s`: reaching the first million supports it; less says nothing of other machines."""

    reach_msgs_per_s: float

    def judge(self, figures: Sequence[Figure]) -> Opinion:
        """Judge the fastest point."""
        best = _best(figures)
        if best is None or best.estimate.low is None:
            return "cannot tell here", "one repeat has no interval"
        claimed = words.rate(self.reach_msgs_per_s)
        if best.estimate.low >= self.reach_msgs_per_s:
            return "supports", f"{_named(best)} carried at least {claimed} on this machine"
        return "cannot tell here", _why_less(best, self.reach_msgs_per_s)


@dataclass(frozen=True)
class OrderClaim:
    """`per queue`, `per partition`: one message out of order contradicts it; none in many supports it."""

    def judge(self, figures: Sequence[Figure]) -> Opinion:
        """`figures` are the messages seen in order and the messages seen out of order."""
        calm = [figure for figure in figures if not figure.is_found and not figure.under]
        seen = {figure.what: sum(figure.estimate.values) for figure in calm}
        broken = seen.get(OUT_OF_ORDER, 0)
        inverted = [
            f"{figure.estimate.median:,.0f} with {figure.point}"
            for figure in figures
            if figure.is_found and figure.estimate.median
        ]
        beside = f"; inverted by what is not promised: {'; '.join(inverted)}" if inverted else ""
        beside += _order_under_faults(figures)
        if broken:
            return (
                "contradicts",
                f"{broken:,.0f} of {seen[RECEIVED]:,.0f} messages overtook another of their producer{beside}",
            )
        if not calm:
            return "cannot tell here", f"no trial without faults had one consumer{beside}"
        if seen.get(INTERLEAVED, 0) < ORDER_LEAST_MSGS:
            return (
                "cannot tell here",
                f"none overtook another, but never did several producers share several queues{beside}",
            )
        said = "no message overtook another of its producer where several shared several queues or partitions"
        return "supports", f"{said}; redeliveries are counted apart{beside}"


def _order_under_faults(figures: Sequence[Figure]) -> str:
    """What faults did to order, told and not judged: clients that send again what was not confirmed change it too."""
    seen: dict[str, float] = {}
    for figure in figures:
        if figure.under:
            seen[figure.what] = seen.get(figure.what, 0) + (figure.estimate.median or 0)
    if not seen:
        return ""
    late, again = seen.get(OUT_OF_ORDER, 0), seen.get(LATE_AGAIN, 0)
    return (
        f"; under faults, where clients send again what was not confirmed, {late:,.0f} of {seen.get(RECEIVED, 0):,.0f} "
        f"came out of order and {again:,.0f} more by redelivery, which is not judged"
    )


Claim = LatencyClaim | CeilingClaim | ReachClaim | OrderClaim


def _best(figures: Sequence[Figure]) -> Figure | None:
    return max(figures, key=lambda figure: figure.estimate.median or 0.0, default=None)


def _why_less(best: Figure, claimed_msgs_per_s: float) -> str:
    seen = words.interval(best.estimate, best.unit)
    if best.estimate.high is not None and best.estimate.high >= claimed_msgs_per_s:
        return f"{_named(best)} carried {seen}, too near to {words.rate(claimed_msgs_per_s)} to tell"
    why = {
        "broker": "the broker was the limit on this machine, and a larger one may carry more",
        "host": "broker and clients used up this machine together",
        "generator": "the client was the limit, not the broker",
        "consumers": "the consumers' own work was the limit, not the broker",
    }.get(best.bound_by, "what set the limit is not known")
    return f"{_named(best)} carried {seen}: {why}"


def _named(figure: Figure) -> str:
    """`class broker`, and `stream, class broker` where the figure is of something else than the class's own."""
    own = f"class {figure.durability}"
    return own if figure.what == own else f"{figure.what}, {own},"


def _together(opinions: Sequence[tuple[Judgement, str, str]]) -> Opinion:
    """One answer of all points, or that they disagree."""
    if not opinions:
        return NOT_MEASURED
    judgements = {judgement for judgement, _, _ in opinions}
    said = {text for _, _, text in opinions}
    if len(judgements) == 1 and len(said) == 1:
        return opinions[0][0], f"{said.pop()}{', at every rate' if len(opinions) > 1 else ''}"
    reason = "; ".join(f"at {point} {text}" for _, point, text in opinions)
    if len(judgements) == 1:
        return opinions[0][0], reason
    return "cannot tell here", f"points disagree: {reason}"
