"""A pika SelectConnection whose event loop turns when a driver is called, and not otherwise."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from pika import exceptions
from pika.adapters import select_connection

from loadgen.drivers.rabbitmq_admin import CONNECT_TIMEOUT_S, describe, parameters_of
from loadgen.errors import BrokerError, TrialError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.endpoint import Endpoint

CLOSE_TIMEOUT_S = 2.0
LOST = (exceptions.AMQPError, exceptions.ChannelError, OSError)


class SelectLoop:
    """A SelectConnection with one channel whose event loop turns only when it is pumped."""

    def __init__(self, endpoint: Endpoint, heartbeat_s: int, blocked_timeout_s: float | None = None) -> None:
        self.blocked = False
        self.endpoint = endpoint
        self._failure: str | None = None
        self._is_closed = False
        self._ioloop = select_connection.IOLoop()
        self._ioloop.activate_poller()
        self._connection: Any = None
        self.channel: Any = None
        try:
            self._open(heartbeat_s, blocked_timeout_s)
        except TrialError as error:
            self.close()
            raise BrokerError(str(error)) from None
        except BaseException:
            self.close()
            raise

    def _open(self, heartbeat_s: int, blocked_timeout_s: float | None) -> None:
        opened: list[Any] = []
        select_connection.SelectConnection.create_connection(
            parameters_of(self.endpoint, heartbeat_s, blocked_timeout_s), opened.append, self._ioloop
        )
        self.wait_for(lambda: bool(opened), "the connection")
        if isinstance(opened[0], BaseException):
            raise BrokerError(describe(self.endpoint, opened[0]))
        self._connection = opened[0]
        self._connection.add_on_close_callback(self._on_closed)
        self._connection.add_on_connection_blocked_callback(self._on_blocked)
        self._connection.add_on_connection_unblocked_callback(self._on_unblocked)
        channels: list[Any] = []
        channel = self._connection.channel(on_open_callback=channels.append)
        channel.add_on_close_callback(self._on_closed)
        self.wait_for(lambda: bool(channels), "a channel")
        self.channel = channel

    @property
    def unsent_bytes(self) -> int:
        """What pika holds because the socket takes no more."""
        transport = self._connection._transport  # noqa: SLF001 - pika offers no other way to see back-pressure
        return int(transport.get_write_buffer_size()) if transport is not None else 0

    def pump(self, timeout_s: float, is_done: Callable[[], bool]) -> None:
        """Turn the loop until `is_done` or for so long, at least once; raises TrialError if the broker ended it."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._turn(max(0.0, deadline - time.monotonic()))
            if self._failure is not None:
                raise TrialError(self._failure)
            if is_done() or time.monotonic() >= deadline:
                return

    def _turn(self, timeout_s: float) -> None:
        """Wait for one event or for so long, and serve what has come."""
        timer = self._ioloop.call_later(timeout_s, _nothing)
        try:
            self._ioloop.poll()
            self._ioloop.process_timeouts()
        except LOST as error:
            raise TrialError(describe(self.endpoint, error)) from None
        self._ioloop.remove_timeout(timer)

    def wait_for(self, is_done: Callable[[], bool], what: str) -> None:
        """Pump until `is_done`; raises TrialError if that takes too long."""
        self.pump(CONNECT_TIMEOUT_S, is_done)
        if not is_done():
            raise TrialError(
                f"rabbitmq at {self.endpoint.address} did not answer within {CONNECT_TIMEOUT_S:.0f} s "
                f"when asked for {what}"
            )

    def fail(self, reason: str) -> None:
        """Have the next pump raise this, unless something went wrong before."""
        self._failure = self._failure or reason

    def close(self) -> None:
        """Close the connection within `CLOSE_TIMEOUT_S`; never raises."""
        if self._is_closed:
            return
        self._is_closed = True
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        with contextlib.suppress(*LOST, TrialError, AssertionError):
            if self._connection is not None and self._connection.is_open:
                self._connection.close()
            while self._connection is not None and not self._connection.is_closed and time.monotonic() < deadline:
                self._turn(deadline - time.monotonic())
            self._turn(0)  # the socket itself is closed one turn later
        with contextlib.suppress(*LOST, AssertionError):
            self._ioloop.close()

    def _on_closed(self, _closed: Any, reason: BaseException) -> None:
        self.fail(describe(self.endpoint, reason))

    def _on_blocked(self, _connection: Any, _method: Any) -> None:
        self.blocked = True

    def _on_unblocked(self, _connection: Any, _method: Any) -> None:
        self.blocked = False


def _nothing() -> None:
    """Wake the loop."""
