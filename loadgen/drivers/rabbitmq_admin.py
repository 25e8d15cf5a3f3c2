"""RabbitMQ's control plane through pika, shared by all of its drivers: declare, watch and delete a trial's queues."""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import pika
from pika import exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectorException, AMQPConnectorStackTimeout

from loadgen.driver import Gauge
from loadgen.drivers.rabbitmq_dead_letters import drain, removed_counts
from loadgen.drivers.rabbitmq_deadline import NoAnswerError, within
from loadgen.drivers.rabbitmq_management import in_path, management_request
from loadgen.drivers.rabbitmq_replicas import demand_replicas
from loadgen.drivers.rabbitmq_topology import HASH_PLUGIN, Topology
from loadgen.errors import BrokerError
from loadgen.tls import client_context, failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from loadgen.abilities import DeadLetter
    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint

CONNECT_TIMEOUT_S = 10.0  # as pika has it: the control plane is in no hurry, and a busy broker answers late
CALL_S = 10.0
CLOSE_S = 2.0
PORT_QUESTION = "is it running, is this RabbitMQ's AMQP port, does it want TLS?"
_ACCESS_REFUSED = 403
_NOT_FOUND = 404
_TRANSIENT = "transient_nonexcl_queues"  # the deprecated feature of queues that are neither durable nor exclusive
_MANAGEMENT_ATTEMPTS = 3
_MANAGEMENT_PAUSE_S = 0.1
_SILENT = (
    NoAnswerError,
    AMQPConnectorStackTimeout,
    exceptions.StreamLostError,
    exceptions.AMQPHeartbeatTimeout,
    exceptions.ConnectionBlockedTimeout,
)
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


