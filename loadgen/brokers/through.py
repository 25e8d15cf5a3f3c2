"""Clients that reach a broker through a proxy, so that the network between them can be hurt (`loadgen.brokers.proxy`).

Only clients go through it, and only those of trials that ask for it: admin, observer and whoever asks who leads talk to
the broker itself. RabbitMQ's clients stay with the address that they are given. Kafka's follow the addresses that the
broker advertises, by the listener they came in by: so each local node has a listener `THROUGH` beside its plain one,
whose advertised port is the one that a proxy listens on.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from loadgen.brokers import local, ports
from loadgen.brokers.kinds import kind_of
from loadgen.brokers.orders import Orders
from loadgen.brokers.proxy import BACKLOG
from loadgen.brokers.way import NOBODY
from loadgen.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from loadgen.brokers.proxy import Parties
    from loadgen.endpoint import Endpoint

STOP_S = 5.0


def through(endpoint: Endpoint, cpus: Collection[int] = ()) -> Through:
    """A proxy in front of every node of a local broker; `cpus` are those that it may use, none means all."""
    cluster = local.cluster_of(endpoint)
    way_in = kind_of(cluster.broker).way_in
    return Through(endpoint, [(node.index, *way_in(node)) for node in cluster.nodes], cpus)


class Through(Orders):
    """A running proxy in front of a broker's nodes; it ends with this process in any case.

    Args:
        endpoint: the broker.
        ways: of each node its number, the port that the proxy is to listen on (0: any), and the one that it leads to.
        cpus: the CPUs that the proxy may use; none means all.
    """

    def __init__(self, endpoint: Endpoint, ways: Sequence[tuple[int, int, int]], cpus: Collection[int] = ()) -> None:
        super().__init__()
        with ExitStack() as held:  # the proxy's own copies of the sockets are all that stay
            listeners, gates = [], []
            for node, port, upstream in ways:
                listener = held.enter_context(_listener(port, endpoint))
                listeners.append(listener)
                gates.append((node, listener.fileno(), upstream))
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "loadgen.brokers.proxy", json.dumps(gates)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,  # an order that a dead proxy did not take is not tried again when its pipe is closed
                    start_new_session=True,  # Ctrl-C is for its maker
                    pass_fds=[each.fileno() for each in listeners],
                )
            except OSError as error:
                raise HostError(f"no proxy can be started: {error.strerror}; end what takes memory") from None
            hosts = tuple((ports.HOST, int(each.getsockname()[1])) for each in listeners)
        if cpus:
            os.sched_setaffinity(self._process.pid, cpus)
        self.pid = self._process.pid
        self.endpoint = replace(endpoint, hosts=hosts)
        """The broker as its clients are to reach it."""

    def close(self) -> None:
        """End it; never raises."""
        with self._lock:
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None, "both were asked for"
                pipe.close()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _links_of(self, nodes: Sequence[int]) -> list[Parties]:
        return [(NOBODY, node) for node in nodes]

    def _descriptors(self) -> tuple[int, int]:
        assert self._process.stdin is not None, "it was asked for"
        assert self._process.stdout is not None, "it was asked for"
        return self._process.stdin.fileno(), self._process.stdout.fileno()

    def _silent(self) -> str:
        return f"the proxy in front of {self.endpoint.broker} does not answer (exit status {self._process.poll()})"


def _listener(port: int, endpoint: Endpoint) -> socket.socket:
    try:
        return socket.create_server((ports.HOST, port), backlog=BACKLOG)
    except OSError as error:
        raise HostError(
            f"{endpoint.broker}: no proxy can listen on {ports.HOST}:{port} ({error.strerror}); end what holds that "
            "port, or start the broker anew (`loadgen down`)"
        ) from None
