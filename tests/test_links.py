"""The proxy between nodes alone: processes that stand for nodes, echoes behind their gates, and links that are hurt."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S, until

from loadgen import Cut, Delay, Throttle
from loadgen.brokers import between as between_module
from loadgen.brokers import links, ports, process
from loadgen.brokers.between import Openers
from loadgen.brokers.kinds import kind_of
from loadgen.brokers.links import Links
from loadgen.brokers.state import Cluster, Node
from loadgen.brokers.way import NOBODY
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

NOTHING_S = 0.3  # so long nothing comes where nothing may
EVERY = {(one, other) for one in (1, 2, 3) for other in (1, 2, 3)}
"""(opener, other): each node opened a connection to each."""
OF_1 = {(1, 2), (1, 3), (2, 1), (3, 1)}
"""Those that are between node 1 and another one."""
NODE = """
import json, socket, sys
streams = {}
for line in sys.stdin:
    to, text, count, wait_s = json.loads(line)
    said = b""
    try:
        if to not in streams:
            streams[to] = socket.create_connection(("127.0.0.1", to), wait_s)
        streams[to].settimeout(wait_s)
        streams[to].sendall(text.encode())
        while len(said) < count and (data := streams[to].recv(count - len(said))):
            said += data
    except TimeoutError:
        pass
    except ConnectionError:
        said = b"reset"
    if not count or said == b"reset":
        streams.pop(to).close()
    print(said.decode(), flush=True)
"""


class Stand:
    """A process that stands for a node: by what it opens the proxy has to know it."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        folder = cluster.node_dir(node)
        folder.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-c", NODE],
            env={**os.environ, process.MARKER: str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self, to: int, text: str, count: int, wait_s: float) -> str:
        """Send a text by its one connection to a port; those so many bytes that come back in that time; 0: close it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([to, text, count, wait_s]) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """It ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Nodes:
    """Three of them, each with an echo where it listens, behind a proxy as a RabbitMQ's would be."""

    def __init__(self, folder: Path, held: ExitStack) -> None:
        names = ("distribution", "distribution_gate")
        reserved = held.enter_context(ExitStack())
        own = [Node(index, reserved.enter_context(ports.reserve(names))) for index in (1, 2, 3)]
        shared = reserved.enter_context(ports.reserve((links.NAME,)))
        self.cluster = Cluster("rabbitmq", folder, folder, "0", ports=shared, nodes=own, is_linked=True)
        self.accepted = {node.index: 0 for node in own}
        for node in own:
            listener = held.enter_context(socket.create_server((ports.HOST, node.ports["distribution"])))
            Thread(target=self._serve, args=(listener, node.index), daemon=True).start()
        links.start(self.cluster)
        held.callback(lambda: process.end_all(self.cluster.processes(), timeout_s=0))
        self.stands = {node.index: held.enter_context(closing(Stand(self.cluster, node))) for node in own}
        self.gates = {node.index: kind_of("rabbitmq").gates(node)[0][0] for node in own}

    def _serve(self, listener: socket.socket, index: int) -> None:
        with suppress(OSError):
            while True:
                stream, _ = listener.accept()
                self.accepted[index] += 1
                Thread(target=_echo, args=(stream,), daemon=True).start()

    def says(self, node: int, other: int, text: str = "x", wait_s: float = PATIENCE_S, count: int | None = None) -> str:
        """What comes back to a node from another by the connection that it has opened."""
        return self.stands[node].says(self.gates[other], text, len(text) if count is None else count, wait_s)

    def leaves(self, node: int, other: int) -> None:
        """A node closes the connection that it has opened."""
        self.says(node, other, "", count=0)

    def passes(self, pairs: Collection[tuple[int, int]]) -> bool:
        """Whether something passes between these (opener, other), however late, and nothing between all others."""
        return all(
            self.says(*pair, wait_s=PATIENCE_S if pair in pairs else NOTHING_S) == ("x" if pair in pairs else "")
            for pair in EVERY
        )


def _echo(stream: socket.socket) -> None:
    with closing(stream), suppress(OSError):
        while data := stream.recv(1 << 16):
            stream.sendall(data)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """One set for all; every test leaves it mended, and each node connected to each."""
    with ExitStack() as held:
        made = Nodes(tmp_path_factory.mktemp("links"), held)
        assert made.passes(EVERY)
        yield made


@pytest.fixture
def between(nodes: Nodes) -> Iterator[Links]:
    """What hurts them."""
    with closing(Links(nodes.cluster)) as made:
        yield made


def test_a_cut_node_is_cut_from_the_others_whoever_opened_the_connection(nodes: Nodes, between: Links) -> None:
    """Nothing passes that others opened, or itself; the others, itself and tools go on. Mended, all comes, in order."""
    fault = Cut(1, between="nodes")
    assert between.begin(fault, [1]) == {(1, 2): 2, (1, 3): 2}, "each link was opened from both sides"
    with closing(socket.create_connection((ports.HOST, nodes.gates[1]), PATIENCE_S)) as tool:
        tool.sendall(b"status?")
        assert tool.recv(7) == b"status?", "it is no node, and not cut off"
    told = between.account()
    assert (told["connections"], told["strangers"]) == (1, 1), "and it is counted"
    assert nodes.passes(EVERY - OF_1)
    between.end(fault, [1])
    for pair in OF_1:
        assert nodes.says(*pair, "y", count=2) == "xy", "what was sent meanwhile comes first"


