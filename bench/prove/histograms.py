"""What proofs ask of a histogram beside its percentiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadgen.histogram import LOWEST_OF_BUCKET_NS

if TYPE_CHECKING:
    from loadgen.histogram import Histogram


def share_over(histogram: Histogram, limit_ns: float) -> float:
    """The share of a histogram's values in the buckets over a limit; of the bucket that it cuts, as much as it cuts."""
    lows, highs = LOWEST_OF_BUCKET_NS[:-1], LOWEST_OF_BUCKET_NS[1:]
    shares = np.clip((highs - limit_ns) / (highs - lows), 0.0, 1.0)
    return float((histogram.counts * shares).sum() / histogram.count)
