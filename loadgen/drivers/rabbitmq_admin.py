"""RabbitMQ's control plane through pika, shared by all of its drivers: declare, watch and delete a trial's queue."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import ssl
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pika
from pika import exceptions

from loadgen.errors import BrokerError
from loadgen.tls import client_context, failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint

CONNECT_TIMEOUT_S = 5.0
PORT_QUESTION = "is it running, is this RabbitMQ's AMQP port, does it want TLS?"
_ACCESS_REFUSED = 403
_NOT_FOUND = 404
_MANAGEMENT_ATTEMPTS = 3
_MANAGEMENT_PAUSE_S = 0.1
# pika logs every failure with a traceback; ours are told in one line, once.
logging.getLogger("pika").addHandler(logging.NullHandler())
logging.getLogger("pika").propagate = False

CLIENT_PROPERTIES = {
    "product": "loadgen",
    "capabilities": {
        "authentication_failure_close": True,
        "basic.nack": True,
        "connection.blocked": True,
        "consumer_cancel_notify": True,
        "publisher_confirms": True,
    },
}


def credentials_of(endpoint: Endpoint) -> pika.PlainCredentials:
    """The endpoint's user and password, or the broker's own default user."""
    given = endpoint.credentials
    return pika.PlainCredentials(given.username, given.password) if given else pika.PlainCredentials("guest", "guest")


def parameters_of(endpoint: Endpoint, heartbeat_s: int) -> list[pika.ConnectionParameters]:
    """Pika's parameters for each of the endpoint's hosts."""
    context = None if endpoint.tls is None else client_context(endpoint.tls)
    return [
        pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=endpoint.virtual_host,
            credentials=credentials_of(endpoint),
            heartbeat=heartbeat_s,
            ssl_options=None if context is None else pika.SSLOptions(context, host),
            socket_timeout=CONNECT_TIMEOUT_S,
            stack_timeout=CONNECT_TIMEOUT_S,
            connection_attempts=1,
            client_properties={"product": "loadgen"},
        )
        for host, port in endpoint.hosts
    ]


def refused_text(endpoint: Endpoint, address: str) -> str:
    """What a person reads when user or password are wrong."""
    user = endpoint.credentials.username if endpoint.credentials else "guest"
    return f"rabbitmq at {address} refused the credentials of user {user}; check the user and password given for it"


def describe(endpoint: Endpoint, error: BaseException) -> str:
    """Pika's errors as one line for people."""
    cause: Any = _innermost(error)
    address = endpoint.address
    by_broker = isinstance(cause, exceptions.ConnectionClosedByBroker)
    if isinstance(cause, exceptions.AuthenticationError | exceptions.ProbableAuthenticationError) or (
        by_broker and cause.reply_code == _ACCESS_REFUSED
    ):
        return refused_text(endpoint, address)
    if by_broker or isinstance(cause, exceptions.ChannelClosedByBroker):
        what = "connection" if by_broker else "channel"
        return f"rabbitmq at {address} closed the {what}: {cause.reply_code} {_one_line(cause.reply_text)}"
    if isinstance(cause, exceptions.ProbableAccessDeniedError):
        return f"rabbitmq at {address} refused virtual host {endpoint.virtual_host}: {_one_line(str(cause))}"
    if isinstance(cause, exceptions.IncompatibleProtocolError):
        return f"rabbitmq at {address} hung up during the handshake; {PORT_QUESTION}"
    if isinstance(cause, exceptions.StreamLostError | exceptions.AMQPHeartbeatTimeout):
        return f"rabbitmq at {address} hung up without giving a reason ({type(cause).__name__})"
    detail = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    said = f" cannot be reached: {_one_line(detail)}; {PORT_QUESTION}"
    if isinstance(cause, ssl.SSLError):
        said = f": {failure(cause, 'rabbitmq')}"
    return f"rabbitmq at {address}{said}"


def _innermost(error: BaseException) -> BaseException:
    """What really went wrong, inside what pika's connection workflow wraps around it."""
    while True:
        wrapped = getattr(error, "exceptions", None) or (getattr(error, "exception", None),)
        inner = wrapped[-1]
        if inner is None and not isinstance(error, OSError) and type(error) is exceptions.AMQPConnectionError:
            inner = error.args[0] if error.args else None
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _one_line(text: str) -> str:
    return " ".join(text.split())


def connect(endpoint: Endpoint, heartbeat_s: int) -> pika.BlockingConnection:
    """A blocking connection; raises BrokerError in one line."""
    try:
        return pika.BlockingConnection(parameters_of(endpoint, heartbeat_s))
    except (exceptions.AMQPError, OSError) as error:
        raise BrokerError(describe(endpoint, error)) from None


