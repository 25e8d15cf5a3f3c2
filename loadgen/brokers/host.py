"""What both brokers share of the machine: the memory that they are sized for, and its socket settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MEMORY_CEILING_BYTES = 2 * 1024**3  # also docker-compose.yml's limit
SYSCTLS = (
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/wmem_default",
    "net/core/wmem_max",
    "net/core/somaxconn",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/tcp_congestion_control",
    "vm/dirty_ratio",
    "vm/dirty_background_ratio",
    "vm/dirty_bytes",
    "vm/dirty_background_bytes",
    "vm/swappiness",
)


def memory_ceiling_bytes() -> int:
    """The memory that each broker may think it has: one figure for both, never more than the machine's."""
    return min(MEMORY_CEILING_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def settings() -> dict[str, str]:
    """The kernel's settings that brokers inherit; nothing here changes them."""
    found = {}
    for name in SYSCTLS:
        path = Path("/proc/sys") / name
        if path.is_file():
            found[name.replace("/", ".")] = " ".join(path.read_text(encoding="ascii").split())
    return found


def cpu_list(cpus: Iterable[int]) -> str:
    """CPUs as `taskset -c` writes them, without ranges."""
    return ",".join(map(str, sorted(cpus)))
