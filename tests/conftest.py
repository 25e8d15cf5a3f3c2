"""What the whole session shares: one RabbitMQ and one Kafka, started once and ended at its end."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from loadgen.brokers import open_brokers
from loadgen.brokers.state import brokers_dir, cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadgen.endpoint import BrokerName, Endpoint


if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Each of the processes that share the tests has brokers of its own, of the one installation.
    os.environ.setdefault("LOADGEN_CACHE_DIR", str(cache_dir()))
    os.environ["LOADGEN_BROKERS_DIR"] = str(brokers_dir() / worker)


@pytest.fixture(scope="session")
def endpoints() -> Iterator[dict[BrokerName, Endpoint]]:
    """Both brokers, real ones, private to this checkout."""
    with open_brokers("local", progress=print) as opened:
        yield opened


@pytest.fixture(scope="session")
def rabbitmq_endpoint(endpoints: dict[BrokerName, Endpoint]) -> Endpoint:
    """The session's RabbitMQ."""
    return endpoints["rabbitmq"]


@pytest.fixture(scope="session")
def kafka_endpoint(endpoints: dict[BrokerName, Endpoint]) -> Endpoint:
    """The session's Kafka."""
    return endpoints["kafka"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=loadgen", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key
