"""The same workload, measured by others' tools: PerfTest for RabbitMQ, EndToEndLatency for Kafka, beside our trials.

They take turns, theirs and ours, on the same broker. Nothing absolute is asked for: rates and counts must agree, and
medians but for what is known to differ, each with its bound (`explained_ms`). All bounds are measured in the same
session: what a hand-over between threads costs by passes to another process and back, with pauses in which both sleep;
what it costs to ask Kafka for a message that is there by fetches of single messages; chance by the spread of the rounds
(Welch's t interval of the ratio of the two geometric means). What the tools measure, by their sources and by what they
print:

    PerfTest          stamps a message when its rate limiter has let it go, so that lateness of its own is in no
                      figure: our counterpart is the service time. Its percentiles come from a decaying reservoir of
                      some thousand values, printed once a second; the median of its warm seconds is used.
    EndToEndLatency   sends one message, waits for its confirmation, and only then asks for it: one message under way.
                      Its percentiles are whole milliseconds, cut off; the latency of every thousandth message is
                      printed in full, and the median of those is used beside them. It has no rate: beside ours stands
                      that of kafka-producer-perf-test, told to send as many a second.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from peers import WARM_S, Tool, _java, _perf_test_libs

from loadgen import host
from loadgen.brokers import install_kafka
from loadgen.brokers.state import cache_dir
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.errors import TrialError
from loadgen.report.words import broker_name
from loadgen.scenario import Rate
from loadgen.stats.confidence import unpaired_ratio
from loadgen.trial import Setting, run_trial
from prove.pairs import warm
from prove.proof import Proof, Row, Scale, near, same, within
from prove.trials import own_broker, trial_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.record import Record

SIZE_BYTES = 1024
RATE_OFF_SHARE = 0.02
PASSES, PAUSE_S = 500, 0.001  # so many passes to another process and back, each after a pause in which both sleep
ECHO = "import os\nwhile data := os.read(0, 1):\n    os.write(1, data)"
FETCHES = 500
WHOLE_MS = 1.0  # EndToEndLatency's percentiles are cut off to this
RATES_MSGS_PER_S: Mapping[BrokerName, float] = {"rabbitmq": 1_000.0, "kafka": 500.0}
TOOLS: Mapping[BrokerName, str] = {"rabbitmq": "PerfTest", "kafka": "EndToEndLatency"}
PACERS: Mapping[BrokerName, str] = {"rabbitmq": "PerfTest", "kafka": "kafka-producer-perf-test"}
PERF_TEST_MSGS = 12_000  # at 1,000 a second: six seconds until the JVM is warm, and six that count
END_TO_END_MSGS = {Scale.FULL: 10_000, Scale.SMALL: 5_000}
PACED_MSGS = {Scale.FULL: 3_000, Scale.SMALL: 1_500}
"""Of kafka-producer-perf-test: in six seconds it has made up for a late start, and half a percent is left of it."""
SAMPLED_FROM = 2_000  # of every thousandth message's latency, those from here on come from a warm JVM
TIMEOUT_S = 120.0
WARMUP_S, DURATION_S = 1.0, {Scale.FULL: 6.0, Scale.SMALL: 3.0}
ROUNDS = {Scale.FULL: 3, Scale.SMALL: 2}  # one has no spread
BROKERS: Mapping[Scale, tuple[BrokerName, ...]] = {
    Scale.FULL: ("rabbitmq", "kafka"),
    Scale.SMALL: ("kafka",),  # whose tool comes with the broker
}


@dataclass(frozen=True, slots=True)
class Theirs:
    """What a tool says, and what the broker says of it.

    Rates are messages/s (None: the tool has none of its own), latencies ms; `percentiles_ms` are as it prints them.
    `left_msgs` are still in the queue after it, `stored_msgs` were kept by the topic (None: this broker does not tell).
    `fetch_ms` is how long it takes to ask the broker for one of these messages.
    """

    asked_msgs: int
    rate_msgs_per_s: float | None
    median_ms: float
    percentiles_ms: dict[str, float]
    mean_ms: float | None = None
    stored_msgs: int | None = None
    left_msgs: int | None = None
    fetch_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of each, and what a pass to another process and back took then (ms)."""

    theirs: Theirs
    ours: Record
    pass_ms: float


# --- their tools ---