def test_who_comes_while_cut_off_waits_and_who_gave_up_was_never_there(nodes: Nodes, between: Links) -> None:
    """Neither is let in before it is mended; then the one is served."""
    for other in (1, 2):
        nodes.leaves(3, other)
    fault = Cut(3, between="nodes")
    between.begin(fault, [3])
    before = dict(nodes.accepted)
    assert [nodes.says(3, other, wait_s=NOTHING_S) for other in (1, 2)] == ["", ""]
    nodes.leaves(3, 2)
    assert nodes.accepted == before
    between.end(fault, [3])
    assert nodes.says(3, 1, "y", count=2) == "xy"
    assert (nodes.accepted[1], nodes.accepted[2]) == (before[1] + 1, before[2])
    assert nodes.passes(EVERY)


def test_a_link_is_whole_when_neither_of_its_nodes_is_hurt(nodes: Nodes, between: Links) -> None:
    """Faults of two nodes overlap on the link between them; and all end with whoever ordered them."""
    one, two = Cut(1, between="nodes"), Cut(2, between="nodes")
    between.begin(one, [1])
    between.begin(two, [2])
    between.end(one, [1])
    assert nodes.passes(EVERY - {pair for pair in EVERY if 2 in pair and pair != (2, 2)})
    between.close()
    assert nodes.says(1, 2, "y", count=2) == "xy"
    assert nodes.says(2, 3, "y", count=2) == "xy"
    for pair in ((2, 1), (3, 2)):
        assert nodes.says(*pair, "y", count=2) == "xy"


def test_a_reset_and_a_delay_are_of_the_same_links(nodes: Nodes, between: Links) -> None:
    """A reset is heard by whoever opened one of them, and by nobody else; half a delay lies on each way."""
    assert between.reset([2]) == {(1, 2): 2, (2, 3): 2}
    reset = {pair for pair in EVERY if 2 in pair and pair != (2, 2)}
    assert {pair for pair in EVERY if nodes.says(*pair) == "reset"} == reset
    assert nodes.passes(EVERY)
    fault = Delay(2, delay_ms=2_000 * NOTHING_S, between="nodes")
    between.begin(fault, [2])

    def took_s(node: int, other: int) -> float:
        began_s = time.monotonic()
        assert nodes.says(node, other) == "x"
        return time.monotonic() - began_s

    assert took_s(1, 2) >= 2 * NOTHING_S
    assert until(lambda: took_s(1, 3) < 2 * NOTHING_S), "never so late, but for a machine that is busy"
    between.end(fault, [2])


def test_where_nobody_is_connected_nobody_is_hurt(nodes: Nodes, between: Links) -> None:
    """It is told by the number of connections, and what passed is told as of the maker's coming."""
    assert between.account()["connections"] == 0
    for pair in OF_1:
        nodes.leaves(*pair)
    # The proxy may not have heard yet that they left.
    assert until(lambda: not any(between.reset([1]).values()))
    assert between.begin(Cut(1, between="nodes"), [1]) == {(1, 2): 0, (1, 3): 0}
    between.mend()
    assert nodes.passes(EVERY)
    told = between.account()
    assert told["connections"] == 4
    assert told["bytes"] == 2 * len(EVERY)


def test_a_fault_of_all_nodes_is_on_each_link_once(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where both of its nodes are named: a delay does not add up with itself."""
    told: list[dict[str, Any]] = []
    with closing(Links(nodes.cluster)) as between:
        monkeypatch.setattr(between, "_ask", lambda order: told.append(order) or {"hits": [1]})
        slow = Throttle("all", rate_bytes_per_s=5_000, between="nodes")
        assert between.begin(Delay("all", delay_ms=10, between="nodes"), [1, 2, 3]) == {(1, 2): 1, (1, 3): 1, (2, 3): 1}
        assert between.begin(slow, [1]) == {(1, 2): 1, (1, 3): 1}
        monkeypatch.undo()
    assert [tuple(order["link"]) for order in told] == [(1, 2), (1, 3), (2, 3), (1, 2), (1, 3)]
    assert {order["condition"]["late_ns"] for order in told} == {5_000_000}
    assert [order["condition"]["rate_bytes_per_s"] for order in told] == [None] * 3 + [5_000] * 2


def test_who_opened_a_connection_is_looked_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the kernel's table nor a list of files is of one moment; who is not found in a few looks is nobody."""
    inodes = iter([None, 7, 7])
    own = process.ProcessId.current()
    monkeypatch.setattr(between_module.process, "find_marked", lambda _: iter([own]))
    monkeypatch.setattr(between_module, "_inode", lambda *_: next(inodes))
    openers = Openers({2: tmp_path})
    held = iter([False, True])
    monkeypatch.setattr(between_module, "_holds", lambda *_: next(held))
    assert openers.of(("127.0.0.1", 1), 2) == 2
    monkeypatch.setattr(between_module, "_inode", lambda *_: None)
    assert openers.of(("127.0.0.1", 1), 2) == NOBODY


def test_a_cluster_without_such_a_proxy_and_one_that_died_are_told(tmp_path: Path) -> None:
    """In one line each."""
    plain = Cluster("kafka", tmp_path, tmp_path, "0")
    with pytest.raises(BrokerError, match="kafka: its nodes reach each other directly"):
        Links(plain)
    with ports.reserve((links.NAME,)) as reserved:
        plain.ports |= reserved
        plain.helpers[links.NAME] = process.ProcessId.current()
        with pytest.raises(BrokerError, match="the proxy between kafka's nodes does not answer; run `loadgen down`"):
            Links(plain)
