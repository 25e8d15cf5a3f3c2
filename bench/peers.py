"""The Java tools that loadgen is measured against: fetched with Maven, run against the same brokers.

Each function runs its tool to the end and returns its rates as the tool itself reports them interval by interval,
without the first `WARM_S` seconds of the JVM, and the CPU of its processes over the same stretch as the kernel accounts
it. They run as their makers ship them.
"""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import psutil

from loadgen.brokers import install, install_kafka, java, process
from loadgen.brokers.state import cache_dir

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.brokers.state import Progress
    from loadgen.endpoint import Endpoint

WARM_S = 6.0
PERF_TEST_VERSION = "2.22.1"
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>peers</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>com.rabbitmq</groupId><artifactId>perf-test</artifactId><version>{PERF_TEST_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """A tool's warm rates in messages a second, and the cores that its processes used meanwhile."""

    produced_msgs_per_s: float
    consumed_msgs_per_s: float
    cpu_cores: float

    @property
    def slower_msgs_per_s(self) -> float:
        """The smaller of the two rates."""
        return min(self.produced_msgs_per_s, self.consumed_msgs_per_s)

    @property
    def cpu_us_per_msg(self) -> float:
        """CPU microseconds for one message, sent and received."""
        return self.cpu_cores / self.slower_msgs_per_s * 1e6


@dataclass(slots=True)
class Tool:
    """A running tool: its output, and samples of (seconds since its start, CPU seconds used)."""

    command: list[str]
    output: str = ""
    samples: list[tuple[float, float]] = field(default_factory=list)

    def run(self, timeout_s: float) -> None:
        """Run to the end."""
        began = time.monotonic()
        with (
            tempfile.TemporaryFile("w+") as file,
            subprocess.Popen(self.command, stdout=file, stderr=subprocess.STDOUT) as process,
        ):
            watched = psutil.Process(process.pid)
            while process.poll() is None:
                if time.monotonic() - began > timeout_s:
                    process.kill()
                with contextlib.suppress(psutil.Error):
                    times = watched.cpu_times()
                    self.samples.append((time.monotonic() - began, times.user + times.system))
                time.sleep(0.1)
            file.seek(0)
            self.output = file.read()
        if process.returncode:
            raise RuntimeError(f"exit status {process.returncode}:\n{self.output[-2000:]}")

    @property
    def cpu_cores(self) -> float:
        """Cores used from the end of the warm-up to half a second before the end."""
        warm = [each for each in self.samples if WARM_S <= each[0] <= self.samples[-1][0] - 0.5]
        (t0, c0), (t1, c1) = warm[0], warm[-1]
        return (c1 - c0) / (t1 - t0)


def _perf_test_libs() -> Path:
    def build(folder: Path, progress: Progress) -> dict[str, str]:
        progress(f"fetching PerfTest {PERF_TEST_VERSION} with Maven")
        (folder / "pom.xml").write_text(POM, encoding="utf-8")
        process.run(
            ["mvn", "-q", "-B", "-f", folder / "pom.xml", "dependency:copy-dependencies",
             f"-DoutputDirectory={folder / 'libs'}"],
            what="fetching PerfTest with Maven", timeout_s=900, cwd=folder,
        )  # fmt: skip
        return {"perf-test": PERF_TEST_VERSION}

    return install.ensure(f"perf-test-{PERF_TEST_VERSION}", cache_dir(), build, print).folder / "libs"


def _java(libs: Path, *arguments: str, heap: str = "1g") -> list[str]:
    return [str(java.find_java(cache_dir(), print)), f"-Xmx{heap}", "-cp", f"{libs}/*", *arguments]


def _run(tools: list[Tool], timeout_s: float) -> float:
    """Run tools side by side to their ends; the cores that they used together when warm."""
    threads = [threading.Thread(target=tool.run, args=(timeout_s,)) for tool in tools]
    for thread in threads:
        thread.start()
        time.sleep(0.5)  # consumers are given first, and join before the producer is at speed
    for thread in threads:
        thread.join()
    return sum(tool.cpu_cores for tool in tools)


def _warm(pattern: str, output: str, interval_s: float) -> float:
    """The mean of the rates that a tool printed once an interval, the warm-up's and the last, cut one left out."""
    rates = [float(each) for each in re.findall(pattern, output)]
    warm = rates[math.ceil(WARM_S / interval_s) : -1]
    if not warm:
        raise RuntimeError(f"no warm {pattern!r} in the tool's output:\n{output[-2000:]}")
    return statistics.mean(warm)


def _consumed(output: str) -> float:
    """kafka-consumer-perf-test's warm rate, from its running count."""
    row = r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d):(\d+), \d+, [\d.]+, [\d.]+, (\d+),"
    rows = re.findall(row, output, re.MULTILINE)
    counts = [(datetime.fromisoformat(at).timestamp() + int(ms) / 1e3, int(count)) for at, ms, count in rows]
    flowing = [(at, count) for at, count in counts if count > 0]
    warm = [(at, count) for at, count in flowing if at >= flowing[0][0] + WARM_S - 1]
    (t0, n0), (t1, n1) = warm[0], warm[-1]
    return (n1 - n0) / (t1 - t0)


