"""The command line as CI runs it: in a folder of its own, to its end; in this process, as its imports take seconds."""

from __future__ import annotations

import contextlib
import io
import subprocess
from typing import TYPE_CHECKING

from loadgen.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def loadgen(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What it printed, and its exit status; what would be a traceback there is raised here."""
    said, told = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        try:
            status = main(words)
        except SystemExit as end:  # of wrong words
            status = int(end.code or 0)
    return subprocess.CompletedProcess(words, status, said.getvalue(), told.getvalue())
