"""A file of limits, in TOML: absolute ones, ones against a baseline, and ones on the brokers' ratio.

effect = "10%"                     # the change that matters, where a limit does not say another
neglect = "2%"                     # and up to which one is no breach, however surely it is shown

[[limit]]                          # of the run alone
scenario = "latency"               # patterns; what is not named fits all
broker = "kafka"
metric = "e2e_p99_ms"
at_most = 10                       # or at_least

[[relative]]                       # no worse than the baseline
metric = "goodput_msgs_per_s"
effect = "5%"

[[ratio]]                          # Kafka over RabbitMQ, now as it was: for machines that others use too
scenario = "throughput"
metric = "goodput_msgs_per_s"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from loadgen.analysis import TOLD_KINDS
from loadgen.errors import ScenarioError
from loadgen.gate.metrics import Metric, metric
from loadgen.record import point_label
from loadgen.stats.power import EFFECT_RATIO

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from loadgen.record import Record

Kind = Literal["limit", "relative", "ratio"]
WHERE = ("scenario", "broker", "driver", "durability", "rate", "point")
NEGLECT_RATIO, OTHER_NEGLECT_RATIO = 1.03, 1.1
"""Where nobody says what is too little to fail for, of rates and of all else: so much rates and latencies differ from
themselves when they are measured again minutes later, of which no interval over repeats knows (docs/performance.md,
"The gate"). What a message costs in CPU and memory was not looked at, and is taken to be no steadier."""
OTHER_EFFECT_RATIO = 1.3
"""The change that matters of what varies so much, where nobody says: three times what is neglected."""
NEGLECTED_PART = 3
"""At most a third of what matters is neglected, where nobody says more: else it would take too many repeats to tell."""
ASKED = ("effect", "neglect")
KEYS: dict[str, frozenset[str]] = {
    "limit": frozenset({*WHERE, "metric", "at_most", "at_least"}),
    "relative": frozenset({*WHERE, "metric", "effect", "neglect"}),
    "ratio": frozenset({"scenario", "durability", "rate", "metric", "effect", "neglect"}),
}


@dataclass(frozen=True, slots=True)
class Limit:
    """One rule. `where` are patterns (`*`, `?`) on a trial's fields, or on its point as reports name it."""

    kind: Kind
    metric: Metric
    where: Mapping[str, str] = field(default_factory=dict)
    at_most: float | None = None
    at_least: float | None = None
    effect_ratio: float = EFFECT_RATIO
    neglect_ratio: float = NEGLECT_RATIO

    @classmethod
    def relative(cls, what: Metric, where: Mapping[str, str]) -> Limit:
        """No worse than the baseline's, where nobody says what matters."""
        effect = usual_effect(what)
        return cls("relative", what, where, effect_ratio=effect, neglect_ratio=usual_neglect(what, effect))

    def fits(self, record: Record) -> bool:
        """Whether the rule speaks of this trial."""
        own = {name: str(record[name]) for name in ("scenario", "broker", "driver", "durability")}
        own |= {"rate": str((record["rate"] or {}).get("kind")), "point": point_label(record)}
        return all(fnmatchcase(own[name], pattern) for name, pattern in self.where.items())

    @property
    def text(self) -> str:
        """What it demands: `e2e_p99_ms at most 10`."""
        if self.kind == "limit":
            bounds = [f"at most {self.at_most:g}"] if self.at_most is not None else []
            bounds += [f"at least {self.at_least:g}"] if self.at_least is not None else []
            return f"{self.metric.name} {' and '.join(bounds)}"
        than = "than the baseline's" if self.kind == "relative" else "between the brokers than in the baseline"
        how = "no worse" if self.kind == "relative" else "no other ratio"
        return f"{self.metric.name} {how} {than}"


def usual_effect(what: Metric) -> float:
    """The ratio that matters where nobody says: 1.1 of rates, 1.3 of latencies and of what a message costs."""
    return EFFECT_RATIO if what.is_rate else OTHER_EFFECT_RATIO


def usual_neglect(what: Metric, effect: float) -> float:
    """The ratio up to which a change is no breach, where nobody says."""
    return min(NEGLECT_RATIO if what.is_rate else OTHER_NEGLECT_RATIO, 1 + (effect - 1) / NEGLECTED_PART)


