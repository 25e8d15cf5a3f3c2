"""Kafka's protocol on a plain socket: one connection, the rare frames (through kio) and who leads which partition.

The hot frames are made and parsed elsewhere; here their bytes are moved, never waiting. Rare frames are called and
waited for. Versions are fixed: each is spoken by brokers from 2.3 to 4.x.
"""

from __future__ import annotations

import io
import select
import socket
import ssl
import struct
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from kio.index import load_response_from_request
from kio.schema.api_versions.v0.request import ApiVersionsRequest
from kio.schema.errors import ErrorCode
from kio.schema.metadata.v5.request import MetadataRequest
from kio.schema.sasl_authenticate.v1.request import SaslAuthenticateRequest
from kio.schema.sasl_handshake.v1.request import SaslHandshakeRequest
from kio.serial import entity_reader, entity_writer

from loadgen.drivers.kafka_config import CLIENT_ID, CONNECT_TIMEOUT_S
from loadgen.errors import BrokerError
from loadgen.tls import client_context, failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kio.static.protocol import RequestPayload

    from loadgen.driver import UInt8
    from loadgen.endpoint import Endpoint

# The last layouts that need no parsing of optional parts; both brought zstd, and Kafka 2.1 to 4.x speak them.
API_PRODUCE, PRODUCE_VERSION = 0, 7
API_FETCH, FETCH_VERSION = 1, 10
CALL_TIMEOUT_S = 10.0
MAX_FRAME_BYTES = 1 << 30
FIRST_BUFFER_BYTES = 64 << 10
SLACK_BYTES = 16  # parsers read whole words and may look this far beyond a frame's end
_SENDMSG_BUFFERS = 64
_MAX_SELECT_FD = 1000
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class LinkError(Exception):
    """A connection that broke, stalled or spoke nonsense: worth a retry elsewhere or later."""


def error_name(code: int) -> str:
    """Kafka's own name of an error code."""
    try:
        return ErrorCode(code).name.upper()
    except ValueError:
        return f"ERROR_{code}"


def is_retriable(code: int) -> bool:
    """Whether Kafka says that trying again may help."""
    try:
        return ErrorCode(code).retriable
    except ValueError:
        return False


def wait(connections: Sequence[Connection], timeout_s: float) -> None:
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


