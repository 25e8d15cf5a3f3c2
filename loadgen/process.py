"""What a spawned process of a trial runs: one role, and an honest word about whatever goes wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from typing import TYPE_CHECKING

from loadgen.consuming import ConsumerAgent
from loadgen.errors import LoadgenError
from loadgen.producing import ProducerAgent

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from loadgen.agent import AgentSpec

ROLES: dict[str, type[ProducerAgent | ConsumerAgent]] = {"producer": ProducerAgent, "consumer": ConsumerAgent}


def main(spec: AgentSpec, pipe: Connection) -> None:
    """Run the role; a failure goes to the fleet with its traceback."""
    # Ctrl-C reaches the whole process group; the fleet alone decides how a trial ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if spec.cpus:
        os.sched_setaffinity(0, spec.cpus)
    if not spec.rate.is_open_loop:
        # No latency is measured here, and a client that does not preempt the broker at every small packet reads more at
        # once: on a shared core it costs about half the CPU a message (docs/performance.md).
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        ROLES[spec.role](spec, pipe).run()
    except LoadgenError as error:
        pipe.send(("error", (spec.name, str(error), True, traceback.format_exc())))
    except BaseException as error:  # noqa: BLE001 - a dead agent fails the trial, with its traceback
        pipe.send(("error", (spec.name, f"{type(error).__name__}: {error}", False, traceback.format_exc())))
    finally:
        pipe.close()
