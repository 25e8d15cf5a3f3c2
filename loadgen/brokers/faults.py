"""Brokers that this project started are hurt by a schedule, and mended: in a thread, while a trial runs."""

from __future__ import annotations

import heapq
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadgen.brokers import local
from loadgen.errors import LoadgenError
from loadgen.faults import Kill, Pause

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.endpoint import Endpoint
    from loadgen.faults import Restart

    Fault = Kill | Restart | Pause

MENDED_S = 180.0  # for all that is under way to come to its end: a start takes up to two minutes


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
    """Carries out faults at their moments (monotonic ns) and what mends them; `stop` leaves a whole cluster behind.

    Args:
        endpoint: the local broker.
        leader: the number of the node that leads now, by the broker's own word.
        started: told the pid of each node that was started again.
    """

    def __init__(self, endpoint: Endpoint, leader: Callable[[], int], started: Callable[[int], None]) -> None:
        self._endpoint, self._leader, self._started = endpoint, leader, started
        self._due: list[_Due] = []
        self._orders = 0
        self._broken: set[int] = set()
        self._paused: set[int] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._carry_out, name="faults", daemon=True)
        self.done: list[Done] = []

    def start(self, schedule: Sequence[tuple[int, Fault]]) -> None:
        """Begin with the schedule."""
        for at_ns, fault in schedule:
            self._plan(at_ns, lambda fault=fault: self._hurt(fault))  # type: ignore[misc]
        self._thread.start()

    def stop(self) -> list[Done]:
        """Carry out no more; wait for what is under way, mend what is broken; all that was done."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(MENDED_S)
        self._resume(sorted(self._paused))
        if self._broken:
            self._start_again(sorted(self._broken))
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

    def _hurt(self, fault: Fault) -> None:
        done = Done(fault, time.monotonic_ns())
        self.done.append(done)
        try:
            done.nodes = self._nodes_of(fault)
            done.began_ns = time.monotonic_ns()
            if isinstance(fault, Kill):
                self._broken.update(done.nodes)
                for node in done.nodes:
                    local.kill(self._endpoint, node)
                if fault.back_after_s is not None:
                    back_ns = time.monotonic_ns() + round(fault.back_after_s * 1e9)
                    self._plan(back_ns, lambda: self._mend(done, self._start_again))
            elif isinstance(fault, Pause):
                self._signal(done.nodes, signal.SIGSTOP)
                self._paused.update(done.nodes)
                go_ns = time.monotonic_ns() + round(fault.for_s * 1e9)
                self._plan(go_ns, lambda: self._mend(done, self._resume))
            else:
                self._mend(done, self._start_again)
        except LoadgenError as error:  # told with the fault; the trial goes on
            done.error = str(error)

    def _mend(self, done: Done, how: Callable[[Sequence[int]], None]) -> None:
        try:
            how(done.nodes)
        except LoadgenError as error:
            done.error = str(error)
        done.mended_ns = time.monotonic_ns()

    def _nodes_of(self, fault: Fault) -> tuple[int, ...]:
        every = tuple(node.index for node in local.cluster_of(self._endpoint).nodes)
        if fault.who == "all":
            return every
        return (self._leader() if fault.who == "leader" else fault.who,)

    def _start_again(self, nodes: Sequence[int]) -> None:
        """Together, since a node may wait for the others."""
        local.restart(self._endpoint, *nodes, progress=lambda _: None)
        self._broken.difference_update(nodes)
        for node in local.cluster_of(self._endpoint).nodes:
            if node.index in nodes and node.server is not None:
                self._started(node.server.pid)

    def _signal(self, nodes: Sequence[int], number: signal.Signals) -> None:
        for node in local.cluster_of(self._endpoint).nodes:
            if node.index in nodes and node.server is not None and node.server.is_alive():
                os.kill(node.server.pid, number)

    def _resume(self, nodes: Sequence[int]) -> None:
        self._signal(nodes, signal.SIGCONT)
        self._paused.difference_update(nodes)
