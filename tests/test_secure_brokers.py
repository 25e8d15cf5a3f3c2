"""TLS and passwords against real brokers: every driver, the control planes, and a whole run by URL."""

from __future__ import annotations

import contextlib
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import synthetic
import trustme
from cryptography.hazmat.primitives import serialization
from test_driver_contract import BROKER_OF, FIXED, Bench, demand_perfect, payloads_of, receive, send, sent_book

from loadgen import brokers, cli, engine
from loadgen.brokers import ending, external, login, ports, state
from loadgen.brokers.kinds import kind_of
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.client.event_loop import EventLoop
from loadgen.endpoint import Credentials, Endpoint, Tls
from loadgen.errors import BrokerError
from loadgen.knobs import resolve
from loadgen.ledger import settle
from loadgen.redaction import without_userinfo
from loadgen.scenario import Message, Uniform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from loadgen.endpoint import BrokerName

USER, PASSWORD, WRONG = "load", "op/en:s3same@%41", "op/en:sh0pfront"
QUOTED = quote(PASSWORD, safe="")
DRIVERS = [name for name in BROKER_OF if name != "memory"]
STREAMS = ("stream", "rstream")
LIBRARY_S = 1.0
LOGINS = {"rabbitmq-login": login.rabbitmq, "kafka-login": login.kafka}
SPREAD = Message(size_bytes=Uniform(min_bytes=24, max_bytes=40_000))  # within one TLS record, and over several


@dataclass(frozen=True)
class Papers:
    """Who vouches for the brokers, who does not, and the files of the brokers' own certificate."""

    authority: Path
    stranger: Path
    certificate: Path
    key: Path
    both: Path


@dataclass(frozen=True)
class Site:
    """A broker that wants TLS and a password, and its other port, which wants neither TLS nor (Kafka) a user."""

    secure: Endpoint
    plain_port: int


def papers_in(folder: Path) -> Papers:
    """An authority, the brokers' certificate by it, and another authority."""
    papers = Papers(*(folder / f"{name}.pem" for name in ("authority", "stranger", "certificate", "key", "both")))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(papers.authority)
    trustme.CA().cert_pem.write_to_path(papers.stranger)
    issued = authority.issue_cert(ports.HOST)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,  # the one format that Kafka reads
        serialization.NoEncryption(),
    )
    papers.certificate.write_bytes(chain)
    papers.key.write_bytes(key)
    papers.both.write_bytes(key + chain)
    return papers


def rabbitmq_settings(node: dict[str, int], papers: Papers) -> dict[str, str]:
    """A TLS listener, and one user."""
    return {
        "listeners.ssl.1": f"{ports.HOST}:{node['tls']}",
        "stream.listeners.ssl.1": f"{ports.HOST}:{node['stream_tls']}",
        "ssl_options.cacertfile": str(papers.authority),
        "ssl_options.certfile": str(papers.certificate),
        "ssl_options.keyfile": str(papers.key),
        "ssl_options.verify": "verify_none",
        "default_user": USER,
        "default_pass": PASSWORD,
    }


def kafka_settings(node: dict[str, int], papers: Papers) -> dict[str, str]:
    """A listener that wants TLS and SASL PLAIN, beside the plain one that the broker uses for itself."""
    plain, secure = f"PLAINTEXT://{ports.HOST}:{node['kafka']}", f"SASL_SSL://{ports.HOST}:{node['tls']}"
    jaas = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    return {
        "listeners": f"{plain},{secure},CONTROLLER://{ports.HOST}:{node['controller']}",
        "advertised.listeners": f"{plain},{secure}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": jaas,
        "offsets.topic.num.partitions": "1",  # 50 as shipped take seconds to make
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(papers.both),
    }


