"""Which files a process flushes, and when: seen from outside by strace, with no word of the process's own.

Counted are `fsync` and `fdatasync`, which return when the disk has what was written. `sync_file_range` promises nothing
of the kind (its manual page says so), and a file that was opened with O_SYNC or O_DSYNC is not seen here: neither
broker opens its log so unless it is told to.

Every call of every thread stops for the tracer: what is traced is slower than it would be, and its times are no
measurements. Only their order is: strace writes down the end of a call before its thread goes on.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from loadgen.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ATTACH_S, DETACH_S, LOOK_S = 20.0, 10.0, 0.01
ATTACHED = re.compile(r"Process (\d+) attached")
_BEGUN = re.compile(
    r"(?P<thread>\d+) +(?P<at>\d+\.\d+) (?:fsync|fdatasync)\(\d+<(?P<path>.*)>"
    r"(?: <unfinished \.\.\.>|\) += (?P<result>-?\d+).*<(?P<took>\d+\.\d+)>)$"
)
_RESUMED = re.compile(
    r"(?P<thread>\d+) +(?P<at>\d+\.\d+) <\.\.\. (?:fsync|fdatasync) resumed>\)? *\)? += (?P<result>-?\d+)"
)


class UntraceableError(HostError):
    """The processes cannot be watched from here: no strace, or the system does not allow it."""


@dataclass(frozen=True, slots=True)
class Flush:
    """One call that came back well: from when to when (ns of CLOCK_REALTIME, to the microsecond), of which file."""

    began_ns: int
    ended_ns: int
    path: str


@dataclass(slots=True)
class Trace:
    """What was seen; whole once the block of `traced` has ended."""

    flushes: list[Flush] = field(default_factory=list)


@contextmanager
def traced(pids: Sequence[int]) -> Iterator[Trace]:
    """Watch all threads of these processes for as long as the block lasts.

    Raises:
        UntraceableError: why nothing can be seen; the processes go on as they were.
    """
    program = shutil.which("strace")
    if program is None:
        raise UntraceableError("there is no strace on this machine")
    trace = Trace()
    with TemporaryDirectory(prefix="loadgen-trace-") as folder:
        calls, said = Path(folder) / "calls", Path(folder) / "said"
        command = [program, "-f", "-y", "-ttt", "-T", "-e", "trace=fsync,fdatasync", "-e", "signal=none"]
        command += ["-o", str(calls), *(word for pid in pids for word in ("-p", str(pid)))]
        with said.open("wb") as out:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=out)
        try:
            _await_attached(child, said, set(pids))
            yield trace
        finally:
            _end(child)
        trace.flushes += flushes_of(calls.read_text(errors="replace").splitlines())


def _await_attached(child: subprocess.Popen[bytes], said: Path, pids: set[int]) -> None:
    until_s = time.monotonic() + ATTACH_S
    while True:
        text = said.read_text(errors="replace")
        if {int(pid) for pid in ATTACHED.findall(text)} >= pids:
            return
        if child.poll() is not None or time.monotonic() > until_s:
            why = " ".join(text.split()).removeprefix("strace: ") or f"it had not attached after {ATTACH_S:g} s"
            raise UntraceableError(f"strace cannot watch the broker: {why}")
        time.sleep(LOOK_S)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Have it detach from every thread; if it does not, the kernel does when it is killed."""
    child.terminate()
    try:
        child.wait(DETACH_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def flushes_of(lines: Iterable[str]) -> list[Flush]:
    """What strace wrote down (`-f -y -ttt -T -o FILE`), in the order in which calls ended; failed ones are left out.

    A call during which another thread's was written has two lines.
    """
    under_way: dict[str, tuple[int, str]] = {}
    found: list[Flush] = []
    for line in lines:
        if (seen := _BEGUN.match(line)) is not None:
            began_ns = _ns(seen["at"])
            if seen["result"] is None:
                under_way[seen["thread"]] = began_ns, seen["path"]
            elif seen["result"] == "0":
                found.append(Flush(began_ns, began_ns + _ns(seen["took"]), seen["path"]))
        elif (seen := _RESUMED.match(line)) is not None and seen["thread"] in under_way:
            began_ns, path = under_way.pop(seen["thread"])
            if seen["result"] == "0":
                found.append(Flush(began_ns, _ns(seen["at"]), path))
    return sorted(found, key=lambda each: each.ended_ns)


def _ns(seconds: str) -> int:
    whole, _, part = seconds.partition(".")
    return int(whole) * 1_000_000_000 + int(part.ljust(9, "0"))
