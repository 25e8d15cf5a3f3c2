"""What encryption and a login cost: the same load over each kind of listener of one broker, in turns.

A private broker has listeners of every kind beside its plain one, with a certificate that is made for it; kinds take
turns within each repeat, so that a drift of the machine falls on all alike. RabbitMQ's clients always log in (SASL
PLAIN), so that TLS is what can be added; Kafka's log in only where they are told to. What is compared is the closed
loop's goodput and the client's and the broker's CPU time for a message: where the CPU is what is short, and on one
machine it is, the one explains the other.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from loadgen.brokers import ports
from loadgen.brokers.ending import PRIVATE
from loadgen.brokers.local import cluster_of
from loadgen.brokers.state import brokers_dir, make_dir
from loadgen.endpoint import Credentials, Tls
from loadgen.errors import BrokerError
from loadgen.plan import Profile, make_plan
from loadgen.probes import Probe
from loadgen.probes.finding import Finding, NotHereError
from loadgen.probes.places import asked_of_management
from loadgen.record import enters
from loadgen.scenario import Durability, Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.plan import Trial
    from loadgen.probes.finding import Ground

USER = "loadgen"
LENGTHS = Profile("security", warmup_s=1.5, duration_s=2.5, repeats=1)
SIZE_BYTES = 1024
WARM_TRIALS = 1  # of each kind: a JVM's TLS is compiled like anything else


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of listener: its name, the port it has, and what a client needs for it."""

    name: str
    port: str
    is_encrypted: bool = False
    logs_in: bool = False


KINDS = {
    "rabbitmq": (Kind("login", "amqp"), Kind("login, TLS", "tls", is_encrypted=True)),
    "kafka": (
        Kind("plain", "kafka"),
        Kind("login", "sasl", logs_in=True),
        Kind("TLS", "tls", is_encrypted=True),
        Kind("login, TLS", "sasl_tls", is_encrypted=True, logs_in=True),
    ),
}


@dataclass(frozen=True, slots=True)
class Papers:
    """A certificate for this machine's loopback address, and who signed it."""

    authority: Path
    chain: Path
    key: Path
    both: Path


def look(ground: Ground, broker: BrokerName) -> Iterator[Finding]:
    """Goodput and CPU time for a message, by each kind of listener."""
    password = secrets.token_hex(16)
    home = make_dir(brokers_dir() / PRIVATE)  # where the next command looks for what a killed one left
    with TemporaryDirectory(prefix="papers-", dir=home) as folder:
        papers = _papers(Path(folder))
        own = _rabbitmq(papers) if broker == "rabbitmq" else _kafka(papers, password)
        with ground.fresh(broker, own, ports=("tls", "sasl", "sasl_tls")) as endpoint:
            reached = {kind: _endpoint(endpoint, kind, papers, password) for kind in KINDS[broker]}
            records: dict[Kind, list[dict[str, Any]]] = {kind: [] for kind in reached}
            for repeat in range(WARM_TRIALS + ground.repeats):
                for kind, place in reached.items():
                    ground.progress(f"{broker}, {kind.name}: {repeat + 1} of {WARM_TRIALS + ground.repeats}")
                    records[kind].append(_measured(_trial(broker), place, ground))
            for kind, tried in records.items():
                yield from _found(broker, kind, tried[WARM_TRIALS:], _own_word(reached[kind], kind))


def _found(broker: BrokerName, kind: Kind, tried: list[dict[str, Any]], said: str) -> Iterator[Finding]:
    used = [each for each in tried if enters(each)]
    if len(used) < len(tried):
        said += f"; {len(tried) - len(used)} of {len(tried)} trials were struck out"
    said += f"; bound by {', '.join(sorted({each['verdict']['bound_by'] for each in used})) or 'nothing that counts'}"
    point = f"{kind.name}, {SIZE_BYTES:,} B"
    for what, unit, of in (
        ("goodput", "msgs_per_s", lambda each: each["goodput_msgs_per_s"]),
        ("CPU a message, clients", "us", lambda each: _cpu_us(each, "producers", "consumers")),
        ("CPU a message, broker", "us", lambda each: _cpu_us(each, "broker")),
    ):
        values = tuple(float(value) for each in used if (value := of(each)) is not None)
        error = None if values else "no trial of it is to be used"
        yield Finding(broker, point, what, unit, values, said, bool(values), error)  # type: ignore[arg-type]


