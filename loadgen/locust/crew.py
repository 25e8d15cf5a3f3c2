"""A Locust worker's agents: a native process that starts them, merges what they report, and ends them.

Locust's loop must never wait, and gevent's patches must be nowhere near a measurement; so the crew is a process of its
own, started fresh, of which Locust's process only hears. Once a second it hands over two things: one small table for
Locust's statistics, and one blob for the master, in which histograms stay exact.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.agent import REPORTED_NS, SECOND_NS, AgentSpec, Handed, Report, Result
from loadgen.board import Board, Cell
from loadgen.driver import confirms
from loadgen.errors import LoadgenError
from loadgen.fleet import STUCK_S
from loadgen.flow import turn_s
from loadgen.hands import PIPE_BYTES, forkserver, preload, read_on, signals_held
from loadgen.histogram import Histogram
from loadgen.locust.line import Line
from loadgen.locust.messages import pack, parts, unpack
from loadgen.locust.rows import UNSENT, Rows
from loadgen.process import main as agent_main
from loadgen.recorder import delta_of
from loadgen.shares import Share
from loadgen.tracking import HostClock, tell_by_reference

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess

    from loadgen.agent import Role

ROWS_MAX = 1_024  # agents that one worker may start in one trial, those that have left included
TOTALS_S = 0.05  # how often they are told while the trial is being ended
END_S = 2.0  # for a process to leave by itself once it has said all
FOREVER_S = 31 * 86_400.0  # a Locust test ends when it is told to


@dataclass(slots=True)
class Member:
    """One agent of the crew."""

    uid: int
    spec: AgentSpec
    process: ForkServerProcess
    pipe: Connection
    reader: threading.Thread
    done: bool = False
    ended_s: float | None = None


@dataclass
class Gathered:
    """What the agents gained since the last report to the master."""

    histograms: dict[tuple[str, str, int], Histogram] = field(default_factory=dict)
    series: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[tuple[str, int, int, str]] = field(default_factory=list)
    flow: array[int] = field(default_factory=lambda: array("q"))
    handed: Handed = field(default_factory=Handed)

    def add(self, role: Role, report: Report) -> None:
        """Merge one agent's report."""
        for delta in report.deltas:
            delta.add_to(self.histograms.setdefault((role, delta.kind, delta.interval), Histogram()))
        series = self.series.setdefault(role, {})
        for name, value in report.series.items():
            series[name] = value if name == "elapsed_s" else series.get(name, 0) + value
        self.events += report.events
        self.handed.add(report)

    def packed(self) -> bytes:
        """As it travels."""
        deltas = [
            (role, delta_of(kind, interval, histogram)) for (role, kind, interval), histogram in self.histograms.items()
        ]
        flow = np.array(self.flow, np.int64).reshape(-1, 3)
        told = {"deltas": deltas, "series": self.series, "events": self.events, "flow": flow, "handed": self.handed}
        return pack(told)


