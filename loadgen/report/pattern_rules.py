"""The article's claims that other scenarios answer: how a broker scales, and which uses it serves better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.report import words
from loadgen.report.probe_rules import BesideClaim, order_of
from loadgen.report.rules import NOT_MEASURED
from loadgen.stats import scaling
from loadgen.stats.confidence import paired_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.report.rules import Figure, Opinion
    from loadgen.stats.confidence import Ratio

SIGNS = {"higher": 1, "lower": -1, "no difference shown": 0}
HIGHER_IS_BETTER = frozenset({"msgs_per_s"})
SHARED_LAW = " of client, host and broker together"
OWN_LIMITS = frozenset({"broker", "offered"})


def law_in_words(law: scaling.Scaling, whose: str = "") -> str:
    """`scaling law: contention 0.21, crosstalk 0.004, peak at 14.1; residuals +1%, -3%, +2%`."""
    if law.contention > 1:
        return "no scaling law: more of them only cost"
    peak = f", peak at {law.peak:.1f}" if law.peak is not None else ""
    residuals = ", ".join(f"{each:+.0%}" for each in law.residuals)
    return (
        f"scaling law{whose}: contention {law.contention:.2f}, crosstalk {law.crosstalk:.3f}{peak}; "
        f"residuals {residuals}"
    )


@dataclass(frozen=True)
class ScalingClaim:
    """`queue partitioning`, `partition scaling`: several queues or partitions carry more than one."""

    places: str

    def judge(self, figures: Sequence[Figure]) -> Opinion:
        """More is shown where some number's interval lies above that of one; less, where all lie below it."""
        one = next((figure for figure in figures if figure.at == 1), None)
        several = [figure for figure in figures if figure.at != 1]
        if one is None or not several:
            return NOT_MEASURED
        law = self._law(figures)
        best = max(several, key=lambda figure: figure.estimate.median or 0.0)
        times = (best.estimate.median or 0.0) / (one.estimate.median or 1.0)
        said = f"{best.at:g} {self.places} carried {words.significant(times)} times what one did{law}"
        if order_of(best, one) > 0:
            return "supports", said
        is_less = all(order_of(figure, one) < 0 for figure in several)
        if is_less and all(figure.bound_by == "broker" for figure in figures):
            return "contradicts", said
        limits = {
            "host": "broker and clients used up this machine",
            "generator": "the client was the limit",
            "consumers": "the consumers' own work was the limit",
        }
        why = next((text for name, text in limits.items() if name in best.bound_by), "no difference is shown")
        return "cannot tell here", f"{said}: {why}"

    @staticmethod
    def _law(figures: Sequence[Figure]) -> str:
        """The fitted law in words, where there are points enough."""
        try:
            law = scaling.fit(
                [figure.at or 0 for figure in figures], [figure.estimate.median or 0 for figure in figures]
            )
        except ValueError:
            return ""
        whose = "" if all(figure.bound_by == "broker" for figure in figures) else SHARED_LAW
        return f" ({law_in_words(law, whose)})"


def _over(mine: Figure, theirs: Figure) -> Ratio:
    """One broker's figure over the other's, paired by repeat as everywhere else in the report."""
    shared = sorted(mine.by_repeat.keys() & theirs.by_repeat.keys())
    return paired_ratio([(mine.by_repeat[repeat], theirs.by_repeat[repeat]) for repeat in shared])


@dataclass(frozen=True)
class UseClaim(BesideClaim):
    """`task queues, RPC`: the uses that the article gives a broker, which it must then serve better than the other."""

    uses: tuple[str, ...]

    def judge_beside(self, figures: Sequence[Figure], other: Sequence[Figure]) -> Opinion:
        """Better is a lower time or a higher rate, where the interval of the ratio excludes 1."""
        beside = {figure.point: figure for figure in other}
        better, worse, parts = 0, 0, []
        for figure in figures:
            if (theirs := beside.get(figure.point)) is None:
                continue
            over = _over(figure, theirs)
            sign = SIGNS[over.direction] * (1 if figure.unit in HIGHER_IS_BETTER else -1)
            loser = theirs if sign > 0 else figure
            if sign and not set(loser.bound_by.split(" / ")) <= OWN_LIMITS:
                sign = 0  # what held it back was not the broker
            if over.ratio is None:
                continue
            told = {1: "better", -1: "worse", 0: "not told apart"}[sign]
            parts.append(f"{figure.point}: {told}, {words.times(over)} the other's")
            if figure.point in self.uses:
                better, worse = better + (sign > 0), worse + (sign < 0)
        if not parts:
            return NOT_MEASURED
        said = "; ".join(parts)
        if better == len(self.uses):
            return "supports", said
        return ("contradicts" if worse == len(self.uses) else "cannot tell here"), said