def read_limits(path: Path | None) -> list[Limit] | None:
    """The limits of a file, None without one; ScenarioError, one line with its key, for what it should not say."""
    if path is None:
        return None
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path}: is no TOML: {error}") from None
    if stray := next((name for name in document if name not in {*KEYS, *ASKED}), None):
        raise ScenarioError(f"{path}: {stray}: expected [[limit]], [[relative]], [[ratio]], {' or '.join(ASKED)}")
    usual = {name: document[name] for name in ASKED if name in document}
    found = []
    for kind in KEYS:
        rules = document.get(kind, [])
        if not isinstance(rules, list):
            raise ScenarioError(f"{path}: {kind}: expected [[{kind}]], in double brackets")
        for number, rule in enumerate(rules, 1):
            found.append(_limit(f"{path}: {kind} {number}", kind, rule, usual))  # type: ignore[arg-type]  # a Kind
    if not found:
        raise ScenarioError(f"{path}: has no limit; expected [[limit]], [[relative]] or [[ratio]] (docs/gate.md)")
    return found


def _limit(place: str, kind: Kind, rule: Mapping[str, Any], usual: Mapping[str, Any]) -> Limit:
    if stray := next((name for name in rule if name not in KEYS[kind]), None):
        raise ScenarioError(f"{place}: {stray}: expected one of {', '.join(sorted(KEYS[kind]))}")
    if "metric" not in rule:
        raise ScenarioError(f"{place}: metric: is missing; expected such as e2e_p99_ms")
    try:
        what = metric(str(rule["metric"]))
    except ScenarioError as error:
        raise ScenarioError(f"{place}: {error}") from None
    bounds = {name: _number(f"{place}: {name}", rule[name]) for name in ("at_most", "at_least") if name in rule}
    if kind == "limit" and not bounds:
        raise ScenarioError(f"{place}: at_most: is missing; expected at_most or at_least, a number")
    if kind != "limit" and what.is_count:
        raise ScenarioError(f"{place}: {what.name}: a count has no ratio; expected a [[limit]] with at_most")
    where = {name: str(rule[name]) for name in WHERE if name in rule}
    effect, neglect = _matters(place, what, {**usual, **rule})
    return Limit(kind, what, where, bounds.get("at_most"), bounds.get("at_least"), effect, neglect)


def _matters(place: str, what: Metric, asked: Mapping[str, Any]) -> tuple[float, float]:
    """The ratio that matters, and the one that is neglected, as a file says or as is usual."""
    said = {name: _percentage(f"{place}: {name}", asked[name]) for name in ASKED if name in asked}
    effect = said.get("effect", usual_effect(what))
    neglect = said.get("neglect", usual_neglect(what, effect))
    if effect <= neglect:
        texts = (asked.get("effect", f"{effect - 1:.3%}"), asked.get("neglect", f"{neglect - 1:.3%}"))
        raise ScenarioError(f"{place}: effect: {texts[0]}: expected more than what is neglected, {texts[1]}")
    return effect, neglect


def _number(place: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ScenarioError(f"{place}: {value!r}: expected a number")
    return float(value)


def _percentage(place: str, value: Any) -> float:
    """`10%` as 1.1."""
    text = str(value)
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else -1.0
    except ValueError:
        share = -1.0
    if not 0 <= share <= 10:
        raise ScenarioError(f"{place}: {text}: expected a percentage, such as 10%")
    return 1 + share


def usual_limits(*, has_baseline: bool) -> list[Limit]:
    """Where no file says otherwise: nothing confirmed is lost, nothing corrupted; rates and latencies as before.

    What came through is a finding where the rate was not told, response times are where it was.
    """
    found = [Limit("limit", metric(name), at_most=0.0) for name in ("confirmed_lost", "corrupted")]
    asked: list[tuple[str, tuple[str, ...]]] = [(kind, ("goodput_msgs_per_s",)) for kind in ("saturate", "search")]
    asked += [(kind, ("e2e_p50_ms", "e2e_p99_ms", "rtt_p50_ms", "rtt_p99_ms")) for kind in TOLD_KINDS]
    relative = [Limit.relative(metric(name), {"rate": kind}) for kind, names in asked for name in names]
    return found + relative * has_baseline
