"""Many agents as one: spawned together, started at one moment, stopped together; a dead one fails the trial.

`Fleet` knows nothing of brokers or files: it is given agents' specs and hands on what they report. A thread for each
agent takes its messages off the pipe at once, so that no agent waits while a report is encoded, written and shown.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Protocol

from loadgen.agent import SECOND_NS, SIDES, AgentSpec, Report, Result
from loadgen.board import Board, Cell
from loadgen.driver import redelivers
from loadgen.errors import LoadgenError, TrialError
from loadgen.process import main as agent_main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, ForkServerProcess

READY_S = 60.0  # spawning, importing and connecting take about 1 s on an idle machine
STUCK_S = 15.0  # a loop that has not turned for so long is dead; none waits over 50 ms by itself, a flush 1 s
START_DELAY_S = 0.2
QUIET_S = 2.0  # a drain ends when nothing arrived for so long …
FIRST_S = 30.0  # … and of consumers that connect only now, when nothing has arrived for so long
BUILD_S = 900.0  # the longest that a backlog may take to be written
DRAIN_S = 60.0  # … or after this in any case
AGAIN_S = 1.0  # what consumers hand back comes again: how long nothing did, once all messages have come
FINISH_S = 45.0
TURN_S = 0.05  # how often the fleet looks after its agents where none says anything
WIND_UP_S = 10.0  # for all agents together to report what they have, once the trial is to end early
END_S = 2.0  # for all processes together to leave by themselves
DUMP_S = 1.0  # for a stuck agent to write where it is
# What takes half a second to import is imported once, and not by each agent.
PRELOADED = ["loadgen.process", "loadgen.drivers.wire.amqp", "loadgen.drivers.wire.kafka"]
ENDING_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PIPE_BYTES = 1 << 20  # what an agent may say before anybody reads it; the kernel's default is 64 KiB


class Watcher(Protocol):
    """What the fleet tells its caller while it runs."""

    def reported(self, report: Report) -> None:
        """An agent's report of a second."""

    def started(self, start_ns: int, pids: dict[str, tuple[int, ...]]) -> None:
        """All agents are connected; load begins at `start_ns`. `pids` are those of each role."""

    def marked(self, board: Board) -> None:
        """The part of the backlog that consumers skip is written; nothing is sent until this returns."""

    def turned(self, board: Board) -> None:
        """Called about twenty times a second; may raise KeyboardInterrupt or TrialError to end the trial."""


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


