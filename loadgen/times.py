"""Lengths of time as people write them: 90s, 20m, 4h, 2d, or plain seconds."""

from __future__ import annotations

import math

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def seconds_of(text: str) -> float:
    """The length in seconds; ValueError where it is none, or not finite."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS_S else (text, "s")
    seconds = float(number) * UNITS_S[unit]
    if not math.isfinite(seconds):
        raise ValueError(f"{text}: not a length of time")
    return seconds
