"""How long it takes to read a large run: invented trials of an hour on each broker, 10⁹ messages in all.

    python bench/reading.py [--messages 1e9] [--every-second]

Bar: loaded and reported in under 10 s and 1 GB. The run is written as any run is, through `RunWriter`: histograms of
six kinds an interval, the observer's row beside them. What reads it is a fresh process each time; its peak of resident
memory is the kernel's word. Intervals are as long as the tool makes them for an hour (5 s), or a second each.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.histogram import BUCKETS, LOWEST_OF_BUCKET_NS, Histogram
from loadgen.recorder import IntervalDelta
from loadgen.runs import RunWriter, load

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR_S = 3_600
INTERVAL_S = 5
KINDS = {"e2e": 1.0, "ack": 0.7, "e2e_service": 0.95, "ack_service": 0.65, "schedule_lag": 0.05, "resolution": 0.02}
"""Each kind's median in ms, for RabbitMQ; Kafka's are four times as long."""
AGENTS = {"e2e": "consumer0", "e2e_service": "consumer0", "resolution": "consumer0"}
SPREAD = 0.6
SLOW_EVERY, SLOW_TIMES = 97, 20.0
"""Of so many intervals one has messages that take so many times as long: the report has something to explain."""
READS = 3


def write_run(root: Path, messages: int, window_s: int, interval_s: int, *, seed: int = 1) -> Path:
    """A run with a trial of this window on each broker, which share the messages; the value is its folder."""
    rng = np.random.default_rng(seed)
    writer = RunWriter(root, "reading", {"environment": {"cpu": {"model": "invented", "cores": 2}}})
    for broker, driver, times in (("rabbitmq", "amqp", 1.0), ("kafka", "kafka", 4.0)):
        record = _record(broker, driver, messages // 2, window_s)
        writer.begin_trial(record, started_s=time.time(), interval_s=float(interval_s))
        summaries = {}
        for kind, median_ms in KINDS.items():
            whole = Histogram()
            shares = [_shares(median_ms * times * 1e6 * slow) for slow in (1.0, SLOW_TIMES)]
            intervals = window_s // interval_s
            for number in range(intervals):
                count = record["sent"] // intervals + (number < record["sent"] % intervals)
                counts = rng.multinomial(count, shares[0])
                if number % SLOW_EVERY == SLOW_EVERY - 1:
                    counts += _moved(counts, shares[1], rng)
                delta = _delta(kind, number * interval_s, counts)
                delta.add_to(whole)
                writer.add_intervals(record["id"], [delta], AGENTS.get(kind, "producer0"))
            summaries[kind] = whole.summary()
        writer.add_series(_rows(record, interval_s, rng))
        writer.add_trial(
            record | {"latency_ns": {kind: found for kind, found in summaries.items() if kind != "resolution"}}
        )
    return writer.finish("complete")


def _record(broker: str, driver: str, sent: int, window_s: int) -> dict[str, Any]:
    rate = sent / window_s
    return {
        "id": f"reading/{broker}/{driver}/1", "scenario": "reading", "broker": broker, "driver": driver,
        "durability": "broker", "settings": {}, "point": {}, "repeat": 1, "seed": 1,
        "message": {"size_bytes": 100, "compressibility": 0.0, "keys": 0},
        "rate": {"kind": "fixed", "msgs_per_s": rate}, "producers": 1, "consumers": 1, "warmup_s": 0.0,
        "window_s": float(window_s), "drain_s": 0.1, "offered_msgs_per_s": rate, "achieved_msgs_per_s": rate,
        "goodput_msgs_per_s": rate, "goodput_bytes_per_s": 100 * rate, "sent": sent, "acked": sent, "received": sent,
        "lost": 0, "cpu_s": {"producers": 600.0, "consumers": 600.0, "broker": 1_800.0},
        "verdict": {"status": "valid", "bound_by": "offered", "reasons": [], "checks": []},
    }  # fmt: skip


def _shares(median_ns: float) -> Any:
    """How likely each bucket is under a log-normal distribution, as float64[BUCKETS]."""
    from scipy.stats import lognorm  # noqa: PLC0415 - the reading process needs none of it

    share = np.diff(lognorm.cdf(LOWEST_OF_BUCKET_NS[: BUCKETS + 1], SPREAD, scale=median_ns))
    return share / share.sum()


def _moved(counts: Any, slow: Any, rng: np.random.Generator) -> Any:
    """What changes where a tenth of an interval's messages are slow instead."""
    taken = rng.binomial(counts, 0.1)
    return rng.multinomial(int(taken.sum()), slow) - taken


