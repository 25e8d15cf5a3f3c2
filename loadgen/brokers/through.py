"""Clients that reach a broker through a proxy, so that the network between them can be hurt (`loadgen.brokers.proxy`).

Only clients go through it, and only those of trials that ask for it: admin, observer and whoever asks who leads talk to
the broker itself. RabbitMQ's clients stay with the address that they are given. Kafka's follow the addresses that the
broker advertises, by the listener they came in by: so each local node has a listener `THROUGH` beside its plain one,
whose advertised port is the one that a proxy listens on.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loadgen.brokers import local, ports
from loadgen.brokers.proxy import BACKLOG, NS_PER_S, Condition, order_of
from loadgen.errors import BrokerError, HostError
from loadgen.faults import Cut, Delay, Throttle

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from loadgen.endpoint import Endpoint
    from loadgen.faults import NetworkFault

ANSWER_S = 10.0
STOP_S = 5.0


def through(endpoint: Endpoint, cpus: Collection[int] = ()) -> Through:
    """A proxy in front of every node of a local broker; `cpus` are those that it may use, none means all."""
    cluster = local.cluster_of(endpoint)
    way_in = local.kind_of(cluster.broker).way_in
    return Through(endpoint, [(node.index, *way_in(node)) for node in cluster.nodes], cpus)


class Through:
    """A running proxy in front of a broker's nodes; it ends with this process in any case.

    Args:
        endpoint: the broker.
        ways: of each node its number, the port that the proxy is to listen on (0: any), and the one that it leads to.
        cpus: the CPUs that the proxy may use; none means all.
    """

    def __init__(self, endpoint: Endpoint, ways: Sequence[tuple[int, int, int]], cpus: Collection[int] = ()) -> None:
        self._lock = threading.Lock()
        self._faults: list[tuple[NetworkFault, tuple[int, ...]]] = []
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
        self._nodes = tuple(node for node, _, _ in ways)

    def begin(self, fault: NetworkFault, nodes: Sequence[int]) -> int:
        """Break the way to these nodes, beside what is broken already, until `end`; how many connections it has."""
        self._faults.append((fault, tuple(nodes)))
        return self._tell(nodes)

    def end(self, fault: NetworkFault, nodes: Sequence[int]) -> None:
        """Mend what was begun."""
        if (fault, tuple(nodes)) in self._faults:
            self._faults.remove((fault, tuple(nodes)))
            self._tell(nodes)

    def mend(self) -> None:
        """Mend all of it."""
        self._faults.clear()
        self._tell(self._nodes)

    def reset(self, nodes: Sequence[int]) -> int:
        """Close every connection to these nodes by RST, on both sides; how many there were."""
        return int(self._ask({"reset": list(nodes)})["hit"])

    def account(self) -> dict[str, Any]:
        """What has passed so far: connections, bytes of both directions, its CPU time in seconds; null if it died."""
        names = ("connections", "bytes", "cpu_s")
        try:
            told = self._ask({})
        except BrokerError:
            return dict.fromkeys(names)
        return {name: told[name] for name in names}

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

    def _tell(self, nodes: Sequence[int]) -> int:
        orders = [order_of(node, _condition([fault for fault, hurt in self._faults if node in hurt])) for node in nodes]
        return sum(int(self._ask(order)["hit"]) for order in orders)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Give an order, and wait until it is carried out."""
        with self._lock:
            orders, answers = self._process.stdin, self._process.stdout
            assert orders is not None, "it was asked for"
            assert answers is not None, "it was asked for"
            try:
                orders.write(json.dumps(order).encode() + b"\n")  # at once: it is less than a pipe takes
                answer = _line_of(answers.fileno())
            except (OSError, ValueError):  # the latter where it was closed
                answer = b""
        if not answer:
            raise BrokerError(
                f"the proxy in front of {self.endpoint.broker} does not answer (exit status {self._process.poll()})"
            )
        told: dict[str, Any] = json.loads(answer)
        return told


def _line_of(number: int) -> bytes:
    """A line of the proxy's; empty where it has ended or says nothing."""
    line, until_s = b"", time.monotonic() + ANSWER_S
    while not line.endswith(b"\n"):
        if not select.select([number], [], [], max(0.0, until_s - time.monotonic()))[0]:
            return b""
        data = os.read(number, 1 << 16)
        if not data:
            return b""
        line += data
    return line


def _condition(faults: Sequence[NetworkFault]) -> Condition:
    """What several faults at once come to: delays add up, the lowest rate holds."""
    delay_ms = sum(each.delay_ms for each in faults if isinstance(each, Delay))
    return Condition(
        is_cut=any(isinstance(each, Cut) for each in faults),
        late_ns=round(delay_ms / 1_000 * NS_PER_S / 2),  # half on the way there, half on the way back
        rate_bytes_per_s=min((each.rate_bytes_per_s for each in faults if isinstance(each, Throttle)), default=None),
    )


def _listener(port: int, endpoint: Endpoint) -> socket.socket:
    try:
        return socket.create_server((ports.HOST, port), backlog=BACKLOG)
    except OSError as error:
        raise HostError(
            f"{endpoint.broker}: no proxy can listen on {ports.HOST}:{port} ({error.strerror}); end what holds that "
            "port, or start the broker anew (`loadgen down`)"
        ) from None
