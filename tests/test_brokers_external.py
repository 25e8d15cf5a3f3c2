"""Brokers by URL: a wrong address, user or password is one line within seconds, and no password is ever shown."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loadgen import brokers
from loadgen.brokers import external, kafka, login, ports
from loadgen.endpoint import Credentials, Tls
from loadgen.errors import BrokerError, LoadgenError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.brokers.state import Cluster, Node
    from loadgen.endpoint import Endpoint

PASSWORD = "s3cret/@:#"  # noqa: S105
QUOTED = "s3cret%2F%40%3A%23"
CACHE = Path(os.environ.get("LOADGEN_CACHE_DIR", Path(__file__).parents[1] / ".brokers/install")).absolute()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tester's own credentials stay out of these tests."""
    for name in list(os.environ):
        if name.startswith(("LOADGEN_RABBITMQ_", "LOADGEN_KAFKA_", "LOADGEN_CREDENTIALS")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def sasl_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real Kafka that wants a user (u) and a password."""
    plain = kafka._settings
    with ports.reserve(["sasl"]) as reserved, pytest.MonkeyPatch.context() as patch:
        listener = f"SASL_PLAINTEXT://127.0.0.1:{reserved['sasl']}"

        def with_sasl(cluster: Cluster, node: Node) -> dict[str, tuple[str, str]]:
            settings = plain(cluster, node)
            for key in ("listeners", "advertised.listeners"):
                settings[key] = (f"{settings[key][0]},{listener}", "a test's")
            jaas = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_u="{PASSWORD}";'
            protocols = f"{settings['listener.security.protocol.map'][0]},SASL_PLAINTEXT:SASL_PLAINTEXT"
            settings["listener.security.protocol.map"] = (protocols, "a test's")
            settings["sasl.enabled.mechanisms"] = ("PLAIN", "a test's")
            settings["listener.name.sasl_plaintext.plain.sasl.jaas.config"] = (jaas, "a test's")
            return settings

        patch.setattr(kafka, "_settings", with_sasl)
        patch.setenv("LOADGEN_BROKERS_DIR", str(tmp_path_factory.mktemp("sasl")))
        patch.setenv("LOADGEN_CACHE_DIR", str(CACHE))
        with brokers.open_brokers(brokers=["kafka"]) as opened:
            assert PASSWORD not in repr(opened)
            assert opened["kafka"].configuration["broker_not_default"]["sasl.enabled.mechanisms"] == "PLAIN"
            yield reserved["sasl"]


@contextlib.contextmanager
def refused(*words: str) -> Iterator[None]:
    """Expects one line that holds these words and no password."""
    with pytest.raises(BrokerError) as caught:
        yield
    line = str(caught.value)
    assert "\n" not in line
    assert all(word in line for word in words), line
    assert PASSWORD not in line


@pytest.mark.parametrize(
    ("url", "public"),
    [
        (f"amqp://u:{QUOTED}@rabbit.example/orders", "amqp://rabbit.example:5672/orders"),
        ("amqps://rabbit.example:1234/%2F", "amqps://rabbit.example:1234"),
        (f"kafka://u:{QUOTED}@a:1,b:2,c", "kafka://a:1,b:2,c:9092"),
        ("kafka+tls://[::1]:9093", "kafka+tls://[::1]:9093"),
        (f"rabbitmq-stream://u:{QUOTED}@rabbit.example/orders", "rabbitmq-stream://rabbit.example:5552/orders"),
        ("rabbitmq-stream+tls://rabbit.example", "rabbitmq-stream+tls://rabbit.example:5551"),
    ],
)
def test_a_url_is_read_and_its_password_taken_out(url: str, public: str) -> None:
    """What may be shown of a URL has all of it but the user and the password."""
    (address,) = external.parse(url).values()
    assert address.public == public == external.public_spec(url)
    if "@" in url:
        assert address.credentials == Credentials("u", PASSWORD)
    assert PASSWORD not in repr(address)


def test_two_urls_are_two_brokers() -> None:
    """URLs may be separated by blanks or commas, although a comma also separates Kafka's hosts."""
    for separator in (" ", ",", " , "):
        parsed = external.parse(separator.join(["kafka://a:1,b:2", "amqp://c"]))
        assert parsed["kafka"].hosts == (("a", 1), ("b", 2))
        assert parsed["rabbitmq"].hosts == (("c", 5672),)


def test_streams_may_have_a_url_beside_amqp() -> None:
    """Either order gives one RabbitMQ, reached by both protocols; a third URL is one too many."""
    urls = ["amqp://a:1/v", "rabbitmq-stream://a:2"]
    for spec in (" ".join(urls), ",".join(reversed(urls))):
        (address,) = external.parse(spec).values()
        assert (address.hosts, address.stream_port) == ((("a", 1),), 2)
        assert address.public == "amqp://a:1/v rabbitmq-stream://a:2" == external.public_spec(spec)
    with pytest.raises(LoadgenError, match="one broker"):
        external.parse(" ".join([*urls, "rabbitmq-stream://c:3"]))
    for other in ("rabbitmq-stream://b:2", "rabbitmq-stream+tls://a:2"):
        with pytest.raises(LoadgenError, match="the same hosts"):
            external.parse(f"{urls[0]} {other}")


def test_streams_alone_are_enough(rabbitmq_endpoint: Endpoint) -> None:
    """Where only the stream listener is reached, the broker still tells its version, and lets nobody else in."""
    where = f"127.0.0.1:{rabbitmq_endpoint.stream_port}"
    endpoint = external.connect(f"rabbitmq-stream://{where}", ["rabbitmq"])["rabbitmq"]
    assert (endpoint.version, endpoint.stream_port) == (rabbitmq_endpoint.version, rabbitmq_endpoint.stream_port)
    with refused("guest", "user and password"):
        external.connect(f"rabbitmq-stream://guest:{QUOTED}@{where}", ["rabbitmq"])


@pytest.mark.parametrize(
    "spec",
    ["", "locl", f"http://u:{QUOTED}@a", f"u:{QUOTED}@host", "amqp://", "kafka://a:0", "kafka://a kafka://b"],
)
def test_a_spec_that_cannot_be_read_says_what_was_expected(spec: str) -> None:
    """A mistake in a URL is one line that shows an example and not the URL, which may hold a password."""
    with pytest.raises(LoadgenError, match=r"expected|one broker") as caught:
        external.connect(spec, ["kafka"])
    assert QUOTED not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "broker"), [("amqp", "rabbitmq"), ("kafka", "kafka")])
