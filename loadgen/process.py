"""What a spawned process of a trial runs: one role, and an honest word about whatever goes wrong."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import traceback
from typing import TYPE_CHECKING

from loadgen import heap
from loadgen.agent import StoppedError
from loadgen.board import Board
from loadgen.consuming import ConsumerAgent
from loadgen.errors import LoadgenError
from loadgen.processing import ProcessorAgent
from loadgen.producing import ProducerAgent
from loadgen.requesting import RequesterAgent
from loadgen.responding import ResponderAgent
from loadgen.scheduling import be_scheduled

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from loadgen.agent import AgentSpec, Role

ROLES: dict[Role, type[ProducerAgent | ConsumerAgent]] = {
    "producer": ProducerAgent,
    "consumer": ConsumerAgent,
    "requester": RequesterAgent,
    "responder": ResponderAgent,
    "processor": ProcessorAgent,
}


def main(spec: AgentSpec, pipe: Connection) -> None:
    """Run the role; a failure goes to the fleet with its traceback."""
    # Ctrl-C and a closed terminal reach the whole process group; the fleet alone decides how a trial ends.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # they were held back since this process was started
    try:
        # Asked by SIGUSR1 it says where it is, also from within a C function that never returns.
        dump = Board(spec.board, spec.rows).dump_path(spec.name).open("w")
        faulthandler.register(signal.SIGUSR1, file=dump, all_threads=True)
        heap.keep()
        if spec.cpus:
            os.sched_setaffinity(0, spec.cpus)
        # Of few requests in flight each waits for four wake-ups: how soon these come is the rate.
        be_scheduled(is_open_loop=spec.rate.is_open_loop or spec.pattern.is_request_reply)
        agent = ROLES[spec.role](spec, pipe)
        try:
            agent.run()
        except BaseException:
            with contextlib.suppress(Exception):
                agent.complete_report()  # what was measured is not lost with what failed
            raise
    except StoppedError:
        return
    except LoadgenError as error:
        _tell(pipe, spec.name, str(error), expected=True)
    except BaseException as error:  # noqa: BLE001 - a dead agent fails the trial, with its traceback
        _tell(pipe, spec.name, f"{type(error).__name__}: {error}", expected=False)
    finally:
        pipe.close()


def _tell(pipe: Connection, name: str, message: str, *, expected: bool) -> None:
    with contextlib.suppress(OSError):  # the fleet is gone: there is nobody to tell
        pipe.send(("error", (name, message, expected, traceback.format_exc())))