PRODUCED = r"records sent, ([\d.]+) records/sec"


def _producer(server: str, topic: str, settings: dict[str, object], records: int, size_bytes: int) -> Tool:
    libs = install_kafka.ensure(cache_dir(), print).folder / "libs"
    knobs = [f"{knob.replace('_', '.')}={str(value).lower()}" for knob, value in settings.items()]
    return Tool(
        _java(
            libs, "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", str(records),
            "--record-size", str(size_bytes), "--throughput", "-1", "--reporting-interval", "1000", "--producer-props",
            f"bootstrap.servers={server}", *knobs,
        )
    )  # fmt: skip


def kafka_tools(endpoint: Endpoint, topic: str, settings: dict[str, object], records: int, size_bytes: int) -> Measured:
    """kafka-producer-perf-test and kafka-consumer-perf-test at once on one topic."""
    libs = install_kafka.ensure(cache_dir(), print).folder / "libs"
    producer = _producer(endpoint.address, topic, settings, records, size_bytes)
    consumer = Tool(
        _java(
            libs,
            "org.apache.kafka.tools.ConsumerPerformance",
            *("--bootstrap-server", endpoint.address, "--topic", topic, "--num-records", str(records)),
            *("--timeout", "60000", "--fetch-size", str(4 << 20), "--show-detailed-stats"),
            *("--reporting-interval", "1000"),
        )
    )
    cores = _run([consumer, producer], timeout_s=300)
    return Measured(_warm(PRODUCED, producer.output, 1.0), _consumed(consumer.output), cores)


def kafka_producer(
    endpoint: Endpoint, topic: str, settings: dict[str, object], records: int, size_bytes: int
) -> Measured:
    """kafka-producer-perf-test alone."""
    producer = _producer(endpoint.address, topic, settings, records, size_bytes)
    cores = _run([producer], timeout_s=300)
    rate = _warm(PRODUCED, producer.output, 1.0)
    return Measured(rate, rate, cores)


def perf_test(
    endpoint: Endpoint, queue: str, *, size_bytes: int, seconds: int, confirm: int, prefetch: int, multi_ack: int
) -> Measured:
    """PerfTest with one producer and one consumer on a durable classic queue, persistent, confirmed, acknowledged."""
    assert endpoint.credentials is not None
    user, password = endpoint.credentials.username, endpoint.credentials.password
    tool = Tool(
        _java(
            _perf_test_libs(), "com.rabbitmq.perf.PerfTest", "--uri", f"amqp://{user}:{password}@{endpoint.address}",
            "--queue", queue, "--producers", "1", "--consumers", "1", "--size", str(size_bytes), "--flag", "persistent",
            "--confirm", str(confirm), "--qos", str(prefetch), "--multi-ack-every", str(multi_ack),
            "--time", str(seconds), "--auto-delete", "false", "--queue-args", "x-queue-type=classic",
        )
    )  # fmt: skip
    cores = _run([tool], timeout_s=seconds + 120)
    return Measured(
        _warm(r"sent: ([\d.]+) msg/s", tool.output, 1.0), _warm(r"received: ([\d.]+) msg/s", tool.output, 1.0), cores
    )


def java_version() -> str:
    """The Java that runs the peers."""
    return java.version_line(java.find_java(cache_dir(), print))
