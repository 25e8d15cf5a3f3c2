"""A run of invented numbers, written through RunWriter like a real one; for tests of whatever reads runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.recorder import Recorder
from loadgen.runs import Run, RunWriter, load

if TYPE_CHECKING:
    from pathlib import Path

WARMUP_S, WINDOW_S = 2.0, 4.0
SECOND_NS = 1_000_000_000
DRIVERS = {"rabbitmq": ("amqp", "pika"), "kafka": ("kafka", "confluent")}
HEADER: dict[str, Any] = {
    "command": ["loadgen", "compare", "--profile", "quick"],
    "profile": "quick",
    "seed": 1,
    "repeats": 5,
    "scenarios": [{"name": "latency"}, {"name": "throughput"}],
    "environment": {
        "cpu": {"model": "Invented CPU 9000", "cores": 2, "governor": "powersave"},
        "memory_bytes": 16 << 30,
        "kernel": "6.1.0",
        "os": "Invented Linux 12",
        "disk": {"device": "/dev/vda1", "filesystem": "ext4", "rotational": False},
        "python": "CPython 3.11.7",
        "packages": {"numpy": "2.1.0"},
        "virtualisation": {"hypervisor": True},
        "sysctl": {"net.core.rmem_max": "212992"},
        "git": {"revision": "0123abcd", "dirty": False},
    },
    "brokers": {
        "rabbitmq": {
            "version": "4.3.6",
            "source": "local",
            "configuration": {"vm_memory_high_watermark": 0.6, "default_pass": "[redacted]"},
            "deviations": ["scheduler_bind_type = u (db as shipped)"],
        },
        "kafka": {
            "version": "4.3.1",
            "source": "local",
            "configuration": {"num.network.threads": 3, "ssl.key.password": None},
            "deviations": ["offsets.topic.replication.factor = 1 (3 as shipped)", "heap <1 GB> & G1"],
        },
    },
}


def trial(broker: str, scenario: str = "throughput", **given: Any) -> dict[str, Any]:
    """A record as a trial leaves it; whatever is `given` replaces the invented values."""
    driver_kind = given.pop("driver_kind", "wire")
    driver = DRIVERS[broker][driver_kind == "client"]
    repeat, durability = given.pop("repeat", 1), given.pop("durability", "broker")
    rate = given.pop("rate", {"kind": "saturate", "msgs_per_s": None, "to_msgs_per_s": None})
    goodput = given.pop("goodput_msgs_per_s", rate["msgs_per_s"] or 1_000.0)
    swept = "-".join(str(part) for part in (durability, f"{rate['msgs_per_s'] or 'max'}"))
    count = round(goodput * WINDOW_S)
    return {
        "id": f"{scenario}/{broker}/{driver}/{swept}/{repeat}",
        "scenario": scenario,
        "broker": broker,
        "driver": driver,
        "driver_kind": driver_kind,
        "durability": durability,
        "settings": {"prefetch": 100} if broker == "rabbitmq" else {"linger_ms": 0.0},
        "point": {},
        "repeat": repeat,
        "seed": 7,
        "message": {"size_bytes": 1024, "compressibility": 0.0, "keys": 0},
        "rate": rate,
        "producers": 1,
        "consumers": 1,
        "warmup_s": WARMUP_S,
        "window_s": WINDOW_S,
        "drain_s": 0.1,
        "offered_msgs_per_s": rate["msgs_per_s"],
        "achieved_msgs_per_s": goodput,
        "goodput_msgs_per_s": goodput,
        "goodput_bytes_per_s": goodput * 1024,
        "sent": count,
        "acked": None if durability == "none" else count,
        "received": count,
        "lost": 0,
        "out_of_order": 0,
        "cpu_s": {"producers": count * 0.4e-6, "consumers": count * 4e-6, "broker": count * 20e-6},
        "latency_ns": {},
        "verdict": {
            "status": "valid",
            "bound_by": "broker",
            "reasons": ["bound by broker: its queue was full"],
        },
        **given,
    }


def write_trial(
    writer: RunWriter, record: dict[str, Any], medians_ns: dict[str, float], rng: np.random.Generator
) -> None:
    """Record invented latencies of the given medians around the measured window, then the trial itself."""
    writer.begin_trial({**record, "latency_ns": {}}, started_s=time.time() + WARMUP_S)
    recorder = Recorder(medians_ns, origin_ns=0)
    for kind, median_ns in medians_ns.items():
        when = rng.integers(-int(WARMUP_S * SECOND_NS), int(WINDOW_S * SECOND_NS), 6_000)
        values = median_ns * rng.lognormal(0, 0.35, len(when)) * (1 + 8 * (rng.random(len(when)) > 0.985))
        recorder.record(kind, when, values.astype(np.int64))
    deltas = recorder.take()
    writer.add_intervals(record["id"], deltas, agent="consumer0")
    writer.add_series([{"trial": record["id"], "agent": "consumer0", "interval": i, "received": 1} for i in range(4)])
    from loadgen.histogram import Histogram  # noqa: PLC0415

    summaries = {}
    for kind in medians_ns:
        merged = Histogram()
        for delta in deltas:
            if delta.kind == kind and delta.interval >= 0:
                delta.add_to(merged)
        summaries[kind] = merged.summary()
    writer.add_trial({**record, "latency_ns": summaries})


def compare_run(root: Path, repeats: int = 5, *, seed: int = 1) -> Run:
    """A comparison: latency at two rates, throughput in three classes, client drivers, one useless trial."""
    rng = np.random.default_rng(seed)
    writer = RunWriter(root, "compare", HEADER)
    for repeat in range(1, repeats + 1):
        for rate in (1_000.0, 5_000.0):
            for broker, median_ns in (("rabbitmq", 280e3), ("kafka", 640e3)):
                wobble = rng.lognormal(0, 0.05)
                record = trial(broker, "latency", repeat=repeat, rate={"kind": "fixed", "msgs_per_s": rate})
                record["verdict"] = {"status": "valid", "bound_by": "offered", "reasons": []}
                kinds = {
                    "e2e": median_ns,
                    "ack": median_ns * 0.8,
                    "e2e_service": median_ns * 0.9,
                    "schedule_lag": 9e4,
                }
                write_trial(writer, record, {kind: value * wobble for kind, value in kinds.items()}, rng)
        for durability, rabbitmq, kafka in (
            ("none", 61e3, 2.1e6),
            ("broker", 42e3, 1.3e6),
            ("flushed", 27e3, 31e3),
        ):
            for broker, goodput in (("rabbitmq", rabbitmq), ("kafka", kafka)):
                record = trial(
                    broker,
                    repeat=repeat,
                    durability=durability,
                    goodput_msgs_per_s=goodput * rng.lognormal(0, 0.06),
                )
                if broker == "kafka":
                    count = record["sent"]
                    record["cpu_s"] = {
                        "producers": count * 6e-8,
                        "consumers": count * 4e-8,
                        "broker": count * 3e-7,
                    }
                    if durability != "flushed":
                        record["verdict"] = {
                            "status": "unknown",
                            "bound_by": "host",
                            "reasons": ["bound by host: CPU 97 %"],
                        }
                write_trial(writer, record, {"e2e_service": 4e6, "ack_service": 3e6}, rng)
        for broker, goodput in (("rabbitmq", 14e3), ("kafka", 480e3)):
            record = trial(
                broker,
                "clients",
                repeat=repeat,
                driver_kind="client",
                goodput_msgs_per_s=goodput * rng.lognormal(0, 0.06),
            )
            record["verdict"] = {"status": "valid", "bound_by": "generator", "reasons": []}
            write_trial(writer, record, {"e2e_service": 4e6}, rng)
    useless = trial("kafka", repeat=repeats + 1, goodput_msgs_per_s=9.9e9, lost=3)
    useless["verdict"] = {
        "status": "invalid",
        "bound_by": "unknown",
        "reasons": ["ledger: 3 confirmed messages <lost>"],
    }
    writer.add_trial(useless)
    return load(writer.finish("complete"))
