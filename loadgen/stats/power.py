"""How many repeats a difference needs before it can be shown, and what a number of repeats can show.

The design is that of `confidence.paired_ratio`: the two-sided t test of the mean of paired log ratios. Over n
pairs whose log ratios have the standard deviation s, and with the true ratio R, its statistic is noncentral t with
n - 1 degrees of freedom and noncentrality |ln R|·√n / s (N. Johnson and B. Welch, "Applications of the
non-central t-distribution", Biometrika 31, 1940; J. Cohen, "Statistical Power Analysis for the Behavioral
Sciences", 1988, section 2.5). A ratio and its reciprocal are equally hard to show.

`sd_log` is the standard deviation **of the pairs' log ratios**, not of one configuration's runs. Runs that each vary
by 5 % and share nothing within a pair have pairs that vary by 5 %·√2 = 7.1 %; what a pair shares (the hour, the page
cache, the neighbours) is taken off: √(2·(1 - r)) times the runs' own, for halves that correlate by r.

So a change of + 10 % needs, for 90 % power at the 5 % level, this many repeats of each configuration:

| what varies by | 5 % | 13 % |
| --- | --- | --- |
| the pair's ratio, `sd_log` itself | 6 | 22 |
| each run, pairs that share nothing | 8 | 42 |
| each run, compared unpaired (two-sample t test) | 7 | 41 |
"""

from __future__ import annotations

import math

EFFECT_RATIO = 1.1
"""Where nobody says which effect is of interest: a tenth more or less is what most people would act on."""
_CERTAIN = 1e8  # a larger noncentrality makes no difference, and an infinite one no number


def power(effect_ratio: float, sd_log: float, repeats: int, alpha: float = 0.05) -> float:
    """The probability (0 … 1) that so many pairs show a true ratio at the two-sided level alpha.

    A ratio of 1 is "shown" with probability alpha, the false alarm; fewer than two pairs show nothing.

    Raises:
        ValueError: effect_ratio not above 0, sd_log or repeats negative, or alpha outside (0, 1).
    """
    _check(sd_log, alpha)
    if not (math.isfinite(effect_ratio) and effect_ratio > 0):
        raise ValueError(f"effect ratio {effect_ratio}: expected more than 0")
    if repeats < 0:
        raise ValueError(f"{repeats} repeats: expected 0 or more")
    effect = abs(math.log(effect_ratio))
    if repeats < 2:
        return 0.0
    if effect == 0:
        return alpha
    if sd_log == 0:
        return 1.0
    return _power(effect * math.sqrt(repeats) / sd_log, repeats, alpha)


def repeats_needed(
    effect_ratio: float, sd_log: float, power: float = 0.9, alpha: float = 0.05, most: int = 1000
) -> int | None:
    """The fewest pairs that show a true ratio with at least this power; None where `most` are not enough.

    Raises:
        ValueError: as in `power`, or a power outside (0, 1).
    """
    _check_power(power)
    if most < 2 or _power_of(effect_ratio, sd_log, most, alpha) < power:
        return None
    too_few, enough = 1, most  # power grows with the repeats
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if _power_of(effect_ratio, sd_log, middle, alpha) < power:
            too_few = middle
        else:
            enough = middle
    return enough


def spread_bound(sd_log: float, freedom: int, confidence: float = 0.8) -> float:
    """What a standard deviation that was estimated with so many degrees of freedom is below, with this confidence.

    A plan that takes an estimate for the truth finds the effect less often than it promises, in half of all cases;
    with the upper limit of 80 % it does so in one of five (R. H. Browne, "On the use of a pilot sample for sample
    size determination", Statistics in Medicine 14, 1995).

    Raises:
        ValueError: sd_log negative, freedom below 1, or a confidence outside (0, 1).
    """
    _check(sd_log, 1 - confidence)
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom: expected 1 or more")
    from scipy.special import chdtri  # noqa: PLC0415 - an import that `loadgen --help` must not pay

    return sd_log * math.sqrt(freedom / float(chdtri(freedom, confidence)))


def detectable_ratio(sd_log: float, repeats: int, power: float = 0.9, alpha: float = 0.05) -> float:
    """The smallest ratio above 1 that so many pairs show with this power, and so does its reciprocal.

    Infinite with fewer than two pairs, which show nothing.

    Raises:
        ValueError: as in `power`, or a power outside (alpha, 1): below alpha lie false alarms only.
    """
    _check(sd_log, alpha)
    _check_power(power)
    if power <= alpha:
        raise ValueError(f"power {power}: expected more than alpha, {alpha}")
    if repeats < 2:
        return math.inf
    from scipy.optimize import brentq  # noqa: PLC0415 - half a second of import that `loadgen --help` must not pay

    most = 4.0
    while _power(most, repeats, alpha) < power:
        most *= 2
    needed = float(brentq(lambda noncentrality: _power(noncentrality, repeats, alpha) - power, 0, most))
    try:
        return math.exp(needed * sd_log / math.sqrt(repeats))
    except OverflowError:
        return math.inf


def _power(noncentrality: float, repeats: int, alpha: float) -> float:
    from scipy.stats import nct, t  # noqa: PLC0415 - half a second of import that `loadgen --help` must not pay

    freedom = repeats - 1
    threshold = t.ppf(1 - alpha / 2, freedom)
    noncentrality = min(noncentrality, _CERTAIN)
    # The wrong side as the mirrored distribution's right one: scipy's far left tail is nan.
    return float(nct.sf(threshold, freedom, noncentrality) + nct.sf(threshold, freedom, -noncentrality))


_power_of = power  # under a name that the parameter `power` does not hide


def _check(sd_log: float, alpha: float) -> None:
    if not (math.isfinite(sd_log) and sd_log >= 0):
        raise ValueError(f"standard deviation {sd_log}: expected 0 or more")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha}: expected more than 0 and less than 1")


def _check_power(power: float) -> None:
    if not 0 < power < 1:
        raise ValueError(f"power {power}: expected more than 0 and less than 1")
