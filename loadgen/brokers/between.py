"""The proxy by which the nodes of a cluster reach each other: a process that lives and ends with the cluster.

Each node advertises gates of this proxy in place of its own ports, so that a gate sees who is connected to, and not who
connects. That is looked up once for each connection: the kernel's table of sockets has its inode by its port, and the
process that holds it belongs to a node (`process.find_marked`). Who is no node, such as RabbitMQ's tools, is not hurt.

Orders come by a connection to a port of its own, from one maker at a time. When that connection ends, all is mended:
whoever was hurting the cluster may have been killed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.brokers import process
from loadgen.brokers.ports import HOST
from loadgen.brokers.proxy import BACKLOG, Proxy
from loadgen.brokers.way import NOBODY, Condition, Gate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from loadgen.brokers.process import ProcessId

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
TRIES, PAUSE_S = 3, 0.005  # neither the table of sockets nor a list of files is of one moment


class Openers:
    """Which node opened a connection; `folders` are those that the nodes' processes belong to."""

    def __init__(self, folders: Mapping[int, Path]) -> None:
        self._folders = folders
        self._known: list[tuple[int, ProcessId]] = []

    def of(self, address: tuple[str, int], port: int) -> int:
        """The node whose socket at `address` is connected to this port of this machine.

        `NOBODY` where it is none's, has left already, or is not found at once or a little later.
        """
        is_fresh = False
        for number in range(TRIES):
            if number:
                time.sleep(PAUSE_S)
            inode = _inode(address[1], port)
            if inode is None:
                continue
            held = f"socket:[{inode}]"
            found = self._holder(held)
            if found == NOBODY and not is_fresh:  # a node may have been started since the last look
                self._known, is_fresh = self._marked(), True
                found = self._holder(held)
            if found != NOBODY:
                return found
        return NOBODY

    def _marked(self) -> list[tuple[int, ProcessId]]:
        return [(node, each) for node, folder in self._folders.items() for each in process.find_marked(folder)]

    def _holder(self, held: str) -> int:
        return next((node for node, each in self._known if each.is_alive() and _holds(each.pid, held)), NOBODY)


def _inode(port: int, remote_port: int) -> int | None:
    """The inode of the socket of this machine that has this port, and that one at its other end."""
    ends = (b":%04X" % port, b":%04X" % remote_port)
    for table in TABLES:
        with suppress(OSError):  # a kernel without IPv6 has one only
            for line in table.read_bytes().splitlines()[1:]:
                fields = line.split()
                if fields[1].endswith(ends[0]) and fields[2].endswith(ends[1]):
                    return int(fields[9]) or None
    return None


def _holds(pid: int, held: str) -> bool:
    with suppress(OSError):  # it may end meanwhile
        for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - hundreds of them for each new connection
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{number}") == held:  # noqa: PTH115
                    return True
    return False


class Between(Proxy):
    """Serves nodes until it is killed.

    Args:
        gates: each way in to a node.
        openers: tells who opened a connection.
        orders: the listening socket that whoever gives orders connects to.
    """

    def __init__(self, gates: Iterable[Gate], openers: Openers, orders: socket.socket) -> None:
        super().__init__(gates, openers.of)
        self._orders = orders
        self._attend(orders.fileno(), self._meet)
        self._maker: socket.socket | None = None

    def _meet(self) -> None:
        """Hear this maker until it leaves; others wait in the listener's queue."""
        self._maker, _ = self._orders.accept()
        self._ignore(self._orders.fileno())
        self.obey(self._maker.fileno(), self._maker.fileno())

    def _parted(self, orders: int) -> None:
        assert self._maker is not None, "it gave orders"
        self._ignore(orders)
        self._maker.close()
        for parties in list(self._links):
            self._change(parties, Condition())
        self._attend(self._orders.fileno(), self._meet)


def main() -> None:
    """Serve; the argument has gates (node, port, the port it leads to), each node's folder, and the port of orders."""
    told = json.loads(sys.argv[1])
    gates = [Gate(node, _listener(port), (HOST, upstream)) for node, port, upstream in told["gates"]]
    openers = Openers({int(node): Path(folder) for node, folder in told["folders"].items()})
    Between(gates, openers, _listener(told["orders"])).run()


def _listener(port: int) -> socket.socket:
    return socket.create_server((HOST, port), backlog=BACKLOG)


if __name__ == "__main__":
    main()
