"""The comparison's promises kept: of equal things 5 % seem different, and a tenth less is found in nine cases of ten.

`paired_ratio` calls two configurations different where the 95 % interval of their paired ratio excludes 1. Whether it
does so in 5 % of the comparisons of a configuration with itself depends on how real trials vary. So trials of one
configuration were recorded on real brokers, in pairs of neighbours in time (`pairs`), and are compared many times:

    draw n of the pairs, each at most once        as a comparison measures n different pairs
    toss a coin for each: which half is A         the coin that `make_ab_plan` tosses for each pair of a run

The coin makes the null exact: whatever the pairs are, A and B have the same distribution. (R. A. Fisher, "The Design
of Experiments", 1935, section 21, on Darwin's pairs of plants; E. J. G. Pitman, "Significance tests which may be
applied to samples from any populations", Supplement to the Journal of the Royal Statistical Society 4, 1937.) Drawing
alone would not do: the mean of the recorded log ratios is not 0. For the slowdown, B's values are multiplied by 0.9
before they are compared. The repeats are those that `repeats_needed` gives for what the population's spread is below
with 80 % confidence; the spread is the root mean square of the log ratios, since the coin makes their mean 0.

What resampling cannot show: the resamples are independent given what was recorded, and not of it. Another recording
would be another population: alarms over 60 normal pairs vary by ± 0.4 points at 7 to 10 repeats, and by ± 1 at 3
(simulated). A few wild pairs make a t test careful: alarms become fewer, not more. And the order is forgotten: noise
that comes in spells is spread evenly over all resamples. So there are comparisons on the brokers themselves beside it,
planned, run and judged as `loadgen ab` does it, of which none is left out.

That is about one quantity. Whole comparisons, with medians and tails of latencies and the corrections that `loadgen ab`
makes for asking about several quantities, are resampled by `prove.families`.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from loadgen.errors import TrialError
from loadgen.plan import make_ab_plan
from loadgen.record import enters
from loadgen.report.words import broker_name
from loadgen.scenario import Rate
from loadgen.stats.confidence import paired_ratio
from loadgen.stats.power import power, repeats_needed, spread_bound
from prove import families, pairs
from prove.charts import KNOWN_COLOUR, SEEN_COLOUR, draw
from prove.proof import Chart, Proof, Row, Scale, at_least, at_most, near, same
from prove.trials import own_broker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt
    from matplotlib.axes import Axes

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.runs import Run
    from loadgen.stats.confidence import Ratio
    from prove.pairs import Recorded, RecordedLatencies

    Halves = tuple[tuple[float, float], ...]

    Float64 = npt.NDArray[np.float64]
    Bool = npt.NDArray[np.bool_]

ALPHA, POWER, SLOWED = 0.05, 0.9, 0.9
ALARMS_OFF = 0.015
RESAMPLES = {Scale.FULL: 10_000, Scale.SMALL: 2_000}
WHOLE_RESAMPLES = 2_000  # of whole comparisons, each of which has five quantities
CURVE_RESAMPLES = 2_000
INVENTED = (0.05, 200)  # as much as trials on an idle machine vary, and pairs enough to be as good as normal
NOTHING_SHOWN = families.NOTHING_SHOWN
PACED_MOST_S = 120.0  # of a comparison with what was imposed, and of the next, where that did not show it
DAY_REPEATS = 10  # with fewer, the alarms of sixty pairs are as much by chance as by the test
SHORT = replace(pairs.RECORDING, repeats=3)
COMPARISONS: Mapping[BrokerName, int] = {"rabbitmq": 12, "kafka": 8}
ALARMS_MOST = 4
"""Of all of them: at 5 % more than 4 alarms of 20 come in 0.3 % of all cases."""


@dataclass(frozen=True, slots=True)
class Resampled:
    """Comparisons of resampled pairs: whether B was shown to be lower or higher, and p values by another's t test."""

    lower: Bool
    higher: Bool
    p_values: Float64

    @property
    def alarm_share(self) -> float:
        """The share of the comparisons that show a difference of either kind."""
        return float((self.lower | self.higher).mean())

    @property
    def lower_share(self) -> float:
        """The share of the comparisons that show B to be lower."""
        return float(self.lower.mean())

    @property
    def disagreeing(self) -> int:
        """In how many comparisons the other t test says otherwise."""
        return int(((self.p_values < ALPHA) != (self.lower | self.higher)).sum())