class Connection:
    """One connection to one broker, opened and authenticated; after that it never blocks but in `call`."""

    def __init__(self, endpoint: Endpoint, host: str, port: int) -> None:
        self.address = f"{host}:{port}"
        self.written_bytes = 0
        self.queued_bytes = 0
        self._correlation = 0
        self._out: deque[memoryview] = deque()
        self._resize(FIRST_BUFFER_BYTES)
        self._begin = self._end = 0  # what was read and not yet taken
        self._socket = self._connect(endpoint, host, port)
        self._socket.setblocking(False)
        self._plain = not isinstance(self._socket, ssl.SSLSocket)
        try:
            if endpoint.credentials is not None:
                self._authenticate(endpoint.credentials.username, endpoint.credentials.password)
        except BaseException:
            self.close()
            raise

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
            raise BrokerError(f"kafka at {self.address}: {failure(error, 'kafka')}") from None
        except OSError as error:
            plain.close()
            raise LinkError(failure(error, "kafka")) from None

    def _authenticate(self, username: str, password: str) -> None:
        shake = self.call(SaslHandshakeRequest(mechanism="PLAIN"))
        if shake.error_code:
            offered = ", ".join(shake.mechanisms) or "nothing"
            raise BrokerError(f"kafka at {self.address}: for a user's login it offers {offered}; expected PLAIN")
        token = b"\0" + username.encode() + b"\0" + password.encode()
        answer = self.call(SaslAuthenticateRequest(auth_bytes=token))
        if answer.error_code:
            raise BrokerError(f"kafka at {self.address}: user {username!r} was refused; check name and password")

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    @property
    def has_output(self) -> bool:
        """Whether bytes wait for room in the socket."""
        return bool(self._out)

    def next_correlation(self) -> int:
        """A number for the next request, returned with its response."""
        self._correlation = (self._correlation + 1) & 0x7FFFFFFF
        return self._correlation

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
            raise LinkError("the broker closed the connection; without TLS or a user, it may want them")
        self._end += count
        return True

    def frame(self) -> tuple[int, int] | None:
        """Where in `buffer` the next whole response begins and ends (without its length), if it is there."""
        ready = self._end - self._begin
        if ready < 4:
            return None
        (size_bytes,) = struct.unpack_from(">i", self._view, self._begin)
        if not 4 <= size_bytes <= MAX_FRAME_BYTES:
            raise LinkError("answers in another protocol than Kafka's (a TLS or a wrong port?)")
        if ready < 4 + size_bytes:
            if self._begin + 4 + size_bytes > self._capacity:
                self._make_room(4 + size_bytes)
            return None
        begin = self._begin + 4
        self._begin = begin + size_bytes
        return begin, self._begin

    @property
    def is_mid_frame(self) -> bool:
        """Whether part of a response has been read."""
        return self._end > self._begin

    def _resize(self, capacity: int) -> None:
        self.buffer: UInt8 = np.empty(capacity + SLACK_BYTES, np.uint8)
        self._view = self.buffer.data
        self._capacity = capacity

    def _make_room(self, frame_bytes: int) -> None:
        """Move what is unread to the front, of a larger buffer if a frame needs one."""
        rest = self.buffer[self._begin : self._end]
        if frame_bytes > self._capacity:
            self._resize(1 << (frame_bytes - 1).bit_length())
        elif self._begin == 0:
            self._resize(self._capacity * 2)
        self.buffer[: len(rest)] = rest.copy()
        self._begin, self._end = 0, len(rest)

    def post(self, request: RequestPayload) -> int:
        """Begin to send a rare request; the number that its response will have."""
        correlation = self.next_correlation()
        self.queue([encode(request, correlation)])
        self.write()
        return correlation

    def call(self, request: RequestPayload, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Send a rare request and wait for its response; only while no other request is under way here."""
        correlation = self.post(request)
        deadline = time.monotonic() + timeout_s
        while True:
            self.write()
            while (found := self.frame()) is None and self.read():
                pass
            if found is not None:
                return self.decode(request, correlation, found)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise LinkError(f"no answer within {timeout_s:g} s")
            wait([self], left_s)

    def decode(self, request: RequestPayload, correlation: int, found: tuple[int, int]) -> Any:
        """The response to a rare request, from the frame that was found."""
        begin, end = found
        (got,) = struct.unpack_from(">i", self._view, begin)
        if got != correlation:
            raise LinkError(f"response {got} came where {correlation} was expected")
        response_type = load_response_from_request(request)
        try:
            response, _ = entity_reader(cast("Any", response_type))(bytes(self._view[begin + 4 : end]), 0)
        except Exception as error:  # noqa: BLE001 - kio has no common base for what a damaged frame raises
            raise LinkError(f"its {response_type.__name__} cannot be read: {error}") from None
        return response

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


def encode(request: RequestPayload, correlation: int) -> bytes:
    """A rare request as one frame; only versions before the flexible ones, whose headers are alike."""
    assert not request.__flexible__, "the fixed versions are all from before tagged fields"
    body = io.BytesIO()
    entity_writer(type(request))(body, request)
    name = CLIENT_ID.encode()
    head = struct.pack(">hhih", request.__api_key__, request.__version__, correlation, len(name)) + name
    return struct.pack(">i", len(head) + body.tell()) + head + body.getvalue()


def open_any(endpoint: Endpoint, addresses: Sequence[tuple[str, int]]) -> Connection:
    """A connection to the first address that answers; LinkError with the last one's reason."""
    failure = LinkError("no address")
    for host, port in addresses:
        try:
            return Connection(endpoint, host, port)
        except LinkError as error:
            failure = error
    raise failure


def check(endpoint: Endpoint) -> None:
    """BrokerError in one line if the endpoint cannot be reached, does not let us in, or is too old."""
    connection: Connection | None = None
    try:
        connection = open_any(endpoint, endpoint.hosts)
        check_versions(connection)
        # Versions are told to anybody; this is not.
        connection.call(MetadataRequest(topics=(), allow_auto_topic_creation=False))
    except LinkError as error:
        raise BrokerError(f"kafka at {endpoint.address}: {error}") from None
    finally:
        if connection is not None:
            connection.close()


def check_versions(connection: Connection) -> None:
    """BrokerError if the broker does not speak the versions that the hot frames are written in."""
    answer = connection.call(ApiVersionsRequest())
    spoken = {int(each.api_key): (int(each.min_version), int(each.max_version)) for each in answer.api_keys}
    for name, api, version in (("Produce", API_PRODUCE, PRODUCE_VERSION), ("Fetch", API_FETCH, FETCH_VERSION)):
        lowest, highest = spoken.get(api, (0, -1))
        if not lowest <= version <= highest:
            raise BrokerError(
                f"kafka at {connection.address}: speaks {name} {lowest} to {highest}; expected {version} "
                "(Kafka 2.1 and later)"
            )
