"""Numbers and names as people read them, with their units; one place, so that all reports say the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loadgen.stats.confidence import Estimate, Ratio

BROKER_NAMES = {"rabbitmq": "RabbitMQ", "kafka": "Kafka", "memory": "memory"}
CLASS_PROMISES = {
    "none": "nothing is promised of a message",
    "broker": "a confirmed message survives kill -9 of the broker, not a power cut",
    "flushed": "a confirmed message survives a power cut of its one node",
    "replicated": "a confirmed message survives the loss of one of three nodes",
    "replicated_flushed": "a confirmed message survives the loss of one of three nodes, and a power cut of all",
}
"""What each durability class promises."""
CLOSED_LOOP = "closed loop, not latency"
DIGITS = 3
NOTHING = "–"
WIDEST = 100.0  # an interval whose ends lie further apart says nothing: what was seen says more
# Milliseconds wherever they can be read, so that figures compare at a glance and with the claims.
_DURATIONS = ((1e10, 1e9, "s"), (1e4, 1e6, "ms"), (0.0, 1e3, "µs"))
# Three digits of KiB would hide what is left of a MiB, so the larger unit begins a little before it is full.
_STORAGE = ((1000 << 20, 1 << 30, "GiB"), (1000 << 10, 1 << 20, "MiB"), (0.0, 1 << 10, "KiB"))
_RATES = ((1e6, 1e6, "M"), (1e3, 1e3, "k"), (0.0, 1.0, ""))


def broker_name(broker: str | None) -> str:
    """The broker as its makers write it."""
    return BROKER_NAMES.get(broker or "", broker or "unknown")


def significant(value: float, digits: int = DIGITS) -> str:
    """Three significant digits without an exponent: 1.23, 12.3, 123, 1,230."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "∞"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    # Rounding may reach the next power of ten (9.999 is 10.0), which has one decimal fewer.
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def _scaled(value: float, scales: tuple[tuple[float, float, str], ...]) -> tuple[float, str]:
    """The size and the name of the unit for a value: the first scale whose lower bound it reaches."""
    return next((size, unit) for least, size, unit in scales if value >= least or least == 0)


def duration(value_ns: float | None) -> str:
    """A duration with its unit."""
    if value_ns is None:
        return NOTHING
    size, unit = _scaled(value_ns, _DURATIONS)
    return f"{significant(value_ns / size)} {unit}"


def rate(value_msgs_per_s: float | None) -> str:
    """A rate with its unit."""
    if value_msgs_per_s is None:
        return NOTHING
    size, unit = _scaled(value_msgs_per_s, _RATES)
    return f"{significant(value_msgs_per_s / size)}{'' if not unit else f' {unit}'} msg/s"


def offered(value_msgs_per_s: float | None) -> str:
    """A rate that a schedule asked for, which is a round number: `5,000 msg/s`."""
    return NOTHING if value_msgs_per_s is None else f"{value_msgs_per_s:,.10g} msg/s"


def seconds(value_s: float) -> str:
    """How long something took: `42 s`, `3.1 min`, `4.0 h`."""
    if value_s >= 7_200:
        return f"{value_s / 3_600:.1f} h"
    return f"{value_s:.0f} s" if value_s < 100 else f"{value_s / 60:.1f} min"


def micros(value_us: float | None) -> str:
    """CPU time a message."""
    return NOTHING if value_us is None else f"{significant(value_us)} µs"


def size(value_bytes: Any) -> str:
    """A message's size; a distribution by its bounds."""
    if isinstance(value_bytes, dict):
        return " ".join(f"{key.removesuffix('_bytes')} {value}" for key, value in value_bytes.items()) + " B"
    if isinstance(value_bytes, (int, float)) and value_bytes >= 1024 and value_bytes % 1024 == 0:
        return f"{value_bytes / 1024:g} KiB" if value_bytes < 1 << 20 else f"{value_bytes / (1 << 20):g} MiB"
    return f"{value_bytes} B"


def message(about: Mapping[str, Any] | None) -> str:
    """What was sent, as a record has it: `1 KiB`, `1 KiB (compressibility 0.5, 1,000 keys with exponent 1)`."""
    known = about or {}
    more = [f"compressibility {known['compressibility']:g}"] if known.get("compressibility") else []
    if known.get("keys"):
        law = f" with exponent {known['key_exponent']:g}" if known.get("key_exponent") else ""
        more.append(plural(known["keys"], "key") + law)
    return size(known.get("size_bytes")) + (f" ({', '.join(more)})" if more else "")


def shown(value: float | None, unit: str) -> str:
    """A value by the unit of its quantity."""
    return _SHOWN[unit](value)


