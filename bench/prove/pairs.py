"""Pairs of trials of one configuration: measured on a broker, kept in recorded.json, or invented.

`python -m prove.pairs --pairs 60` (with `bench` on the path) measures both brokers' anew, in some twenty minutes on a
machine that does nothing else: rates of closed loops (recorded.json), and every quantity that `loadgen ab` compares of
open loops (recorded_latencies.json). A pair in which another program or the hypervisor took the CPU, according to the
verdict, is left out, and counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen import host
from loadgen.analysis.ab import compare_variants
from loadgen.brokers import BOTH
from loadgen.errors import TrialError
from loadgen.plan import Profile, make_ab_plan
from loadgen.record import enters
from loadgen.report.words import broker_name
from loadgen.runs import RunWriter, load
from loadgen.scenario import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.stats.power import EFFECT_RATIO, repeats_needed, spread_bound
from loadgen.trial import Setting, run_trial
from prove.trials import own_broker

if TYPE_CHECKING:
    import numpy.typing as npt

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.plan import Plan
    from loadgen.runs import Run

    Float64 = npt.NDArray[np.float64]

KEPT = Path(__file__).with_name("recorded.json")
KEPT_LATENCIES = Path(__file__).with_name("recorded_latencies.json")
LATENCY_MSGS_PER_S = 500.0
RECORDING = Profile("prove", warmup_s=0.5, duration_s=1.5, repeats=1)
WARM = Profile("prove", warmup_s=0.0, duration_s=4.0, repeats=1)
WARM_TIMES = 2
UNDISTURBED = ("other programs", "stolen CPU")  # the checks that must find nothing in a pair that is kept
IDLE_SHARE, IDLE_S, IDLE_MOST_S = 0.9, 0.5, 60.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """Pairs of one configuration's rates on one broker, in the order in which they were measured.

    `pairs` is (messages/s, messages/s) each; `left_out` counts the pairs that others on the machine disturbed.
    """

    title: str
    pairs: tuple[tuple[float, float], ...]
    made_utc: str = ""
    machine: str = ""
    left_out: int = 0

    @property
    def spread_log(self) -> float:
        """The standard deviation of the log ratios where a coin decides which half is above: their mean is 0 then."""
        halves = np.log(np.array(self.pairs, np.float64))
        return float(np.sqrt(((halves[:, 0] - halves[:, 1]) ** 2).mean()))

    def repeats_needed(self, ratio: float, power: float, alpha: float) -> int:
        """The pairs that a comparison needs to find a ratio; raises TrialError where 1,000 would not do.

        As `loadgen ab` recommends them: for what the spread is below with 80 % confidence, since it is an estimate.
        """
        needed = repeats_needed(ratio, spread_bound(self.spread_log, len(self.pairs)), power, alpha)
        if needed is None:
            raise TrialError(f"{self.title}: pairs vary by {self.spread_log:.0%}, 1,000 repeats would not do")
        return needed


@dataclass(frozen=True, slots=True)
class RecordedLatencies:
    """Pairs of one configuration's open-loop trials: each half has a value of every quantity in `measures`.

    The quantities are those that `loadgen ab` compares, in its order: the first is the answer. `pairs` is
    (first half, second half) each, `left_out` counts those that others on the machine disturbed.
    """

    title: str
    measures: tuple[str, ...]
    pairs: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    made_utc: str = ""
    machine: str = ""
    left_out: int = 0

    def of(self, measure: str) -> Recorded:
        """One quantity's pairs by themselves."""
        at = self.measures.index(measure)
        pairs = tuple((first[at], second[at]) for first, second in self.pairs)
        return Recorded(f"{self.title}, {measure}", pairs, self.made_utc, self.machine, self.left_out)


def invented(spread_log: float, pairs: int, seed: int) -> Recorded:
    """Pairs of log-normal trials that each vary by `spread_log` and share nothing."""
    values = 40_000 * np.random.default_rng(seed).lognormal(0, spread_log, (pairs, 2))
    return Recorded(f"log-normal, {spread_log:.0%} each", tuple((a, b) for a, b in values.tolist()))


