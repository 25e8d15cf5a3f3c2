"""The timeouts that stand beside a gap: after how long a silent node is given up, by the brokers' own word.

A run's header holds what the running brokers said of their settings; nothing here knows a default. Which of them speaks
depends on how a node falls silent. One that dies closes its connections: RabbitMQ's others miss it at once, while
Kafka's controller goes by sessions and waits all the same, even where the node is back sooner. One that stands still,
or is cut off from the others, closes none, and is missed where its silence lasts as long as the timeout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadgen.report import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from loadgen.record import Record
    from loadgen.runs import Run


@dataclass(frozen=True, slots=True)
class _Known:
    """A timeout's place in a broker's recorded configuration, its unit there (s), and what it means."""

    path: tuple[str, ...]
    unit_s: float
    meaning: str
    is_of_the_dead: bool = False
    """Whether a node that died is waited for, too, and not only one that is silent."""
    share: float = 1.0
    """A silence is noticed when it has lasted this share of the timeout at the least."""

    @property
    def name(self) -> str:
        """As the broker's own documentation has it."""
        return self.path[-1] if self.path[0] == "broker" else ".".join(self.path[1:])


KNOWN: dict[str, tuple[_Known, ...]] = {
    "kafka": (
        _Known(
            ("broker", "broker.session.timeout.ms"), 1e-3,
            "for so long the controller hears nothing of a broker before others lead in its place", is_of_the_dead=True,
        ),
        _Known(
            ("broker", "controller.quorum.fetch.timeout.ms"), 1e-3,
            "for so long the others hear nothing of the active controller before they elect one, by which each session "
            "begins anew: where the node was that, too, both add up", is_of_the_dead=True,
        ),
    ),
    "rabbitmq": (
        _Known(
            ("environment", "aten", "poll_interval"), 1e-3,
            "so often Ra's failure detector looks for silent nodes, before a quorum queue's others elect a leader",
            share=0.0,
        ),
        _Known(
            ("environment", "kernel", "net_ticktime"), 1.0,
            "for so long, give or take a quarter, Erlang hears nothing of a node before it closes the connection",
            share=0.75,
        ),
    ),
}  # fmt: skip
_DEAD = frozenset({"kill", "full"})


def beside(run: Run, record: Record, fault: Record) -> str:
    """`broker.session.timeout.ms is 9 s, …` for one fault of a trial; empty where the others wait for nobody."""
    return ", ".join(
        f"{known.name} {'is ' * (not number)}{value_s:g} s"
        for number, (known, value_s) in enumerate(_waited(run, record, fault))
    )


def meanings(run: Run) -> list[str]:
    """A sentence for each broker whose timeouts stand beside a gap of this run, each with what it means."""
    found: dict[str, dict[str, None]] = {}
    for record in run.records:
        for fault in record["faults"] or ():
            for known, value_s in _waited(run, record, fault):
                told = f"{known.name} ({value_s:g} s: {known.meaning})"
                found.setdefault(record["broker"], {})[told] = None
    return [
        f"What {words.broker_name(broker)}’s nodes waited for, as it was set: {'; '.join(told)}."
        for broker, told in found.items()
    ]


def _waited(run: Run, record: Record, fault: Record) -> Iterator[tuple[_Known, float]]:
    """The timeouts, with their values (s), that speak where this fault makes other nodes take over."""
    alone = not str(record["durability"]).startswith("replicated")
    if alone or fault["error"] or len(fault["nodes"]) != 1:
        return  # nobody could take over: one node, or all of them hurt
    kind = fault["kind"]
    # Where it is the clients' network that is hurt, the nodes stay in touch.
    is_silent = kind == "pause" or (kind == "cut" and fault["hurts"] == "nodes_network")
    if not is_silent and kind not in _DEAD:
        return
    configuration = _configuration(run, record["broker"], is_linked=record["links"] is not None)
    for known in KNOWN.get(record["broker"], ()):
        value = _at(configuration, known.path)
        if value is None:
            continue
        value_s = value * known.unit_s
        lasted_s = float(fault["mended_after_s"])
        if (lasted_s >= known.share * value_s) if is_silent else known.is_of_the_dead:
            yield known, value_s


def _configuration(run: Run, broker: str, *, is_linked: bool) -> Any:
    """What the first node of the cluster of three said of itself: `kafka × 3`, or that whose nodes are linked."""
    return next(
        (
            each["configuration"]
            for name, each in (run.header["brokers"] or {}).items()
            if name.startswith(f"{broker} ×") and ("," in name) == is_linked
        ),
        None,
    )


def _at(configuration: Any, path: Iterable[str]) -> float | None:
    """A number in nested tables; None where it, or a table on the way, is not there."""
    for name in path:
        if not isinstance(configuration, Mapping):
            return None
        configuration = configuration.get(name)
    try:
        return None if configuration is None else float(configuration)
    except (TypeError, ValueError):
        return None
