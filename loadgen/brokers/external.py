"""Brokers that somebody else runs, reached by URL: checked at once, in seconds, and never started or ended.

`amqp[s]://host:port/vhost`, `rabbitmq-stream[+tls]://host:port/vhost` (alone, or beside the former for the same host)
and `kafka[+tls]://host:port,host2:port`. Credentials come from the URL itself, the environment
(`LOADGEN_RABBITMQ_USERNAME`, `LOADGEN_KAFKA_PASSWORD` ...) or a TOML file named by `LOADGEN_CREDENTIALS_FILE` with the
tables `[rabbitmq]` and `[kafka]`, in this order. A URL's password is taken out of it at once: no message, no log and no
result ever shows one.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from loadgen.brokers import login, ports
from loadgen.endpoint import BrokerName, Credentials, Endpoint, Tls
from loadgen.errors import BrokerError, LoadgenError

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECT_TIMEOUT_S = 3.0
SCHEMES: dict[str, tuple[BrokerName, bool, int]] = {
    "amqp": ("rabbitmq", False, 5672),
    "amqps": ("rabbitmq", True, 5671),
    "kafka": ("kafka", False, 9092),
    "kafka+tls": ("kafka", True, 9092),
    "rabbitmq-stream": ("rabbitmq", False, 5552),
    "rabbitmq-stream+tls": ("rabbitmq", True, 5551),
}
STREAMS = "rabbitmq-stream"
EXAMPLE = "amqp://host:5672/vhost or kafka://host:9092,host2:9092 (with TLS amqps:// and kafka+tls://)"
SETTINGS = (
    "username",
    "password",
    "ca_file",
    "cert_file",
    "key_file",
    "tls_verify",
    "management_url",
    "prometheus_url",
    "stream_port",
)


@dataclass(frozen=True, slots=True)
class Address:
    """A broker's URL in its parts; the user and password that it held are in `credentials` alone.

    `hosts` are those of AMQP or Kafka, and where only a URL of the stream protocol was given, that one's.
    """

    broker: BrokerName
    hosts: tuple[tuple[str, int], ...]
    with_tls: bool
    virtual_host: str
    credentials: Credentials | None
    streams: Address | None = None
    scheme: str = ""

    @property
    def public(self) -> str:
        """The URL, or both where streams have one of their own, as it may be shown and recorded."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        path = "" if self.broker == "kafka" or self.virtual_host == "/" else f"/{self.virtual_host}"
        own = f"{self.scheme}://{hosts}{path}"
        return own if self.streams is None else f"{own} {self.streams.public}"

    @property
    def stream_port(self) -> int | None:
        """The port that the stream protocol's URL names."""
        if self.scheme.startswith(STREAMS):
            return self.hosts[0][1]
        return None if self.streams is None else self.streams.stream_port


def parse(spec: str) -> dict[BrokerName, Address]:
    """Reads the URLs of a spec; they are separated by blanks or commas."""
    addresses: dict[BrokerName, Address] = {}
    for text in re.split(r"[\s,]+(?=[a-z+-]+://)", spec.strip()):
        address = _parse_url(text)
        known = addresses.get(address.broker)
        pair = {each.scheme.startswith(STREAMS): each for each in (known, address) if each is not None}
        if len(pair) == 2 and pair[False].streams is None:
            address = _joined(pair[False], pair[True])
        elif known is not None:
            raise LoadgenError(f"two URLs for {address.broker} were given: one broker (or cluster) of a kind at a time")
        addresses[address.broker] = address
    return addresses


def _joined(amqp: Address, streams: Address) -> Address:
    """One RabbitMQ from the URLs of its two protocols."""
    both = [({host for host, _ in each.hosts}, each.with_tls) for each in (amqp, streams)]
    if both[0] != both[1]:
        raise LoadgenError(
            f"{amqp.public} and {streams.public}: expected the same hosts, both with TLS or both without"
        )
    return replace(amqp, streams=streams)


def public_spec(spec: str) -> str:
    """A spec as it may be shown and recorded: URLs without user and password."""
    return " ".join(address.public for address in parse(spec).values()) if "://" in spec else spec


def connect(spec: str, brokers: Sequence[BrokerName]) -> dict[BrokerName, Endpoint]:
    """Reaches each broker that is wanted, logs in, and reads what it tells of itself."""
    addresses = parse(spec)
    missing = [broker for broker in brokers if broker not in addresses]
    if missing:
        given = [broker for broker in brokers if broker in addresses]
        instead = f"--broker {given[0]}" if len(given) == 1 else "fewer brokers"
        raise LoadgenError(f"no URL for {' and '.join(missing)} was given: add one ({EXAMPLE}), or ask for {instead}")
    return {broker: _connect(addresses[broker]) for broker in brokers}


