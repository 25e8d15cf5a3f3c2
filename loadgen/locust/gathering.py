"""A trial whose clients come and go while it runs: what workers report, merged until the window is known.

Agents count seconds from the trial's origin. The measured window begins when everybody is there and warmed up, and
ends when the test is stopped; both are known late, so the last seconds' histograms are kept apart until then. At the
end everything is told from the window's first second on, as agents of the command line's fleet do from the beginning.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.agent import SECOND_NS
from loadgen.histogram import Histogram
from loadgen.judging import CUT_MOST_S
from loadgen.observer import OWN_GROUP
from loadgen.trial import Live, counted

if TYPE_CHECKING:
    from loadgen.agent import Result
    from loadgen.driver import Int64
    from loadgen.fleet import Outcome
    from loadgen.plan import Trial
    from loadgen.recorder import IntervalDelta
    from loadgen.runs import RunWriter

HELD_S = 10  # so long an interval's histograms are kept apart: the test may be stopped in any of these seconds
SHOWN_KINDS = {"producer": ("ack", "ack_service", "schedule_lag"), "consumer": ("e2e", "e2e_service")}


@dataclass
class Gathering(Live):
    """What the workers of a trial reported; times in whole seconds since the origin."""

    window_from_s: int = 0
    hlog_origin_s: float = 0.0
    seconds: dict[int, list[IntervalDelta]] = field(default_factory=dict)
    flows: dict[str, list[Int64]] = field(default_factory=dict)
    newest: dict[str, Histogram] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)

    @property
    def interval_s(self) -> int:
        """A second: nobody knows how long a test of Locust's lasts, nor where its window will begin."""
        return 1

    def begin(self, origin_ns: int) -> None:
        """The load begins at `origin_ns`; no window is known yet."""
        self.started(origin_ns, {"producers": (), "consumers": (), OWN_GROUP: (os.getpid(),)})
        self.hlog_origin_s = self.hlog_start_s or 0.0

    def counts(self) -> dict[str, int]:
        """What all agents have told so far, each once a second."""
        return {name: self.totals.get(name, 0) for name in counted(self.trial)}

    def take(self, worker: str, told: dict[str, Any]) -> None:
        """Keep a worker's report of a second: in memory, and on disk at once."""
        self.newest = {}
        for role, delta in told["deltas"]:
            self.seconds.setdefault(delta.interval, []).append(delta)
            if delta.kind in SHOWN_KINDS.get(role, ()):
                delta.add_to(self.newest.setdefault(delta.kind, Histogram()))
        for series in told["series"].values():
            for name, value in series.items():
                if name != "elapsed_s":
                    self.totals[name] = self.totals.get(name, 0) + value
        self.received = self.totals.get("received", 0)
        if len(told["flow"]):
            self.flows.setdefault(worker, []).append(told["flow"])
        for event in told["events"]:
            if self.observer is not None:
                self.observer.note(*event)
        if self.writer is not None:
            self._write(self.writer, worker, told)
        self._merge_old()

    def _write(self, writer: RunWriter, worker: str, told: dict[str, Any]) -> None:
        for role in dict.fromkeys(role for role, _ in told["deltas"]):
            deltas = [delta for of, delta in told["deltas"] if of == role]
            writer.add_intervals(self.trial.id, deltas, agent=f"{role}s.{worker}")
        writer.add_series(
            {"trial": self.trial.id, "agent": f"{role}s.{worker}", **series} for role, series in told["series"].items()
        )

    def open_window(self, from_s: int) -> None:
        """The measured window begins here; a later call moves it, when the number of clients has changed."""
        if from_s > self.window_from_s:
            self.histograms.clear()
            self.early.clear()
            self.window_from_s = from_s
            self.seconds = {second: deltas for second, deltas in self.seconds.items() if second >= from_s}

    def _merge_old(self) -> None:
        """Add to the window's histograms what no late end of the window can take out of it any more."""
        newest = max(self.seconds, default=0)
        for second in [each for each in self.seconds if each < newest - HELD_S]:
            self._enter(second, self.seconds.pop(second))

    def _enter(self, second: int, deltas: list[IntervalDelta]) -> None:
        within = second - self.window_from_s
        if within < 0:
            return
        for delta in deltas:
            if within < CUT_MOST_S:  # may turn out to be warm-up
                self.early.append(replace(delta, interval=within))
            else:
                delta.add_to(self.histograms.setdefault(delta.kind, Histogram()))

    def close(self, outcome: Outcome, warmup_s: float, stopped_ns: int) -> Trial:
        """Lay the window down in whole seconds, tell everything from there on, and return the trial that it was."""
        if not self.start_ns:
            return self.trial
        ended_s = max(0, (stopped_ns - self.start_ns) // SECOND_NS)
        begin_s = min(self.window_from_s + math.ceil(warmup_s), ended_s)
        length_s = ended_s - begin_s
        self.early = [
            replace(delta, interval=delta.interval + self.window_from_s - begin_s)
            for delta in self.early
            if delta.interval + self.window_from_s >= begin_s
        ]
        self.window_from_s = begin_s
        for second in sorted(self.seconds):
            if second < ended_s:
                self._enter(second, self.seconds[second])
        self.seconds.clear()
        for result in outcome.results:
            _shift(result, begin_s, length_s)
        self.hlog_start_s = self.hlog_origin_s + begin_s
        self.flow.overlay({name: np.concatenate(each) for name, each in self.flows.items() if each})
        self.trial = replace(self.trial, warmup_s=float(begin_s), duration_s=float(length_s))
        return self.trial

    def shown_now(self) -> dict[str, Any]:
        """The last second, for people: percentiles in ms by kind."""
        return {
            kind: dict(zip(("p50", "p99", "p99_9"), (v / 1e6 for v in each.percentiles([50, 99, 99.9])), strict=True))
            for kind, each in self.newest.items()
            if each.count
        }


def _shift(result: Result, begin_s: int, length_s: int) -> None:
    """Let an agent's seconds begin with the window."""
    result.per_second = {what: counts[begin_s : begin_s + length_s] for what, counts in result.per_second.items()}
    result.cpu_at = [(at_s - begin_s, used_s) for at_s, used_s in result.cpu_at]
    result.window_s = float(length_s)
