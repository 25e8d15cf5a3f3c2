"""Two configurations, interleaved: which effect is shown, with which certainty, and how many repeats would show it.

Repeats are the unit (`loadgen.stats.confidence`); from ten pairs on a bootstrap of the medians stands beside the t
interval, which assumes log-normal repeats.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import stdev
from typing import TYPE_CHECKING, Any

from loadgen.record import enters
from loadgen.stats.bootstrap import BootstrapRatio, bootstrap_ratio
from loadgen.stats.confidence import Estimate, Ratio, estimate, log_ratios, paired_ratio
from loadgen.stats.power import repeats_needed

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.record import Record
    from loadgen.runs import Run

VARIANTS = ("A", "B")
POWER = 0.9
BOOTSTRAP_FROM = 10


@dataclass(frozen=True, slots=True)
class Effect:
    """B over A in one quantity: paired by repeat, with the repeats that an effect of interest would need.

    `repeats_needed` is None where there are too few pairs to know their spread, or where 1,000 would not do.
    """

    measure: str
    unit: str
    a: Estimate
    b: Estimate
    ratio: Ratio
    bootstrap: BootstrapRatio | None
    spread_log: float | None
    repeats_needed: int | None

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes 1."""
        return self.ratio.direction != "no difference shown"

    @property
    def is_told(self) -> bool:
        """Whether an effect is shown, or one of interest would have been."""
        return self.is_shown or (self.repeats_needed is not None and self.ratio.pairs >= self.repeats_needed)


@dataclass(frozen=True, slots=True)
class Compared:
    """One point of both variants; the first effect is the one that the question is about."""

    broker: str
    driver: str
    point: dict[str, Any]
    effects: tuple[Effect, ...]
    struck: int


def compare_variants(run: Run, effect_ratio: float) -> list[Compared]:
    """Every point's effects, from a run that `loadgen ab` made; `effect_ratio` (such as 1.1) is the one of interest."""
    groups: dict[str, tuple[dict[str, Any], list[Record]]] = {}
    for record in run.trials:
        if record["purpose"] == "measure" and record["point"].get("variant") in VARIANTS:
            point = {name: value for name, value in record["point"].items() if name != "variant"}
            key = json.dumps([record["broker"], record["driver"], point], sort_keys=True)
            groups.setdefault(key, (point, []))[1].append(record)
    return [_compared(point, records, effect_ratio) for point, records in groups.values()]


def _compared(point: dict[str, Any], records: list[Record], effect: float) -> Compared:
    used = [record for record in records if enters(record)]
    is_open = any(record["latency_ns"]["e2e"] for record in used)
    is_rate = records[0]["rate"]["kind"] in {"saturate", "search"}
    latency = [("e2e p50", "ns", _latency("p50")), ("e2e p99", "ns", _latency("p99"))] if is_open else []
    rate = [("goodput", "msgs_per_s", _goodput)]
    cost = [("client CPU a message", "us", _cpu_us("producers", "consumers")),
            ("broker CPU a message", "us", _cpu_us("broker"))]  # fmt: skip
    measures = [*rate, *latency, *cost] if is_rate else [*latency, *rate, *cost]
    effects = tuple(_effect(name, unit, used, measure, effect) for name, unit, measure in measures)
    return Compared(records[0]["broker"], records[0]["driver"], point, effects, len(records) - len(used))


def _effect(
    name: str, unit: str, records: list[Record], measure: Callable[[Record], float | None], effect_ratio: float
) -> Effect:
    values = {
        variant: {each["repeat"]: measure(each) for each in records if each["point"]["variant"] == variant}
        for variant in VARIANTS
    }
    repeats = sorted(values["A"].keys() & values["B"].keys())
    pairs = [(values["B"][repeat], values["A"][repeat]) for repeat in repeats]
    logs = log_ratios(pairs)
    spread = stdev(logs) if len(logs) > 1 else None
    return Effect(
        measure=name,
        unit=unit,
        a=estimate(values["A"].values()),
        b=estimate(values["B"].values()),
        ratio=paired_ratio(pairs),
        bootstrap=bootstrap_ratio(pairs, seed=1) if len(logs) >= BOOTSTRAP_FROM else None,
        spread_log=spread,
        repeats_needed=None if spread is None else repeats_needed(effect_ratio, spread, POWER),
    )


def _latency(percentile: str) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        summary = record["latency_ns"]["e2e"]
        return None if summary is None else summary[percentile]

    return measure


def _goodput(record: Record) -> float | None:
    value: float | None = record["goodput_msgs_per_s"]
    return value


def _cpu_us(*roles: str) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        spent_s = [record["cpu_s"].get(role) for role in roles]
        messages = (record["achieved_msgs_per_s"] or 0) * (record["window_s"] or 0)
        known = [each for each in spent_s if each is not None]
        return sum(known) / messages * 1e6 if messages and len(known) == len(spent_s) else None

    return measure


def sentences(compared: Compared, effect_ratio: float) -> list[str]:
    """What was found, one line a quantity, the one asked about first."""
    return [_sentence(effect, effect_ratio) for effect in compared.effects]


def _sentence(effect: Effect, effect_ratio: float) -> str:
    ratio = effect.ratio
    if ratio.ratio is None:
        return f"{effect.measure}: nothing to compare, no pair of usable repeats"
    if ratio.low is None or ratio.high is None:
        return f"{effect.measure}: B/A {ratio.ratio:.3f}, one pair: no interval, no difference shown"
    interval = f"B/A {ratio.ratio:.3f} ({ratio.low:.3f} … {ratio.high:.3f}, {ratio.pairs} pairs)"
    if effect.bootstrap is not None and effect.bootstrap.low is not None:
        interval += f", medians {effect.bootstrap.ratio:.3f} ({effect.bootstrap.low:.3f} … {effect.bootstrap.high:.3f})"
    if effect.is_shown:
        change = f"{abs(ratio.ratio - 1):.1%} {'higher' if ratio.ratio > 1 else 'lower'}"
        return f"{effect.measure}: B is {change}: {interval}"
    wanted = f"{effect_ratio - 1:.0%}"
    if effect.is_told:
        return f"{effect.measure}: no difference shown, and one of {wanted} would have been: {interval}"
    needed = "more than 1,000" if effect.repeats_needed is None else f"{effect.repeats_needed}"
    spread = f"at this spread ({effect.spread_log:.1%} a pair)" if effect.spread_log is not None else ""
    return f"{effect.measure}: no difference shown: {interval}; {wanted} would need {needed} repeats {spread}".rstrip()
