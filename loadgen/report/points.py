"""Trials gathered into points: the repeats of one measurement, and the two brokers' points beside each other.

Only complete trials whose verdict is valid or unknown enter a figure; others stay in sight, struck through. Trials that
were a capacity search's way to its answer are in no point at all.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadgen.analysis import FOUND_KINDS, is_answer
from loadgen.endpoint import OWN_DRIVERS
from loadgen.record import end_to_end, enters
from loadgen.report import phases, words
from loadgen.search import latency_limit
from loadgen.stats.confidence import CONFIDENCE, Estimate, Ratio, estimate, paired_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from loadgen.record import Record

SCENARIO_ORDER = ("throughput", "latency", "clients")  # those of the article's table come first
CLASS_ORDER = ("none", "broker", "flushed", "replicated", "replicated_flushed")
BROKER_ORDER = ("rabbitmq", "kafka")
PATTERNS = {"request_reply": "requests and replies: ", "process": "consume, transform, produce: "}
TOLD = {"timeout_ms": "replies within {:g} ms", "requests_in_flight": "{:,} in flight each"}
"""What requesters may be told by a sweep."""
Value = float | None


@dataclass(frozen=True)
class Point:
    """One broker, one driver, one combination of values: its repeats."""

    scenario: str
    durability: str
    broker: str
    driver: str
    driver_kind: str
    shared: dict[str, Any]
    swept: dict[str, Any]
    used: tuple[Record, ...]
    struck: tuple[Record, ...]
    found: dict[str, str] = field(default_factory=dict)
    """What bounded a capacity, by the trial that confirmed it: the search's finding over all that it tried."""

    @property
    def is_open_loop(self) -> bool:
        """Whether a schedule existed, so that response times do."""
        return bool(self.shared["rate"].get("kind") != "saturate")

    @property
    def fraction(self) -> float | None:
        """The share of its capacity that a curve's point is measured at; None for every other point."""
        fractions = self.shared["rate"].get("fractions")
        return float(fractions[0]) if fractions else None

    @property
    def is_beyond_capacity(self) -> bool:
        """Whether its latency is of overload, and depends on how long a trial lasts."""
        return (self.fraction or 0.0) > 1

    @property
    def label(self) -> str:
        """What is particular to the point: `1 KiB, 5,000 msg/s, 1 producer, 4 consumers, prefetch 10`."""
        return ", ".join(part for part in (load_label(self.shared), self.own_label) if part)

    @property
    def own_label(self) -> str:
        """What is this broker's alone: `variant B, prefetch 10, 2 producers`; empty where nothing is."""
        return own_label(self.broker, self.swept, self.found_producers)

    @property
    def name(self) -> str:
        """Who it is among the points of its load: `RabbitMQ (amqp) prefetch 10`."""
        share = "" if self.fraction is None else f" at {fraction_label(self.fraction)}"
        return f"{words.broker_name(self.broker)} ({self.driver}){share} {self.own_label}".rstrip()

    @property
    def found_producers(self) -> int | None:
        """How many producers a search ended with, at the most; None where the scenario says how many there are."""
        if self.shared["producers"] is not None:
            return None
        return max((record["producers"] or 1 for record in (*self.used, *self.struck)), default=None)

    @property
    def bound_by(self) -> str:
        """What set the limit, when the repeats agree; else all that did, the most frequent first.

        A trial at capacity carried what was offered: what bounds the capacity is for its search to say.
        """
        counted = Counter(self.found.get(record["id"], record["verdict"]["bound_by"]) for record in self.used)
        return " / ".join(name for name, _ in counted.most_common())

    @property
    def latency_bound_by(self) -> str:
        """Who had a part in its response times, by the same rule as a search's and a decision's (`latency_limit`)."""
        counted = Counter(latency_limit(record) or record["verdict"]["bound_by"] for record in self.used)
        return " / ".join(name for name, _ in counted.most_common())

    @property
    def verdicts(self) -> str:
        """How many repeats are valid, unknown, invalid or not complete."""
        records = (*self.used, *self.struck)
        counted = Counter(
            record["verdict"]["status"] if record["status"] == "complete" else record["status"] for record in records
        )
        return ", ".join(f"{count} {name}" for name, count in counted.most_common())

    def estimate(self, measure: Callable[[Record], Value]) -> Estimate:
        """A quantity over the repeats that count."""
        return estimate(measure(record) for record in self.used)

    def by_repeat(self, measure: Callable[[Record], Value]) -> dict[int, Value]:
        """A quantity by repeat, for pairing."""
        return {record["repeat"]: measure(record) for record in self.used}