def planned(broker: BrokerName, folder: Path, papers: Papers, held: ExitStack) -> state.Cluster:
    """One node with a TLS port; it is ended by pid when `held` is closed."""
    kind = kind_of(broker)
    installation = kind.install(state.cache_dir(), print)
    node = state.Node(1, held.enter_context(ports.reserve([*kind.NODE_PORTS, "tls", "stream_tls"])))
    make = kafka_settings if broker == "kafka" else rabbitmq_settings
    cluster = state.Cluster(
        broker=broker,
        folder=state.make_dir(state.cluster_dir(broker, folder)),
        installation=installation.folder,
        version=installation.versions[broker],
        ports=held.enter_context(ports.reserve(kind.CLUSTER_PORTS)),
        nodes=[node],
        settings=make(node.ports, papers),
    )
    held.callback(ending.end, cluster, at_once=True)
    return cluster


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    """The certificates of this module."""
    return papers_in(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, papers: Papers) -> Iterator[dict[str, Site]]:
    """A private RabbitMQ (by AMQP and by streams) and a private Kafka, reached as anybody's brokers are: by URL."""
    with ExitStack() as held, pytest.MonkeyPatch.context() as patch:
        clusters = [planned(broker, tmp_path_factory.mktemp("secure"), papers, held) for broker in brokers.BOTH]
        for cluster in clusters:
            kind_of(cluster.broker).launch(cluster, cluster.nodes[0])
        for cluster in clusters:
            kind_of(cluster.broker).wait_ready(cluster, cluster.nodes[0])
        forget_settings(patch)
        for name, value in environment_of(papers).items():
            patch.setenv(name, value)
        nodes = {cluster.broker: cluster.nodes[0].ports for cluster in clusters}
        spec = f"amqps://{ports.HOST}:{nodes['rabbitmq']['tls']}/ kafka+tls://{ports.HOST}:{nodes['kafka']['tls']}"
        endpoints = external.connect(spec, brokers.BOTH)
        stream_url = f"rabbitmq-stream+tls://{ports.HOST}:{nodes['rabbitmq']['stream_tls']}"
        streams = external.connect(stream_url, ["rabbitmq"])["rabbitmq"]
        patch.undo()
        yield {
            "rabbitmq": Site(endpoints["rabbitmq"], nodes["rabbitmq"]["amqp"]),
            **dict.fromkeys(STREAMS, Site(streams, nodes["rabbitmq"]["stream"])),
            "kafka": Site(endpoints["kafka"], nodes["kafka"]["kafka"]),
        }


def forget_settings(patch: pytest.MonkeyPatch) -> None:
    """The tester's own credentials stay out of these tests."""
    for name in list(os.environ):
        if name.startswith(("LOADGEN_RABBITMQ_", "LOADGEN_KAFKA_", "LOADGEN_CREDENTIALS")):
            patch.delenv(name)


def environment_of(papers: Papers) -> dict[str, str]:
    """The variables by which both brokers are let in to."""
    return {
        f"LOADGEN_{broker}_{name}": value
        for broker in ("RABBITMQ", "KAFKA")
        for name, value in (("USERNAME", USER), ("PASSWORD", PASSWORD), ("CA_FILE", str(papers.authority)))
    }


@pytest.mark.parametrize("name", DRIVERS)
def test_messages_come_intact_over_tls(name: str, sites: dict[str, Site]) -> None:
    """Over TLS and with a password, all messages, small and of several records, are confirmed and come as sent."""
    with contextlib.closing(Bench(name, site_of(name, sites).secure)) as bench:
        target = bench.target()
        consumer = bench.consumer(target)
        settled = send(bench.producer(target, payloads_of(message=SPREAD)), 200)
        books = receive([consumer], SPREAD, 200)
        demand_perfect(settle([sent_book(0, 200, settled)], books), 200)


@pytest.mark.parametrize("name", DRIVERS)
def test_any_certificate_will_do_where_none_is_verified(name: str, sites: dict[str, Site]) -> None:
    """With tls_verify = false no authority is asked for, and neither is the name."""
    site = site_of(name, sites)
    endpoint = replace(site.secure, tls=Tls(verify=False), hosts=(("localhost", site.secure.hosts[0][1]),))
    with contextlib.closing(Bench(name, endpoint)) as bench:
        target = bench.target()
        consumer = bench.consumer(target)
        settled = send(bench.producer(target, payloads_of()), 1)
        demand_perfect(settle([sent_book(0, 1, settled)], receive([consumer], FIXED, 1)), 1)


