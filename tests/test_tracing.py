"""Flushes as strace tells them: whose call it was, when it had ended, and which failed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from loadgen.probes.flushes import has_own
from loadgen.tracing import Flush, UntraceableError, flushes_of, traced

if TYPE_CHECKING:
    from pathlib import Path

FLUSHING = """
import os, sys, threading
def flush(name):
    with open(name, "wb") as file:
        for _ in range(3):
            file.write(b"x")
            file.flush()
            os.fdatasync(file.fileno())
sys.stdin.readline()
threads = [threading.Thread(target=flush, args=(name,)) for name in sys.argv[1:]]
[each.start() for each in threads]
[each.join() for each in threads]
print("done", flush=True)
sys.stdin.readline()
"""


def test_calls_are_told_with_their_ends() -> None:
    """A call of one line ends when it has taken its time, one of two lines with the second; failures are left out."""
    lines = [
        "10 100.000001 fsync(7</a/1.log>) = 0 <0.000500>",
        "11 100.000100 fdatasync(8</b/2.wal> <unfinished ...>",
        "12 100.000200 fdatasync(9</c (d)>)          = -1 EIO (Input/output error) <0.000100>",
        "13 100.000250 fsync(7</e> <unfinished ...>",
        "11 100.000300 <... fdatasync resumed>)      = 0 <0.000200>",
        "13 100.000310 <... fsync resumed>) = -1 EIO (Input/output error) <0.000060>",
        "10 100.900000 +++ exited with 0 +++",
    ]
    assert flushes_of(lines) == [
        Flush(100_000_100_000, 100_000_300_000, "/b/2.wal"),
        Flush(100_000_001_000, 100_000_501_000, "/a/1.log"),
    ]


def test_a_flush_of_a_confirms_own_lies_between_sending_and_confirm() -> None:
    """One that began before the message was sent, or ended after its confirm, is of others; nodes count once each."""
    first, second = "/x/node1/data/1.wal", "/x/node2/data/1.wal"
    assert has_own((10, 20), [Flush(10, 20, first)], needed=1)
    assert not has_own((10, 20), [Flush(9, 15, first), Flush(15, 21, first)], needed=1)
    assert not has_own((10, 20), [Flush(11, 12, first), Flush(13, 14, first)], needed=2)
    assert has_own((10, 20), [Flush(11, 12, first), Flush(11, 14, second)], needed=2)


def test_every_thread_of_a_process_is_seen_while_it_is_traced(tmp_path: Path) -> None:
    """Threads that begin later, too; the process goes on after it."""
    names = [str(tmp_path / name) for name in ("one", "two")]
    child = subprocess.Popen(
        [sys.executable, "-c", FLUSHING, *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        began_ns = time.time_ns()
        try:
            with traced([child.pid]) as trace:
                child.stdin.write("\n")
                child.stdin.flush()
                assert child.stdout.readline() == "done\n"
        except UntraceableError as error:
            child.kill()
            pytest.skip(str(error))
        child.stdin.write("\n")
    assert child.returncode == 0
    assert sorted(each.path for each in trace.flushes) == sorted(os.path.realpath(name) for name in names * 3)
    assert all(began_ns - 1_000 <= each.began_ns <= each.ended_ns <= time.time_ns() for each in trace.flushes)


def test_what_cannot_be_watched_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """No strace, or no such process: one line, and nothing is left running."""
    with (
        pytest.raises(UntraceableError, match=r"cannot watch the broker: .*ptrace|there is no strace"),
        traced([2**22 - 1]),
    ):
        pass
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UntraceableError, match="there is no strace on this machine"), traced([os.getpid()]):
        pass
