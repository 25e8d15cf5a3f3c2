"""The tail explained: which seconds of a trial were slow, and what happened in them that did not in the others.

A second is slow when its p99 lies far above the median second's, measured in median absolute deviations (B. Iglewicz
and D. Hoaglin, "How to Detect and Handle Outliers", 1993: a modified z-score over 3.5). What coincides is an event that
overlaps the second or the one before it, or a signal of the machine that is an outlier in that second by the same rule.

Coincidence is no cause: what happens in every second coincides with every slow one. So each cause is counted in the
other seconds too, and how likely so many hits are by chance is the upper tail of the hypergeometric distribution
(R. A. Fisher's exact test, one-sided). One of a dozen causes hits by chance more often than any single one: those of a
trial are corrected for being several (C. Bonferroni, "Teoria statistica delle classi e calcolo delle probabilità",
1936). Only those count that were seen in one of its seconds at all, since the others could not have hit (R. E. Tarone,
"A modified Bonferroni method for discrete data", Biometrics 46, 1990). Among many trials some hits are by chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loadgen.checks import milliseconds
from loadgen.frames import by_interval, interval_count
from loadgen.record import RESPONSE_KINDS, events_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.frames import Second
    from loadgen.run import Run

Float64 = npt.NDArray[np.float64]

OUTLIER_SCORE = 3.5
MAD_TO_DEVIATION = 1.4826
"""A normal distribution's standard deviation in median absolute deviations."""
SLOW_SHARE = 0.25
"""A second within a quarter of the median second is not slow, however evenly the others ran."""
SECONDS_MIN = 8
"""Fewer seconds have no usual one to stand out from."""
SHOWN_MAX = 10
CHANCE_MAX = 0.05
"""A cause explains when in at most one trial of twenty any cause has such hits by chance …"""
LIFT_MIN = 2.0
"""… and is worth a mention when it is twice as frequent in slow seconds as in others."""
PAUSE_SHARE_MIN = 0.1
"""A pause delays what it meets by itself over 1 − load: one of a tenth of the delay would need a load of 90 %."""
HELD_BACK_SHARE = 0.01
"""Producers without room for so much of the time were late because of the broker, which is no cause of their own."""
PAUSE = "gc pause"


@dataclass(frozen=True, slots=True)
class Signal:
    """A column of the observer's series; `floor` is the least rise above its median that can matter."""

    kind: str
    column: str
    floor: float
    text: str
    scale: float = 1.0


SIGNALS = (
    Signal("CPU pressure", "psi_cpu_some_share", 0.05, "tasks waited for a CPU {:.0f} % of the time", 100),
    Signal("I/O pressure", "psi_io_some_share", 0.05, "tasks waited for a disk {:.0f} % of the time", 100),
    Signal("stolen CPU", "host_steal_share", 0.01, "{:.0f} % of the CPU time stolen", 100),
    Signal("slow CPU", "cpu_slow_share", 0.1, "the CPU {:.0f} % slower than at its fastest", 100),
    Signal("other programs", "others_cores", 0.2, "other programs used {:.1f} cores"),
    Signal("resting broker", "resting_cpu_cores", 0.2, "the resting broker used {:.1f} cores"),
    Signal("slow flushes", "disk_flush_ns", 5e5, "flushes of {:.1f} ms on average", 1e-6),
    Signal("slow writes", "disk_write_ns", 1e6, "writes of {:.1f} ms on average", 1e-6),
    Signal("writeback", "writeback_bytes", 4 << 20, "{:.0f} MB being written back", 1e-6),
    Signal("dirty pages", "dirty_bytes", 16 << 20, "{:.0f} MB of dirty pages", 1e-6),
    Signal("swap", "swapped_bytes_per_s", 4096, "{:.1f} MB swapped", 1e-6),
)
LATE = Signal("late sending", "", 2e5, "messages left {:.1f} ms late (p99)", 1e-6)


@dataclass(frozen=True, slots=True)
class Cause:
    """How often something coincided with slow seconds, and how often it was there in the others.

    It is one of `tried` causes, each of which might have hit by chance.
    """

    kind: str
    slow: int
    slow_of: int
    others: int
    others_of: int
    tried: int = 1

    @property
    def chance(self) -> float:
        """How likely at least so many hits are if the cause had nothing to do with slowness."""
        total, hits, draws = self.slow_of + self.others_of, self.slow + self.others, self.slow_of
        ways = sum(
            math.comb(hits, k) * math.comb(total - hits, draws - k) for k in range(self.slow, min(hits, draws) + 1)
        )
        return ways / math.comb(total, draws)

    @property
    def corrected(self) -> float:
        """At most so likely it is that any of the causes that were tried has hits as unlikely as these."""
        return min(1.0, self.tried * self.chance)

    @property
    def correction(self) -> str:
        """In words, behind the chance: what it is for being one of several."""
        return f", and of any of {self.tried} causes: {self.corrected:.2g}" if self.tried > 1 else ""

    @property
    def is_rarer_elsewhere(self) -> bool:
        """Whether it is at least twice as frequent in slow seconds as in the others."""
        return self.slow * self.others_of >= LIFT_MIN * self.others * self.slow_of and self.slow > 0

    @property
    def explains(self) -> bool:
        """Whether chance is an unlikely explanation of its hits."""
        return self.is_rarer_elsewhere and self.corrected <= CHANCE_MAX


