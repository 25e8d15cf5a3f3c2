"""Every speed bar, measured: `make bench` prints the figures that docs/performance.md quotes.

    python bench/run.py [PART …] [--pairs N]

Parts: kafka, confluent, rabbitmq, stream, pacing, searches, recording, reading, startup (default: all).

Both sides of a comparison run in turn, ours then theirs, and are compared pair by pair; the interval is a t interval
of the mean log ratio at 95 %. A bar that is said with a figure is held against the end of that interval which speaks
against it.
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import peers

from loadgen import host
from loadgen.brokers import open_brokers
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.memory import memory_endpoint
from loadgen.plan import Profile, make_plan
from loadgen.scenario import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.stats.confidence import paired_ratio
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loadgen.endpoint import BrokerName, Endpoint

# What both sides of the Kafka comparisons are told, in the Java client's own names.
KAFKA_SETTINGS: dict[str, object] = {
    "acks": "all",
    "enable_idempotence": True,
    "linger_ms": 5,
    "batch_size": 262_144,
    "compression_type": "none",
    "max_in_flight_requests_per_connection": 5,
    "buffer_memory": 4 << 20,  # beyond the five batches in flight, more would only wait, and leave the caches
}
KAFKA_RECORDS = 16_000_000
KAFKA_PRODUCER_RECORDS = 15_000_000
RABBITMQ_SECONDS = 16
BROKER_WARM_S = 15  # of full load, so many times, before the first pair: until then a broker's own compiler decides
BROKER_WARM_TIMES = 3
SIZE_BYTES = 100


@dataclass(frozen=True, slots=True)
class Ours:
    """Our own rates and client cost in one trial's window."""

    produced_msgs_per_s: float
    consumed_msgs_per_s: float
    cpu_us_per_msg: float
    verdict: str

    @property
    def slower_msgs_per_s(self) -> float:
        """The smaller of the two rates."""
        return min(self.produced_msgs_per_s, self.consumed_msgs_per_s)


def quiet(_: str) -> None:
    """Progress that nobody watches."""


def trial(scenario: Scenario, endpoint: Endpoint, warmup_s: float, duration_s: float) -> Ours:
    """One trial of ours."""
    plan = make_plan([scenario], Profile("bench", warmup_s, duration_s, 1), brokers=(endpoint.broker,), seed=1)
    host.wait_until_written(progress=quiet)
    record, _ = run_trial(plan.trials[0], Setting(endpoint, quiet))
    if record["error"] or record["verdict"]["status"] == "invalid":
        raise RuntimeError(f"{record['error']} {record['verdict']}")
    produced, consumed = record["acked_msgs_per_s"] or record["sent_msgs_per_s"], record["goodput_msgs_per_s"]
    if not scenario.consumers:
        consumed = produced
    cpu_s = sum(record["cpu_s"][role] or 0 for role in ("producers", "consumers"))
    messages = min(produced, consumed) * record["window_s"]
    return Ours(produced, consumed, cpu_s / messages * 1e6, record["verdict"]["bound_by"])


def warm(scenario: Scenario, endpoint: Endpoint) -> None:
    """Load the broker until its code is compiled; nobody counts this."""
    for _ in range(BROKER_WARM_TIMES):
        trial(scenario, endpoint, 0, BROKER_WARM_S)


def with_topic(endpoint: Endpoint, run: Callable[[str], peers.Measured]) -> peers.Measured:
    """Run a peer on a fresh topic or queue, and delete it."""
    driver = load_driver("kafka" if endpoint.broker == "kafka" else "amqp")
    admin = driver.admin(endpoint)
    name = f"bench-{secrets.token_hex(4)}"
    settings: dict[str, Any] = {"partitions": 1, "flush_messages": None, "queue_type": "classic"}
    target = Target(endpoint, name, settings)
    host.wait_until_written(progress=quiet)
    if endpoint.broker == "kafka":
        admin.create(target)
    try:
        return run(name)
    finally:
        admin.delete(target)
        admin.close()


@dataclass(frozen=True, slots=True)
class Bars:
    """The least ratio of rates and the most of client CPU a message; None where nothing is asked of it."""

    rate_least: float
    cost_most: float | None = None

    def judged(self, name: str, low: float, high: float) -> str:
        """Whether a ratio's interval keeps its bar, in words."""
        if name == "rate":
            return f"; bar: at least {self.rate_least:g}: {'kept' if low >= self.rate_least else 'missed'}"
        if self.cost_most is None:
            return ""
        return f"; bar: at most {self.cost_most:g}: {'kept' if high <= self.cost_most else 'missed'}"


