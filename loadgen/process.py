"""What a spawned process of a trial runs: one role, and an honest word about whatever goes wrong."""

from __future__ import annotations

import contextlib
import ctypes
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
        _be_scheduled(is_open_loop=spec.rate.is_open_loop or spec.pattern.is_request_reply)
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


class _SchedAttr(ctypes.Structure):
    """Linux's `struct sched_attr` (sched_setattr(2)), its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime_ns", ctypes.c_uint64),
        ("deadline_ns", ctypes.c_uint64),
        ("period_ns", ctypes.c_uint64),
    )


SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}.get(os.uname().machine)
SLICE_NS = 100_000  # the shortest that Linux grants
PR_SET_TIMERSLACK, SLACK_NS = 29, 1  # prctl(2): by default a sleep may end 50 µs late, to save wake-ups


def _be_scheduled(*, is_open_loop: bool) -> None:
    """Ask the kernel for what the loop needs; where it cannot give that, the verdict sees the lag.

    A closed loop measures no latency, and a client that does not preempt the broker at every small packet reads more at
    once: on a shared core it costs about half the CPU a message. An open loop has to wake when a message is due: its
    timers are not to be put off, and with a short slice (Linux 6.12 on; earlier ones ignore it) it runs before those
    who asked for longer ones (docs/performance.md has all three measured).
    """
    if not is_open_loop:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        return
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, SLACK_NS, 0, 0, 0)
    if SCHED_SETATTR is not None:
        wanted = _SchedAttr(size=ctypes.sizeof(_SchedAttr), policy=os.SCHED_OTHER, runtime_ns=SLICE_NS)
        ctypes.CDLL(None).syscall(SCHED_SETATTR, 0, ctypes.byref(wanted), 0)


def _tell(pipe: Connection, name: str, message: str, *, expected: bool) -> None:
    with contextlib.suppress(OSError):  # the fleet is gone: there is nobody to tell
        pipe.send(("error", (name, message, expected, traceback.format_exc())))
