"""Brokers that this project started are hurt by a schedule, and mended: in a thread, while a trial runs."""

from __future__ import annotations

import heapq
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from loadgen.brokers import local, process, shortage
from loadgen.errors import BrokerError
from loadgen.faults import Crash, Full, Kill, NetworkFault, Pause, Reset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.brokers.orders import Orders
    from loadgen.endpoint import Endpoint
    from loadgen.faults import Restart

    NodeFault = Kill | Restart | Pause | Full | NetworkFault
    Fault = NodeFault | Crash

MENDED_S = 180.0  # for all that is under way to come to its end: a start takes up to two minutes
TOGETHER_NS = 1_000_000_000  # nodes that are to be back within a second are started together
_NEVER_NS = 1 << 62


@dataclass(slots=True)
class Done:
    """A fault that was carried out: when, on which nodes, when they served again (0: not yet), and what went wrong."""

    fault: Fault
    began_ns: int
    nodes: tuple[int, ...] = ()
    mended_ns: int = 0
    error: str | None = None


@dataclass(order=True)
class _Due:
    at_ns: int
    order: int
    act: Callable[[], None] = field(compare=False)


class Injector:
    """Carries out faults at their moments (monotonic ns) and what mends them; `stop` leaves a whole broker behind.

    Signals are sent by one thread; nodes are started again by another, since that takes as long as it takes.

    Args:
        endpoint: the local broker.
        leader: the number of the node that leads now, by the broker's own word.
        launched: told the pid of each node that is started again.
        crash: has the trial's clients crash.
        through: the proxy that clients reach the broker through, where their network is hurt.
        links: the proxy that its nodes reach each other through, where that network is.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        leader: Callable[[], int],
        launched: Callable[[int], None],
        crash: Callable[[Crash], None],
        through: Orders | None = None,
        links: Orders | None = None,
    ) -> None:
        self._endpoint, self._leader, self._launched, self._crash = endpoint, leader, launched, crash
        known = {"clients": through, "nodes": links}
        self._proxies = {between: proxy for between, proxy in known.items() if proxy is not None}
        self._due: list[_Due] = []
        self._orders = 0
        self._down: dict[int, int] = {}  # nodes that are down, and when they are to be back (monotonic ns)
        self._paused: Counter[int] = Counter()  # by how many pauses a node stands still
        self._short: dict[tuple[int, shortage.Resource], process.ProcessId | None] = {}  # who has no more of what
        self._resuming = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._carry_out, name="faults", daemon=True)]
        self.done: list[Done] = []

    def start(self, schedule: Sequence[tuple[int, Fault]], until_ns: int) -> None:
        """Begin with the schedule; what could not be begun by a moment is not carried out, and told so."""
        for at_ns, fault in schedule:
            self._plan(at_ns, partial(self._hurt, fault, until_ns))
        self._threads[0].start()

    def stop(self) -> list[Done]:
        """Carry out no more; wait for what is under way, mend what is broken; all that was done."""
        self._stopping.set()
        try:
            self._tolerating(None, self._resume)  # first: whatever comes, nobody stays so
            for thread in self._threads:
                if thread.ident is not None:
                    thread.join(MENDED_S)
        finally:
            last = self.done[-1] if self.done else None
            self._tolerating(last, self._resume)
            self._tolerating(last, lambda: self._relieve(sorted(self._short)))
            for proxy in self._proxies.values():
                self._tolerating(last, proxy.mend)
            self._tolerating(last, lambda: self._start_again(sorted(self._down)))
        now_ns = time.monotonic_ns()
        for each in self.done:
            each.mended_ns = each.mended_ns or now_ns
        return self.done

    def _plan(self, at_ns: int, act: Callable[[], None]) -> None:
        self._orders += 1
        heapq.heappush(self._due, _Due(at_ns, self._orders, act))

    def _carry_out(self) -> None:
        while self._due and not self._stopping.is_set():
            left_s = (self._due[0].at_ns - time.monotonic_ns()) / 1e9
            if left_s > 0 and self._stopping.wait(left_s):
                return
            heapq.heappop(self._due).act()

    def _hurt(self, fault: Fault, until_ns: int) -> None:
        done = Done(fault, time.monotonic_ns())
        self.done.append(done)
        if done.began_ns >= until_ns:
            done.error, done.mended_ns = "not carried out: the window had ended", done.began_ns
            return
        self._tolerating(done, lambda: self._carry(done))
        if done.error is not None:  # it hurts nobody, and so is over
            done.mended_ns = done.mended_ns or time.monotonic_ns()

    def _carry(self, done: Done) -> None:
        """Hurt, and plan what mends it."""
        if isinstance(done.fault, Crash):
            self._crash(done.fault)
            done.mended_ns = time.monotonic_ns()
            return
        fault, done.nodes = done.fault, self._nodes_of(done.fault)
        self._refuse_absent(done.nodes)
        refuse_shared(self._endpoint)
        done.began_ns = time.monotonic_ns()
        if isinstance(fault, Kill):
            local.kill(self._endpoint, *done.nodes)
            back_ns = _NEVER_NS
            if not isinstance(fault.back_after_s, str):
                back_ns = time.monotonic_ns() + round(fault.back_after_s * 1e9)
                self._plan(back_ns, lambda: self._mend(done, self._start_due))
            self._down.update(dict.fromkeys(done.nodes, back_ns))
        elif isinstance(fault, Pause):
            self._paused.update(done.nodes)
            self._signal(done.nodes, signal.SIGSTOP)
            go_ns = time.monotonic_ns() + round(fault.for_s * 1e9)
            # In a thread of its own: who leads is asked for by this one, of nodes that may stand still.
            self._mend(done, lambda: self._resume_at(go_ns, done.nodes))
        elif isinstance(fault, Full):
            short: list[tuple[int, shortage.Resource]] = [(node, fault.resource) for node in done.nodes]
            cluster = local.cluster_of(self._endpoint)
            for node, what in short:
                if (node, what) in self._short:
                    raise BrokerError(f"{self._endpoint.broker}: node {node} is short of {what} already")
                self._short[node, what] = local.node_of(cluster, node).server  # before: begun in part, it is given back
                shortage.begin(self._endpoint, node, what)
            relief_ns = time.monotonic_ns() + round(fault.for_s * 1e9)
            self._plan(relief_ns, lambda: self._mend(done, lambda: self._relieve(short)))
        elif isinstance(fault, NetworkFault):
            self._hurt_network(done, fault)
        else:
            self._mend(done, lambda: self._start_again(done.nodes))

    def _hurt_network(self, done: Done, fault: NetworkFault) -> None:
        proxy = self._proxies[fault.between]
        if isinstance(fault, Reset):
            hit = proxy.reset(done.nodes)
            done.mended_ns = time.monotonic_ns()
        else:
            hit = proxy.begin(fault, done.nodes)
            mended_ns = time.monotonic_ns() + round(fault.for_s * 1e9)
            self._plan(mended_ns, lambda: self._mended(done, lambda: proxy.end(fault, done.nodes)))
        if not hit:  # RabbitMQ's clients are where they are, whoever leads
            whoever = {"clients": "client", "nodes": "other node"}[fault.between]
            named = ", ".join(map(str, done.nodes))
            raise BrokerError(f"no {whoever} is connected to node {named}: nobody was hurt")

    def _mend(self, done: Done, how: Callable[[], None]) -> None:
        """Start nodes again, in a thread of its own."""

        def work() -> None:
            self._tolerating(done, how)
            done.mended_ns = time.monotonic_ns()

        thread = threading.Thread(target=work, name="mends", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _mended(self, done: Done, how: Callable[[], None]) -> None:
        """Mend at once, in this thread."""
        self._tolerating(done, how)
        done.mended_ns = time.monotonic_ns()

    def _tolerating(self, done: Done | None, act: Callable[[], None]) -> None:
        """What goes wrong is told with the fault, and the trial goes on."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever it is, nodes that are down must be mended all the same
            if done is not None:
                done.error = done.error or " ".join(str(error).split()) or type(error).__name__

    def _nodes_of(self, fault: NodeFault) -> tuple[int, ...]:
        every = tuple(node.index for node in local.cluster_of(self._endpoint).nodes)
        if fault.who == "all":
            return every
        node = self._leader() if fault.who == "leader" else int(fault.who)
        if node not in every:
            raise BrokerError(f"{self._endpoint.broker}: nobody leads, or there is no node {node}")
        return (node,)

    def _refuse_absent(self, nodes: Sequence[int]) -> None:
        """Raise BrokerError where there is nobody to be hurt: a leader may be one that died and is not yet missed."""
        if not any(server.is_alive() for server in self._servers(nodes)):
            raise BrokerError(f"{self._endpoint.broker}: node {', '.join(map(str, nodes))} is down already")

    def _start_due(self) -> None:
        """All nodes whose time has come, together: each may wait for the others."""
        now_ns = time.monotonic_ns()
        self._start_again([node for node, back_ns in sorted(self._down.items()) if back_ns <= now_ns + TOGETHER_NS])

    def _start_again(self, nodes: Sequence[int]) -> None:
        for node in nodes:
            self._down.pop(node, None)  # before: a mend of the same node that comes meanwhile has nothing to do
        if nodes:
            local.start_again(self._endpoint, *nodes, launched=self._launched, progress=lambda _: None)

    def _relieve(self, short: Sequence[tuple[int, shortage.Resource]]) -> None:
        """Give nodes back what they had no more of; those that ended for want of it are started again."""
        ended = []
        for node, what in short:
            if not shortage.end(self._endpoint, node, what, self._short.get((node, what))) and node not in self._down:
                ended.append(node)
            self._short.pop((node, what), None)
        self._start_again(ended)

    def _signal(self, nodes: Sequence[int], number: signal.Signals) -> None:
        process.signal_all(self._servers(nodes), number)

    def _servers(self, nodes: Sequence[int]) -> list[process.ProcessId]:
        """The processes of nodes, as far as they have one."""
        servers = [node.server for node in local.cluster_of(self._endpoint).nodes if node.index in nodes]
        return [server for server in servers if server is not None]

    def _resume_at(self, go_ns: int, nodes: Sequence[int]) -> None:
        self._stopping.wait(max(0.0, (go_ns - time.monotonic_ns()) / 1e9))
        with self._resuming:
            self._paused.subtract(nodes)
            self._signal([node for node in nodes if self._paused[node] <= 0], signal.SIGCONT)

    def _resume(self) -> None:
        """Have every node go on, whatever it waits for."""
        with self._resuming:
            self._signal(sorted(self._paused), signal.SIGCONT)
            self._paused.clear()


def refuse_shared(endpoint: Endpoint) -> None:
    """Raise BrokerError where another loadgen uses the broker, too: what is done to it would be done to that one."""
    owners = {owner.pid for owner in local.cluster_of(endpoint).live_owners().values()} - {os.getpid()}
    if owners:
        raise BrokerError(
            f"{endpoint.broker}: is used by another loadgen, too (pid {', '.join(map(str, sorted(owners)))}), and so "
            "is not hurt; wait until that has ended"
        )