@dataclass(frozen=True, slots=True)
class Live:
    """Comparisons on a real broker: of a configuration with itself, and with one paced at 0.9 of what was found."""

    broker: BrokerName
    equal: tuple[Halves, ...]
    paced: Halves
    first: Halves = ()
    """Where it took a second comparison with more repeats: the paced one that was too short to tell."""

    @property
    def alarms(self) -> int:
        """In how many comparisons of equal things a difference was shown."""
        return sum(_ratio(halves).direction != NOTHING_SHOWN for halves in self.equal)

    @property
    def recorded(self) -> Recorded:
        """The pairs of all A/A comparisons of this day as one population."""
        return pairs.Recorded(f"{broker_name(self.broker)} today", tuple(chain.from_iterable(self.equal)))


def resampled(recorded: Recorded, repeats: int, resamples: int, *, slowed: float = 1.0, seed: int = 1) -> Resampled:
    """Compare the configuration with itself so many times, B's values multiplied by `slowed`.

    Raises TrialError where fewer pairs were recorded than a comparison needs.
    """
    drawn = _drawn(recorded, repeats, resamples, slowed, seed)
    found = np.array([paired_ratio([(b, a) for a, b in each]).direction for each in drawn.tolist()])
    return Resampled(found == "lower", found == "higher", _by_scipy(drawn))


def found_share(recorded: Recorded, repeats: int, resamples: int, *, slowed: float, seed: int) -> float:
    """The share of comparisons that show B to be lower by scipy's t test alone, of which a picture needs very many.

    It says of each comparison what ours says: that is a row of this proof.
    """
    drawn = _drawn(recorded, repeats, resamples, slowed, seed)
    is_lower = np.log(drawn[:, :, 1]).mean(axis=1) < np.log(drawn[:, :, 0]).mean(axis=1)
    return float(((_by_scipy(drawn) < ALPHA) & is_lower).mean())


def _drawn(recorded: Recorded, repeats: int, resamples: int, slowed: float, seed: int) -> Float64:
    """Resampled pairs, float[resamples, repeats, (A, B)]: each pair at most once in a comparison, its halves tossed."""
    population = np.array(recorded.pairs, np.float64)
    if repeats > len(population):
        raise TrialError(f"{recorded.title}: {len(population)} pairs, {repeats} are needed: record more")
    rng = np.random.default_rng(seed)
    drawn = population[rng.random((resamples, len(population))).argsort(axis=1)[:, :repeats]]
    turned = rng.random((resamples, repeats)) < 0.5
    drawn[turned] = drawn[turned][:, ::-1]
    drawn[:, :, 1] *= slowed
    return drawn


