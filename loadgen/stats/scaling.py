"""How throughput grows with the number of places that share the work: the universal scalability law, and its residuals.

    X(N) = λ N / (1 + σ (N − 1) + κ N (N − 1))

λ is the rate of one place, σ the share of the work that all have to do one after another (contention), κ what each pair
of them costs in keeping in step (crosstalk): with σ = κ = 0 the rate is proportional to N, with κ > 0 it has a peak at
N = √((1 − σ)/κ) and falls beyond it. (N. J. Gunther, "Guerrilla Capacity Planning", Springer 2007, chapters 4 to 6.)

Divided by X the law is linear in 1/λ, σ/λ and κ/λ, which are not negative; they are fitted by least squares of the
relative errors, so that a slow point counts as much as a fast one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

POINTS_MIN = 4
"""Three parameters, and one point more that they have to explain."""
LEAST_OF_ONE = 1e-3
"""What one place takes for a message, in units of what the fastest point takes: rates that only fall would have 0."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """The fitted law. `residuals` are (measured − fitted) / fitted of each point, in the order given."""

    rate_of_one: float
    contention: float
    crosstalk: float
    residuals: tuple[float, ...]

    def rate(self, places: float) -> float:
        """The law's rate for so many places."""
        loss = 1 + self.contention * (places - 1) + self.crosstalk * places * (places - 1)
        return self.rate_of_one * places / loss

    @property
    def peak(self) -> float | None:
        """Beyond how many places more of them carry less; None where the law has no such point."""
        if self.crosstalk <= 0 or self.contention >= 1:
            return None
        return math.sqrt((1 - self.contention) / self.crosstalk)


def fit(places: ArrayLike, rates: ArrayLike) -> Scaling:
    """The law through the median rates of n numbers of places (float[n] each, in any order).

    Raises:
        ValueError: fewer than four points, lengths that differ, or a value that is not finite and above 0.
    """
    from scipy.optimize import nnls  # noqa: PLC0415 - half a second that only a fit pays

    number, rate = np.asarray(places, np.float64), np.asarray(rates, np.float64)
    if number.ndim != 1 or number.shape != rate.shape or len(np.unique(number)) < POINTS_MIN:
        raise ValueError(f"scaling: expected a rate for each of at least {POINTS_MIN} numbers of places")
    if not bool(np.all(np.isfinite(rate) & (rate > 0) & np.isfinite(number) & (number > 0))):
        raise ValueError("scaling: expected every number and rate to be finite and above 0")
    # Rows times X/N: the error of each row is then (measured − fitted) / fitted, to first order. Rates are taken in
    # units of their largest, since the solver's tolerance is absolute.
    scale = float(rate.max())
    terms = (
        np.column_stack([np.ones_like(number), number - 1, number * (number - 1)]) * (rate / scale / number)[:, None]
    )
    one, contention, crosstalk = nnls(terms, np.ones_like(number))[0].tolist()
    one = max(one, LEAST_OF_ONE)
    law = Scaling(scale / one, contention / one, crosstalk / one, ())
    residuals = tuple((x - law.rate(n)) / law.rate(n) for n, x in zip(number.tolist(), rate.tolist(), strict=True))
    return Scaling(law.rate_of_one, law.contention, law.crosstalk, residuals)
