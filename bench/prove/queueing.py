"""Waiting times of queues whose answer is known, through the production's own path on a simulated clock.

Poisson arrivals at one server are M/M/1 where its service times are exponential, M/D/1 where they are fixed. With λ
arrivals and μ services a second and ρ = λ/μ, the mean wait before service is ρ / (μ − λ) in M/M/1 and half of that in
M/D/1; the sojourn is the wait and the service, 1/μ; and the sojourn in M/M/1 is exponential with rate μ − λ
(L. Kleinrock, "Queueing Systems", volume 1, 1975).

The queue in memory is that server (`memory_behaviour.Service`): it confirms a message when it begins to work on it and
delivers it when it has done so. The response time of the confirmation (`ack`) is the wait, that of the receipt (`e2e`)
the sojourn, as pacer, agents and recorder make them (`simulation`). The recorder's seconds are the batches of the
batch-means interval (`loadgen.stats.queueing.batch_means`).

All intervals hold together at 99 % (Bonferroni): of k of them, each is at 1 − 0.01/k. Beside that, intervals of 99 %
each are counted, one of each point, since points are independent and what is measured of one point is not: as many may
miss the true value as chance explains but once in a hundred (exact binomial). The seeds are the points' own numbers, 1,
2, 3, …, and were not chosen by their results: with other seeds the proof fails once or twice in a hundred.
"""

from __future__ import annotations

import math
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from loadgen.scenario import Rate
from loadgen.stats.queueing import (
    batch_means,
    md1_sojourn_s,
    md1_wait_s,
    mm1_sojourn_s,
    mm1_wait_s,
)
from prove.charts import KNOWN_COLOUR, SEEN_COLOUR, draw
from prove.histograms import share_over
from prove.proof import Chart, Proof, Row, Scale, at_least, at_most, near, same
from prove.simulation import simulate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIDENCE = 0.99
WARMUP_S = 2.0
"""Before the window, as a queue that begins empty is too short: 16 times what the slowest takes to forget that."""
BATCHES = 20
TAIL = 0.1  # the share of M/M/1 sojourns beyond their own p90
ARRIVALS_LEAST = {Scale.FULL: 1_000_000, Scale.SMALL: 15_000}  # of each queue, inside its windows
Queue = Literal["M/M/1", "M/D/1"]


@dataclass(frozen=True, slots=True)
class Point:
    """One queue at one load; its seconds are the recorder's intervals."""

    queue: Queue
    load: float
    arrivals_per_s: int
    duration_s: int
    seed: int

    @property
    def services_per_s(self) -> float:
        """How many messages a busy server does in a second."""
        return self.arrivals_per_s / self.load

    @property
    def tail_s(self) -> float:
        """The sojourn in M/M/1 that a share `TAIL` of messages exceeds."""
        return -math.log(TAIL) / (self.services_per_s - self.arrivals_per_s)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the recorder had of one point: a mean for each second in ns, and the share of sojourns over the p90."""

    arrivals: int
    is_accounted: bool
    waits_ns: tuple[float, ...]
    sojourns_ns: tuple[float, ...]
    tails: tuple[float, ...]


def points(scale: Scale) -> list[Point]:
    """Every point: at full scale over a million arrivals of each queue, most of them where they are needed.

    A batch must be long against 1 / (1 − √ρ)² service times, in which the queue forgets what it was (Kleinrock): that
    is 12 of them at ρ = 0.5, 90 at 0.8 and 1,560 at 0.95. The batches here are 20 times as long or more.
    """
    full = {0.5: (5_000, 40), 0.8: (5_000, 40), 0.95: (12_500, 52)}
    sizes = full if scale is Scale.FULL else {0.5: (500, 40)}
    queues: tuple[Queue, ...] = ("M/M/1", "M/D/1")
    made = [(queue, load, *size) for queue in queues for load, size in sizes.items()]
    return [Point(*each, seed=number) for number, each in enumerate(made, 1)]


def measure(point: Point) -> Seen:
    """Simulate one point."""
    distribution = "exponential" if point.queue == "M/M/1" else "fixed"
    seen = simulate(
        Rate.poisson(point.arrivals_per_s),
        {"service_ms": 1e3 / point.services_per_s, "service_distribution": distribution, "seed": point.seed},
        seed=point.seed,
        warmup_s=WARMUP_S,
        duration_s=point.duration_s,
    )
    waits, sojourns = seen.window("ack"), seen.window("e2e")
    account = seen.account()
    return Seen(
        arrivals=sum(each.count for each in sojourns),
        is_accounted=account.sent == account.acked == account.received and account.lost + account.duplicated == 0,
        waits_ns=tuple(each.mean for each in waits),
        sojourns_ns=tuple(each.mean for each in sojourns),
        tails=tuple(share_over(each, point.tail_s * 1e9) for each in sojourns),
    )


def prove(scale: Scale) -> Proof:
    """Measure every point, on all CPUs at once where there is much to do, and compare."""
    chosen = points(scale)
    if scale is Scale.FULL:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(mp_context=context) as pool:
            # The longest first, so that no CPU is left with one at the end.
            by_length = sorted(chosen, key=lambda point: -point.duration_s)
            found = dict(zip(by_length, pool.map(measure, by_length), strict=True))
    else:
        found = {point: measure(point) for point in chosen}
    return compare({point: found[point] for point in chosen}, ARRIVALS_LEAST[scale])


def compare(found: dict[Point, Seen], arrivals_least: int = ARRIVALS_LEAST[Scale.SMALL]) -> Proof:
    """The proof of what was seen."""
    intervals = sum(3 if point.queue == "M/M/1" else 2 for point in found)
    confidence = 1 - (1 - CONFIDENCE) / intervals
    rows = [row for point, seen in found.items() for row in _rows(point, seen, confidence)]
    rows += _single_rows(found)
    arrivals: Counter[str] = Counter()
    for point, seen in found.items():
        arrivals[point.queue] += seen.arrivals
    rows.append(at_least("arrivals of the queue that had fewer", arrivals_least, min(arrivals.values())))
    accounted = sum(seen.is_accounted for seen in found.values())
    rows.append(same("points of which every message was confirmed and received once", len(found), accounted))
    size = (
        f"{sum(seen.arrivals for seen in found.values()):,} arrivals inside the windows; times are in mean service "
        "times, so that every system has the same scale."
    )
    sure = (
        f"The {intervals} intervals hold together at {CONFIDENCE:.0%} (Bonferroni: each at {confidence:.2%}), from "
        f"{BATCHES} batches. Of intervals that are at {CONFIDENCE:.0%} each, one a point, so many may miss as chance "
        f"explains but in {1 - CONFIDENCE:.0%} of all cases (exact binomial; points are independent, what is measured "
        "of one is not). Seeds are fixed and were not chosen by their results."
    )
    scope = (
        "What it shows: arrivals are Poisson and each message is timed from the moment when it was due; no time is "
        "lost or added between pacer, agents and recorder. What it cannot show: how exactly a real clock is read, "
        "which is what the proofs on real brokers are for."
    )
    return Proof(
        name="queueing",
        claim="Waiting and sojourn times of simulated M/M/1 and M/D/1 queues, recorded by our own pacer, agents and "
        "histograms, are those of queueing theory.",
        rows=tuple(rows),
        notes=(size, sure, scope),
        charts=(_chart(found, confidence),),
    )


def _single_rows(found: dict[Point, Seen]) -> list[Row]:
    """Of each quantity: how many points' own interval misses the true value, and how many may by chance."""
    missed: dict[str, list[bool]] = {}
    for point, seen in found.items():
        for row in _rows(point, seen, CONFIDENCE):
            missed.setdefault(row.name.partition(": ")[2], []).append(not row.ok)
    return [
        at_most(
            f"{what}: points of {len(each)} that miss their own {CONFIDENCE:.0%}",
            missed_by_chance(len(each)),
            sum(each),
        )
        for what, each in missed.items()
    ]