@dataclass(frozen=True, slots=True)
class SlowSecond:
    """A slow second and what coincides with it that is rarer elsewhere: pairs of a cause and what was seen of it."""

    second: Second
    coincidences: tuple[tuple[Cause, str], ...]

    @property
    def is_explained(self) -> bool:
        """Whether one of the causes explains."""
        return any(cause.explains for cause, _ in self.coincidences)

    def line(self) -> str:
        """One line for a report."""
        each = self.second
        times = ", ".join(
            f"{name} {milliseconds(value)}"
            for name, value in (("p50", each.p50_ns), ("p99", each.p99_ns), ("max", each.max_ns))
        )
        found = [text for cause, text in self.coincidences if cause.explains]
        if found:
            why = f"explained by {'; '.join(found)}"
        elif self.coincidences:
            why = "coincides with " + "; ".join(
                f"{text} (as {cause.others} of {cause.others_of} other seconds)" for cause, text in self.coincidences
            )
        else:
            why = "nothing observed coincides that other seconds lack"
        return f"second {each.at_s:g} ({times}; {each.count:,} messages): {why}"


@dataclass(frozen=True, slots=True)
class Tail:
    """A trial's seconds, the slow ones slowest first, and what they have in common.

    `limit_ns` is the p99 above which a second is slow; None with too few seconds to tell. `not_observed` names the
    causes that nobody looked for.
    """

    trial_id: str
    kind: str
    seconds: tuple[Second, ...]
    median_p99_ns: float | None
    limit_ns: float | None
    slow: tuple[SlowSecond, ...]
    causes: tuple[Cause, ...]
    not_observed: tuple[str, ...]

    @property
    def explained(self) -> int:
        """How many of the slow seconds have a cause that explains."""
        return sum(each.is_explained for each in self.slow)

    def lines(self) -> list[str]:
        """Lines for a report; the slowest seconds only."""
        if self.limit_ns is None or self.median_p99_ns is None:
            return [f"{self.kind}: {len(self.seconds)} seconds are too few to tell slow ones from the others"]
        first = (
            f"{self.kind}: p99 of the median second {milliseconds(self.median_p99_ns)}; {len(self.slow)} of "
            f"{len(self.seconds)} seconds are slow (p99 above {milliseconds(self.limit_ns)})"
        )
        if self.slow:
            nothing = sum(not each.coincidences for each in self.slow)
            first += f"; {self.explained} explained, {nothing} with nothing that coincides"
        said = [first, *(each.line() for each in self.slow[:SHOWN_MAX])]
        if len(self.slow) > SHOWN_MAX:
            said.append(f"and {len(self.slow) - SHOWN_MAX} more slow seconds")
        said += [
            f"{each.kind}: in {each.slow} of {each.slow_of} slow seconds and {each.others} of {each.others_of} others "
            f"(so many hits by chance: {each.chance:.2g}{each.correction})"
            for each in self.causes
        ]
        if self.slow and self.not_observed:
            said.append(f"not observed: {', '.join(self.not_observed)}")
        return said


def explain(run: Run, trial_id: str, kind: str | None = None) -> Tail | None:
    """Explain a trial's slow seconds from what its run recorded.

    Args:
        run: a run on disk.
        trial_id: one of its trials; ScenarioError where there is none.
        kind: a kind of latency; by default response times, end to end before confirmation.

    Returns:
        None where the trial has no such latency, as a closed loop has no response times.
    """
    record = run.trial(trial_id)
    kinds = RESPONSE_KINDS if kind is None else (kind,)
    kind = next((each for each in kinds if (record["latency_ns"].get(each) or {}).get("count")), None)
    if kind is None or not record["window_s"]:
        return None
    by_second = run.seconds(trial_id, kind)
    seconds = tuple(by_second[index] for index in sorted(by_second))
    if len(seconds) < SECONDS_MIN:
        return Tail(trial_id, kind, seconds, None, None, (), (), ())
    p99_ns = np.array([each.p99_ns for each in seconds], np.float64)
    median_ns = float(np.median(p99_ns))
    limit_ns = _limit(p99_ns, SLOW_SHARE * median_ns)
    excess_ns = {i: each.p99_ns - median_ns for i, each in by_second.items() if each.p99_ns > limit_ns}
    seen, not_observed = _seen(run, record)
    causes, hits = _attribute(seen, excess_ns, set(by_second))
    slow = [
        SlowSecond(by_second[index], tuple((causes[name], text) for name, text in hits[index]))
        for index in sorted(excess_ns, key=lambda index: -excess_ns[index])
    ]
    ranked = sorted(causes.values(), key=lambda cause: cause.chance)
    return Tail(trial_id, kind, seconds, median_ns, limit_ns, tuple(slow), tuple(ranked), not_observed)


