"""What happened at a moment while a trial ran, on one timeline: pauses, alarms, rebalances.

An event stands beside the latencies of its second (`loadgen.analysis.tail`). Kinds in use: `gc pause`, `alarm`,
`rebalance`, `late share`, `fault`, `outage` (a client without a connection).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadgen.alarms import AlarmReading
    from loadgen.gclog import Pause

PAUSE_MIN_NS = 1_000_000
"""Shorter pauses are in `gc` alone: a young collection of a quiet broker takes a millisecond and explains no tail."""
EVENTS_MAX = 1000
"""Of more events the longest are kept: a day of pauses must not swell a record."""
NEAR_NS = 1_000_000_000
"""Events of the second before the window are kept too: what they held up came through in its first second."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened from `began_ns` to `ended_ns` (CLOCK_MONOTONIC), with a text for people."""

    kind: str
    began_ns: int
    ended_ns: int
    text: str

    def record(self, origin_ns: int) -> dict[str, Any]:
        """As it stands in run.json: seconds from the window's beginning, negative before it."""
        return {
            "kind": self.kind,
            "at_s": (self.began_ns - origin_ns) / 1e9,
            "duration_s": (self.ended_ns - self.began_ns) / 1e9,
            "text": self.text,
        }


def pause_events(pauses: Iterable[Pause]) -> list[Event]:
    """Pauses of a millisecond or more."""
    return [
        Event("gc pause", each.ended_ns - each.duration_ns, each.ended_ns, each.kind)
        for each in pauses
        if each.duration_ns >= PAUSE_MIN_NS
    ]


def alarm_events(readings: Sequence[tuple[int, AlarmReading]]) -> list[Event]:
    """Each alarm, and each time of blocked connections, as one event.

    The broker is looked at every few seconds only: an event reaches from the last look that did not see the alarm to
    the first that no longer did, which is where it may have been.
    """
    began_ns: dict[str, int] = {}
    events: list[Event] = []
    last_ns = readings[0][0] if readings else 0
    for at_ns, reading in readings:
        seen = set(reading.alarms) | ({"connections blocked"} if reading.blocked_connections else set())
        for name in seen - began_ns.keys():
            began_ns[name] = last_ns
        events += [Event("alarm", began_ns.pop(name), at_ns, name) for name in sorted(began_ns.keys() - seen)]
        last_ns = at_ns
    return events + [Event("alarm", at_ns, last_ns, name) for name, at_ns in sorted(began_ns.items())]


def in_window(events: Iterable[Event], start_ns: int, end_ns: int) -> list[Event]:
    """Those that overlap a window or the second before it, in order of time; the longest where there are too many."""
    near = [each for each in events if each.began_ns < end_ns and each.ended_ns >= start_ns - NEAR_NS]
    longest = sorted(near, key=lambda each: each.began_ns - each.ended_ns)[:EVENTS_MAX]
    return sorted(longest, key=lambda each: each.began_ns)