def site_of(name: str, sites: dict[str, Site]) -> Site:
    """Where a driver, or a broker of this name, is tried."""
    return sites[name] if name in sites else sites[BROKER_OF[name]]


def wrong_password(site: Site, papers: Papers) -> Endpoint:
    """The right user with another password."""
    del papers
    return replace(site.secure, credentials=Credentials(USER, WRONG))


def unknown_authority(site: Site, papers: Papers) -> Endpoint:
    """Another authority than the one that vouches for the broker."""
    return replace(site.secure, tls=Tls(papers.stranger))


def system_authorities(site: Site, papers: Papers) -> Endpoint:
    """No authority given: the system's, of which none knows the broker."""
    del papers
    return replace(site.secure, tls=Tls())


def another_name(site: Site, papers: Papers) -> Endpoint:
    """The right broker under a name that its certificate does not hold."""
    del papers
    return replace(site.secure, hosts=(("localhost", site.secure.hosts[0][1]),))


def plain_text_to_tls(site: Site, papers: Papers) -> Endpoint:
    """amqp:// where it should be amqps://."""
    del papers
    return replace(site.secure, tls=None)


def tls_to_plain_text(site: Site, papers: Papers) -> Endpoint:
    """amqps:// where it should be amqp://."""
    del papers
    stream_port = None if site.secure.stream_port is None else site.plain_port
    return replace(site.secure, hosts=((ports.HOST, site.plain_port),), stream_port=stream_port)


MISTAKES: dict[Callable[[Site, Papers], Endpoint], str] = {
    wrong_password: USER,
    unknown_authority: "LOADGEN_{}_CA_FILE",
    system_authorities: "LOADGEN_{}_CA_FILE",
    another_name: "not valid for 'localhost'",
    plain_text_to_tls: "TLS",
    tls_to_plain_text: "TLS",
}


def openers(way: str) -> list[Callable[[Endpoint], Any]]:
    """Everything by which a driver connects, or the first words with an external broker."""
    if way in LOGINS:
        return [lambda endpoint: LOGINS[way](endpoint, endpoint.address)]
    driver = load_driver(way)
    knobs = resolve(BROKER_OF[way], {"driver": way} if way in STREAMS else {}, "broker", "default")

    def target(endpoint: Endpoint) -> Target:
        return Target(endpoint, "nowhere", knobs, group="nobody")

    return [
        driver.admin,
        lambda endpoint: driver.producer(target(endpoint), payloads_of()),
        lambda endpoint: driver.consumer(target(endpoint), 0, 1),
    ]