class Crew:
    """The agents of one Locust worker, trial after trial."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._members: dict[str, Member] = {}
        self._board: Board | None = None
        self._rows_used = 0
        self._common: dict[str, Any] = {}
        self._trial = 0
        self._origin_ns = 0
        self._next_report_ns = 0
        self._gathered, self._rows = Gathered(), Rows()
        self._tells_totals = False
        self._told_s = 0.0
        self._open = True
        self._clock = HostClock()

    def run(self) -> None:
        """Serve until the line ends."""
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
        """Hear all that was said within a turn."""
        with contextlib.suppress(queue.Empty):
            source, message = self._inbox.get(timeout=turn_s())
            while True:
                if source:
                    self._hear(source, message)
                elif message is None:
                    self._open = False
                else:
                    kind = message.pop("kind")
                    getattr(self, f"_on_{kind}")(**message)
                source, message = self._inbox.get_nowait()

    # What Locust's process orders.

    def _on_clock(self, reference: str, host: str, port: int) -> None:
        """Which clock times are told by; where it is not this host's own, it is followed from now on."""
        error = None
        try:
            self._clock.follow(reference, (host, port))
        except LoadgenError as failure:
            error = str(failure)
        self._line.send("clocked", number=0, clock=None if error else self._clock.record(), error=error)

    def _on_trial(self, number: int, common: bytes) -> None:
        """A new trial: agents that join from now on are its own."""
        self._clear()
        self._trial = number
        self._common = unpack(common)
        self._board = Board.create(ROWS_MAX)
        self._rows_used = self._origin_ns = 0
        self._gathered, self._rows = Gathered(), Rows()
        self._tells_totals = False
        self._clock.begin()
        self._ahead_ns()

    def _on_join(self, uid: int, number: int, role: Role, index: int, count: int, subscriber: int) -> None:
        """Start an agent."""
        if number != self._trial or self._board is None:
            return  # of a trial that is over
        if self._rows_used == ROWS_MAX:
            text = f"over {ROWS_MAX} agents were started in one trial by one worker; use more workers (--processes)"
            self._line.send("ended", uid=uid, number=number, role=role, error=text, traceback="")
            return
        self._rows_used += 1
        target = self._common["target"]
        spec = AgentSpec(
            role=role,
            # Of one trial alone: what an agent of an earlier one still says is not taken for this one's.
            name=f"{role}{index}.{self._rows_used}.{number}",
            target=target.of(subscriber) if role == "consumer" else target,
            row=self._rows_used,
            index=index,
            count=count,
            warmup_s=0.0,
            duration_s=FOREVER_S,
            board=self._board.path,
            rows=self._board.rows,
            shared=True,
            **{name: value for name, value in self._common.items() if name != "target"},
        )
        self._members[spec.name] = self._started(uid, spec)

    def _started(self, uid: int, spec: AgentSpec) -> Member:
        context = forkserver()
        here, there = context.Pipe(duplex=False)
        with contextlib.suppress(OSError):  # beyond the user's limit: then it is the default
            fcntl.fcntl(there.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        process = context.Process(target=agent_main, args=(spec, there), name=spec.name, daemon=True)
        with signals_held():
            process.start()
        there.close()
        reader = threading.Thread(target=read_on, args=(here, spec.name, self._inbox), daemon=True)
        reader.start()
        return Member(uid, spec, process, here, reader)

    def _on_start(self, number: int, origin_ns: int) -> None:
        if number == self._trial and self._board is not None:
            self._origin_ns = origin_ns - self._ahead_ns()
            self._next_report_ns = self._origin_ns + SECOND_NS + REPORTED_NS
            self._board.order(Cell.START_NS, self._origin_ns)

    def _on_shares(self, number: int, at_ms: int, places: dict[int, list[int]]) -> None:
        """From a moment on, each producer has another share of the rate."""
        if number != self._trial or self._board is None:
            return
        for member in self._members.values():
            if member.uid in places and member.spec.role == "producer" and not member.done:
                place, producers = places[member.uid]
                self._board.order_share(member.spec.row, Share(at_ms, place, producers).word())

    def _on_retire(self, uid: int) -> None:
        """End one agent in order: it flushes, settles, and reports."""
        for member in self._members.values():
            if member.uid == uid and self._board is not None:
                self._board.cells[member.spec.row, Cell.RETIRE] = 1

    def _on_kill(self, uid: int) -> None:
        for member in self._members.values():
            if member.uid == uid and not member.done:
                self._lose(member, "it did not end in time, and was ended")

    def _on_stop(self) -> None:
        """End all producers; from now on the totals are told often."""
        if self._board is not None:
            self._board.order(Cell.STOP_PRODUCING)
            self._tells_totals = True

    def _on_halt(self) -> None:
        """End all consumers: everything has arrived, or nobody waits any longer."""
        if self._board is not None:
            self._board.order(Cell.STOP_CONSUMING)
            self._line.send("clocked", number=self._trial, clock=self._clock.record(), error=None)

    # What agents say.

    def _hear(self, name: str, message: bytes | None) -> None:
        member = self._members.get(name)
        if member is None or member.done:
            return
        if message is None:
            self._lost(member)
            return
        kind, what = pickle.loads(message)  # noqa: S301 - from our own child, by a pipe that nobody else has
        if kind == "ready":
            self._line.send("ready", uid=member.uid, number=self._trial, pid=member.process.pid)
        elif kind == "report":
            tell_by_reference(what, self._ahead_ns())
            self._gathered.add(member.spec.role, what)
            self._rows.add(member.spec.role, what, confirms=confirms(member.spec.target.settings))
        elif kind == "result":
            self._finished(member, what)
        else:
            _, text, expected, trace = what
            self._end(member, text if expected else f"agent {name} failed: {text}", trace)

    def _finished(self, member: Member, result: Result) -> None:
        unsent = 0 if result.sent_book is None else max(0, result.due - result.sent_book.sent_count)
        if unsent:
            self._rows.fail(member.spec.role, UNSENT, unsent)
        packed = pack(result)
        pieces = list(parts(packed))
        for place, piece in enumerate(pieces, 1):
            self._line.send("result", uid=member.uid, number=self._trial, part=place, parts=len(pieces), blob=piece)
        self._end(member, None, "")

    def _lost(self, member: Member) -> None:
        """Its pipe has ended without a result: in order if it never began, else it died."""
        member.process.join(END_S)
        assert self._board is not None
        never_began = member.process.exitcode == 0 and not self._board.cells[member.spec.row, Cell.SENT]
        status = member.process.exitcode
        text = f"agent {member.spec.name} died: exit status {status}; its messages cannot be told"
        self._end(member, None if never_began else text, "")

    def _lose(self, member: Member, text: str) -> None:
        member.process.kill()
        self._end(member, f"agent {member.spec.name}: {text}", "")

    def _end(self, member: Member, error: str | None, trace: str) -> None:
        """This agent has said all it ever will; Locust hears of it after all that it reported."""
        member.done, member.ended_s = True, time.monotonic()
        if error is not None:
            self._rows.fail(member.spec.role, error)
        self._report()
        role = member.spec.role
        self._line.send("ended", uid=member.uid, number=self._trial, role=role, error=error, traceback=trace)

    # What it does by itself.

    def _ahead_ns(self) -> int:
        """What the agents add to this host's time from now on."""
        ahead_ns = self._clock.ahead_ns()
        if self._board is not None:
            self._board.order(Cell.AHEAD_NS, ahead_ns)
        return ahead_ns

    def _look(self) -> None:
        """Read the counters, report when a second is over, and look after processes."""
        now_ns, board = time.monotonic_ns(), self._board
        if board is not None and self._origin_ns:
            # Received first: what arrives between the two readings would make the number under way negative.
            received, sent = board.total(Cell.RECEIVED), board.total(Cell.SENT)
            self._gathered.flow.extend((now_ns + self._ahead_ns(), sent, received))
            if now_ns >= self._next_report_ns:
                self._next_report_ns += SECOND_NS * (1 + (now_ns - self._next_report_ns) // SECOND_NS)
                self._report()
        if board is not None and self._tells_totals and time.monotonic() - self._told_s >= TOTALS_S:
            self._told_s = time.monotonic()
            self._tell_totals(board)
        for member in self._members.values():
            self._look_after(member, now_ns)

    def _tell_totals(self, board: Board) -> None:
        producing = sum(
            not board.cells[member.spec.row, Cell.FINISHED_PRODUCING]
            for member in self._members.values()
            if member.spec.role == "producer" and not member.done
        )
        sent, received = board.total(Cell.SENT), board.total(Cell.RECEIVED)
        self._line.send("totals", number=self._trial, sent=sent, received=received, producing=producing)

    def _look_after(self, member: Member, now_ns: int) -> None:
        if member.done:
            assert member.ended_s is not None
            if member.process.is_alive() and time.monotonic() - member.ended_s > END_S:
                member.process.kill()
            return
        assert self._board is not None
        heartbeat = int(self._board.cells[member.spec.row, Cell.HEARTBEAT_NS])
        finished = bool(self._board.cells[member.spec.row, Cell.FINISHED_PRODUCING])
        if heartbeat and not finished and now_ns - heartbeat > STUCK_S * SECOND_NS:
            self._lose(member, f"stuck: its loop has not turned for {STUCK_S:.0f} s")

    def _report(self) -> None:
        """Hand over what was gained, for Locust's statistics and for the master's books."""
        gathered, self._gathered = self._gathered, Gathered()
        rows = self._rows.take()
        if rows or gathered.histograms or gathered.series or gathered.flow or gathered.handed.books:
            self._line.send("report", number=self._trial, rows=rows, blob=gathered.packed())

    def _clear(self) -> None:
        """End whatever is left of the last trial."""
        for member in self._members.values():
            if member.process.is_alive():
                member.process.kill()
        for member in self._members.values():
            member.process.join(END_S)
            member.reader.join(1)  # its pipe has ended with the process
            if not member.reader.is_alive():
                member.pipe.close()
        self._members.clear()
        if self._board is not None:
            self._board.remove()
            self._board = None


def main() -> None:
    """Serve Locust's process, at the other end of the socket whose descriptor is the last argument."""
    # Ctrl-C reaches the whole process group; Locust's master alone decides how a test ends.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[-1]))
    end.setblocking(True)  # gevent made it, non-blocking
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Crew(Line(end)).run()
