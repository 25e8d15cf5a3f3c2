"""Is this machine ready to install and run the brokers, and quiet enough to measure on?"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Literal

import psutil

Finding = dict[str, str]
Status = Literal["ok", "missing", "warning"]
MIN_FREE_BYTES = 20 << 30
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
    ]
    if governor.exists():
        name = governor.read_text().strip()
        findings.append(_finding("ok" if name == "performance" else "warning", "governor", name))
    return findings
