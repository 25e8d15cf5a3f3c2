"""What a thread asks the kernel for before it drives or measures: to run when it is time, or to stay out of the way."""

from __future__ import annotations

import contextlib
import ctypes
import os


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


def be_scheduled(*, is_open_loop: bool) -> None:
    """Ask the kernel for what this thread's loop needs; where it cannot give that, the verdict sees the lag.

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
