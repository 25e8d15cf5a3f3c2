"""Many agents as one: spawned together, started at one moment, stopped together; a dead one fails the trial.

`run_fleet` knows nothing of brokers or files: it is given agents' specs and hands on what they report.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Protocol

from loadgen.agent import SECOND_NS, AgentSpec, Report, Result
from loadgen.board import Board, Cell
from loadgen.errors import TrialError
from loadgen.process import main as agent_main

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

READY_S = 60.0  # spawning, importing and connecting take about 1 s on an idle machine
STUCK_S = 15.0  # a loop that has not turned for so long is dead; none waits over 50 ms by itself
START_DELAY_S = 0.2
QUIET_S = 2.0  # a drain ends when nothing arrived for so long …
DRAIN_S = 60.0  # … or after this in any case
FINISH_S = 45.0


class Watcher(Protocol):
    """What the fleet tells its caller while it runs."""

    def reported(self, report: Report) -> None:
        """An agent's report of a second."""

    def started(self, start_ns: int, pids: dict[str, tuple[int, ...]]) -> None:
        """All agents are connected; load begins at `start_ns`. `pids` are those of each role."""

    def turned(self, board: Board) -> None:
        """Called about ten times a second; may raise KeyboardInterrupt or TrialError to end the trial."""


@dataclass(slots=True)
class Outcome:
    """What the agents said at the end; `error` is the first thing that went wrong, with its traceback apart."""

    results: list[Result] = field(default_factory=list)
    start_ns: int = 0
    drain_s: float = 0.0
    drained: bool = False
    error: str | None = None
    traceback: str | None = None
    interrupted: bool = False


class Fleet:
    """The agents of one trial."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.outcome = Outcome()
        self._processes: dict[str, SpawnProcess] = {}
        self._pipes: dict[Connection, str] = {}
        self._ready: set[str] = set()
        self._done: set[str] = set()
        self._specs: list[AgentSpec] = []

    def run(self, make_specs: Callable[[Board], Sequence[AgentSpec]], agents: int) -> Outcome:
        """Run one trial from spawning to the last report; never raises for what an agent did, the outcome tells."""
        board = Board.create(agents)
        try:
            self._specs = list(make_specs(board))
            self._spawn()
            self._until(lambda: len(self._ready) == len(self._specs), READY_S, "did not connect", board)
            self._start(board)
            self._drive(board)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            self._wind_up(board)
        except TrialError as error:
            self.outcome.error = self.outcome.error or str(error)
            self._wind_up(board)
        finally:
            self._end()
            board.remove()
        return self.outcome

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        for spec in self._specs:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=agent_main, args=(spec, there), name=spec.name, daemon=True)
            process.start()
            there.close()
            self._processes[spec.name] = process
            self._pipes[here] = spec.name

    def _start(self, board: Board) -> None:
        start_ns = time.monotonic_ns() + round(START_DELAY_S * SECOND_NS)
        self.outcome.start_ns = start_ns
        pids: dict[str, tuple[int, ...]] = {}
        for spec in self._specs:
            pid = self._processes[spec.name].pid
            assert pid is not None
            pids[f"{spec.role}s"] = (*pids.get(f"{spec.role}s", ()), pid)
        self.watcher.started(start_ns, pids)
        board.order(Cell.START_NS, start_ns)

    def _drive(self, board: Board) -> None:
        """Let the producers finish, then drain the consumers, then gather the results."""
        producers = [spec for spec in self._specs if spec.role == "producer"]
        length_s = self._specs[0].warmup_s + self._specs[0].duration_s
        self._until(
            lambda: board.total(Cell.FINISHED_PRODUCING) == len(producers),
            START_DELAY_S + length_s + FINISH_S,
            "did not finish producing",
            board,
        )
        self._drain(board)
        board.order(Cell.STOP_CONSUMING)
        self._until(lambda: len(self._done) == len(self._specs), FINISH_S, "did not report its end", board)

    def _drain(self, board: Board) -> None:
        began = time.monotonic()
        if any(spec.role == "consumer" for spec in self._specs):
            target = board.total(Cell.SENT)
            last, moved = -1, began
            while time.monotonic() - began < DRAIN_S:
                received = board.total(Cell.RECEIVED)
                if received >= target:
                    break
                if received != last:
                    last, moved = received, time.monotonic()
                elif time.monotonic() - moved > QUIET_S:
                    break
                self._turn(board)
            self.outcome.drained = board.total(Cell.RECEIVED) >= target
        self.outcome.drain_s = time.monotonic() - began

    def _until(self, reached: Callable[[], bool], timeout_s: float, failing: str, board: Board) -> None:
        end = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > end:
                late = sorted(set(self._processes) - self._done)
                raise TrialError(f"agent {late[0]} {failing} within {timeout_s:.0f} s")
            self._turn(board)

    def _turn(self, board: Board) -> None:
        """Take what the agents said in the last 100 ms, and look after them."""
        for pipe in wait(list(self._pipes), timeout=0.1) if self._pipes else ():
            self._hear(pipe)  # type: ignore[arg-type]
        if not self._pipes:
            time.sleep(0.01)
        now = time.monotonic_ns()
        for spec in self._specs:
            heartbeat = int(board.cells[spec.row, Cell.HEARTBEAT_NS])
            finished = spec.name in self._done or bool(board.cells[spec.row, Cell.FINISHED_PRODUCING])
            # While a producer flushes it reports nothing; the time for that is bounded by itself.
            if heartbeat and not finished and now - heartbeat > (STUCK_S + FINISH_S) * SECOND_NS:
                raise TrialError(f"agent {spec.name} is stuck: its loop has not turned for {STUCK_S + FINISH_S:.0f} s")
        self.watcher.turned(board)

    def _hear(self, pipe: Connection) -> None:
        name = self._pipes[pipe]
        try:
            kind, what = pipe.recv()
        except (EOFError, ConnectionError):
            del self._pipes[pipe]
            if name not in self._done:
                self._processes[name].join(5)
                raise TrialError(
                    f"agent {name} died: exit status {self._processes[name].exitcode}; its messages cannot be told"
                ) from None
            return
        if kind == "ready":
            self._ready.add(name)
        elif kind == "report":
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
        board.order(Cell.STOP_PRODUCING)
        board.order(Cell.STOP_CONSUMING)
        if not self.outcome.start_ns:
            return
        end = time.monotonic() + 10
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < end and len(self._done) < len(self._specs) and self._pipes:
                for pipe in wait(list(self._pipes), timeout=0.1):
                    with contextlib.suppress(TrialError):
                        self._hear(pipe)  # type: ignore[arg-type]

    def _end(self) -> None:
        """No agent outlives its trial."""
        for process in self._processes.values():
            if process.is_alive():
                process.join(2)
            if process.is_alive():
                process.kill()
                process.join(5)
        for pipe in self._pipes:
            pipe.close()


@contextlib.contextmanager
def terminate_as_interrupt() -> Any:
    """Treat SIGTERM like Ctrl-C: a run ends in order and keeps what was measured."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
