"""Many agents as one: spawned together, started at one moment, stopped together; a dead one fails the trial.

`Fleet` knows nothing of brokers or files: it is given agents' specs and hands on what they report. Nor does it know
whether its agents are processes of this machine or of others: that is its hands' (`loadgen.hands`).
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from loadgen import heap
from loadgen.agent import SECOND_NS, SIDES, AgentSpec, Handed, Report, Result
from loadgen.board import Board, Cell
from loadgen.driver import redelivers
from loadgen.errors import LoadgenError, TrialError
from loadgen.flow import TURN_S, turn_s
from loadgen.hands import Processes
from loadgen.observer import OWN_GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.agent import BookName
    from loadgen.driver import Int64
    from loadgen.hands import Hands
    from loadgen.ledger import ReceivedBook

HURT_STUCK_S = 45.0  # where a broker is hurt, a client may try each of its nodes and wait 5 s for it, twice
READY_S = 60.0  # spawning, importing and connecting take about 1 s on an idle machine
STUCK_S = 15.0  # a loop that has not turned for so long is dead; none waits over 50 ms by itself, a flush 1 s
QUIET_S = 2.0  # a drain ends when nothing arrived for so long …
FIRST_S = 30.0  # … and of consumers that connect only now, when nothing has arrived for so long
REGROUP_S = 10.0  # … or, where members of a group leave, until the group has shared out what they had
HURT_S = 30.0  # … or, where the broker is hurt, until it has come back and given what it has
BUILD_S = 900.0  # the longest that a backlog may take to be written
DRAIN_S = 60.0  # … or after this in any case …
HOPELESS_S = 5.0  # … or after this, where at twice the pace that it had it would not come to its end in time
AGAIN_S = 1.0  # what consumers hand back comes again: how long nothing did, once all messages have come
FINISH_S = 45.0
WIND_UP_S = 10.0  # for all agents together to report what they have, once the trial is to end early


def _came(board: Board) -> int:
    """How many messages are not waited for any more: received, or given up by who waited for the reply."""
    return board.total(Cell.RECEIVED) + board.total(Cell.GIVEN_UP)


def is_hopeless(came: int, left: int, spent_s: float) -> bool:
    """Whether a drain that took so many messages in so many seconds is not going to take the rest in time."""
    return spent_s >= HOPELESS_S and left > 2 * came / spent_s * (DRAIN_S - spent_s)


class Watcher(Protocol):
    """What the fleet tells its caller while it runs."""

    def reported(self, report: Report) -> None:
        """An agent's report of a second."""

    def started(self, start_ns: int, pids: dict[str, tuple[int, ...]]) -> None:
        """All agents are connected; load begins at `start_ns`. `pids` are those of each role."""

    def marked(self, board: Board) -> None:
        """The part of the backlog that consumers skip is written; nothing is sent until this returns."""

    def turned(self, board: Board) -> None:
        """Called about twenty times a second; may raise KeyboardInterrupt or a LoadgenError to end the trial."""


@dataclass(slots=True)
class Outcome:
    """What the agents said at the end; `error` is the first thing that went wrong, with its traceback apart.

    `cause` is the error itself where it was not an agent's but the caller's own, such as a full disk.
    """

    results: list[Result] = field(default_factory=list)
    start_ns: int = 0
    build_s: float = 0.0
    """How long a backlog took to be written and confirmed."""
    drain_s: float = 0.0
    drained: bool = False
    error: str | None = None
    traceback: str | None = None
    interrupted: bool = False
    cause: LoadgenError | None = None
    workers: list[dict[str, Any]] | None = None
    """The other machines' workers that took part; None where all agents were processes of this one."""
    clock: dict[str, Any] | None = None
    """How far the clocks that a latency was read from can be trusted, where there were several."""
    flows: dict[str, Int64] | None = None
    """Of each worker what a board in common would have shown: (monotonic ns, sent, received) as int64[n, 3]."""
    handed: Handed = field(default_factory=Handed)

    def books(self, name: BookName) -> list[ReceivedBook]:
        """All books of a name, from before the end and of it."""
        return self.handed.of(name, self.results)


