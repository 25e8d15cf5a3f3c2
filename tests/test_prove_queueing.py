"""Queues whose waiting times are known: the production's agents on a simulated clock measure them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prove import queueing
from prove.histograms import share_over
from prove.proof import Scale
from prove.simulation import simulate
from scipy.stats import binom

from loadgen.histogram import Histogram
from loadgen.pacer import GROUP_NS
from loadgen.scenario import Rate
from loadgen.stats.queueing import batch_means, md1_sojourn_s, mm1_sojourn_s


@pytest.fixture(scope="module")
def found() -> dict[queueing.Point, queueing.Seen]:
    """Every small point, simulated."""
    return {point: queueing.measure(point) for point in queueing.points(Scale.SMALL)}


def test_recorded_waits_are_those_of_theory(found: dict[queueing.Point, queueing.Seen]) -> None:
    """The small proof passes: every interval holds the true value, every message is accounted for."""
    proof = queueing.compare(found)
    assert proof.passed, [row for row in proof.rows if not row.ok]
    assert len(proof.rows) == 10
    assert "</svg>" in proof.charts[0].svg


def test_too_few_arrivals_fail(found: dict[queueing.Point, queueing.Seen]) -> None:
    """A million is what the full proof promises of each queue; its points have so many at their unluckiest."""
    rows = queueing.compare(found, queueing.ARRIVALS_LEAST[Scale.FULL]).rows
    assert [row.name for row in rows if not row.ok] == ["arrivals of the queue that had fewer"]
    for queue in ("M/M/1", "M/D/1"):
        points = [point for point in queueing.points(Scale.FULL) if point.queue == queue]
        expected = sum(point.arrivals_per_s * point.duration_s for point in points)
        assert len(points) == 3
        assert expected - 6 * expected**0.5 > queueing.ARRIVALS_LEAST[Scale.FULL]


@pytest.mark.parametrize("points", [1, 3, 6, 15, 40])
def test_as_many_may_miss_as_chance_explains(points: int) -> None:
    """The exact binomial, by another's hand: chance exceeds the limit in 1 % of all cases, and one less in more."""
    limit = queueing.missed_by_chance(points)
    assert binom.sf(limit, points, 0.01) <= 0.01 + 1e-12
    assert limit == 0 or binom.sf(limit - 1, points, 0.01) > 0.01


def test_more_misses_than_chance_explains_fail(found: dict[queueing.Point, queueing.Seen]) -> None:
    """Two of two points just outside their own interval, and still inside the wider one: only the count fails."""
    off = {}
    for point, seen in found.items():
        theory = mm1_sojourn_s if point.queue == "M/M/1" else md1_sojourn_s
        alone = batch_means(seen.sojourns_ns, queueing.BATCHES, 0.99)
        shift_ns = theory(point.arrivals_per_s, point.services_per_s) * 1e9 - alone.mean
        shift_ns += 1.05 * (alone.high - alone.mean)
        off[point] = replace(seen, sojourns_ns=tuple(each + shift_ns for each in seen.sojourns_ns))
    failing = [row.name for row in queueing.compare(off).rows if not row.ok]
    assert failing == ["mean sojourn: points of 2 that miss their own 99%"]


@pytest.mark.parametrize("slower", [0.9, 1.1])
def test_another_server_than_the_real_one_is_noticed(found: dict[queueing.Point, queueing.Seen], slower: float) -> None:
    """Held against the theory of a server a tenth slower or faster, the same figures fail."""
    others = {replace(point, load=point.load * slower): seen for point, seen in found.items()}
    assert not queueing.compare(others).passed


def test_a_lost_message_fails_the_proof(found: dict[queueing.Point, queueing.Seen]) -> None:
    """Times that are right of messages that are not all there prove nothing."""
    others = {point: replace(seen, is_accounted=False) for point, seen in found.items()}
    assert not queueing.compare(others).passed


def test_every_interval_is_wider_the_more_there_are(found: dict[queueing.Point, queueing.Seen]) -> None:
    """Bonferroni: one point alone is held to a narrower interval than the same point among others."""
    ((point, seen), *_) = found.items()
    alone, among = queueing.compare({point: seen}), queueing.compare(found)
    reach = [float(proof.rows[0].tolerance.removeprefix("± ")) for proof in (alone, among)]
    assert 0 < reach[0] < reach[1]


def test_times_in_a_simulation_are_exact() -> None:
    """Two messages a second at a server that needs 0.8 s of each: no wait, ever, and 0.8 s from due to received."""
    seen = simulate(Rate.fixed(1), {"service_ms": 800}, seed=1, warmup_s=1, duration_s=5)
    assert [each.count for each in seen.window("e2e")] == [1] * 5
    for kind, expected_ns in (("ack", 0), ("e2e", 800_000_000), ("schedule_lag", 0)):
        assert {each.max for each in seen.window(kind)} == {each.min for each in seen.window(kind)} == {expected_ns}
    assert seen.account().distinct == 6


@pytest.mark.parametrize("rate", [Rate.fixed(50_000), Rate.poisson(50_000)], ids=["fixed", "poisson"])
def test_a_rush_leaves_in_groups_and_its_lag_is_told(rate: Rate) -> None:
    """Messages wait for an edge, half a group's time on average and never longer; none is lost, each time has it."""
    seen = simulate(rate, {"service_ms": 0}, seed=1, warmup_s=1, duration_s=1, groups=True)
    ((lags,), (times,)) = (seen.window(kind) for kind in ("schedule_lag", "e2e"))
    assert GROUP_NS * 0.95 <= lags.max <= GROUP_NS
    assert lags.mean == pytest.approx(GROUP_NS / 2, rel=0.05)
    assert times.mean == pytest.approx(lags.mean, rel=0.001)
    account = seen.account()
    assert account.distinct == account.sent == pytest.approx(100_000, rel=0.02)
    assert times.count == lags.count == account.due == pytest.approx(50_000, rel=0.02)


def test_below_a_rush_each_message_leaves_when_it_is_due() -> None:
    """At 7,800 messages a second none is late by a nanosecond."""
    seen = simulate(Rate.fixed(7_800), {"service_ms": 0}, seed=1, warmup_s=0, duration_s=1, groups=True)
    (lags,) = seen.window("schedule_lag")
    assert (lags.count, lags.max) == (7_800, 0)


def test_a_queue_that_grows_is_seen_to_grow() -> None:
    """A server that needs 1.5 s of a message each second is later by half a second with each."""
    seen = simulate(Rate.fixed(1), {"service_ms": 1_500}, seed=1, warmup_s=0, duration_s=4)
    assert [each.max for each in seen.window("ack")] == [0, 500_000_000, 1_000_000_000, 1_500_000_000]


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50), st.integers(1, 10**9))
def test_the_share_over_a_limit_is_right_to_a_bucket(values: list[int], limit: int) -> None:
    """All that is over the limit by more than a bucket counts, nothing that is below it by more than one."""
    histogram = Histogram()
    histogram.add(np.array(values))
    share = share_over(histogram, limit) * len(values)
    assert sum(value > limit * 1.001 + 1 for value in values) <= share + 1e-9
    assert share <= sum(value >= limit * 0.999 - 1 for value in values) + 1e-9
