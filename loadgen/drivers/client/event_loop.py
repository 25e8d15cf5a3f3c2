"""An asyncio loop of an agent's own that turns while the agent waits: how drivers of asyncio libraries are called.

An application has one loop that runs for ever. An agent calls its driver all the time, so that the loop turns as if it
did, and whatever the library has to do for each message is done by it, in its own way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from loadgen.driver import Settled
from loadgen.errors import TrialError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

T = TypeVar("T")

CONNECT_S = 10.0
CLOSE_S = 2.0
GIVE_UP_S = 15.0  # how long a library may try to get its connection back before the trial is given up
_TURNS = 4  # of a look that does not wait: what is readable is read, handed to its task, and that runs


class EventLoop:
    """One loop, and whether anything has happened that its driver waits for (`tell`)."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, _context: None)  # what goes wrong is told where it is awaited
        self._news = asyncio.Event()
        self._down_since_s: float | None = None

    def run(self, what: Awaitable[T], timeout_s: float = CONNECT_S) -> T:
        """Turn until this is done, and return its answer; TimeoutError where it takes longer."""
        return self._loop.run_until_complete(asyncio.wait_for(what, timeout_s))

    def start(self, what: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have this go on whenever the loop turns."""
        return self._loop.create_task(what)

    def tell(self) -> None:
        """Something happened: `pump` returns."""
        self._news.set()

    def pump(self, timeout_s: float) -> None:
        """Turn until something is told, or for so long; 0 turns a few times and does not wait."""
        self._loop.run_until_complete(self._wait(timeout_s))
        self._news.clear()

    async def _wait(self, timeout_s: float) -> None:
        if timeout_s <= 0:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._news.wait()

    # A library that mends its connection by itself tells of it here.

    def lost(self, *_arguments: Any) -> None:
        """The connection is gone, and the library tries to get it back."""
        if self._down_since_s is None:
            self._down_since_s = time.monotonic()
        self.tell()

    def well(self, *_arguments: Any) -> None:
        """It is back."""
        self._down_since_s = None

    def look(self, address: str) -> None:
        """Raise TrialError where the connection has been gone for too long."""
        if self._down_since_s is not None and time.monotonic() - self._down_since_s > GIVE_UP_S:
            raise TrialError(f"rabbitmq at {address}: gone for {GIVE_UP_S:g} s")

    def close(self, leave: Callable[[], Awaitable[Any]] | None = None) -> None:
        """Let the library leave within `CLOSE_S`, end what still runs; never raises, and may be called again."""
        if self._loop.is_closed():
            return
        if leave is not None:
            with contextlib.suppress(Exception):
                self.run(leave(), CLOSE_S)
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        """End every other task, and cut the connections that a library has left open."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # heard, so that nobody complains of it later
        for transport in list(getattr(self._loop, "_transports", {}).values()):
            transport.abort()
        for _ in range(_TURNS):
            await asyncio.sleep(0)


def settled_of(heard: Iterable[tuple[int, str | None]], at_ns: int) -> list[Settled]:
    """What was heard of single messages (sequence number, error) as batches of one fate each, all told at `at_ns`."""
    by_error: dict[str | None, list[int]] = {}
    for seq, error in heard:
        by_error.setdefault(error, []).append(seq)
    return [Settled(np.array(seqs, np.int64), at_ns, error) for error, seqs in by_error.items()]
