"""One connection to a RabbitMQ node's stream listener: its opening, its heartbeats, and calls that are waited for."""

from __future__ import annotations

import contextlib
import struct
import time
from collections import deque
from typing import TYPE_CHECKING

from loadgen.drivers.rabbitmq_admin import PORT_QUESTION, credentials_of, refused_text
from loadgen.drivers.wire.framed import FIRST_BUFFER_BYTES, SLACK_BYTES, FramedConnection, LinkError, wait
from loadgen.drivers.wire.stream_protocol import (
    KEY,
    MAX_FRAME_BYTES,
    RESPONSE_BIT,
    Code,
    Key,
    Metadata,
    Reader,
    StreamError,
    answer,
    blob,
    code_name,
    command,
    properties,
    request,
    text,
    texts,
)
from loadgen.errors import BrokerError, LoadgenError, TrialError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadgen.driver import UInt8
    from loadgen.endpoint import Endpoint

CALL_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
AVAILABLE_WITHIN_S = 5.0  # a stream just made, or whose node just started, may take a moment
_PAUSE_S = 0.02
_SECOND_NS = 1_000_000_000
_NEVER_NS = 1 << 62
_MECHANISM = "PLAIN"
_HEARTBEAT = command(Key.HEARTBEAT)
_CORRELATED = struct.Struct(">HHI")
_REFUSALS = {Code.AUTHENTICATION_FAILURE, Code.SASL_ERROR}


