"""Processes known by pid and start time: found again after this program died, never mistaken for others."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MARKER = "LOADGEN_BROKER_DIR"  # in the environment of every process that a broker consists of
KILL_WAIT_S = 10.0
POLL_S = 0.02

Ending = Literal["gone", "ended", "killed"]


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, by its pid, its start time in clock ticks since boot, and that boot."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this pid now, or None."""
        seen = _look(pid)
        return None if seen is None or seen.is_zombie else cls(pid, seen.start_ticks, _boot_id())

    @classmethod
    def current(cls) -> ProcessId:
        """This very process."""
        own = cls.of(os.getpid())
        assert own is not None
        return own

    def is_alive(self) -> bool:
        """Whether this process, and not a later one with its pid, still runs."""
        seen = _look(self.pid)
        if seen is None or seen.start_ticks != self.start_ticks or self.boot_id != _boot_id():
            return False
        if seen.is_zombie:
            _reap(self.pid)
        return not seen.is_zombie

    def uptime_s(self) -> float:
        """For how long it has been running."""
        now_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        return max(0.0, now_s - self.start_ticks / os.sysconf("SC_CLK_TCK"))


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclass(frozen=True, slots=True)
class _Seen:
    start_ticks: int
    is_zombie: bool


def _look(pid: int) -> _Seen | None:
    try:
        # The name, in parentheses, may hold anything; the fields proper follow the last one.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # While other threads of a zombie are still there, it holds its ports and files.
    return _Seen(int(fields[19]), is_zombie=fields[0] in {"Z", "X"} and int(fields[17]) <= 1)


def _reap(pid: int) -> None:
    # A dead child of ours stays a zombie until waited for; a process that is not our child needs nothing.
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def spawn(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    node_dir: Path,
    output: Path,
    cpus: frozenset[int] | None = None,
) -> ProcessId:
    """Starts a process of its own session, so that the terminal's Ctrl-C does not reach it before we end it.

    Args:
        command: The program and its arguments.
        environment: The whole environment; the marker by which `find_marked` knows the process is added.
        node_dir: The folder that the process belongs to and works in.
        output: Where stdout and stderr are appended.
        cpus: The CPUs it may use from its first instruction on (brokers size their pools by them).
    """
    inherited = os.sched_getaffinity(0)
    with output.open("ab") as out:
        try:
            if cpus:
                os.sched_setaffinity(0, cpus)  # of this thread, and the child inherits it
            child = subprocess.Popen(
                [str(part) for part in command],
                env={**environment, MARKER: str(node_dir)},
                cwd=node_dir,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise BrokerError(f"cannot start {command[0]}: {error.strerror}") from error
        finally:
            if cpus:
                os.sched_setaffinity(0, inherited)
    process = ProcessId.of(child.pid)
    # From here on its pid and start time stand for it; a Popen that is collected would warn about a running
    # child.
    code = child.poll()
    child.returncode = 0 if code is None else code
    if process is None:
        raise BrokerError(f"{command[0]} ended at once: {tail(output)}")
    return process


def end(process: ProcessId, *, timeout_s: float, signal_number: int = signal.SIGTERM) -> Ending:
    """Ends exactly this process and waits until it is gone: first by `signal_number`, then by SIGKILL.

    With no time given it is killed at once.
    """
    ending: Ending = "gone"
    steps = [(signal_number, timeout_s)] if timeout_s > 0 else []
    for number, wait_s in (*steps, (signal.SIGKILL, KILL_WAIT_S)):
        if not process.is_alive():
            return ending
        ending = "killed" if number == signal.SIGKILL else "ended"
        try:
            os.kill(process.pid, number)
            os.kill(process.pid, signal.SIGCONT)  # one that is stopped would not even see it
        except ProcessLookupError:
            return ending
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s:
            if not process.is_alive():
                return ending
            time.sleep(POLL_S)
    if process.is_alive():
        raise BrokerError(f"process {process.pid} does not end, not even when killed: end it by hand")
    return ending


def find_marked(folder: Path) -> Iterator[ProcessId]:
    """Every process of ours, started by `spawn` or by its children, that belongs to a folder or one below it.

    This finds what no record names: what was started in the instant before its starter was killed, and
    helpers that a broker left behind.
    """
    marker = f"{MARKER}=".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # not ours, or gone
            continue
        value = next((os.fsdecode(v[len(marker) :]) for v in variables if v.startswith(marker)), None)
        if value is not None and Path(value).is_relative_to(folder):
            process = ProcessId.of(int(entry.name))
            if process is not None:
                yield process


def command_line(pid: int) -> list[str]:
    """The arguments that a running process was started with, [] if it is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in raw.rstrip(b"\0").split(b"\0")]


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Runs a program to its end and returns what it printed; a failure is one line that names `what`."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            check=False,
            env=None if environment is None else dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokerError(f"{what} took longer than {timeout_s:.0f} s: {command[0]} was stopped") from error
    except OSError as error:
        raise BrokerError(f"{what} failed: cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        raise BrokerError(f"{what} failed (exit {done.returncode}): {_last_line(done.stderr + done.stdout)}")
    return done.stdout


def put_aside(log: Path) -> None:
    """Renames an earlier start's log, if there is one."""
    if log.exists():
        log.replace(log.with_name(f"{log.name}.before"))


def tail(path: Path) -> str:
    """The last line of a log that says something, for an error message."""
    try:
        return _last_line(path.read_text(errors="replace")[-4000:])
    except OSError:
        return "(no log)"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or line.startswith("E:")]
    return (telling or lines or ["(it printed nothing)"])[-1][:300]


def signal_all(processes: Iterable[ProcessId], signal_number: int = signal.SIGTERM) -> None:
    """Asks several processes to end, so that they do so side by side."""
    for process in processes:
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal_number)


def end_all(processes: Iterable[ProcessId], *, timeout_s: float) -> list[tuple[int, Ending]]:
    """Ends several processes, in their order."""
    return [(process.pid, end(process, timeout_s=timeout_s)) for process in processes]