def status(spec: str) -> list[dict[str, Any]]:
    """Whether each broker of a spec can be reached and logged in to, as plain data."""
    records = []
    for broker, address in parse(spec).items():
        record: dict[str, Any] = {"broker": broker, "source": "external", "url": address.public}
        try:
            record |= {"running": True, "version": _connect(address).version}
        except BrokerError as error:
            record |= {"running": False, "error": str(error)}
        records.append(record)
    return records


def _connect(address: Address) -> Endpoint:
    reachable = [(host, port) for host, port in address.hosts if ports.is_listening(port, host, CONNECT_TIMEOUT_S)]
    if not reachable:
        raise BrokerError(f"{address.broker} at {address.public} cannot be reached: {_why_unreachable(address)}")
    settings = _settings(address.broker)
    credentials = address.credentials or _credentials(settings, address.broker)
    endpoint = Endpoint(
        broker=address.broker,
        hosts=(*reachable, *(host for host in address.hosts if host not in reachable)),
        credentials=credentials,
        tls=_tls(settings) if address.with_tls else None,
        virtual_host=address.virtual_host,
        management_url=settings.get("management_url"),
        prometheus_url=settings.get("prometheus_url"),
        stream_port=address.stream_port or (int(settings["stream_port"]) if "stream_port" in settings else None),
        source="external",
    )
    if address.scheme.startswith(STREAMS):
        return login.streams(endpoint)
    return (
        login.rabbitmq(endpoint, address.public)
        if address.broker == "rabbitmq"
        else login.kafka(endpoint, address.public)
    )


def _why_unreachable(address: Address) -> str:
    for host, port in address.hosts:
        try:
            socket.getaddrinfo(host, port)
        except OSError as error:
            return f"no address is known of {host} ({error.strerror}); check its spelling, or the name service"
    return "nothing accepts connections there; check host and port, and that the broker runs"


def _parse_url(text: str) -> Address:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in SCHEMES:
        # What is shown is the scheme alone: the rest may hold a password.
        shown = f"{scheme}://..." if separator else "a text without ://"
        raise LoadgenError(f"brokers: expected local, docker, or the URL of a broker like {EXAMPLE}, not {shown}")
    broker, with_tls, port_default = SCHEMES[scheme]
    userinfo, at, location = rest.rpartition("@")
    authority, _, path = location.partition("/")
    hosts = tuple(_parse_host(host, port_default, scheme) for host in authority.split(",") if host)
    if not hosts:
        raise LoadgenError(f"the {scheme} URL names no host: expected {EXAMPLE}")
    credentials = None
    if at:
        username, _, password = userinfo.partition(":")
        credentials = Credentials(unquote(username), unquote(password))
    virtual_host = unquote(path.partition("?")[0]) if broker == "rabbitmq" else ""
    return Address(broker, hosts, with_tls, virtual_host or "/", credentials, scheme=scheme)


def _parse_host(text: str, port_default: int, scheme: str) -> tuple[str, int]:
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::(\d+))?|([^:\[\]]+)(?::(\d+))?", text)
    if match is None or not 0 < int(match[2] or match[4] or port_default) < 65_536:
        raise LoadgenError(f"the {scheme} URL has a host that cannot be read: expected {EXAMPLE}")
    return match[1] or match[3], int(match[2] or match[4] or port_default)


def _settings(broker: BrokerName) -> dict[str, str]:
    settings: dict[str, str] = {}
    if path := os.environ.get("LOADGEN_CREDENTIALS_FILE"):
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8")).get(broker, {})
        except OSError as error:
            raise LoadgenError(f"LOADGEN_CREDENTIALS_FILE {path} cannot be read: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            # The parser's message may quote the text around the mistake.
            raise LoadgenError(f"LOADGEN_CREDENTIALS_FILE {path} is no TOML: expected [{broker}] tables") from error
        if unknown := sorted(set(table) - set(SETTINGS)):
            raise LoadgenError(
                f"LOADGEN_CREDENTIALS_FILE {path}: unknown {unknown[0]}, known are {', '.join(SETTINGS)}"
            )
        settings |= {name: str(value) for name, value in table.items()}
    for name in SETTINGS:
        if value := os.environ.get(f"LOADGEN_{broker}_{name}".upper()):
            settings[name] = value
    return settings


def _credentials(settings: dict[str, str], broker: BrokerName) -> Credentials | None:
    if "username" not in settings:
        # RabbitMQ always wants a user, and its shipped one is known; Kafka as shipped wants none.
        return Credentials("guest", "guest") if broker == "rabbitmq" else None
    return Credentials(settings["username"], settings.get("password", ""))


def _tls(settings: dict[str, str]) -> Tls:
    files = {name: Path(settings[name]) if name in settings else None for name in ("ca_file", "cert_file", "key_file")}
    for name, path in files.items():
        if path is not None and not path.is_file():
            raise LoadgenError(f"the TLS {name} {path} does not exist")
    return Tls(**files, verify=settings.get("tls_verify", "true").lower() not in {"0", "false", "no"})