class StreamConnection(FramedConnection):
    """An opened connection; what ends it raises BrokerError while it opens or is called, TrialError after.

    `early` holds frames (without their length) that came while a call was waited for and are somebody else's.
    From `beat_due_ns` on, `beat` has something to do.
    """

    BROKER = "rabbitmq"
    PROTOCOL = "RabbitMQ's streams"
    ENDED = PORT_QUESTION.replace("AMQP", "stream")
    LARGEST_BYTES = 1 << 28  # less than what TLS's first bytes would be as a length

    def __init__(
        self, endpoint: Endpoint, host: str, port: int, heartbeat_s: int = 0, buffer_bytes: int = FIRST_BUFFER_BYTES
    ) -> None:
        self._endpoint = endpoint
        self._correlation = 0
        self.early: deque[bytes] = deque()
        self._spare: UInt8 | None = None
        self.frame_max = MAX_FRAME_BYTES
        self.beat_due_ns = _NEVER_NS
        self._heartbeat_ns = 0
        self._heard_ns = self._written_before = 0
        self.advertised: tuple[str, int] | None = None
        self.server_properties: dict[str, str] = {}
        try:
            super().__init__(endpoint, host, port, buffer_bytes)
        except LinkError as error:
            raise BrokerError(f"rabbitmq at {host}:{port} (streams): {error}") from None
        try:
            self._open(heartbeat_s)
        except struct.error:
            self.close()
            raise BrokerError(f"rabbitmq at {self.address} answers in another protocol than {self.PROTOCOL}") from None
        except BaseException:
            self.close()
            raise

    # --- opening ---

    def _open(self, heartbeat_s: int) -> None:
        self.server_properties = self.call(Key.PEER_PROPERTIES, properties({"product": "loadgen"})).properties()
        offered = self.call(Key.SASL_HANDSHAKE).texts()
        if _MECHANISM not in offered:
            raise BrokerError(f"rabbitmq at {self.address} offers {', '.join(offered) or 'no login'}; expected PLAIN")
        self._login()
        tuned = Reader(self._await_tune())
        frame_max, heartbeat = tuned.number("I"), tuned.number("I")
        self.frame_max = min(frame_max or MAX_FRAME_BYTES, MAX_FRAME_BYTES)
        # The smaller of both, where neither is 0; the user's 0 is off.
        heartbeat_s = min(heartbeat_s, heartbeat or heartbeat_s)
        self._post(command(Key.TUNE, struct.pack(">II", self.frame_max, heartbeat_s)))
        opened = self.call(Key.OPEN, text(self._endpoint.virtual_host)).properties()
        if "advertised_host" in opened and opened.get("advertised_port", "").isdigit():
            self.advertised = opened["advertised_host"], int(opened["advertised_port"])
        if heartbeat_s:
            self._heartbeat_ns = heartbeat_s * _SECOND_NS
            self._heard_ns = time.monotonic_ns()
            self.beat_due_ns = self._heard_ns + self._heartbeat_ns // 2

    def _login(self) -> None:
        credentials = credentials_of(self._endpoint)
        token = f"\0{credentials.username}\0{credentials.password}".encode()
        try:
            self.call(Key.SASL_AUTHENTICATE, text(_MECHANISM) + blob(token))
        except StreamError as error:
            if error.code == Code.SASL_AUTHENTICATION_FAILURE_LOOPBACK:
                raise BrokerError(
                    f"rabbitmq at {self.address} lets user {credentials.username} in from its own machine only; "
                    "expected another user"
                ) from None
            if error.code in _REFUSALS:
                raise BrokerError(refused_text(self._endpoint, self.address)) from None
            raise

    def _await_tune(self) -> bytes:
        while True:
            for place, frame in enumerate(self.early):
                if KEY.unpack_from(frame)[0] == Key.TUNE:
                    del self.early[place]
                    return frame[KEY.size :]
            self.early.append(self.await_frame(CALL_TIMEOUT_S))

    # --- control plane ---

    def call(self, key: Key, body: bytes = b"") -> Reader:
        """Send a request and wait for its answer, placed behind its code.

        Raises StreamError where the broker refuses, BrokerError where it does not answer.
        """
        reader = self.ask(key, body)
        code = reader.number("H")
        if code != Code.OK:
            raise StreamError(self.address, key.name.lower().replace("_", " "), code)
        return reader

    def ask(self, key: Key, body: bytes = b"") -> Reader:
        """The same, placed before the code: Metadata has none."""
        self._correlation = correlation = (self._correlation + 1) & 0x7FFFFFFF
        self._post(request(key, correlation, body))
        wanted = _CORRELATED.pack(key | RESPONSE_BIT, 1, correlation)
        while True:
            frame = self.await_frame(CALL_TIMEOUT_S)
            if frame.startswith(wanted):
                return Reader(frame[_CORRELATED.size :])
            try:
                if not self.handle(frame):
                    self.early.append(frame)
            except TrialError as error:  # nothing runs yet, or no more: what went wrong is for who asked
                raise BrokerError(str(error)) from None

    def post(self, key: Key, body: bytes) -> int:
        """Send a request and do not wait; the correlation that its answer will have."""
        self._correlation = (self._correlation + 1) & 0x7FFFFFFF
        self.send(request(key, self._correlation, body))
        return self._correlation

    def metadata(self, streams: Sequence[str]) -> Metadata:
        """Where the streams are led; waits a moment for those that are not there yet, then raises BrokerError."""
        deadline = time.monotonic() + AVAILABLE_WITHIN_S
        while True:
            found = Metadata.read(self.ask(Key.METADATA, texts(streams)))
            if not found.missing:
                return found
            stream, code = next(iter(found.missing.items()))
            if code != Code.STREAM_NOT_AVAILABLE or time.monotonic() > deadline:
                raise StreamError(self.address, f"stream {stream}", code)
            time.sleep(_PAUSE_S)

    def _post(self, encoded: bytes) -> None:
        try:
            self.send(encoded)
        except TrialError as error:
            raise BrokerError(str(error)) from None

    def await_frame(self, timeout_s: float) -> bytes:
        """The next frame, copied; BrokerError after so long."""
        deadline = time.monotonic() + timeout_s
        try:
            while (found := self.frame()) is None:
                if self.read():
                    continue
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise BrokerError(f"rabbitmq at {self.address} (streams): no answer; {self.ENDED}")
                wait([self], left_s)
                self.write()
        except TrialError as error:
            raise BrokerError(str(error)) from None
        return bytes(self._view[found[0] : found[1]])

    # --- data plane ---

    def send(self, encoded: bytes | memoryview) -> None:
        """Write a frame behind what waits; a view must stay as it is until written."""
        self.queue([encoded])
        self.write()

    def read(self) -> bool:
        """As its parent does; raises TrialError where the connection has ended."""
        try:
            return super().read()
        except LinkError as error:
            raise self._lost(error) from None

    def write(self) -> None:
        """As its parent does; raises TrialError where the connection has ended."""
        try:
            super().write()
        except LinkError as error:
            raise self._lost(error) from None

    def frame(self) -> tuple[int, int] | None:
        """As its parent does; raises TrialError where no stream protocol is spoken."""
        try:
            return super().frame()
        except LinkError as error:
            raise self._lost(error) from None

    def _make_room(self, frame_bytes: int) -> None:
        """Move what is unread to the front of another buffer: frames taken before are handed out until the next read.

        Two buffers take turns.
        """
        rest, taken = self.buffer[self._begin : self._end], self.buffer
        need = max(frame_bytes, len(rest) + 1)
        if self._spare is None or len(self._spare) - SLACK_BYTES < need:
            self._resize(max(self._capacity, 1 << (need - 1).bit_length()))
        else:
            self._own(self._spare)
        self.buffer[: len(rest)] = rest
        self._begin, self._end = 0, len(rest)
        self._spare = taken

    def _lost(self, error: LinkError) -> TrialError:
        return TrialError(f"rabbitmq at {self.address} (streams): {error}")

    def handle(self, frame: bytes) -> bool:
        """Heed a frame that no role expects; False where it is not the connection's business either.

        Raises TrialError where the broker closes, or says that a stream has gone.
        """
        key, _ = KEY.unpack_from(frame)
        if key == Key.HEARTBEAT:
            return True
        reader = Reader(frame[KEY.size :])
        if key == Key.CLOSE:
            correlation, code, reason = reader.number("I"), reader.number("H"), reader.text()
            with contextlib.suppress(TrialError):
                self.send(answer(Key.CLOSE, correlation, Code.OK))
            raise TrialError(f"rabbitmq at {self.address} closed the connection: {code_name(code)} {reason}".rstrip())
        if key == Key.METADATA_UPDATE:
            code, stream = reader.number("H"), reader.text()
            raise TrialError(
                f"rabbitmq at {self.address}: stream {stream} has gone ({code_name(code)}): it was deleted, or its "
                "leader went away"
            )
        return False

    def beat(self, now_ns: int, *, has_heard: bool) -> None:
        """Twice a heartbeat: send one if nothing else was; raises TrialError if the broker was silent for two."""
        if has_heard:
            self._heard_ns = now_ns
        if now_ns < self.beat_due_ns:
            return
        self.beat_due_ns = now_ns + self._heartbeat_ns // 2
        if self.written_bytes == self._written_before and not self.has_output:
            self.send(_HEARTBEAT)
        self._written_before = self.written_bytes
        if now_ns - self._heard_ns > 2 * self._heartbeat_ns:
            silent_s = self._heartbeat_ns / _SECOND_NS
            raise TrialError(f"rabbitmq at {self.address} has been silent for two heartbeats of {silent_s:.0f} s")

    def leave(self) -> None:
        """Write what is unwritten, say goodbye and close, within `CLOSE_TIMEOUT_S`; never raises."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        with contextlib.suppress(LoadgenError, OSError, ValueError, struct.error):
            goodbye = self.post(Key.CLOSE, struct.pack(">H", Code.OK) + text("goodbye"))
            wanted = _CORRELATED.pack(Key.CLOSE | RESPONSE_BIT, 1, goodbye)
            while not self.await_frame(deadline - time.monotonic()).startswith(wanted):
                self.write()
        self.close()


def addresses(endpoint: Endpoint) -> list[tuple[str, int]]:
    """Where streams are spoken; BrokerError where that is not known."""
    if endpoint.stream_port is None:
        raise BrokerError(
            f"rabbitmq at {endpoint.address}: the port of its stream listener is not known; enable rabbitmq_stream "
            "there and set LOADGEN_RABBITMQ_STREAM_PORT, or give a URL rabbitmq-stream://host:5552"
        )
    return list(endpoint.stream_hosts or dict.fromkeys((host, endpoint.stream_port) for host, _ in endpoint.hosts))


def open_any(endpoint: Endpoint, heartbeat_s: int = 0, buffer_bytes: int = FIRST_BUFFER_BYTES) -> StreamConnection:
    """A connection to the first node that answers; BrokerError with the last one's reason."""
    failure: BrokerError | None = None
    for host, port in addresses(endpoint):
        try:
            return StreamConnection(endpoint, host, port, heartbeat_s, buffer_bytes)
        except BrokerError as error:
            failure = error
    assert failure is not None, "an endpoint has at least one host"
    raise failure


def open_leaders(
    endpoint: Endpoint, streams: Sequence[str], heartbeat_s: int, buffer_bytes: int = FIRST_BUFFER_BYTES
) -> dict[str, StreamConnection]:
    """For each stream a connection to its leader, which those with the same leader share; BrokerError if one fails."""
    first = open_any(endpoint, heartbeat_s, buffer_bytes)
    opened: dict[tuple[str, int] | None, StreamConnection] = {first.advertised: first}
    try:
        found = first.metadata(streams)
        if found.brokers == 1:  # whatever it calls itself, we are connected to it
            return dict.fromkeys(streams, first)
        for leader in dict.fromkeys(found.leaders.values()):
            if leader not in opened:
                opened[leader] = StreamConnection(endpoint, *leader, heartbeat_s, buffer_bytes)
    except BaseException:
        close_all(opened.values())
        raise
    if first.advertised not in found.leaders.values():
        first.leave()
    return {stream: opened[leader] for stream, leader in found.leaders.items()}


def close_all(connections: Iterable[StreamConnection]) -> None:
    """Leave each of them once."""
    for each in dict.fromkeys(connections):
        each.leave()
