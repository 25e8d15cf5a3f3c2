"""What is done to a trial's broker, and when: a part of a scenario, such as `faults=[At("10s", Kill("leader"))]`.

Who is hurt is a node by its number, all of them, or the leader: of the (first) quorum queue or the topic's first
partition, by the broker's own word at that moment; a broker of one node is its own leader.

Faults of the network are between clients and nodes, or between nodes: either then reach a node through a proxy
(`loadgen.brokers.through`, `links`). What is broken is called a cut and not a partition, since a partition is a part of
a topic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from loadgen.errors import ScenarioError
from loadgen.part import Part
from loadgen.times import seconds_of

if TYPE_CHECKING:
    from loadgen.knobs import Point

_Node = Annotated[int, Field(ge=1, le=7)]
Who = Literal["leader", "all"] | _Node
_Seconds = Annotated[float, Field(ge=0, le=3_600)]
RECOVER_WITHIN_S = 60.0
"""How long clients look for another connection where nobody chose: longer than either broker takes to come back."""
Hurts = Literal["nodes", "clients_network", "nodes_network", "consumers", "producers"]
"""What a fault is done to: nodes, their network with clients or among each other, or clients of a role."""
RECOVERING = {"rabbitmq": ("amqp",), "kafka": ("kafka", "confluent")}
"""Drivers that outlive a connection."""
CRASHING = {"rabbitmq": "amqp", "kafka": "kafka"}
"""Drivers that can leave as a killed process does."""


class _Fault(Part):
    """Whom it hurts. Each kind says again that this comes first: type checkers make up a constructor where none is."""

    who: Who = "leader"
    """A node's number, `leader` or `all`."""

    def described(self) -> str:
        """For people: `kill of the leader`."""
        return f"{type(self).__name__.lower()} of {self._whom}"

    @property
    def hurts(self) -> Hurts:
        """What it is done to."""
        return "nodes"

    @property
    def _whom(self) -> str:
        return {"leader": "the leader", "all": "all nodes"}.get(str(self.who), f"node {self.who}")


class Kill(_Fault):
    """As `kill -9` does: no flush, no goodbye. The node is started again on the same data."""

    kind: Literal["kill"] = "kill"
    back_after_s: _Seconds | Literal["never"] = 5.0
    """After how long it is started again (s); never: only when the trial has ended."""

    def __init__(self, who: Who = "leader", **values: Any) -> None:
        super().__init__(who=who, **values)


class Restart(_Fault):
    """The node ends in order, and is started again at once."""

    kind: Literal["restart"] = "restart"

    def __init__(self, who: Who = "leader", **values: Any) -> None:
        super().__init__(who=who, **values)


class Pause(_Fault):
    """The node stands still (SIGSTOP), and goes on (SIGCONT): its connections stay open and answer nothing."""

    kind: Literal["pause"] = "pause"
    for_s: _Seconds = 5.0
    """For how long (s)."""

    def __init__(self, who: Who = "leader", **values: Any) -> None:
        super().__init__(who=who, **values)


class Full(_Fault):
    """A node runs out of disk or memory for a time: RabbitMQ raises its alarm; Kafka, which has none, loses its disk.

    A Kafka whose log directory cannot be written ends by itself, and is started again when there is space.
    """

    kind: Literal["full"] = "full"
    resource: Literal["disk", "memory"] = "disk"
    """What it has no more of."""
    for_s: _Seconds = 5.0
    """For how long (s)."""

    def __init__(self, resource: str = "disk", **values: Any) -> None:
        super().__init__(**{"resource": resource, **values})

    def described(self) -> str:
        """For people: `full disk of the leader`."""
        return f"full {self.resource} of {self._whom}"


class _NetworkFault(_Fault):
    """One of the way between a node and its clients, or between it and the other nodes of its cluster."""

    between: Literal["clients", "nodes"] = "clients"
    """Whose connections with the node are hurt: its clients', or the other nodes', whoever of the two opened them."""

    @property
    def hurts(self) -> Hurts:
        """What it is done to: nodes stay whole."""
        return "clients_network" if self.between == "clients" else "nodes_network"

    def _way(self, to_clients: str) -> str:
        """What is hurt in words: of clients as given."""
        if self.between == "clients":
            return to_clients
        return "between all nodes" if self.who == "all" else f"between {self._whom} and the other nodes"


class Cut(_NetworkFault):
    """Nothing passes between the node and the others, in either direction: connections stay open, new ones time out."""

    kind: Literal["cut"] = "cut"
    for_s: _Seconds = 5.0
    """For how long (s)."""

    def __init__(self, who: Who = "leader", **values: Any) -> None:
        super().__init__(who=who, **values)

    def described(self) -> str:
        """For people."""
        return f"cut {self._way(f'of {self._whom} from the clients')}"


class Delay(_NetworkFault):
    """The way between the node and the others takes longer; its bytes stay in order, and no fewer of them pass."""

    kind: Literal["delay"] = "delay"
    delay_ms: Annotated[float, Field(gt=0, le=60_000)]
    """By how much a round trip is longer (ms): half of it in each direction."""
    for_s: _Seconds = 5.0
    """For how long (s)."""

    def __init__(self, who: Who = "leader", **values: Any) -> None:
        super().__init__(who=who, **values)

    def described(self) -> str:
        """For people."""
        return f"delay of {self.delay_ms:g} ms {self._way(f'to {self._whom}')}"


