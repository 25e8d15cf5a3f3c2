"""Tests of loadgen.observer on a /proc laid for the purpose and on the real one, and of its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from patience import until

from loadgen import host, observer
from loadgen.checks.machine import check_observed
from loadgen.driver import Gauge
from loadgen.endpoint import Endpoint
from loadgen.facts import Facts, observed_facts
from loadgen.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import BrokerName


class Proc:
    """A /proc of processes that are moved by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def set(self, pid: int, cpu_s: float, *, started: int = 1, threads_s: dict[int, float] | None = None) -> None:
        """Lay a process that used so much CPU, and its threads."""
        ticks = round(cpu_s * host.TICKS_PER_S)
        fields = ["S", *["0"] * 10, str(ticks), *["0"] * 7, str(started), "0", "5"]
        (self.root / str(pid)).mkdir(exist_ok=True)
        (self.root / str(pid) / "stat").write_text(f"{pid} (x) {' '.join(fields)}")
        for tid, run_s in (threads_s or {}).items():
            (self.root / str(pid) / "task" / str(tid)).mkdir(parents=True, exist_ok=True)
            (self.root / str(pid) / "task" / str(tid) / "schedstat").write_text(f"{round(run_s * 1e9)} 0 1")

    def end(self, pid: int) -> None:
        """The process is gone."""
        (self.root / str(pid) / "stat").unlink()


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    """An empty /proc."""
    return Proc(tmp_path)


def group(proc: Proc, *pids: int, with_threads: bool = False) -> observer._Group:
    """A group of processes in that /proc."""
    return observer._Group("g", pids, with_threads=with_threads, proc=proc.root)


def test_a_process_that_ends_keeps_its_last_total(proc: Proc) -> None:
    """A group's CPU never falls, and its memory is that of the living."""
    watched = group(proc, 1, 2)
    proc.set(1, 10)
    proc.set(2, 20)
    assert watched.read()["g_cpu_s"] == 0
    proc.set(1, 11)
    proc.set(2, 23)
    assert watched.read() == {"g_cpu_s": pytest.approx(4), "g_rss_bytes": 10 * host.PAGE_BYTES}
    proc.end(1)
    proc.set(2, 24)
    assert watched.read() == {"g_cpu_s": pytest.approx(5), "g_rss_bytes": 5 * host.PAGE_BYTES}


def test_a_pid_that_is_used_again_is_another_process(proc: Proc) -> None:
    """What a stranger with an old pid uses is not the group's."""
    watched = group(proc, 1)
    proc.set(1, 10, started=1)
    watched.read()
    proc.set(1, 500, started=2)
    assert watched.read() == {"g_cpu_s": 0, "g_rss_bytes": 0}


def test_processes_that_cannot_be_read_are_unknown(proc: Proc) -> None:
    """A broker on another machine has no CPU figure, not zero."""
    assert group(proc, 1).read() == {}
    assert group(proc).read() == {}


def test_the_busiest_thread_is_found_in_each_interval(proc: Proc) -> None:
    """Of two threads the one that ran longer counts, also one that is new."""
    watched = group(proc, 1, with_threads=True)
    proc.set(1, 0, threads_s={1: 5, 2: 7})
    watched.read()
    proc.set(1, 1, threads_s={1: 5.5, 2: 7.2})
    assert watched.read()["g_busiest_s:1"] == pytest.approx(0.5)
    proc.set(1, 1, threads_s={1: 5.6, 2: 7.2, 3: 0.9})
    assert watched.read()["g_busiest_s:1"] == pytest.approx(1.4)


def test_other_programs_are_named_and_kernel_threads_are_not_others() -> None:
    """CPU before the first look is nobody's; kernel threads and our own processes are kept apart."""

    def table(cpu_s: float, **new: float) -> dict[int, host.ProcessReading]:
        found = {
            1: host.ProcessReading(1, cpu_s, 0, "kworker", is_kernel=True),
            2: host.ProcessReading(1, cpu_s, 0, "ours", is_kernel=False),
            3: host.ProcessReading(1, cpu_s, 0, "cc1", is_kernel=False),
        }
        for pid, (name, used_s) in enumerate(new.items(), 9):
            found[pid] = host.ProcessReading(8, used_s, 0, name, is_kernel=False)
        return found

    others = observer._Others()
    others.read(table(10), {2})
    assert (others.kernel_s, sum(others.by_name_s.values())) == (0, 0)
    others.read(table(11, new=0.5), {2})
    assert others.kernel_s == 1
    assert others.by_name_s == {"cc1": 1, "new": 0.5}


# --- the observer itself ---

SPIN = "import time\nwhile True: pass"


@pytest.fixture
def spinning() -> Iterator[int]:
    """The pid of a process that uses all the CPU it can get."""
    with subprocess.Popen([sys.executable, "-c", SPIN]) as process:
        yield process.pid
        process.kill()


def wait_for(condition: Any) -> None:
    """Wait until something has happened."""
    assert until(condition)


