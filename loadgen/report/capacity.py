"""The capacities of a run, as data for all three formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadgen.record import RESPONSE_KINDS
from loadgen.report import detail, words
from loadgen.report import points as pt
from loadgen.report.detail import NOTHING, Quantity, quantity
from loadgen.stats.confidence import CONFIDENCE, Ratio, paired_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from loadgen.analysis.capacity import PointCapacity
    from loadgen.analysis.curve import Curve
    from loadgen.record import Record
    from loadgen.runs import Run

CAPACITY_NOTE = (
    "Capacity is the highest offered rate that a trial of full length sustained: carried within 1\N{NO-BREAK SPACE}%, "
    "with a backlog that did not grow, without errors, and with a generator that could have done more. “At least” "
    "stands where nothing showed that the broker could not have carried more. It is a rate of producing: each "
    "subscriber received as much."
)


@dataclass(frozen=True)
class CapacityLine:
    """One point's capacity: how sure, bound by what, what more load did, and how far off the tool's own limit is."""

    broker: str
    driver: str
    driver_kind: str
    own_label: str
    rate: Quantity
    bound_by: str
    above: str
    p50: Quantity
    p99: Quantity
    ceiling: Quantity
    effort: str
    trial_ids: tuple[str, ...]


@dataclass(frozen=True)
class CapacityBlock:
    """Capacities that may be compared: one class, message and objective; `notes` are of the ceilings."""

    scenario: str
    durability: str
    load: str
    lines: tuple[CapacityLine, ...]
    ratio: str
    notes: tuple[str, ...]

    @property
    def has_single_runs(self) -> bool:
        """Whether a latency of it stands on one repeat."""
        return any(detail.ONE_RUN in line.p99.interval for line in self.lines)


def home(point: PointCapacity | Curve, p99_ms: float | None) -> tuple[Any, ...]:
    """What capacities or curves must have in common to stand side by side."""
    return (
        point.scenario,
        point.durability,
        str(point.message),
        (point.subscribers, point.consumers),
        point.point.get("producers"),
        p99_ms,
    )


def grouped(found: Sequence[PointCapacity]) -> list[list[PointCapacity]]:
    """The capacities that may be compared with each other: RabbitMQ's first, wire drivers before client drivers."""
    groups: dict[tuple[Any, ...], list[PointCapacity]] = {}
    for each in found:
        groups.setdefault(home(each, each.p99_ms), []).append(each)
    return [sorted(each, key=order) for each in groups.values()]


def order(point: PointCapacity | Curve) -> tuple[Any, ...]:
    """Wire drivers first, RabbitMQ before Kafka."""
    return (point.driver_kind == "client", pt.broker_rank(point.broker), point.driver)


def pair(group: Iterable[PointCapacity]) -> tuple[PointCapacity, PointCapacity] | None:
    """Kafka's and RabbitMQ's only capacity by wire drivers; None where a side has none, or a sweep of its own."""
    by_broker = [
        [each for each in group if (each.broker, each.driver_kind) == (b, "wire")] for b in ("kafka", "rabbitmq")
    ]
    if any(len(each) != 1 or not each[0].used for each in by_broker):
        return None
    return by_broker[0][0], by_broker[1][0]


def ratio(one: PointCapacity, other: PointCapacity, confidence: float = CONFIDENCE) -> Ratio:
    """One capacity over another, paired by repeat."""
    top, bottom = one.by_repeat, other.by_repeat
    pairs = [(top[repeat], bottom[repeat]) for repeat in sorted(top.keys() & bottom.keys())]
    return paired_ratio(pairs, confidence)


def rate_text(point: PointCapacity) -> str:
    """`42.0 k msg/s`, `at least 42.0 k msg/s`."""
    return ("at least " if point.is_lower_bound else "") + words.rate(point.msgs_per_s)


def limits_text(point: PointCapacity) -> str:
    """The interval over repeats, or the bracket of one search, named as what it is."""
    low, high = point.limits
    if point.limits_are == "none" or point.msgs_per_s is None:
        return ""
    text = words.span(low, high, point.msgs_per_s, "msgs_per_s", is_bare=True)
    return text if point.limits_are == "repeats" else f"one search: {text}"


def _rate_cell(point: PointCapacity) -> Quantity:
    if not point.used:
        return Quantity("none found", "")
    count = f"n {point.estimate.n}, " if point.limits_are == "repeats" else ""
    text = f"{count}{limits_text(point)}"
    if point.subscribers > 1 and point.msgs_per_s is not None:
        text += f"; produced, {words.rate(point.subscribers * point.msgs_per_s)} consumed"
    return Quantity(rate_text(point), text.removeprefix("; "))


def search_text(search: Record) -> str:
    """One search in a line: `at least 42.0 k msg/s, bound by generator; 9 trials in 52 s`."""
    rate = search["capacity_msgs_per_s"]
    found = "no capacity" if rate is None else f"{'at least ' * search['is_lower_bound']}{words.rate(rate)}"
    effort = f"{words.plural(len(search['trials']), 'trial')} in {words.seconds(search['elapsed_s'])}"
    return f"{found}, bound by {search['bound_by']}: {search['reason']}; {effort}"


