"""What a trial of several phases showed, in a sentence a point: a drain, a pause for a rebalance, bursts, a ramp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen.backlog import PLACES
from loadgen.report import words
from loadgen.stats.confidence import estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from loadgen.record import Record
    from loadgen.report.points import Point

WHEN = {"joins": "when a consumer joined", "leaves": "when it left"}


def load_label(shared: dict[str, Any]) -> str:
    """What points with phases have in common: `a backlog of 60,000 from its beginning`; empty for all others."""
    parts = []
    if shared["backlog"] is not None:
        msgs, start_from = shared["backlog"]
        parts.append(f"a backlog of {msgs:,} from its {PLACES[start_from]}")
    for kind in WHEN:
        at_s = (shared["membership"] or {}).get(f"{kind}_at_s")
        parts += [f"a consumer {kind} after {at_s:g} s"] if at_s is not None else []
    return ", ".join(parts)


def notes(points: Iterable[Point]) -> tuple[str, ...]:
    """A sentence for each point that had a backlog, a rebalance, bursts or a ramp, medians over its repeats."""
    told = []
    for point in points:
        for part, tell in (("backlog", _drained), ("rebalances", _paused), ("bursts", _worked_off), ("ramp", _risen)):
            used = [record for record in point.used if record[part] is not None]
            told += [f"{point.name}: {tell(used)}"] if used else []
    return tuple(told)


def _median(records: Iterable[Record], of: Callable[[Record], float | None]) -> float | None:
    return estimate(value for value in map(of, records) if value is not None).median


def _drained(used: list[Record]) -> str:
    rate = _median(used, lambda record: record["backlog"]["drain_msgs_per_s"])
    first_ns = _median(used, lambda record: record["backlog"]["first_ns"])
    text = f"drained at {words.rate(rate)}, the first message after {words.duration(first_ns)}"
    caught_up = [record for record in used if record["backlog"]["catch_up_s"] is not None]
    catch_up_s = _median(caught_up, lambda record: record["backlog"]["catch_up_s"])
    if catch_up_s is None:
        text += ", not caught up within the window"
    else:
        text += f", caught up after {words.significant(catch_up_s)} s"
    if len(caught_up) not in {0, len(used)}:
        text += f" ({len(caught_up)} of {words.plural(len(used), 'repeat')})"
    rss_bytes = _median(used, lambda record: record["rss_bytes"]["broker"])
    return text if rss_bytes is None else f"{text}; the broker's memory up to {rss_bytes / 1e6:,.0f} MB"


def _worked_off(used: list[Record]) -> str:
    count, done = (sum(record["bursts"][name] for record in used) for name in ("count", "worked_off"))
    most = _median(used, lambda record: record["bursts"]["owed_msgs_max"])
    text = f"up to {words.number(most)} messages due and not received; "
    after_s = _median(used, lambda record: record["bursts"]["median_s"])
    bursts = words.plural(count, "burst")
    if after_s is None:
        return f"{text}none of {bursts} was worked off before the next"
    after = f"{after_s:.2f} s after" if after_s > 0.05 else "within 0.05 s of"  # counters are read so often
    return f"{text}worked off {after} a burst’s end ({done} of {bursts})"


def _risen(used: list[Record]) -> str:
    ground_ns = _median(used, lambda record: record["ramp"]["ground_ns"])
    top_ns = _median(used, lambda record: record["ramp"]["top_ns"])
    top = words.rate(_median(used, lambda record: record["ramp"]["top_msgs_per_s"]))
    text = f"response times of {words.duration(ground_ns)} at the lowest rates"
    left = [record for record in used if record["ramp"]["left_at_msgs_per_s"] is not None]
    if not left:
        return f"{text}, and not twice that up to {top}"
    at = words.rate(_median(left, lambda record: record["ramp"]["left_at_msgs_per_s"]))
    text += f" are more than doubled from {at} on"
    if len(left) < len(used):
        text += f" ({len(left)} of {words.plural(len(used), 'repeat')})"
    return f"{text}; {words.duration(top_ns)} at {top}"


def _paused(used: list[Record]) -> str:
    parts = []
    for kind, when in WHEN.items():
        records = [record for record in used if record["rebalances"][kind] is not None]
        if not records:
            continue
        pause_ms, usual_ms = (_median(records, _of(kind, name)) for name in ("pause_ms", "usual_ms"))
        part = f"{_millis(pause_ms)} {when} ({_millis(usual_ms)} in the second before"
        if kind == "joins":
            part += f"; its own first message came after {_millis(_median(records, _of(kind, 'first_after_ms')))}"
        parts.append(f"{part})")
    return f"deliveries paused for {' and '.join(parts)}"


def _of(kind: str, name: str) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        value: float | None = record["rebalances"][kind][name]
        return value

    return measure


def _millis(value_ms: float | None) -> str:
    return words.duration(None if value_ms is None else value_ms * 1e6)