def compare(
    title: str, pairs: int, bars: Bars, ours: Callable[[], Ours], theirs: Callable[[], Ours | peers.Measured]
) -> None:
    """Interleaved pairs, and the ratios of the slower side's rate and of client CPU a message, against their bars."""
    print(f"\n## {title}", flush=True)
    rates, costs = [], []
    for pair in range(1, pairs + 1):
        a, b = ours(), theirs()
        rates.append((a.slower_msgs_per_s, b.slower_msgs_per_s))
        costs.append((a.cpu_us_per_msg, b.cpu_us_per_msg))
        ratio = a.slower_msgs_per_s / b.slower_msgs_per_s
        print(f"  {pair}: ours {_shown(a)} ({a.verdict}) · theirs {_shown(b)} · ratio {ratio:.2f}", flush=True)
    for name, values in (("rate", rates), ("client CPU a message", costs)):
        interval = paired_ratio(values)
        median = statistics.median(x / y for x, y in values)
        low, high = interval.low or 0.0, interval.high or math.inf
        seen = f"median ratio {median:.3f}, 95 % interval {low:.3f} … {high:.3f}, {pairs} pairs"
        print(f"  {name}: {seen}{bars.judged(name, low, high)}", flush=True)


def _shown(side: Ours | peers.Measured) -> str:
    rates = f"{side.produced_msgs_per_s:,.0f} + {side.consumed_msgs_per_s:,.0f} msg/s"
    return f"{rates} {side.cpu_us_per_msg:.2f} µs"


def kafka(pairs: int, endpoint: Endpoint) -> None:
    """Wire driver, produced and consumed at once, against the two Java tools at once."""
    scenario = Scenario(
        name="bench-kafka",
        question="How fast is the wire driver?",
        message=Message(size_bytes=SIZE_BYTES),
        rate=Rate.saturate(),
        kafka=Kafka(**KAFKA_SETTINGS, max_partition_fetch_bytes=4 << 20, max_poll_records=100_000),
    )  # fmt: skip
    warm(scenario, endpoint)
    compare(
        "Kafka, 100 B, acks=all, idempotent, 1 partition, 1 producer + 1 consumer: wire / Java tools",
        pairs,
        Bars(2.0, 0.2),
        lambda: trial(scenario, endpoint, 3, 8),
        lambda: with_topic(
            endpoint, lambda topic: peers.kafka_tools(endpoint, topic, KAFKA_SETTINGS, KAFKA_RECORDS, SIZE_BYTES)
        ),
    )


def confluent(pairs: int, endpoint: Endpoint) -> None:
    """confluent-kafka with every ack by callback, against kafka-producer-perf-test, producing only."""
    scenario = Scenario(
        name="bench-confluent",
        question="How fast is confluent-kafka?",
        message=Message(size_bytes=SIZE_BYTES),
        rate=Rate.saturate(),
        consumers=0,
        kafka=Kafka(driver="confluent", **KAFKA_SETTINGS),
    )
    warm(scenario, endpoint)
    compare(
        "Kafka, 100 B, acks=all, idempotent, 1 partition, 1 producer: confluent / kafka-producer-perf-test",
        pairs,
        Bars(0.6),
        lambda: trial(scenario, endpoint, 3, 8),
        lambda: with_topic(
            endpoint,
            lambda topic: peers.kafka_producer(endpoint, topic, KAFKA_SETTINGS, KAFKA_PRODUCER_RECORDS, SIZE_BYTES),
        ),
    )


def rabbitmq(pairs: int, endpoint: Endpoint) -> None:
    """Wire driver against PerfTest: classic queue, persistent, 1,000 unconfirmed, multiple acks."""
    scenario = Scenario(
        name="bench-rabbitmq",
        question="How fast is the wire driver?",
        message=Message(size_bytes=SIZE_BYTES),
        rate=Rate.saturate(),
        rabbitmq=RabbitMQ(confirm_window=1_000, prefetch=1_000, ack_every=100),
    )
    warm(scenario, endpoint)
    compare(
        "RabbitMQ, 100 B persistent, classic, confirms (1,000), prefetch 1,000, acks of 100: wire / PerfTest",
        pairs,
        Bars(1.3, 0.25),
        lambda: trial(scenario, endpoint, 4, RABBITMQ_SECONDS - 4),
        lambda: with_topic(
            endpoint,
            lambda queue: peers.perf_test(
                endpoint, queue, size_bytes=SIZE_BYTES, seconds=RABBITMQ_SECONDS, confirm=1_000, prefetch=1_000,
                multi_ack=100,
            ),
        ),
    )  # fmt: skip


