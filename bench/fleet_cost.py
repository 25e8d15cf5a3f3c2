"""What a fleet's workers cost the machine that decides: messages, bytes and CPU a worker, and what 1,000 would cost.

Real workers on this machine carry a small load without a broker, so that nothing but their reports is at work. What
each of them sends up is counted at the command line's end of its child's socket; Locust's own heartbeats and
statistics, which end in that child, are part of its CPU time. Beyond the numbers that were run the figures are
extrapolated: a message's size and CPU time as measured, at the pace that so many workers are asked for.
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
OWN_MSGS_PER_S = 4 / 3  # of each worker to Locust's master: a heartbeat a second, statistics every three
HEAD_BYTES = 4  # of a message on a line
SHOWN = (10, 100, 1_000)


@dataclass
class Counted:
    """What came up since the last reset."""

    messages: int = 0
    size_bytes: int = 0
    cpu_s: float = 0.0
    """Of the thread that hears them: decoding, the board, and passing on."""


class CountingLine(Line):
    """A line that counts what it receives."""

    counted = Counted()

    _last_s = 0.0

    def receive(self) -> dict[str, Any] | None:
        """The next message; what this thread did since the last one is counted."""
        now_s = time.thread_time()
        self.counted.cpu_s += now_s - self._last_s
        self._last_s = now_s
        return super().receive()

    def _read(self, size: int) -> bytearray | None:
        data = super()._read(size)
        self.counted.messages += size == HEAD_BYTES
        self.counted.size_bytes += size
        return data


def measured(workers: int, seconds: float, rate: int) -> dict[str, float]:
    """Figures a second and worker, of so many workers under a load of so many messages a second."""
    (scenario,) = load_scenarios(FILE)
    sets: list[tuple[str, Any]] = [("rate", rate), ("producers", (workers + 1) // 2), ("consumers", workers // 2 or 1)]
    sets.append(("kafka.partitions", workers))
    plan = make_plan([apply_sets(scenario, sets)], Profile("bench", 1.0, seconds, 1), brokers=("kafka",))
    words = [sys.executable, "-m", "locust", "-f", str(FILE), "--worker", "--master-port", str(PORT)]
    started = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(workers)]
    asked = roster.Asked(workers, {scenario.name: fingerprint(scenario)}, port=PORT, wait_s=180.0)
    try:
        with mock.patch.object(roster, "Line", CountingLine), roster.Roster(asked, lambda _: None) as there:
            relay = psutil.Process(there.pid)
            before_s = sum(relay.cpu_times()[:2])
            CountingLine.counted = Counted()
            record, outcome = run_trial(
                plan.trials[0], Setting(memory_endpoint("kafka"), lambda _: None, hands=there.hands)
            )
            relay_s, counted = sum(relay.cpu_times()[:2]) - before_s, CountingLine.counted
    finally:
        for process in started:
            process.wait(60)
    if outcome.error is not None:
        raise SystemExit(outcome.error)
    each = (record["warmup_s"] + record["window_s"] + record["drain_s"]) * workers
    return {
        "msgs": counted.messages / each,
        "bytes": counted.size_bytes / each,
        "relay_us": relay_s / (counted.messages + OWN_MSGS_PER_S * each) * 1e6,
        "own_us": counted.cpu_s / max(1, counted.messages) * 1e6,
        "sent": record["sent"],
    }


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
        pace = workers / max(TELLS_S, workers / TELLS_MSGS_PER_S)
        relay_us = (pace + workers * OWN_MSGS_PER_S) * found["relay_us"]
        print(
            f"{workers:>5} workers, extrapolated: {pace:,.0f} msg/s, {pace * size_bytes / 1e6:.2f} MB/s, "
            f"cores: {relay_us / 1e6:.2f} Locust's master, {pace * found['own_us'] / 1e6:.2f} loadgen"
        )


if __name__ == "__main__":
    main()
