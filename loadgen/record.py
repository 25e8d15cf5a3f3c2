"""A trial's record: the fields that every trial has, and what stands in them when nobody knows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Record = dict[str, Any]
LATENCY_KINDS = (
    "e2e", "ack", "e2e_service", "ack_service", "schedule_lag", "rtt", "rtt_service", "hop", "hop_service",
    "e2e_high_priority", "e2e_low_priority", "connect",
)  # fmt: skip

# What a trial's record holds when nobody says otherwise: every field is there, and null is unknown.
_NULL_FIELDS = (
    "scenario", "broker", "driver", "driver_kind", "durability", "repeat", "seed", "message", "rate",
    "producers", "consumers", "think", "membership", "backlog",
    "rebalances", "bursts", "ramp", "started_utc", "warmup_s", "window_s", "drain_s", "error", "traceback",
    "offered_msgs_per_s", "achieved_msgs_per_s", "sent_msgs_per_s", "acked_msgs_per_s", "goodput_msgs_per_s",
    "goodput_bytes_per_s", "sent", "acked", "received", "lost", "confirmed_lost", "unconfirmed_lost",
    "duplicated", "dup_resend", "dup_redelivery", "out_of_order", "reordered_redelivery", "corrupted", "foreign",
    "missing_msgs", "misshared_msgs", "dropped_by_limit", "expired", "refused_by_limit", "left_behind", "out_of_range",
    "blocked_share", "stood_still", "agent_cpu_share_max", "broker_configuration", "ledger_examples", "hlog_start_s",
    "interval_s", "requests", "handled", "processors", "workers", "faults", "proxy", "links", "work",
)  # fmt: skip
_EMPTY_FIELDS = ("settings", "point", "errors", "observer")
_PARTS: dict[str, tuple[str, ...]] = {
    "cpu_s": ("producers", "consumers", "broker"),
    "rss_bytes": ("producers", "consumers", "broker"),
    "resolution_ns": ("p50", "p99"),
    "broker_counts": ("stored", "depth_at_end", "read_again"),
    "written": ("waited_s", "reached", "left_bytes"),
    "dead_lettered": ("maxlen", "expired", "rejected", "delivery_limit"),
    "failed_deliveries": ("requeued", "failed", "rejected"),
    "fairness": ("of_msgs", "of_busy_time"),
    "latency_ns": LATENCY_KINDS,
    "versions": ("broker", "client", "python", "loadgen"),
    "clock": ("source", "offset_ns", "error_ns", "drift_ppm", "samples", "changed"),
    "under_way": ("mean_msgs", "max_msgs", "slope_msgs_per_s", "samples"),
    "little": ("agrees", "reason", "weighs"),
    "steady": ("steady", "cut_s", "reason", "weighs"),
}
_NETWORK_KINDS = ("cut", "delay", "throttle", "reset")
_DRIVER_KINDS = {
    "amqp": "wire", "kafka": "wire", "stream": "wire", "memory": "memory",
    "pika": "client", "pika-blocking": "client", "aio-pika": "client", "rstream": "client", "confluent": "client",
    "confluent-sync": "client",
}  # fmt: skip


def completed(record: Mapping[str, Any]) -> Record:
    """The record with every documented field present; what is not known is null."""
    full: Record = {"id": record["id"], "status": "complete", **dict.fromkeys(_NULL_FIELDS)}
    full |= {name: {} for name in _EMPTY_FIELDS}
    full["purpose"] = "measure"
    full["subscribers"] = 1
    full["pattern"] = "one_way"
    full["verdict"] = {"status": "unknown", "bound_by": "unknown", "reasons": []}
    full |= {key: value for key, value in record.items() if value is not None}
    for name, parts in _PARTS.items():
        full[name] = {**dict.fromkeys(parts), **(record.get(name) or {})}
    if full["think"] is not None:  # of a run from before consumers could be unequal
        full["think"] = {"spread": 1.0, **full["think"]}
    full["driver_kind"] = full["driver_kind"] or _DRIVER_KINDS.get(full["driver"] or "")
    if full["faults"]:
        full["faults"] = [{"hurts": _hurts(each["kind"], each["what"]), **each} for each in full["faults"]]
    return full


def _hurts(kind: str, what: str) -> str:
    """What a fault was done to, by its words: runs written before 2026-11-29 have nothing else that says so."""
    if kind == "crash":
        return "producers" if "producers" in what else "consumers"
    if kind in _NETWORK_KINDS:
        return "nodes_network" if " between " in what else "clients_network"
    return "nodes"


RESPONSE_KINDS = ("rtt", "e2e", "ack")
"""Response times, the one that says the most first: a trial has one of the first two where anybody receives."""


def end_to_end(record: Mapping[str, Any], suffix: str = "") -> str:
    """The kind of a trial's latency from one end to the other: of request-reply the round trip, else one way."""
    return ("rtt" if record.get("pattern") == "request_reply" else "e2e") + suffix


def enters(record: Mapping[str, Any]) -> bool:
    """Whether a trial may enter a figure: it came to its end and nothing is known against it."""
    return record["status"] == "complete" and record["verdict"]["status"] in {"valid", "unknown"}


def events_of(record: Mapping[str, Any]) -> Sequence[Record]:
    """What the observer noted of a trial: pauses, alarms, rebalances (`loadgen.events`); none where nobody observed."""
    return (record["observer"] or {}).get("events") or ()


