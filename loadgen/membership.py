"""Consumers that join or leave in mid-trial, and what the others' deliveries show of it: how long each source paused.

A source is a queue or a partition. What one consumer received of it ends when another takes it over, so that a pause
is seen only where all consumers' deliveries are laid side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen import stream_knobs
from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from loadgen.driver import Int64
    from loadgen.fleet import Outcome
    from loadgen.plan import Trial

MS_NS = 1_000_000
BEFORE_S = 1.0  # what is usual is looked at for so long before a change …
AFTER_S = 20.0  # … and a change's pause may begin so long after it: heartbeats of 3 s and 5 s tell members of it


@dataclass(frozen=True, slots=True)
class Membership:
    """When the last consumer of each subscriber joins and leaves, in s of the window; None: with the others."""

    joins_at_s: float | None = None
    leaves_at_s: float | None = None

    @property
    def changes(self) -> tuple[tuple[str, float], ...]:
        """What happens, and when (s), in order."""
        both = (("joins", self.joins_at_s), ("leaves", self.leaves_at_s))
        return tuple((kind, at_s) for kind, at_s in both if at_s is not None)

    def watched_ms(self) -> range | None:
        """The part of the window whose deliveries are noted, in ms since its begin; None where nothing changes."""
        at_s = [at_s for _, at_s in self.changes]
        if not at_s:
            return None
        return range(round((min(at_s) - BEFORE_S) * 1000), round((max(at_s) + AFTER_S) * 1000))

    def refuse_unfit(self, duration_s: float) -> None:
        """Raise ScenarioError where a change is not inside the window."""
        for kind, at_s in self.changes:
            if at_s >= duration_s:
                raise ScenarioError(
                    f"{kind}_at_s = {at_s:g}: is after the window of duration_s = {duration_s:g}; expected less"
                )


def membership_of(chosen: Mapping[str, Any]) -> Membership:
    """The membership of one point of a scenario; raises ScenarioError where it contradicts itself."""
    found = Membership(chosen["joins_at_s"], chosen["leaves_at_s"])
    for kind, at_s in found.changes:
        if chosen["consumers"] < 2:
            raise ScenarioError(f"{kind}_at_s = {at_s:g}: others must be there to go on; expected consumers ≥ 2")
    joins_at_s, leaves_at_s = found.joins_at_s, found.leaves_at_s
    if joins_at_s is not None and leaves_at_s is not None and leaves_at_s <= joins_at_s:
        raise ScenarioError(
            f"leaves_at_s = {leaves_at_s:g}: is not after joins_at_s = {joins_at_s:g}; expected a later moment"
        )
    return found


def refuse_ungrouped(broker: str, driver: str, settings: Mapping[str, Any], membership: Membership) -> None:
    """Raise ScenarioError where nobody would take over what a consumer that comes or goes has."""
    if not membership.changes:
        return
    kind, at_s = membership.changes[0]
    if broker == "kafka" and settings.get("group") != "share" and settings.get("group_protocol") == "static":
        raise ScenarioError(
            f"{kind}_at_s = {at_s:g}: with group_protocol = static partitions do not change hands; expected "
            "kafka.group_protocol = consumer (or classic, with driver = confluent), or group = share"
        )
    if broker == "rabbitmq" and driver in stream_knobs.DRIVERS and not settings["single_active_consumer"]:
        raise ScenarioError(
            f"{kind}_at_s = {at_s:g}: each consumer of a stream has partitions of its own; expected "
            "rabbitmq.single_active_consumer = True"
        )


class Deliveries:
    """In which milliseconds of the watched part of the window something was delivered, by source."""

    def __init__(self, window_start_ns: int, watched_ms: range) -> None:
        self._origin_ns = window_start_ns + watched_ms.start * MS_NS
        self._length_ms = len(watched_ms)
        self.by_source: dict[int, np.ndarray[Any, np.dtype[np.bool_]]] = {}

    def note(self, source: int, at_ns: Int64 | int) -> None:
        """Something of this source came at this moment, or at each of these (int64[n])."""
        seen = self.by_source.get(source)
        if seen is None:
            seen = self.by_source[source] = np.zeros(self._length_ms, np.bool_)
        at_ms = (np.asarray(at_ns) - self._origin_ns) // MS_NS
        if at_ms.ndim == 0:
            if 0 <= at_ms < self._length_ms:
                seen[int(at_ms)] = True
            return
        seen[at_ms[(at_ms >= 0) & (at_ms < self._length_ms)]] = True


def pauses(
    noted: Iterable[Mapping[int, Any]], newcomer: Mapping[int, Any], membership: Membership, window_s: float
) -> dict[str, Any]:
    """Of each change the longest time without a delivery, by source, as `trial.rebalances` in run.json has it.

    Args:
        noted: of every consumer of one subscriber, its `Deliveries.by_source`.
        newcomer: of the one that joins or leaves, the same.
        membership: what happened, and when.
        window_s: how long the measured window was; what is after it is nobody's pause.
    """
    watched = membership.watched_ms()
    assert watched is not None, "pauses are asked for where something changed"
    together: dict[int, Any] = {}
    for each in noted:
        for source, seen in each.items():
            together[source] = together[source] | seen if source in together else seen
    found: dict[str, Any] = dict.fromkeys(("joins", "leaves"))
    changes = membership.changes
    for place, (kind, at_s) in enumerate(changes):
        begin_ms = round(at_s * 1000) - watched.start
        until_s = changes[place + 1][1] if place + 1 < len(changes) else window_s
        end_ms = min(round(min(until_s, window_s, at_s + AFTER_S) * 1000) - watched.start, len(watched))
        usual_ms = [_longest(seen, max(0, begin_ms - round(BEFORE_S * 1000)), begin_ms) for seen in together.values()]
        longest_ms = {source: _longest(seen, begin_ms, end_ms) for source, seen in sorted(together.items())}
        found[kind] = {
            "pause_ms": max(longest_ms.values(), default=None),
            "usual_ms": max(usual_ms, default=None),
            "pause_ms_by_source": {str(source): each for source, each in longest_ms.items()},
        }
        if kind == "joins":
            found[kind]["first_after_ms"] = _first_after_ms(newcomer, begin_ms)
    return found


def _first_after_ms(newcomer: Mapping[int, Any], begin_ms: int) -> int | None:
    """How long it took until the newcomer had its first message (ms); None where it never had one."""
    at = [int(np.argmax(seen[begin_ms:])) for seen in newcomer.values() if seen[begin_ms:].any()]
    return min(at, default=None)


def _longest(seen: Any, begin_ms: int, end_ms: int) -> int:
    """The longest run of milliseconds without a delivery in begin … end (ms).

    A delivery in the last millisecond before counts as at its begin.
    """
    if end_ms <= begin_ms:
        return 0
    at = np.flatnonzero(seen[begin_ms:end_ms])
    edges = np.concatenate(([-1], at, [end_ms - begin_ms]))
    return int(np.diff(edges).max()) - 1


def rebalances(trial: Trial, outcome: Outcome) -> dict[str, Any] | None:
    """`trial.rebalances` of run.json: the first subscriber's; None where no consumer came or went."""
    if not trial.membership.changes:
        return None
    names = [f"consumer{number}" for number in range(trial.consumers)]
    noted = {result.agent: result.deliveries for result in outcome.results if result.deliveries is not None}
    first = [noted[name] for name in names if name in noted]
    return pauses(first, noted.get(names[-1], {}), trial.membership, trial.duration_s)
