"""Ports on the loopback interface that are free now and stay so until a broker takes them."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HOST = "127.0.0.1"
LOWEST = 10_000
ATTEMPTS_MAX = 2_000


@contextmanager
def reserve(names: Sequence[str]) -> Iterator[dict[str, int]]:
    """Chooses a free port for each name and holds it while a broker starts, so that nobody else chooses it.

    The ports lie below the kernel's ephemeral range: otherwise, while a killed broker is down, a client's own
    outgoing connection may be given its port, and the broker cannot come back.
    """
    highest = min(_ephemeral_lowest(), 65_536) - 1
    first = LOWEST if highest - LOWEST > 1_000 else 1_025
    with ExitStack() as held:
        yield {name: _hold(held, first, highest) for name in names}


def _hold(held: ExitStack, first: int, highest: int) -> int:
    for _ in range(ATTEMPTS_MAX):
        port = random.randint(first, highest)  # noqa: S311  # spreads two checkouts apart, hides nothing
        holder = socket.socket()
        try:
            holder.bind((HOST, port))
        except OSError:
            holder.close()
            continue
        # Set only now: the bind above had to be exclusive, and the broker (which sets it too) may share the
        # port with a socket that does not listen.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.callback(holder.close)
        return port
    raise HostError(f"no free port on {HOST} between {first} and {highest}: end what holds them")


def _ephemeral_lowest() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    except OSError:
        return 32_768
    return int(text.split()[0])


def is_listening(port: int, host: str = HOST, timeout_s: float = 1.0) -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True