def _limit(values: Float64, floor: float) -> float:
    """Above this a value is an outlier: so many deviations above the median, and at least `floor`."""
    median = float(np.median(values))
    deviation = MAD_TO_DEVIATION * float(np.median(np.abs(values - median)))
    return median + max(OUTLIER_SCORE * deviation, floor)


Hit = tuple[float | None, str]
"""How long a cause lasted in ns, where that can be compared with a delay, and what was seen of it."""


def _seen(run: Run, record: Mapping[str, Any]) -> tuple[dict[str, dict[int, Hit]], tuple[str, ...]]:
    """By cause, the intervals in which it was seen; and the causes that nobody looked for."""
    seen = _events(record)
    # RabbitMQ's processes collect their garbage one by one: there is no pause to look for.
    silent = [PAUSE] * (record["broker"] == "kafka" and not (record["observer"] or {}).get("gc"))
    columns = by_interval(run, record, [signal.column for signal in SIGNALS])
    for signal in SIGNALS:
        values = columns[signal.column]
        if signal.column.endswith("_ns") and np.isfinite(values).any():
            values = np.nan_to_num(values)  # where nothing was flushed, nothing waited for it
        if np.isfinite(values).sum() < SECONDS_MIN:
            silent.append(signal.kind)
        seen[signal.kind] = _outliers(signal, values)
    if (record["blocked_share"] or 0) < HELD_BACK_SHARE:
        lags = np.full(interval_count(record), np.nan)
        for index, second in run.seconds(record["id"], "schedule_lag").items():
            lags[index] = second.p99_ns
        seen[LATE.kind] = _outliers(LATE, lags)
    return seen, tuple(silent)


def _outliers(signal: Signal, values: Float64) -> dict[int, Hit]:
    known = np.isfinite(values)
    if known.sum() < SECONDS_MIN:
        return {}
    limit = _limit(values[known], signal.floor)
    return {
        int(index): (None, signal.text.format(values[index] * signal.scale))
        for index in np.flatnonzero(known & (values > limit))
    }


def _events(record: Mapping[str, Any]) -> dict[str, dict[int, Hit]]:
    """By kind, the intervals that an event overlaps and those right after: a queue takes its time to empty."""
    length_s = record["interval_s"] or 1.0
    found: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for event in events_of(record):
        first = math.floor(event["at_s"] / length_s)
        last = math.floor((event["at_s"] + event["duration_s"]) / length_s) + 1
        for index in range(max(0, first), min(interval_count(record) - 1, last) + 1):
            found.setdefault(event["kind"], {}).setdefault(index, []).append(event)
    return {kind: {index: _hit(kind, events) for index, events in by.items()} for kind, by in found.items()}


def _hit(kind: str, events: Sequence[Mapping[str, Any]]) -> Hit:
    longest = max(events, key=lambda event: event["duration_s"])
    more = f" and {len(events) - 1} more" if len(events) > 1 else ""
    if kind != PAUSE:
        return None, f"{kind}: {longest['text']}{more}"
    took_ns = sum(event["duration_s"] for event in events) * 1e9
    return took_ns, f"{kind} of {longest['duration_s'] * 1e3:.0f} ms ({longest['text']}){more}"


def _attribute(
    seen: Mapping[str, Mapping[int, Hit]], excess_ns: Mapping[int, float], indices: set[int]
) -> tuple[dict[str, Cause], dict[int, list[tuple[str, str]]]]:
    """Count each cause in slow and other seconds; the second value is what to name for each slow second."""
    hits: dict[int, list[tuple[str, str]]] = {index: [] for index in excess_ns}
    causes: dict[str, Cause] = {}
    least_ns = PAUSE_SHARE_MIN * min(excess_ns.values(), default=0.0)
    tried = sum(not indices.isdisjoint(by_index) for by_index in seen.values())
    for kind, by_index in seen.items():
        slow = [
            index
            for index, delay_ns in excess_ns.items()
            if index in by_index and _is_long_enough(by_index[index], PAUSE_SHARE_MIN * delay_ns)
        ]
        others = sum(
            _is_long_enough(hit, least_ns) for index, hit in by_index.items() if index in indices - excess_ns.keys()
        )
        if not slow:
            continue
        cause = Cause(kind, len(slow), len(excess_ns), others, len(indices) - len(excess_ns), tried)
        causes[kind] = cause
        if cause.is_rarer_elsewhere:
            for index in slow:
                hits[index].append((kind, by_index[index][1]))
    for found in hits.values():
        found.sort(key=lambda pair: causes[pair[0]].chance)
    return causes, hits


def _is_long_enough(hit: Hit, least_ns: float) -> bool:
    return hit[0] is None or hit[0] >= least_ns