@dataclass
class Comparison:
    """The points of both brokers that may be held against each other: one class, message and load."""

    scenario: str
    durability: str
    shared: dict[str, Any]
    points: list[Point] = field(default_factory=list)

    def one(self, broker: str, driver_kind: str) -> Point | None:
        """The broker's only point of that kind of driver; None where it has none, or a sweep of its own."""
        found = [point for point in self.points if (point.broker, point.driver_kind) == (broker, driver_kind)]
        return found[0] if len(found) == 1 else None

    def ratio(
        self, measure: Callable[[Record], Value], driver_kind: str = "wire", confidence: float = CONFIDENCE
    ) -> Ratio:
        """Kafka over RabbitMQ, paired by repeat; empty where a side is missing or swept by itself."""
        kafka, rabbitmq = self.one("kafka", driver_kind), self.one("rabbitmq", driver_kind)
        if kafka is None or rabbitmq is None:
            return paired_ratio([], confidence)
        theirs, ours = kafka.by_repeat(measure), rabbitmq.by_repeat(measure)
        pairs = [(theirs[repeat], ours[repeat]) for repeat in sorted(theirs.keys() & ours.keys())]
        return paired_ratio(pairs, confidence)


def load_label(shared: dict[str, Any]) -> str:
    """The message and the load that points have in common: `1 KiB, 5,000 msg/s, 1 producer, 4 consumers`."""
    parts = [words.message(shared["message"]), rate_label(shared["rate"])]
    if shared["producers"] is not None:
        parts.append(words.plural(shared["producers"], "producer"))
    together = " (goodput: all of them together)" if shared["subscribers"] > 1 else ""
    receivers = words.receivers(shared["subscribers"], shared["consumers"])
    if shared["think"]["mean_ms"]:
        think = shared["think"]
        unlike = f", the slowest {think['spread']:g} times as long as the fastest" if think["spread"] > 1 else ""
        receivers += f" working {think['mean_ms']:g} ms on each message ({think['kind']}{unlike})"
    phases_label = phases.load_label(shared)
    asked = PATTERNS.get(shared["pattern"], "")
    told = [TOLD[name].format(value) for name, value in shared["requests"].items()]
    return asked + ", ".join([*parts, receivers + together, *told, *([phases_label] if phases_label else [])])


def rate_label(rate: dict[str, Any]) -> str:
    """The load alone: `5,000 msg/s`, `as fast as it goes`, `at capacity (p99 ≤ 10 ms)`, `50 % of capacity`."""
    kind, p99_ms = rate.get("kind"), rate.get("p99_ms")
    objective = f" (p99 ≤ {p99_ms:g} ms)" if p99_ms else ""
    if kind == "search":
        return f"at capacity{objective}"
    if kind == "curve":
        return f"{fraction_label(rate['fractions'][0])} of capacity{objective}"
    if kind == "saturate":
        return "as fast as it goes"
    if kind == "burst":
        bursts = f"bursts of {rate['burst_times']} times that for {rate['burst_s']:g} s every {rate['every_s']:g} s"
        return f"{words.offered(rate['msgs_per_s'])} with {bursts}"
    return words.offered(rate.get("msgs_per_s")) + ("" if kind == "fixed" else f" {kind}")


def fraction_label(fraction: float) -> str:
    """A share of a capacity: `50 %`, in one piece."""
    return f"{fraction * 100:.4g}\N{NO-BREAK SPACE}%"


def own_label(broker: str, swept: dict[str, Any], found_producers: int | None) -> str:
    """What tells one broker's points apart: the variant, its own knobs, and producers that a search added."""
    parts = [f"variant {swept['variant']}"] if "variant" in swept else []
    own = f"{broker}."
    parts += [f"{name.removeprefix(own)} {value}" for name, value in swept.items() if name.startswith(own)]
    if found_producers is not None and found_producers > 1:
        parts.append(words.plural(found_producers, "producer"))
    return ", ".join(parts)


BEYOND_LEAST = 5
"""So many messages lie beyond a percentile that is told: of fewer it is one of the largest values, by chance any."""
SHARE_BEYOND = {"p90": 0.1, "p99": 0.01, "p99_9": 0.001, "p99_99": 0.0001}


def latency(kind: str, percentile: str) -> Callable[[Record], Value]:
    """A trial's percentile of one kind in ns; None where that kind does not exist in it, or has too few messages.

    End to end (e2e) is the round trip where requests are replied to.
    """

    def measure(record: Record) -> Value:
        summary = record["latency_ns"].get(kind_of(record, kind))
        if not summary or (summary.get("count") or 0) * SHARE_BEYOND.get(percentile, 1.0) < BEYOND_LEAST:
            return None
        value: Value = summary[percentile]
        return value

    return measure


def kind_of(record: Record, kind: str) -> str:
    """The name by which a trial has its latencies of this kind."""
    return end_to_end(record, kind.removeprefix("e2e")) if kind.startswith("e2e") else kind


def goodput(record: Record) -> Value:
    """Messages a second, received once and intact; the sum over subscribers."""
    value: Value = record["goodput_msgs_per_s"]
    return value


def offered(record: Record) -> Value:
    """Messages a second that the schedule asked for."""
    value: Value = record["offered_msgs_per_s"]
    return value


def cpu_us_per_msg(role: str) -> Callable[[Record], Value]:
    """CPU time in µs: of the consumers or the broker a message received, of the producers a message produced."""

    def measure(record: Record) -> Value:
        spent_s, rate, window_s = record["cpu_s"].get(role), record["achieved_msgs_per_s"], record["window_s"]
        copies = record.get("subscribers", 1) if role == "producers" else 1
        return None if spent_s is None or not rate or not window_s else spent_s * copies / (rate * window_s) * 1e6

    return measure