@pytest.mark.parametrize("way", [*DRIVERS, *LOGINS])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(
    way: str,
    mistake: Callable[[Site, Papers], Endpoint],
    sites: dict[str, Site],
    papers: Papers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Producer, consumer and admin name the broker's address and what to mend, and never the password.

    A library that waits in vain for an answer is given a second, and not ten, before the broker is asked what is wrong.
    """
    monkeypatch.setattr(EventLoop.run, "__defaults__", (LIBRARY_S,))
    site = site_of(way.removesuffix("-login"), sites)
    endpoint = mistake(site, papers)
    for opener in openers(way):
        with pytest.raises(BrokerError) as caught:
            opener(endpoint)
        line = str(caught.value)
        assert "\n" not in line
        assert endpoint.address in line
        assert MISTAKES[mistake].format(endpoint.broker.upper()) in line
        assert PASSWORD not in line
        assert WRONG not in line


def spec_of(sites: dict[str, Site], userinfo: str = "") -> str:
    """Both brokers by URL."""
    rabbitmq, kafka = sites["rabbitmq"].secure.address, sites["kafka"].secure.address
    return f"amqps://{userinfo}{rabbitmq}/ kafka+tls://{userinfo}{kafka}"


@pytest.fixture
def spec(
    request: pytest.FixtureRequest,
    sites: dict[str, Site],
    papers: Papers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The brokers' URLs, with the password where the parameter says."""
    forget_settings(monkeypatch)
    variables = environment_of(papers)
    if request.param == "file":
        path = tmp_path / "credentials.toml"
        table = f'username = "{USER}"\npassword = "{PASSWORD}"\nca_file = "{papers.authority}"\n'
        path.write_text(f"[rabbitmq]\n{table}[kafka]\n{table}")
        variables = {"LOADGEN_CREDENTIALS_FILE": str(path)}
    elif request.param == "url":
        variables = {name: value for name, value in variables.items() if name.endswith("CA_FILE")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return spec_of(sites, f"{USER}:{QUOTED}@" if request.param == "url" else "")


@pytest.mark.parametrize(
    ("spec", "names"),
    [("environment", ["rabbitmq", "kafka"]), ("file", ["kafka"]), ("url", ["rabbitmq"])],
    indirect=["spec"],
)
def test_a_run_leaves_no_password_behind(
    spec: str,
    names: list[BrokerName],
    sites: dict[str, Site],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A whole run by URL loses nothing, and neither its files nor its output hold the password."""
    monkeypatch.setattr(engine, "is_warmed", lambda _: True)
    results = tmp_path / "results"
    words = ["run", "scenarios/latency.py", "--set", "rate=200", "--set", "duration_s=1", "--set", "warmup_s=0"]
    words += ["--repeats", "1", "--results", str(results), "--brokers", spec]
    with contextlib.nullcontext() if len(names) > 1 else synthetic.undrawn():  # one with charts is enough
        status = cli.main(words if len(names) > 1 else [*words, "--broker", *names])
    output = "".join(capfd.readouterr())
    assert status in {0, 2}, output  # a loaded machine may spoil the second
    run = json.loads(next(results.glob("*/run.json")).read_text())
    assert sorted(each["broker"] for each in run["trials"]) == sorted(names)
    assert {(each["status"], each["lost"], each["corrupted"]) for each in run["trials"]} == {("complete", 0, 0)}
    assert all(each["received"] == each["sent"] > 0 for each in run["trials"])
    assert run["command"][:2] == ["loadgen", "run"]
    assert spec_of(sites).replace("/ ", " ") in run["command"]
    written = [path.read_bytes() for path in results.rglob("*") if path.is_file()]
    assert len(written) > 3
    for secret in (PASSWORD, QUOTED):
        assert secret not in output
        assert not [1 for data in written if secret.encode() in data]


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("amqps://u:p@h:1/v", "amqps://h:1/v"),
        ("kafka://u:p/@:x@a:1,b:2", "kafka://a:1,b:2"),
        ("amqp://u:p@h,kafka+tls://u:q@k", "amqp://h,kafka+tls://k"),
        ("at amqp://u:p@h refused 'x@y'", "at amqp://h refused 'x@y'"),
        ("amqp:/u:p@h: no such file", "amqp:/h: no such file"),
        ("amqp://h:1 refused 'x@y'", "amqp://h:1 refused 'x@y'"),
    ],
)
def test_user_and_password_are_taken_out_of_every_url(text: str, public: str) -> None:
    """In a text for people the rest of a URL stays, also where it was taken for a path."""
    assert without_userinfo(text) == public


@pytest.mark.parametrize("place", [["run"], ["status", "--brokers", "local"], ["report"]])
def test_a_url_in_the_wrong_place_is_told_without_its_password(
    place: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Two URLs without the quotes around them: the second is no scenario, no argument and no run."""
    with contextlib.suppress(SystemExit):
        cli.main([*place, f"kafka+tls://{USER}:{QUOTED}@127.0.0.1:9"])
    told = "".join(capfd.readouterr())
    assert "127.0.0.1:9" in told
    assert QUOTED not in told
