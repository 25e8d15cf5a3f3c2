"""The agents of one trial on the workers of a roster: what moves them there."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.locust.messages import pack, unpack
from loadgen.locust.roster import refuse_loopback
from loadgen.locust.spread import spread
from loadgen.locust.squad import COUNTED
from loadgen.tracking import together

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from loadgen.agent import AgentSpec
    from loadgen.board import Board, Cell
    from loadgen.driver import Int64
    from loadgen.fleet import Outcome
    from loadgen.hands import Inbox
    from loadgen.locust.roster import Member, Roster

START_DELAY_S = 0.6  # for the order to begin to reach all workers before the first message is due
TELLS_S = 0.1  # how often a worker tells its counters …
TELLS_MSGS_PER_S = 500  # … where all of them together tell no more than this
SENDERS, RECEIVERS = {"producer", "processor"}, {"consumer", "processor"}
"""Whose stamps and whose readings a latency is made of; a requester's round trip is timed by its own clock alone."""
STACKS_S = 4.0
OVER_S = 5.0


class RemoteHands:
    """Moves agents that run on the roster's workers."""

    start_delay_s = START_DELAY_S

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        roster.trials += 1
        self._number = roster.trials
        self._changed = threading.Condition()
        self._members: dict[str, Member] = {}
        self._given: dict[str, list[AgentSpec]] = {}
        self._rows: dict[str, Int64] = {}
        self._board: Board | None = None
        self._inbox: Inbox | None = None
        self._lost: set[str] = set()
        self._deaths: dict[str, str] = {}
        self._pids: dict[str, int] = {}
        self._pieces: defaultdict[str, list[bytes]] = defaultdict(list)
        self._flows: defaultdict[str, list[Int64]] = defaultdict(list)
        self._stacks: dict[str, str] = {}
        self._clocks: dict[str, dict[str, Any]] = {}

    # What the fleet does.

    def spawn(self, specs: Sequence[AgentSpec], board: Board, inbox: Inbox) -> None:
        """Spread the agents over the workers that there are, and have each start its own."""
        found = {each.id: each for each in self._roster.crew()}
        for member in found.values():
            refuse_loopback(member, specs[0].target.endpoint.address)
        self._given = spread(specs, [each.place for each in found.values()])
        self._members = {worker: found[worker] for worker in self._given}
        self._rows = {worker: np.array([spec.row for spec in given]) for worker, given in self._given.items()}
        self._board, self._inbox = board, inbox
        tell_s = max(TELLS_S, len(self._given) / TELLS_MSGS_PER_S)
        self._roster.trial = self
        for worker, given in self._given.items():
            self._roster.order(worker, "trial", number=self._number, specs=pack(given), tell_s=tell_s)
        there = {each.id for each in self._roster.members()}
        for worker, member in self._members.items():
            if worker not in there:  # lost while it was being told
                self.lost(member)

    def read(self, message: Any) -> tuple[str, Any]:
        """It was read when it came."""
        kind, what = message
        return kind, what

    def order(self, board: Board, cell: Cell, value: int = 1) -> None:
        """To every worker; on the fleet's own board it is noted."""
        board.order(cell, value)
        for worker in self._given:
            self._roster.order(worker, "order", number=self._number, cell=int(cell), value=value, note=board.note())

    def pids(self) -> dict[str, int]:
        """Those of workers on this machine."""
        return dict(self._pids)

    def others(self) -> tuple[int, ...]:
        """Locust's master and the processes of workers on this machine."""
        here = [pid for each in self._roster.members() if not each.machine for pid in each.pids]
        return (self._roster.pid, *here)

    def death(self, name: str) -> str:
        """Why an agent says no more."""
        return self._deaths.get(name, f"agent {name} was lost; its messages cannot be told")

    def stacks(self, names: Sequence[str], board: Board) -> str:
        """As their workers find them."""
        del board
        asked = [worker for worker, given in self._given.items() if {spec.name for spec in given} & set(names)]
        for worker in asked:
            self._roster.order(worker, "stacks", number=self._number, names=list(names))
        with self._changed:
            self._changed.wait_for(lambda: self._stacks.keys() | self._lost >= set(asked), STACKS_S)
            return "\n".join(text for text in self._stacks.values() if text)

    def end(self, lost: Collection[str], outcome: Outcome) -> None:
        """Let all workers end what is left, and tell the outcome who they were and how their clocks did."""
        del lost
        for worker in self._given:
            self._roster.order(worker, "over", number=self._number)
        with self._changed:
            self._changed.wait_for(lambda: self._clocks.keys() | self._lost >= self._given.keys(), OVER_S)
            self._roster.trial = None
            outcome.flows = {worker: np.concatenate(flows) for worker, flows in self._flows.items()}
            outcome.workers = [self._told(worker) for worker in self._given]
            known = {worker: self._clocks.get(worker) or member.told for worker, member in self._members.items()}
        senders, receivers = (
            {worker for worker, given in self._given.items() if any(spec.role in roles for spec in given)}
            for roles in (SENDERS, RECEIVERS)
        )
        clocks = {worker: clock for worker, clock in known.items() if clock is not None}
        if clocks:
            outcome.clock = together(clocks, senders, receivers)

    def _told(self, worker: str) -> dict[str, Any]:
        member = self._members[worker]
        return {
            "name": member.name,
            "machine": member.machine,
            "agents": [spec.name for spec in self._given[worker]],
            "lost": worker in self._lost,
            "clock": self._clocks.get(worker),
        }

    # What workers say; called from the roster's thread.

    def lost(self, member: Member) -> None:
        """A worker is gone, and with it what its agents could tell."""
        if member.id not in self._given or member.id in self._lost or self._inbox is None:
            return
        with self._changed:
            self._lost.add(member.id)
            self._changed.notify_all()
        for spec in self._given[member.id]:
            self._deaths[spec.name] = f"worker {member.name} was lost in mid-trial; its messages cannot be told"
            self._inbox.put((spec.name, None))

    def hear(self, member: Member, what: str, data: dict[str, Any]) -> None:
        """A squad's message of this trial."""
        if data.get("number") != self._number or member.id not in self._given:
            return
        with self._changed:
            if what == "told":
                self._hear_told(member, data)
            elif what == "stacks":
                self._stacks[member.id] = data["text"]
            elif what == "over":
                self._clocks[member.id] = data["clock"]
            self._changed.notify_all()

    def _hear_told(self, member: Member, data: dict[str, Any]) -> None:
        pieces = self._pieces[member.id]
        pieces.append(data["blob"])
        if data["part"] < data["parts"]:
            return
        told = unpack(b"".join(pieces))
        pieces.clear()
        assert self._board is not None
        assert self._inbox is not None
        self._board.cells[self._rows[member.id][:, None], COUNTED] = told["cells"]
        if len(told["flow"]):
            self._flows[member.id].append(told["flow"])
        for name, kind, what in told["said"]:
            if kind == "died":
                self._deaths[name] = f"{what} (on worker {member.name})"
                self._inbox.put((name, None))
                continue
            if kind == "ready" and not member.machine:
                self._pids[name] = what
            self._inbox.put((name, (kind, what)))