def comparisons(trials: Iterable[Record], searches: Iterable[Record] = ()) -> list[Comparison]:
    """All points by scenario, class and load; wire drivers before client drivers. `searches` are the run's."""
    found = {search["trial"]: str(search["bound_by"]) for search in searches if search["trial"]}
    gathered: dict[str, Comparison] = {}
    repeats: dict[str, list[Record]] = {}
    homes: dict[str, Comparison] = {}
    for record in trials:
        if not is_answer(record):
            continue  # a trial known only by its intervals, or a search's: it is listed, and compared with nothing
        shared = _shared(record)
        home = _key(record["scenario"], record["durability"], shared)
        comparison = gathered.setdefault(home, Comparison(record["scenario"], str(record["durability"]), shared))
        point = _key(home, record["broker"], record["driver"], record["settings"], record["point"].get("variant"))
        repeats.setdefault(point, []).append(record)
        homes[point] = comparison
    for point, records in repeats.items():
        homes[point].points.append(_point(homes[point], records, found))
    for comparison in gathered.values():
        comparison.points.sort(key=_point_order)
    return sorted(gathered.values(), key=_comparison_order)


def _shared(record: Record) -> dict[str, Any]:
    """What points must have in common to be compared; producers only where the scenario says how many."""
    is_found = record["rate"].get("kind") in FOUND_KINDS
    backlog = record.get("backlog")
    return {
        "message": record["message"] or {},
        "rate": record["rate"],
        "producers": record["point"].get("producers") if is_found else record["producers"],
        "consumers": record["consumers"],
        "subscribers": record["subscribers"],
        "think": record.get("think") or {"kind": "fixed", "mean_ms": 0.0, "spread": 1.0},
        "backlog": backlog and (backlog["msgs"], backlog["start_from"]),
        "membership": record.get("membership"),
        "pattern": record.get("pattern") or "one_way",
        "processors": record.get("processors"),
        "requests": {name: value for name, value in record["point"].items() if name in TOLD},
    }


def _point(home: Comparison, records: list[Record], found: dict[str, str]) -> Point:
    first = records[0]
    return Point(
        scenario=home.scenario,
        durability=home.durability,
        broker=first["broker"],
        driver=first["driver"],
        driver_kind=first["driver_kind"] or "unknown",
        shared=home.shared,
        swept=first["point"],
        used=tuple(record for record in records if enters(record)),
        struck=tuple(record for record in records if not enters(record)),
        found={record["id"]: found[record["id"]] for record in records if record["id"] in found},
    )


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


def _rank(name: str, order: tuple[str, ...]) -> int:
    return order.index(name) if name in order else len(order)


def _point_order(point: Point) -> tuple[Any, ...]:
    swept = tuple(value for _, value in sorted(point.swept.items()))
    return (point.driver_kind != "wire", _rank(point.broker, BROKER_ORDER), point.driver, _sortable(swept))


def _comparison_order(comparison: Comparison) -> tuple[Any, ...]:
    rate, message = comparison.shared["rate"], comparison.shared["message"]
    return (
        _rank(comparison.scenario, SCENARIO_ORDER),
        comparison.scenario,
        _rank(comparison.durability, CLASS_ORDER),
        rate.get("kind") or "",
        rate.get("msgs_per_s") or (rate.get("fractions") or [0.0])[0],
        rate.get("burst_times") or 0,
        _sortable((message.get("size_bytes"),)),
        tuple(message.get(name) or 0 for name in ("compressibility", "keys", "key_exponent")),
        comparison.shared["subscribers"],
        comparison.shared["think"]["mean_ms"],
        comparison.shared["think"]["kind"],
        comparison.shared["think"]["spread"],
        comparison.shared["backlog"] or (0, ""),
        _sortable(tuple((comparison.shared["membership"] or {}).values())),
        _sortable(tuple(comparison.shared["requests"].values())),
    )


def _sortable(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values of a sweep, which may be numbers or words, in an order that never fails."""
    return tuple((0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value)) for value in values)


def driver_name(broker: str, driver: str) -> str:
    """A broker as it was driven: `RabbitMQ`, and `RabbitMQ (stream)` where that is not its own wire driver."""
    name = words.broker_name(broker)
    return name if OWN_DRIVERS.get(broker) == driver else f"{name} ({driver})"


def has_others_limit(bound_by: str) -> bool:
    """Whether clients or machine had a part in what set a value, by the limits of its trials (`host / broker`)."""
    return not {"host", "generator", "consumers"}.isdisjoint(bound_by.split(" / "))


def broker_rank(broker: str) -> int:
    """Where a broker stands in tables: RabbitMQ first."""
    return _rank(broker, BROKER_ORDER)


def class_rank(durability: str) -> int:
    """Where a durability class stands from weakest to strongest."""
    return _rank(durability, CLASS_ORDER)
