"""A process that outlives a loadgen that is killed, by as long as it takes to end that one's brokers.

After SIGKILL nobody is left to clean up. So each loadgen that uses brokers which are not to stay has a guard: it holds
the reading end of a pipe, and sleeps until it is told that all is in order, or the pipe ends with its owner. Until then
it is a bare Python that has imported nothing, since most of them are never needed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from loadgen.brokers import links
from loadgen.brokers.process import ProcessId
from loadgen.errors import HostError

if TYPE_CHECKING:
    from types import TracebackType

SLEEPER = "import os, sys\nif not os.read(0, 1): os.execv(sys.argv[1], sys.argv[1:])"
POLL_S = 0.05
STOP_S = 5.0


class Guard:
    """Ends what this process leaves behind in a folder of brokers, once it is started and until it is dismissed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """One that was not dismissed stays until this process has ended: something may be left running."""
        if self._process is not None:
            assert self._process.stdin is not None, "it was asked for"
            self._process.stdin.close()
            self._process.returncode = 0  # it is not waited for; a Popen that is collected would warn about it

    def start(self) -> None:
        """Have it there; HostError where no process can be started."""
        owner = ProcessId.current()
        told = [str(self._root), str(owner.pid), str(owner.start_ticks), owner.boot_id]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", SLEEPER, sys.executable, "-m", "loadgen.brokers.guard", *told],
                env=links.environment(),
                cwd="/",  # no folder is held by it
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for its owner
            )
        except OSError as error:
            raise HostError(f"no process can be started: {error.strerror}; end what takes memory") from None

    def dismiss(self) -> None:
        """All is in order: it ends; never raises."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None, "it was asked for"
        with suppress(OSError):  # somebody has ended it
            process.stdin.write(b".")
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    """Wait until the owner has gone, and end what it left; the arguments are the folder, and who it was."""
    from loadgen.brokers import ending  # noqa: PLC0415  # no business of who starts it

    root, pid, start_ticks, boot_id = sys.argv[1:]
    owner = ProcessId(int(pid), int(start_ticks), boot_id)
    while owner.is_alive():  # its files are closed a little before it is gone
        time.sleep(POLL_S)
    if Path(root).exists():
        ending.end_left_behind(Path(root), lambda _: None)


if __name__ == "__main__":
    main()
