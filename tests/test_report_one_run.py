"""What the report says of a single run's tail, held against binomial probabilities reckoned in whole numbers."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
import pytest

from loadgen.histogram import Histogram
from loadgen.report.detail import ONE_RUN, TAILS, one_run

DOUBT = Fraction(25, 1000)
"""On either side: 95 % lie between the bounds."""
MS = 1_000_000
BUCKET_MS = 0.3
"""No bucket below half a second is wider."""


class Told:
    """A run that has one histogram."""

    def __init__(self, *values_ms: int) -> None:
        self.has = Histogram()
        self.has.add(np.array(values_ms, np.int64) * MS)

    def histogram(self, kind: str, *, trial: str) -> Histogram:
        """Of the trial's end-to-end latency."""
        assert (kind, trial) == ("e2e", "t")
        return self.has


def said(run: Told, percentile: str, repeats: int = 1) -> str:
    """What stands below the percentile of so many repeats."""
    records: list[dict[str, Any]] = [{"id": "t", "pattern": "one_way"}] * repeats
    return one_run(run, records, "e2e", percentile)  # type: ignore[arg-type]


def below(count: int, share: Fraction) -> list[Fraction]:
    """How likely fewer than 0, 1, … of so many values are at or below the percentile."""
    hit, whole = share.as_integer_ratio()
    ways = [math.comb(count, each) * hit**each * (whole - hit) ** (count - each) for each in range(count + 1)]
    return [Fraction(each, whole**count) for each in accumulate(ways, initial=0)]


@pytest.mark.parametrize("count", [3, 20, 100, 300, 370, 500])
@pytest.mark.parametrize("percentile", sorted(TAILS))
def test_a_single_runs_tail_lies_between_its_exact_order_statistics(count: int, percentile: str) -> None:
    """Of 1, 2, 3 … ms the bounds are ranks: the tightest that leave 2.5 % outside on either side, or none."""
    share = Fraction(str(TAILS[percentile])) / 100
    ranks = range(1, count + 1)
    fewer = below(count, share)
    low = max((rank for rank in ranks if fewer[rank] <= DOUBT), default=None)
    high = min((rank for rank in ranks if 1 - fewer[rank] <= DOUBT), default=None)
    text = said(Told(*ranks), percentile)
    assert text.startswith(f"{ONE_RUN}: ")
    shown = [float(each) for each in re.findall(r"[\d.]+", text)]
    assert shown == [pytest.approx(each, abs=BUCKET_MS) for each in (low, high) if each is not None]
    assert text.startswith(f"{ONE_RUN}: from ") is (high is None and low is not None)


def test_the_bounds_of_a_p99_are_those_of_the_tables() -> None:
    """Of 500 messages: the 490th and the largest; a p99.9 has no upper bound among them, and a p50 is no tail."""
    run = Told(*range(1, 501))
    assert said(run, "p99") == f"{ONE_RUN}: 490–500"
    assert said(run, "p99_9") == f"{ONE_RUN}: from 498"
    assert said(run, "p50") == ""


def test_only_a_single_run_with_messages_has_such_bounds() -> None:
    """Repeats have an interval of their own, and nothing has none."""
    assert said(Told(*range(1, 501)), "p99", repeats=2) == ""
    assert said(Told(), "p99") == ""
