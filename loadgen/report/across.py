"""Several runs beside each other, in words: each point's values, and what changed against the first run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen.report import points as pt
from loadgen.report import words

if TYPE_CHECKING:
    from loadgen.analysis.across import Across, Row
    from loadgen.stats.confidence import Ratio


def across_lines(found: Across) -> list[str]:
    """The comparison for a terminal, a line each; `A` is the first run, against which all others stand."""
    lines = [f"{letter}: {name}" for letter, name in zip(letters(found), found.runs, strict=True)]
    lines += [f"Not the same: {each}." for each in found.warnings]
    if any("machine differ" in each for each in found.warnings):
        lines.append("Runs of different machines compare the machines, whatever else changed.")
    place = None
    for row in found.rows:
        if (here := label(row)) != place:
            lines += ["", here, *(f"  settings differ: {each}" for each in row.settings)]
            place = here
        lines.append(f"  {row.measure}: {'; '.join(_values(row, letters(found)))}")
    lines += ["", _level(found)]
    if found.alone:
        lines.append(f"{words.plural(found.alone, 'point')} of only one run: not compared.")
    return lines


def letters(found: Across) -> list[str]:
    """A, B, C …; beyond Z numbers."""
    return [chr(ord("A") + number) if number < 26 else str(number + 1) for number in range(len(found.runs))]


def label(row: Row) -> str:
    """Which point: `latency, Kafka (kafka), class broker: 1 KiB, 5,000 msg/s, 1 consumer`."""
    point: dict[str, Any] = row.point
    swept = pt.own_label(point["broker"], point["point"], None)
    parts = [
        words.size((point["message"] or {}).get("size_bytes")),
        pt.rate_label(point["rate"]),
        words.receivers(point["subscribers"] or 1, point["consumers"]),
        *([swept] if swept else []),
    ]
    who = f"{words.broker_name(point['broker'])} ({point['driver']})"
    return f"{point['scenario']}, {who}, class {point['durability']}: {', '.join(parts)}"


def _values(row: Row, names: list[str]) -> list[str]:
    """Each run's value, and its ratio to the first one's in words."""
    said = []
    for name, found, ratio in zip(names, row.estimates, row.ratios, strict=True):
        if found is None:
            said.append(f"{name} none that counts")
            continue
        text = f"{name} {words.shown(found.median, row.unit)} (n {found.n})"
        said.append(text if ratio is None else f"{text}, {_against(ratio, name, names[0])}")
    return said


def _against(ratio: Ratio, name: str, first: str) -> str:
    if ratio.low is None:
        return f"{name}/{first} {words.significant(ratio.ratio or 0.0)}×, one repeat, which cannot tell"
    shown = {"higher": "higher", "lower": "lower"}.get(ratio.direction, ratio.direction)
    return f"{name}/{first} {words.times(ratio)}, {shown}"


def _level(found: Across) -> str:
    return (
        f"Intervals hold together at 95 % ({found.confidence * 100:.4g} % each, Welch’s t over repeats). Runs were not "
        "interleaved, so that what happened to the machine between them is in every ratio: `loadgen ab` has them take "
        "turns."
    )
