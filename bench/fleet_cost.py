"""What a fleet's workers cost the machine that decides: messages, bytes and CPU a worker, and what 1,000 would cost.

Real workers on this machine carry a small load without a broker, so that nothing but their reports is at work. What
each of them sends up is counted at the command line's end of its child's socket; Locust's own heartbeats and
statistics, which end in that child, are part of its CPU time. Beyond the numbers that were run the figures are
extrapolated: a worker's share as measured, at the pace that so many workers are asked for.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from loadgen.drivers.memory import memory_endpoint
from loadgen.load import apply_sets, fingerprint, load_scenarios
from loadgen.locust import roster
from loadgen.locust.line import Line
from loadgen.locust.remote import TELLS_MSGS_PER_S, TELLS_S
from loadgen.plan import Profile, make_plan
from loadgen.trial import Setting, run_trial

FILE = Path("scenarios/latency.py")
PORT = 5571
HEAD_BYTES = 4  # of a message on a line
SHOWN = (10, 100, 1_000)


@dataclass
class Counted:
    """What came up since the last reset."""

    messages: int = 0
    size_bytes: int = 0


class CountingLine(Line):
    """A line that counts what it receives."""

    counted = Counted()

    def _read(self, size: int) -> bytearray | None:
        data = super()._read(size)
        self.counted.messages += size == HEAD_BYTES
        self.counted.size_bytes += size
        return data


def measured(workers: int, seconds: float, rate: int) -> dict[str, float]:
    """Figures a second and worker, of so many workers under a load of so many messages a second."""
    (scenario,) = load_scenarios(FILE)
    sets: list[tuple[str, Any]] = [("rate", rate), ("producers", (workers + 1) // 2), ("consumers", workers // 2 or 1)]
    plan = make_plan([apply_sets(scenario, sets)], Profile("bench", 1.0, seconds, 1), brokers=("kafka",))
    words = [sys.executable, "-m", "locust", "-f", str(FILE), "--worker", "--master-port", str(PORT)]
    started = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(workers)]
    asked = roster.Asked(workers, {scenario.name: fingerprint(scenario)}, port=PORT, wait_s=180.0)
    try:
        with mock.patch.object(roster, "Line", CountingLine), roster.Roster(asked, lambda _: None) as there:
            relay, own = psutil.Process(there.pid), psutil.Process()
            before, began_s = _cpu_s(relay, own), time.monotonic()
            CountingLine.counted = Counted()
            record, outcome = run_trial(
                plan.trials[0], Setting(memory_endpoint("kafka"), lambda _: None, hands=there.hands)
            )
            took_s = time.monotonic() - began_s
            after, counted = _cpu_s(relay, own), CountingLine.counted
    finally:
        for process in started:
            process.wait(60)
    if outcome.error is not None:
        raise SystemExit(outcome.error)
    each = took_s * workers
    return {
        "msgs": counted.messages / each,
        "bytes": counted.size_bytes / each,
        "relay_us": (after[0] - before[0]) / max(1, counted.messages) * 1e6,
        "own_us": (after[1] - before[1]) / max(1, counted.messages) * 1e6,
        "sent": record["sent"],
    }


def _cpu_s(*processes: psutil.Process) -> list[float]:
    return [sum(process.cpu_times()[:2]) for process in processes]


def main() -> None:
    """Measure with a few workers, and say what more would cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=int, default=1_000, help="messages a second, of all workers together")
    arguments = parser.parse_args()
    found: dict[str, float] = {}
    for workers in arguments.workers:
        found = measured(workers, arguments.seconds, arguments.rate)
        print(
            f"{workers} workers: {found['msgs']:.1f} msg/s and {found['bytes'] / 1e3:.1f} kB/s a worker; "
            f"CPU a message: {found['relay_us']:.0f} µs in Locust's master, {found['own_us']:.0f} µs in loadgen"
        )
    size_bytes = found["bytes"] / found["msgs"]
    for workers in SHOWN:
        each = 1 / max(TELLS_S, workers / TELLS_MSGS_PER_S)
        pace = workers * found["msgs"] * each * TELLS_S
        print(
            f"{workers:>5} workers, extrapolated: {pace:,.0f} msg/s, {pace * size_bytes / 1e6:.2f} MB/s, "
            f"cores: {pace * found['relay_us'] / 1e6:.2f} Locust's master, {pace * found['own_us'] / 1e6:.2f} loadgen"
        )


if __name__ == "__main__":
    main()
