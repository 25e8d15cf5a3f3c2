"""The Java tools that loadgen is measured against: fetched with Maven, run against the same brokers.

Each function runs its tool to the end and returns its rate as the tool itself reports it, and the CPU seconds of its
processes as the kernel accounts them. Start-up and warm-up are inside the CPU figure, so runs are long.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.brokers import install, install_kafka, java, process
from loadgen.brokers.state import cache_dir

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.brokers.state import Progress
    from loadgen.endpoint import Endpoint

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
    """A tool's rates in messages a second, and what its processes cost in CPU seconds for `messages` messages."""

    produced_msgs_per_s: float
    consumed_msgs_per_s: float
    cpu_s: float
    messages: int

    @property
    def slower_msgs_per_s(self) -> float:
        """The smaller of the two rates."""
        return min(self.produced_msgs_per_s, self.consumed_msgs_per_s)

    @property
    def cpu_us_per_msg(self) -> float:
        """CPU microseconds for one message, sent and received."""
        return self.cpu_s / self.messages * 1e6


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


def _run(commands: list[list[str]], timeout_s: float) -> tuple[list[str], float]:
    """Run tools side by side; their outputs, and the CPU seconds they used together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    outputs = [""] * len(commands)

    def one(index: int, command: list[str]) -> None:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout_s)
        outputs[index] = done.stdout + done.stderr
        if done.returncode:
            outputs[index] = f"exit status {done.returncode}\n{outputs[index]}"

    threads = [threading.Thread(target=one, args=each) for each in enumerate(commands)]
    for thread in threads:
        thread.start()
        time.sleep(0.5)  # consumers are given first, and join before the producer is at speed
    for thread in threads:
        thread.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return outputs, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _found(pattern: str, text: str) -> str:
    matches = re.findall(pattern, text)
    if not matches:
        raise RuntimeError(f"no {pattern!r} in the tool's output:\n{text[-2000:]}")
    return str(matches[-1])


def kafka_tools(endpoint: Endpoint, topic: str, settings: dict[str, object], records: int, size_bytes: int) -> Measured:
    """kafka-producer-perf-test and kafka-consumer-perf-test at once on one topic.

    The consumer's rate is over its own time from the first fetch on (`fetch.nMsg.sec`), which flatters it.
    """
    libs = install_kafka.ensure(cache_dir(), print).folder / "libs"
    server = endpoint.address
    produce = _java(
        libs, "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", str(records),
        "--record-size", str(size_bytes), "--throughput", "-1", "--producer-props", f"bootstrap.servers={server}",
        *(f"{knob.replace('_', '.')}={str(value).lower()}" for knob, value in settings.items()),
    )  # fmt: skip
    consume = _java(
        libs, "org.apache.kafka.tools.ConsumerPerformance", "--bootstrap-server", server, "--topic", topic,
        "--num-records", str(records), "--timeout", "60000", "--fetch-size", str(4 << 20),
    )  # fmt: skip
    (consumed, produced), cpu_s = _run([consume, produce], timeout_s=600)
    line = [each for each in consumed.splitlines() if re.match(r"\d{4}-\d\d-\d\d", each)][-1]
    fields = [field.strip() for field in line.split(",")]
    return Measured(
        produced_msgs_per_s=float(_found(r"([\d.]+) records/sec", produced)),
        consumed_msgs_per_s=float(fields[-1]),
        cpu_s=cpu_s,
        messages=records,
    )


def kafka_producer(
    endpoint: Endpoint, topic: str, settings: dict[str, object], records: int, size_bytes: int
) -> Measured:
    """kafka-producer-perf-test alone."""
    libs = install_kafka.ensure(cache_dir(), print).folder / "libs"
    command = _java(
        libs, "org.apache.kafka.tools.ProducerPerformance", "--topic", topic, "--num-records", str(records),
        "--record-size", str(size_bytes), "--throughput", "-1", "--producer-props",
        f"bootstrap.servers={endpoint.address}",
        *(f"{knob.replace('_', '.')}={str(value).lower()}" for knob, value in settings.items()),
    )  # fmt: skip
    (output,), cpu_s = _run([command], timeout_s=600)
    rate = float(_found(r"([\d.]+) records/sec", output))
    return Measured(rate, rate, cpu_s, records)


def perf_test(
    endpoint: Endpoint, queue: str, *, size_bytes: int, seconds: int, confirm: int, prefetch: int, multi_ack: int
) -> Measured:
    """PerfTest with one producer and one consumer on a durable classic queue, persistent, confirmed, acknowledged.

    Its rates are averages over the whole run; the messages are what it received, by its own count.
    """
    assert endpoint.credentials is not None
    user, password = endpoint.credentials.username, endpoint.credentials.password
    command = _java(
        _perf_test_libs(), "com.rabbitmq.perf.PerfTest", "--uri", f"amqp://{user}:{password}@{endpoint.address}",
        "--queue", queue, "--producers", "1", "--consumers", "1", "--size", str(size_bytes), "--flag", "persistent",
        "--confirm", str(confirm), "--qos", str(prefetch), "--multi-ack-every", str(multi_ack), "--time", str(seconds),
        "--auto-delete", "false", "--queue-args", "x-queue-type=classic",
    )  # fmt: skip
    (output,), cpu_s = _run([command], timeout_s=seconds + 120)
    produced = float(_found(r"sending rate avg: ([\d.]+)", output))
    consumed = float(_found(r"receiving rate avg: ([\d.]+)", output))
    return Measured(produced, consumed, cpu_s, max(1, round(consumed * seconds)))


def java_version() -> str:
    """The Java that runs the peers."""
    return java.version_line(java.find_java(cache_dir(), print))


CORES = os.cpu_count() or 1