def missed_by_chance(intervals: int) -> int:
    """How many of so many independent intervals may miss, so that chance exceeds it no more often than one misses."""
    share = 1 - CONFIDENCE
    at_most_so_many, misses = CONFIDENCE**intervals, 0
    while at_most_so_many < CONFIDENCE:
        misses += 1
        at_most_so_many += math.comb(intervals, misses) * share**misses * CONFIDENCE ** (intervals - misses)
    return misses


def _rows(point: Point, seen: Seen, confidence: float) -> list[Row]:
    wait_s, sojourn_s = _theory(point.queue, point.arrivals_per_s, point.services_per_s)
    name, unit_ns = f"{point.queue}, ρ = {point.load:g}", 1e9 / point.services_per_s
    rows = []
    for what, expected_s, values in (("wait", wait_s, seen.waits_ns), ("sojourn", sojourn_s, seen.sojourns_ns)):
        mean, reach = _interval(values, confidence)
        rows.append(near(f"{name}: mean {what}", expected_s * 1e9 / unit_ns, mean / unit_ns, reach / unit_ns))
    if point.queue == "M/M/1":
        mean, reach = _interval(seen.tails, confidence)
        rows.append(near(f"{name}: sojourns beyond theory's p90", TAIL * 100, mean * 100, reach * 100, "%"))
    return rows


def _interval(values: tuple[float, ...], confidence: float) -> tuple[float, float]:
    """The mean and how far its interval reaches on either side."""
    interval = batch_means(values, BATCHES, confidence)
    return interval.mean, interval.high - interval.mean


def _theory(queue: Queue, arrivals_per_s: float, services_per_s: float) -> tuple[float, float]:
    """Mean wait and mean sojourn in s."""
    wait, sojourn = (mm1_wait_s, mm1_sojourn_s) if queue == "M/M/1" else (md1_wait_s, md1_sojourn_s)
    return wait(arrivals_per_s, services_per_s), sojourn(arrivals_per_s, services_per_s)


def _chart(found: dict[Point, Seen], confidence: float) -> Chart:
    title = "Mean wait before service against load: theory's curve, and what was recorded with its interval"
    queues = dict.fromkeys(point.queue for point in found)
    return draw("queueing", title, [partial(_panel, found=found, queue=each, confidence=confidence) for each in queues])


def _panel(axes: Axes, *, found: dict[Point, Seen], queue: Queue, confidence: float) -> None:
    loads = np.linspace(0.05, 0.965, 100)
    axes.plot(loads, [_theory(queue, load, 1.0)[0] for load in loads], color=KNOWN_COLOUR, label="theory")
    shown = [(point, seen) for point, seen in found.items() if point.queue == queue]
    means, reaches = zip(*(_interval(seen.waits_ns, confidence) for _, seen in shown), strict=True)
    units = np.array([1e9 / point.services_per_s for point, _ in shown])
    axes.errorbar(
        [point.load for point, _ in shown], np.array(means) / units, np.array(reaches) / units,
        color=SEEN_COLOUR, fmt="o", markersize=4, capsize=3, linestyle="none", label="recorded",
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_title(queue)
    axes.set_xlabel("load ρ")
    axes.set_ylabel("mean wait, in service times")
    axes.legend(frameon=False, loc="upper left")
