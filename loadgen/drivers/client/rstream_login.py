"""How rstream is told where to connect and as whom, and which of its errors mean that the connection is gone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from rstream import ServerError, exceptions

from loadgen.drivers.rabbitmq_admin import credentials_of
from loadgen.drivers.wire.stream_connection import addresses, open_any
from loadgen.errors import BrokerError
from loadgen.tls import client_context

if TYPE_CHECKING:
    from loadgen.endpoint import Endpoint

LOST = (ServerError, exceptions.ClientError, ConnectionError, OSError, TimeoutError, RuntimeError)
# It logs every failure with a traceback; ours are told in one line, once.
logging.getLogger("rstream").addHandler(logging.NullHandler())
logging.getLogger("rstream").propagate = False


def refused(endpoint: Endpoint, error: Exception) -> BrokerError:
    """Why it did not come in: the library tells little, so our own connection asks the broker, and tells it better."""
    try:
        open_any(endpoint).close()
    except BrokerError as told:
        return told
    return BrokerError(f"rabbitmq at {endpoint.address} (streams): {error or type(error).__name__}")


def login(endpoint: Endpoint, heartbeat_s: int) -> dict[str, Any]:
    """What its Producer and Consumer have in common; of several nodes it finds the leaders by itself."""
    host, port = addresses(endpoint)[0]
    credentials = credentials_of(endpoint)
    return {
        "host": host,
        "port": port,
        "ssl_context": None if endpoint.tls is None else client_context(endpoint.tls),
        "vhost": endpoint.virtual_host,
        "username": credentials.username,
        "password": credentials.password,
        "heartbeat": heartbeat_s,
    }
