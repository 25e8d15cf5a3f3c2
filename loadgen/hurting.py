"""A trial whose broker is hurt: the faults of its scenario carried out, and what they cost, as its record tells it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.agent import SECOND_NS
from loadgen.board import Cell
from loadgen.brokers.faults import Injector, refuse_shared
from loadgen.brokers.links import Links
from loadgen.brokers.local import cluster_of
from loadgen.brokers.through import through
from loadgen.driver import confirms
from loadgen.drivers.leaders import leader_of
from loadgen.faults import Crash, needs_links, needs_proxy
from loadgen.gaps import Gaps
from loadgen.observer import OWN_GROUP

if TYPE_CHECKING:
    from collections.abc import Collection

    from loadgen.board import Board
    from loadgen.brokers.faults import Done
    from loadgen.brokers.through import Through
    from loadgen.driver import Target
    from loadgen.faults import At
    from loadgen.flow import Flow
    from loadgen.gaps import Kind
    from loadgen.observer import Observer

Record = dict[str, Any]

BACK_SHARE = 0.9
"""The rate is back when nine tenths of what it was before the first fault come through …"""
BACK_OVER_S = 0.5
"""… in half a second."""


SLOWING = frozenset({"cut", "delay", "throttle"})
"""Faults that nothing goes round: the rate cannot be back before they end."""


class Hurting:
    """The faults of one trial, from its begin to their account."""

    def __init__(self, faults: tuple[At, ...], target: Target, *, consumes: bool, cpus: Collection[int] = ()) -> None:
        self._faults, self._target, self._cpus = faults, target, cpus
        self._through: Through | None = None
        self._links: Links | None = None
        self.proxy: Record | None = None
        """What passed through the proxy by which clients reached the broker, where there was one; told at the end."""
        self.links: Record | None = None
        """The same of the proxy by which its nodes reached each other."""
        self._confirms, self._consumes = confirms(target.settings), consumes
        self._injector: Injector | None = None
        self._window_ns = 0
        self._board: Board | None = None
        self.gaps = Gaps()
        self._done: list[Done] = []
        self._ordered: dict[Cell, tuple[Done, int]] = {}
        """The last crash that each role was told of, and how many there had been."""

    def reached(self) -> Target:
        """The target as the trial's clients reach it: where their network is hurt, by a proxy that is started now."""
        if any(not isinstance(each.fault, Crash) for each in self._faults):
            refuse_shared(self._target.endpoint)
        if needs_links(self._faults):
            self._links = Links(cluster_of(self._target.endpoint))
        if not needs_proxy(self._faults):
            return self._target
        self._through = through(self._target.endpoint, self._cpus)
        return replace(self._target, endpoint=self._through.endpoint)

    def begin(self, window_ns: int, end_ns: int, observer: Observer) -> None:
        """The window is between these moments (monotonic ns); nodes that are started again are observed, too."""
        self._window_ns, self._observer = window_ns, observer
        self._injector = Injector(
            self._target.endpoint,
            lambda: leader_of(self._target),
            lambda pid: observer.add("broker", pid),
            self._crash,
            self._through,
            self._links,
        )
        for proxy in (self._through, self._links):
            if proxy is not None:
                observer.add(OWN_GROUP, proxy.pid)
        schedule = [(window_ns + round(each.at_s * SECOND_NS), each.fault) for each in self._faults]
        self._injector.start(schedule, until_ns=end_ns)

    def sample(self, board: Board, now_ns: int) -> None:
        """Look at the counters."""
        self._board = board
        if now_ns >= self._window_ns > 0:
            self.gaps.sample(now_ns, board.total(Cell.ACKED), board.total(Cell.RECEIVED))

    def _crash(self, fault: Crash) -> None:
        """Tell all clients of a role."""
        assert self._board is not None, "sampled from the start on"
        assert self._injector is not None, "it is what crashes them"
        is_producers = fault.role == "producers"
        ordered = Cell.CRASH_PRODUCERS if is_producers else Cell.CRASH_CONSUMERS
        carried = Cell.CRASHED_PRODUCERS if is_producers else Cell.CRASHED_CONSUMERS
        self._see_crash(carried)
        self._ordered[carried] = self._injector.done[-1], self._board.total(carried)
        number = self._board.ordered(ordered) // 2 + 1
        self._board.order(ordered, 2 * number + (fault.when == "before"))

    def _see_crash(self, carried: Cell) -> None:
        """Whether anybody of a role has crashed since it was last told to: who receives nothing has no work amid it."""
        done, before = self._ordered.pop(carried, (None, 0))
        if done is not None and self._board is not None and self._board.total(carried) == before:
            done.error = done.error or "nobody crashed: none had messages before the next order, or the end"

    def stop(self) -> None:
        """Mend what is broken, and put what was done on the timeline."""
        for carried in (Cell.CRASHED_PRODUCERS, Cell.CRASHED_CONSUMERS):
            self._see_crash(carried)
        try:
            if self._injector is not None:
                self._done, self._injector = self._injector.stop(), None
        finally:
            if self._through is not None:
                self.proxy = self._through.account()
                self._through.close()
                self._through = None
            if self._links is not None:
                self.links = self._links.account()
                self._links.close()
                self._links = None
        for each in self._done:
            nodes = f" (node {', '.join(map(str, each.nodes))})" if each.nodes else ""
            self._observer.note("fault", each.began_ns, each.mended_ns, f"{each.fault.described()}{nodes}")

    def record(self, flow: Flow, end_ns: int) -> list[Record]:
        """Each fault with what it cost; times are seconds, of the window or of their own."""
        begins = [each.began_ns for each in self._done]
        spans = zip(self._done, [*begins[1:], end_ns], strict=True) if self._done else ()
        return [self._told(each, next_ns, flow) for each, next_ns in spans]

    def _told(self, done: Done, next_ns: int, flow: Flow) -> Record:
        confirm, delivery = (self._gap(kind, done.began_ns, next_ns) for kind in ("confirm", "delivery"))
        return {
            "what": done.fault.described(),
            "kind": done.fault.kind,
            "hurts": done.fault.hurts,
            "nodes": list(done.nodes),
            "at_s": (done.began_ns - self._window_ns) / SECOND_NS,
            "mended_after_s": (done.mended_ns - done.began_ns) / SECOND_NS,
            "confirm_gap_s": None if confirm is None else (confirm[1] - confirm[0]) / SECOND_NS,
            "confirm_gap_at_s": None if confirm is None else (confirm[0] - self._window_ns) / SECOND_NS,
            "delivery_gap_s": None if delivery is None else (delivery[1] - delivery[0]) / SECOND_NS,
            "delivery_gap_at_s": None if delivery is None else (delivery[0] - self._window_ns) / SECOND_NS,
            "back_after_s": None if delivery is None else self._back_s(done, delivery, next_ns, flow),
            "next_leader": done.next_leader,
            "error": done.error,
        }

    def _gap(self, kind: Kind, begin_ns: int, end_ns: int) -> tuple[int, int] | None:
        """The longest gap, of no length where none was seen; None where nothing of its kind happens in this trial."""
        if not (self._confirms if kind == "confirm" else self._consumes):
            return None
        return self.gaps.longest(kind, begin_ns, end_ns) or (begin_ns, begin_ns)

    def _back_s(self, done: Done, gap: tuple[int, int], next_ns: int, flow: Flow) -> float | None:
        """After how long the rate of deliveries was back; None where it was not before the next fault or the end."""
        before_s, _, before = flow.between(self._window_ns, self._done[0].began_ns)
        if len(before_s) < 2 or before_s[-1] <= before_s[0]:
            return None
        usual = (before[-1] - before[0]) / (before_s[-1] - before_s[0])
        at_s, _, received = flow.between(done.began_ns, next_ns)
        if len(at_s) < 2:
            return None
        from_s = max(0.0, (gap[1] - done.began_ns) / SECOND_NS)
        if done.fault.kind in SLOWING:  # half a second that reaches over its end would be told as within it
            from_s = max(from_s, (done.mended_ns - done.began_ns) / SECOND_NS)
        begins = at_s[(at_s >= from_s) & (at_s + BACK_OVER_S <= at_s[-1])]
        rates = (np.interp(begins + BACK_OVER_S, at_s, received) - np.interp(begins, at_s, received)) / BACK_OVER_S
        back = np.flatnonzero(rates >= BACK_SHARE * usual)
        return float(begins[back[0]]) if len(back) else None
