"""Does a series grow? Its slope, with an interval that does not take slow noise for growth.

The backlog of a stationary queue at high load wanders for a long time to one side: neighbouring samples are nearly
the same one. A textbook test of its slope then finds growth in most runs. This one is tested on such series, and
`autocorrelation` tells how it was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadgen.stats.autocorrelation import SAMPLES_MIN, as_series, as_times, batched, coefficient

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth per second and its interval, from n samples.

    `low` and `high` are None with fewer than 20 samples, `per_s` with fewer than two.
    """

    per_s: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def grows(self) -> bool | None:
        """Whether growth is shown: the whole interval lies above 0. None without an interval.

        A series that does not grow is said to in at most (1 - confidence)/2 of all cases.
        """
        return None if self.low is None else self.low > 0


def slope(times_s: ArrayLike, values: ArrayLike, confidence: float = 0.95) -> Slope:
    """The least-squares slope of values (float[n]) over times_s (float[n], growing, about evenly spaced), per second.

    The interval allows for autocorrelation (see `loadgen.stats.autocorrelation`). Of 60 samples and more it is the
    slope of 30 to 59 batch means.

    Raises:
        ValueError: lengths differ, a number is not finite, times do not grow, or confidence is outside (0, 1).
    """
    series = as_series(values, "slope")
    times = as_times(times_s, series, "slope")
    count = len(series)
    if count < 2:
        return Slope(None, None, None, count)
    when, means = batched(times), batched(series)
    spread = float(when.std())
    design = np.column_stack([np.ones(len(when)), (when - when.mean()) / spread])
    if count < SAMPLES_MIN:
        return Slope(float(np.linalg.lstsq(design, means)[0][1]) / spread, None, None, count)
    found = coefficient(design, means, 1, confidence)
    return Slope(found.value / spread, found.low / spread, found.high / spread, count)
