"""Several runs beside each other, in words: each point's values, and what changed against the first run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from loadgen.report import points as pt
from loadgen.report import words

if TYPE_CHECKING:
    from loadgen.analysis.across import Across, Change, Row
    from loadgen.stats.confidence import Ratio


def across_lines(found: Across) -> list[str]:
    """The comparison for a terminal, a line each; `A` is the first run, against which all others stand."""
    lines = [f"{letter}: {name}" for letter, name in zip(letters(found), found.runs, strict=True)]
    lines += [*headlines(found), *differences(found)]
    for point, rows in by_point(found):
        lines += ["", point, *(f"  settings differ: {each}" for each in rows[0].settings)]
        lines += [f"  {row.measure}: {'; '.join(_values(row, letters(found)))}" for row in rows]
    return [*lines, "", *notes(found)]


def headlines(found: Across) -> list[str]:
    """A sentence for each later run: how many figures are worse or better than the first one's, the largest named."""
    names = letters(found)
    return [_headline(found, number, f"{names[number]} against {names[0]}") for number in range(1, len(names))]


def _headline(found: Across, number: int, who: str) -> str:
    changes: dict[Change, list[Row]] = {"worse": [], "better": [], "no difference shown": [], "cannot tell": []}
    for row in found.rows:
        if row.ratios[number] is not None:
            changes[row.change(number)].append(row)
    total = sum(map(len, changes.values()))
    if not total:
        return f"{who}: no point in common."
    said = []
    for change in ("worse", "better"):
        rows = sorted(changes[change], key=lambda row: -abs(math.log(_ratio_of(row, number))))
        if rows:
            largest = rows[0]
            by = f"{largest.measure} {words.significant(_ratio_of(largest, number))}× in {label(largest)}"
            said.append(f"{len(rows)} {change}{', most of all' if len(rows) > 1 else ':'} {by}")
    said += [f"{len(changes[each])} {each}" for each in ("no difference shown", "cannot tell") if changes[each]]
    return f"{who}, of {words.plural(total, 'figure')}: {'; '.join(said)}."


def _ratio_of(row: Row, number: int) -> float:
    ratio = row.ratios[number]
    assert ratio is not None, "it was compared"
    assert ratio.ratio is not None, "a change is shown"
    return ratio.ratio


def differences(found: Across) -> list[str]:
    """What is not the same beside the points, a sentence each."""
    said = [f"Not the same: {each}." for each in found.warnings]
    if any("machine differ" in each for each in found.warnings):
        said.append("Runs of different machines compare the machines, whatever else changed.")
    return said


def by_point(found: Across) -> list[tuple[str, list[Row]]]:
    """The rows of each point under its name; both brokers' points of a scenario beside each other."""
    scenarios = list(dict.fromkeys(row.point["scenario"] for row in found.rows))
    grouped: dict[str, list[Row]] = {}
    for row in sorted(found.rows, key=lambda row: (scenarios.index(row.point["scenario"]), label(row))):
        grouped.setdefault(label(row), []).append(row)
    return list(grouped.items())


def notes(found: Across) -> list[str]:
    """How sure the intervals are, and what is not compared."""
    alone = [f"{words.plural(found.alone, 'point')} of only one run: not compared."] if found.alone else []
    return [_level(found), *alone]


def letters(found: Across) -> list[str]:
    """A, B, C …; beyond Z numbers."""
    return [chr(ord("A") + number) if number < 26 else str(number + 1) for number in range(len(found.runs))]


def label(row: Row) -> str:
    """Which point: `latency, Kafka (kafka), class broker: 1 KiB, 5,000 msg/s, 1 consumer`."""
    point: dict[str, Any] = row.point
    swept = pt.own_label(point["broker"], point["point"], None)
    parts = [
        words.message(point["message"]),
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
    return f"{name}/{first} {words.times(ratio)}, {ratio.direction}"


def _level(found: Across) -> str:
    return (
        f"Intervals hold together at 95 % ({found.confidence * 100:.4g} % each, Welch’s t over repeats). Runs were not "
        "interleaved, so that what happened to the machine between them is in every ratio: `loadgen ab` has them take "
        "turns."
    )
