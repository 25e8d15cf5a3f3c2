"""Where a running broker is: addresses, credentials that never print, and what was read back from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BrokerName = Literal["rabbitmq", "kafka"]
OWN_DRIVERS: dict[str, str] = {"rabbitmq": "amqp", "kafka": "kafka"}
"""Each broker's own wire driver."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password; the password is in no repr, no log and no result."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS towards a broker: `ca_file` None means the system's authorities."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One broker (or cluster) as the drivers reach it and the observer watches it.

    `hosts` are (host, port) pairs for AMQP or for Kafka's bootstrap. `pids` are the broker's processes where they
    run on this machine (empty otherwise). `configuration` is the effective configuration read back from the running
    broker, and `deviations` are the lines by which it differs from what its makers ship; neither holds a secret.
    """

    broker: BrokerName
    hosts: tuple[tuple[str, int], ...]
    credentials: Credentials | None = None
    tls: Tls | None = None
    virtual_host: str = "/"
    management_url: str | None = None
    management_urls: tuple[str, ...] = ()
    """Those of the other nodes of a cluster: each of them tells of all."""
    prometheus_url: str | None = None
    stream_port: int | None = None
    stream_hosts: tuple[tuple[str, int], ...] = ()
    """Where each node of a cluster speaks streams, where that is not the one port on all hosts."""
    through_ports: tuple[int, ...] = ()
    """Where nodes listen for clients that come through a proxy, where those are other ports than the hosts'."""
    stomp_port: int | None = None
    mqtt_port: int | None = None
    max_message_bytes: int | None = None
    """The largest message that it takes, by its own configuration; None where that is not known, or is a topic's."""
    version: str = "unknown"
    pids: tuple[int, ...] = ()
    data_dir: Path | None = None
    log_dir: Path | None = None
    configuration: dict[str, Any] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()
    source: Literal["local", "docker", "external", "memory"] = "local"

    def turned(self, number: int) -> Endpoint:
        """The same with its nodes in another order: node `number`, counted round, comes first."""
        if len(self.hosts) == 1:
            return self
        turned = [each[place:] + each[:place] for each in (self.hosts, self.stream_hosts)
                  for place in [number % max(1, len(each))]]  # fmt: skip
        return replace(self, hosts=turned[0], stream_hosts=turned[1])

    @property
    def address(self) -> str:
        """The first address as `host:port`, for messages to people."""
        host, port = self.hosts[0]
        return f"{host}:{port}"


def resting_pids(endpoints: Mapping[BrokerName, Endpoint], measured: BrokerName) -> tuple[int, ...]:
    """Processes of the brokers that stand idle while another one is measured."""
    return tuple(pid for name, other in endpoints.items() if name != measured for pid in other.pids)
