"""What a fleet moves its agents with: processes of this machine here, other machines' in `loadgen.locust.remote`.

A thread for each agent takes its messages off the pipe at once, so that no agent waits while a report is encoded,
written and shown.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import threading
import time
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Protocol

from loadgen.process import main as agent_main

if TYPE_CHECKING:
    import queue
    from collections.abc import Collection, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, ForkServerProcess

    from loadgen.agent import AgentSpec
    from loadgen.board import Board, Cell
    from loadgen.fleet import Outcome

    Inbox = queue.SimpleQueue[tuple[str, Any]]

START_DELAY_S = 0.2
END_S = 2.0  # for all processes together to leave by themselves
DUMP_S = 1.0  # for a stuck agent to write where it is
# What takes half a second to import is imported once, and not by each agent; what specs are made of takes as long.
PRELOADED = ["loadgen.process", "loadgen.scenario", "loadgen.drivers.wire.amqp", "loadgen.drivers.wire.kafka"]
ENDING_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PIPE_BYTES = 1 << 20  # what an agent may say before anybody reads it; the kernel's default is 64 KiB


class Hands(Protocol):
    """Starts agents, passes orders on and brings what they say; one for each trial."""

    start_delay_s: float
    """From the order to begin until the first message is due: by then every agent has it."""

    def spawn(self, specs: Sequence[AgentSpec], board: Board, inbox: Inbox) -> None:
        """Start the agents; what each says goes into the inbox under its name, and None where it can say no more."""

    def read(self, message: Any) -> tuple[str, Any]:
        """A message of the inbox, as its kind and what it says."""

    def order(self, board: Board, cell: Cell, value: int = 1) -> None:
        """Give all agents one of the fleet's commands."""

    def pids(self) -> dict[str, int]:
        """The agents' processes, as far as they are on this machine."""

    def others(self) -> tuple[int, ...]:
        """Processes of this machine that serve the agents."""

    def death(self, name: str) -> str:
        """What to say of an agent that can say no more."""

    def stacks(self, names: Sequence[str], board: Board) -> str:
        """Where agents are that do not turn any more, as far as that can be told."""

    def end(self, lost: Collection[str], outcome: Outcome) -> None:
        """No agent outlives its trial, and the outcome learns what only these hands know; of `lost` nobody waits."""


class Processes:
    """Agents that are processes of this machine."""

    start_delay_s = START_DELAY_S

    def __init__(self) -> None:
        self._processes: dict[str, ForkServerProcess] = {}
        self._readers: list[tuple[threading.Thread, Connection]] = []

    def spawn(self, specs: Sequence[AgentSpec], board: Board, inbox: Inbox) -> None:
        """Start all agents, each with a thread that reads it."""
        del board
        context = forkserver()
        for spec in specs:
            here, there = context.Pipe(duplex=False)
            with contextlib.suppress(OSError):  # beyond the user's limit: then it is the default
                fcntl.fcntl(there.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            process = context.Process(target=agent_main, args=(spec, there), name=spec.name, daemon=True)
            with signals_held():
                process.start()
                self._processes[spec.name] = process
            there.close()
            reader = threading.Thread(
                target=read_on, args=(here, spec.name, inbox), name=f"reads-{spec.name}", daemon=True
            )
            self._readers.append((reader, here))
            reader.start()

    def read(self, message: Any) -> tuple[str, Any]:
        """What an agent sent."""
        kind, what = pickle.loads(message)  # noqa: S301 - from our own child, by a pipe that nobody else has
        return kind, what

    def order(self, board: Board, cell: Cell, value: int = 1) -> None:
        """The board is where the agents look."""
        board.order(cell, value)

    def pids(self) -> dict[str, int]:
        """All of them."""
        return {name: process.pid for name, process in self._processes.items() if process.pid is not None}

    def others(self) -> tuple[int, ...]:
        """None but the fleet's own, which every observer knows."""
        return ()

    def death(self, name: str) -> str:
        """Its exit status."""
        self._processes[name].join(5)
        return f"agent {name} died: exit status {self._processes[name].exitcode}; its messages cannot be told"

    def stacks(self, names: Sequence[str], board: Board) -> str:
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

    def end(self, lost: Collection[str], outcome: Outcome | None = None) -> None:
        """All have the same moment until which they may leave by themselves."""
        del outcome
        end = time.monotonic() + END_S
        for name, process in self._processes.items():
            if name not in lost:
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


def preload(*, is_awaited: bool = False) -> None:
    """Start that process: it imports while the caller goes on, or, awaited, is as ready for the first agent as ever."""
    context = forkserver()
    with signals_held():
        multiprocessing.forkserver.ensure_running()
    if is_awaited:
        process = context.Process(target=os.getpid, daemon=True)
        process.start()
        process.join()


def read_on(pipe: Connection, name: str, inbox: Inbox) -> None:
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
