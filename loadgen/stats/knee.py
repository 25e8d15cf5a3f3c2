"""The knee of a latency-rate curve: where more load begins to cost more in latency than it brings in rate.

Kleinrock's power, rate / latency, is largest there: one per cent more rate then costs one per cent more latency
(L. Kleinrock, "Power and deterministic rules of thumb for probabilistic problems in computer communications",
ICC 1979). For M/M/1 the knee is at half of the capacity, for M/D/1 at 2 - √2 = 59 % of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

POINTS_MIN = 4
"""Two points beside the knee, and one more to see that the curve bends at all."""


@dataclass(frozen=True, slots=True)
class Knee:
    """The measured point at the knee, in msg/s and ns; None where the measured range does not enclose it.

    `reason` says in words where it is, or what is missing.
    """

    rate_msgs_per_s: float | None
    latency_ns: float | None
    reason: str


def knee(offered_msgs_per_s: ArrayLike, latency_ns: ArrayLike) -> Knee:
    """The point of largest rate / latency among n measured ones (float[n] each, in any order).

    It is one of the points measured, so no sharper than their distance, which the reason states. Rates are those at
    which a point was measured; points above capacity do no harm, their latency is large. A maximum at an end of
    the range is no knee: beyond that end the power may grow further.

    Raises:
        ValueError: lengths differ, or a rate or latency is not finite and above 0, or a rate occurs twice.
    """
    rates, latencies = np.asarray(offered_msgs_per_s, np.float64), np.asarray(latency_ns, np.float64)
    if rates.ndim != 1 or rates.shape != latencies.shape:
        raise ValueError(f"knee: {rates.shape} rates and {latencies.shape} latencies: expected one of each a point")
    for name, values in (("rate", rates), ("latency", latencies)):
        if not bool(np.all(np.isfinite(values) & (values > 0))):
            raise ValueError(f"knee: expected every {name} to be finite and above 0")
    order = np.argsort(rates)
    rates, latencies = rates[order], latencies[order]
    if bool(np.any(np.diff(rates) == 0)):
        raise ValueError("knee: expected each rate once; give the median over its repeats")
    if len(rates) < POINTS_MIN:
        return Knee(None, None, f"{len(rates)} points: a knee needs at least {POINTS_MIN}")
    at = int(np.argmax(rates / latencies))
    if at == 0:
        return Knee(None, None, f"at or below the lowest rate measured, {rates[0]:,.6g} msg/s")
    if at == len(rates) - 1:
        return Knee(None, None, f"at or above the highest rate measured, {rates[-1]:,.6g} msg/s")
    text = f"rate / latency is largest here, of points at {rates[at - 1]:,.6g} and {rates[at + 1]:,.6g} msg/s beside it"
    return Knee(float(rates[at]), float(latencies[at]), text)