class Fleet:
    """The agents of one trial."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.outcome = Outcome()
        self._processes: dict[str, ForkServerProcess] = {}
        self._readers: list[tuple[threading.Thread, Connection]] = []
        # Simple: unlike Queue, it may be interrupted by a signal at any point and stays whole.
        self._inbox: queue.SimpleQueue[tuple[str, bytes | None]] = queue.SimpleQueue()
        self._ready: set[str] = set()
        self._done: set[str] = set()
        self._lost: set[str] = set()  # dead or stuck: nothing more is awaited from them
        self._specs: list[AgentSpec] = []

    def run(self, make_specs: Callable[[Board], Sequence[AgentSpec]], agents: int) -> Outcome:
        """Run one trial from spawning to the last report; never raises for what an agent did, the outcome tells."""
        board = Board.create(agents)
        try:
            self._specs = list(make_specs(board))
            self._spawn()
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
            self._end()
            board.remove()
        return self.outcome

    def _spawn(self) -> None:
        context = forkserver()
        for spec in self._specs:
            here, there = context.Pipe(duplex=False)
            with contextlib.suppress(OSError):  # beyond the user's limit: then it is the default
                fcntl.fcntl(there.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            process = context.Process(target=agent_main, args=(spec, there), name=spec.name, daemon=True)
            with signals_held():
                process.start()
                self._processes[spec.name] = process
            there.close()
            reader = threading.Thread(
                target=read_on, args=(here, spec.name, self._inbox), name=f"reads-{spec.name}", daemon=True
            )
            self._readers.append((reader, here))
            reader.start()

    def _build(self, board: Board) -> None:
        """Have the producers write a backlog, part by part; consumers come later."""
        backlog = self._specs[0].backlog
        for part in range(1, backlog.part_count + 1):
            began_s = time.monotonic()
            board.order(Cell.BACKLOG, part)
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
        start_ns = time.monotonic_ns() + round(START_DELAY_S * SECOND_NS)
        self.outcome.start_ns = start_ns
        pids: dict[str, tuple[int, ...]] = {}
        for spec in self._specs:
            pid = self._processes[spec.name].pid
            assert pid is not None
            pids[SIDES[spec.role]] = (*pids.get(SIDES[spec.role], ()), pid)
        self.watcher.started(start_ns, pids)
        board.order(Cell.START_NS, start_ns)

    def _drive(self, board: Board) -> None:
        """Let the producers finish, then drain the consumers, then gather the results."""
        length_s = self._specs[0].warmup_s + self._specs[0].duration_s
        self._until(
            lambda: self._producing(board), START_DELAY_S + length_s + FINISH_S, "did not finish producing", board
        )
        self._drain(board)
        board.order(Cell.STOP_CONSUMING)
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
            patience_s = AGAIN_S if redelivers(where.settings) else 0.0
            waits_s = max(QUIET_S, pattern.timeout_ms / 1000 + TURN_S if pattern.is_request_reply else 0.0)
            has_backlog = self._specs[0].backlog.msgs > 0  # whose consumers connect only now
            last, moved = (-1, 0), began
            while time.monotonic() - began < DRAIN_S:
                over = board.total(Cell.RECEIVED) + board.total(Cell.GIVEN_UP)
                seen = over, board.total(Cell.AGAIN)
                if seen != last:
                    last, moved = seen, time.monotonic()
                quiet_s = FIRST_S if has_backlog and not over else waits_s
                if time.monotonic() - moved >= (patience_s if over >= target else quiet_s):
                    break
                self._turn(board)
            self.outcome.drained = board.total(Cell.RECEIVED) + board.total(Cell.GIVEN_UP) >= target
        self.outcome.drain_s = time.monotonic() - began

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
        """Take what the agents said in the last 50 ms, and look after them."""
        with contextlib.suppress(queue.Empty):
            self._hear(*self._inbox.get(timeout=TURN_S))
            while True:
                self._hear(*self._inbox.get_nowait())
        now = time.monotonic_ns()
        stuck: list[str] = []
        for spec in self._specs:
            # While it connects an agent has no heartbeat yet, and what follows its end is bounded by itself.
            heartbeat = int(board.cells[spec.row, Cell.HEARTBEAT_NS])
            finished = spec.name in self._done or bool(board.cells[spec.row, Cell.FINISHED_PRODUCING])
            if heartbeat and not finished and now - heartbeat > STUCK_S * SECOND_NS:
                stuck.append(spec.name)
        if stuck:
            self._give_up(stuck, f"is stuck: its loop has not turned for {STUCK_S:.0f} s", board)
        self.watcher.turned(board)

    def _give_up(self, names: list[str], failing: str, board: Board) -> None:
        """End the trial for these agents' sake, with the stack of each that can still tell it."""
        self._lost.update(names)
        self.outcome.traceback = self.outcome.traceback or self._dumped(names, board) or None
        others = f" (and {len(names) - 1} more: {', '.join(names[1:5])}{', …' * (len(names) > 5)})" * (len(names) > 1)
        raise TrialError(f"agent {names[0]} {failing}{others}")

    def _dumped(self, names: list[str], board: Board) -> str:
        """Ask agents by signal where they are; one that is stopped or still importing says nothing."""
        for name in names:
            pid = self._processes[name].pid
            # Without its file it has no handler yet, and the signal would end it.
            if pid is not None and self._processes[name].is_alive() and board.dump_path(name).exists():
                os.kill(pid, signal.SIGUSR1)
        end = time.monotonic() + DUMP_S
        while time.monotonic() < end and not all(_size(board, name) for name in names):
            time.sleep(0.02)
        time.sleep(0.05)  # a dump is several writes
        texts = []
        for name in names:
            with contextlib.suppress(OSError):
                if text := board.dump_path(name).read_text(errors="replace"):
                    texts.append(f"{name}:\n{text}")
        return "\n".join(texts)

    def _hear(self, name: str, message: bytes | None) -> None:
        if message is None:
            if name not in self._done:
                self._lost.add(name)
                self._processes[name].join(5)
                raise TrialError(
                    f"agent {name} died: exit status {self._processes[name].exitcode}; its messages cannot be told"
                )
            return
        kind, what = pickle.loads(message)  # noqa: S301 - from our own child, by a pipe that nobody else has
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
        end = time.monotonic() + WIND_UP_S
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < end and self._without(self._done | self._lost):
                # A disk that is full refuses every report; the results still come.
                with contextlib.suppress(queue.Empty, LoadgenError):
                    self._hear(*self._inbox.get(timeout=TURN_S))

    def _end(self) -> None:
        """No agent outlives its trial; all have the same moment until which they may leave by themselves."""
        end = time.monotonic() + END_S
        for name, process in self._processes.items():
            if name not in self._lost:
                with contextlib.suppress(KeyboardInterrupt):
                    process.join(max(0.0, end - time.monotonic()))
        left = [process for process in self._processes.values() if process.is_alive()]
        for process in left:
            process.kill()
        for process in left:
            process.join(5)
        for reader, pipe in self._readers:
            reader.join(1)  # its pipe has ended with the process
            if not reader.is_alive():
                pipe.close()


def forkserver() -> ForkServerContext:
    """Where agents come from: a process of one thread and without connections, which has imported what they need.

    Neither client libraries nor gevent survive a fork of their own process; a fork of this one is as clean as a
    process that was spawned, and ready in a tenth of the time. It ends with the last of those that it serves.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def read_on(pipe: Connection, name: str, inbox: queue.SimpleQueue[tuple[str, bytes | None]]) -> None:
    """Take an agent's messages off its pipe as soon as they come; None is its end."""
    with contextlib.suppress(OSError, EOFError):
        while True:
            inbox.put((name, pipe.recv_bytes()))
    inbox.put((name, None))


def _size(board: Board, name: str) -> int:
    try:
        return board.dump_path(name).stat().st_size
    except OSError:
        return 0


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold back what ends a run while a process is started: half a start prints a traceback, here and there.

    The process inherits the mask, and takes it off when it has handlers of its own. The mask is this thread's only;
    what reaches another one is noted. Either way the signal takes effect right after, and none is lost.
    """
    resource_tracker.ensure_running()  # its own first start would take the mask off
    noted: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING_SIGNALS:
            handlers[number] = signal.signal(number, lambda number, _: noted.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(noted):
            signal.raise_signal(number)


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
