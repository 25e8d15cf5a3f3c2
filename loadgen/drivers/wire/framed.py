"""A plain socket that carries frames of bytes behind their length, as Kafka's protocol and RabbitMQ's streams do.

Bytes are moved here and never waited for; what a frame says is known elsewhere.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from loadgen.errors import BrokerError
from loadgen.tls import client_context, failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadgen.driver import UInt8
    from loadgen.endpoint import BrokerName, Endpoint

CONNECT_TIMEOUT_S = 5.0
MAX_FRAME_BYTES = 1 << 30
FIRST_BUFFER_BYTES = 64 << 10
SLACK_BYTES = 16  # parsers read whole words and may look this far beyond a frame's end
_SENDMSG_BUFFERS = 64
_MAX_SELECT_FD = 1000
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class LinkError(Exception):
    """A connection that broke, stalled or spoke nonsense: worth a retry elsewhere or later."""


def wait(connections: Sequence[FramedConnection], timeout_s: float) -> None:
    """Wait until one of the connections can move bytes, or for `timeout_s`, exact to microseconds where possible."""
    readers = [each.fileno() for each in connections]
    writers = [each.fileno() for each in connections if each.has_output]
    if max(readers, default=0) < _MAX_SELECT_FD:
        # select() takes microseconds; poll() and epoll round up to whole milliseconds, which a pacer would feel.
        select.select(readers, writers, [], timeout_s)
        return
    poller = select.poll()
    for fd in readers:
        poller.register(fd, select.POLLIN | (select.POLLOUT if fd in writers else 0))
    poller.poll(timeout_s * 1000)


class FramedConnection:
    """One connection to one broker, connected when it is made; no call of it blocks after that but `finish`."""

    BROKER: ClassVar[BrokerName]
    PROTOCOL: ClassVar[str]  # as people are told where something else is spoken
    ENDED: ClassVar[str]  # what may be meant where the broker hangs up
    LARGEST_BYTES: ClassVar[int] = MAX_FRAME_BYTES

    def __init__(self, endpoint: Endpoint, host: str, port: int, buffer_bytes: int = FIRST_BUFFER_BYTES) -> None:
        self.address = f"{host}:{port}"
        self.written_bytes = 0
        self.queued_bytes = 0
        self._out: deque[memoryview] = deque()
        self._resize(buffer_bytes)
        self._begin = self._end = 0  # what was read and not yet taken
        self._socket = self._connect(endpoint, host, port)
        self._socket.setblocking(False)
        self._plain = not isinstance(self._socket, ssl.SSLSocket)

    def _connect(self, endpoint: Endpoint, host: str, port: int) -> socket.socket:
        try:
            plain = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
        except OSError as error:
            raise LinkError(_reason(error)) from None
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if endpoint.tls is None:
                return plain
            return client_context(endpoint.tls).wrap_socket(plain, server_hostname=host)
        except BrokerError:
            plain.close()
            raise
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise BrokerError(f"{self.BROKER} at {self.address}: {failure(error, self.BROKER)}") from None
        except OSError as error:
            plain.close()
            raise LinkError(failure(error, self.BROKER)) from None

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    @property
    def has_output(self) -> bool:
        """Whether bytes wait for room in the socket."""
        return bool(self._out)

    def queue(self, buffers: Iterable[bytes | memoryview]) -> None:
        """Take buffers to be written in order; they must stay as they are until written."""
        for each in buffers:
            self._out.append(memoryview(each))
            self.queued_bytes += len(each)

    def write(self) -> None:
        """Write as much as the socket takes now."""
        out = self._out
        while out:
            try:
                if self._plain:
                    count = self._socket.sendmsg(islice(out, _SENDMSG_BUFFERS))
                else:
                    count = self._socket.send(out[0])
            except _WOULD_BLOCK:
                return
            except OSError as error:
                raise LinkError(_reason(error)) from None
            self.written_bytes += count
            while out and count >= len(out[0]):
                count -= len(out.popleft())
            if count:
                out[0] = out[0][count:]

    def read(self) -> bool:
        """Read what the socket has now, once; False when it has nothing. Overwrites frames taken before."""
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._end == self._capacity:
            self._make_room(0)
        try:
            count = self._socket.recv_into(self._view[self._end : self._capacity])
        except _WOULD_BLOCK:
            return False
        except OSError as error:
            raise LinkError(_reason(error)) from None
        if not count:
            raise LinkError(f"the broker closed the connection; {self.ENDED}")
        self._end += count
        return True

    def frame(self) -> tuple[int, int] | None:
        """Where in `buffer` the next whole frame begins and ends (without its length), if it is there."""
        ready = self._end - self._begin
        if ready < 4:
            return None
        (size_bytes,) = struct.unpack_from(">i", self._view, self._begin)
        if not 4 <= size_bytes <= self.LARGEST_BYTES:
            raise LinkError(f"answers in another protocol than {self.PROTOCOL} (a TLS or a wrong port?)")
        if ready < 4 + size_bytes:
            if self._begin + 4 + size_bytes > self._capacity:
                self._make_room(4 + size_bytes)
            return None
        begin = self._begin + 4
        self._begin = begin + size_bytes
        return begin, self._begin

    @property
    def is_mid_frame(self) -> bool:
        """Whether part of a frame has been read."""
        return self._end > self._begin

    def _resize(self, capacity: int) -> None:
        self._own(np.empty(capacity + SLACK_BYTES, np.uint8))

    def _own(self, buffer: UInt8) -> None:
        """Read into this buffer from now on."""
        self.buffer = buffer
        self._view = buffer.data
        self._capacity = len(buffer) - SLACK_BYTES

    def _make_room(self, frame_bytes: int) -> None:
        """Move what is unread to the front, of a larger buffer if a frame needs one."""
        rest = self.buffer[self._begin : self._end]
        if frame_bytes > self._capacity:
            self._resize(1 << (frame_bytes - 1).bit_length())
        elif self._begin == 0:
            self._resize(self._capacity * 2)
        self.buffer[: len(rest)] = rest.copy()
        self._begin, self._end = 0, len(rest)

    def finish(self, timeout_s: float) -> None:
        """Say that nothing more is coming and wait until the broker has read it all and closes."""
        deadline = time.monotonic() + timeout_s
        try:
            self._socket.shutdown(socket.SHUT_WR)
            while (left_s := deadline - time.monotonic()) > 0:
                wait([self], left_s)
                while self.read():
                    self._begin = self._end
        except (LinkError, OSError):
            return

    def close(self) -> None:
        """Close; never raises."""
        self._out.clear()
        try:
            self._socket.close()
        except OSError:
            return


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; is the broker running there?"
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "the handshake failed").lower().replace("_", " ")
    return str(getattr(error, "strerror", None) or error or type(error).__name__).lower()
