"""How much a broker keeps of a trial at the most where a limit removes what is old: for plans, and for who looks on.

Limits act on whole segments and now and then, never on the message: what is kept is the limit, a segment more, and what
comes in until the broker looks next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

KAFKA_LOOKS_S = 300.0
"""Kafka's log.retention.check.interval.ms; the files of removed segments stay for another second."""
KAFKA_SEGMENT_BYTES = 1 << 30
STREAM_SEGMENT_BYTES = 500_000_000
QUEUE_GARBAGE = 2
"""A classic queue's file is collected when half of it is garbage, so that it may be twice what it holds."""
QUORUM_LOG_BYTES = 1 << 30
"""What a node's quorum queues write ahead, two files of 512 MiB, whatever their limits."""
AGE_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "D": 86_400.0, "M": 30 * 86_400.0, "Y": 365 * 86_400.0}


def is_limited(settings: Mapping[str, Any]) -> bool:
    """Whether a limit of this trial removes messages that nobody need have received."""
    asked = ("retention_ms", "retention_bytes", "max_age", "max_length", "max_length_bytes", "message_ttl_ms")
    return any((settings.get(name) or -1) != -1 for name in asked)


def kept_bytes_max(
    kept: str, settings: Mapping[str, Any], subscribers: int, size_bytes: float, rate_bytes_per_s: float
) -> float | None:
    """The most that a log or a queue keeps of what comes at this rate for ever; None where nothing limits it.

    Args:
        kept: how it is kept: kafka, stream, or rabbitmq for a queue.
        settings: the trial's, resolved.
        subscribers: how many queues of their own hold each message, in RabbitMQ.
        size_bytes: of a stored message.
        rate_bytes_per_s: what is stored in a second, all copies together.
    """
    bounds = {"kafka": _of_kafka, "stream": _of_stream}.get(kept, _of_queue)
    found = [bound for bound in bounds(settings, subscribers, size_bytes, rate_bytes_per_s) if bound is not None]
    return min(found) if found else None


def _of_kafka(
    settings: Mapping[str, Any], subscribers: int, size_bytes: float, rate_bytes_per_s: float
) -> list[float | None]:
    del subscribers, size_bytes
    segments = settings["partitions"] * (settings.get("segment_bytes") or KAFKA_SEGMENT_BYTES)
    late = (KAFKA_LOOKS_S + 1) * rate_bytes_per_s
    limit_bytes, limit_ms = (settings.get(name) for name in ("retention_bytes", "retention_ms"))
    return [
        None if limit_bytes in {None, -1} else settings["partitions"] * limit_bytes + segments + late,
        None if limit_ms in {None, -1} else limit_ms / 1000 * rate_bytes_per_s + segments + late,
    ]


def _of_stream(
    settings: Mapping[str, Any], subscribers: int, size_bytes: float, rate_bytes_per_s: float
) -> list[float | None]:
    del subscribers, size_bytes
    partitions = settings.get("partitions") or 1
    segments = partitions * (settings.get("max_segment_size_bytes") or STREAM_SEGMENT_BYTES)
    limit_bytes, age = settings.get("max_length_bytes"), settings.get("max_age")
    return [
        None if limit_bytes is None else partitions * limit_bytes + segments,
        None if age is None else int(age[:-1]) * AGE_S[age[-1]] * rate_bytes_per_s + segments,
    ]


def _of_queue(
    settings: Mapping[str, Any], subscribers: int, size_bytes: float, rate_bytes_per_s: float
) -> list[float | None]:
    if settings.get("dead_letter"):  # what a limit removes goes to a queue that has none
        return []
    queues = subscribers * (settings.get("queues") or 1)
    log_bytes = QUORUM_LOG_BYTES if settings.get("queue_type") == "quorum" else 0.0
    limits = (
        (settings.get("max_length"), queues * size_bytes),
        (settings.get("max_length_bytes"), float(queues)),
        (settings.get("message_ttl_ms"), rate_bytes_per_s / 1000),
    )
    return [None if limit is None else log_bytes + QUEUE_GARBAGE * limit * each for limit, each in limits]
