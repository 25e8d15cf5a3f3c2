"""What both Kafka drivers and the admin need to know of an endpoint: librdkafka's settings and TLS contexts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint, Tls

CLIENT_ID = "loadgen"
CONNECT_TIMEOUT_S = 5.0
FILE_DELETE_DELAY_MS = 1_000  # else a trial's files stay on the disk for a minute into the next trial
SHARE_GROUPS: dict[str, Any] = {"share.auto.offset.reset": "earliest", "share.assignment.interval.ms": 0}
OF_TRIALS = (
    f"file.delete.delay.ms = {FILE_DELETE_DELAY_MS} (of trials' topics; 60000 as shipped)",
    *(f"{name} = {value} (of trials' share groups)" for name, value in SHARE_GROUPS.items()),
)
"""What topics and groups of trials are told whatever the scenario says, as lines of an endpoint's `deviations`."""

# librdkafka prints to stderr unless it is given a logger; its errors reach people through ours.
SILENT = logging.getLogger("loadgen.librdkafka")
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False


def client_settings(endpoint: Endpoint) -> dict[str, Any]:
    """Librdkafka's connection settings for this endpoint; holds the password, so it is never printed or kept."""
    settings: dict[str, Any] = {
        "bootstrap.servers": ",".join(f"{host}:{port}" for host, port in endpoint.hosts),
        "client.id": CLIENT_ID,
        "statistics.interval.ms": 0,
        "log.connection.close": False,
        "socket.connection.setup.timeout.ms": int(CONNECT_TIMEOUT_S * 1000),
        "logger": SILENT,
    }
    secure = "SSL" if endpoint.tls else "PLAINTEXT"
    settings["security.protocol"] = f"SASL_{secure}" if endpoint.credentials else secure
    if endpoint.credentials:
        settings["sasl.mechanisms"] = "PLAIN"
        settings["sasl.username"] = endpoint.credentials.username
        settings["sasl.password"] = endpoint.credentials.password
    if endpoint.tls:
        settings.update(_tls_settings(endpoint.tls))
    return settings


def _tls_settings(tls: Tls) -> dict[str, Any]:
    files = {
        "ssl.ca.location": tls.ca_file,
        "ssl.certificate.location": tls.cert_file,
        "ssl.key.location": tls.key_file,
    }
    settings: dict[str, Any] = {name: str(path) for name, path in files.items() if path is not None}
    settings["enable.ssl.certificate.verification"] = tls.verify
    settings["ssl.endpoint.identification.algorithm"] = "https" if tls.verify else "none"
    return settings


ABORTED = "ABORTED"  # what became of the messages of an aborted transaction
_TRANSACTION_TIMEOUT_MS = 60_000  # the Java client's transaction.timeout.ms; longer where a transaction is


def transaction_timeout_ms(settings: Mapping[str, Any]) -> int:
    """After how long the broker itself aborts a transaction."""
    return max(_TRANSACTION_TIMEOUT_MS, int(2 * (settings["transaction_ms"] or 0)))


def transactional_id(target: Target, producer: int) -> str:
    """A producer's transactional.id: each of them has its own, and each trial others."""
    return f"{target.name}-{producer}"


def is_transactional(settings: Mapping[str, Any]) -> bool:
    """Whether producers send in transactions."""
    return settings.get("transaction_msgs") is not None


def acks_number(acks: Any) -> int:
    """The protocol's number for the knob `acks`: 0, 1, or −1 for all."""
    return {"0": 0, "1": 1, "all": -1, "-1": -1}[str(acks)]
