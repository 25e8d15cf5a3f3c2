"""Whole comparisons of a configuration with itself, latencies and all: what `loadgen ab` says of every quantity.

`prove.aa` resamples one quantity, the rate. A comparison of an open loop has five: the answer (the median of the
response time) and beside it p99, rate and CPU of clients and broker, whose intervals are corrected for being several
(`loadgen.analysis.ab`). The promise is of a family: in at most 5 of 100 comparisons of equal things does chance show
any difference in it. Here whole trials are drawn and tossed, so that the quantities keep what they share.

Alarms of a family are at most 5 %, and fewer where its quantities depend on each other (p50 and p99 do): Bonferroni's
correction is held against its upper limit. The answer is a family of one, and is held against both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadgen.analysis.ab import ALPHA, POWER, point_ratios
from loadgen.errors import TrialError
from loadgen.stats.power import detectable_ratio, spread_bound
from prove.proof import at_least, at_most, near

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from loadgen.stats.confidence import Ratio
    from prove.pairs import RecordedLatencies
    from prove.proof import Row

    Bool = npt.NDArray[np.bool_]

REPEATS = 10
"""Of each comparison: alarms do not depend on how many, and power is asked of what so many can show."""
ALARMS_OFF = 0.015
NOTHING_SHOWN = "no difference shown"
LATENCIES = ("e2e p50", "e2e p99")


@dataclass(frozen=True, slots=True)
class Compared:
    """What resampled comparisons showed: bool[comparisons, quantities], in the order of the quantities."""

    measures: tuple[str, ...]
    is_shown: Bool
    is_higher: Bool

    @property
    def answer_share(self) -> float:
        """The share of comparisons that show a difference in the answer."""
        return float(self.is_shown[:, 0].mean())

    @property
    def others_share(self) -> float:
        """The share of comparisons that show one in any of the others."""
        return float(self.is_shown[:, 1:].any(axis=1).mean())

    def higher_share(self, measure: str) -> float:
        """The share of comparisons that show B to be higher in this quantity."""
        return float(self.is_higher[:, self.measures.index(measure)].mean())


def compared(
    recorded: RecordedLatencies, repeats: int, resamples: int, *, slower: dict[str, float] | None = None, seed: int = 1
) -> Compared:
    """Compare the configuration with itself so many times; `slower` multiplies B's values of a quantity.

    Raises TrialError where fewer pairs were recorded than a comparison needs.
    """
    population = np.array(recorded.pairs, np.float64)  # pairs, halves, quantities
    if repeats > len(population):
        raise TrialError(f"{recorded.title}: {len(population)} pairs, {repeats} are needed: record more")
    factors = np.array([(slower or {}).get(measure, 1.0) for measure in recorded.measures])
    rng = np.random.default_rng(seed)
    shown: list[list[bool]] = []
    higher: list[list[bool]] = []
    for _ in range(resamples):
        drawn = population[rng.permutation(len(population))[:repeats]]
        turned = rng.random(repeats) < 0.5
        drawn[turned] = drawn[turned][:, ::-1]
        drawn[:, 1] *= factors
        ratios = ratios_of(drawn.transpose(2, 0, 1).tolist())
        shown.append([each.direction != NOTHING_SHOWN for each in ratios])
        higher.append([each.direction == "higher" for each in ratios])
    return Compared(recorded.measures, np.array(shown), np.array(higher))


def ratios_of(quantities: Sequence[Sequence[Sequence[float]]]) -> list[Ratio]:
    """What `loadgen ab` says of quantities that are given as their (A's, B's) values by repeat."""
    return point_ratios([[(b, a) for a, b in pairs] for pairs in quantities])


def rows(recorded: RecordedLatencies, resamples: int) -> Iterator[Row]:
    """Alarms of both families, and slower medians and tails found as often as is promised."""
    name = f"{recorded.title}, {recorded.measures[0]}, {REPEATS} repeats"
    equal = compared(recorded, REPEATS, resamples)
    yield near(f"{name}: alarms", ALPHA * 100, equal.answer_share * 100, ALARMS_OFF * 100, "%")
    limit = (ALPHA + ALARMS_OFF) * 100
    others = f"{recorded.title}, its {len(recorded.measures) - 1} others"
    yield at_most(f"{others}: alarms in any", limit, equal.others_share * 100, "%")
    for measure in LATENCIES:
        effect = effect_of(recorded, measure)
        found = compared(recorded, REPEATS, resamples, slower={measure: effect}, seed=2).higher_share(measure)
        yield at_least(f"{recorded.title}: {measure} {effect - 1:.0%} higher is found", POWER * 100, found * 100, "%")


def effect_of(recorded: RecordedLatencies, measure: str) -> float:
    """The ratio that so many repeats show nine times in ten at the level that this quantity has, as `ab` reckons it."""
    is_answer = recorded.measures[0] == measure
    alpha = ALPHA if is_answer else ALPHA / (len(recorded.measures) - 1)
    one = recorded.of(measure)
    return detectable_ratio(spread_bound(one.spread_log, len(one.pairs)), REPEATS, POWER, alpha)


def origin(recorded: RecordedLatencies) -> str:
    """Where the pairs come from, in words."""
    spreads = ", ".join(f"{measure} {recorded.of(measure).spread_log:.1%}" for measure in recorded.measures)
    if not recorded.made_utc:
        return f"{recorded.title}: {len(recorded.pairs)} invented pairs of open loops, which vary by: {spreads}."
    return (
        f"{recorded.title}: {len(recorded.pairs)} pairs of open loops, recorded {recorded.made_utc} UTC on "
        f"{recorded.machine}, compared with the families and levels of `loadgen ab`. Pairs vary by: {spreads}. "
        f"{recorded.left_out} more were left out because other programs or the hypervisor used the CPU meanwhile."
    )
