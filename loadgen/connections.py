"""How many connections a broker has, from the kernel's own table of sockets: exact at the moment it is read.

A broker on this machine is counted at its own end, whoever is connected; of one elsewhere only what this machine has
open to it can be seen. A read takes about 2.5 ms of CPU, most of it the kernel's walk through its table.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from loadgen.endpoint import Endpoint

ESTABLISHED = b"01"
TABLES = ("tcp", "tcp6")
MAPPED = bytes(10) + b"\xff\xff"  # in front of an IPv4 address in a table of IPv6 sockets


class ConnectionCounter:
    """Counts the established connections to the ports that a broker's clients use, on each of its nodes."""

    def __init__(self, endpoint: Endpoint, proc: Path) -> None:
        self._paths = [proc / "net" / table for table in TABLES]
        self._is_local = endpoint.source == "local"
        ports = {port for _, port in (*endpoint.hosts, *endpoint.stream_hosts)} | ({endpoint.stream_port} - {None})
        ports |= set(endpoint.through_ports)
        self._ports = {b"%04X" % port for port in ports if port is not None}
        self._addresses: set[bytes] = set()
        if not self._is_local:
            self._addresses = {address for host, _ in endpoint.hosts for address in _addresses(host)}

    def read(self, client_ports: AbstractSet[int] | None = None) -> int | None:
        """How many there are now, or of those at whose other end is one of `client_ports`; None: the kernel is mute."""
        ends: set[tuple[bytes, bytes]] = set()  # while sockets come and go, the kernel lists some of them again
        is_told = False
        for path in self._paths:
            try:
                text = path.read_bytes()
            except OSError:
                continue
            is_told = True
            ends.update(filter(self._is_ours, _established(text)))
        number = sum(client_ports is None or self._client_port(each) in client_ports for each in ends)
        return number if is_told else None

    def _client_port(self, ends: tuple[bytes, bytes]) -> int:
        """Of a socket of ours: the port at the client's end."""
        local, remote = ends
        return int((remote if self._is_local else local).rpartition(b":")[2], 16)

    def _is_ours(self, ends: tuple[bytes, bytes]) -> bool:
        """Whether a socket is the broker's (one on this machine), or of this machine towards the broker."""
        local, remote = ends
        address, _, port = (local if self._is_local else remote).rpartition(b":")
        return port in self._ports and (self._is_local or _plain(address) in self._addresses)


def _established(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Local and remote end of each established connection, as the kernel writes them."""
    for line in text.splitlines()[1:]:
        _, local, remote, state, _ = line.split(None, 4)
        if state == ESTABLISHED:
            yield local, remote


def _plain(written: bytes) -> bytes:
    """An address's bytes in network order: the kernel writes 32 bits at a time in the machine's own order."""
    words = struct.unpack(f">{len(written) // 8}I", bytes.fromhex(written.decode()))
    address = struct.pack(f"={len(words)}I", *words)
    return address[len(MAPPED) :] if address.startswith(MAPPED) and len(address) > 4 else address


def _addresses(host: str) -> Iterator[bytes]:
    """The addresses that a host's name stands for; none where it cannot be resolved."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return
    for family, *_, address in found:
        yield socket.inet_pton(family, str(address[0]).partition("%")[0])
