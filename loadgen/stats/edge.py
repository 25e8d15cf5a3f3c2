"""Where a noisy yes turns into a no: bisection that believes no single answer.

A rate is carried or it is not, and near the edge chance decides: the same rate passes once and fails once. Plain
bisection never looks back, so that one wrong answer costs as much as was halved by it. Probabilistic bisection keeps a
belief about where the edge is, asks at its median, and moves the belief by what an answer is worth (M. Horstein,
"Sequential transmission using noiseless feedback", IEEE Transactions on Information Theory 9, 1963; R. Waeber, P.
Frazier and S. Henderson, "Bisection search with noisy responses", SIAM Journal on Control and Optimization 51, 2013).
An answer that does not fit the others is asked again by itself, since the median comes back to it.

The model: each trial has an edge of its own, log-normal about the true one, and now and then an answer has nothing to
do with the rate. Chance is not even-handed there: a stall, a neighbour or a collection of garbage fails a rate that is
carried otherwise, while hardly anything carries a rate that is too much. So a pass says more than a failure, and a
failure below rates that passed is asked again before it is believed.
"""

from __future__ import annotations

import math

import numpy as np

TRIALS_VARY_LOG = 0.05
"""How much trials of a few seconds vary from one to the next on an idle machine: by 5 % (measured: 5 to 13 %)."""
FAILS_BY_CHANCE = 0.1
"""How many trials of a rate that is carried fail for another reason."""
PASSES_BY_CHANCE = 0.02
"""How many of a rate that is too much pass: the window is short, and buffers hold a little."""
GUESS_LOG = 0.25
"""The first guess's scale: in half of all cases it is off by less than a quarter; tails are heavy (Cauchy)."""
REACH_LOG, STEP_LOG = 5.0, 0.005


class Edge:
    """A belief about the largest rate that passes, begun at a guess (above 0); rates have any one unit."""

    def __init__(self, guess: float) -> None:
        if not (math.isfinite(guess) and guess > 0):
            raise ValueError(f"guess {guess}: expected a number above 0")
        self._guess = guess
        self._logs = np.arange(-REACH_LOG, REACH_LOG + STEP_LOG / 2, STEP_LOG)
        self._belief = -np.log1p((self._logs / GUESS_LOG) ** 2)

    def saw(self, rate: float, *, passed: bool) -> None:
        """Take an answer into account."""
        from scipy.special import ndtr  # noqa: PLC0415 - half a second of import that `loadgen --help` must not pay

        above = ndtr((self._logs - math.log(rate / self._guess)) / TRIALS_VARY_LOG)
        passes = PASSES_BY_CHANCE + (1 - FAILS_BY_CHANCE - PASSES_BY_CHANCE) * above
        self._belief += np.log(passes if passed else 1 - passes)

    def at(self, share: float) -> float:
        """The rate below which the edge lies with this probability (0 … 1)."""
        return self._at([share])[0]

    @property
    def spread(self) -> float:
        """The 90 % point of the belief over its 10 % point, 1 or more: how much is still open."""
        low, high = self._at([0.1, 0.9])
        return high / low

    def _at(self, shares: list[float]) -> list[float]:
        weights = np.exp(self._belief - self._belief.max())
        upto = np.cumsum(weights) - weights / 2
        logs = np.interp(shares, upto / weights.sum(), self._logs)
        return [self._guess * math.exp(each) for each in logs.tolist()]
