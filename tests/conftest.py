"""What the whole session shares: one RabbitMQ and one Kafka, started once and ended at its end."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import psutil
import pytest
from xdist.scheduler import LoadFileScheduling

from loadgen.brokers import kafka, mark_warmed, open_brokers
from loadgen.brokers.state import brokers_dir, cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import BrokerName, Endpoint


# How long an example takes is the machine's affair; half of what is usual, as the suite has twenty minutes, and the
# same ones in each run: what a commit breaks is then its own. --hypothesis-profile=explore looks for new ones.
hypothesis.settings.register_profile("suite", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=500)
hypothesis.settings.load_profile("suite")
ROOM_BYTES = 12 << 30
IN_MEMORY = "loadgen-tests-"
IN_USE = pytest.StashKey[int]()  # a lock on what is there
SATURATING = {
    f"tests/test_{name}.py"
    for name in ("nullbroker", "ceiling", "searching", "pubsub", "backlog", "decide", "gate_tried")
}
"""Whose trials take all of both cores: they come one after another, as two at once leave each other nothing."""


class ByFile(LoadFileScheduling):
    """A file's tests go to one process, as they share brokers; those that saturate the machine all go to one."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "saturating" if file in SATURATING else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    """Where tests are shared out by file, this way."""
    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


def _room() -> Path:
    """Where the session's brokers keep their data: in memory where there is much of it, else in the checkout.

    A virtual disk may stand still for ten seconds after many flushes; what a broker then does is not what is tested.
    """
    shared = Path("/dev/shm")  # noqa: S108 - a folder of this user alone is made in it
    if not shared.is_dir() or min(psutil.virtual_memory().available, shutil.disk_usage(shared).free) < ROOM_BYTES:
        return brokers_dir()
    checkout = hashlib.sha256(str(brokers_dir().resolve()).encode()).hexdigest()[:12]
    return shared / f"{IN_MEMORY}{os.getuid()}-{checkout}"


if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Each of the processes that share the tests has brokers of its own, of the one installation.
    os.environ.setdefault("LOADGEN_CACHE_DIR", str(cache_dir()))
    ROOM = Path(os.environ["LOADGEN_TESTS_DIR"]) / worker
    ROOM.mkdir(parents=True, mode=0o700, exist_ok=True)
    os.environ["LOADGEN_BROKERS_DIR"] = str(ROOM)
else:  # who starts the others: they see one room, whatever memory is left when each begins
    os.environ["LOADGEN_TESTS_DIR"] = str(_room())


# No test asks how fast Kafka is: its JVM is spared the compiler that pays only on a broker that runs for long. As in
# Kafka's own scripts, the variable stands in place of what is shipped.
os.environ.setdefault(kafka.JVM_VARIABLE, " ".join((*kafka.JVM_FLAGS, "-XX:TieredStopAtLevel=1")))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's job in the background hands that on to all that it starts, and tests press Ctrl-C in what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Keep what tests write beside their brokers' data, in memory, and have all be written that waits for the disk.

    Each trial waits until that has been written, half a minute at most: it is the runs of other tests, or what was
    installed just now.
    """
    if worker or not config.getoption("numprocesses", None):
        return
    threading.Thread(target=os.sync, daemon=True).start()
    room = Path(os.environ["LOADGEN_TESTS_DIR"])
    if room.name.startswith(IN_MEMORY):
        room.mkdir(parents=True, mode=0o700, exist_ok=True)
        config.stash[IN_USE] = os.open(room, os.O_RDONLY)
        fcntl.flock(config.stash[IN_USE], fcntl.LOCK_SH)
        if not os.statvfs(room).f_flag & os.ST_NOEXEC:  # some tests write programs
            os.environ["PYTEST_DEBUG_TEMPROOT"] = str(room)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file without any of the tests that alone are asked for: `-m "alone …"`, `-m long`."""
    wanted = str(config.getoption("markexpr")).partition(" ")[0]
    if wanted not in {"alone", "long"} or collection_path.suffix != ".py":
        return None
    return True if f"mark.{wanted}" not in collection_path.read_text(encoding="utf-8") else None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing in memory, but to others that test this checkout."""
    if (held := config.stash.get(IN_USE, None)) is None:
        return
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(os.environ["LOADGEN_TESTS_DIR"], ignore_errors=True)
    os.close(held)


# Files that take the longest, in turn: whoever shares the tests by files begins with these, and ends together.
LONGEST = (
    "test_pubsub",  # and with it all that saturate
    "test_clusters", "test_probes", "test_engine", "test_brokers_local", "test_cli", "test_secure_brokers",
    "test_faults", "test_distributed", "test_locust_failures", "test_report_load", "test_driver_contract",
    "test_crashes", "test_report_page", "test_hung_broker", "test_backlog", "test_ceiling", "test_gate_tried",
    "test_amqp_recovery", "test_kafka_drivers", "test_nullbroker", "test_locust_users", "test_fleet",
    "test_rabbitmq_connections", "test_prove_aa", "test_prove_queueing", "test_notebooks", "test_searching",
    "test_docs_commands", "test_rabbitmq_topology", "test_report_ceiling", "test_processing", "test_rabbitmq_removals",
    "test_docs", "test_report_ab", "test_report", "test_all_scenarios", "test_gate", "test_request_reply",
    "test_membership", "test_think", "test_soak", "test_network", "test_locust_web", "test_exposition", "test_decide",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, each in its own order."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _as_installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs that tests start have no hypothesis, as users have none: kio imports it wherever it is."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "hypothesis.py").write_text('raise ImportError("as loadgen is installed, there is none")\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session", autouse=True)
def _small_pictures() -> Iterator[None]:
    """No test looks at the pixels of a chart, which take as long as its drawing."""
    from loadgen.report import drawing  # noqa: PLC0415 - who only starts the others has no need of matplotlib

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "PNG_DPI", 30)
        yield


@pytest.fixture(scope="session")
def endpoints() -> Iterator[dict[BrokerName, Endpoint]]:
    """Both brokers, real ones, private to this checkout."""
    with open_brokers("local", progress=print) as opened:
        for endpoint in opened.values():  # no test asks how fast they are, and each run would wait for their warm-up
            mark_warmed(endpoint)
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