def stream(pairs: int, endpoint: Endpoint) -> None:
    """Two wire drivers of ours on one broker: a stream by its own protocol against a classic queue by AMQP 0-9-1."""
    both = [
        Scenario(
            name=f"bench-{name}",
            question="How much more does a stream carry than a classic queue?",
            message=Message(size_bytes=SIZE_BYTES),
            rate=Rate.saturate(),
            preset="throughput",
            rabbitmq=knobs,
        )
        for name, knobs in (("stream", RabbitMQ(driver="stream")), ("classic", RabbitMQ()))
    ]
    for each in both:
        warm(each, endpoint)
    streams, classic = both
    compare(
        "RabbitMQ, 100 B, confirmed and survives kill -9, 1 producer + 1 consumer: stream (ours) / classic (theirs)",
        pairs,
        Bars(5.0),
        lambda: trial(streams, endpoint, 3, 8),
        lambda: trial(classic, endpoint, 3, 8),
    )


def pacing(endpoints: Mapping[BrokerName, Endpoint]) -> None:
    """10,000 messages a second, five times on each driver: achieved rate and schedule lag."""
    print("\n## Pacing at 10,000 msg/s, 100 B, median of 5")
    knobs: dict[str, tuple[BrokerName, Any]] = {
        "memory": ("rabbitmq", RabbitMQ),
        "amqp": ("rabbitmq", RabbitMQ),
        "stream": ("rabbitmq", RabbitMQ),
        "kafka": ("kafka", Kafka),
        "pika": ("rabbitmq", RabbitMQ),
        "pika-blocking": ("rabbitmq", RabbitMQ),
        "confluent": ("kafka", Kafka),
    }
    for driver, (broker, part) in knobs.items():
        scenario = Scenario(
            name="bench-pacing",
            question="Does the schedule hold?",
            message=Message(size_bytes=SIZE_BYTES),
            rate=Rate.fixed(10_000),
            preset="low_latency",
            **{broker: part() if driver == "memory" else part(driver=driver)},
        )
        plan = make_plan([scenario], Profile("bench", 1, 6, 5), brokers=(broker,))
        endpoint = memory_endpoint(broker) if driver == "memory" else endpoints[broker]
        achieved, lag = [], []
        for each in plan.trials:
            record, _ = run_trial(each, Setting(endpoint, quiet))
            achieved.append(record["sent_msgs_per_s"])
            lag.append(record["latency_ns"]["schedule_lag"]["p99"] / 1e6)
        print(
            f"  {driver}: sent {statistics.median(achieved):,.1f} msg/s, schedule lag p99 "
            f"{statistics.median(lag):.3f} ms ({min(lag):.3f} … {max(lag):.3f})",
            flush=True,
        )


def searches() -> None:
    """Three capacity searches of one point on each broker."""
    print("\n## Three searches of one point, 1 KiB, 1 producer + 1 consumer", flush=True)
    subprocess.run([sys.executable, "bench/searches.py"], check=False)  # a bar that was missed stands in its lines


def startup() -> None:
    """`loadgen --help`, as a user waits for it."""
    times = []
    for _ in range(11):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "loadgen.cli", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - begin)
    print(f"\n## loadgen --help: median {statistics.median(times) * 1e3:.0f} ms of 11")


def recording() -> None:
    """Values recorded and messages stamped and parsed a second."""
    print("\n## Recording, stamping, parsing", flush=True)
    subprocess.run([sys.executable, "bench/recording.py"], check=True)


def reading() -> None:
    """A run of 10⁹ messages, loaded and reported."""
    print("\n## Reading a run of 10⁹ messages", flush=True)
    subprocess.run([sys.executable, "bench/reading.py"], check=True)


def main() -> None:
    """Run the benches that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("kafka", "confluent", "rabbitmq", "stream", "pacing", "searches", "recording", "reading", "startup")
    parser.add_argument("benches", nargs="*", default=names, metavar="|".join(names))
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    wanted = arguments.benches
    if unknown := set(wanted) - set(names):
        parser.error(f"no such bench: {', '.join(unknown)}")
    with open_brokers("local", progress=print) as endpoints:
        environment = host.environment(endpoints["kafka"].data_dir)
        print(json.dumps({key: environment[key] for key in ("cpu", "kernel") if key in environment}))
        print(f"RabbitMQ {endpoints['rabbitmq'].version}, Kafka {endpoints['kafka'].version}, {peers.java_version()}")
        for name, bench in (("kafka", kafka), ("confluent", confluent)):
            if name in wanted:
                bench(arguments.pairs, endpoints["kafka"])
        if "rabbitmq" in wanted:
            rabbitmq(arguments.pairs, endpoints["rabbitmq"])
        if "stream" in wanted:
            stream(arguments.pairs, endpoints["rabbitmq"])
        if "pacing" in wanted:
            pacing(endpoints)
        if "searches" in wanted:
            searches()
    for name, alone in (("recording", recording), ("reading", reading), ("startup", startup)):
        if name in wanted:
            alone()


if __name__ == "__main__":
    main()
