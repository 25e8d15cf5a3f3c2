"""A small table shared by the processes of one trial: what each has done so far, and what the fleet wants of them.

One row of int64 counters an agent, in a memory-mapped file; each cell has one writer, and an aligned 8-byte store is
atomic on the machines this runs on, so no lock is needed. Row 0 is the fleet's own.
"""

from __future__ import annotations

import mmap
import tempfile
from enum import IntEnum
from pathlib import Path

import numpy as np


class Cell(IntEnum):
    """The columns of an agent's row; in row 0 the first three are the fleet's commands."""

    START_NS = 0
    STOP_PRODUCING = 1
    STOP_CONSUMING = 2
    HEARTBEAT_NS = 3
    SENT = 4
    SETTLED = 5
    RECEIVED = 6
    FINISHED_PRODUCING = 7


ROW_CELLS = 16  # two cache lines a row: writers do not slow each other down
FLEET_ROW = 0


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
        rows = agents + 1
        with tempfile.NamedTemporaryFile(
            prefix="loadgen-", dir=shared if shared.is_dir() else None, delete=False
        ) as file:
            file.truncate(rows * ROW_CELLS * 8)
        return cls(Path(file.name), rows)

    def remove(self) -> None:
        """Unlink the file; processes that have it open keep it."""
        self.path.unlink(missing_ok=True)

    def order(self, cell: Cell, value: int = 1) -> None:
        """Set one of the fleet's commands."""
        self.cells[FLEET_ROW, cell] = value

    def ordered(self, cell: Cell) -> int:
        """Read one of the fleet's commands."""
        return int(self.cells[FLEET_ROW, cell])

    def total(self, cell: Cell) -> int:
        """The sum of a counter over all agents."""
        return int(self.cells[FLEET_ROW + 1 :, cell].sum())
