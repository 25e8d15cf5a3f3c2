"""What a limit can speak of: a number of every trial, its unit, and which way is worse."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from loadgen.errors import ScenarioError
from loadgen.record import LATENCY_KINDS, number_of, surely_lost

if TYPE_CHECKING:
    from loadgen.record import Record

Worse = Literal["higher", "lower"]
NS_PER = {"ms": 1e6, "us": 1e3, "s": 1e9}
PERCENTILES = ("min", "mean", "p50", "p90", "p99", "p99_9", "p99_99", "max")
RATES = ("achieved_msgs_per_s", "goodput_msgs_per_s", "acked_msgs_per_s", "goodput_bytes_per_s")
COUNTS = (
    "errors", "lost", "confirmed_lost", "unconfirmed_lost", "duplicated", "dup_resend", "dup_redelivery",
    "out_of_order", "corrupted", "foreign",
)  # fmt: skip
MEMORY = ("rss_producers_bytes", "rss_consumers_bytes", "rss_broker_bytes")
UNITS = {
    "_msgs_per_s": "msg/s", "_bytes_per_s": "B/s", "_us_per_msg": "µs", "_ms": "ms", "_us": "µs", "_s": "s",
    "_bytes": "B",
}  # fmt: skip
OWN = {
    "errors": "Messages refused, returned or given up, of all reasons.",
    "confirmed_lost": "Confirmed, and surely lost: what waits with the broker when the drain is given up is not.",
    "rss_producers_bytes": "The most resident memory that producers had together.",
    "rss_consumers_bytes": "The most resident memory that consumers had together.",
    "rss_broker_bytes": "The most resident memory that the broker's processes had together.",
    "client_cpu_us_per_msg": "CPU time of producers and consumers for each message that came through.",
    "broker_cpu_us_per_msg": "CPU time of the broker for each message that came through.",
}
"""What a metric means that is no field of a trial by its own name."""
CPU = {
    "client_cpu_us_per_msg": ("cpu_producers_s", "cpu_consumers_s"),
    "broker_cpu_us_per_msg": ("cpu_broker_s",),
}


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a trial. Of a count each trial's stands for itself; of all others the repeats are a sample."""

    name: str
    worse: Worse
    is_count: bool = False

    def of(self, record: Record) -> float | None:
        """A trial's value in the unit of the name; None where it has none."""
        if self.name == "confirmed_lost":
            sure = surely_lost(record)
            return None if sure is None else float(sure)
        if self.name == "goodput_msgs_per_s" and record["consumers"] == 0:
            return number_of(record, "achieved_msgs_per_s")  # where nobody consumes, what was confirmed
        if self.name in CPU:
            spent_s = [number_of(record, column) for column in CPU[self.name]]
            messages = (record["achieved_msgs_per_s"] or 0) * (record["window_s"] or 0)
            known = [each for each in spent_s if each is not None]
            return sum(known) / messages * 1e6 if messages and len(known) == len(spent_s) else None
        what, _, unit = self.name.rpartition("_")
        if unit in NS_PER and self.name not in RATES:
            value_ns = number_of(record, f"{what}_ns")
            return None if value_ns is None else value_ns / NS_PER[unit]
        return number_of(record, self.name)

    def text(self, value: float) -> str:
        """A value with its unit, for people: `12.3 ms`."""
        if self.is_count:
            return f"{value:,.0f}"
        return f"{value:,.0f} {self.unit}" if abs(value) >= 1_000 else f"{value:.3g} {self.unit}"

    @property
    def is_rate(self) -> bool:
        """Whether it is what came through in a time."""
        return self.name in RATES

    @property
    def unit(self) -> str:
        """`ms`, `msg/s`; of counts `messages`."""
        return next((unit for suffix, unit in UNITS.items() if self.name.endswith(suffix)), "messages")


def names() -> list[str]:
    """Every metric that there is."""
    latencies = [f"{kind}_{each}_ms" for kind in LATENCY_KINDS for each in PERCENTILES]
    return [*latencies, *RATES, *COUNTS, *MEMORY, *CPU]


def metric(name: str) -> Metric:
    """A metric by its name; ScenarioError with the nearest ones where there is none.

    Latencies may be named in ms, us or s: `e2e_p99_ms`.
    """
    what, _, unit = name.rpartition("_")
    known = f"{what}_ms" if unit in NS_PER and name not in RATES else name
    if known not in names():
        near = difflib.get_close_matches(known, names(), 3, cutoff=0.4) or ["e2e_p99_ms", "goodput_msgs_per_s"]
        raise ScenarioError(f"metric {name!r}: there is none; expected such as {', '.join(near)}")
    return Metric(name, "lower" if name in RATES else "higher", name in COUNTS)
