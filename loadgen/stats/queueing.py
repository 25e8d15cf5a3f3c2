"""Queueing theory as a check of the measurement: Little's law, and the queues whose answer is known.

Little's law, L = λ·W, holds for any system in a steady state (J. Little, "A proof for the queuing formula
L = λW", Operations Research 9, 1961). Rate and mean time come from the stamps in the messages, the number in the
system from an independent gauge; where the two disagree, one of them is wrong. The single-server queues have
waiting times by formula (A. Khinchine 1932 and F. Pollaczek 1930; L. Kleinrock, "Queueing Systems", volume 1, 1975).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadgen.stats.confidence import t_quantile

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LITTLE_MIN = 20.0
"""Below 20 in the system, batches that come and go at once are as large as the number itself."""
SAMPLES_MIN = 50
"""Five samples in each of ten batches."""
LITTLE_BATCHES = 10
ERRORS_ALLOWED = 3.0
CHANCE = 0.0027
"""How often a normal value is further than three standard errors from its mean. Of an error that is itself estimated,
from ten batches, three are passed by chance in one trial of 67 (Student's t): only what is as rare as this is a
contradiction."""
EDGE_SHARE = 0.1
"""A message that enters near the end of the window is counted in W whole, by the gauge in part: the time in the
system may be a tenth of the window."""


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """The mean of autocorrelated values, its standard error and its interval, from so many batches."""

    mean: float
    low: float
    high: float
    standard_error: float
    batches: int


@dataclass(frozen=True, slots=True)
class Little:
    """The number in the system by L = λ·W and by the gauge (messages), and whether they agree.

    `agrees` is None where it cannot be told, and `reason` says why; the gauge's mean and its standard error are None
    where there were too few samples. `is_doubted` says that they differ by more than three standard errors, although it
    may be chance.
    """

    expected: float
    gauged: float | None
    standard_error: float | None
    agrees: bool | None
    reason: str
    is_doubted: bool = False


def batch_means(values: ArrayLike, batches: int = 20, confidence: float = 0.99) -> MeanInterval:
    """The mean of n values (float[n], in their order) with an interval that allows for their autocorrelation.

    Means of long batches are nearly independent, so Student's t holds for them; 10 to 30 batches are enough, and
    more make each too short (B. Schmeiser, "Batch size effects in the analysis of simulation output", Operations
    Research 30, 1982). The first n mod batches values are left out.

    Raises:
        ValueError: fewer than two batches, fewer values than batches, a value not finite, or confidence outside (0, 1).
    """
    series = np.asarray(values, np.float64)
    if batches < 2:
        raise ValueError(f"{batches} batches: expected at least 2")
    if series.ndim != 1 or len(series) < batches:
        raise ValueError(f"values of shape {series.shape}: expected one row of at least {batches}, one a batch")
    if not bool(np.isfinite(series).all()):
        raise ValueError("batch means: expected every value to be finite")
    means = series[len(series) % batches :].reshape(batches, -1).mean(axis=1)
    return _interval(means, confidence)


def _interval(means: NDArray[np.float64], confidence: float) -> MeanInterval:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: expected more than 0 and less than 1")
    mean, error = float(means.mean()), float(means.std(ddof=1)) / math.sqrt(len(means))
    reach = t_quantile((1 + confidence) / 2, len(means) - 1) * error
    return MeanInterval(mean, mean - reach, mean + reach, error, len(means))


def little(
    arrival_rate_per_s: float,
    mean_time_s: float,
    times_s: ArrayLike,
    in_system: ArrayLike,
    *,
    skew_s: float = 0.0,
) -> Little:
    """Whether L = λ·W holds against a gauge: n samples in_system (float[n]) at times_s (float[n], growing).

    The gauge's mean is over time (the trapezoid rule, as a busy sampler is late), its standard error that of ten
    batches of equal length. The law agrees where the two differ by at most three standard errors, and what the gauge
    itself cannot tell: one that reads `sent` and `received` `skew_s` apart is off by λ·skew_s. It is contradicted by
    a difference that Student's t makes as unlikely as three standard errors that are known.

    None between the two, below L = 20, with fewer than 50 samples, and in a window shorter than ten times the mean
    time.

    Raises:
        ValueError: lengths differ, times do not grow, a value is not finite, or rate, time or skew is negative.
    """
    for name, value in (("rate", arrival_rate_per_s), ("mean time", mean_time_s), ("skew", skew_s)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} {value}: expected 0 or more")
    times, numbers = np.asarray(times_s, np.float64), np.asarray(in_system, np.float64)
    if times.ndim != 1 or times.shape != numbers.shape:
        raise ValueError(f"gauge of {times.shape} times and {numbers.shape} values: expected one value a time")
    if not bool(np.isfinite(times).all() and np.isfinite(numbers).all() and (np.diff(times) > 0).all()):
        raise ValueError("gauge: expected finite values at growing times")
    expected = float(arrival_rate_per_s * mean_time_s)
    if len(times) < SAMPLES_MIN:
        text = f"{len(times)} samples of the gauge: at least {SAMPLES_MIN} are needed"
        return Little(expected, None, None, None, text)
    gauged = _interval(_means_over_time(times, numbers, LITTLE_BATCHES), confidence=0.95)
    return _compare(expected, gauged, arrival_rate_per_s * skew_s, mean_time_s / float(times[-1] - times[0]))


def _means_over_time(times: NDArray[np.float64], values: NDArray[np.float64], parts: int) -> NDArray[np.float64]:
    """The mean over time of each of so many equal parts: the integral grows along straight lines between samples."""
    pieces = (values[1:] + values[:-1]) / 2 * np.diff(times)
    integral = np.concatenate([[0.0], np.cumsum(pieces)])
    ends = np.linspace(times[0], times[-1], parts + 1)
    means: NDArray[np.float64] = np.diff(np.interp(ends, times, integral)) / np.diff(ends)
    return means


def _compare(expected: float, gauged: MeanInterval, skewed: float, edge_share: float) -> Little:
    allowed = ERRORS_ALLOWED * gauged.standard_error + skewed
    text = f"L = {expected:,.1f} by rate and time, {gauged.mean:,.1f} by the gauge, ± {allowed:,.1f} allowed"
    agrees: bool | None = bool(abs(gauged.mean - expected) <= allowed)
    is_doubted = False
    if max(expected, gauged.mean) < LITTLE_MIN:
        agrees, text = None, f"{text}; below {LITTLE_MIN:.0f} it cannot tell"
    elif edge_share > EDGE_SHARE:
        agrees, text = None, f"{text}; the mean time is {edge_share:.0%} of the window, over {EDGE_SHARE:.0%}"
    elif not agrees and abs(gauged.mean - expected) <= _chance(gauged) + skewed:
        text = f"{text}; with an error known from {gauged.batches} parts only, more may be chance"
        agrees, is_doubted = None, True
    return Little(expected, gauged.mean, gauged.standard_error, agrees, text, is_doubted)


def _chance(gauged: MeanInterval) -> float:
    """How far a mean may be from the truth by chance."""
    return t_quantile(1 - CHANCE / 2, gauged.batches - 1) * gauged.standard_error


# --- queues whose answer is known ---


def mm1_wait_s(arrival_rate_per_s: float, service_rate_per_s: float) -> float:
    """The mean wait before service in M/M/1 (s); ValueError where it does not stay finite."""
    load = _load(arrival_rate_per_s, service_rate_per_s)
    return load / (service_rate_per_s - arrival_rate_per_s)


def mm1_sojourn_s(arrival_rate_per_s: float, service_rate_per_s: float) -> float:
    """The mean time in an M/M/1 system, wait and service (s); ValueError where it does not stay finite."""
    return mm1_wait_s(arrival_rate_per_s, service_rate_per_s) + 1 / service_rate_per_s


def md1_wait_s(arrival_rate_per_s: float, service_rate_per_s: float) -> float:
    """The mean wait before service in M/D/1 (s), half of M/M/1's; ValueError where it does not stay finite."""
    return mm1_wait_s(arrival_rate_per_s, service_rate_per_s) / 2


def md1_sojourn_s(arrival_rate_per_s: float, service_rate_per_s: float) -> float:
    """The mean time in an M/D/1 system, wait and service (s); ValueError where it does not stay finite."""
    return md1_wait_s(arrival_rate_per_s, service_rate_per_s) + 1 / service_rate_per_s


def _load(arrival_rate_per_s: float, service_rate_per_s: float) -> float:
    if not 0 <= arrival_rate_per_s < service_rate_per_s < math.inf:
        text = f"arrivals at {arrival_rate_per_s}/s and service at {service_rate_per_s}/s"
        raise ValueError(f"{text}: expected arrivals from 0 up to less than the service rate")
    return arrival_rate_per_s / service_rate_per_s