def invented_latencies(pairs: int, seed: int) -> RecordedLatencies:
    """Pairs of invented open loops: log-normal, with a p99 that varies thrice as much as the median and follows it."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(0, 1, (pairs, 2, 1)), rng.normal(0, 1, (pairs, 2, 5))
    spread = np.array([0.05, 0.15, 0.002, 0.05, 0.05])
    typical = np.array([400e3, 2e6, 500.0, 60.0, 80.0])
    follows = np.array([0.7, 0.7, 0.0, 0.5, 0.5])
    values = typical * np.exp(spread * (follows * shared + np.sqrt(1 - follows**2) * own))
    halves = tuple((tuple(first), tuple(second)) for first, second in values.tolist())
    measures = ("e2e p50", "e2e p99", "rate", "client CPU a message", "broker CPU a message")
    return RecordedLatencies("open loops, log-normal", measures, halves)


def kept(path: Path = KEPT) -> list[Recorded]:
    """The recorded pairs of the repository."""
    return [
        Recorded(**{**each, "pairs": tuple((first, second) for first, second in each["pairs"])})
        for each in json.loads(path.read_text(encoding="utf-8"))
    ]


def kept_latencies(path: Path = KEPT_LATENCIES) -> list[RecordedLatencies]:
    """The recorded pairs of open loops of the repository; none where nobody has recorded any yet."""
    if not path.exists():
        return []
    return [
        RecordedLatencies(
            **{
                **each,
                "measures": tuple(each["measures"]),
                "pairs": tuple((tuple(first), tuple(second)) for first, second in each["pairs"]),
            }
        )
        for each in json.loads(path.read_text(encoding="utf-8"))
    ]


def scenario_of(broker: BrokerName, rate: Rate) -> Scenario:
    """The configuration that is compared with itself.

    What Kafka may buffer is little, to write little, and yet several batches, each well filled: with fewer the rate
    depends on which process happens to share a core with which, and pairs of short trials vary by a fifth.
    """
    part: dict[str, Any] = {"rabbitmq": RabbitMQ()}
    if broker == "kafka":
        part = {"kafka": Kafka(buffer_memory=256 << 10, batch_size=64 << 10)}
    return Scenario(
        name="prove-aa",
        question="Do comparisons keep their promise?",
        message=Message(size_bytes={"rabbitmq": 100, "kafka": 1024}[broker]),
        rate=rate,
        **part,
    )


def carry_out(plan: Plan, endpoint: Endpoint) -> Run:
    """Run a plan's trials in its order, as `loadgen ab` does; one that fails raises TrialError."""
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        writer = RunWriter(Path(folder), "prove", {})
        for trial in plan.trials:
            host.wait_until_written(progress=_quiet)
            record, outcome = run_trial(trial, Setting(endpoint, _quiet, writer))
            if outcome.interrupted:
                raise KeyboardInterrupt
            if outcome.error is not None:
                raise TrialError(f"{trial.broker}: {outcome.error}")
            writer.add_trial(record)
        return load(writer.finish("complete"))


_warmed: set[tuple[int, ...]] = set()


def warm(endpoint: Endpoint) -> None:
    """Loads that nobody counts, so that the first trial does not measure the broker's compiler: once for each start."""
    if endpoint.pids in _warmed:
        return
    _warmed.add(endpoint.pids)
    equal = scenario_of(endpoint.broker, Rate.saturate())
    for seed in range(WARM_TIMES):
        carry_out(make_ab_plan(equal, equal, WARM, brokers=(endpoint.broker,), seed=seed), endpoint)


def record(broker: BrokerName, count: int) -> Recorded:
    """So many pairs of neighbours in time in which the machine did nothing else."""
    pairs: list[tuple[float, float]] = []
    left_out = 0
    with own_broker(broker) as endpoint:
        warm(endpoint)
        equal = scenario_of(broker, Rate.saturate())
        while len(pairs) < count:
            wait_until_idle()
            seed = 1 + len(pairs) + left_out
            run = carry_out(make_ab_plan(equal, equal, RECORDING, brokers=(broker,), seed=seed), endpoint)
            if all(map(is_undisturbed, run.records)):
                first, second = (round(float(trial["goodput_msgs_per_s"]), 1) for trial in run.records)
                pairs.append((first, second))
            else:
                left_out += 1
            print(f"{broker}: {len(pairs)} of {count} pairs, {left_out} left out", flush=True)
        machine = host.environment(endpoint.data_dir)
        title = f"{broker_name(broker)} {endpoint.version}"
    cpu = f"{machine['cpu']['model']}, {len(machine['cpu']['allowed'])} CPUs, Linux {machine['kernel']}"
    return Recorded(title, tuple(pairs), f"{datetime.now(UTC):%Y-%m-%d %H:%M}", cpu, left_out)


