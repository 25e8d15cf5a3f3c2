"""What both brokers share of the machine: the memory that they are sized for, and its socket settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MEMORY_CEILING_BYTES = 2 * 1024**3  # also docker-compose.yml's limit


def memory_ceiling_bytes() -> int:
    """The memory that each broker may think it has: one figure for both, never more than the machine's."""
    return min(MEMORY_CEILING_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def settings() -> dict[str, str]:
    """The kernel's settings that brokers inherit; nothing here changes them."""
    from loadgen.host import SYSCTLS  # noqa: PLC0415 - it brings psutil, which this package does without

    found = {}
    for name in (*SYSCTLS, "vm/dirty_bytes", "vm/dirty_background_bytes"):  # where these are set, the ratios read 0
        path = Path("/proc/sys") / name
        if path.is_file():
            found[name.replace("/", ".")] = " ".join(path.read_text(encoding="ascii").split())
    return found


def cpu_list(cpus: Iterable[int]) -> str:
    """CPUs as `taskset -c` writes them, without ranges."""
    return ",".join(map(str, sorted(cpus)))
