"""What a spawned process of a trial runs: one role, and an honest word about whatever goes wrong."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import traceback
from typing import TYPE_CHECKING

from loadgen.agent import StoppedError
from loadgen.board import Board
from loadgen.consuming import ConsumerAgent
from loadgen.errors import LoadgenError
from loadgen.producing import ProducerAgent

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from loadgen.agent import AgentSpec

ROLES: dict[str, type[ProducerAgent | ConsumerAgent]] = {"producer": ProducerAgent, "consumer": ConsumerAgent}


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
        if spec.cpus:
            os.sched_setaffinity(0, spec.cpus)
        if not spec.rate.is_open_loop:
            # No latency is measured here, and a client that does not preempt the broker at every small packet reads
            # more at once: on a shared core it costs about half the CPU a message (docs/performance.md).
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        ROLES[spec.role](spec, pipe).run()
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
