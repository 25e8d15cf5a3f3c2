"""A robust connection of aio-pika with one channel, and what its errors mean in one line."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import aio_pika
from aio_pika import exceptions

from loadgen.drivers.client.event_loop import CONNECT_S, EventLoop
from loadgen.drivers.rabbitmq_admin import PORT_QUESTION, credentials_of, refused_text
from loadgen.errors import BrokerError
from loadgen.tls import client_context, failure, tls_error_of

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractRobustConnection

    from loadgen.endpoint import Endpoint

LOST = (*exceptions.CONNECTION_EXCEPTIONS, TimeoutError)
_RECONNECT_S = 1.0
_CODES = {exceptions.ChannelNotFoundEntity: "404 ", exceptions.ChannelPreconditionFailed: "406 "}
# Both log every failure with a traceback; ours are told in one line, once.
for _name in ("aio_pika", "aiormq"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False


class Link:
    """Connected when it is made; the library mends the connection by itself, for as long as that is waited for."""

    def __init__(self, endpoint: Endpoint, heartbeat_s: int, *, confirms: bool) -> None:
        self.loop = EventLoop()
        self.address = endpoint.address
        self._endpoint = endpoint
        self._connection: AbstractRobustConnection | None = None
        try:
            self._connection = self._connect(endpoint, heartbeat_s)
            self.channel = self.loop.run(_channel(self._connection, confirms))
        except LOST as error:
            self.close()
            raise self.refused(error) from None
        self._connection.close_callbacks.add(self.loop.lost)
        self._connection.reconnect_callbacks.add(self.loop.well)

    def _connect(self, endpoint: Endpoint, heartbeat_s: int) -> AbstractRobustConnection:
        """A connection to the first of the hosts that answers."""
        login = credentials_of(endpoint)
        for number, (host, port) in enumerate(endpoint.hosts, 1):
            try:
                return self.loop.run(
                    aio_pika.connect_robust(
                        host=host,
                        port=port,
                        login=login.username,
                        password=login.password,
                        virtualhost=endpoint.virtual_host,
                        ssl=endpoint.tls is not None,
                        ssl_context=None if endpoint.tls is None else client_context(endpoint.tls),
                        client_properties={"connection_name": "loadgen"},
                        timeout=CONNECT_S,
                        heartbeat=heartbeat_s,
                        reconnect_interval=_RECONNECT_S,
                    ),
                    2 * CONNECT_S,
                )
            except LOST:
                if number == len(endpoint.hosts):
                    raise
        raise AssertionError("an endpoint has a host")

    def refused(self, error: BaseException) -> BrokerError:
        """What went wrong while connecting or subscribing, in one line."""
        return BrokerError(_describe(self._endpoint, error))

    def look(self) -> None:
        """Raise TrialError where the connection has been gone for too long."""
        self.loop.look(self.address)

    def close(self) -> None:
        """Leave; never raises."""
        self.loop.close(None if self._connection is None else self._connection.close)


async def _channel(connection: AbstractRobustConnection, confirms: bool) -> AbstractChannel:
    """A channel; the library wants its loop to run when it makes one."""
    return await connection.channel(publisher_confirms=confirms)


def _describe(endpoint: Endpoint, error: BaseException) -> str:
    if isinstance(error, exceptions.AuthenticationError | exceptions.ProbableAuthenticationError):
        return refused_text(endpoint, endpoint.address)
    detail = " ".join((str(error) or type(error).__name__).split())
    if isinstance(error, exceptions.ChannelClosed):
        return f"rabbitmq at {endpoint.address} closed the channel: {_CODES.get(type(error), '')}{detail}"
    if "Connection.Close " in detail:  # the library does not say why; at this point of the handshake it is the host
        return f"rabbitmq at {endpoint.address} refused virtual host {endpoint.virtual_host}"
    if (broken := tls_error_of(error)) is not None:
        return f"rabbitmq at {endpoint.address}: {failure(broken, 'rabbitmq')}"
    if "Connect call failed" in detail:
        detail = "connection refused"
    return f"rabbitmq at {endpoint.address} cannot be reached: {detail}; {PORT_QUESTION}"