_SECOND = re.compile(
    r"time ([\d.]+) s, sent: \d+ msg/s, .*?received: (\d+) msg/s, "
    r"min/median/75th/95th/99th consumer latency: \d+/(\d+)/\d+/\d+/(\d+) µs"
)
_SAMPLE = re.compile(r"^(\d+)\t([\d.]+)$", re.MULTILINE)
_MEAN = re.compile(r"^Avg latency: ([\d.]+) ms$", re.MULTILINE)
_PACED = re.compile(r"^(\d+) records sent, ([\d.]+) records/sec .* 99.9th", re.MULTILINE)
_WHOLE = re.compile(r"^Percentiles: 50th = (\d+), 99th = (\d+), 99.9th = (\d+)$", re.MULTILINE)


def parse_perf_test(output: str, asked_msgs: int) -> Theirs:
    """PerfTest's warm seconds; raises TrialError where there is none."""
    seconds = [tuple(map(float, each)) for each in _SECOND.findall(output)]
    # The last one is cut short by the end.
    warm = [each for each in seconds[:-1] if each[0] > WARM_S]
    if not warm:
        raise TrialError(f"PerfTest printed no second after {WARM_S:g} s: {output[-500:]}")
    rate, median_us, p99_us = (statistics.median(values) for values in list(zip(*warm, strict=True))[1:])
    return Theirs(asked_msgs, rate, median_us / 1e3, {"p50": median_us / 1e3, "p99": p99_us / 1e3})


def parse_end_to_end(output: str, asked_msgs: int) -> Theirs:
    """EndToEndLatency's samples and summary; raises TrialError where one is missing."""
    samples = [float(latency) for number, latency in _SAMPLE.findall(output) if int(number) >= SAMPLED_FROM]
    mean, whole = _MEAN.search(output), _WHOLE.search(output)
    if not samples or mean is None or whole is None:
        raise TrialError(f"EndToEndLatency printed no latencies: {output[-500:]}")
    percentiles = dict(zip(("p50", "p99", "p99.9"), map(float, whole.groups()), strict=True))
    return Theirs(asked_msgs, None, statistics.median(samples), percentiles, mean_ms=float(mean[1]))


def parse_paced(output: str) -> float:
    """The rate of kafka-producer-perf-test as a whole, in messages/s; raises TrialError where it tells none."""
    found = _PACED.findall(output)
    if not found:
        raise TrialError(f"kafka-producer-perf-test printed no rate: {output[-500:]}")
    return float(found[-1][1])


def perf_test(endpoint: Endpoint, target: Target, scale: Scale) -> Theirs:
    """PerfTest at a fixed rate: one producer and one consumer, persistent, confirmed, each delivery acknowledged."""
    assert endpoint.credentials is not None, "RabbitMQ has an account"
    del scale  # only the full proof has it
    user, password = endpoint.credentials.username, endpoint.credentials.password
    settings = target.settings
    tool = Tool(
        _java(
            _perf_test_libs(), "com.rabbitmq.perf.PerfTest", "--uri", f"amqp://{user}:{password}@{endpoint.address}",
            "--queue", target.name, "--auto-delete", "false", "--queue-args", f"x-queue-type={settings['queue_type']}",
            "--producers", "1", "--consumers", "1", "--size", str(SIZE_BYTES), "--flag", "persistent",
            "--confirm", str(settings["confirm_window"]), "--qos", str(settings["prefetch"]),
            "--multi-ack-every", str(settings["ack_every"]), "--rate", f"{RATES_MSGS_PER_S['rabbitmq']:.0f}",
            "--pmessages", str(PERF_TEST_MSGS), "--cmessages", str(PERF_TEST_MSGS),
        )
    )  # fmt: skip
    tool.run(TIMEOUT_S)
    return parse_perf_test(tool.output, PERF_TEST_MSGS)


def end_to_end_latency(endpoint: Endpoint, target: Target, scale: Scale) -> Theirs:
    """Kafka's EndToEndLatency with acks=all; the rate is kafka-producer-perf-test's, on a topic of its own."""
    libs = install_kafka.ensure(cache_dir(), lambda _: None).folder / "libs"
    asked = END_TO_END_MSGS[scale]
    tool = Tool(
        _java(
            libs, "org.apache.kafka.tools.EndToEndLatency", "--bootstrap-server", endpoint.address,
            "--topic", target.name, "--num-records", str(asked), "--producer-acks", "all",
            "--record-size", str(SIZE_BYTES),
        )
    )  # fmt: skip
    tool.run(TIMEOUT_S)
    found = parse_end_to_end(tool.output, asked)
    paced = Tool(
        _java(
            libs, "org.apache.kafka.tools.ProducerPerformance", "--topic", f"{target.name}-paced",
            "--num-records", str(PACED_MSGS[scale]), "--record-size", str(SIZE_BYTES),
            "--throughput", f"{RATES_MSGS_PER_S['kafka']:.0f}", "--producer-props",
            f"bootstrap.servers={endpoint.address}", "acks=all", "linger.ms=0",
        )
    )  # fmt: skip
    paced.run(TIMEOUT_S)
    return replace(found, rate_msgs_per_s=parse_paced(paced.output))