def unit_of(column: str) -> str:
    """The unit of a column of `Run.trials`, by its name: `ns` of `e2e_p99_ns`."""
    return next((unit for unit in ("msgs_per_s", "bytes", "ns", "s") if column.endswith(f"_{unit}")), "number")


def number(value: float | None) -> str:
    """A count."""
    return NOTHING if value is None else f"{value:,.10g}"


def percent(value: float | None) -> str:
    """A share of a hundred."""
    return NOTHING if value is None else f"{significant(value)} %"


def storage(value_bytes: float | None) -> str:
    """An amount of bytes: whole where it is a power's multiple or small, else to three digits."""
    if value_bytes is None:
        return NOTHING
    if value_bytes < 10_000 or value_bytes % (1 << 20) == 0:
        return size(round(value_bytes))
    scale, unit = _scaled(value_bytes, _STORAGE)
    return f"{significant(value_bytes / scale)} {unit}"


def exact(value_bytes: float) -> str:
    """A limit in bytes, to the byte: `16 MiB`, `1,048,516 B`."""
    count = round(value_bytes)
    return size(count) if count % (1 << 20) == 0 else f"{count:,} B"


_SHOWN: dict[str, Callable[[float | None], str]] = {
    "ns": duration,
    "msgs_per_s": rate,
    "us": micros,
    "s": lambda value: duration(None if value is None else value * 1e9),
    "bytes": storage,
    "percent": percent,
    "number": number,
}


def interval(estimate: Estimate, unit: str, *, is_bare: bool = False) -> str:
    """The interval in the unit of the median: `0.31–0.37 ms`, bare without it; one repeat has none, and it says so."""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    if is_too_wide(estimate.low, estimate.high):
        seen = span(min(estimate.values), max(estimate.values), estimate.median or 0.0, unit, is_bare=is_bare)
        return f"{seen} seen, too few repeats for an interval"
    return span(estimate.low, estimate.high, estimate.median or estimate.high, unit, is_bare=is_bare)


def is_too_wide(low: float, high: float) -> bool:
    """Whether the ends of an interval lie so far apart that it says nothing."""
    return high > WIDEST * low


def span(low: float | None, high: float | None, middle: float, unit: str, *, is_bare: bool = False) -> str:
    """Two bounds in the unit that `middle` is shown in: `0.31–0.37 ms`; `from 0.31 ms` where one of them is unknown."""
    scale, name = 1.0, {"us": "µs", "percent": "%"}.get(unit, "")
    if unit == "ns":
        scale, name = _scaled(middle, _DURATIONS)
    elif unit == "s":
        scale, name = _scaled(middle * 1e9, _DURATIONS)
        scale /= 1e9
    elif unit == "bytes":
        scale, name = _scaled(middle, _STORAGE)
    elif unit == "msgs_per_s":
        scale, name = _scaled(middle, _RATES)
        name = f"{name} msg/s".strip()
    ends = [None if end is None else significant(end / scale) for end in (low, high)]
    text = "–".join(end for end in ends if end is not None)
    if None in ends:
        text = "" if not text else f"{'up to' if ends[0] is None else 'from'} {text}"
    return text if is_bare or not text else f"{text} {name}"


def times(ratio: Ratio) -> str:
    """A ratio with its interval, or why there is none: `28.1× (26.0–30.4)`."""
    return NOTHING if ratio.ratio is None else f"{significant(ratio.ratio)}× ({ratio_interval(ratio)})"


def ratio_interval(ratio: Ratio) -> str:
    """The interval of a ratio, or why there is none: `26.0–30.4`."""
    if ratio.low is None or ratio.high is None:
        return "one repeat, no interval"
    if is_too_wide(ratio.low, ratio.high):
        return f"{plural(ratio.pairs, 'pair')} too far apart for an interval"
    return f"{significant(ratio.low)}–{significant(ratio.high)}"


def plural(count: int | None, noun: str) -> str:
    """`1 trial`, `2 trials`, `3 repeats`."""
    return f"{count or 0:,} {noun}{'' if count == 1 else 's'}"


def receivers(subscribers: int, consumers: int | None) -> str:
    """`4 consumers`, or `3 subscribers with 4 consumers each`, of which each subscriber receives every message."""
    each = plural(consumers, "consumer")
    return each if subscribers == 1 else f"{plural(subscribers, 'subscriber')} with {each} each"


def command(header: Mapping[str, Any]) -> str:
    """The command line that made a run; empty where it is not known."""
    given = header.get("command")
    return " ".join(map(str, given)) if isinstance(given, list) else str(given or "")