def test_a_real_process_is_observed(spinning: int, tmp_path: Path) -> None:
    """CPU, busiest thread, memory, host, disk and depth are all there, and fit the verdict's facts."""
    endpoint = Endpoint("kafka", (("127.0.0.1", 1),), data_dir=tmp_path, log_dir=tmp_path, pids=(spinning,))
    watching = Observer(
        {"producers": [spinning], "broker": ()}, endpoint, 0.05, lambda: Gauge(42), watch_interval_s=0.1
    )
    origin_ns, begun_s = time.monotonic_ns(), psutil.Process(spinning).cpu_times().user
    watching.start(origin_ns)
    wait_for(lambda: psutil.Process(spinning).cpu_times().user > begun_s + 0.1)  # it may have had no CPU for a while
    count = len(watching._samples.at_ns) + 6
    wait_for(lambda: len(watching._samples.at_ns) >= count and len(watching._depths.at_ns) >= 2)
    wait_for(lambda: watching._works >= 2)
    seen = watching.stop()
    summary = seen.summary(origin_ns, time.monotonic_ns())
    assert summary["cpu_s"]["producers"] > 0
    assert summary["agent_core_share_max"]["producers"] > 0
    assert summary["rss_bytes"]["producers"] > 0
    assert summary["cpu_s"]["broker"] is None
    assert summary["cpu_s"]["loadgen"] > 0
    assert 0 < summary["host_busy_share"] <= 1
    assert 0 <= summary["cpu_slow_share"] < 1
    assert summary["depth_msgs"] == {"max": 42, "mean": 42.0, "last": 42}
    assert summary["disk_free_bytes_min"] > 0
    assert summary["errors"] == {}
    assert json.loads(json.dumps(summary)) == summary
    assert json.loads(json.dumps(seen.rows)) == seen.rows
    fields = observed_facts(summary)
    Facts(durability="none", rate_kind="fixed", consumers=0, window_s=1, sent=1, acked=1, received=1, **fields)


def test_side_looks_that_fail_are_counted_and_do_not_stop_the_sampling() -> None:
    """A depth that raises and a management API that is away cost a count each, nothing more."""

    def gauge() -> Gauge:
        raise RuntimeError("broker is gone")

    away = "http://127.0.0.1:9"
    endpoint = Endpoint("rabbitmq", (("127.0.0.1", 1),), management_url=away, data_dir=Path("/no/such/folder"))
    watching = Observer({"broker": [os.getpid()]}, endpoint, 0.02, gauge, watch_interval_s=0.02)
    watching.start(time.monotonic_ns())
    wait_for(lambda: len(watching._samples.at_ns) >= 4 and len(watching._errors) >= 3)
    errors = watching.stop().errors
    assert errors is not None
    assert {name.partition(":")[0] for name in errors} == {"depth", "alarms", "disk"}


