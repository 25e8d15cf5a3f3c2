"""Trials with faults, second by second: what came through and how long it took, both brokers on the same axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from loadgen.analysis.outages import GAP_WORDS, gaps
from loadgen.record import events_of
from loadgen.report import words
from loadgen.report.drawing import (
    INK,
    MUTED,
    OTHER_COLOUR,
    SEEN_SHARE,
    Chart,
    colour,
    finish,
    log_latency_axis,
    named,
    pointable,
    rate_tick,
    styled,
)
from loadgen.report.points import broker_rank, class_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loadgen.analysis.outages import Course
    from loadgen.record import Record

MS = 1e6
RATE_INCHES, LATENCY_INCHES, WIDTH_INCHES = 1.35, 1.5, 9.2
HIGHEST = 2.5
"""Rates over so many times the usual one, as a backlog comes through, are marked at the edge with their number."""
NEAR_SHARE = 0.12
"""A label nearer than this share of the window to the one before goes below it."""
AT_ONCE_S = 0.1
TOLD = ("alarm", "rebalance")
"""Events that are drawn beside the faults: what brokers and groups say themselves."""
WIDE = 100.0
"""A range of latencies so many times as high as low has no room for marks between the powers of ten."""
LINES: tuple[tuple[str, Any, float], ...] = (
    ("delivered", "-", 1.3),
    ("confirmed", (0, (2, 1.5)), 1.3),
    ("offered", (0, (1, 2)), 0.7),
    ("latency: p99.9", "-", 2.0),
    ("p50", "-", 0.9),
)
NOTE = (
    "Solid vertical: a fault begins; dashed: what it broke serves again. Shaded: the longest time of each fault in "
    "which nothing was confirmed, and nothing was delivered. Rates by the second in which things happened (a triangle: "
    "off the scale); latency by the second in which messages were intended. A bar at the foot: the broker’s alarm, "
    "or a group’s rebalance."
)


def draw(courses: Sequence[Course]) -> list[Chart]:
    """A drawing for each scenario and repeat: a row for each class and setting, a column for each broker."""
    drawings: dict[tuple[str, int], list[Course]] = {}
    for each in courses:
        drawings.setdefault((each.record["scenario"], each.record["repeat"]), []).append(each)
    with styled():
        return [_drawing(number, name, found) for number, (name, found) in enumerate(drawings.items(), 1)]


def _drawing(number: int, name: tuple[str, int], courses: Sequence[Course]) -> Chart:
    brokers = sorted({each.record["broker"] for each in courses}, key=broker_rank)
    rows = _rows(courses)
    inches = [RATE_INCHES, LATENCY_INCHES] * len(rows)
    figure = Figure(figsize=(WIDTH_INCHES, sum(inches) + 0.5), layout="constrained")
    grid = figure.subplots(len(inches), len(brokers), squeeze=False, sharex=True, height_ratios=inches)
    tops = _tops(courses)
    for row, by_broker in enumerate(rows):
        for column, broker in enumerate(brokers):
            rates, latency = grid[2 * row, column], grid[2 * row + 1, column]
            if (course := by_broker.get(broker)) is None:
                rates.set_visible(False)
                latency.set_visible(False)
                continue
            _rates(rates, course, tops[0])
            _latency(latency, course, tops[1])
            if column == 0:
                rates.set_ylabel("msg/s")
                latency.set_ylabel(f"{course.kind or 'latency'}, ms")
    for axes in grid[-1]:
        axes.set_xlabel("second of the window")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure)
    scenario, repeat = name
    title = f"{scenario}: before, under and after the fault" + (f", repeat {repeat}" if repeat > 1 else "")
    said = " ".join(_said(each.record) for each in courses)
    return finish(figure, f"faults-{number}", title, f"{said} {NOTE}")


def _rows(courses: Sequence[Course]) -> list[dict[str, Course]]:
    """By class and what else both brokers share; what one broker sweeps by itself has rows of its own."""
    rows: dict[tuple[Any, ...], list[dict[str, Course]]] = {}
    for each in sorted(courses, key=lambda each: class_rank(each.record["durability"])):
        record = each.record
        point = {key: value for key, value in record["point"].items() if not key.startswith(record["broker"])}
        found = rows.setdefault((record["durability"], *map(str, sorted(point.items()))), [])
        place = next((row for row in found if record["broker"] not in row), None)
        if place is None:
            found.append({record["broker"]: each})
        else:
            place[record["broker"]] = each
    return [row for found in rows.values() for row in found]


def _tops(courses: Sequence[Course]) -> tuple[float, tuple[float, float]]:
    """The highest rate shown (messages/s), and the range of latencies (ms): the same for all panels of a drawing."""
    usual = [float(np.median(rates)) for each in courses for _, rates in (each.delivered, each.confirmed) if len(rates)]
    offered = [float(each.record["offered_msgs_per_s"] or 0) for each in courses]
    seconds = [second for each in courses for second in each.seconds]
    low = min((second.p50_ns for second in seconds), default=1e5) / MS
    high = max((second.p99_9_ns for second in seconds), default=1e8) / MS
    return HIGHEST * max([1.0, *usual, *offered]), (low / 1.5, high * 1.8)


def _rates(axes: Axes, course: Course, top: float) -> None:
    record, ink = course.record, colour(course.record["broker"])
    _mark(axes, record, is_labelled=True)
    for verb, (ends_s, rates), style in (
        ("confirmed", course.confirmed, (0, (2, 1.5))),
        ("delivered", course.delivered, "-"),
    ):
        middles_s = ends_s - course.interval_s / 2
        (line,) = axes.plot(middles_s, np.minimum(rates, top), color=ink, linewidth=1.3, linestyle=style)
        named(line, verb)
    _tell(axes, record)
    pointable(axes, _second_text, lambda y: f"{'over ' if y >= top else ''}{words.rate(y)}")
    if record["offered_msgs_per_s"]:
        axes.axhline(record["offered_msgs_per_s"], color=MUTED, linewidth=0.7, linestyle=(0, (1, 2)))
    _mark_highest(axes, course, top)
    axes.set_ylim(0, top * 1.28)  # room for labels
    axes.set_xlim(0, record["window_s"])
    axes.set_yticks([each for each in axes.get_yticks() if each <= top])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rate_tick(value)))
    axes.grid(visible=True, which="major")
    settings = "".join(f", {value}" for key, value in record["point"].items() if key.startswith(record["broker"]))
    name = f"{words.broker_name(record['broker'])} ({record['driver']}), class {record['durability']}{settings}"
    axes.set_title(name, fontsize=8.5, pad=4)


def _mark_highest(axes: Axes, course: Course, top: float) -> None:
    """What lies beyond the edge: a triangle there, and the highest number."""
    ends_s, rates = course.delivered
    over = np.flatnonzero(rates > top)
    if not len(over):
        return
    middles_s = ends_s[over] - course.interval_s / 2
    axes.plot(middles_s, np.full(len(over), top), "^", color=colour(course.record["broker"]), markersize=4)
    highest = over[np.argmax(rates[over])]
    axes.annotate(
        f"{rates[highest]:,.0f}", (float(ends_s[highest]) - course.interval_s / 2, top), xytext=(5, 0),
        textcoords="offset points", va="center", fontsize=7.5,
    )  # fmt: skip


def _latency(axes: Axes, course: Course, limits: tuple[float, float]) -> None:
    record, ink = course.record, colour(course.record["broker"])
    _mark(axes, record, is_labelled=False)
    if course.seconds:
        middles_s = [each.at_s + course.interval_s / 2 for each in course.seconds]
        for name, values, width in (
            ("p50", [each.p50_ns for each in course.seconds], 0.9),
            ("p99.9", [each.p99_9_ns for each in course.seconds], 1.8),
        ):
            (line,) = axes.plot(middles_s, np.array(values) / MS, color=ink, linewidth=width)
            named(line, name)
        pointable(axes, _second_text, lambda y: words.duration(y * MS))
    else:
        why = "a closed loop" if record["rate"].get("kind") == "saturate" else "histograms were not kept"
        text = f"no response times: {why}"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=MUTED, fontsize=8.5)
    log_latency_axis(axes)
    if limits[1] > WIDE * limits[0]:
        axes.yaxis.set_major_locator(LogLocator())
    axes.set_ylim(*limits)
    axes.set_xlim(0, record["window_s"])
    axes.grid(visible=True, which="major")


def _second_text(middle_s: float) -> str:
    return f"second {middle_s:g}"


def _mark(axes: Axes, record: Record, *, is_labelled: bool) -> None:
    """The faults' begins and mends, with their labels, and the gaps."""
    window_s = float(record["window_s"])
    for kind in GAP_WORDS:
        for at_s, gap_s in gaps(record, kind):
            axes.axvspan(at_s, at_s + gap_s, color=MUTED, alpha=0.16, linewidth=0)
    labels: list[tuple[float, str]] = []
    for each in record["faults"]:
        nodes = f", node {', '.join(map(str, each['nodes']))}" if each["nodes"] else ""
        labels.append((each["at_s"], f"{each['kind']}{nodes}"))
        axes.axvline(each["at_s"], color=INK, linewidth=1.0)
        mended_s = each["at_s"] + each["mended_after_s"]
        if each["mended_after_s"] >= AT_ONCE_S and mended_s < window_s:
            labels.append((mended_s, "mended"))
            axes.axvline(mended_s, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
    last_s, height = -window_s, 0.99
    for at_s, text in sorted(labels) if is_labelled else ():
        height = 0.87 if at_s - last_s < NEAR_SHARE * window_s and height > 0.9 else 0.99
        last_s = at_s
        axes.annotate(
            text, (at_s, height), xycoords=axes.get_xaxis_transform(), xytext=(2, 0), textcoords="offset points",
            va="top", fontsize=7.5,
        )  # fmt: skip


def _told(record: Record) -> list[tuple[float, float, str]]:
    """Alarms and rebalances in the window: when each began (s), how long it lasted (s), and what it was."""
    events = [each for each in events_of(record) if each["kind"] in TOLD]
    return [(each["at_s"], each["duration_s"], f"{each['kind']}: {each['text']}") for each in events]


def _tell(axes: Axes, record: Record) -> None:
    """A bar at the foot for each, and its words where it is the first of its kind."""
    seen: set[str] = set()
    for at_s, length_s, text in _told(record):
        shown_s = max(length_s, SEEN_SHARE * record["window_s"])
        axes.axvspan(at_s, at_s + shown_s, ymax=0.05, color=OTHER_COLOUR, linewidth=0)
        if text not in seen:
            axes.annotate(
                text, (max(0.0, at_s), 0.06 + 0.12 * len(seen)), xycoords=axes.get_xaxis_transform(), xytext=(2, 0),
                textcoords="offset points", va="bottom", fontsize=7.5, color=OTHER_COLOUR,
            )  # fmt: skip
            seen.add(text)


def _legend(figure: Figure) -> None:
    """What the lines are, once for all panels and either broker's colour."""
    lines = [Line2D([], [], color=MUTED, linestyle=style, linewidth=width) for _, style, width in LINES]
    names = [name for name, _, _ in LINES]
    figure.legend(lines, names, loc="outside upper right", frameon=False, ncols=len(LINES), fontsize=8, handlelength=2)


def _said(record: Record) -> str:
    """A trial's faults and gaps in words, for who cannot see them."""
    parts = [f"{each['what']} at second {each['at_s']:.0f}" for each in record["faults"]]
    longest = [
        f"nothing {verb} for {max(gap_s for _, gap_s in found):.1f} s"
        for kind, verb in GAP_WORDS.items()
        if (found := gaps(record, kind))
    ]
    events = dict.fromkeys(f"{text} at second {at_s:.0f}" for at_s, _, text in _told(record))
    told = ", ".join([*parts, *longest, *events])
    return f"{words.broker_name(record['broker'])}, class {record['durability']}: {told}."
