"""One AMQP 0-9-1 connection with one channel, on a plain non-blocking socket.

The handshake and every other rare frame go through pika's codec. Waiting is `select` alone: no thread, so that it
works under gevent, and microseconds where `poll` and `epoll` round up to milliseconds.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from pika import frame, spec

from loadgen.drivers.rabbitmq_admin import CLIENT_PROPERTIES, PORT_QUESTION, credentials_of, refused_text
from loadgen.drivers.wire.amqp_deliveries import RESERVE_BYTES, decode
from loadgen.drivers.wire.amqp_frames import CHANNEL, FRAME_END, FRAME_HEAD, MAX_FRAME_BYTES, Frame, encode
from loadgen.errors import BrokerError, LoadgenError, TrialError
from loadgen.tls import client_context
from loadgen.tls import failure as tls_failure

if TYPE_CHECKING:
    from loadgen.driver import UInt8
    from loadgen.endpoint import Endpoint

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
BUFFER_BYTES = 512 << 10
_SECOND_NS = 1_000_000_000
_NEVER_NS = 1 << 62
_SELECT_MAX_FD = 1024  # select's own limit (FD_SETSIZE)
_HEARTBEAT: bytes = frame.Heartbeat().marshal()


class ClosedByBrokerError(TrialError):
    """The broker closed the connection or the channel, with a code and a reason."""

    def __init__(self, address: str, what: str, code: int, reason: str) -> None:
        super().__init__(f"rabbitmq at {address} closed the {what}: {code} {reason}".replace("\n", " "))
        self.code = code


class LostError(TrialError):
    """The socket ended without the broker saying why."""


class Connection:
    """A connection whose received bytes lie in `buffer[begin:end]` until they have been parsed.

    `raw` and `buffer` are the same bytes, for struct and for numpy. From `beat_due_ns` on, `beat` has something to do.
    `blocked` is whether the broker asked to publish no more (connection.blocked or channel.flow). `has_unsent` is
    whether bytes wait for the socket: until they have left, nothing more may be written.
    """

    def __init__(self, endpoint: Endpoint, heartbeat_s: int) -> None:
        self.blocked = False
        self._own(bytearray(BUFFER_BYTES))
        self.begin = self.end = RESERVE_BYTES
        self.frame_max = 0
        self._endpoint = endpoint
        self._unsent: memoryview | None = None
        self._heartbeat_ns = 0
        self._has_heard = True
        self._silent_since_ns = 0
        self.beat_due_ns = _NEVER_NS
        self._is_tls = endpoint.tls is not None
        self._address = endpoint.address
        self._socket = self._connect()
        self._reads = (self._socket.fileno(),)
        try:
            self._handshake(heartbeat_s)
        except BaseException:
            self._socket.close()
            raise

    # --- opening ---

    def _connect(self) -> socket.socket:
        context = None if self._endpoint.tls is None else client_context(self._endpoint.tls)
        failure: OSError | None = None
        for host, port in self._endpoint.hosts:
            try:
                plain = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
            except OSError as error:
                failure = error
                continue
            self._address = f"{host}:{port}"
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is None:
                plain.setblocking(False)
                return plain
            try:
                wrapped = context.wrap_socket(plain, server_hostname=host)
            except OSError as error:  # ssl.SSLError is one
                plain.close()
                raise BrokerError(f"rabbitmq at {self._address}: {tls_failure(error, 'rabbitmq')}") from None
            wrapped.setblocking(False)
            return wrapped
        assert failure is not None, "an endpoint has at least one host"
        raise BrokerError(f"rabbitmq at {self._address} cannot be reached: {_reason(failure)}; {PORT_QUESTION}")

    def _handshake(self, heartbeat_s: int) -> None:
        """From the protocol header to an open channel; raises BrokerError in one line."""
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        try:
            self._send_all(frame.ProtocolHeader().marshal(), deadline)
            start = self._expect(spec.Connection.Start, deadline)
            tune = self._login(start, deadline)
            self.frame_max = tune.frame_max or spec.FRAME_MAX_SIZE
            # The smaller of both, where neither is 0; the user's 0 is off.
            heartbeat_s = min(heartbeat_s, tune.heartbeat or heartbeat_s)
            self._heartbeat_ns = heartbeat_s * _SECOND_NS
            tuned = spec.Connection.TuneOk(tune.channel_max, self.frame_max, heartbeat_s)
            opened = spec.Connection.Open(self._endpoint.virtual_host)
            self._send_all(encode(tuned, 0) + encode(opened, 0), deadline)
            self._expect(spec.Connection.OpenOk, deadline)
            self._send_all(encode(spec.Channel.Open()), deadline)
            self._expect(spec.Channel.OpenOk, deadline)
        except LostError as error:
            raise BrokerError(f"{error} during the handshake; {PORT_QUESTION}") from None
        except TrialError as error:  # nothing runs yet: what went wrong is for the person who set it up
            raise BrokerError(str(error)) from None
        self._silent_since_ns = time.monotonic_ns()
        self.beat_due_ns = self._silent_since_ns + self._heartbeat_ns // 2 if heartbeat_s else _NEVER_NS

    def _login(self, start: Any, deadline: float) -> Any:
        """Log in by SASL PLAIN; the broker's tuning."""
        mechanism, response = credentials_of(self._endpoint).response_for(start)
        if mechanism is None:
            raise BrokerError(f"rabbitmq at {self._address} offers no login with user and password (SASL PLAIN)")
        self._send_all(encode(spec.Connection.StartOk(CLIENT_PROPERTIES, mechanism, response, "en_US"), 0), deadline)
        try:
            return self._expect(spec.Connection.Tune, deadline)
        except (ClosedByBrokerError, LostError):  # a brokers refuses by a close, an old one by hanging up
            raise BrokerError(refused_text(self._endpoint, self._address)) from None

    # --- control plane ---

    def call(self, method: Any, answer: type[Any], channel: int = CHANNEL) -> Any:
        """Send one method on a channel and wait for its answer; raises BrokerError in one line."""
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        try:
            self._send_all(encode(method, channel), deadline)
            return self._expect(answer, deadline)
        except TrialError as error:
            raise BrokerError(str(error)) from None

    def open_channels(self, count: int) -> range:
        """So many channels, of which the first is open already; their numbers. Raises BrokerError in one line."""
        numbers = range(CHANNEL, CHANNEL + count)
        for number in numbers[1:]:
            self.call(spec.Channel.Open(), spec.Channel.OpenOk, number)
        return numbers

    def _expect(self, answer: type[Any], deadline: float) -> Any:
        """The next method of this kind; what else comes before it is handled."""
        while True:
            found = self.take_frame()
            if found is None:
                if not self.read():
                    self._wait_until(deadline)
                continue
            if isinstance(getattr(found, "method", None), answer):
                return found.method
            self.handle(found)

    def take_frame(self) -> Frame | None:
        """The next frame in the buffer by pika's codec, None if it is incomplete."""
        waiting = self.end - self.begin
        if waiting < FRAME_HEAD.size:
            return None
        kind, _, length = FRAME_HEAD.unpack_from(self.raw, self.begin)
        if kind not in {1, 2, 3, 8} or length > MAX_FRAME_BYTES:
            raise TrialError(f"{self._address} does not speak AMQP 0-9-1; {PORT_QUESTION}")
        frame_end = self.begin + FRAME_HEAD.size + length + 1
        if frame_end > self.end:
            return None
        found = decode(self.raw[self.begin : frame_end])
        self.begin = frame_end
        return found

    def handle(self, found: Frame) -> None:
        """A frame that no role expects: heartbeats, flow and blocking are heeded, a close raises TrialError."""
        method = getattr(found, "method", None)
        if isinstance(method, spec.Connection.Blocked):
            self.blocked = True
        elif isinstance(method, spec.Connection.Unblocked):
            self.blocked = False
        elif isinstance(method, spec.Channel.Flow):
            self.blocked = not method.active
            self.write_small(encode(spec.Channel.FlowOk(method.active), found.channel_number))
        elif isinstance(method, spec.Connection.Close | spec.Channel.Close):
            is_connection = isinstance(method, spec.Connection.Close)
            with contextlib.suppress(TrialError):
                if is_connection:
                    self.write_small(encode(spec.Connection.CloseOk(), 0))
                else:
                    self.write_small(encode(spec.Channel.CloseOk(), found.channel_number))
            what = "connection" if is_connection else "channel"
            raise ClosedByBrokerError(self._address, what, method.reply_code, method.reply_text)
        elif isinstance(method, spec.Basic.Cancel):
            raise TrialError(
                f"rabbitmq at {self._address} cancelled the consumer: its queue was deleted or its node went away"
            )

    def _send_all(self, encoded: bytes, deadline: float) -> None:
        self.write(memoryview(encoded))
        while self._unsent is not None:
            self._wait_until(deadline)
            self.write_on()

    def _wait_until(self, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TrialError(
                f"rabbitmq at {self._address} did not answer within {CONNECT_TIMEOUT_S:.0f} s; {PORT_QUESTION}"
            )
        self.wait(left_s)

    # --- data plane ---

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return self._unsent is not None

    @property
    def heartbeat_s(self) -> float:
        """The heartbeat agreed on, in seconds; 0 is off."""
        return self._heartbeat_ns / _SECOND_NS

    def read(self) -> int:
        """Take what has arrived, without waiting: how many bytes, 0 if none; raises TrialError at the end."""
        count = self._receive()
        if count is None:
            return 0
        if count == 0:
            raise self._lost(None)
        if self._is_tls:  # one record a call: take the others too, select does not see them
            while self.end < len(self._view) and (more := self._receive()):
                count += more
        self._has_heard = True
        return count

    def _receive(self) -> int | None:
        """One call's bytes into the buffer: how many, 0 at the end of the stream, None where nothing has arrived."""
        try:
            count = self._socket.recv_into(self._view[self.end :])
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError as error:
            raise self._lost(error) from None
        self.end += count
        return count

    def make_room(self, need_bytes: int) -> None:
        """Move what is not parsed to the buffer's front, and grow it where so many bytes do not fit."""
        rest = self.end - self.begin
        if need_bytes + RESERVE_BYTES > len(self.raw):
            grown = bytearray(2 * need_bytes + RESERVE_BYTES)
            grown[RESERVE_BYTES : RESERVE_BYTES + rest] = self._view[self.begin : self.end]
            self._own(grown)
        elif rest and self.begin != RESERVE_BYTES:
            self._view[RESERVE_BYTES : RESERVE_BYTES + rest] = self._view[self.begin : self.end]
        self.begin, self.end = RESERVE_BYTES, RESERVE_BYTES + rest

    def _own(self, raw: bytearray) -> None:
        """Receive into these bytes from now on."""
        raw[RESERVE_BYTES - 1] = FRAME_END  # what every frame finds before it
        self.raw = raw
        self.buffer: UInt8 = np.frombuffer(raw, np.uint8)
        self._view = memoryview(raw)

    def write(self, encoded: memoryview) -> None:
        """Write frames; what the socket does not take is kept (not copied) and goes first from then on."""
        assert self._unsent is None, "nothing may be written while bytes are unsent"
        self._unsent = encoded
        self.write_on()

    def write_small(self, encoded: bytes) -> None:
        """Write a small frame, behind what is unsent if need be."""
        if self._unsent is None:
            self.write(memoryview(encoded))
        else:
            self._unsent = memoryview(bytes(self._unsent) + encoded)
            self.write_on()

    def write_on(self) -> bool:
        """Go on with what is unsent, without waiting; whether nothing is left."""
        if self._unsent is None:
            return True
        try:
            count = self._socket.send(self._unsent)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            raise self._lost(error) from None
        self._unsent = self._unsent[count:] if count < len(self._unsent) else None
        return self._unsent is None

    def wait(self, timeout_s: float) -> bool:
        """Wait until bytes can be read (or, where some are unsent, written), at most so long; whether they can."""
        (number,) = self._reads
        writes = self._reads if self._unsent is not None else ()
        if number < _SELECT_MAX_FD:
            readable, writable, _ = select.select(self._reads, writes, (), timeout_s)
            return bool(readable or writable)
        poller = select.poll()
        poller.register(number, select.POLLIN | (select.POLLOUT if writes else 0))
        return bool(poller.poll(timeout_s * 1000))

    def read_within(self, timeout_s: float) -> int:
        """Read once something has arrived, at most so much later; how many bytes, 0 if none.

        Asking first is cheaper than an exception for each time that there is nothing.
        """
        if self._is_tls and (count := self.read()):  # what the TLS layer holds, select does not see
            return count
        if self._unsent is None and self._reads[0] < _SELECT_MAX_FD:  # nearly always: one call less
            return self.read() if select.select(self._reads, (), (), timeout_s)[0] else 0
        return self.read() if self.wait(timeout_s) else 0

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._reads[0]

    def channel_at_begin(self) -> int:
        """The channel of the next frame in the buffer; -1 where there is not even its head."""
        if self.end - self.begin < FRAME_HEAD.size:
            return -1
        channel: int = FRAME_HEAD.unpack_from(self.raw, self.begin)[1]
        return channel

    def beat(self, now_ns: int) -> None:
        """Send a heartbeat if one is due; raises TrialError if the broker has been silent for two of them."""
        if now_ns < self.beat_due_ns:
            return
        self.beat_due_ns = now_ns + self._heartbeat_ns // 2
        if self._unsent is None:
            self.write(memoryview(_HEARTBEAT))
        if self._has_heard:
            self._has_heard, self._silent_since_ns = False, now_ns
        elif now_ns - self._silent_since_ns > 2 * self._heartbeat_ns and not self.read():
            raise TrialError(
                f"rabbitmq at {self._address} has been silent for two heartbeats of {self.heartbeat_s:.0f} s"
            )

    def _lost(self, error: OSError | None) -> TrialError:
        """The connection's end as one line, with the broker's own reason where it managed to send one."""
        with contextlib.suppress(OSError, ValueError):
            while count := self._socket.recv_into(self._view[self.end :]):
                self.end += count
        try:
            while (found := self.take_frame()) is not None:
                if isinstance(getattr(found, "method", None), spec.Connection.Close):
                    return ClosedByBrokerError(
                        self._address, "connection", found.method.reply_code, found.method.reply_text
                    )
        except TrialError:
            pass
        reason = "" if error is None else f" ({_reason(error)})"
        return LostError(f"rabbitmq at {self._address} hung up without giving a reason{reason}")

    def crash(self) -> None:
        """Close the socket without a word, as the system does for a process that was killed; never raises."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def close(self) -> None:
        """Say goodbye and close, within `CLOSE_TIMEOUT_S`; never raises."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        with contextlib.suppress(LoadgenError, OSError, ValueError, AssertionError):
            while self._unsent is not None:
                self._wait_until(deadline)
                self.write_on()
                self._hear_goodbye(deadline)  # a broker that waits to write would not read
            self._send_all(encode(spec.Connection.Close(200, "Goodbye", 0, 0), 0), deadline)
            while not self._hear_goodbye(deadline):
                self._wait_until(deadline)
        with contextlib.suppress(OSError):
            self._socket.close()

    def _hear_goodbye(self, deadline: float) -> bool:
        """Drop what has arrived; whether the broker's answer to our close was among it, or the connection's end."""
        while time.monotonic() < deadline:
            while (found := self.take_frame()) is not None:
                if isinstance(getattr(found, "method", None), spec.Connection.CloseOk | spec.Connection.Close):
                    return True
            self.make_room(1)
            if not self.read():
                return False
        return False


def _reason(error: OSError) -> str:
    """The operating system's own words."""
    if isinstance(error, ssl.SSLError):
        return str(getattr(error, "verify_message", "") or error.reason or error).replace("\n", " ")
    return (error.strerror or str(error) or type(error).__name__).replace("\n", " ")