class RabbitMQAdmin:
    """Declares, watches and deletes one trial's queue; a lost connection is made again at the next call."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        # Without heartbeats: the control plane may be left alone for as long as a trial lasts.
        self._connection = connect(endpoint, 0)

    def create(self, target: Target) -> None:
        """Declare the durable queue of a trial; one that exists already raises BrokerError."""
        if self._passive(target.name) is not None:
            raise BrokerError(
                f"rabbitmq at {self._endpoint.address} has a queue {target.name} already; delete it first"
            )
        self._call(
            lambda channel: channel.queue_declare(target.name, durable=True, arguments=declared_arguments(target))
        )

    def delete(self, target: Target) -> None:
        """Delete the queue with what is in it; that it is gone already is no error."""
        self._call(lambda channel: channel.queue_delete(target.name))

    def depth(self, target: Target, received: int | None = None) -> int:
        """Messages ready for delivery (delivered and unacknowledged ones are not counted)."""
        del received  # the queue knows by itself
        messages = self._passive(target.name)
        if messages is None:
            raise BrokerError(f"rabbitmq at {self._endpoint.address} has no queue {target.name}")
        return messages

    def stored(self, target: Target) -> int | None:
        """None: RabbitMQ keeps no count of all that a queue ever took."""
        del target
        return None

    def effective(self, target: Target) -> dict[str, Any]:
        """The queue as the management API tells it, else as it was declared."""
        declared = {"durable": True, "arguments": declared_arguments(target), "source": "declared"}
        if self._passive(target.name) is None:
            raise BrokerError(f"rabbitmq at {self._endpoint.address} has no queue {target.name}")
        found = None if self._endpoint.management_url is None else self._from_management(target.name)
        if found is None:
            return declared
        kept = (
            "type",
            "durable",
            "auto_delete",
            "exclusive",
            "arguments",
            "policy",
            "storage_version",
            "members",
        )
        return {key: found[key] for key in kept if key in found} | {"source": "management API"}

    def close(self) -> None:
        """Close the connection; never raises."""
        with contextlib.suppress(exceptions.AMQPError, OSError):
            self._connection.close()

    def _passive(self, name: str) -> int | None:
        """The number of ready messages by passive declare; None if there is no such queue."""
        try:
            answer = self._call(lambda channel: channel.queue_declare(name, passive=True))
        except _NoQueueError:
            return None
        return int(answer.method.message_count)

    def _call(self, use: Callable[[Any], Any]) -> Any:
        """Use a channel of its own (an error closes a channel), on a new connection where the last was lost."""
        for attempt in (1, 2):
            if not self._connection.is_open:
                self._connection = connect(self._endpoint, 0)
            try:
                channel = self._connection.channel()
                answer = use(channel)
                channel.close()
            except exceptions.ChannelClosedByBroker as error:
                if error.reply_code == _NOT_FOUND:
                    raise _NoQueueError(describe(self._endpoint, error)) from None
                raise BrokerError(describe(self._endpoint, error)) from None
            except (exceptions.AMQPError, OSError) as error:
                if attempt == 2:
                    raise BrokerError(describe(self._endpoint, error)) from None
            else:
                return answer
        raise AssertionError("the second attempt returns or raises")

    def _from_management(self, name: str) -> dict[str, Any] | None:
        """The queue from the management API, which learns of new queues late; None if it does not tell."""
        quoted = [urllib.parse.quote(part, safe="") for part in (self._endpoint.virtual_host, name)]
        url = f"{str(self._endpoint.management_url).rstrip('/')}/api/queues/{quoted[0]}/{quoted[1]}"
        for _ in range(_MANAGEMENT_ATTEMPTS):
            try:
                answer = management_request(self._endpoint, url)
            except (OSError, ValueError):
                time.sleep(_MANAGEMENT_PAUSE_S)
                continue
            if isinstance(answer, dict) and "arguments" in answer:
                return answer
        return None


class _NoQueueError(BrokerError):
    """The queue does not exist."""


def declared_arguments(target: Target) -> dict[str, Any]:
    """The arguments that a trial's queue is declared with."""
    return {"x-queue-type": target.settings["queue_type"]}


def management_request(endpoint: Endpoint, url: str, method: str = "GET") -> Any:
    """One request to the management API, by no proxy; None where the answer has no body."""
    credentials = credentials_of(endpoint)
    login = base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https:") and endpoint.tls is not None:
        handlers.append(urllib.request.HTTPSHandler(context=client_context(endpoint.tls)))
    request = urllib.request.Request(url, method=method, headers={"Authorization": f"Basic {login}"})  # noqa: S310
    with urllib.request.build_opener(*handlers).open(request, timeout=CONNECT_TIMEOUT_S) as answer:
        body = answer.read()
    return json.loads(body) if body else None