def test_an_unreachable_broker_is_one_line(scheme: str, broker: str) -> None:
    """Nothing listens there: the line names the broker and the address, without a password."""
    with ports.reserve(["closed"]) as reserved:
        address = f"127.0.0.1:{reserved['closed']}"
        with refused(broker, address, "cannot be reached"):
            external.connect(f"{scheme}://u:{QUOTED}@{address}", [broker])  # type: ignore[list-item]


def test_a_host_that_has_no_address_reads_otherwise_than_a_closed_port() -> None:
    """The name is what is wrong, and is shown."""
    with refused("no address is known of nowhere.invalid"):
        external.connect("amqp://nowhere.invalid", ["rabbitmq"])


def test_what_is_no_broker_is_told_without_a_class_name() -> None:
    """Something hangs up: the line says that, and not what a library calls it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def hang_up() -> None:
            for _ in range(2):  # the look whether anything listens, and the login
                server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        with refused("rabbitmq", address, "it hung up during the handshake"):
            external.connect(f"amqp://{address}", ["rabbitmq"])


@pytest.mark.parametrize(("scheme", "broker"), [("amqp", "rabbitmq"), ("kafka", "kafka")])
def test_a_server_that_says_nothing_is_given_up(scheme: str, broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something accepts the connection and never answers: not a broker, told within the time limit."""
    monkeypatch.setattr(login, "TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with refused(broker, address, "does not answer"):
            external.connect(f"{scheme}://{address}", [broker])  # type: ignore[list-item]


def test_rabbitmq_refuses_a_wrong_password_and_a_wrong_virtual_host(rabbitmq_endpoint: Endpoint) -> None:
    """Both are one line that says which variables to set or what to check."""
    with refused("rabbitmq", rabbitmq_endpoint.address, "'guest'", "LOADGEN_RABBITMQ_PASSWORD"):
        external.connect(f"amqp://guest:{QUOTED}@{rabbitmq_endpoint.address}", ["rabbitmq"])
    with refused("rabbitmq", "'nowhere'"):
        external.connect(f"amqp://{rabbitmq_endpoint.address}/nowhere", ["rabbitmq"])


def test_an_external_rabbitmq_tells_its_version(rabbitmq_endpoint: Endpoint) -> None:
    """With the right password (the shipped one) the endpoint is complete, and `status` says that it runs."""
    url = f"amqp://{rabbitmq_endpoint.address}"
    with brokers.open_brokers(url, ["rabbitmq"]) as opened:
        assert opened["rabbitmq"].version == rabbitmq_endpoint.version
        assert opened["rabbitmq"].source == "external"
        assert opened["rabbitmq"].virtual_host == "/"
    assert brokers.status(url) == [
        {
            "broker": "rabbitmq",
            "source": "external",
            "url": url,
            "running": True,
            "version": rabbitmq_endpoint.version,
        }
    ]


def test_an_external_kafka_without_users_tells_its_configuration(kafka_endpoint: Endpoint) -> None:
    """What differs from Kafka's defaults is read from the broker itself."""
    endpoint = external.connect(f"kafka://{kafka_endpoint.address}", ["kafka"])["kafka"]
    assert endpoint.configuration["broker"]["num.io.threads"] == "8"
    assert any(line.startswith("offsets.topic.replication.factor = 1 (") for line in endpoint.deviations)


def test_kafka_refuses_a_wrong_password(sasl_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the user and the variables to set; the right password, from the environment, is let in."""
    address = f"127.0.0.1:{sasl_port}"
    with refused("kafka", address, "'u'", "LOADGEN_KAFKA_PASSWORD"):
        external.connect(f"kafka://u:wrong@{address}", ["kafka"])
    monkeypatch.setenv("LOADGEN_KAFKA_USERNAME", "u")
    monkeypatch.setenv("LOADGEN_KAFKA_PASSWORD", PASSWORD)
    endpoint = external.connect(f"kafka://{address}", ["kafka"])["kafka"]
    assert endpoint.credentials == Credentials("u", PASSWORD)
    assert PASSWORD not in repr(endpoint)


def test_credentials_may_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file's tables are named after the brokers; the environment wins over it, the URL over both."""
    path = tmp_path / "credentials.toml"
    authority = tmp_path / "ca.pem"
    authority.touch()
    path.write_text(f'[rabbitmq]\nusername = "f"\npassword = "{PASSWORD}"\nca_file = "{authority}"\n')
    monkeypatch.setenv("LOADGEN_CREDENTIALS_FILE", str(path))
    settings = external._settings("rabbitmq")
    assert external._credentials(settings, "rabbitmq") == Credentials("f", PASSWORD)
    assert external._tls(settings) == Tls(ca_file=authority)
    monkeypatch.setenv("LOADGEN_RABBITMQ_USERNAME", "e")
    assert external._credentials(external._settings("rabbitmq"), "rabbitmq") == Credentials("e", PASSWORD)


@pytest.mark.parametrize("text", [f'[kafka]\npasswort = "{PASSWORD}"', f'[kafka]\npassword = "{PASSWORD}'])
def test_a_mistake_in_the_credentials_file_does_not_show_it(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A key that does not exist, or what is no TOML, is told without a value of the file."""
    path = tmp_path / "credentials.toml"
    path.write_text(text)
    monkeypatch.setenv("LOADGEN_CREDENTIALS_FILE", str(path))
    with pytest.raises(LoadgenError, match=r"credentials\.toml") as caught:
        external._settings("kafka")
    assert PASSWORD not in str(caught.value)


def test_external_brokers_are_never_ended() -> None:
    """`down` with a URL is refused."""
    with pytest.raises(LoadgenError, match="only ends brokers that it started"):
        brokers.down("amqp://somewhere")