def _cpu_us(record: dict[str, Any], *roles: str) -> float | None:
    """CPU time of roles for each message of the window, in µs; None where one is not known."""
    count = record["achieved_msgs_per_s"] * record["window_s"]
    spent = [record["cpu_s"][role] for role in roles]
    return None if None in spent or not count else float(sum(spent) / count * 1e6)


def _measured(trial: Trial, endpoint: Endpoint, ground: Ground) -> dict[str, Any]:
    record, outcome = run_trial(trial, Setting(endpoint, ground.progress))
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.cause is not None:
        raise outcome.cause
    if outcome.error is not None:
        raise BrokerError(f"{endpoint.broker} at {endpoint.address}: {outcome.error}")
    return record


def _trial(broker: BrokerName) -> Trial:
    part: dict[str, Any] = {"kafka": Kafka()} if broker == "kafka" else {"rabbitmq": RabbitMQ()}
    scenario = Scenario(
        name="security",
        question="What do encryption and a login cost?",
        message=Message(size_bytes=SIZE_BYTES),
        rate=Rate.saturate(),
        durability=Durability.BROKER,
        preset="throughput",
        **part,
    )
    return make_plan([scenario], LENGTHS, brokers=(broker,)).trials[0]


def _own_word(endpoint: Endpoint, kind: Kind) -> str:
    """Which listeners the broker says that it has."""
    if endpoint.broker == "kafka":
        protocols = endpoint.configuration["broker"].get("listener.security.protocol.map")
        return f"listeners by protocol: {protocols}"
    listed = asked_of_management(endpoint, "overview") or {}
    names = sorted({each["protocol"] for each in listed.get("listeners", ()) if each["protocol"].startswith("amqp")})
    return f"listeners by protocol: {', '.join(names)}" if kind.is_encrypted or names else ""


def _endpoint(endpoint: Endpoint, kind: Kind, papers: Papers, password: str) -> Endpoint:
    """The broker by one of its listeners."""
    port = cluster_of(endpoint).nodes[0].ports[kind.port]
    reached = replace(endpoint, hosts=((ports.HOST, port),))
    if kind.is_encrypted:
        reached = replace(reached, tls=Tls(papers.authority))
    return replace(reached, credentials=Credentials(USER, password)) if kind.logs_in else reached


def _papers(folder: Path) -> Papers:
    """An authority of this probe's own, and a certificate by it."""
    try:
        import trustme  # noqa: PLC0415 - of an extra
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    except ImportError as error:
        raise NotHereError(
            f"no certificate can be made ({error}): install it with `pip install 'loadgen[probes]'`"
        ) from None
    papers = Papers(*(folder / f"{name}.pem" for name in ("authority", "chain", "key", "both")))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(papers.authority)
    issued = authority.issue_cert(ports.HOST)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,  # the one format that Kafka reads
        serialization.NoEncryption(),
    )
    for path, text in ((papers.chain, chain), (papers.key, key), (papers.both, key + chain)):
        path.touch(0o600)
        path.write_bytes(text)
    return papers


def _rabbitmq(papers: Papers) -> dict[str, str]:
    return {
        "listeners.ssl.1": f"{ports.HOST}:{{tls}}",
        "ssl_options.cacertfile": str(papers.authority),
        "ssl_options.certfile": str(papers.chain),
        "ssl_options.keyfile": str(papers.key),
        "ssl_options.verify": "verify_none",  # of clients, which have no certificate
    }


def _kafka(papers: Papers, password: str) -> dict[str, str]:
    protocols = {"PLAINTEXT": "kafka", "SASL_PLAINTEXT": "sasl", "SSL": "tls", "SASL_SSL": "sasl_tls"}
    listeners = [f"{name}://{ports.HOST}:{{{port}}}" for name, port in protocols.items()]
    jaas = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{password}";'
    return {
        "listeners": ",".join([*listeners, f"CONTROLLER://{ports.HOST}:{{controller}}"]),
        "advertised.listeners": ",".join(listeners),
        "listener.security.protocol.map": ",".join([*(f"{name}:{name}" for name in protocols), "CONTROLLER:PLAINTEXT"]),
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": jaas,
        "listener.name.sasl_ssl.plain.sasl.jaas.config": jaas,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(papers.both),
    }


PROBE = Probe("What do TLS and SASL cost, in rate and in CPU time a message?", look, 120.0)
