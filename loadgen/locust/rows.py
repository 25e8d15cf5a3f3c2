"""What Locust's own statistics are told: per kind of request, how many, how long, how many failed and why.

Made where the agents' reports come together, from whole histograms, so that Locust's loop adds a few hundred numbers a
second whatever the rate is. A publish is a message that the broker settled (without confirms: that was handed over), a
consume is a message that a consumer's code received; their counts are those of the ledger.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.histogram import BUCKETS, LOWEST_OF_BUCKET_NS

if TYPE_CHECKING:
    import numpy.typing as npt

    from loadgen.agent import Report, Role
    from loadgen.recorder import IntervalDelta

METHODS: dict[Role, str] = {"producer": "PUBLISH", "consumer": "CONSUME"}
KINDS: dict[Role, tuple[str, str]] = {"producer": ("ack", "ack_service"), "consumer": ("e2e", "e2e_service")}
"""What a request's time is: the response time where an open loop has one, else the service time."""
UNSENT = "due and never sent"


@lru_cache(maxsize=1)
def _keys() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Locust's keys (ms, of three digits, ascending) and for each of the histogram's buckets which one is its."""
    middles_ms = (LOWEST_OF_BUCKET_NS[:-1] + LOWEST_OF_BUCKET_NS[1:]) / 2e6
    rounded = np.array([float(f"{value:.3g}") for value in middles_ms])
    keys, which = np.unique(rounded, return_inverse=True)
    assert len(which) == BUCKETS
    return keys, which


@dataclass(slots=True)
class Row:
    """What one kind of request gained since the last time; times in ms."""

    requests: int = 0
    untimed: int = 0
    size_bytes: int = 0
    total_ms: float = 0.0
    min_ms: float | None = None
    max_ms: float = 0.0
    times: Counter[float] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def plain(self, method: str) -> dict[str, Any]:
        """As it goes to Locust's process."""
        return {
            "method": method,
            "requests": self.requests,
            "untimed": self.untimed,
            "size_bytes": self.size_bytes,
            "total_ms": self.total_ms,
            "min_ms": self.min_ms,
            "max_ms": self.max_ms,
            "times": dict(self.times),
            "failures": dict(self.failures),
        }

    def add_times(self, delta: IntervalDelta) -> int:
        """Add a histogram's values; how many they are."""
        if not len(delta.counts):
            return 0
        keys, which = _keys()
        counted = np.bincount(which[delta.indices], weights=delta.counts)
        used = np.flatnonzero(counted)
        for key, number in zip(keys[used].tolist(), counted[used].astype(np.int64).tolist(), strict=True):
            self.times[key] += number
        self.total_ms += delta.sum_ns / 1e6
        self.min_ms = delta.min_ns / 1e6 if self.min_ms is None else min(self.min_ms, delta.min_ns / 1e6)
        self.max_ms = max(self.max_ms, delta.max_ns / 1e6)
        return delta.count


class Rows:
    """Both kinds of request of one worker, from report to report."""

    def __init__(self) -> None:
        self._rows: dict[Role, Row] = {}

    def add(self, role: Role, report: Report, *, confirms: bool) -> None:
        """Add what an agent gained in a second."""
        row = self._rows.setdefault(role, Row())
        timed = sum(row.add_times(delta) for delta in report.deltas if delta.kind in KINDS[role])
        if role == "consumer":
            number = report.series.get("received", 0)
            row.size_bytes += report.series.get("received_bytes", 0)
        elif confirms:
            number = report.series.get("acked", 0) + sum(report.errors.values())
        else:
            number = report.series.get("sent", 0)
        row.requests += number
        row.untimed += number - timed
        row.failures.update(report.errors)

    def fail(self, role: Role, message: str, number: int = 1) -> None:
        """Requests that came to nothing."""
        row = self._rows.setdefault(role, Row())
        row.requests += number
        row.untimed += number
        row.failures[message] += number

    def take(self) -> list[dict[str, Any]]:
        """All that was gained, and begin anew."""
        rows, self._rows = self._rows, {}
        return [row.plain(METHODS[role]) for role, row in rows.items() if row.requests or row.failures]
