"""A native process beside Locust's, and the greenlet that hears it: nothing here keeps Locust's loop waiting."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import AsyncResult, Event

from loadgen.errors import HostError
from loadgen.locust.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable

UP_S = 120.0  # for a process to start and import, on a busy machine
END_S = 15.0
CALL_S = 120.0  # for an answer …
OPEN_S = 1_800.0  # … and for one that may have to install and start brokers first
OPENING = frozenset({"prepare", "open", "endpoints"})


class Helper:
    """`crew` or `keeper` (the module whose `main` it runs), told by messages and asked by calls.

    Args:
        module: which of them.
        hear: called with what it says by itself, one message after another, in a greenlet.
        lost: called once where it has ended though nobody closed it.
    """

    def __init__(self, module: str, hear: Callable[[str, dict[str, Any]], None], lost: Callable[[], None]) -> None:
        here, there = socket.socketpair()
        command = [sys.executable, "-c", f"from loadgen.locust.{module} import main; main()", str(there.fileno())]
        # A session of its own: Ctrl-C in the terminal is Locust's to hear, and Locust's alone.
        self._process = subprocess.Popen(command, pass_fds=[there.fileno()], start_new_session=True)
        there.close()
        self.module, self.pid = module, self._process.pid
        self._line = Line(here)
        self._hear, self._lost = hear, lost
        self._calls: dict[int, AsyncResult[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._up, self._closing, self._is_stuck = Event(), False, False
        self._greenlet = gevent.spawn(self._listen)

    def wait_up(self) -> None:
        """Wait until it has started; raises HostError where it does not."""
        if not self._up.wait(UP_S) or self._greenlet.ready():
            raise HostError(f"the process loadgen.locust.{self.module} did not start within {UP_S:.0f} s")

    def send(self, kind: str, **data: Any) -> None:
        """Tell it something; where it is gone, `lost` has been or will be called."""
        with contextlib.suppress(OSError):
            self._line.send(kind, **data)

    def call(self, kind: str, **data: Any) -> dict[str, Any]:
        """Ask it, and wait, but not for ever; what it could not do is in the answer's `error`."""
        if self._is_stuck:
            return self._stuck(kind)
        number = next(self._numbers)
        answer: AsyncResult[dict[str, Any]] = AsyncResult()
        self._calls[number] = answer
        if self._greenlet.ready():
            self._fail_calls()
        self.send(kind, call=number, **data)
        try:
            found: dict[str, Any] = answer.get(timeout=OPEN_S if kind in OPENING else CALL_S)
        except gevent.Timeout:
            self._calls.pop(number, None)
            self._is_stuck = True
            return self._stuck(kind)
        return found

    def _stuck(self, kind: str) -> dict[str, Any]:
        text = f"the process loadgen.locust.{self.module} does not answer ({kind}): a broker that it waits for may hang"
        return {"error": text, "status": 70}

    def close(self) -> None:
        """End it in order."""
        self._closing = True
        self._line.close_sending()
        if not self._is_stuck:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
        if self._process.poll() is None:  # asked once more, so that brokers are ended that were started for it
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._greenlet.join(1)
        self._line.close()

    def _listen(self) -> None:
        while (message := self._line.receive()) is not None:
            kind = message.pop("kind")
            if kind == "up":
                self._up.set()
            elif kind == "answer":
                waiting = self._calls.pop(message.pop("call"), None)
                if waiting is not None:
                    waiting.set(message)
            else:
                self._hear(kind, message)
        self._up.set()
        self._fail_calls()
        if not self._closing:
            self._lost()

    def _fail_calls(self) -> None:
        text = f"the process loadgen.locust.{self.module} has ended"
        while self._calls:
            self._calls.popitem()[1].set({"error": text, "status": 70})