def _delta(kind: str, second: int, counts: Any) -> IntervalDelta:
    used = np.flatnonzero(counts)
    lowest = LOWEST_OF_BUCKET_NS[used]
    return IntervalDelta(
        kind=kind,
        interval=second,
        indices=used.astype(np.int32),
        counts=counts[used],
        min_ns=int(lowest[0]),
        max_ns=int(lowest[-1]),
        sum_ns=int((lowest * counts[used]).sum()),
        out_of_range_count=0,
    )


def _rows(record: dict[str, Any], interval_s: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The observer's rows, with what the report looks at, and an agent's."""
    rate = record["offered_msgs_per_s"]
    groups, pressures = ("producers", "consumers", "broker", "loadgen"), ("cpu_some", "io_some", "io_full")
    rows: list[dict[str, Any]] = []
    for number in range(int(record["window_s"]) // interval_s):
        noise = rng.random(16)
        place = {"trial": record["id"], "elapsed_s": float((number + 1) * interval_s)}
        rows.append(
            {
                **place, "agent": "observer", "depth_msgs": int(1_000 * noise[0]),
                **{f"{name}_msgs_per_s": rate * (0.99 + 0.02 * noise[1]) for name in ("sent", "acked", "received")},
                **{f"{name}_rss_bytes": int(2e8 + 1e6 * noise[2]) for name in groups},
                **{f"{name}_cpu_cores": float(noise[3]) for name in groups},
                **{f"psi_{name}_share": 0.1 * float(noise[4]) for name in pressures},
                "host_steal_share": 0.001 * float(noise[5]), "others_cores": 0.1 * float(noise[6]),
                "disk_flush_ns": 1e6 * float(noise[7]), "disk_write_ns": 1e6 * float(noise[8]),
                "writeback_bytes": int(1e6 * noise[9]), "dirty_bytes": int(1e7 * noise[10]),
                "swapped_bytes_per_s": 0.0, "broker_memory_bytes": int(3e8 * (1 + 0.1 * noise[11])),
                "broker_data_bytes": int(1e9 * noise[12]), "retained_msgs": int(1e6 * noise[13]),
            }
        )  # fmt: skip
        rows.append({**place, "agent": "producer0", "sent": round(rate * interval_s)})
    return rows


def read(path: Path) -> None:
    """Load, report and ask as a notebook does; print what each took and the peak of memory after it."""
    begin_s = time.perf_counter()

    def told(what: str, work: Callable[[], Any]) -> None:
        work()
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"  {what:<32} {time.perf_counter() - begin_s:6.2f} s   peak {peak_bytes / 1e6:5.0f} MB", flush=True)

    run = load(path)
    told("loaded", lambda: None)

    def report() -> None:
        from loadgen.report import write_report  # noqa: PLC0415 - its imports are a part of what a user waits for

        write_report(run)

    told("and reported", report)
    told("and .trials, .percentiles()", lambda: (run.trials, run.percentiles()))
    told("and .series", lambda: run.series)


def main() -> None:
    """Write the run, and read it in fresh processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=float, default=1e9)
    parser.add_argument("--every-second", action="store_true")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read(arguments.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = write_run(Path(folder), int(arguments.messages), HOUR_S, 1 if arguments.every_second else INTERVAL_S)
        sizes = {each.name: each.stat().st_size / 1e6 for each in path.iterdir() if each.is_file()}
        print(
            f"{arguments.messages:.0e} messages; " + ", ".join(f"{name} {size:.1f} MB" for name, size in sizes.items())
        )
        for _ in range(READS):
            subprocess.run([sys.executable, __file__, "--read", str(path)], check=True)
            print()


if __name__ == "__main__":
    main()
