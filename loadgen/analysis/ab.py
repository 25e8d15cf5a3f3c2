"""Two configurations, interleaved: which effect is shown, with which certainty, and how many repeats would show it.

Repeats are the unit (`loadgen.stats.confidence`); from ten pairs on a bootstrap of the medians stands beside the t
interval, which assumes log-normal repeats.

**Several quantities are compared, and each may differ by chance.** So intervals are simultaneous within a family
(C. Bonferroni, "Teoria statistica delle classi e calcolo delle probabilità", 1936; O. Dunn, "Multiple comparisons among
means", JASA 56, 1961): of m effects each has the confidence 1 - 0.05 / m, and in at most 5 of 100 runs chance alone
shows any difference in the family. There are two families: the **answers**, the first effect of each point, which the
question is about, and all **others**, which stand beside them; so that asking about CPU time, too, costs the answer
nothing. Bonferroni's, because Holm's stepwise procedure (S. Holm, "A simple sequentially rejective multiple test
procedure", Scandinavian Journal of Statistics 6, 1979) finds a little more, but has no intervals of use to go with it:
here a difference is shown where the interval that is printed excludes 1. It holds however the quantities depend on each
other, as p50 and p99 of the same trials do.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import stdev
from typing import TYPE_CHECKING, Any

from loadgen.analysis import FOUND_KINDS, is_measured
from loadgen.record import RESPONSE_KINDS, enters
from loadgen.stats.bootstrap import BootstrapRatio, bootstrap_ratio
from loadgen.stats.confidence import Estimate, Ratio, estimate, log_ratios, paired_ratio
from loadgen.stats.power import EFFECT_RATIO, repeats_needed, spread_bound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.record import Record
    from loadgen.runs import Run

    Values = dict[int, float | None]

VARIANTS = ("A", "B")
ALPHA = 0.05
POWER = 0.9
BOOTSTRAP_FROM = 10


@dataclass(frozen=True, slots=True)
class Effect:
    """B over A in one quantity: paired by repeat, with the repeats that an effect of interest would need.

    `ratios` are those of the pairs, in the order of their repeats. `is_answer` says to which family it belongs and
    `family` how many effects that has: the interval of `ratio` and `repeats_needed` are at a level of 0.05 / `family`.
    `repeats_needed` is None where there are too few pairs to know their spread, or where 1,000 would not do.
    """

    measure: str
    unit: str
    a: Estimate
    b: Estimate
    ratio: Ratio
    ratios: tuple[float, ...]
    bootstrap: BootstrapRatio | None
    spread_log: float | None
    repeats_needed: int | None
    is_answer: bool
    family: int

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
    """One point of both variants; the first effect is the one that the question is about.

    `differences` are the settings in which the variants differ: (name, A's, B's).
    """

    broker: str
    driver: str
    point: dict[str, Any]
    differences: tuple[tuple[str, Any, Any], ...]
    effects: tuple[Effect, ...]
    struck: int


@dataclass(frozen=True, slots=True)
class _Quantity:
    """One quantity of one point, by repeat and variant."""

    measure: str
    unit: str
    a: Values
    b: Values
    is_answer: bool

    @property
    def pairs(self) -> list[tuple[float | None, float | None]]:
        """B's and A's value of each repeat that has both."""
        return [(self.b[repeat], self.a[repeat]) for repeat in sorted(self.a.keys() & self.b.keys())]

    @property
    def is_tested(self) -> bool:
        """Whether there are pairs enough for an interval, so that it can raise a false alarm."""
        return len(log_ratios(self.pairs)) > 1


def effect_of(run: Run) -> float:
    """The effect of interest as a ratio, such as 1.1, that a run was asked about."""
    asked: float | None = (run.header.get("plan") or {}).get("effect_ratio")
    return asked or EFFECT_RATIO


def compare_variants(run: Run, effect_ratio: float) -> list[Compared]:
    """Every point's effects, from a run that `loadgen ab` made; `effect_ratio` (such as 1.1) is the one of interest.

    Empty for every other run.
    """
    groups: dict[int, list[Record]] = {}
    for record in run.records:
        point = record["point"]
        if is_measured(record) and point.get("variant") in VARIANTS and "pair" in point:
            groups.setdefault(point["pair"], []).append(record)
    points = [(sorted(records, key=_variant), _quantities(records)) for _, records in sorted(groups.items())]
    families = Counter(each.is_answer for _, quantities in points for each in quantities if each.is_tested)
    return [
        Compared(
            broker=records[0]["broker"],
            driver=" / ".join(dict.fromkeys(each["driver"] for each in records)),
            point=_shared_point(records),
            differences=_differences(run, records),
            effects=tuple(_effect(each, max(1, families[each.is_answer]), effect_ratio) for each in quantities),
            struck=sum(not enters(record) for record in records),
        )
        for records, quantities in points
    ]


def point_ratios(quantities: Sequence[Sequence[tuple[float | None, float | None]]]) -> list[Ratio]:
    """B/A of each quantity of one point, from its (B's, A's) values by repeat: the answer first, then the others.

    At the levels of `compare_variants` for a run of that one point: the answer by itself, the others as one family.
    """
    tested = Counter(number == 0 for number, pairs in enumerate(quantities) if len(log_ratios(pairs)) > 1)
    return [paired_ratio(pairs, corrected_confidence(tested[number == 0])) for number, pairs in enumerate(quantities)]


def corrected_confidence(family: int) -> float:
    """The confidence of each of so many intervals that are to hold together (Bonferroni's); of none, as of one."""
    return 1 - ALPHA / max(1, family)


def _quantities(records: Sequence[Record]) -> list[_Quantity]:
    """What is compared of one point, the answer first."""
    used = [record for record in records if enters(record)]
    kind = next((kind for kind in RESPONSE_KINDS if any(each["latency_ns"].get(kind) for each in used)), None)
    is_rate = records[0]["rate"]["kind"] in {"saturate", "search"}
    latency = [(f"{kind} {name}", "ns", _latency(kind, name)) for name in ("p50", "p99")] if kind else []
    rate = [("rate", "msgs_per_s", _rate)]
    cost = [("client CPU a message", "us", _cpu_us("producers", "consumers")),
            ("broker CPU a message", "us", _cpu_us("broker"))]  # fmt: skip
    measures = [*rate, *latency, *cost] if is_rate else [*latency, *rate, *cost]
    values = {variant: [record for record in used if record["point"]["variant"] == variant] for variant in VARIANTS}
    return [
        _Quantity(
            name,
            unit,
            {each["repeat"]: measure(each) for each in values["A"]},
            {each["repeat"]: measure(each) for each in values["B"]},
            is_answer=number == 0,
        )
        for number, (name, unit, measure) in enumerate(measures)
    ]


def _variant(record: Record) -> str:
    letter: str = record["point"]["variant"]
    return letter


def _shared_point(records: Sequence[Record]) -> dict[str, Any]:
    """What both variants sweep; a value that is not the same in both is shown as `A's / B's`."""
    seen: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record["point"].items():
            if name not in {"variant", "pair"} and value not in seen.setdefault(name, []):
                seen[name].append(value)
    return {name: values[0] if len(values) == 1 else " / ".join(map(str, values)) for name, values in seen.items()}


def _differences(run: Run, records: Sequence[Record]) -> tuple[tuple[str, Any, Any], ...]:
    """The settings in which the variants differ, as they took effect; empty where one of them never ran."""
    firsts = [next((each for each in records if _variant(each) == variant), None) for variant in VARIANTS]
    if firsts[0] is None or firsts[1] is None:
        return ()
    a, b = (_settings(each) for each in firsts if each is not None)
    lengths = [{name: each.get(name) for name in ("warmup_s", "duration_s")} for each in run.header["scenarios"]]
    if len(lengths) == len(VARIANTS):  # a trial's own may be shorter, where it took its time to become steady
        a, b = {**a, **lengths[0]}, {**b, **lengths[1]}
    return tuple((name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name))


def _settings(record: Record) -> dict[str, Any]:
    """What a scenario says of a trial, resolved; producers only where it is not a search that decides."""
    is_found = record["rate"]["kind"] in FOUND_KINDS
    parts = {"message": record["message"], "rate": record["rate"], record["broker"]: record["settings"]}
    return {
        **{name: record.get(name) for name in ("scenario", "driver", "durability", "consumers", "subscribers")},
        "producers": record["point"].get("producers") if is_found else record["producers"],
        **{f"{part}.{name}": value for part, values in parts.items() for name, value in (values or {}).items()},
    }


def _effect(quantity: _Quantity, family: int, effect_ratio: float) -> Effect:
    pairs, confidence = quantity.pairs, corrected_confidence(family)
    logs = log_ratios(pairs)
    spread = stdev(logs) if len(logs) > 1 else None
    return Effect(
        measure=quantity.measure,
        unit=quantity.unit,
        a=estimate(quantity.a.values()),
        b=estimate(quantity.b.values()),
        ratio=paired_ratio(pairs, confidence),
        ratios=tuple(math.exp(each) for each in logs),
        bootstrap=bootstrap_ratio(pairs, seed=1, confidence=confidence) if len(logs) >= BOOTSTRAP_FROM else None,
        spread_log=spread,
        repeats_needed=None if spread is None else _repeats(effect_ratio, spread, len(logs), ALPHA / family),
        is_answer=quantity.is_answer,
        family=family,
    )


def _repeats(effect_ratio: float, spread_log: float, pairs: int, alpha: float) -> int | None:
    """The pairs that show the effect nine times in ten; a spread that few pairs have shown may well be larger."""
    return repeats_needed(effect_ratio, spread_bound(spread_log, pairs - 1), POWER, alpha)


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
    return [f"{effect.measure}: {finding(effect, effect_ratio)}" for effect in compared.effects]


def finding(effect: Effect, effect_ratio: float) -> str:
    """In words whether a difference is shown, with the interval; where none is, the repeats that one would need."""
    ratio = effect.ratio
    if ratio.ratio is None:
        return "nothing to compare, no pair of usable repeats"
    if ratio.low is None or ratio.high is None:
        return f"B/A {ratio.ratio:.3f}, one pair: no interval, no difference shown"
    interval = f"B/A {ratio.ratio:.3f} ({ratio.low:.3f} … {ratio.high:.3f} at {level(effect)}, {ratio.pairs} pairs)"
    if effect.bootstrap is not None and effect.bootstrap.low is not None:
        interval += f", medians {effect.bootstrap.ratio:.3f} ({effect.bootstrap.low:.3f} … {effect.bootstrap.high:.3f})"
    if effect.is_shown:
        change = f"{abs(ratio.ratio - 1):.1%} {'higher' if ratio.ratio > 1 else 'lower'}"
        return f"B is {change}: {interval}"
    wanted = percentage(effect_ratio)
    if effect.is_told:
        return f"no difference shown, and one of {wanted} would have been, nine times in ten: {interval}"
    spread = f"at this spread ({effect.spread_log:.1%} a pair)" if effect.spread_log is not None else ""
    return f"no difference shown: {interval}; {wanted} would need {needed(effect)} repeats {spread}".rstrip()


def needed(effect: Effect) -> str:
    """How many repeats the effect of interest needs, in words."""
    if effect.spread_log is None:
        return "an unknown number of"
    return "more than 1,000" if effect.repeats_needed is None else f"{effect.repeats_needed}"


def percentage(effect_ratio: float) -> str:
    """An effect of interest as it was asked for: `10%`."""
    return f"{(effect_ratio - 1) * 100:.4g}%"


def level(effect: Effect) -> str:
    """The confidence of an effect's interval: `97.5%`."""
    return f"{effect.ratio.confidence * 100:.3g}%"


def multiplicity(compared: Sequence[Compared]) -> str:
    """How intervals were corrected for being several, in one sentence."""
    effects = [effect for each in compared for effect in each.effects if effect.ratio.low is not None]
    answers = [effect for effect in effects if effect.is_answer]
    others = [effect for effect in effects if not effect.is_answer]
    if not effects:
        return "No quantity has two pairs of usable repeats, so none has an interval."
    parts = []
    if answers:
        several = "the answer" if len(answers) == 1 else f"the {len(answers)} answers, the first of each point,"
        parts.append(f"{several} at {level(answers[0])}")
    if others:
        parts.append(f"the {len(others)} other{'s' * (len(others) > 1)} at {level(others[0])}")
    return (
        f"Intervals are corrected for being several (Bonferroni), {' and '.join(parts)}: within either family chance "
        "alone shows any difference in at most 5 of 100 runs."
    )
