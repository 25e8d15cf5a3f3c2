"""Two configurations, interleaved: which effect is shown, with which certainty, and how many repeats would show it.

Repeats are the unit (`loadgen.stats.confidence`); from ten pairs on a bootstrap of the medians stands beside the t
interval, which assumes log-normal repeats.
"""

from __future__ import annotations

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
    groups: dict[int, list[Record]] = {}
    for record in run.trials:
        if record["purpose"] == "measure" and record["point"].get("variant") in VARIANTS:
            groups.setdefault(record["point"]["pair"], []).append(record)
    return [_compared(records, effect_ratio) for _, records in sorted(groups.items())]


def _compared(records: list[Record], effect: float) -> Compared:
    used = [record for record in records if enters(record)]
    kind = next((kind for kind in ("e2e", "ack") if any(each["latency_ns"][kind] for each in used)), None)
    is_rate = records[0]["rate"]["kind"] in {"saturate", "search"}
    latency = [(f"{kind} {name}", "ns", _latency(kind, name)) for name in ("p50", "p99")] if kind else []
    rate = [("rate", "msgs_per_s", _rate)]
    cost = [("client CPU a message", "us", _cpu_us("producers", "consumers")),
            ("broker CPU a message", "us", _cpu_us("broker"))]  # fmt: skip
    measures = [*rate, *latency, *cost] if is_rate else [*latency, *rate, *cost]
    effects = tuple(_effect(name, unit, used, measure, effect) for name, unit, measure in measures)
    drivers = " / ".join(dict.fromkeys(each["driver"] for each in sorted(records, key=_variant)))
    return Compared(records[0]["broker"], drivers, _shared_point(records), effects, len(records) - len(used))


def _variant(record: Record) -> str:
    letter: str = record["point"]["variant"]
    return letter


def _shared_point(records: list[Record]) -> dict[str, Any]:
    """What both variants sweep; a value that is not the same in both is shown as `A's / B's`."""
    seen: dict[str, list[Any]] = {}
    for record in sorted(records, key=_variant):
        for name, value in record["point"].items():
            if name not in {"variant", "pair"} and value not in seen.setdefault(name, []):
                seen[name].append(value)
    return {name: values[0] if len(values) == 1 else " / ".join(map(str, values)) for name, values in seen.items()}


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


def _latency(kind: str, percentile: str) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        summary = record["latency_ns"][kind]
        return None if summary is None else summary[percentile]

    return measure


def _rate(record: Record) -> float | None:
    """Received once and intact, or where nobody consumes what was confirmed."""
    value: float | None = record["goodput_msgs_per_s" if record["consumers"] else "achieved_msgs_per_s"]
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
        found = f"no difference shown, and one of {wanted} would have been, nine times in ten"
        return f"{effect.measure}: {found}: {interval}"
    needed = "more than 1,000" if effect.repeats_needed is None else f"{effect.repeats_needed}"
    spread = f"at this spread ({effect.spread_log:.1%} a pair)" if effect.spread_log is not None else ""
    return f"{effect.measure}: no difference shown: {interval}; {wanted} would need {needed} repeats {spread}".rstrip()
