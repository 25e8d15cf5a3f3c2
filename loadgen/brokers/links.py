"""The network between the nodes of a local cluster, where it can be hurt: its proxy, started, and told what is wrong.

Only clusters that are started for it are linked through a proxy (`loadgen.brokers.between`); in all others nodes reach
each other without one.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.brokers import ports, process
from loadgen.brokers.kinds import kind_of
from loadgen.brokers.orders import ANSWER_S, Orders
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.brokers.proxy import Parties
    from loadgen.brokers.state import Cluster

NAME = "links"
"""Of its process among a cluster's helpers, and of the port that orders come by."""
DEVIATION = "nodes = reach each other through a proxy of loadgen's (directly as shipped; for faults between nodes)"
START_TIMEOUT_S = 20.0
POLL_S = 0.02
SOURCES = str(Path(__file__).parents[2])


def start(cluster: Cluster) -> None:
    """Starts the proxy of a cluster that is to have one and has none yet; its nodes are started after it."""
    proxy = cluster.helpers.get(NAME)
    if not cluster.is_linked or (proxy is not None and proxy.is_alive()):
        return
    kind = kind_of(cluster.broker)
    told = {
        "gates": [(node.index, *gate) for node in cluster.nodes for gate in kind.gates(node)],
        "folders": {node.index: str(cluster.node_dir(node)) for node in cluster.nodes},
        "orders": cluster.ports[NAME],
    }
    output = cluster.folder / "links.out"
    cluster.helpers[NAME] = started = process.spawn(
        [sys.executable, "-m", "loadgen.brokers.between", json.dumps(told)],
        environment=environment(),
        node_dir=cluster.folder,
        output=output,
    )
    cluster.save()
    until_s = time.monotonic() + START_TIMEOUT_S
    while not ports.is_listening(cluster.ports[NAME]):
        if not started.is_alive() or time.monotonic() > until_s:
            raise BrokerError(f"{cluster.broker}: the proxy between its nodes did not start: {process.tail(output)}")
        time.sleep(POLL_S)


def environment() -> dict[str, str]:
    """Of a helper that is a module of ours: it works in a broker's folder."""
    return {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONPATH": SOURCES}


class Links(Orders):
    """The links between a cluster's nodes; closed, or with this process, all of them are whole again.

    A fault of a node is one of its links to each of the others. Raises BrokerError where the cluster has no proxy. Its
    account tells how many connections were strangers', too: the broker's own tools', or those of nobody knows whom.
    """

    ACCOUNT = ("connections", "strangers", "bytes", "cpu_s")

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        proxy = cluster.helpers.get(NAME)
        if proxy is None:
            raise BrokerError(f"{cluster.broker}: its nodes reach each other directly: nothing between them is hurt")
        self._broker = cluster.broker
        self._pairs = list(combinations((node.index for node in cluster.nodes), 2))
        self._socket: socket.socket | None = None
        with suppress(OSError):  # its silence is told by the first order
            self._socket = socket.create_connection((ports.HOST, cluster.ports[NAME]), ANSWER_S)
        self.pid = proxy.pid
        self._before = self._ask({})

    def account(self) -> dict[str, Any]:
        """What has passed since it was asked for here, as `Orders` has it: the proxy is older than that."""
        return {
            name: None if value is None else value - self._before[name] for name, value in super().account().items()
        }

    def close(self) -> None:
        """Leave it, with all mended; never raises."""
        if self._socket is not None:
            self._socket.close()

    def _links_of(self, nodes: Sequence[int]) -> list[Parties]:
        return [pair for pair in self._pairs if not set(pair).isdisjoint(nodes)]

    def _descriptors(self) -> tuple[int, int]:
        number = -1 if self._socket is None else self._socket.fileno()
        if number < 0:
            raise ValueError("closed")
        return number, number

    def _silent(self) -> str:
        return f"the proxy between {self._broker}'s nodes does not answer; run `loadgen down`"
