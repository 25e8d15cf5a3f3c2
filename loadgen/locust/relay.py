"""The Locust master of the command line's fleet: a process that hears workers and passes on, and decides nothing.

Locust patches the process that imports it, so the command line does not: this process runs Locust's own master, and at
the other end of its socket `loadgen.locust.roster` says what is to be done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import gevent
from locust.env import Environment
from locust.exception import RPCError
from locust.runners import STATE_MISSING

from loadgen.locust.line import Line
from loadgen.locust.worker import DOWN, UP

if TYPE_CHECKING:
    from locust.runners import MasterRunner

WATCH_S = 0.5


class Relay:
    """Passes on between the socket's other end and Locust's workers."""

    def __init__(self, line: Line, runner: MasterRunner) -> None:
        self._line, self._runner = line, runner
        self._joined: set[str] = set()
        runner.register_message(UP, self._hear)
        gevent.spawn(self._watch)

    def run(self) -> None:
        """Serve until the line ends; then Locust's workers are told to end, too."""
        self._line.send("up", port=self._runner.server.port, pid=os.getpid())
        while (message := self._line.receive()) is not None:
            with contextlib.suppress(RPCError):  # a worker that is gone is noticed as such
                self._runner.send_message(DOWN, message["data"], client_id=message["worker"])
        self._runner.quit()

    def _hear(self, environment: Environment, msg: Any) -> None:
        del environment
        self._tell("said", worker=msg.node_id, data=dict(msg.data))

    def _watch(self) -> None:
        """Notice who comes and goes: Locust has no event for it."""
        while True:
            gevent.sleep(WATCH_S)
            there = {each.id for each in self._runner.clients.values() if each.state != STATE_MISSING}
            for worker in sorted(there - self._joined):
                self._tell("joined", worker=worker)
            for worker in sorted(self._joined - there):
                self._tell("lost", worker=worker)
            self._joined = there

    def _tell(self, kind: str, **data: Any) -> None:
        with contextlib.suppress(OSError):  # the command line is gone: `run` ends, and all with it
            self._line.send(kind, **data)


def main() -> None:
    """Listen where the arguments say: host, port, and the descriptor of the socket to pass on to."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    host, port, descriptor = sys.argv[-3:]
    end = socket.socket(fileno=int(descriptor))
    line = Line(end)
    logging.getLogger("locust.runners").setLevel(logging.CRITICAL)  # whom it misses is told by us
    try:
        runner = Environment().create_master_runner(host, int(port))
    except (SystemExit, RPCError) as error:
        line.send("failed", error=str(error) if isinstance(error, RPCError) else "Address already in use")
        return
    Relay(line, runner).run()
