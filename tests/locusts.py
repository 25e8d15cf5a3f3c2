"""Locust as a user starts it, in a process of its own, and what it leaves behind; for tests of both."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadgen.runs import Run, load

if TYPE_CHECKING:
    import re
    from pathlib import Path

STARTED = "All users spawned"
STOP_S = 120.0  # nobody takes so long, but on a busy machine
WITNESS = "LOADGEN_WITNESS"  # where locust_witness.py keeps what it sees; it names this, too
PIPE_BYTES = 1 << 20  # more than a test's Locust says


@dataclass
class Ended:
    """A Locust that has ended: its exit status, what it said, its statistics by (type, name), its run."""

    status: int
    text: str
    rows: dict[tuple[str, str], dict[str, str]]
    run: Run

    @property
    def trial(self) -> dict[str, Any]:
        """The run's only trial."""
        (trial,) = self.run.records
        return trial

    def row(self, method: str) -> dict[str, str]:
        """The only row of Locust's statistics of a method."""
        rows = [row for (kind, _), row in self.rows.items() if kind == method]
        assert len(rows) == 1, f"{len(rows)} rows of {method}:\n{self.text}"
        return rows[0]

    def carried(self, method: str, name: str | None = None) -> int:
        """How many of a method's requests came to something: what was due and not sent any more is a failed one."""
        row = self.row(method) if name is None else self.rows[method, name]
        return int(row["Request Count"]) - int(row["Failure Count"])


def command(folder: Path, *words: str, file: str = "scenarios/latency.py") -> list[str]:
    """The words of a Locust that keeps all it writes in `folder`."""
    kept = ["--csv", str(folder / "stats"), "--results", str(folder / "results")]
    return [sys.executable, "-m", "locust", "-f", file, *kept, *words]


def start(words: list[str]) -> subprocess.Popen[str]:
    """Start it in a process group of its own, as a terminal does."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # or it would wait for a reader who is elsewhere
    return process


def wait_for(process: subprocess.Popen[str], wanted: str | re.Pattern[str]) -> str:
    """Read what it says until a line has this; all that it said."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if wanted in line if isinstance(wanted, str) else wanted.search(line):
            return said
    raise AssertionError(f"it ended without saying {wanted!r}:\n{said}")


def interrupt(process: subprocess.Popen[str]) -> None:
    """What Ctrl-C in a terminal does: a signal to the whole group."""
    os.killpg(process.pid, signal.SIGINT)


def end(process: subprocess.Popen[str], folder: Path, said: str = "") -> Ended:
    """Wait for its end and read what it left."""
    try:
        rest, _ = process.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):  # all of it: a child of it that lives on keeps the pipe open
            os.killpg(process.pid, signal.SIGKILL)
        rest, _ = process.communicate(timeout=STOP_S)
        raise AssertionError(f"it did not end within {STOP_S:.0f} s:\n{said}{rest}") from None
    rows: dict[tuple[str, str], dict[str, str]] = {}
    path = folder / "stats_stats.csv"
    if path.exists():
        with path.open() as file:
            rows = {(row["Type"], row["Name"]): row for row in csv.DictReader(file) if row["Type"]}
    assert (folder / "results" / "latest").exists(), f"no run was written:\n{said}{rest}"
    return Ended(process.returncode, said + rest, rows, load(folder / "results" / "latest"))


class Together:
    """Several at once, since they mostly sleep; each is waited for when it is first asked about."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._ended: dict[str, Ended] = {}

    def start(self, name: str, *words: str, file: str = "scenarios/latency.py") -> subprocess.Popen[str]:
        """Start one under a name, with a folder of that name."""
        (self._folder / name).mkdir()
        self._processes[name] = start(command(self._folder / name, *words, file=file))
        return self._processes[name]

    def process(self, name: str) -> subprocess.Popen[str]:
        """One that was started."""
        return self._processes[name]

    def folder(self, name: str) -> Path:
        """Where one keeps what it writes."""
        return self._folder / name

    def ended(self, name: str, said: str = "") -> Ended:
        """What it left, once it has ended."""
        if name not in self._ended:
            self._ended[name] = end(self._processes[name], self._folder / name, said)
        return self._ended[name]

    def close(self) -> None:
        """End those that nobody asked about."""
        for process in self._processes.values():
            if process.poll() is None:
                interrupt(process)
                process.communicate(timeout=STOP_S)
            elif process.stdout is not None:
                process.stdout.close()
