"""Limits that a Locust test must keep, such as `p99_ms<10`; judged at its end, from the records of the run."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_PERCENTILES = ("p50", "p90", "p99", "p99_9", "p99_99", "max", "mean")
_KINDS = ("e2e", "ack", "e2e_service", "ack_service")
_FIELDS = ("achieved_msgs_per_s", "goodput_msgs_per_s", "lost", "confirmed_lost", "duplicated", "corrupted")
METRICS = (*(f"{name}_ms" for name in _PERCENTILES), *_FIELDS, "errors")
_PATTERN = re.compile(r"\s*(?:(rabbitmq|kafka)\.)?([a-z0-9_]+)\s*(<=|>=|<|>)\s*([0-9.e+]+)\s*")


@dataclass(frozen=True, slots=True)
class Threshold:
    """One limit; `broker` None means both."""

    text: str
    broker: str | None
    metric: str
    comparison: str
    limit: float

    def missed_by(self, record: Mapping[str, Any]) -> str | None:
        """One line where the trial misses it, else None; what was not measured does not keep a limit."""
        if self.broker not in {None, record["broker"]}:
            return None
        value = _value(record, self.metric)
        if value is not None and _OPERATORS[self.comparison](value, self.limit):
            return None
        return f"{record['id']}: {self.metric} is {'not known' if value is None else f'{value:g}'}, not {self.text}"


def parse_threshold(text: str) -> Threshold:
    """`[broker.]metric<limit` (or <=, >, >=); raises ScenarioError with the metrics that there are."""
    found = _PATTERN.fullmatch(text)
    if found is None or found[2] not in METRICS:
        raise ScenarioError(f"--threshold {text}: expected such as p99_ms<10; there are {', '.join(METRICS)}")
    try:
        limit = float(found[4])
    except ValueError:
        raise ScenarioError(f"--threshold {text}: {found[4]} is no number") from None
    return Threshold(text.strip(), found[1], found[2], found[3], limit)


def missed(thresholds: Sequence[Threshold], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each limit that a trial misses."""
    found = [threshold.missed_by(record) for record in records for threshold in thresholds]
    return [line for line in found if line is not None]


def _value(record: Mapping[str, Any], metric: str) -> float | None:
    if metric == "errors":
        return float(sum(record["errors"].values()))
    if metric in _FIELDS:
        value: float | None = record[metric]
        return value
    name = metric.removesuffix("_ms")
    shown = next((record["latency_ns"][kind] for kind in _KINDS if record["latency_ns"].get(kind)), None)
    return None if shown is None else shown[name] / 1e6