def test_a_depth_that_hangs_does_not_hold_up_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples go on while nobody answers, and stop leaves the answer behind."""
    monkeypatch.setattr(observer, "STOP_TIMEOUT_S", 0.05)
    release = threading.Event()
    watching = Observer({}, None, 0.02, lambda: Gauge(int(release.wait(30))))
    watching.start(time.monotonic_ns())
    wait_for(lambda: len(watching._samples.at_ns) >= 5)
    seen = watching.stop()
    release.set()
    assert len(seen.rows) >= 4
    assert {row["depth_msgs"] for row in seen.rows} == {None}


def test_a_defect_of_the_sampler_costs_the_verdict_and_not_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen before is kept, the defect is counted and named, and the verdict cannot tell."""
    watching = Observer({}, None, 0.02)
    origin_ns = time.monotonic_ns()
    watching.start(origin_ns)
    wait_for(lambda: len(watching._samples.at_ns) >= 12)
    monkeypatch.setattr(host, "read_load_1m", lambda _: 1 // 0)
    wait_for(lambda: bool(watching._defects))
    seen = watching.stop()
    assert len(seen.rows) >= 11
    assert seen.errors is not None
    assert seen.errors["sampler: ZeroDivisionError"] >= 1
    fields = observed_facts(seen.summary(origin_ns, time.monotonic_ns()))
    facts = Facts(durability="none", rate_kind="fixed", consumers=0, window_s=1, sent=1, acked=1, received=1, **fields)
    check = check_observed(facts)
    assert check.passed is None
    assert "ZeroDivisionError" in check.reason


def test_a_process_can_be_added_while_it_runs(spinning: int) -> None:
    """A restarted broker's new process is counted from then on."""
    watching = Observer({"broker": []}, None, 0.02)
    watching.start(time.monotonic_ns())
    watching.add("broker", spinning)
    wait_for(lambda: "broker_cpu_s" in watching._samples.values)
    assert watching.stop().rows[-1]["broker_cpu_s"] is not None


def test_what_others_saw_joins_the_timeline() -> None:
    """A noted event is in the summary of the window that it touches, in seconds from its beginning."""
    watching = Observer({}, None, 0.02)
    origin_ns = time.monotonic_ns()
    watching.start(origin_ns)
    watching.note("rebalance", origin_ns + 1_000_000_000, origin_ns + 1_500_000_000, "consumer0")
    wait_for(lambda: len(watching._samples.at_ns) >= 2)
    events = watching.stop().summary(origin_ns, origin_ns + 2_000_000_000)["events"]
    assert events == [{"kind": "rebalance", "at_s": 1.0, "duration_s": 0.5, "text": "consumer0"}]


def test_the_machines_own_noise_is_read_from_its_kernel(tmp_path: Path) -> None:
    """Frequency, heat, swap and the broker's disk come from /proc and /sys, and the clock source is compared."""
    root, proc = tmp_path / "sys", tmp_path / "proc"
    device = tmp_path.stat().st_dev
    files = {
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2000000",
        "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "0",
        "devices/system/clocksource/clocksource0/current_clocksource": "tsc",
        f"dev/block/{os.major(device)}:{os.minor(device)}/stat": "0 0 0 0 1 0 0 10 0 0 0 0 0 0 0 1 2",
    }

    def lay(changes: dict[str, str]) -> None:
        for name, text in changes.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

    lay(files)
    proc.mkdir()
    (proc / "vmstat").write_text("pswpin 1\npswpout 0\n")
    endpoint = Endpoint("rabbitmq", (("127.0.0.1", 1),), data_dir=tmp_path)
    watching = Observer({}, endpoint, 0.02, watch_interval_s=0.02, cpus=[0], proc=proc, sys_root=root)
    origin_ns = time.monotonic_ns()
    watching.start(origin_ns)
    wait_for(lambda: len(watching._watches.at_ns) >= 2 and len(watching._samples.at_ns) >= 2)
    changed = dict(zip(files, ("1500000", "3", "hpet", "0 0 0 0 3 0 0 50 0 0 0 0 0 0 0 2 8"), strict=True))
    lay(changed)
    (proc / "vmstat").write_text("pswpin 2\npswpout 5\n")
    told = len(watching._watches.at_ns), len(watching._samples.at_ns)
    wait_for(lambda: len(watching._watches.at_ns) > told[0] + 1 and len(watching._samples.at_ns) > told[1] + 1)
    seen = watching.stop()
    summary = seen.summary(origin_ns, time.monotonic_ns())
    assert summary["cpu_frequency_fall_share"] == pytest.approx(0.25)
    assert summary["cpu_throttles"] == 3
    assert summary["swapped_bytes"] == 6 * host.PAGE_BYTES
    assert (summary["disk"]["writes"], summary["disk"]["write_mean_ns"]) == (2, pytest.approx(20e6))
    assert (summary["disk"]["flushes"], summary["disk"]["flush_mean_ns"]) == (1, pytest.approx(6e6))
    assert (summary["clock"]["source"], summary["clock"]["changed"]) == ("hpet", True)
    assert summary["errors"] == {}
    assert json.loads(json.dumps(seen.rows)) == seen.rows


def test_kafkas_heap_is_among_what_was_seen_last(tmp_path: Path) -> None:
    """As its last garbage collection left it: none before one ended; a line that tells no heap changes nothing."""
    log = tmp_path / "kafkaServer-gc.log"
    log.write_text("")
    watching = Observer({}, Endpoint("kafka", (("127.0.0.1", 1),), log_dir=tmp_path), 0.02, watch_interval_s=0.02)
    watching.start(time.monotonic_ns())
    assert "broker_memory_bytes" not in watching.newest()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000+0000", time.gmtime())
    for used, told in (("24M->4M(256M)", 4 << 20), ("30M->6M(256M)", 6 << 20), ("", 6 << 20)):
        number = len(watching._pauses)
        with log.open("a") as file:
            file.write(f"[{stamp}][gc] GC(1) Pause Young (Normal) {used} 3.4ms\n")
        wait_for(lambda number=number: len(watching._pauses) > number)
        assert watching.newest()["broker_memory_bytes"] == told
    watching.stop()


def test_both_real_brokers_are_observed(endpoints: dict[BrokerName, Endpoint]) -> None:
    """Their CPU and memory, RabbitMQ's alarms (none) and Kafka's GC pauses (logged) are known."""
    seen: dict[str, dict[str, Any]] = {}
    for broker, endpoint in endpoints.items():
        watching = Observer({"broker": endpoint.pids}, endpoint, 0.05, watch_interval_s=0.1)
        origin_ns = time.monotonic_ns()
        watching.start(origin_ns)
        wait_for(lambda watching=watching: len(watching._watches.at_ns) >= 2)
        assert watching.newest()["broker_connections"] >= 0
        seen[broker] = watching.stop().summary(origin_ns, time.monotonic_ns())
        assert seen[broker]["cpu_s"]["broker"] is not None
        assert seen[broker]["rss_bytes"]["broker"] > 1 << 20
        assert seen[broker]["disk_full"] is False
        assert seen[broker]["errors"] == {}
    assert seen["rabbitmq"]["alarms"] == []
    assert seen["rabbitmq"]["gc"] is None
    assert seen["kafka"]["alarms"] is None
    assert seen["kafka"]["gc"]["count"] >= 0
