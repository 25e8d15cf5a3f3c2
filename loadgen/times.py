"""Lengths of time as people write them: 10ms, 90s, 20m, 4h, 2d, or plain seconds."""

from __future__ import annotations

import math

UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def seconds_of(text: str) -> float:
    """The length in seconds; ValueError where it is none, or not finite."""
    unit = next((each for each in UNITS_S if text.endswith(each)), "")
    seconds = float(text.removesuffix(unit)) * UNITS_S.get(unit, 1.0)
    if not math.isfinite(seconds):
        raise ValueError(f"{text}: not a length of time")
    return seconds