def waiting(record: Mapping[str, Any]) -> int:
    """How many messages were with the broker yet when the drain was given up: they did not come, and are not lost.

    RabbitMQ's queue holds only such; of Kafka a fresh consumer's reading tells, as what was read stays.
    """
    counts = record.get("broker_counts") or {}
    if record.get("broker") != "kafka":
        return int(counts.get("depth_at_end") or 0)
    read, lost = counts.get("read_again"), record.get("lost")
    return 0 if read is None or lost is None else max(0, int(read) - (int(record["sent"]) - int(lost)))


def surely_lost(record: Mapping[str, Any]) -> int | None:
    """How many confirmed messages are lost, whatever of those that did not come waits yet; None where nobody knows."""
    lost = record.get("confirmed_lost")
    if lost is None:
        return None
    sure = max(0, int(lost) - waiting(record))
    return sure if sure or not lost else None


def is_required(record: Mapping[str, Any]) -> bool:
    """Whether a run needs a usable trial of its point: an answer of its scenario, and below the point's capacity.

    At a capacity and above it, whether the rate is carried is what a trial finds out.
    """
    fractions = (record["rate"] or {}).get("fractions") or [0.0]
    return bool(record["purpose"] == "measure" and fractions[0] < 1)


_FLAT_NUMBERS = (
    "offered_msgs_per_s", "sent_msgs_per_s", "acked_msgs_per_s", "achieved_msgs_per_s", "goodput_msgs_per_s",
    "goodput_bytes_per_s", "sent", "acked", "received", "lost", "confirmed_lost", "unconfirmed_lost", "duplicated",
    "dup_resend", "dup_redelivery", "out_of_order", "reordered_redelivery", "corrupted", "foreign", "missing_msgs",
    "misshared_msgs", "dropped_by_limit", "expired", "refused_by_limit", "blocked_share", "agent_cpu_share_max",
)  # fmt: skip
_FLAT_LOAD = ("producers", "consumers", "subscribers", "pattern", "processors", "warmup_s", "window_s", "drain_s")
_NOT_SWEPT = frozenset({"pair"})
"""Of A against B: which point it is, in the order they were asked."""


def flat(record: Record) -> Record:
    """A trial as one row of plain values, units in the names; what it does not have is None.

    Knobs of the broker are named as `--set` names them (`kafka.linger_ms`), latencies `<kind>_<percentile>_ns`.
    """
    rate, message = record["rate"] or {}, record["message"] or {}
    row: Record = {
        "trial": record["id"],
        **{name: record[name] for name in ("scenario", "broker", "driver", "driver_kind", "durability")},
        "point": point_label(record),
        **{name: record[name] for name in ("repeat", "purpose", "status")},
        "verdict": record["verdict"]["status"],
        "bound_by": record["verdict"]["bound_by"],
        "counts": enters(record),
        "reasons": "; ".join([*([record["error"]] if record["error"] else []), *record["verdict"]["reasons"]]),
        "rate_kind": rate.get("kind"),
        "rate_msgs_per_s": rate.get("msgs_per_s"),
        "fraction": (rate.get("fractions") or [None])[0],
        "size_bytes": _cell(message.get("size_bytes")),
        **{name: _cell(record[name]) for name in _FLAT_LOAD},
        "started_utc": record["started_utc"],
        **{name: record[name] for name in _FLAT_NUMBERS},
        "errors": sum(record["errors"].values()),
        **{f"fairness_{name}": value for name, value in record["fairness"].items()},
    }
    for role, value in record["cpu_s"].items():
        row[f"cpu_{role}_s"] = value
    for role, value in record["rss_bytes"].items():
        row[f"rss_{role}_bytes"] = value
    for kind, summary in record["latency_ns"].items():
        for name, value in (summary or {}).items():
            row[f"{kind}_{name}" if name == "count" else f"{kind}_{name}_ns"] = value
    for name, value in record["point"].items():
        row.setdefault(name, _cell(value))
    for name, value in record["settings"].items():
        row[f"{record['broker']}.{name}"] = _cell(value)
    return row


def number_of(record: Record, column: str) -> float | None:
    """A column of `flat` as a number; None where it is none."""
    value = flat(record).get(column)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def point_label(record: Record) -> str:
    """Which point of its scenario a trial repeats, the same in every run: `latency/kafka/kafka/broker/msgs_per_s=1000`.

    Its rate and size stand in it even where the scenario does not sweep them, so that runs that were told other ones
    (`--set rate=…`) are not taken for the same.
    """
    rate, message = record["rate"] or {}, record["message"] or {}
    asked = {
        "rate": None if rate.get("kind") in {None, "fixed"} else rate["kind"],
        "msgs_per_s": rate.get("msgs_per_s"),
        **{name: rate.get(name) for name in ("burst_times", "burst_s", "every_s")},
        "fraction": (rate.get("fractions") or [None])[0],
        "size_bytes": message.get("size_bytes"),
    }
    swept = {name: value for name, value in record["point"].items() if name not in _NOT_SWEPT}
    names = [str(record[name]) for name in ("scenario", "broker", "driver", "durability")]
    told = {name: value for name, value in (asked | swept).items() if value is not None}
    return "/".join([*names, *(f"{name}={_shown(value)}" for name, value in told.items())])


def _shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(_cell(value))


def _cell(value: Any) -> Any:
    """What one cell of a table holds: a distribution or a list as text."""
    if isinstance(value, dict):
        return " ".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return value


def make_partial(record: Record, reason: str) -> None:
    """Mark a trial that did not come to its end; what it measured stays, and nobody judges it."""
    record["status"], record["error"] = "partial", record["error"] or reason
    record["verdict"] = {"status": "unknown", "bound_by": "unknown", "reasons": [reason]}


def plain(value: Any) -> Any:
    """What JSON can hold: numpy's numbers as Python's, infinity and NaN as null, the rest as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else str(value)
