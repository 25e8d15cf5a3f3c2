"""A socket between two processes that carries messages: dictionaries of plain values, one after another.

The same class serves both ends. In Locust's process `socket` and `threading` are gevent's, so that waiting lets other
greenlets run; in a native one they are the system's.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Any

import msgpack

_LENGTH = struct.Struct(">I")
_READ_BYTES = 1 << 18


class Line:
    """One end; `send` from any thread (or greenlet), `receive` from one."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()

    def send(self, kind: str, **data: Any) -> None:
        """Send a message; raises OSError where nobody is at the other end."""
        packed = msgpack.packb({"kind": kind, **data})
        with self._lock:
            self._socket.sendall(_LENGTH.pack(len(packed)) + packed)

    def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end, however it came."""
        head = self._read(_LENGTH.size)
        body = None if head is None else self._read(_LENGTH.unpack(head)[0])
        if body is None:
            return None
        message: dict[str, Any] = msgpack.unpackb(body, strict_map_key=False)
        return message

    def _read(self, size: int) -> bytearray | None:
        data = bytearray()
        while len(data) < size:
            try:
                read = self._socket.recv(min(_READ_BYTES, size - len(data)))
            except OSError:
                return None
            if not read:
                return None
            data += read
        return data

    def close_sending(self) -> None:
        """Say that nothing more comes from here; what the other end still says can be received."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close this end; the other one sees the end."""
        self._socket.close()
