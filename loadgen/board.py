"""A small table shared by the processes of one trial: what each has done so far, and what the fleet wants of them.

One row of int64 counters an agent, in a memory-mapped file; each cell has one writer, and an aligned 8-byte store is
atomic on the machines this runs on, so no lock is needed. Row 0 is the fleet's own.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

import numpy as np


class Cell(IntEnum):
    """The columns of an agent's row; in row 0 the first three are the fleet's commands, which go to all."""

    START_NS = 0
    STOP_PRODUCING = 1
    STOP_CONSUMING = 2
    HEARTBEAT_NS = 3
    SENT = 4
    RECEIVED = 5
    FINISHED_PRODUCING = 6
    SHARES = 7  # written by the fleet: how many orders it has given about this producer's share (`loadgen.shares`) …
    RETIRE = 8  # written by the fleet: this agent alone is to end
    SUBSCRIBER = 9  # a consumer's
    ACKED = 10
    ERRORS = 11  # messages that were refused, or came damaged
    FAILED_REQUESTS = 12  # what a client tries again by itself, such as a fetch that was refused
    AGAIN = 13  # received again, of messages that consumers hand back on purpose; not in RECEIVED
    BACKLOG = 14  # in the fleet's row: the part of the backlog that producers are to write; in theirs: which is written
    HANDLED = 15  # received by a role in the middle
    GIVEN_UP = 16  # requests whose time is over
    AHEAD_NS = 17  # in row 0: how far the clock that stamps are told by is ahead of this host's now
    CRASH_PRODUCERS = 18  # in row 0: twice the number of crashes that were ordered of them …
    CRASH_CONSUMERS = 19  # … and one more where the last is to come before the work
    CRASHED_PRODUCERS = 20  # how many crashes an agent has carried out, by its role
    CRASHED_CONSUMERS = 21
    FIRST_SHARE = 22  # … of which (`SHARES`) the last are in this cell and those after it, in turn


ROW_CELLS = 32  # four cache lines a row: writers do not slow each other down
SHARES_KEPT = ROW_CELLS - Cell.FIRST_SHARE
FLEET_ROW = 0
PREFIX = "loadgen-"  # of the files' names; the pid of their owner follows


class Board:
    """The table, made by the fleet (`Board.create`) and opened by agents (`Board(path, rows)`)."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path = path
        self.rows = rows
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), rows * ROW_CELLS * 8)
        self.cells = np.frombuffer(self._map, np.int64).reshape(rows, ROW_CELLS)

    @classmethod
    def create(cls, agents: int) -> Board:
        """A zeroed table for this many agents, in memory where the system has /dev/shm."""
        shared = Path("/dev/shm")  # noqa: S108 - the file's name is random and private to this user
        folder = shared if shared.is_dir() else Path(tempfile.gettempdir())
        _remove_orphans(folder)
        rows = agents + 1
        with tempfile.NamedTemporaryFile(prefix=f"{PREFIX}{os.getpid()}-", dir=folder, delete=False) as file:
            file.truncate(rows * ROW_CELLS * 8)
        return cls(Path(file.name), rows)

    def remove(self) -> None:
        """Unlink the file and the agents' dumps; processes that have them open keep them."""
        for path in (self.path, *self.path.parent.glob(f"{self.path.name}.*")):
            path.unlink(missing_ok=True)

    def dump_path(self, agent: str) -> Path:
        """Where an agent writes its stack when it is asked to."""
        return self.path.with_name(f"{self.path.name}.{agent}")

    def leave(self, text: str) -> None:
        """Leave a note to the agents, which they read once they are started."""
        self.path.with_name(f"{self.path.name}.note").write_text(text)

    def note(self) -> str:
        """What was left; empty where nothing was."""
        path = self.path.with_name(f"{self.path.name}.note")
        return path.read_text() if path.exists() else ""

    def order(self, cell: Cell, value: int = 1) -> None:
        """Set one of the fleet's commands."""
        self.cells[FLEET_ROW, cell] = value

    def ordered(self, cell: Cell) -> int:
        """Read one of the fleet's commands."""
        return int(self.cells[FLEET_ROW, cell])

    def order_share(self, row: int, word: int) -> None:
        """Give a producer an order about its share (`Share.word`), beside those that it may not have read yet."""
        given = int(self.cells[row, Cell.SHARES])
        self.cells[row, Cell.FIRST_SHARE + given % SHARES_KEPT] = word
        self.cells[row, Cell.SHARES] = given + 1

    def shares_after(self, row: int, taken: int) -> tuple[list[int], int]:
        """The orders after the first `taken`, in turn, and how many of those after them were overwritten unread."""
        given = int(self.cells[row, Cell.SHARES])
        held = self.cells[row, Cell.FIRST_SHARE :].tolist()
        # One more may be under way since: its cell is written before it is counted.
        first = max(taken, int(self.cells[row, Cell.SHARES]) + 1 - SHARES_KEPT)
        return [held[number % SHARES_KEPT] for number in range(first, given)], min(first, given) - taken

    def total(self, cell: Cell) -> int:
        """The sum of a counter over all agents."""
        return int(self.cells[FLEET_ROW + 1 :, cell].sum())

    def least_received(self, subscribers: int) -> int:
        """How many messages the subscriber that is the furthest behind has received."""
        if subscribers == 1:
            return self.total(Cell.RECEIVED)
        agents = self.cells[FLEET_ROW + 1 :]  # producers have received nothing, whosever they are
        return int(np.bincount(agents[:, Cell.SUBSCRIBER], agents[:, Cell.RECEIVED], subscribers).min())


def _remove_orphans(folder: Path) -> None:
    """Remove what runs that were killed have left in memory."""
    for path in folder.glob(f"{PREFIX}*-*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not _is_running(int(pid)):
            with suppress(OSError):  # another user's
                path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
