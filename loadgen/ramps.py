"""Ramps: how response times follow a rate that changes, and at which rate they leave what they are at low rates."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadgen.levels import Levels
    from loadgen.plan import Trial

PARTS_MIN = 8
"""Of fewer intervals two are no ground, and two no rise."""
GROUND_SHARE = 0.25
"""The quarter of the intervals at the lowest rates is what all of them are held against."""
LEFT_TIMES = 2.0
"""Twice the ground is beyond what repeats at one rate differ by."""
LEFT_PARTS = 2
"""One slow interval at the end is a pause; two are not."""


def risen(trial: Trial, levels: Levels) -> dict[str, Any] | None:
    """`trial.ramp` of run.json; None of any other rate, and where too few intervals have messages enough.

    The ground is the median level of the intervals at the lowest rates. It is left at the first rate from which on
    every interval lies above `LEFT_TIMES` of it, if that are `LEFT_PARTS` at least.
    """
    rate = trial.rate
    if rate.kind != "ramp" or not trial.consumers:
        return None
    assert isinstance(rate.msgs_per_s, int | float), "a ramp has no sweep"
    assert rate.to_msgs_per_s is not None, "a ramp has an end"
    per_s = (rate.to_msgs_per_s - rate.msgs_per_s) / (trial.warmup_s + trial.duration_s)
    middles_s = ((number + 0.5) * trial.interval_s + trial.warmup_s for number, _ in levels.by_interval())
    rates = [rate.msgs_per_s + per_s * at_s for at_s in middles_s]
    parts = sorted(zip(rates, (level_ns for _, level_ns in levels.by_interval()), strict=True))
    if len(parts) < PARTS_MIN:
        return None
    ground_ns = median(level_ns for _, level_ns in parts[: round(GROUND_SHARE * len(parts))])
    above = 0
    while above < len(parts) and parts[-1 - above][1] > LEFT_TIMES * ground_ns:
        above += 1
    return {
        "ground_ns": ground_ns,
        "left_at_msgs_per_s": parts[-above][0] if above >= LEFT_PARTS else None,
        "top_ns": parts[-1][1],
        "top_msgs_per_s": parts[-1][0],
    }