class Fleet:
    """The agents of one trial; without hands they are processes of this machine."""

    def __init__(self, watcher: Watcher, hands: Hands | None = None) -> None:
        self.watcher = watcher
        self.hands: Hands = hands or Processes()
        self.outcome = Outcome()
        # Simple: unlike Queue, it may be interrupted by a signal at any point and stays whole.
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._ready: set[str] = set()
        self._done: set[str] = set()
        self._lost: set[str] = set()  # dead or stuck: nothing more is awaited from them
        self._specs: list[AgentSpec] = []

    def run(self, make_specs: Callable[[Board], Sequence[AgentSpec]], agents: int) -> Outcome:
        """Run one trial from spawning to the last report; never raises for what an agent did, the outcome tells."""
        heap.keep()
        board = Board.create(agents)
        try:
            self._specs = list(make_specs(board))
            self.hands.spawn(self._specs, board, self._inbox)
            self._until(lambda: self._without(self._ready), READY_S, "did not connect", board)
            self._build(board)
            self._start(board)
            self._drive(board)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            self._wind_up(board)
        except LoadgenError as error:
            self.outcome.error = self.outcome.error or str(error)
            if not isinstance(error, TrialError):
                self.outcome.cause = error
            self._wind_up(board)
        finally:
            self.hands.end(self._lost, self.outcome)  # no agent outlives its trial
            board.remove()
        return self.outcome

    def _build(self, board: Board) -> None:
        """Have the producers write a backlog, part by part; consumers come later."""
        backlog = self._specs[0].backlog
        for part in range(1, backlog.part_count + 1):
            began_s = time.monotonic()
            self.hands.order(board, Cell.BACKLOG, part)
            self._until(partial(self._writing, board, part), BUILD_S, "did not write its backlog", board)
            self.outcome.build_s += time.monotonic() - began_s
            if part == 1 and backlog.part_count > 1:
                self.watcher.marked(board)

    def _writing(self, board: Board, part: int) -> list[str]:
        """The producers that have not written this part of the backlog."""
        return [
            spec.name for spec in self._specs if spec.role == "producer" and board.cells[spec.row, Cell.BACKLOG] < part
        ]

    def _start(self, board: Board) -> None:
        start_ns = time.monotonic_ns() + round(self.hands.start_delay_s * SECOND_NS)
        self.outcome.start_ns = start_ns
        pids: dict[str, tuple[int, ...]] = {}
        found = self.hands.pids()
        for spec in self._specs:
            here = (found[spec.name],) if spec.name in found else ()
            pids[SIDES[spec.role]] = (*pids.get(SIDES[spec.role], ()), *here)
        if others := self.hands.others():
            pids[OWN_GROUP] = (os.getpid(), *others)
        self.watcher.started(start_ns, pids)
        self.hands.order(board, Cell.START_NS, start_ns)

    def _drive(self, board: Board) -> None:
        """Let the producers finish, then drain the consumers, then gather the results."""
        length_s = self._specs[0].warmup_s + self._specs[0].duration_s
        self._until(
            lambda: self._producing(board),
            self.hands.start_delay_s + length_s + FINISH_S,
            "did not finish producing",
            board,
        )
        self._drain(board)
        self.hands.order(board, Cell.STOP_CONSUMING)
        self._until(lambda: self._without(self._done), FINISH_S, "did not report its end", board)

    def _without(self, names: set[str]) -> list[str]:
        """The agents that are not among these."""
        return [spec.name for spec in self._specs if spec.name not in names]

    def _producing(self, board: Board) -> list[str]:
        """The producers that have not finished."""
        return [
            spec.name
            for spec in self._specs
            if SIDES[spec.role] == "producers" and not board.cells[spec.row, Cell.FINISHED_PRODUCING]
        ]

    def _drain(self, board: Board) -> None:
        began = time.monotonic()
        if any(SIDES[spec.role] == "consumers" for spec in self._specs):
            where, pattern = self._specs[0].target, self._specs[0].pattern
            target = self._wanted(board)
            # Copies may have come in place of messages that are still to come.
            patience_s = QUIET_S if self._specs[0].is_hurt else AGAIN_S if redelivers(where.settings) else 0.0
            quiet_s = REGROUP_S if self._specs[0].membership.changes else QUIET_S
            quiet_s = HURT_S if self._specs[0].is_hurt else quiet_s
            waits_s = max(quiet_s, pattern.timeout_ms / 1000 + TURN_S[1] if pattern.is_request_reply else 0.0)
            has_backlog = self._specs[0].backlog.msgs > 0  # whose consumers connect only now
            # Only of these the pace tells what is to come: others wait for something before they go on.
            has_pace = not (has_backlog or patience_s or self._specs[0].membership.changes or pattern.is_request_reply)
            first, last, moved = _came(board), (-1, 0), began
            while time.monotonic() - began < DRAIN_S:
                over = _came(board)
                seen = over, board.total(Cell.AGAIN)
                if seen != last:
                    last, moved = seen, time.monotonic()
                if over >= target:
                    is_over = time.monotonic() - moved >= patience_s
                else:
                    looked_s = self._looked_s(board)
                    is_over = looked_s - moved >= (FIRST_S if has_backlog and not over else waits_s)
                    is_over |= has_pace and is_hopeless(over - first, target - over, looked_s - began)
                if is_over:
                    break
                self._turn(board)
            self.outcome.drained = _came(board) >= target
        self.outcome.drain_s = time.monotonic() - began

    def _looked_s(self, board: Board) -> float:
        """Until when all consumers have looked for messages (monotonic s): nothing arrives at one that does not run."""
        consumers = [spec for spec in self._specs if SIDES[spec.role] == "consumers" and spec.name not in self._done]
        beats = [int(board.cells[spec.row, Cell.HEARTBEAT_NS]) / SECOND_NS for spec in consumers]
        return min([time.monotonic(), *(beat for beat in beats if beat)])

    def _wanted(self, board: Board) -> int:
        """How many messages are to be received by all consumers together."""
        producers = sum(spec.role == "producer" for spec in self._specs)
        skipped = self._specs[0].backlog.skipped(producers)
        return (board.total(Cell.SENT) - skipped) * self._specs[0].target.subscribers

    def _until(self, missing: Callable[[], list[str]], timeout_s: float, failing: str, board: Board) -> None:
        """Turn until no agent is missing; those that are when the time is over are named."""
        end = time.monotonic() + timeout_s
        while late := missing():
            if time.monotonic() > end:
                self._give_up(late, f"{failing} within {timeout_s:.0f} s", board)
            self._turn(board)

    def _turn(self, board: Board) -> None:
        """Take what the agents said in the last turn, and look after them."""
        with contextlib.suppress(queue.Empty):
            self._hear(*self._inbox.get(timeout=turn_s()))
            while True:
                self._hear(*self._inbox.get_nowait())
        now = time.monotonic_ns()
        stuck_s = HURT_STUCK_S if any(spec.is_hurt for spec in self._specs) else STUCK_S
        stuck: list[str] = []
        for spec in self._specs:
            # While it connects an agent has no heartbeat yet, and what follows its end is bounded by itself.
            heartbeat = int(board.cells[spec.row, Cell.HEARTBEAT_NS])
            finished = spec.name in self._done or bool(board.cells[spec.row, Cell.FINISHED_PRODUCING])
            if heartbeat and not finished and now - heartbeat > stuck_s * SECOND_NS:
                stuck.append(spec.name)
        if stuck:
            self._give_up(stuck, f"is stuck: its loop has not turned for {stuck_s:.0f} s", board)
        self.watcher.turned(board)

    def _give_up(self, names: list[str], failing: str, board: Board) -> None:
        """End the trial for these agents' sake, with the stack of each that can still tell it."""
        self._lost.update(names)
        self.outcome.traceback = self.outcome.traceback or self.hands.stacks(names, board) or None
        others = f" (and {len(names) - 1} more: {', '.join(names[1:5])}{', …' * (len(names) > 5)})" * (len(names) > 1)
        raise TrialError(f"agent {names[0]} {failing}{others}")

    def _hear(self, name: str, message: Any) -> None:
        if message is None:
            if name not in self._done:
                self._lost.add(name)
                raise TrialError(self.hands.death(name))
            return
        kind, what = self.hands.read(message)
        if kind == "ready":
            self._ready.add(name)
        elif kind == "report":
            self.outcome.handed.add(what)
            self.watcher.reported(what)
        elif kind == "result":
            self.outcome.results.append(what)
            self._done.add(name)
        else:
            self._fail(*what)

    def _fail(self, name: str, message: str, expected: bool, text: str) -> None:
        self._done.add(name)
        self.outcome.traceback = self.outcome.traceback or text
        if self.outcome.error is None:
            self.outcome.error = message if expected else f"agent {name} failed: {message}"
        raise TrialError(self.outcome.error)

    def _wind_up(self, board: Board) -> None:
        """Stop in order, so that what was measured is reported; agents that cannot are ended."""
        self.hands.order(board, Cell.STOP_PRODUCING)
        self.hands.order(board, Cell.STOP_CONSUMING)
        if not self.outcome.start_ns:
            return
        end = time.monotonic() + WIND_UP_S
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < end and self._without(self._done | self._lost):
                # A disk that is full refuses every report; the results still come.
                with contextlib.suppress(queue.Empty, LoadgenError):
                    self._hear(*self._inbox.get(timeout=turn_s()))


@contextlib.contextmanager
def terminate_as_interrupt() -> Any:
    """Treat SIGTERM and a closed terminal like Ctrl-C: a run ends in order and keeps what was measured."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup: who asked for that keeps it
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