def _above(point: PointCapacity) -> str:
    """What the lowest rate that was too much showed, in the search whose capacity is the median one; or why none."""
    told = sorted(point.used, key=lambda search: float(search["capacity_msgs_per_s"]))
    search = told[(len(told) - 1) // 2] if told else point.searches[-1]
    return str(search["reason"])


def ceiling_cell(point: PointCapacity) -> Quantity:
    """`12.4×`, and below it the rate of which that is: what the tool itself paces here, or as a closed loop carries."""
    ceiling = point.ceiling
    if ceiling is None:
        return Quantity(words.NOTHING, "not measured")
    text = words.NOTHING if point.headroom is None else f"{words.significant(point.headroom)}×"
    closed = words.rate(ceiling.msgs_per_s)
    if ceiling.paced_msgs_per_s is None:
        return Quantity(text, closed)
    return Quantity(text, f"{words.rate(ceiling.paced_msgs_per_s)} paced, {closed} as a closed loop")


def _line(run: Run, point: PointCapacity) -> CapacityLine:
    trials = sum(len(search["trials"]) for search in point.searches)
    lost = len(point.searches) - len(point.used)
    effort = f"{_plural(len(point.searches), 'search', 'searches')}, {words.plural(trials, 'trial')}"
    if lost:
        effort += f", {lost} without an answer"
    return CapacityLine(
        broker=words.broker_name(point.broker),
        driver=point.driver,
        driver_kind=point.driver_kind,
        own_label=pt.own_label(point.broker, point.point, found_producers(point)),
        rate=_rate_cell(point),
        bound_by=point.bound_by or words.NOTHING,
        above=_above(point),
        p50=quantity(point.latency("p50"), "ns"),
        p99=quantity(point.latency("p99"), "ns", one_run_of(run, point.trials, "p99")),
        ceiling=ceiling_cell(point) if point.used else NOTHING,
        effort=f"{effort}, {words.seconds(point.elapsed_s)}",
        trial_ids=tuple(record["id"] for record in point.trials),
    )


def found_producers(point: PointCapacity | Curve) -> int | None:
    """How many producers a search ended with; None where the scenario says how many there are."""
    return None if "producers" in point.point else point.producers


def one_run_of(run: Run, records: Sequence[Record], percentile: str) -> str:
    """The bounds that a single run has by itself, of its response time."""
    kinds = [kind for kind in RESPONSE_KINDS if records and records[0]["latency_ns"].get(kind)]
    return detail.one_run(run, records, kinds[0], percentile) if kinds else ""


def capacity_blocks(run: Run, found: Sequence[PointCapacity]) -> list[CapacityBlock]:
    """Every capacity of the run, beside those that it may be compared with."""
    return [_block(run, group) for group in grouped(found)]


def _block(run: Run, group: Sequence[PointCapacity]) -> CapacityBlock:
    first = group[0]
    return CapacityBlock(
        scenario=first.scenario,
        durability=first.durability,
        load=load_text(first, first.p99_ms),
        lines=tuple(_line(run, each) for each in group),
        ratio=_ratio_text(group),
        notes=tuple(dict.fromkeys(note for each in group for note in _notes(each))),
    )


def load_text(point: PointCapacity | Curve, p99_ms: float | None) -> str:
    """What points have in common: `100 B, 1 consumer`, and the objective where there is one."""
    producers = point.point.get("producers")
    parts = [words.message(point.message), words.receivers(point.subscribers, point.consumers)]
    if producers is not None:
        parts.insert(1, words.plural(producers, "producer"))
    return ", ".join([*parts, *([f"p99 ≤ {p99_ms:g} ms"] if p99_ms else [])])


def _ratio_text(group: Iterable[PointCapacity]) -> str:
    both = pair(group)
    found = ratio(*both) if both else None
    if both is None or found is None or found.ratio is None:
        return ""
    if found.low is None:
        text = f"{words.significant(found.ratio)}× (one search each, no interval)"
    else:
        text = words.times(found) + ", no difference shown" * (found.direction == "no difference shown")
    return text + {
        (True, False): "; at least, as Kafka's limit was not reached",
        (False, True): "; at most, as RabbitMQ's limit was not reached",
        (True, True): "; neither's limit was reached, so this is no comparison of the brokers",
    }.get((both[0].is_lower_bound, both[1].is_lower_bound), "")


def _notes(point: PointCapacity) -> list[str]:
    ceiling = point.ceiling
    if ceiling is None or not (ceiling.how or ceiling.limits):
        return []
    how = f" ({ceiling.how})" if ceiling.how else ""
    limits = f": {ceiling.limits}" if ceiling.limits else ""
    name = f"{words.broker_name(point.broker)} ({point.driver})"
    said = f"Without a broker{how} the tool carries {words.rate(ceiling.msgs_per_s)} as {name}{limits}."
    if ceiling.paced_msgs_per_s is not None:
        said += f" As an open loop, which is what a capacity is, it paces {words.rate(ceiling.paced_msgs_per_s)}"
        said += f" ({ceiling.paced_reason})." if ceiling.paced_reason else ", the highest rate that was tried."
    elif ceiling.paced_reason:
        said += f" As an open loop it paced no rate that was tried: {ceiling.paced_reason}."
    return [said]


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


CAPACITY_COLUMNS: tuple[tuple[str, Callable[[CapacityLine], Quantity]], ...] = (
    ("capacity", lambda line: line.rate),
    ("bound by", lambda line: Quantity(line.bound_by, "")),
    ("p50 there", lambda line: line.p50),
    ("p99 there", lambda line: line.p99),
    ("the tool itself", lambda line: line.ceiling),
    ("the first rate above", lambda line: Quantity(line.above, line.effort)),
)
