"""The first words with somebody else's broker: who it is, and whether it lets us in, within seconds."""

from __future__ import annotations

import logging
import ssl
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loadgen import tls
from loadgen.brokers.kafka_admin import describe_broker
from loadgen.drivers.kafka_config import OF_TRIALS, client_settings
from loadgen.errors import BrokerError
from loadgen.redaction import redacted

if TYPE_CHECKING:
    from loadgen.endpoint import Endpoint, Tls

TIMEOUT_S = 6.0
UNTOUCHED = "an external broker is taken as it is (what its makers ship is not known to be what it runs)"


def rabbitmq(endpoint: Endpoint, url: str) -> Endpoint:
    """Logs in over AMQP 0-9-1 and returns the endpoint with what the server said of itself."""
    import pika  # noqa: PLC0415  # needed for external brokers only
    from pika import exceptions  # noqa: PLC0415
    from pika.adapters.utils.connection_workflow import AMQPConnectorException  # noqa: PLC0415

    assert endpoint.credentials is not None
    user, (host, port) = endpoint.credentials.username, endpoint.hosts[0]
    # It would log each refusal with a stack trace of its own; what matters is in the one line below.
    logging.getLogger("pika").setLevel(logging.CRITICAL + 1)
    parameters = pika.ConnectionParameters(
        host=host,
        port=port,
        virtual_host=endpoint.virtual_host,
        credentials=pika.PlainCredentials(user, endpoint.credentials.password),
        ssl_options=pika.SSLOptions(tls.client_context(endpoint.tls), host) if endpoint.tls else None,
        connection_attempts=1,
        socket_timeout=TIMEOUT_S / 2,
        stack_timeout=TIMEOUT_S,
        blocked_connection_timeout=TIMEOUT_S,
    )
    try:
        connection = pika.BlockingConnection(parameters)
    except exceptions.ProbableAuthenticationError:
        raise BrokerError(refused(url, user, "RABBITMQ")) from None
    except (exceptions.ProbableAccessDeniedError, exceptions.ConnectionClosedByBroker):
        raise BrokerError(
            f"rabbitmq at {url} does not let user {user!r} into virtual host {endpoint.virtual_host!r}: "
            "check that it exists and that the user has permissions on it"
        ) from None
    except exceptions.AuthenticationError:
        raise BrokerError(refused(url, user, "RABBITMQ")) from None
    except ssl.SSLError as error:
        raise BrokerError(f"rabbitmq at {url}: {tls.failure(error, 'rabbitmq')}") from None
    except (exceptions.AMQPError, AMQPConnectorException, OSError) as error:
        raise BrokerError(
            f"rabbitmq at {url} does not answer as an AMQP 0-9-1 broker{_about_tls(endpoint.tls, 'amqps')}: "
            f"{_said(error)}"
        ) from error
    properties: dict[str, Any] = connection._impl.server_properties  # noqa: SLF001  # pika offers no other way
    connection.close()
    names = ("product", "version", "platform", "cluster_name")
    described = redacted({name: _text(properties[name]) for name in names if name in properties})
    return replace(
        endpoint,
        version=_text(properties.get("version", "unknown")),
        configuration={"server_properties": described},
        deviations=(UNTOUCHED,),
    )


def streams(endpoint: Endpoint) -> Endpoint:
    """Logs in by the stream protocol alone and returns the endpoint with what the server said of itself."""
    from loadgen.drivers.wire.stream_connection import open_any  # noqa: PLC0415  # needed for such a URL only

    connection = open_any(endpoint)
    told = connection.server_properties
    connection.leave()
    names = ("product", "version", "platform", "cluster_name")
    described = redacted({name: told[name] for name in names if name in told})
    return replace(
        endpoint,
        version=told.get("version", "unknown"),
        configuration={"server_properties": described},
        deviations=(UNTOUCHED,),
    )


def kafka(endpoint: Endpoint, url: str) -> Endpoint:
    """Asks for the cluster's metadata and returns the endpoint with the first broker's own configuration."""
    settings = client_settings(endpoint)
    broker_ids = _reach_kafka(settings, endpoint, url)
    described = describe_broker(settings, broker_ids[0])
    return replace(
        endpoint,
        configuration={
            "broker": described.values,
            "broker_not_default": described.changed,
            "broker_ids": broker_ids,
        },
        deviations=(
            UNTOUCHED,
            *(f"{key} = {value} (found on the external broker)" for key, value in described.changed.items()),
            *OF_TRIALS,
        ),
    )


def refused(url: str, user: str, broker: str) -> str:
    """The one line about a wrong password."""
    return (
        f"{broker.lower()} at {url} refused user {user!r}: expected a valid user and password; "
        f"set LOADGEN_{broker}_USERNAME and LOADGEN_{broker}_PASSWORD (or LOADGEN_CREDENTIALS_FILE)"
    )


def _reach_kafka(settings: dict[str, Any], endpoint: Endpoint, url: str) -> list[int]:
    from confluent_kafka import KafkaError, KafkaException  # noqa: PLC0415
    from confluent_kafka.admin import AdminClient  # noqa: PLC0415

    if endpoint.tls:
        try:
            tls.handshake(endpoint.tls, *endpoint.hosts[0], TIMEOUT_S / 2)
        except OSError as error:
            raise BrokerError(f"kafka at {url}: {tls.failure(error, 'kafka')}") from None
    errors: list[KafkaError] = []
    watched: dict[str, Any] = {
        **settings,
        "error_cb": errors.append,
        "socket.connection.setup.timeout.ms": 3000,
    }
    try:
        admin = AdminClient(watched)
    except KafkaException as error:
        raise BrokerError(f"kafka at {url}: {error.args[0].str()}") from error
    until_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until_s:
        try:
            return sorted(admin.list_topics(timeout=1.0).brokers)
        except KafkaException:
            admin.poll(0.1)
        names = [error.name() for error in errors]
        if "_AUTHENTICATION" in names or "SASL_AUTHENTICATION_FAILED" in names:
            user = endpoint.credentials.username if endpoint.credentials else "nobody"
            raise BrokerError(refused(url, user, "KAFKA"))
        if "_SSL" in names:
            break
        if not endpoint.tls and tls.is_spoken(*endpoint.hosts[0], timeout_s=1.0):
            raise BrokerError(f"kafka at {url} wants TLS: write kafka+tls:// in place of kafka://")
    said = next((error.str()[:200] for error in errors if error.name() != "_ALL_BROKERS_DOWN"), "no answer")
    hint = _about_tls(endpoint.tls, "kafka+tls") + ("" if endpoint.credentials else " or credentials")
    raise BrokerError(f"kafka at {url} does not answer as a Kafka broker within {TIMEOUT_S:.0f} s{hint}: {said}")


def _said(error: BaseException) -> str:
    """What became of a login, in words: pika has them in the names of its errors only."""
    from pika import exceptions  # noqa: PLC0415  # needed for external brokers only
    from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout  # noqa: PLC0415

    if isinstance(error, exceptions.IncompatibleProtocolError | exceptions.StreamLostError):
        return "it hung up during the handshake"
    if isinstance(error, AMQPConnectorStackTimeout):
        return f"it said nothing within {TIMEOUT_S:.0f} s"
    return getattr(error, "strerror", None) or "the handshake failed"


def _about_tls(settings: Tls | None, scheme: str) -> str:
    return (
        " with TLS; check the port and the certificates"
        if settings
        else f"; check the port, and whether it wants TLS ({scheme}://)"
    )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