RUN: Mapping[BrokerName, Callable[[Endpoint, Target, Scale], Theirs]] = {
    "rabbitmq": perf_test,
    "kafka": end_to_end_latency,
}


# --- both in turn ---


def prove(scale: Scale) -> Proof:
    """Theirs and ours in turn on each broker."""
    found: dict[BrokerName, list[Round]] = {}
    for broker in BROKERS[scale]:
        with own_broker(broker) as endpoint:
            warm(endpoint)
            found[broker] = [_round(endpoint, scale) for _ in range(ROUNDS[scale])]
    return compare(found)


def _round(endpoint: Endpoint, scale: Scale) -> Round:
    broker, rate = endpoint.broker, Rate.fixed(RATES_MSGS_PER_S[endpoint.broker])
    trial = trial_of(broker, rate, warmup_s=WARMUP_S, duration_s=DURATION_S[scale], size_bytes=SIZE_BYTES)
    host.wait_until_written(progress=_quiet)
    theirs = _theirs(endpoint, trial.settings, scale)
    passed_ms = pass_ms()
    host.wait_until_written(progress=_quiet)
    record, outcome = run_trial(trial, Setting(endpoint, _quiet))
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.error is not None:
        raise TrialError(f"{broker}: {outcome.error}")
    return Round(theirs, record, passed_ms)


def pass_ms() -> float:
    """The median time of a pass to another process and back: two wakes, on a machine that does nothing else."""
    times_ns: list[int] = []
    command = [sys.executable, "-c", ECHO]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as echo:
        assert echo.stdin is not None, "it was asked for"
        assert echo.stdout is not None, "it was asked for"
        for _ in range(PASSES):
            time.sleep(PAUSE_S)
            began_ns = time.perf_counter_ns()
            os.write(echo.stdin.fileno(), b"!")
            os.read(echo.stdout.fileno(), 1)
            times_ns.append(time.perf_counter_ns() - began_ns)
        echo.stdin.close()
    return statistics.median(times_ns) / 1e6


def fetch_ms(target: Target) -> float:
    """The median time from one message to the next where each is asked for when the one before it has come."""
    singly = replace(target, settings={**target.settings, "max_partition_fetch_bytes": 1})
    consumer = load_driver("kafka").consumer(singly, 0, 1)
    read_ns: list[int] = []
    end_s = time.monotonic() + TIMEOUT_S
    try:
        while len(read_ns) <= FETCHES:
            read_ns += [each.read_ns for each in consumer.receive(1.0)]
            consumer.settle()
            if time.monotonic() > end_s:
                raise TrialError(f"kafka: {len(read_ns)} messages in {TIMEOUT_S:g} s, expected {FETCHES}")
    finally:
        consumer.close()
    return statistics.median(later - earlier for earlier, later in pairwise(read_ns)) / 1e6


def _theirs(endpoint: Endpoint, settings: dict[str, Any], scale: Scale) -> Theirs:
    """Their tool on a queue or topic of its own, and what the broker has of it afterwards."""
    broker = endpoint.broker
    admin = load_driver("kafka" if broker == "kafka" else "amqp").admin(endpoint)
    target = Target(endpoint, f"prove-{secrets.token_hex(4)}", settings)
    if broker == "kafka":  # PerfTest makes its queue itself
        admin.create(target)
        admin.create(replace(target, name=f"{target.name}-paced"))
    try:
        found = RUN[broker](endpoint, target, scale)
        if broker == "kafka":
            return replace(found, stored_msgs=admin.stored(target), fetch_ms=fetch_ms(target))
        return replace(found, left_msgs=admin.depth(target))
    finally:
        admin.delete(target)
        if broker == "kafka":
            admin.delete(replace(target, name=f"{target.name}-paced"))
        admin.close()


def _quiet(_: str) -> None:
    """Progress that nobody watches."""


def compare(found: Mapping[BrokerName, Sequence[Round]]) -> Proof:
    """The proof of what both sides saw."""
    return Proof(
        name="compared",
        claim="PerfTest and Kafka's EndToEndLatency see the same rates, counts and medians on the same brokers, as far "
        "as they can resolve them.",
        rows=tuple(row for broker, rounds in found.items() for row in _rows(broker, rounds)),
        notes=tuple(
            note
            for broker, rounds in found.items()
            for note in (_table(broker, rounds), _why(broker, rounds), _bounds(broker, rounds))
        ),
    )


