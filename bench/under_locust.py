"""Locust beside the command line: the same scenario, the same brokers, in turn; what the bars of Locust quote.

    python bench/under_locust.py [rate] [latency] [hub] [--pairs N] [--seconds S]

`rate`: one Locust worker, saturating, against `loadgen run`; Locust's own counts must be the broker's end offsets.
`latency`: p50 and p99 at 2,000 msg/s, interleaved; compared by the interval of the mean log ratio (t, 95 %).
`hub`: under full load, how late a greenlet wakes that asks for 5 ms, and the longest that Locust's loop was held.
(The file is not named after Locust, or `import locust` here would find itself.)
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.brokers import BOTH, open_brokers
from loadgen.runs import load
from loadgen.stats.confidence import paired_ratio

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName

# A broker, and the knobs of a case: the wire drivers, and what an application of librdkafka's would get.
CASES: tuple[tuple[BrokerName, tuple[str, ...]], ...] = (
    ("kafka", ()),
    ("rabbitmq", ()),
    ("kafka", ("kafka.driver=confluent",)),
)
THROUGHPUT, LATENCY = "scenarios/throughput.py", "scenarios/latency.py"
WARMUP_S = 3


def under_locust(
    file: str, broker: str, seconds: float, *sets: str, more: tuple[str, ...] = ()
) -> tuple[Any, dict[str, int]]:
    """One test of one consumer and one producer: the trial's record, and Locust's counts by method."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["-f", file, "--headless", "-u", "2", "-r", "2", "-t", f"{seconds + WARMUP_S:.0f}s", "--broker", broker]
        words += ["--csv", str(folder / "stats"), "--results", str(folder / "results"), "--only-summary"]
        for text in (*sets, f"warmup_s={WARMUP_S - 1}"):
            words += ["--set", text]
        subprocess.run([sys.executable, "-m", "locust", *words, *more], check=False, stderr=subprocess.DEVNULL)
        with (folder / "stats_stats.csv").open() as file_:
            counts = {row["Type"]: int(row["Request Count"]) for row in csv.DictReader(file_)}
        (trial,) = load(folder / "results" / "latest").records
        return trial, counts


def by_command_line(file: str, broker: str, seconds: float, *sets: str) -> Any:
    """The same by `loadgen run`."""
    with tempfile.TemporaryDirectory() as name:
        words = ["run", file, "--broker", broker, "--repeats", "1", "--results", name]
        for text in (*sets, f"warmup_s={WARMUP_S - 1}", f"duration_s={seconds}"):
            words += ["--set", text]
        subprocess.run([sys.executable, "-m", "loadgen.cli", *words], check=False, capture_output=True)
        (trial,) = load(Path(name) / "latest").records
        return trial


def rates(pairs: int, seconds: float) -> None:
    """Messages a second, Locust's and the command line's."""
    for broker, knobs in CASES:
        ours, theirs = [], []
        sets = ("durability=broker", *knobs)
        for _ in range(pairs):
            trial, counts = under_locust(THROUGHPUT, broker, seconds, *sets)
            stored = trial["broker_counts"]["stored"]
            assert counts["PUBLISH"] == counts["CONSUME"] == trial["sent"], (counts, trial["sent"])
            assert stored in {None, trial["sent"]}, (stored, trial["sent"])
            ours.append(trial["achieved_msgs_per_s"])
            theirs.append(by_command_line(THROUGHPUT, broker, seconds, *sets)["achieved_msgs_per_s"])
            print(f"{_name(broker, knobs)}: Locust {ours[-1]:,.0f} msg/s, counts exact; loadgen run {theirs[-1]:,.0f}")
        _compare(f"{_name(broker, knobs)}, messages a second", ours, theirs)


def latencies(pairs: int, seconds: float) -> None:
    """p50 and p99 of the end-to-end response time at 2,000 msg/s."""
    for broker in BOTH:
        ours: list[Any] = []
        theirs: list[Any] = []
        for _ in range(pairs):
            ours.append(under_locust(LATENCY, broker, seconds, "rate=2000")[0]["latency_ns"]["e2e"])
            theirs.append(by_command_line(LATENCY, broker, seconds, "rate=2000")["latency_ns"]["e2e"])
        for name in ("p50", "p99"):
            _compare(f"{broker}, {name}", [each[name] for each in ours], [each[name] for each in theirs])


def hub(seconds: float) -> None:
    """How long Locust's loop was held at most, under full load of both kinds."""
    for broker, knobs in CASES:
        file = str(Path(__file__).with_name("heartbeat.py"))
        print(f"{_name(broker, knobs)}: ", end="", flush=True)
        under_locust(f"{THROUGHPUT},{file}", broker, seconds, "durability=broker", *knobs)


def _name(broker: str, knobs: tuple[str, ...]) -> str:
    return " ".join((broker, *knobs))


def _compare(what: str, ours: list[float], theirs: list[float]) -> None:
    if len(ours) < 2:
        print(f"{what}: ratio {ours[0] / theirs[0]:.3f} (one pair)")
        return
    ratio = paired_ratio(zip(ours, theirs, strict=True))
    print(f"{what}: Locust over loadgen run {ratio.ratio:.3f}, 95 % interval {ratio.low:.3f} … {ratio.high:.3f}")


def main() -> None:
    """Run what is asked for, on brokers that are up or started for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["rate", "latency", "hub"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    with open_brokers("local", progress=print):
        if "rate" in arguments.what:
            rates(arguments.pairs, arguments.seconds)
        if "latency" in arguments.what:
            latencies(arguments.pairs, arguments.seconds)
        if "hub" in arguments.what:
            hub(arguments.seconds)


if __name__ == "__main__":
    main()
