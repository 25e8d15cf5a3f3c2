"""A run of invented numbers, written through RunWriter like a real one; for tests of whatever reads runs."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from loadgen.recorder import Recorder
from loadgen.report import drawing, write_report
from loadgen.runs import Run, RunWriter, load

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator
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


# --- capacity searches and latency-rate curves ---

FRACTIONS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1)
LONG_WINDOW_S = 12.0
CAPACITIES = {"rabbitmq": 42e3, "kafka": 1.2e6}
CHECKS_OF_OVERLOAD = [
    {"name": "integrity", "passed": True, "reason": "every message arrived as sent"},
    {"name": "latency complete", "passed": False, "reason": "9,000 of 90,000 messages <due> were not sent"},
]


def probe(broker: str, number: int, step: str, offered: float | None, **given: Any) -> dict[str, Any]:
    """A trial of a capacity search; its rate is what the scenario asked for, as in a real run."""
    scenario, repeat = given.pop("scenario", "load"), given.pop("repeat", 1)
    asked = given.pop("rate", {"kind": "search", "msgs_per_s": None, "p99_ms": None, "fractions": None})
    home = given.pop("home", f"{scenario}/{broker}/{DRIVERS[broker][0]}/{repeat}")
    record = trial(
        broker, scenario, repeat=repeat, rate=asked, goodput_msgs_per_s=given.pop("goodput", offered or 50e3)
    )
    purpose = "measure" if step == "confirm" and asked["kind"] == "search" else step if step == "burst" else "probe"
    record |= {"id": f"{home}/{step}-{number}", "offered_msgs_per_s": offered, "purpose": purpose, **given}
    return record


def search_record(broker: str, trials: list[dict[str, Any]], capacity: float | None, **given: Any) -> dict[str, Any]:
    """A search's record over trials of which the last confirmed the capacity, where there is one."""
    first = trials[0]
    scenario, driver, point = first["scenario"], first["driver"], given.pop("point", {})
    names = "".join(f"/{name}={value}" for name, value in sorted(point.items()))
    return {
        "id": first["id"].rpartition("/")[0],
        "key": f"{scenario}/{broker}/{driver}{names}",
        "scenario": scenario,
        "broker": broker,
        "driver": driver,
        "durability": first["durability"],
        "point": point,
        "repeat": first["repeat"],
        "p99_ms": None,
        "capacity_msgs_per_s": capacity,
        "high_msgs_per_s": None if capacity is None else 1.05 * capacity,
        "is_lower_bound": False,
        "bound_by": "broker",
        "reason": f"at {1.05 * (capacity or 1):,.0f} msg/s the <backlog> grew by 1,000 msg/s",
        "producers": 1,
        "ceiling_msgs_per_s": None if capacity is None else 12 * capacity,
        "trial": None if capacity is None else trials[-1]["id"],
        "trials": [each["id"] for each in trials],
        "elapsed_s": 52.0,
        **given,
    }


def ceiling_record(search: dict[str, Any], **given: Any) -> dict[str, Any]:
    """The generator against a null broker, for a search's point."""
    return {
        **{name: search[name] for name in ("key", "scenario", "broker", "driver", "durability", "point", "producers")},
        "consumers": 1,
        "achieved_msgs_per_s": search["ceiling_msgs_per_s"],
        "how": "null broker",
        "bound_by": "generator",
        "limits": "the null broker took 0.42 of a core beside the clients; a lower bound of what the generator can do",
        "error": None,
        **given,
    }


def write_search(
    writer: RunWriter, broker: str, capacity: float, rng: np.random.Generator, **given: Any
) -> dict[str, Any]:
    """A burst, a probe that held, one that did not, and the trial that confirmed; the value is the search's record."""
    of_trial = {name: given.pop(name) for name in ("scenario", "repeat", "rate", "home", "point") if name in given}
    tried = [
        probe(broker, number, step, offered, **of_trial)
        for number, (step, offered) in enumerate(
            (("burst", None), ("probe", capacity), ("probe", 1.05 * capacity), ("confirm", capacity)), 1
        )
    ]
    for record in tried:
        offered = record["offered_msgs_per_s"]
        kind = "e2e_service" if offered is None else "e2e"
        write_trial(writer, record, {kind: 4e6 if (offered or 0) <= capacity else 90e6}, rng)
    found = search_record(broker, tried, capacity, point=of_trial.get("point", {}), **given)
    writer.add("searches", found)
    return found