def _rows(broker: BrokerName, rounds: Sequence[Round]) -> Iterator[Row]:
    name, offered = TOOLS[broker], RATES_MSGS_PER_S[broker]
    ours = [each.ours for each in rounds]
    theirs = [each.theirs for each in rounds]
    sent = [round(offered * (each["warmup_s"] + each["window_s"])) for each in ours]
    asked = _text(each.asked_msgs for each in theirs)
    yield same(f"{broker_name(broker)}: messages that our trials sent and received", _text(sent), _moved(ours))
    if broker == "kafka":
        stored = _text(each.stored_msgs for each in theirs)
        yield same(f"{name}: messages asked for, and those in its topic", asked, stored)
        stored = _text(each["broker_counts"]["stored"] for each in ours)
        yield same("Kafka: messages in our topics", _text(sent), stored)
    else:
        left = _text(each.left_msgs for each in theirs)
        yield same(f"{name}: messages left in its queue of {asked}", _text([0] * len(theirs)), left)
    rates = [each.rate_msgs_per_s for each in theirs if each.rate_msgs_per_s is not None]
    if rates:
        goodput = _median(each["goodput_msgs_per_s"] for each in ours)
        off = RATE_OFF_SHARE * goodput
        yield near(f"{PACERS[broker]}: rate beside ours", goodput, statistics.median(rates), off, "msg/s")
    service_ms = _geometric(_ms(each, "e2e_service", "p50") for each in ours)
    if broker == "kafka":
        whole = statistics.median(each.percentiles_ms["p50"] for each in theirs)
        yield near(f"{name}: median in whole ms beside ours, cut off", float(int(service_ms)), whole, WHOLE_MS, "ms")
    median_ms = _geometric(each.median_ms for each in theirs)
    below_ms, above_ms = (sum(bound for _, bound in explained_ms(broker, rounds, side)) for side in ("less", "more"))
    low, high = max(0.0, service_ms - below_ms), service_ms + above_ms
    text = f"{low:.3f} ms … {high:.3f} ms"
    yield within(f"{name}: median beside ours", service_ms, median_ms, low, high, text, "ms")


def explained_ms(broker: BrokerName, rounds: Sequence[Round], side: Literal["less", "more"]) -> list[tuple[str, float]]:
    """What may make the tool's median less or more than ours, each with its bound in ms: nothing else may."""
    service_ms = _geometric(_ms(each.ours, "e2e_service", "p50") for each in rounds)
    passed_ms = _median(each.pass_ms for each in rounds)
    noise = (f"chance, by {len(rounds)} rounds of each that vary by {_spread(rounds):.0%}", _noise(rounds) * service_ms)
    read_ms = _median(float(each.ours["resolution_ns"]["p50"]) / 1e6 for each in rounds)
    ours = ("our consumer stamps a batch when all of it is parsed, theirs message by message", read_ms)
    if broker == "rabbitmq":
        hop = ("PerfTest's client hands each delivery from its reader to another thread: half of a pass", passed_ms / 2)
        return [ours, noise] if side == "less" else [hop, noise]
    if side == "less":
        awake = ("EndToEndLatency sends without a pause, so that neither client nor broker sleeps: a pass", passed_ms)
        return [ours, awake, noise]
    hops = (
        "EndToEndLatency's producer hands each message to another thread, and waits for its answer: a pass",
        passed_ms,
    )
    asked_ms = _geometric(_ms(each.ours, "ack_service", "p50") + each.theirs.fetch_ms for each in rounds)
    asks = (
        (
            "EndToEndLatency asks for a message when it is confirmed: a confirmation and a fetch, "
            f"{asked_ms:.3f} ms by ours, less our service time"
        ),
        max(0.0, asked_ms - service_ms),
    )
    return [hops, asks, noise]


def _noise(rounds: Sequence[Round]) -> float:
    """By what share two equal medians may seem apart in so many rounds: Welch's t interval of their ratio, at 95 %.

    NaN where one round has no spread: nothing can be told then, and no row holds.
    """
    ratio = unpaired_ratio(*_medians_ms(rounds))
    if ratio.ratio is None or ratio.high is None:
        return math.nan
    return ratio.high / ratio.ratio - 1


def _spread(rounds: Sequence[Round]) -> float:
    """How much medians vary from round to round, of the side where they do more: the deviation of their logarithms."""
    return max(statistics.stdev(map(math.log, each)) if len(each) > 1 else 0.0 for each in _medians_ms(rounds))


