"""A port mapper for Erlang nodes that sends whoever looks for some of them to other ports: those of a proxy's gates.

Erlang nodes register their distribution port by name with epmd, and find each other by asking it. This one keeps their
registrations as Erlang's own does, and names a gate in place of the port where there is one for the name. It speaks
what nodes and RabbitMQ's tools ask: register (until the connection ends), one port by name, all names.

The protocol is in the documentation of Erlang/OTP's erts, "Distribution Protocol". Numbers are big-endian, and a
request has its length in two bytes before it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.brokers.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping

REGISTER, PORT_OF, NAMES = 120, 122, 110  # ALIVE2_REQ, PORT_PLEASE2_REQ, NAMES_REQ
REGISTERED, PORT_IS = 118, 119  # ALIVE2_X_RESP, as from OTP 23, and PORT2_RESP
FIRST_CREATION = 4  # nodes before OTP 23 had 1 to 3
_FIXED = struct.Struct(">HBBHH")  # port, type of node, protocol, highest and lowest version
_LENGTH = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class _Node:
    port: int
    kind: int
    protocol: int
    highest: int
    lowest: int
    name: bytes
    extra: bytes

    @classmethod
    def parse(cls, data: bytes) -> _Node:
        """From a registration; struct.error where it is none."""
        port, kind, protocol, highest, lowest = _FIXED.unpack_from(data)
        return cls(port, kind, protocol, highest, lowest, *_counted(data, _FIXED.size))

    def told(self, port: int) -> bytes:
        """As who looks for it is answered, with another port."""
        fixed = _FIXED.pack(port, self.kind, self.protocol, self.highest, self.lowest)
        return fixed + b"".join(_LENGTH.pack(len(each)) + each for each in (self.name, self.extra))


def _counted(data: bytes, at: int) -> tuple[bytes, bytes]:
    """Two strings one after the other, each behind its length."""
    (size,) = _LENGTH.unpack_from(data, at)
    (rest,) = _LENGTH.unpack_from(data, at + _LENGTH.size + size)
    begin = at + _LENGTH.size
    return data[begin : begin + size], data[begin + size + _LENGTH.size :][:rest]


class PortMapper:
    """Answers nodes; `gates` are ports by the names of nodes, in place of those that these listen on."""

    def __init__(self, gates: Mapping[str, int]) -> None:
        self._gates = {name.encode(): port for name, port in gates.items()}
        self._nodes: dict[bytes, _Node] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request, and for a registered node as long as it lives."""
        registered: bytes | None = None
        with suppress(asyncio.IncompleteReadError, ConnectionError, struct.error):  # who says something else is let go
            (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            request = await reader.readexactly(size)
            kind, rest = request[:1], request[1:]
            if kind == bytes([REGISTER]):
                answer, registered = self._register(_Node.parse(rest))
            elif kind == bytes([PORT_OF]):
                answer = self._port_of(rest)
            elif kind == bytes([NAMES]):
                answer = self._names(writer.get_extra_info("sockname")[1])
            else:
                answer = b""
            writer.write(answer)
            await writer.drain()
            if registered is not None:
                await reader.read()
        if registered is not None:
            del self._nodes[registered]
        writer.close()

    def _register(self, node: _Node) -> tuple[bytes, bytes | None]:
        is_taken = node.name in self._nodes
        if not is_taken:
            self._nodes[node.name] = node
        creation = FIRST_CREATION + secrets.randbelow((1 << 32) - FIRST_CREATION)  # tells a node from its forerunner
        return struct.pack(">BBI", REGISTERED, is_taken, creation), None if is_taken else node.name

    def _port(self, node: _Node) -> int:
        return self._gates.get(node.name, node.port)

    def _port_of(self, name: bytes) -> bytes:
        node = self._nodes.get(name)
        return bytes([PORT_IS, 1]) if node is None else bytes([PORT_IS, 0]) + node.told(self._port(node))

    def _names(self, own_port: int) -> bytes:
        lines = [b"name %s at port %d\n" % (node.name, self._port(node)) for node in self._nodes.values()]
        return struct.pack(">I", own_port) + b"".join(lines)


async def serve(port: int, gates: Mapping[str, int]) -> None:
    """Answer on a port of this machine until it is killed."""
    server = await asyncio.start_server(PortMapper(gates).serve, HOST, port)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve; the arguments are the port, and the gates by names of nodes as JSON."""
    asyncio.run(serve(int(sys.argv[1]), json.loads(sys.argv[2])))


if __name__ == "__main__":
    main()