def search_run(root: Path, repeats: int = 3, *, seed: int = 1) -> Run:
    """Both brokers' capacities, searched once a repeat, with a ceiling each."""
    rng = np.random.default_rng(seed)
    writer = RunWriter(root, "search", HEADER)
    for repeat in range(1, repeats + 1):
        for broker, capacity in CAPACITIES.items():
            found = write_search(writer, broker, capacity * rng.lognormal(0, 0.03), rng, repeat=repeat)
            if repeat == 1:
                writer.add("ceilings", ceiling_record(found))
    return load(writer.finish("complete"))


def write_long_trial(
    writer: RunWriter,
    record: dict[str, Any],
    median_ns: float,
    rng: np.random.Generator,
    slow_ns: dict[int, float] | None = None,
) -> None:
    """A trial of 12 s with end-to-end response times of this median, and seconds in which 5 % take so much longer."""
    writer.begin_trial(record, started_s=time.time() + WARMUP_S)
    recorder = Recorder(["e2e"], origin_ns=0)
    for second in range(-int(WARMUP_S), int(LONG_WINDOW_S)):
        values = median_ns * rng.lognormal(0, 0.5, 400)
        values[:20] += (slow_ns or {}).get(second, 0.0)
        recorder.record("e2e", second * SECOND_NS + np.arange(400) * (SECOND_NS // 400), values.astype(np.int64))
    deltas = recorder.take()
    writer.add_intervals(record["id"], deltas, agent="consumer0")
    from loadgen.histogram import Histogram  # noqa: PLC0415

    merged = Histogram()
    for delta in deltas:
        if delta.interval >= 0:
            delta.add_to(merged)
    writer.add_trial({**record, "latency_ns": {"e2e": merged.summary()}})


def fraction_trial(broker: str, fraction: float, repeat: int, capacity: float, **given: Any) -> dict[str, Any]:
    """A curve's trial at a fraction of a capacity: carried up to it, and invalid beyond, as overload is."""
    rate = {"kind": "curve", "msgs_per_s": None, "p99_ms": None, "fractions": [fraction]}
    offered = fraction * capacity
    record = trial(broker, "load", repeat=repeat, rate=rate, goodput_msgs_per_s=min(offered, capacity))
    record |= {
        "id": f"load/{broker}/{record['driver']}/fraction={fraction}/{repeat}",
        "point": {"fraction": fraction},
        "offered_msgs_per_s": offered,
        "window_s": LONG_WINDOW_S,
        "verdict": {"status": "valid", "bound_by": "offered", "reasons": [], "checks": []},
    }
    if fraction > 1:
        failed = CHECKS_OF_OVERLOAD[1]
        record["verdict"] = {
            "status": "invalid", "bound_by": "broker", "reasons": [f"{failed['name']}: {failed['reason']}"],
            "checks": CHECKS_OF_OVERLOAD,
        }  # fmt: skip
    return record | given


def curve_run(root: Path, repeats: int = 3, *, seed: int = 1, capacities: dict[str, float] | None = None) -> Run:
    """A curve of each broker: one search, then every fraction once a repeat; pauses explain RabbitMQ's slow seconds."""
    rng = np.random.default_rng(seed)
    writer = RunWriter(root, "curve", HEADER)
    found = capacities or CAPACITIES
    rate = {"kind": "search", "msgs_per_s": None, "p99_ms": None, "fractions": None}
    for broker, capacity in found.items():
        home = f"load/{broker}/{DRIVERS[broker][0]}/capacity/1"
        search = write_search(writer, broker, capacity, rng, rate=rate, home=home)
        for trial_id in search["trials"]:
            writer.add_trial({**writer._trials[trial_id], "purpose": "probe"})
        writer.add("ceilings", ceiling_record(search))
    for repeat in range(1, repeats + 1):
        for fraction in FRACTIONS:
            for broker, capacity in found.items():
                # M/M/1 on a floor: what does not queue takes no part in the knee.
                floor_ns, service_ns = (0.25e6, 0.12e6) if broker == "rabbitmq" else (0.4e6, 0.3e6)
                median_ns = floor_ns + service_ns / (1 - fraction) if fraction < 1 else 12e6 if fraction == 1 else 400e6
                record = fraction_trial(broker, fraction, repeat, capacity)
                slow_ns = {}
                if broker == "rabbitmq" and fraction == 0.9 and repeat == 1:
                    slow_ns = {3: 50e6, 8: 90e6}
                    pauses = [
                        {"kind": "gc pause", "at_s": each + 0.2, "duration_s": 0.08, "text": "Full"} for each in slow_ns
                    ]
                    record["observer"] = {"events": pauses, "gc": {"count": 2}}
                write_long_trial(writer, record, median_ns * rng.lognormal(0, 0.06), rng, slow_ns)
    return load(writer.finish("complete"))


# --- decisions ---

CHECKS_PASSED = [{"name": name, "passed": True, "reason": "as it should be"} for name in ("integrity", "schedule lag")]


def summary_ns(p99_ns: float, count: int = 80_000) -> dict[str, Any]:
    """A latency summary with this p99; the rest lies around it."""
    shares = {"min": 0.1, "mean": 0.3, "p50": 0.25, "p90": 0.6, "p99": 1.0, "p99_9": 2.0, "p99_99": 3.0, "max": 4.0}
    return {"count": count, **{name: share * p99_ns for name, share in shares.items()}}


def demanded_trial(broker: str, repeat: int, rate_msgs_per_s: float, p99_ms: float, **given: Any) -> dict[str, Any]:
    """A trial at a demanded rate that carried it with this p99; whatever is `given` replaces the invented values."""
    verdict = {"status": "valid", "bound_by": "offered", "reasons": [], "checks": CHECKS_PASSED}
    record = trial(
        broker, "decide-demand", repeat=repeat, rate={"kind": "fixed", "msgs_per_s": rate_msgs_per_s}, verdict=verdict
    )
    return record | {"latency_ns": {"e2e": summary_ns(p99_ms * 1e6)}} | given


def decide_run(
    root: Path,
    demand: dict[str, Any],
    p99_ms: dict[str, list[float]],
    edges: dict[str, list[float]] | None = None,
    given: dict[str, dict[str, Any]] | None = None,
    losses: dict[str, int | None] | None = None,
) -> Run:
    """A run of `loadgen decide`: by broker the p99 of each trial at the demanded rate (ms), and the edges (messages/s).

    `given` replaces values of a broker's trials at the demanded rate; `losses` are confirmed messages lost at a kill.
    """
    writer = RunWriter(root, "decide", {**HEADER, "plan": {"demand": demand}})
    durability = {"nothing": "none", "power": "flushed", "node": "replicated"}.get(demand["survive"], demand["survive"])
    for broker, values in p99_ms.items():
        for repeat, value in enumerate(values, 1):
            own = {"durability": durability, **(given or {}).get(broker, {})}
            writer.add_trial(demanded_trial(broker, repeat, demand["msgs_per_s"], value, **own))
    for broker, found in (edges or {}).items():
        for repeat, edge in enumerate(found, 1):
            rate = {"kind": "search", "msgs_per_s": None, "p99_ms": demand["p99_ms"], "fractions": None}
            confirmed = probe(broker, 1, "confirm", edge, scenario="decide-edge", repeat=repeat, rate=rate)
            confirmed |= {"durability": durability, "latency_ns": {"e2e": summary_ns(0.9e6 * demand["p99_ms"])}}
            writer.add_trial(confirmed)
            limit = {"bound_by": "objective", "p99_ms": demand["p99_ms"]}
            writer.add("searches", search_record(broker, [confirmed], edge, **limit))
    for broker, lost in (losses or {}).items():
        fault = {
            "what": "kill of the leader", "kind": "kill", "nodes": [1], "at_s": 5.0, "mended_after_s": 5.2,
            "confirm_gap_s": 1.2, "delivery_gap_s": 1.3, "back_after_s": 1.5, "error": None,
        }  # fmt: skip
        record = trial(broker, "decide-loss", durability=durability, rate={"kind": "fixed", "msgs_per_s": 500.0})
        account = {"confirmed_lost": lost, "unconfirmed_lost": 0, "duplicated": 0, "faults": [fault]}
        writer.add_trial({**record, **account})
    return load(writer.finish("complete"))


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Reports with empty drawings: most of a report's time goes into them, and not every test looks at them."""

    class Svg:
        def __init__(self, _: Any) -> None: ...

        def print_svg(self, file: io.StringIO, **_: Any) -> None:
            file.write("<svg></svg>")

    class Png(Svg):
        def print_png(self, file: io.BytesIO, **_: Any) -> None:
            file.write(b"")

    with mock.patch.object(drawing, "FigureCanvasSVG", Svg), mock.patch.object(drawing, "FigureCanvasAgg", Png):
        yield


def page_of(run: Run) -> str:
    """The text of a run's report, without its drawings."""
    with undrawn():
        return write_report(run)["html"].read_text(encoding="utf-8")