def parameters_of(
    endpoint: Endpoint, heartbeat_s: int, blocked_timeout_s: float | None = None
) -> list[pika.ConnectionParameters]:
    """Pika's parameters for each of the endpoint's hosts."""
    context = None if endpoint.tls is None else client_context(endpoint.tls)
    return [
        pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=endpoint.virtual_host,
            credentials=credentials_of(endpoint),
            heartbeat=heartbeat_s,
            blocked_connection_timeout=blocked_timeout_s,
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
    if isinstance(cause, _SILENT):
        return f"rabbitmq at {address}{_silence(cause)}"
    detail = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    said = f" cannot be reached: {_one_line(detail)}; {PORT_QUESTION}"
    if isinstance(cause, ssl.SSLError):
        said = f": {failure(cause, 'rabbitmq')}"
    return f"rabbitmq at {address}{said}"


def _silence(cause: BaseException) -> str:
    """How a broker left that did not say why, or why it was left."""
    if isinstance(cause, exceptions.ConnectionBlockedTimeout):
        return " has blocked the connection for longer than blocked_connection_timeout_s"
    if isinstance(cause, NoAnswerError):
        return f": {cause}; it hangs, or is too busy"
    if isinstance(cause, AMQPConnectorStackTimeout):
        return f" accepts the connection, and says nothing; {PORT_QUESTION}"
    if isinstance(cause, exceptions.AMQPHeartbeatTimeout):
        return " has sent no heartbeat for too long; it hangs, or is too busy"
    return " hung up without giving a reason"


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


def connect(endpoint: Endpoint, heartbeat_s: int, blocked_timeout_s: float | None = None) -> pika.BlockingConnection:
    """A blocking connection; raises BrokerError in one line."""
    try:
        return pika.BlockingConnection(parameters_of(endpoint, heartbeat_s, blocked_timeout_s))
    except (exceptions.AMQPError, AMQPConnectorException, OSError) as error:
        raise BrokerError(describe(endpoint, error)) from None


class RabbitMQAdmin:
    """Declares, watches and deletes one trial's exchange and queues; a lost connection is made again at the next call.

    A call that the broker does not answer within `CALL_S` raises BrokerError. The default exchange is neither declared
    nor deleted.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        # Without heartbeats: the control plane may be left alone for as long as a trial lasts.
        self._connection = connect(endpoint, 0)
        self._channel: Any = None
        self._in_use = threading.Lock()
        self._removed_before: dict[str, dict[str, int] | None] = {}

    def create(self, target: Target) -> None:
        """Declare what the trial needs; a queue that exists already raises BrokerError."""
        topology = Topology(target)
        if self._ready([topology.queue(0, 0)]) is not None:
            raise BrokerError(
                f"rabbitmq at {self._endpoint.address} has a queue {topology.queue(0, 0)} already; delete it first"
            )
        self._removed_before[target.name] = removed_counts(self._endpoint)
        try:
            self._call(lambda channel: _declare(channel, topology))
        except BrokerError as error:
            with contextlib.suppress(BrokerError):
                self.delete(target)
            if "unknown exchange type" in str(error):
                raise BrokerError(
                    f"rabbitmq at {self._endpoint.address} has no exchange type {topology.exchange_type}; enable its "
                    f"plugin: rabbitmq-plugins enable {HASH_PLUGIN}"
                ) from None
            if _TRANSIENT in str(error):
                raise BrokerError(
                    f"rabbitmq at {self._endpoint.address} denies queues with rabbitmq.durable = False; drop the knob, "
                    f"or restart the broker with deprecated_features.permit.{_TRANSIENT} = true"
                ) from None
            raise
        wanted = target.settings.get("quorum_initial_group_size") or 1
        if wanted > 1:
            try:
                demand_replicas(self._endpoint, topology.queues(), wanted)
            except BrokerError:
                self.delete(target)
                raise

    def delete(self, target: Target) -> None:
        """Delete queues, with what is in them, and exchange; that they are gone already is no error."""
        topology = Topology(target)

        def remove(channel: Any) -> None:
            for exchange in filter(None, (topology.exchange, topology.dead_exchange)):
                channel.exchange_delete(exchange)
            for queue in (*topology.queues(), *topology.dead_queues()):
                channel.queue_delete(queue)

        self._call(remove)

    def depth(self, target: Target, received: int | None = None) -> int:
        """Messages ready for delivery in all queues (delivered and unacknowledged ones are not counted)."""
        del received  # queues know by themselves
        return self._demand(target).depth_msgs

    def gauge(self, target: Target, received: int | None = None) -> Gauge:
        """Ready messages and consumers of all queues: one passive declare of each tells both, within 0.06 s."""
        del received
        return self._demand(target)

    def stored(self, target: Target) -> int | None:
        """None: RabbitMQ keeps no count of all that a queue ever took."""
        del target
        return None

    def removed(self, target: Target) -> dict[str, int] | None:
        """By reason: what the broker has taken out of queues since these were made, by its own count; None: unknown."""
        before, now = self._removed_before.get(target.name), removed_counts(self._endpoint)
        if before is None or now is None:
            return None
        return {reason: count - before[reason] for reason, count in now.items()}

    def dead_letters(self, target: Target) -> Iterator[DeadLetter]:
        """Empty the dead-letter queues of a target whose own queues nobody uses any more."""
        topology = Topology(target)
        for subscriber, queue in enumerate(topology.dead_queues()):
            try:
                connection = self._connection_now()
                with within(connection, CALL_S):
                    yield from drain(connection, queue, subscriber)
            except (exceptions.AMQPError, OSError) as error:
                raise BrokerError(describe(self._endpoint, error)) from None

    def effective(self, target: Target) -> dict[str, Any]:
        """The (first) queue as the management API tells it, else as it was declared; with an exchange that, too."""
        topology = Topology(target)
        declared = {
            "durable": topology.is_durable,
            "auto_delete": topology.is_auto_deleted,
            "arguments": topology.arguments(0),
            "source": "declared",
        }
        self._demand(target)
        bound = {} if not topology.exchange else topology.describe()
        if self._endpoint.management_url is None:
            return declared | bound
        found = self._from_management(f"queues/{{vhost}}/{in_path(topology.queue(0, 0))}", "arguments")
        if found is None:
            return declared | bound
        if bound:
            bound |= self._bound_by_management(topology)
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
        return {key: found[key] for key in kept if key in found} | bound | {"source": "management API"}

    def _bound_by_management(self, topology: Topology) -> dict[str, Any]:
        """The exchange, and how many bindings it has; nothing where the management API does not tell."""
        path = f"exchanges/{{vhost}}/{in_path(topology.exchange)}"
        exchange, bindings = self._from_management(path, "type"), self._from_management(f"{path}/bindings/source")
        if exchange is None or bindings is None:
            return {}
        return {
            "exchange": {key: exchange[key] for key in ("name", "type", "durable")},
            "queues": sorted({each["destination"] for each in bindings}),
            "bindings": len(bindings),
        }

    def close(self) -> None:
        """Close the connection; never raises. A call that another thread is waiting in ends first."""
        if not self._in_use.acquire(timeout=CALL_S):
            return  # pika cannot be told from here; the thread is a daemon
        try:
            if self._connection.is_open:
                with contextlib.suppress(exceptions.AMQPError, OSError), within(self._connection, CLOSE_S):
                    self._connection.close()
        finally:
            self._in_use.release()

    def _demand(self, target: Target) -> Gauge:
        """Ready messages and consumers of all queues of a target; raises BrokerError where one is missing.

        An auto-delete queue that is missing has gone with its consumers, and holds nothing.
        """
        topology = Topology(target)
        queues = topology.queues()
        if (ready := self._ready(queues)) is not None:
            return ready
        if topology.is_auto_deleted:
            return Gauge(0, consumers=0, retained_msgs=0)
        raise BrokerError(f"rabbitmq at {self._endpoint.address} has no queue {' or '.join(queues[:3])}")

    def _ready(self, queues: Sequence[str]) -> Gauge | None:
        """Ready messages and consumers by passive declare; None if one of the queues is not there."""
        try:
            answers = self._call(lambda channel: [channel.queue_declare(each, passive=True) for each in queues])
        except _NoQueueError:
            return None
        told = [answer.method for answer in answers]
        ready_msgs = sum(each.message_count for each in told)
        return Gauge(ready_msgs, consumers=sum(each.consumer_count for each in told), retained_msgs=ready_msgs)

    def _connection_now(self) -> pika.BlockingConnection:
        """The connection, a new one where the last was lost."""
        if not self._connection.is_open:
            self._connection = connect(self._endpoint, 0)
        return self._connection

    def _call(self, use: Callable[[Any], Any]) -> Any:
        """Use the channel, a new one after an error, on a new connection where the last was lost."""
        with self._in_use:
            return self._called(use)

    def _called(self, use: Callable[[Any], Any]) -> Any:
        for attempt in (1, 2):
            connection = self._connection_now()
            try:
                with within(connection, CALL_S):
                    channel, self._channel = self._channel, None  # one whose call did not end is not used again
                    if channel is None or channel.connection is not connection:
                        channel = connection.channel()
                    answer = use(channel)
                    self._channel = channel
            except exceptions.ChannelClosedByBroker as error:
                if error.reply_code == _NOT_FOUND:
                    raise _NoQueueError(describe(self._endpoint, error)) from None
                raise BrokerError(describe(self._endpoint, error)) from None
            except (exceptions.AMQPError, OSError) as error:
                if attempt == 2 or isinstance(error, NoAnswerError):
                    raise BrokerError(describe(self._endpoint, error)) from None
            else:
                return answer
        raise AssertionError("the second attempt returns or raises")

    def _from_management(self, path: str, demanded: str | None = None) -> Any:
        """An answer of the management API, which learns of new things late (`demanded`: a field); None if it fails."""
        path = path.format(vhost=in_path(self._endpoint.virtual_host))
        for _ in range(_MANAGEMENT_ATTEMPTS):
            try:
                answer = management_request(self._endpoint, path)
            except (OSError, ValueError):
                time.sleep(_MANAGEMENT_PAUSE_S)
                continue
            if demanded is None or (isinstance(answer, dict) and demanded in answer):
                return answer
        return None


class _NoQueueError(BrokerError):
    """The queue does not exist."""


def _declare(channel: Any, topology: Topology) -> None:
    """Queues before bindings; each of them waits for the broker's answer, so that all is there afterwards."""
    if topology.exchange:
        channel.exchange_declare(topology.exchange, topology.exchange_type, durable=True)
    if topology.dead_exchange:
        channel.exchange_declare(topology.dead_exchange, "direct", durable=True)
    for queue in topology.dead_queues():  # as durable as the queue that its messages come from
        arguments = {"x-queue-type": topology.target.settings["queue_type"]}
        channel.queue_declare(queue, durable=topology.is_durable, arguments=arguments)
        channel.queue_bind(queue, topology.dead_exchange, routing_key=queue)
    for subscriber in range(topology.target.subscribers):
        for queue in topology.queues_of(subscriber):
            channel.queue_declare(
                queue,
                durable=topology.is_durable,
                auto_delete=topology.is_auto_deleted,
                arguments=topology.arguments(subscriber),
            )
    for each in topology.bindings():
        channel.queue_bind(each.queue, topology.exchange, routing_key=each.routing_key, arguments=each.arguments)
