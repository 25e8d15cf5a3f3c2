"""A Locust worker's part of a fleet: a native process that runs the agents it is told to, and says what they say.

Where a crew's clients come and go with Locust's users, here each trial's agents come as the command line's plan has
them (`loadgen.locust.roster`): with the very specs of a local fleet. Some times a second one message goes up, with the
counters, the flow and all that agents said meanwhile; what is awaited goes up at once.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.board import Board, Cell
from loadgen.errors import LoadgenError
from loadgen.flow import turn_s
from loadgen.hands import Processes, preload
from loadgen.locust.line import Line
from loadgen.locust.messages import pack, parts, unpack
from loadgen.tracking import HostClock, tell_by_reference

if TYPE_CHECKING:
    from loadgen.agent import AgentSpec
    from loadgen.driver import Int64

ORDERS = {
    Cell.START_NS, Cell.STOP_PRODUCING, Cell.STOP_CONSUMING, Cell.SHARES, Cell.RETIRE, Cell.AHEAD_NS, Cell.FIRST_SHARE,
}  # fmt: skip
COUNTED = tuple(cell for cell in Cell if cell not in ORDERS)
"""What the fleet's board shows of an agent, in the order in which it travels."""


class Squad:
    """The agents of one worker, trial after trial."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._open = True
        self._clock = HostClock()
        self._number = 0
        self._specs: list[AgentSpec] = []
        self._board: Board | None = None
        self._agents = Processes()
        self._done: set[str] = set()
        self._said: list[tuple[str, str, Any]] = []
        self._is_awaited = False
        self._flow = array("q")
        self._tell_s, self._told_s = 0.1, 0.0

    def run(self) -> None:
        """Serve until the line ends; then nothing of this stays."""
        preload(is_awaited=True)
        threading.Thread(target=self._listen, name="listens", daemon=True).start()
        self._line.send("up", pid=os.getpid())
        try:
            while self._open:
                self._take()
                self._look()
        finally:
            self._clear()
            self._clock.close()

    def _listen(self) -> None:
        while (message := self._line.receive()) is not None:
            self._inbox.put(("", message))
        self._inbox.put(("", None))

    def _take(self) -> None:
        with contextlib.suppress(queue.Empty):
            source, message = self._inbox.get(timeout=turn_s())
            while True:
                if source:
                    self._hear(source, message)
                elif message is None:
                    self._open = False
                else:
                    getattr(self, f"_on_{message.pop('kind')}")(**message)
                source, message = self._inbox.get_nowait()

    # What the fleet orders.

    def _on_clock(self, reference: str, host: str, port: int) -> None:
        """Which clock times are told by; where it is not this host's own, it is followed from now on."""
        try:
            self._clock.follow(reference, (host, port))
        except LoadgenError as error:
            self._line.send("refused", error=str(error))
            return
        self._line.send("here", pid=os.getpid(), clock=self._clock.record())

    def _on_trial(self, number: int, specs: bytes, tell_s: float) -> None:
        """A new trial: its agents start, connect, and wait."""
        self._clear()
        given: list[AgentSpec] = unpack(specs)
        self._number, self._tell_s = number, tell_s
        self._clock.begin()
        self._board = board = Board.create(len(given))
        self._ahead_ns()
        self._specs = [
            replace(spec, board=board.path, rows=board.rows, row=row, cpus=()) for row, spec in enumerate(given, 1)
        ]
        self._agents.spawn(self._specs, board, self._inbox)
        self._told_s = time.monotonic()

    def _on_order(self, number: int, cell: int, value: int, note: str = "") -> None:
        """One of the fleet's commands to all agents, and its note to them; times are the reference's."""
        if number == self._number and self._board is not None:
            if note:
                self._board.leave(note)
            if cell == Cell.START_NS:
                value -= self._ahead_ns()
            self._agents.order(self._board, Cell(cell), value)

    def _on_stacks(self, number: int, names: list[str]) -> None:
        """Where agents are that do not turn any more."""
        mine = [spec.name for spec in self._specs if spec.name in names]
        text = self._agents.stacks(mine, self._board) if number == self._number and self._board is not None else ""
        self._line.send("stacks", number=number, text=text)

    def _on_over(self, number: int) -> None:
        """The trial is over: what is left of its agents ends, and the clock's errors in it are told."""
        if number == self._number:
            self._look()
            self._tell()
            self._line.send("over", number=number, clock=self._clock.record())
            self._clear()

    # What agents say.

    def _hear(self, name: str, message: bytes | None) -> None:
        if name not in {spec.name for spec in self._specs}:
            return  # of a trial that is over
        if message is not None:
            kind, what = self._agents.read(message)
            tell_by_reference(what, self._ahead_ns())
            if kind in {"result", "error"}:
                self._done.add(name)
            what = self._agents.pids()[name] if kind == "ready" else what
            self._said.append((name, kind, what))
            self._is_awaited |= kind != "report"
        elif name not in self._done:
            self._done.add(name)
            self._said.append((name, "died", self._agents.death(name)))
            self._is_awaited = True

    # What it does by itself.

    def _ahead_ns(self) -> int:
        """What the agents add to this host's time from now on."""
        ahead_ns = self._clock.ahead_ns()
        if self._board is not None:
            self._board.order(Cell.AHEAD_NS, ahead_ns)
        return ahead_ns

    def _look(self) -> None:
        """Read the counters, and tell when it is time or somebody waits."""
        board = self._board
        if board is None:
            return
        ahead_ns = self._ahead_ns()
        if board.ordered(Cell.START_NS):
            # Received first: what arrives between the two readings would make the number under way negative.
            received, sent = board.total(Cell.RECEIVED), board.total(Cell.SENT)
            self._flow.extend((time.monotonic_ns() + ahead_ns, sent, received))
        if self._is_awaited or time.monotonic() - self._told_s >= self._tell_s:
            self._tell()

    def _tell(self) -> None:
        board, self._told_s, self._is_awaited = self._board, time.monotonic(), False
        if board is None:
            return
        cells: Int64 = board.cells[1 : len(self._specs) + 1, COUNTED].copy()
        beats = cells[:, COUNTED.index(Cell.HEARTBEAT_NS)]
        beats[beats != 0] += self._ahead_ns()
        said, self._said = self._said, []
        flow, self._flow = np.array(self._flow, np.int64).reshape(-1, 3), array("q")
        packed = pack({"cells": cells, "flow": flow, "said": said})
        pieces = list(parts(packed))
        for place, piece in enumerate(pieces, 1):
            self._line.send("told", number=self._number, part=place, parts=len(pieces), blob=piece)

    def _clear(self) -> None:
        """End whatever is left of the last trial."""
        self._agents.end({spec.name for spec in self._specs if spec.name not in self._done})
        self._agents = Processes()
        self._specs = []
        self._done.clear()
        self._said.clear()
        del self._flow[:]
        if self._board is not None:
            self._board.remove()
            self._board = None


def main() -> None:
    """Serve Locust's process, at the other end of the socket whose descriptor is the last argument."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[-1]))
    end.setblocking(True)  # gevent made it, non-blocking
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Squad(Line(end)).run()