def _by_scipy(drawn: Float64) -> Float64:
    """The p value of each comparison by scipy's paired t test."""
    from scipy.stats import ttest_1samp  # noqa: PLC0415 - half a second that only a proof pays

    logs = np.log(drawn[:, :, 1]) - np.log(drawn[:, :, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # pairs that are nearly equal have a spread of nearly 0
        return np.asarray(ttest_1samp(logs, 0.0, axis=1).pvalue, np.float64)


def prove(scale: Scale) -> Proof:
    """Resample what was recorded; in full also compare on the brokers themselves."""
    found: list[Live] = []
    if scale is Scale.FULL:
        for broker, comparisons in COMPARISONS.items():
            with own_broker(broker) as endpoint:
                found.append(measure(endpoint, comparisons))
    populations = [pairs.invented(*INVENTED, seed=1), *pairs.kept()]
    whole = [pairs.invented_latencies(200, seed=1), *(pairs.kept_latencies() if scale is Scale.FULL else ())]
    return compare(populations, found, RESAMPLES[scale], whole)


def measure(endpoint: Endpoint, comparisons: int) -> Live:
    """So many A/A comparisons, and one of full speed with a pacer at 0.9 of the mean rate that they found.

    It is the geometric mean, since that is what a comparison of log ratios is of: a median is not where a broker now
    and then is slow, and nine tenths of it are then more than nine tenths of what A comes to.

    That one has the repeats that are recommended for the spread of this day's pairs. Where it shows nothing, it is made
    again as `loadgen ab` then says: with the repeats that its own spread calls for (in bounded time), and paced by what
    A reached in it, since a machine's speed may have drifted from what was found before.
    """
    broker = endpoint.broker
    pairs.warm(endpoint)
    equal = pairs.scenario_of(broker, Rate.saturate())
    plans = [make_ab_plan(equal, equal, SHORT, brokers=(broker,), seed=seed) for seed in range(1, comparisons + 1)]
    began_s = time.monotonic()
    live = Live(broker, tuple(_rates(pairs.carry_out(plan, endpoint)) for plan in plans), ())
    pair_s = (time.monotonic() - began_s) / (comparisons * SHORT.repeats)
    found = statistics.geometric_mean(chain.from_iterable(live.recorded.pairs))
    paced = _paced(endpoint, found, _in_time(_repeats(live.recorded), pair_s))
    if _ratio(paced).direction != NOTHING_SHOWN:
        return replace(live, paced=paced)
    repeats = again_repeats(paced, pair_s)
    return replace(live, first=paced, paced=_paced(endpoint, statistics.geometric_mean([a for a, _ in paced]), repeats))


def again_repeats(paced: Halves, pair_s: float) -> int:
    """The repeats that these pairs' spread calls for: no fewer than they are, as many as there is time for."""
    seen = [math.log(b / a) for a, b in paced]
    bound = spread_bound(statistics.stdev(seen), len(seen) - 1)
    needed = repeats_needed(SLOWED, bound, POWER, ALPHA) or 1_000
    return _in_time(max(needed, len(paced)), pair_s)


def _in_time(repeats: int, pair_s: float) -> int:
    """So many, or as many as there is time for: a day on which pairs vary by a tenth calls for hours."""
    return max(2, min(repeats, int(PACED_MOST_S / pair_s)))


def _paced(endpoint: Endpoint, found: float, repeats: int) -> Halves:
    """A as fast as it goes against B paced at 0.9 of a rate (messages/s)."""
    equal = pairs.scenario_of(endpoint.broker, Rate.saturate())
    slowed = pairs.scenario_of(endpoint.broker, Rate.fixed(SLOWED * found))
    plan = make_ab_plan(equal, slowed, SHORT, brokers=(endpoint.broker,), repeats=repeats)
    return _rates(pairs.carry_out(plan, endpoint))


def _rates(run: Run) -> Halves:
    """(A, B) of every repeat whose trials both enter a comparison, in messages/s, as `loadgen ab` pairs them.

    Raises TrialError where fewer than two are left: one pair has no interval, and shows nothing.
    """
    halves: dict[int, dict[str, float]] = {}
    for trial in filter(enters, run.records):
        halves.setdefault(trial["repeat"], {})[trial["point"]["variant"]] = float(trial["goodput_msgs_per_s"])
    whole = tuple((pair["A"], pair["B"]) for _, pair in sorted(halves.items()) if len(pair) == len("AB"))
    if len(whole) < len("AB"):
        raise TrialError(f"{len(whole)} pairs have two trials that count: {_struck(run)}")
    return whole


def _struck(run: Run) -> str:
    return "; ".join(f"{trial['id']}: {trial['verdict']['reasons']}" for trial in run.records if not enters(trial))


def _ratio(halves: Halves) -> Ratio:
    """B/A by itself; `loadgen ab` asks more of an interval that is one of several."""
    return paired_ratio([(b, a) for a, b in halves])


def compare(
    populations: Sequence[Recorded], found: Sequence[Live], resamples: int, whole: Sequence[RecordedLatencies] = ()
) -> Proof:
    """The proof of what was recorded and seen."""
    equal = {each.title: resampled(each, _repeats(each), resamples) for each in populations}
    rows = [row for each in populations for row in _resampled_rows(each, equal[each.title], resamples)]
    how = (
        f"{resamples:,} comparisons are made of each population: so many pairs are drawn, and for each a coin says "
        "which half is A. An alarm is an interval of B/A that excludes 1 where there is no difference; repeats are "
        "those that are recommended for that population's spread."
    )
    return Proof(
        name="aa",
        claim="Comparisons of a configuration with itself show a difference in 5 % of all cases, and a tenth less is "
        "found in nine cases of ten with the repeats that are recommended.",
        rows=(
            *rows,
            *(row for each in whole for row in families.rows(each, min(resamples, WHOLE_RESAMPLES))),
            *([_alarm_row(found)] if any(live.equal for live in found) else []),
            *(row for live in found for row in _live_rows(live, resamples)),
        ),
        notes=(
            how,
            *map(_origin, populations),
            *map(families.origin, whole),
            *(_day_note(live) for live in found if live.equal),
            *map(_paced_note, found),
        ),
        charts=(_chart(populations, equal),),
    )


def _repeats(recorded: Recorded) -> int:
    return recorded.repeats_needed(SLOWED, POWER, ALPHA)


def _resampled_rows(recorded: Recorded, equal: Resampled, resamples: int) -> Iterator[Row]:
    repeats = _repeats(recorded)
    name = f"{recorded.title}, {repeats} repeats"
    yield near(f"{name}: alarms", ALPHA * 100, equal.alarm_share * 100, ALARMS_OFF * 100, "%")
    slowed = resampled(recorded, repeats, resamples, slowed=SLOWED, seed=2)
    yield at_least(f"{name}: a tenth less is found", POWER * 100, slowed.lower_share * 100, "%")
    yield same(f"{name}: comparisons of which scipy's t test thinks otherwise", 0, equal.disagreeing)


def _live_rows(live: Live, resamples: int) -> Iterator[Row]:
    name = broker_name(live.broker)
    if live.equal:
        today = live.recorded
        share = resampled(today, DAY_REPEATS, resamples).alarm_share
        limit = (ALPHA + ALARMS_OFF) * 100
        yield at_most(f"{name}, {DAY_REPEATS} of their pairs at a time: alarms", limit, share * 100, "%")
    yield same(f"{name}, B paced at 0.9 × what was found: goodput of B", "lower", _ratio(live.paced).direction)


def _alarm_row(found: Sequence[Live]) -> Row:
    alarms, comparisons = sum(live.alarms for live in found), sum(len(live.equal) for live in found)
    each = ", ".join(f"{broker_name(live.broker)} {live.alarms}" for live in found)
    return at_most(f"{comparisons} comparisons of {SHORT.repeats} repeats ({each}): alarms", ALARMS_MOST, alarms)


def _origin(recorded: Recorded) -> str:
    spread = f"pairs that vary by {recorded.spread_log:.1%}"
    if not recorded.made_utc:
        return f"{recorded.title}: {len(recorded.pairs)} invented {spread}."
    return (
        f"{recorded.title}: {len(recorded.pairs)} {spread}, of trials of {pairs.RECORDING.duration_s:g} s as fast as "
        f"it goes, recorded {recorded.made_utc} UTC on {recorded.machine}. {recorded.left_out} more were left out "
        "because other programs or the hypervisor used the CPU meanwhile, according to the verdict."
    )


def _day_note(live: Live) -> str:
    today = live.recorded
    struck = SHORT.repeats * len(live.equal) - len(today.pairs)
    left_out = f"{struck} more had a trial that the verdict struck out" if struck else "none was left out"
    return (
        f"{broker_name(live.broker)}'s {len(today.pairs)} pairs of this page's day vary by {today.spread_log:.1%}; "
        f"{left_out}. Alarms in resamples of them are held against the upper limit only, since a machine that "
        "is disturbed now and then makes the test careful."
    )


def _paced_note(live: Live) -> str:
    ratio, name = _ratio(live.paced), broker_name(live.broker)
    if ratio.ratio is None or ratio.low is None or ratio.high is None:
        return f"{name}, B paced: nothing to compare."
    seen = f"{ratio.ratio:.3f} ({ratio.low:.3f} … {ratio.high:.3f}), {ratio.pairs} pairs"
    text = f"{name}, A as fast as it goes, B paced at 0.9 of the geometric mean of the comparisons before: B/A {seen}."
    if live.first:
        before = _ratio(live.first)
        text += (
            f" {before.pairs} pairs before them showed nothing ({before.ratio:.3f}, {before.low:.3f} … "
            f"{before.high:.3f}): these were made anew, paced by what A reached there, and are judged by themselves."
        )
    return text


# --- the picture ---


def _chart(populations: Sequence[Recorded], equal: dict[str, Resampled]) -> Chart:
    title = "p values of comparisons of equal things, and how often a tenth less is found with how many repeats"
    left = partial(_p_values, populations=populations, equal=equal)
    return draw("aa", title, [left, partial(_curves, populations=populations)])


def _p_values(axes: Axes, *, populations: Sequence[Recorded], equal: dict[str, Resampled]) -> None:
    edges = np.linspace(0, 1, 21)
    for each, colour in zip(populations, _COLOURS, strict=False):
        counts, _ = np.histogram(equal[each.title].p_values, edges)
        axes.stairs(counts / counts.sum() * 100, edges, color=colour, label=each.title)
    axes.axhline(100 / 20, color="black", linewidth=0.8, linestyle=":", label="exact")
    axes.set_ylim(0, 10)
    axes.set_xlabel("p value of a comparison of equal things")
    axes.set_ylabel("comparisons, %")
    axes.legend(frameon=False, loc="lower right")


def _curves(axes: Axes, *, populations: Sequence[Recorded]) -> None:
    for each, colour in zip(populations, _COLOURS, strict=False):
        repeats = range(2, min(2 * _repeats(each), len(each.pairs)) + 1)
        shares = [found_share(each, n, CURVE_RESAMPLES, slowed=SLOWED, seed=3) * 100 for n in repeats]
        theory = [power(SLOWED, each.spread_log, n, ALPHA) * 100 for n in repeats]
        axes.plot(repeats, theory, color=colour, linewidth=0.9)
        axes.plot(repeats, shares, ".", color=colour, label=each.title)
    axes.axhline(POWER * 100, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 102)
    axes.set_xlabel("repeats (line: theory)")
    axes.set_ylabel("comparisons that find a tenth less, %")
    axes.legend(frameon=False, loc="lower right")


_COLOURS = ("#8a929c", SEEN_COLOUR, KNOWN_COLOUR)
