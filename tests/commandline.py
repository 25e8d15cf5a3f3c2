"""The command line as CI runs it: in a folder of its own, to its end."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def loadgen(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What it printed, and its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "loadgen.cli", *words], check=False, capture_output=True, text=True, timeout=60,
        cwd=folder,
    )  # fmt: skip
