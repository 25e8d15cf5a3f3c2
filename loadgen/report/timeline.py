"""Second by second: the latency of each broker's worst trial, with what happened in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from loadgen.record import events_of
from loadgen.report import words
from loadgen.report.drawing import (
    MUTED,
    SEEN_SHARE,
    Chart,
    Margins,
    colour,
    finish,
    log_latency_axis,
    pointable,
    stacked,
    styled,
)
from loadgen.report.slowest import summary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from loadgen.analysis.tail import SlowSecond, Tail
    from loadgen.record import Record
    from loadgen.runs import Run

MS = 1e6
NAMED_MAX = 3
"""So many of the slowest seconds are named in the drawing; all are listed beside it."""
WIDTH_INCHES = 9.2
PANEL_INCHES, ROW_INCHES = 1.9, 0.17
"""Heights of a panel and of a row of events below it."""
CHAR_INCHES = 0.068
"""Width of a letter of an event's name."""


def draw(run: Run, worst: Sequence[Tail]) -> list[Chart]:
    """One panel a broker, with a strip of events below it; no drawing where no second stands out."""
    if not worst:
        return []
    kinds = [list(_events(run.trial(tail.trial_id))) for tail in worst]
    heights = [height for found in kinds for height in (PANEL_INCHES, max(0.02, ROW_INCHES * len(found)))]
    longest = max((len(kind) for found in kinds for kind in found), default=0)
    margins = Margins(left=max(0.8, 0.15 + CHAR_INCHES * longest))
    with styled():
        width = WIDTH_INCHES - margins.left - margins.right
        figure, grid = stacked(width, heights, ([0.06, 0.85] * len(worst))[:-1], margins=margins)
        for number, tail in enumerate(worst):
            record, (panel, strip) = run.trial(tail.trial_id), grid[2 * number : 2 * number + 2, 0]
            draw_seconds(panel, record, tail)
            panel.tick_params(axis="x", labelbottom=False)
            _draw_events(strip, record)
        return [finish(figure, "timeline", "The slowest seconds of each broker's worst trial", _note(run, worst))]


def draw_seconds(axes: Axes, record: Record, tail: Tail) -> None:
    """A trial's p50, p99 and largest latency of each second, and the names of its slowest ones."""
    ink = colour(record["broker"])
    length_s = record["interval_s"] or 1.0
    middles = [each.at_s + length_s / 2 for each in tail.seconds]
    for name, values, style in (
        ("p50", [each.p50_ns for each in tail.seconds], {"linewidth": 1.0, "alpha": 0.7}),
        ("p99", [each.p99_ns for each in tail.seconds], {"linewidth": 1.8}),
        ("max", [each.max_ns for each in tail.seconds], {"linewidth": 0, "marker": ".", "markersize": 4, "alpha": 0.6}),
    ):
        axes.plot(middles, np.array(values) / MS, color=ink, label=name, **style)
    if tail.limit_ns is not None:
        axes.axhline(tail.limit_ns / MS, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), label="slow above")
    log_latency_axis(axes)
    pointable(axes, lambda x: f"second {x - length_s / 2:g}", lambda y: words.duration(y * MS))
    axes.set_xlim(0, record["window_s"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, which="major")
    axes.set_ylabel(f"{tail.kind}, ms")
    axes.set_title(f"{words.broker_name(record['broker'])}: {record['id']}", fontsize=8.5, pad=4)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 2.2)  # room for the names
    for each in tail.slow[:NAMED_MAX]:
        axes.annotate(
            _why(each), (each.second.at_s + length_s / 2, each.second.max_ns / MS), xytext=(0, 5),
            textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    axes.legend(frameon=False, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 0.98), handlelength=1.4, fontsize=8)


def _why(slow: SlowSecond) -> str:
    """What a slow second is explained by, or what it coincides with, in a word or two."""
    kinds = [cause.kind for cause, _ in slow.coincidences if cause.explains]
    if kinds:
        return kinds[0]
    return f"{slow.coincidences[0][0].kind}?" if slow.coincidences else "unexplained"


def _events(record: Record) -> dict[str, list[Mapping[str, Any]]]:
    """The observer's events by kind, the most frequent kinds first."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for event in events_of(record):
        found.setdefault(event["kind"], []).append(event)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _draw_events(axes: Axes, record: Record) -> None:
    """A row for each kind of event; a bar is as long as its event, and never too short to be seen."""
    shortest_s = SEEN_SHARE * record["window_s"]
    by_kind = _events(record)
    for row, events in enumerate(by_kind.values()):
        bars = [(each["at_s"], max(each["duration_s"], shortest_s)) for each in events]
        axes.broken_barh(bars, (row + 0.15, 0.7), color=colour(record["broker"]), linewidth=0)
    axes.set_yticks([row + 0.5 for row in range(len(by_kind))], list(by_kind), fontsize=8)
    axes.set_ylim(len(by_kind) or 1, 0)
    axes.set_xlim(0, record["window_s"])
    axes.tick_params(axis="both", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("second of the window")


def _note(run: Run, worst: Sequence[Tail]) -> str:
    said = []
    for tail in worst:
        broker = words.broker_name(run.trial(tail.trial_id)["broker"])
        slow = ", ".join(f"second {each.second.at_s:g} ({_why(each)})" for each in tail.slow[:NAMED_MAX])
        said.append(f"{broker}: {summary(tail)}; slowest {slow}.")
    said.append(
        "Each second's p50, p99 and largest latency (dots), by the moment in which messages were intended; bars below "
        "are events, as long as they lasted."
    )
    return " ".join(said)