class Throttle(_NetworkFault):
    """So many bytes a second pass between the node and the others: a token bucket for each direction."""

    kind: Literal["throttle"] = "throttle"
    rate_bytes_per_s: Annotated[int, Field(ge=1_000, le=10_000_000_000)]
    """In each direction, of all connections to the node together; of nodes, between it and each other one (bytes/s)."""
    for_s: _Seconds = 5.0
    """For how long (s)."""

    def __init__(self, who: Who = "leader", **values: Any) -> None:
        super().__init__(who=who, **values)

    def described(self) -> str:
        """For people."""
        return f"throttle {self._way(f'of {self._whom}')} to {self.rate_bytes_per_s:,} bytes/s"


class Reset(_NetworkFault):
    """Every connection between the node and the others is closed by RST, at that moment; new ones are served."""

    kind: Literal["reset"] = "reset"

    def __init__(self, who: Who = "leader", **values: Any) -> None:
        super().__init__(who=who, **values)

    def described(self) -> str:
        """For people."""
        return f"reset of the connections {self._way(f'to {self._whom}')}"


NetworkFault = Cut | Delay | Throttle | Reset


class Crash(Part):
    """All clients of a role leave as processes do that are killed, and others take their place at once.

    Their sockets are closed with nothing said, sent or settled, and what was in them is gone with them: a consumer's
    successor begins where the broker (or the group's last commit) says, a producer's knows of no message that was not
    confirmed. What the messages' ledger holds outlives it, as a database that the work went to would.
    """

    kind: Literal["crash"] = "crash"
    role: Literal["consumers", "producers"] = "consumers"
    """Whose clients leave."""
    when: Literal["before", "after"] = "after"
    """Consumers, at the next batch that comes: before they have worked on it, or after, with nothing of it settled."""

    def __init__(self, role: str = "consumers", **values: Any) -> None:
        super().__init__(role=role, **values)

    @property
    def hurts(self) -> Hurts:
        """What it is done to: the clients of its role."""
        return self.role

    def described(self) -> str:
        """For people."""
        return f"crash of the {self.role}" + (f" {self.when} the work" if self.role == "consumers" else "")


class At(Part):
    """A fault, and when it is carried out, since the measured window began."""

    at_s: _Seconds
    """When, since the measured window began: a number of seconds, or text such as `10s`."""
    fault: Annotated[Kill | Restart | Pause | Full | NetworkFault | Crash, Field(discriminator="kind")]
    """What is done."""

    def __init__(self, at_s: float | str, fault: Any, **values: Any) -> None:
        try:
            seconds = seconds_of(at_s) if isinstance(at_s, str) else at_s
        except ValueError:
            raise ScenarioError(f"At: at_s = {at_s!r}: expected a time such as 10s or 2.5") from None
        super().__init__(at_s=seconds, fault=fault, **values)


def needs_proxy(faults: tuple[At, ...]) -> bool:
    """Whether clients must reach the broker through a proxy: the network between them is hurt."""
    return any(each.fault.hurts == "clients_network" for each in faults)


def needs_links(faults: tuple[At, ...]) -> bool:
    """Whether the nodes must reach each other through a proxy: the network between them is hurt."""
    return any(each.fault.hurts == "nodes_network" for each in faults)


def refuse_unfit(faults: tuple[At, ...], point: Point, nodes: int) -> None:
    """Raise ScenarioError for faults the point's brokers of so many nodes cannot have, or its clients not outlive."""
    if not faults:
        return
    broker, driver, kind = point.broker, point.driver, point.rate.kind
    if point.pattern.kind != "one_way":
        raise ScenarioError(f"faults: clients of pattern {point.pattern.kind} do not outlive them; expected one_way")
    if kind in {"search", "curve"}:
        raise ScenarioError(f"faults: Rate.{kind} has trials of its own lengths; expected a fixed rate or saturate")
    whom = [each.fault.who for each in faults if not isinstance(each.fault, Crash)]
    absent = next((each for each in whom if isinstance(each, int) and each > nodes), None)
    if absent is not None:
        raise ScenarioError(f"faults: there is no node {absent}: expected 1 to {nodes} in class {point.durability}")
    if nodes == 1 and needs_links(faults):
        raise ScenarioError(
            f"faults: between = nodes is of a cluster, and class {point.durability} has one node; expected durability "
            "= replicated or replicated_flushed"
        )
    if broker == "kafka" and any(isinstance(each.fault, Full) and each.fault.resource != "disk" for each in faults):
        raise ScenarioError("faults: Kafka has no alarm for memory; expected Full('disk'), or RabbitMQ alone")
    crashes = any(isinstance(each.fault, Crash) for each in faults)
    is_member = point.settings.get("group") == "share" or point.settings.get("group_protocol") == "consumer"
    if crashes and (driver != CRASHING[broker] or is_member):
        raise ScenarioError(
            f"faults: clients of driver {driver} cannot crash in the midst of a process; expected {broker}.driver = "
            f"{CRASHING[broker]}, no share group and no group_protocol"
        )
    if driver not in RECOVERING[broker]:
        raise ScenarioError(
            f"faults: driver {driver} does not open another connection where one is lost; expected {broker}.driver = "
            f"{' or '.join(RECOVERING[broker])}"
        )


def refuse_late(faults: tuple[At, ...], duration_s: float) -> None:
    """Raise ScenarioError where a fault is not inside the window."""
    late = next((each for each in faults if each.at_s >= duration_s), None)
    if late is not None:
        raise ScenarioError(
            f"faults: At({late.at_s:g}) is after the window of duration_s = {duration_s:g}; expected less"
        )
