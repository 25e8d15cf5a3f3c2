"""What `loadgen check` says of recorded trials, of which it is known how much they differ.

Trials of one configuration were recorded on real brokers (`prove.pairs`: closed loops for rates, open loops for
latencies). A baseline and a run are drawn from them at random, no trial in both, one side made worse by a known factor,
and the gate's own rule (`loadgen.gate.judging.judge`, with the usual limits) says what it says of any run:

    worse by just what is neglected    the largest change that is no breach: it may be missed in 5 % of all cases
    alike                              must not be missed more often than that
    slower by what matters             rates × 0.9, latencies × 1.3: must be missed in nine cases of ten

The last with the repeats that `check` recommends (`repeats_to_tell`) for what the trials vary by. Where these are more
than half of the trials that were recorded, each side is drawn with replacement instead, as if what was recorded were
all that there is. Of a median latency a tenth is asked, too, as a file of limits may say. What is neglected shifts the
bound and nothing else, so the first line is also what `neglect = "0%"` says of runs that are alike, draw by draw (a
test holds that).

Drawing at random makes baseline and run alike by construction, and spreads noise that comes in spells over both. A user
measures the one after the other. So beside it, as a finding and not as a bar, every stretch of trials is held against
the stretch that followed it, either way round, in the order in which they were measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from prove import pairs
from prove.proof import Row

from loadgen.analysis.ab import ALPHA, POWER
from loadgen.brokers import BOTH
from loadgen.endpoint import OWN_DRIVERS
from loadgen.errors import TrialError
from loadgen.gate.judging import judge, repeats_to_tell
from loadgen.gate.limits import Limit, usual_limits, usual_neglect
from loadgen.record import completed
from loadgen.report.words import broker_name
from loadgen.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prove.pairs import Recorded, RecordedLatencies

    from loadgen.record import Record

SLOWER = 1 / 0.9
TENTH = 1.1
ALARMS_OFF = 0.015
RESAMPLES = 2_000
FEW = 5
"""Repeats of a run in docs/gate.md: so many trials one after the other are held against the next ones, too."""
WHOLE_REPEATS = 10
LATENCIES = ("e2e p50", "e2e p99")
MEDIAN = "e2e_p50_ms"


@dataclass(frozen=True, slots=True)
class Pool:
    """Trials of one configuration as a run has them, in the order in which they were measured."""

    title: str
    trials: tuple[Record, ...]

    @property
    def limits(self) -> list[Limit]:
        """Those of the usual limits that hold such trials against a baseline."""
        return self.held_by(usual_limits(has_baseline=True))

    def held_by(self, limits: Iterable[Limit]) -> list[Limit]:
        """Those of these limits that do."""
        first = self.trials[0]
        return [
            limit
            for limit in limits
            if limit.kind == "relative" and limit.fits(first) and limit.metric.of(first) is not None
        ]

    def values(self, limit: Limit) -> list[float]:
        """What a limit speaks of, trial by trial."""
        return [value for trial in self.trials if (value := limit.metric.of(trial)) is not None]

    def worse(self, factor: float) -> tuple[Record, ...]:
        """The same trials, slower by a factor."""
        return tuple(
            {
                **trial,
                "goodput_msgs_per_s": trial["goodput_msgs_per_s"] / factor,
                "latency_ns": {
                    kind: told and {name: value * factor for name, value in told.items()}
                    for kind, told in trial["latency_ns"].items()
                },
            }
            for trial in self.trials
        )


def pools(folder: Path) -> list[Pool]:
    """What is recorded in a folder; TrialError where nothing is."""
    rates, latencies = pairs.kept(folder / pairs.KEPT.name), pairs.kept_latencies(folder / pairs.KEPT_LATENCIES.name)
    return [*map(of_rates, rates), *map(of_latencies, latencies)]


def of_rates(recorded: Recorded) -> Pool:
    """Closed loops."""
    rates = [rate for pair in recorded.pairs for rate in pair]
    return Pool(f"{recorded.title}, as fast as it goes", tuple(_trial(recorded.title, rate) for rate in rates))


def of_latencies(recorded: RecordedLatencies) -> Pool:
    """Open loops; within a pair the order of its two trials is not known any more, which is that of a coin."""
    at = [recorded.measures.index(measure) for measure in LATENCIES]
    halves = [[half[each] for each in at] for pair in recorded.pairs for half in pair]
    title = f"{recorded.title}, {pairs.LATENCY_MSGS_PER_S:,.0f} msg/s"
    return Pool(title, tuple(_trial(recorded.title, pairs.LATENCY_MSGS_PER_S, half) for half in halves))


def _trial(title: str, msgs_per_s: float, e2e_ns: Sequence[float] = ()) -> Record:
    """A trial with these figures: of an open loop with (p50, p99), of a closed one with the rate alone."""
    broker = next(each for each in BOTH if title.startswith(broker_name(each)))
    kind, asked = ("fixed", msgs_per_s) if e2e_ns else ("saturate", None)
    told = dict(zip(("p50", "p99"), e2e_ns, strict=True)) if e2e_ns else None
    record = {
        "id": kind, "scenario": "gate", "broker": broker, "driver": OWN_DRIVERS[broker],
        "durability": "broker", "repeat": 1, "rate": {"kind": kind, "msgs_per_s": asked},
        "message": {"size_bytes": 100}, "consumers": 1, "goodput_msgs_per_s": msgs_per_s,
        "achieved_msgs_per_s": msgs_per_s, "latency_ns": {"e2e": told},
        "verdict": {"status": "valid", "bound_by": "broker", "reasons": []},
    }  # fmt: skip
    return completed(record)


def is_missed(limits: Sequence[Limit], now: Sequence[Record], before: Sequence[Record]) -> bool:
    """Whether the gate misses any of the limits on these trials."""
    run, baseline = (Run(Path(), {"id": name}, list(of), "complete") for name, of in (("run", now), ("main", before)))
    return any(each.outcome == "missed" for each in judge(limits, run, baseline))


def missed(
    limits: Sequence[Limit],
    drawn: Sequence[Pool],
    repeats: int,
    resamples: int,
    *,
    factors: Sequence[float] = (),
    seed: int = 1,
) -> int:
    """In how many of so many resamples a run with that many repeats, a pool worse by its factor, misses any limit."""
    rng = np.random.default_rng(seed)
    slower = [pool.worse(factor) for pool, factor in zip(drawn, factors or [1.0] * len(drawn), strict=True)]
    found = 0
    for _ in range(resamples):
        now: list[Record] = []
        before: list[Record] = []
        for pool, worse in zip(drawn, slower, strict=True):
            count = len(pool.trials)
            order = rng.permutation(count) if is_disjoint(pool, repeats) else rng.integers(0, count, 2 * repeats)
            before += [pool.trials[at] for at in order[:repeats]]
            now += [worse[at] for at in order[repeats : 2 * repeats]]
        found += is_missed(limits, now, before)
    return found


def is_disjoint(pool: Pool, repeats: int) -> bool:
    """Whether two runs of so many repeats can be drawn without a trial in both."""
    return 2 * repeats <= len(pool.trials)


def recommended(pool: Pool, limit: Limit) -> int:
    """The repeats that `check` names for what matters, by what all trials vary by: every other one a side.

    Raises TrialError where 1,000 would not do.
    """
    values = pool.values(limit)
    needed = repeats_to_tell(limit, values[::2], values[1::2], 2 * ALPHA)
    if needed is None:
        raise TrialError(f"{pool.title}: {limit.metric.name} varies so much that 1,000 repeats would not do")
    return needed


def in_turn(limit: Limit, pool: Pool, repeats: int) -> tuple[int, int]:
    """Of stretches of so many trials against the stretch that followed, either way round: missed, and looked at."""
    found = looks = 0
    for at in range(len(pool.trials) - 2 * repeats + 1):
        first, then = pool.trials[at : at + repeats], pool.trials[at + repeats : at + 2 * repeats]
        found += is_missed([limit], then, first) + is_missed([limit], first, then)
        looks += 2
    return found, looks


def rows(drawn: Sequence[Pool], resamples: int) -> Iterator[Row]:
    """Each limit by itself at its recommended repeats, then all of them together."""
    for pool in drawn:
        for limit in pool.limits:
            yield from single(pool, limit, resamples)
            if limit.metric.name == MEDIAN:
                asked = replace(limit, effect_ratio=TENTH, neglect_ratio=usual_neglect(limit.metric, TENTH))
                yield from single(pool, asked, resamples)
    limits = usual_limits(has_baseline=True)
    count = sum(len(pool.limits) for pool in drawn)
    repeats = min(WHOLE_REPEATS, *(len(pool.trials) // 2 for pool in drawn))
    name = f"a check of all {count} figures together, {repeats} repeats"
    yield from alarms(name, limits, drawn, repeats, resamples, least=0.0)


def single(pool: Pool, limit: Limit, resamples: int) -> Iterator[Row]:
    """One limit by itself, at the repeats that are recommended for it."""
    repeats = recommended(pool, limit)
    how = "" if is_disjoint(pool, repeats) else ", with replacement"
    name = f"{pool.title}, {limit.metric.name}, {repeats} repeats{how}"
    yield from alarms(name, [limit], [pool], repeats, resamples)
    factor = SLOWER if limit.metric.is_rate else limit.effect_ratio
    found = missed([limit], [pool], repeats, resamples, factors=[factor], seed=2)
    slower = "a tenth slower" if limit.metric.is_rate else f"{factor - 1:.0%} slower"
    yield _row(f"{name}: {slower} is found", found, resamples, POWER, 1.0)


def alarms(
    name: str,
    limits: Sequence[Limit],
    drawn: Sequence[Pool],
    repeats: int,
    resamples: int,
    least: float = ALPHA - ALARMS_OFF,
) -> Iterator[Row]:
    """Alarms at the largest change that is no breach, of each figure its own, and without any.

    Several figures that go together raise fewer.
    """
    neglected = [pool.held_by(limits)[0].neglect_ratio for pool in drawn]
    edge = missed(limits, drawn, repeats, resamples, factors=neglected)
    worse = f"{' and '.join(f'{each - 1:.1%}' for each in sorted(set(neglected)))} worse, which is neglected"
    yield _row(f"{name}: alarms, {worse}", edge, resamples, least, ALPHA + ALARMS_OFF)
    alike = missed(limits, drawn, repeats, resamples)
    yield _row(f"{name}: alarms, alike", alike, resamples, 0.0, ALPHA + ALARMS_OFF)


def _row(name: str, found: int, resamples: int, least: float, most: float) -> Row:
    """A share that must lie in least … most, with its binomial interval: how sure so many resamples are of it."""
    from scipy.stats import binomtest  # noqa: PLC0415 - half a second that only this pays

    share = found / resamples
    low, high = binomtest(found, resamples).proportion_ci()
    expected = f"at least {least:.0%}" if most == 1 else f"{least:.1%} … {most:.1%}" if least else f"at most {most:.1%}"
    return Row(name, expected, f"{share:.1%} ({low:.1%} … {high:.1%})", "", least <= share <= most)


def notes(drawn: Sequence[Pool]) -> Iterator[str]:
    """What the trials vary by, and what runs one after the other show, with what is neglected and without."""
    for pool in drawn:
        for limit in pool.limits:
            logs = np.log(pool.values(limit))
            lag = float(np.corrcoef(logs[:-1], logs[1:])[0, 1])
            yield (
                f"{pool.title}, {limit.metric.name}: {len(logs)} trials that vary by {logs.std(ddof=1):.1%}, each with "
                f"the one before by r = {lag:.2f}; one stretch against the next: {_stretches(limit, pool)}"
            )


def _stretches(limit: Limit, pool: Pool) -> str:
    told = []
    for repeats in sorted({FEW, min(recommended(pool, limit), len(pool.trials) // 2)}):
        strict, looks = in_turn(replace(limit, neglect_ratio=1.0), pool, repeats)
        found, _ = in_turn(limit, pool, repeats)
        told.append(
            f"of {repeats}: {found / looks:.1%} alarms, {strict / looks:.1%} if nothing were neglected ({looks} looks)"
        )
    return "; ".join(told)
