"""Is this machine ready to install and run the brokers, and quiet enough to measure on?"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import psutil

from loadgen.checks.timing import LAG_FLOOR_NS
from loadgen.host import work_ns
from loadgen.scheduling import be_scheduled

Finding = dict[str, str]
Status = Literal["ok", "missing", "warning"]
MIN_FREE_BYTES = 20 << 30
PACED, PACED_EVERY_S = 100, 0.01
STEADY_SHARE = 0.25  # clocks that rise with load move it by a tenth or two
WOKEN, SLEEP_S = 1_000, 0.001
MIN_MEMORY_BYTES = 3 << 30  # two brokers of at most 1 GB heap, and the agents


def examine() -> list[Finding]:
    """Every finding as {status: ok | missing | warning, what, text}; the text says what to do."""
    return [*_programs(), *_packages(), *_resources(), *_quiet()]


def _finding(status: Status, what: str, text: str) -> Finding:
    return {"status": status, "what": what, "text": text}


def _programs() -> list[Finding]:
    findings = [_finding("ok", "python", sys.version.split()[0])]
    for program, why in (
        ("apt-get", "RabbitMQ's packages are fetched with it; without it use --brokers docker or URLs"),
        ("dpkg-deb", "RabbitMQ's packages are unpacked with it; without it use --brokers docker or URLs"),
        ("mvn", "Kafka's jars are fetched with it: apt-get install maven"),
    ):
        path = shutil.which(program)
        findings.append(_finding("ok" if path else "missing", program, path or why))
    java = shutil.which("java")
    findings.append(_finding("ok", "java", java or "none: a JRE is fetched from PyPI on first use"))
    return findings


def _packages() -> list[Finding]:
    findings = []
    for name in ("confluent_kafka", "pika", "numpy", "pandas", "pyarrow", "scipy", "matplotlib", "kio", "crc32c"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            findings.append(_finding("missing", name, f"{error}; `make test` installs it into .venv"))
        else:
            findings.append(_finding("ok", name, str(getattr(module, "__version__", "installed"))))
    return findings


def _resources() -> list[Finding]:
    free, memory = shutil.disk_usage(Path()).free, psutil.virtual_memory().available
    return [
        _finding("ok" if free > MIN_FREE_BYTES else "warning", "disk", f"{free / 1e9:.0f} GB free; a trial may use 5"),
        _finding("ok" if memory > MIN_MEMORY_BYTES else "warning", "memory", f"{memory / 1e9:.1f} GB available"),
        _finding("ok" if (os.cpu_count() or 1) >= 4 else "warning", "cores", _cores_text(os.cpu_count() or 1)),
    ]


def _cores_text(cores: int) -> str:
    if cores >= 4:
        return f"{cores}: brokers and clients are pinned apart"
    return f"{cores}: brokers and clients share them, so rates read 'with this client on this host'"


def _quiet() -> list[Finding]:
    busy = psutil.cpu_percent(interval=1.0)
    steal = getattr(psutil.cpu_times_percent(interval=0.2), "steal", 0.0)
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    findings = [
        _finding("ok" if busy < 10 else "warning", "quiet", f"{busy:.0f} % of the CPU is in use by others"),
        _finding("ok" if steal < 2 else "warning", "steal", f"{steal:.1f} % is taken by the hypervisor"),
        _pace(),
        _wake_ups(),
    ]
    if governor.exists():
        name = governor.read_text().strip()
        findings.append(_finding("ok" if name == "performance" else "warning", "governor", name))
    return findings


def _pace() -> Finding:
    """Whether the same work takes the same CPU time: what slows a core from outside is in no count of stolen time."""
    took_ns = []
    for _ in range(PACED):
        time.sleep(PACED_EVERY_S)
        took_ns.append(work_ns())
    took_ns.sort()
    fast_us, slow_us = took_ns[PACED // 10] / 1e3, took_ns[-PACED // 10] / 1e3
    text = f"the same work takes {fast_us:.0f} to {slow_us:.0f} µs of CPU"
    if slow_us <= (1 + STEADY_SHARE) * fast_us:
        return _finding("ok", "pace", text)
    why = "the clock falls, or others work on the same core, which is not counted as stolen"
    return _finding("warning", "pace", f"{text}: {why}; expect repeats to differ")


def _wake_ups() -> Finding:
    """Whether one that sleeps wakes up in time: as an open loop does, whose messages leave late by as much."""
    with ThreadPoolExecutor(1, initializer=partial(be_scheduled, is_open_loop=True)) as thread:  # it takes that along
        late_ns = sorted(thread.submit(_slept_late_ns).result())
    median_ns, p99_ns = late_ns[WOKEN // 2], late_ns[WOKEN * 99 // 100]
    text = f"sleeps end {median_ns / 1e6:.2f} ms late (p50), {p99_ns / 1e6:.2f} ms (p99)"
    if p99_ns <= LAG_FLOOR_NS / 2:
        return _finding("ok", "wake-ups", text)
    why = "a hypervisor that takes its time, or cores that sleep deeply"
    allowed = f"the {LAG_FLOOR_NS / 1e6:g} ms that a verdict allows at least"
    return _finding("warning", "wake-ups", f"{text}: {why}; expect schedule lags near {allowed}")


def _slept_late_ns() -> list[int]:
    late_ns = []
    for _ in range(WOKEN):
        began_ns = time.monotonic_ns()
        time.sleep(SLEEP_S)
        late_ns.append(time.monotonic_ns() - began_ns - round(SLEEP_S * 1e9))
    return late_ns