def _medians_ms(rounds: Sequence[Round]) -> tuple[list[float], list[float]]:
    """Their medians and ours, by round."""
    return [each.theirs.median_ms for each in rounds], [_ms(each.ours, "e2e_service", "p50") for each in rounds]


def _moved(records: Sequence[Record]) -> str:
    """What was sent of each trial where just that was received, else both."""
    moved = [(each["sent"], each["received"] - each["duplicated"]) for each in records]
    return ", ".join(f"{sent:,}" if sent == received else f"{sent:,} and {received:,}" for sent, received in moved)


def _text(counts: Iterable[int | None]) -> str:
    return ", ".join("unknown" if count is None else f"{count:,}" for count in counts)


def _geometric(values: Iterable[float]) -> float:
    """The geometric mean: what the interval of a ratio of rounds is about."""
    return statistics.geometric_mean(values)


def _median(values: Iterable[float]) -> float:
    return float(statistics.median(values))


def _ms(record: Record, kind: str, which: str) -> float:
    return float(record["latency_ns"][kind][which]) / 1e6


# --- the words ---


def _table(broker: BrokerName, rounds: Sequence[Round]) -> str:
    """Every round of both sides."""
    lines = [
        f"| {broker_name(broker)}, {SIZE_BYTES:,} B | msg/s | median | p99 | mean |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in rounds:
        theirs, ours = each.theirs, each.ours
        rate = "–" if theirs.rate_msgs_per_s is None else f"{theirs.rate_msgs_per_s:,.0f}"
        mean = "–" if theirs.mean_ms is None else f"{theirs.mean_ms:.2f} ms"
        p99 = theirs.percentiles_ms["p99"]
        if broker == "kafka":
            lines.append(f"| {PACERS[broker]} | {rate} | – | – | – |")
            rate = "–"
        lines.append(f"| {TOOLS[broker]} | {rate} | {theirs.median_ms:.3f} ms | {p99:g} ms | {mean} |")
        for kind, title in (("e2e_service", "loadgen, service time"), ("e2e", "loadgen, response time")):
            median, p99, mean_ms = (_ms(ours, kind, which) for which in ("p50", "p99", "mean"))
            rate = f"{ours['goodput_msgs_per_s']:,.0f}"
            lines.append(f"| {title} | {rate} | {median:.3f} ms | {p99:.3f} ms | {mean_ms:.3f} ms |")
    return "\n".join(lines)


def _bounds(broker: BrokerName, rounds: Sequence[Round]) -> str:
    """Every explained difference with its bound."""
    said = {
        side: "; ".join(f"{what} (at most {bound:.3f} ms)" for what, bound in explained_ms(broker, rounds, side))
        for side in ("less", "more")
    }
    passed_ms = _median(each.pass_ms for each in rounds)
    return (
        "Medians of several rounds are their geometric mean, as chance is told of that. "
        f"{TOOLS[broker]}'s median may be less than ours by: {said['less']}. It may be more by: {said['more']}. A pass "
        f"to another process and back, with pauses in which both sleep, took {passed_ms:.3f} ms in this session."
    )


def _why(broker: BrokerName, rounds: Sequence[Round]) -> str:
    """What the differences come from, as far as these figures tell."""
    service_ms, response_ms, lag_ms = (
        _geometric(_ms(each.ours, kind, "p50") for each in rounds) for kind in ("e2e_service", "e2e", "schedule_lag")
    )
    if broker == "rabbitmq":
        return (
            "PerfTest's clock starts when its rate limiter has let a message go. So does our service time "
            f"({service_ms:.3f} ms); the response time ({response_ms:.3f} ms) has the lateness of the sender in it, "
            f"{lag_ms:.3f} ms in the median, which no figure of PerfTest's shows. Its percentiles are of a decaying "
            "reservoir of some thousand values: a median is as good as ours, a p99 is about the tenth largest of them."
        )
    whole = statistics.median(each.theirs.percentiles_ms["p50"] for each in rounds)
    mean_ms = _median(each.theirs.mean_ms or 0.0 for each in rounds)
    ack_ms = _median(_ms(each.ours, "ack_service", "p50") for each in rounds)
    return (
        f"EndToEndLatency calls its median {whole:g} ms, since it cuts off to whole milliseconds; every thousandth "
        f"latency, printed in full, and its mean ({mean_ms:.2f} ms, the start of the JVM included) tell more. It sends "
        f"a message when it has read the one before, {1e3 / mean_ms:,.0f} a second by that mean: one is under way, and "
        f"no rate can be set. It asks for a message only when that has been confirmed (ours are after {ack_ms:.3f} "
        "ms), while our consumer's question waits at the broker already."
    )