def record_latencies(broker: BrokerName, count: int) -> RecordedLatencies:
    """So many pairs of neighbours in time of an open loop, with every quantity that `loadgen ab` compares."""
    pairs: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    measures: tuple[str, ...] = ()
    left_out = 0
    with own_broker(broker) as endpoint:
        warm(endpoint)
        equal = scenario_of(broker, Rate.fixed(LATENCY_MSGS_PER_S))
        while len(pairs) < count:
            wait_until_idle()
            seed = 1 + len(pairs) + left_out
            run = carry_out(make_ab_plan(equal, equal, RECORDING, brokers=(broker,), seed=seed), endpoint)
            (compared,) = compare_variants(run, EFFECT_RATIO)
            is_whole = all(len(effect.ratios) == 1 for effect in compared.effects)
            if is_whole and all(map(is_undisturbed, run.records)):
                measures = tuple(effect.measure for effect in compared.effects)
                a, b = ([getattr(each, half).values[0] for each in compared.effects] for half in ("a", "b"))
                pairs.append((tuple(float(f"{value:.6g}") for value in a), tuple(float(f"{value:.6g}") for value in b)))
            else:
                left_out += 1
            print(f"{broker}: {len(pairs)} of {count} pairs of latencies, {left_out} left out", flush=True)
        machine = host.environment(endpoint.data_dir)
        title = f"{broker_name(broker)} {endpoint.version}"
    cpu = f"{machine['cpu']['model']}, {len(machine['cpu']['allowed'])} CPUs, Linux {machine['kernel']}"
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    return RecordedLatencies(title, measures, tuple(pairs), made, cpu, left_out)


def wait_until_idle() -> None:
    """Wait until the machine has most of its CPU time left, for a minute at most."""
    end = time.monotonic() + IDLE_MOST_S
    while time.monotonic() < end:
        before = host.read_cpu_s(host.allowed_cpus())
        time.sleep(IDLE_S)
        after = host.read_cpu_s(host.allowed_cpus())
        spent = {name: after[name] - before[name] for name in after}
        if spent["idle"] + spent["iowait"] >= IDLE_SHARE * sum(spent.values()):
            return


def is_undisturbed(trial: dict[str, Any]) -> bool:
    """Whether a trial's verdict has nothing against it, and found nobody else on the CPU."""
    checks = {each["name"]: each["passed"] for each in trial["verdict"]["checks"]}
    return enters(trial) and all(checks[name] is True for name in UNDISTURBED)


def _quiet(_: str) -> None:
    """Progress that nobody watches."""


def record_all(count: int, folder: Path, *, is_latencies_only: bool = False) -> None:
    """Record so many pairs on both brokers, and keep them in a folder, as `kept` and `kept_latencies` read them."""
    rates: list[dict[str, Any]] = []
    latencies: list[dict[str, Any]] = []
    for broker in () if is_latencies_only else BOTH:  # each is kept at once: it took minutes
        rates.append(asdict(record(broker, count)))
        (folder / KEPT.name).write_text(json.dumps(rates) + "\n", encoding="utf-8")
    for broker in BOTH:
        latencies.append(asdict(record_latencies(broker, count)))
        (folder / KEPT_LATENCIES.name).write_text(json.dumps(latencies) + "\n", encoding="utf-8")


def main() -> None:
    """Record pairs on both brokers, and keep them."""
    parser = argparse.ArgumentParser(prog="prove.pairs", description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--latencies-only", action="store_true", help="leave the rates as they are")
    chosen = parser.parse_args()
    record_all(chosen.pairs, KEPT.parent, is_latencies_only=chosen.latencies_only)


if __name__ == "__main__":
    main()
