"""What each broker's own module knows of it, for whoever starts, ends and hurts local ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.brokers.install import Installation
    from loadgen.brokers.state import Cluster, Node, Progress
    from loadgen.endpoint import BrokerName, Endpoint


class Kind(Protocol):
    """What `rabbitmq.py` and `kafka.py` know how to do."""

    @property
    def NODE_PORTS(self) -> tuple[str, ...]:  # noqa: N802  # a module's constant
        """The names of each node's ports."""

    @property
    def LINK_PORTS(self) -> tuple[str, ...]:  # noqa: N802
        """… and of those that it has beside them where nodes reach each other through a proxy."""

    @property
    def CLUSTER_PORTS(self) -> tuple[str, ...]:  # noqa: N802
        """The names of the ports that the nodes share."""

    @property
    def STOP_TIMEOUT_S(self) -> float:  # noqa: N802
        """How long it may take to end in order."""

    def install(self, cache: Path, progress: Progress) -> Installation:
        """Finds or installs it."""

    def way_in(self, node: Node) -> tuple[int, int]:
        """For clients that come through a proxy: the port that it listens on (0: any), and the one it leads to."""

    def gates(self, node: Node) -> list[tuple[int, int]]:
        """For other nodes that come through a proxy: each port that it listens on, and the one it leads to."""

    def launch(self, cluster: Cluster, node: Node) -> None:
        """Starts one node."""

    def wait_ready(self, cluster: Cluster, node: Node) -> None:
        """Returns when the node serves."""

    def endpoint(self, cluster: Cluster) -> Endpoint:
        """Describes the running cluster."""


def kind_of(broker: BrokerName) -> Kind:
    """The module that knows this broker."""
    if broker == "rabbitmq":
        from loadgen.brokers import rabbitmq  # noqa: PLC0415  # imported when needed: `import loadgen` stays cheap

        return rabbitmq
    from loadgen.brokers import kafka  # noqa: PLC0415

    return kafka
