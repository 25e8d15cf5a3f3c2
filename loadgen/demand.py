"""What `loadgen decide` is asked: a rate, a size of messages, a p99 to keep, and what a confirmed message survives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.scenario import Durability

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

CLASSES = {
    "nothing": Durability.NONE,
    "broker": Durability.BROKER,
    "power": Durability.FLUSHED,
    "node": Durability.REPLICATED,
    "node+power": Durability.REPLICATED_FLUSHED,
}
"""The weakest durability class that keeps what is to be survived."""
SHOWN_BY_KILL = frozenset({"broker", "node", "node+power"})
"""What a kill can show: kill -9 keeps the page cache, so that it shows nothing of a power cut."""
DEMAND, EDGE, LOSS = "decide-demand", "decide-edge", "decide-loss"
"""The names of its scenarios (`loadgen.deciding`)."""
ENOUGH = 4.0
"""Headroom beyond which nobody looks: the answer would not change."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be carried: a rate of producing in messages/s, their size, the p99 end to end in ms, and the class."""

    msgs_per_s: float
    size_bytes: int
    p99_ms: float
    survive: str
    subscribers: int = 1

    @property
    def durability(self) -> Durability:
        """The durability class in which the brokers are compared."""
        return CLASSES[self.survive]

    @property
    def enough_msgs_per_s(self) -> float:
        """Above which no search looks."""
        return ENOUGH * self.msgs_per_s


def is_answered_by(record: Mapping[str, Any]) -> bool:
    """Whether a trial is one at the demanded rate, of which each broker needs one that came to its end."""
    return bool(record["scenario"] == DEMAND)
