"""Brokers that this project started are hurt by a schedule, and mended: in threads, while a trial runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.brokers import local, process, shortage
from loadgen.errors import BrokerError
from loadgen.faults import Crash, Full, Kill, NetworkFault, Pause, Reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from loadgen.brokers.orders import Orders
    from loadgen.brokers.proxy import Parties
    from loadgen.endpoint import Endpoint
    from loadgen.faults import Restart

    NodeFault = Kill | Restart | Pause | Full | NetworkFault
    Fault = NodeFault | Crash

MENDED_S = 180.0  # for all that is under way to come to its end: a start takes up to two minutes
TOGETHER_NS = 1_000_000_000  # nodes that are to be back within a second are started together
DYING_S = 5.0  # a Kafka that has given its log directory up may need so long to end
POLL_S = 0.1
ASKED_EVERY_S = 1.0
_NEVER_NS = 1 << 62
LATE = "not carried out: the window had ended"


@dataclass(slots=True)
class Done:
    """A fault that was carried out: when, on which nodes, when they served again (0: not yet), and what went wrong."""

    fault: Fault
    began_ns: int
    nodes: tuple[int, ...] = ()
    mended_ns: int = 0
    error: str | None = None
    next_leader: int | None = None
    """Of a leader that was killed: who was told to lead after it; None: nobody else was, or is there."""

    def say(self, text: str) -> None:
        """Add to what went wrong."""
        self.error = "; ".join(filter(None, (self.error, text)))


class Injector:
    """Carries out faults at their moments (monotonic ns) and what mends them; `stop` leaves a whole broker behind.

    One thread hurts, in turn: it may have to wait until it knows who leads. Each mend has a thread of its own, so that
    none is late for that or for another, and none holds up a fault.

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
        self._down: dict[int, int] = {}  # nodes that were killed, and when they are to be back (monotonic ns)
        self._paused: Counter[int] = Counter()  # by how many pauses a node stands still
        # Who has no more of what: the process that ran out of it, and by which fault.
        self._short: dict[tuple[int, shortage.Resource], tuple[process.ProcessId | None, Done]] = {}
        self._resuming = threading.Lock()
        self._starting = threading.Lock()  # one start at a time: who waits for it finds its nodes served
        self._acting = threading.Lock()  # held by a fault while it hits: none does once it is to stop
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.done: list[Done] = []

    def start(self, schedule: Sequence[tuple[int, Fault]], until_ns: int) -> None:
        """Begin with the schedule; what could not be begun by a moment is not carried out, and told so."""
        in_turn = sorted(schedule, key=lambda each: each[0])
        self._spawn("faults", lambda: self._carry_out(in_turn, until_ns))

    def stop(self) -> list[Done]:
        """Carry out no more; wait for what is under way, mend what is broken; all that was done."""
        stopped_ns = time.monotonic_ns()
        try:
            with self._acting:
                self._stopping.set()
            self._tolerating(None, self._resume)  # first: whatever comes, nobody stays so
            for thread in self._threads:
                thread.join(MENDED_S)
        finally:
            self._stopping.set()
            last = self.done[-1] if self.done else None
            self._tolerating(last, self._resume)
            self._tolerating(last, lambda: self._relieve(sorted(self._short)))
            for proxy in self._proxies.values():
                self._tolerating(last, proxy.mend)
            if last is not None:
                self._tolerating(last, lambda: self._leave_whole(stopped_ns))
        now_ns = time.monotonic_ns()
        for each in self.done:
            each.mended_ns = each.mended_ns or now_ns
        return self.done

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _carry_out(self, schedule: Iterable[tuple[int, Fault]], until_ns: int) -> None:
        for at_ns, fault in schedule:
            if self._stopping.wait(max(0.0, (at_ns - time.monotonic_ns()) / 1e9)):
                return
            self._begin(Done(fault, time.monotonic_ns()), until_ns)

    def _begin(self, done: Done, until_ns: int) -> None:
        self.done.append(done)
        if not self._tolerating(done, lambda: self._hurt(done, until_ns)):
            done.mended_ns = done.mended_ns or time.monotonic_ns()  # it hurts nobody, and so is over

    def _hurt(self, done: Done, until_ns: int) -> None:
        """Find out whom, and hurt them, if there is still time."""
        self._refuse_late(until_ns)
        nodes = () if isinstance(done.fault, Crash) else self._nodes_of(done.fault)  # this may take its time
        with self._acting:
            self._refuse_late(until_ns)
            done.began_ns = time.monotonic_ns()
            if isinstance(done.fault, Crash):
                self._crash(done.fault)
                done.mended_ns = time.monotonic_ns()
                return
            alive = self._alive(nodes)
            if not alive:  # a leader may be one that died and is not yet missed
                raise BrokerError(f"{self._endpoint.broker}: {_named(nodes)} is down already")
            refuse_shared(self._endpoint)
            done.nodes = nodes if isinstance(done.fault, NetworkFault) else alive
            if absent := [node for node in nodes if node not in done.nodes]:
                done.say(f"{self._endpoint.broker}: {_named(absent)} was down already, and not hurt")
            self._hit(done, done.fault)

    def _refuse_late(self, until_ns: int) -> None:
        if self._stopping.is_set() or time.monotonic_ns() >= until_ns:
            raise BrokerError(LATE)

    def _hit(self, done: Done, fault: NodeFault) -> None:
        """Hurt, and plan what mends it."""
        if isinstance(fault, Kill):
            self._kill(done, fault)
        elif isinstance(fault, Pause):
            self._paused.update(done.nodes)
            process.signal_all(self._servers(done.nodes), signal.SIGSTOP)
            go_ns = time.monotonic_ns() + round(fault.for_s * 1e9)
            self._mend(done, 0, lambda: self._resume_at(go_ns, done.nodes))
        elif isinstance(fault, Full):
            self._run_short(done, fault)
        elif isinstance(fault, NetworkFault):
            self._hurt_network(done, fault)
        else:
            self._mend(done, 0, lambda: self._restart(done))

    def _kill(self, done: Done, fault: Kill) -> None:
        back_ns = _NEVER_NS
        if not isinstance(fault.back_after_s, str):
            back_ns = done.began_ns + round(fault.back_after_s * 1e9)
        self._down.update(dict.fromkeys(done.nodes, back_ns))  # first: whoever finds one dead knows that it is meant
        local.kill(self._endpoint, *done.nodes)
        if back_ns < _NEVER_NS:
            self._mend(done, back_ns, self._start_due)
        if fault.who == "leader" and len(local.cluster_of(self._endpoint).nodes) > 1:
            self._spawn("leader", lambda: self._watch_leader(done))

    def _watch_leader(self, done: Done) -> None:
        """Ask who leads until somebody else does."""
        while done.next_leader is None and not self._stopping.wait(ASKED_EVERY_S):
            with suppress(Exception):  # whoever is asked may be the one that is down
                leader = self._leader()
                done.next_leader = leader if leader not in done.nodes else None

    def _run_short(self, done: Done, fault: Full) -> None:
        short: list[tuple[int, shortage.Resource]] = [(node, fault.resource) for node in done.nodes]
        if already := [node for node, what in short if (node, what) in self._short]:
            raise BrokerError(f"{self._endpoint.broker}: {_named(already)} is short of {fault.resource} already")
        cluster = local.cluster_of(self._endpoint)
        try:
            for node, what in short:
                self._short[node, what] = local.node_of(cluster, node).server, done
                shortage.begin(self._endpoint, node, what)
        except Exception:  # begun in part, it is given back
            begun = [each for each in short if each in self._short]
            self._tolerating(done, lambda: self._give_back(begun))
            raise
        self._mend(done, time.monotonic_ns() + round(fault.for_s * 1e9), lambda: self._relieve(short))

    def _hurt_network(self, done: Done, fault: NetworkFault) -> None:
        proxy = self._proxies[fault.between]
        if isinstance(fault, Reset):
            hits = proxy.reset(done.nodes)
            done.mended_ns = time.monotonic_ns()
        else:
            hits = proxy.begin(fault, done.nodes)
            mended_ns = time.monotonic_ns() + round(fault.for_s * 1e9)
            self._mend(done, mended_ns, lambda: proxy.end(fault, done.nodes))
        if not any(hits.values()):  # RabbitMQ's clients are where they are, whoever leads
            whoever = {"clients": "client", "nodes": "other node"}[fault.between]
            raise BrokerError(f"no {whoever} is connected to {_named(done.nodes)}: nobody was hurt")
        if fault.between == "nodes":
            for low, high in self._missed(hits):
                done.say(f"nodes {low} and {high} are not connected: nothing between them was hurt")

    def _missed(self, hits: Mapping[Parties, int]) -> list[Parties]:
        """Links between nodes that are there, of which no connection was hurt."""
        return [link for link, count in hits.items() if not count and len(self._alive(link)) == len(link)]

    def _mend(self, done: Done, at_ns: int, how: Callable[[], None]) -> None:
        """Mend at a moment, in a thread of its own; what is not due when all is to stop is left to that."""

        def work() -> None:
            if self._stopping.wait(max(0.0, (at_ns - time.monotonic_ns()) / 1e9)) and at_ns:
                return
            if self._tolerating(done, how):
                done.mended_ns = time.monotonic_ns()

        self._spawn("mends", work)

    def _tolerating(self, done: Done | None, act: Callable[[], object]) -> bool:
        """Whether it went well; what goes wrong is told with the fault, and the trial goes on."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever it is, nodes that are down must be mended all the same
            if done is not None:
                done.say(" ".join(str(error).split()) or type(error).__name__)
            return False
        return True

    def _nodes_of(self, fault: NodeFault) -> tuple[int, ...]:
        every = tuple(node.index for node in local.cluster_of(self._endpoint).nodes)
        if fault.who == "all":
            return every
        node = self._leader() if fault.who == "leader" else int(fault.who)
        if node not in every:
            raise BrokerError(f"{self._endpoint.broker}: nobody leads, or there is no node {node}")
        return (node,)

    def _start_due(self) -> None:
        """Start all nodes whose time has come, together: each may wait for the others. Afterwards all of them serve."""
        with self._starting:
            until_ns = time.monotonic_ns() + TOGETHER_NS
            self._start([node for node, back_ns in sorted(self._down.items()) if back_ns <= until_ns])

    def _start(self, nodes: Sequence[int]) -> tuple[int, ...]:
        """Start them again; those that had to be killed before. Whoever could not be started stays among the down."""
        if not nodes:
            return ()
        back_ns = {node: self._down[node] for node in nodes if node in self._down}
        killed = local.start_again(self._endpoint, *nodes, launched=self._launched, progress=lambda _: None)
        for node, at_ns in back_ns.items():
            if self._down.get(node) == at_ns:  # or it was killed once more
                del self._down[node]
        return killed

    def _restart(self, done: Done) -> None:
        with self._starting:
            killed = self._start(done.nodes)
        if killed:
            done.say(f"{self._endpoint.broker}: {_named(killed)} did not end in order in time, and was killed")

    def _relieve(self, short: Sequence[tuple[int, shortage.Resource]]) -> None:
        """Give nodes back what they had no more of; those that ended for want of it are started again.

        A Kafka that goes on has written nothing meanwhile: it would have given its only log directory up.
        """
        running = self._give_back(short)
        if self._endpoint.broker == "kafka":
            until_s = time.monotonic() + DYING_S
            while any(server.is_alive() for _, server, _ in running) and time.monotonic() < until_s:
                time.sleep(POLL_S)
            for node, server, done in running:
                if server.is_alive():
                    done.say(f"kafka: node {node} wrote nothing meanwhile: nobody was hurt")
        with self._starting:
            dead = {node for node, _ in short} - set(self._alive([node for node, _ in short]))
            self._start(sorted(dead - self._down.keys()))

    def _give_back(self, short: Sequence[tuple[int, shortage.Resource]]) -> list[tuple[int, process.ProcessId, Done]]:
        """Give it back; those nodes' processes that had run short of it and run still, and by which fault."""
        running = []
        for node, what in short:
            server, done = self._short[node, what]
            shortage.end(self._endpoint, node, what, server)
            del self._short[node, what]
            if server is not None and server.is_alive():
                running.append((node, server, done))
        return running

    def _leave_whole(self, stopped_ns: int) -> None:
        """Start whoever is down, for whatever reason; BrokerError, once they serve, where nobody had planned that."""
        every = [node.index for node in local.cluster_of(self._endpoint).nodes]
        planned = {node for node, back_ns in self._down.items() if back_ns > stopped_ns}
        with self._starting:
            alive = self._alive(every)
            down = [node for node in every if node not in alive]
            self._start(down)
        if unplanned := [node for node in down if node not in planned]:
            raise BrokerError(
                f"{self._endpoint.broker}: {_named(unplanned)} was down when the trial had ended, and was started again"
            )

    def _servers(self, nodes: Sequence[int]) -> list[process.ProcessId]:
        """The processes of nodes, as far as they have one."""
        servers = [node.server for node in local.cluster_of(self._endpoint).nodes if node.index in nodes]
        return [server for server in servers if server is not None]

    def _alive(self, nodes: Sequence[int]) -> tuple[int, ...]:
        """Those whose process runs."""
        servers = {node.index: node.server for node in local.cluster_of(self._endpoint).nodes}
        return tuple(node for node in nodes if (server := servers[node]) is not None and server.is_alive())

    def _resume_at(self, go_ns: int, nodes: Sequence[int]) -> None:
        self._stopping.wait(max(0.0, (go_ns - time.monotonic_ns()) / 1e9))
        with self._resuming:
            self._paused.subtract(nodes)
            going = [node for node in nodes if self._paused[node] <= 0]
            process.signal_all(self._servers(going), signal.SIGCONT)

    def _resume(self) -> None:
        """Have every node go on, whatever it waits for."""
        with self._resuming:
            process.signal_all(self._servers(sorted(self._paused)), signal.SIGCONT)
            self._paused.clear()


def _named(nodes: Iterable[int]) -> str:
    """Nodes for people."""
    return f"node {', '.join(map(str, nodes))}"


def refuse_shared(endpoint: Endpoint) -> None:
    """Raise BrokerError where another loadgen uses the broker, too: what is done to it would be done to that one."""
    owners = {owner.pid for owner in local.cluster_of(endpoint).live_owners().values()} - {os.getpid()}
    if owners:
        raise BrokerError(
            f"{endpoint.broker}: is used by another loadgen, too (pid {', '.join(map(str, sorted(owners)))}), and so "
            "is not hurt; wait until that has ended"
        )
