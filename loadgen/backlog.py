"""A backlog: messages that are written and confirmed before any consumer begins, and where in it consumers begin.

Producers write it as fast as it goes, in one part, or in two with a quiet moment between them where consumers begin
behind the first: then the first message that they get is the same whether a broker seeks by offset or by time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.scenario import Message, Rate

StartFrom = Literal["beginning", "offset", "time", "end"]
SHARES: dict[StartFrom, float] = {"beginning": 0.0, "offset": 0.5, "time": 0.5, "end": 1.0}
PLACES: dict[StartFrom, str] = {
    "beginning": "beginning", "offset": "middle (by offset)", "time": "middle (by time)", "end": "end",
}  # fmt: skip
MAX_MSGS = 1 << 30
SIZES = ("backlog_msgs", "backlog_bytes", "backlog_s")


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many messages all producers together write first, and where consumers begin in them; 0 is no backlog."""

    msgs: int = 0
    start_from: StartFrom = "beginning"

    def written_by(self, producer: int, producers: int) -> int:
        """How many of all messages one producer writes."""
        return self.msgs * (producer + 1) // producers - self.msgs * producer // producers

    def skipped_of(self, producer: int, producers: int) -> int:
        """How many of them consumers skip: those before the place where they begin."""
        return int(self.written_by(producer, producers) * SHARES[self.start_from])

    def skipped(self, producers: int) -> int:
        """How many messages of all producers consumers skip."""
        return sum(self.skipped_of(each, producers) for each in range(producers))

    def parts(self, producer: int, producers: int) -> tuple[int, ...]:
        """How many messages a producer has written when each part of the backlog is complete."""
        whole = self.written_by(producer, producers)
        return (whole,) if self.start_from == "beginning" else (self.skipped_of(producer, producers), whole)

    @property
    def part_count(self) -> int:
        """In how many parts it is written."""
        return len(self.parts(0, 1)) if self.msgs else 0


def backlog_of(chosen: Mapping[str, Any], rate: Rate, message: Message) -> Backlog:
    """The backlog of one point of a scenario; raises ScenarioError where it cannot be built or drained.

    Args:
        chosen: one value for each of the scenario's own knobs.
        rate: at which producers go on; a closed loop's stop when the backlog is written.
        message: of one size.
    """
    given = [name for name in SIZES if chosen[name] is not None]
    start_from: StartFrom = chosen["start_from"]
    if not given:
        if start_from != "beginning":
            raise ScenarioError(f"start_from = {start_from}: there is no backlog to begin in; expected backlog_msgs")
        return Backlog()
    if len(given) > 1:
        raise ScenarioError(f"{' and '.join(given)}: one backlog has one size; expected one of them")
    name = given[0]
    _refuse_undrained(f"{name} = {chosen[name]:g}", chosen, rate)
    msgs = _msgs(name, chosen[name], rate, message)
    if not 2 * chosen["producers"] <= msgs <= MAX_MSGS:
        raise ScenarioError(
            f"{name} = {chosen[name]:g}: is {msgs} messages; expected {2 * chosen['producers']} (two for each "
            f"producer) … {MAX_MSGS}"
        )
    return Backlog(msgs, start_from)


def _refuse_undrained(shown: str, chosen: Mapping[str, Any], rate: Rate) -> None:
    """Raise ScenarioError where a backlog cannot be written, or nobody would drain it."""
    if chosen["start_from"] == "end" and not rate.is_open_loop:
        raise ScenarioError("start_from = end: nothing follows a backlog in a closed loop; expected a fixed rate")
    if rate.needs_capacity:
        raise ScenarioError(f"{shown}: Rate.{rate.kind} looks for a steady state, and a backlog has none; expected "
                            "Rate.fixed(…), or Rate.saturate() for a replay after which nothing is sent")  # fmt: skip
    if not chosen["consumers"]:
        raise ScenarioError(f"{shown}: nobody drains it; expected consumers ≥ 1")
    if str(chosen["durability"]) == "none":
        raise ScenarioError(f"{shown}: without confirms nobody knows when it is written; expected durability = broker")


def _msgs(name: str, size: float, rate: Rate, message: Message) -> int:
    """How many messages a backlog of this size has."""
    if name == "backlog_msgs":
        return int(size)
    if name == "backlog_bytes":
        return int(size / message.mean_size_bytes)
    if not isinstance(rate.msgs_per_s, int | float):
        raise ScenarioError(f"backlog_s = {size:g}: a closed loop has no rate to fall behind of; expected backlog_msgs "
                            "or a fixed rate")  # fmt: skip
    return round(size * rate.msgs_per_s)


def refuse_unseekable(broker: str, driver: str, settings: Mapping[str, Any], backlog: Backlog) -> None:
    """Raise ScenarioError where a queue is asked to begin anywhere but at its head."""
    if backlog.start_from == "beginning":
        return
    if broker == "rabbitmq" and driver != "stream":
        raise ScenarioError(
            f"start_from = {backlog.start_from}: a queue is read from its head, and what was acknowledged is gone; "
            "expected start_from = beginning, or rabbitmq.driver = stream"
        )
    if settings.get("group") == "share":
        raise ScenarioError(
            f"start_from = {backlog.start_from}: members of a share group have no position; expected group = partitions"
        )
    if settings.get("transaction_msgs"):
        raise ScenarioError(
            f"start_from = {backlog.start_from}: with transactions offsets do not count messages; expected no "
            "transactions, or start_from = beginning"
        )
