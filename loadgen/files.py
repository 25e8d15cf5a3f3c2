"""Files of a run, written so that what was there stays valid: whole or not at all, and lines never torn."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loadgen.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextmanager
def as_host_error(path: Path) -> Iterator[None]:
    """What the system refuses becomes one line that names the path, and says what to do."""
    try:
        yield
    except OSError as error:
        # The system's own words: a library's may be several lines.
        what = os.strerror(error.errno) if error.errno else str(error).partition("\n")[0]
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        cure = "free space or choose another folder" if full else "choose another folder (--results)"
        raise HostError(f"{path}: cannot be written: {what}; {cure}") from None


@contextmanager
def appending(path: Path, undo: Callable[[], None] | None = None) -> Iterator[None]:
    """Append lines to a file; when that fails, cut off the torn one, so that what was there stays valid."""
    size_bytes = path.stat().st_size if path.exists() else 0
    with as_host_error(path):
        try:
            yield
        except OSError:
            if undo is not None:
                undo()
            if path.exists():
                os.truncate(path, size_bytes)
            raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole: a reader sees the old or the new one, also after a power cut."""
    draft = path.with_name(f".{path.name}.tmp")
    with as_host_error(path):
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def fresh_folder(root: Path, name: str) -> Path:
    """Make a folder of its own for the run; runs that begin in the same second get a number."""
    with as_host_error(root):
        root.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1_000):
            path = root / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    raise HostError(f"{root / name}: a thousand runs in one second; choose another folder")
