"""Throughput against what a scenario sweeps, as small multiples: where it is a line, a plateau, a peak or a cliff.

A sweep of message sizes has a drawing of its own, in messages and in bytes a second: small messages win the first,
large ones the second. Where places are swept that share the work (queues, partitions, consumers, producers) the fitted
scaling law is drawn too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from loadgen.report import points as pt
from loadgen.report import words
from loadgen.report.drawing import (
    DASHES,
    Chart,
    colour,
    finish,
    named,
    panels,
    pointable,
    rate_tick,
    styled,
)
from loadgen.report.pattern_rules import SHARED_LAW, law_in_words
from loadgen.stats import scaling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

VALUES_MIN = 3  # two values are a pair of figures, which the table shows better
NOT_AXES = frozenset({"fraction", "variant", "msgs_per_s"})
PLACES = frozenset({"queues", "partitions", "consumers", "producers"})
"""Knobs that say how many share the work."""
MARKERS = ("o", "s", "^")
COLUMNS_MAX = 3
LAW_POINTS = 60


@dataclass(frozen=True)
class Line:
    """One broker, driver and class along the sweep: its points in the order of the swept value."""

    label: str
    broker: str
    durability: str
    points: tuple[tuple[Any, pt.Point], ...]

    @property
    def rates(self) -> list[float]:
        """The median of each point, in messages a second."""
        return [point.estimate(pt.goodput).median or 0.0 for _, point in self.points]


@dataclass(frozen=True)
class Sweep:
    """One scenario's throughput along one of its knobs, whose values are in order; words are as in the table."""

    scenario: str
    knob: str
    values: tuple[Any, ...]
    lines: tuple[Line, ...]

    @property
    def is_on_scale(self) -> bool:
        """Whether its values have places on a logarithmic axis; words, and a knob that may be 0, have none."""
        return all(_is_number(value) and value > 0 for value in self.values)

    @property
    def knob_name(self) -> str:
        """The knob without its broker: `queues`."""
        return self.knob.rpartition(".")[2]

    @property
    def what(self) -> str:
        """The knob in words: `max poll records`."""
        return "message size" if self.knob == "size_bytes" else self.knob_name.replace("_", " ")

    @property
    def title(self) -> str:
        """`scaling: queues, class broker`."""
        classes = " and ".join(dict.fromkeys(line.durability for line in self.lines))
        return f"{self.scenario}: throughput against {self.what}, class {classes}"

    def law(self, line: Line) -> scaling.Scaling | None:
        """The fitted scaling law of a line; None where the knob is no number of places, or has too few values."""
        if self.knob_name not in PLACES or not self.is_on_scale:
            return None
        try:
            return scaling.fit([value for value, _ in line.points], line.rates)
        except ValueError:
            return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def draw(comparisons: Sequence[pt.Comparison]) -> list[Chart]:
    """Every sweep of a closed loop with three values or more: sizes by themselves, all other knobs side by side."""
    found = sweeps(comparisons)
    sizes = [sweep for sweep in found if sweep.knob == "size_bytes"]
    knobs = [sweep for sweep in found if sweep.knob != "size_bytes"]
    with styled():
        charts = [_size_chart(sweep, number) for number, sweep in enumerate(sizes, 1)]
        return [*charts, _knob_chart(knobs)] if knobs else charts


def sweeps(comparisons: Sequence[pt.Comparison]) -> list[Sweep]:
    """The sweeps that have a line of three values or more."""
    found: list[Sweep] = []
    for scenario in dict.fromkeys(each.scenario for each in comparisons):
        points = [
            point
            for comparison in comparisons
            if comparison.scenario == scenario
            for point in comparison.points
            if point.used and not point.is_open_loop
        ]
        knobs = dict.fromkeys(name for point in points for name in point.swept if name not in NOT_AXES)
        for knob in knobs:
            values = tuple(dict.fromkeys(point.swept[knob] for point in points if _is_plain(point.swept.get(knob))))
            if all(map(_is_number, values)):
                values = tuple(sorted(values))
            lines = _lines(points, knob, values)
            if lines:
                found.append(Sweep(scenario, knob, values, lines))
    return found


def _is_plain(value: Any) -> bool:
    return isinstance(value, (int, float, str))


def _lines(points: Sequence[pt.Point], knob: str, values: tuple[Any, ...]) -> tuple[Line, ...]:
    grouped: dict[tuple[str, str, str, str], list[tuple[Any, pt.Point]]] = {}
    for point in points:
        if (value := point.swept.get(knob)) not in values:
            continue
        rest = ", ".join(f"{name.rpartition('.')[2]} {each}" for name, each in point.swept.items() if name != knob)
        grouped.setdefault((point.broker, point.driver, point.durability, rest), []).append((value, point))
    return tuple(
        Line(_label(broker, driver, rest), broker, durability, tuple(sorted(found, key=lambda x: values.index(x[0]))))
        for (broker, driver, durability, rest), found in grouped.items()
        if len({value for value, _ in found}) >= VALUES_MIN
    )


def _label(broker: str, driver: str, rest: str) -> str:
    return pt.driver_name(broker, driver) + (f", {rest}" if rest else "")


def _size_chart(sweep: Sweep, number: int) -> Chart:
    figure = Figure(figsize=(11.5, 4.2), layout="constrained")
    grid = figure.subplots(1, 2, squeeze=False)
    draw_sweep(grid[0, 0], sweep)
    draw_sweep(grid[0, 1], sweep, scaled=True)
    grid[0, 0].legend(frameon=False, handlelength=2.2)
    return finish(figure, f"sweep-{number}", sweep.title, _note([sweep]))


def _knob_chart(found: Sequence[Sweep]) -> Chart:
    """A panel for each knob, all on one scale of messages a second."""
    columns = min(COLUMNS_MAX, len(found))
    figure, grid = panels(len(found), columns, ({1: 7.2, 2: 9.2, 3: 11.5}[columns], 3.6))
    for axes, sweep in zip(grid.flat, found, strict=False):
        draw_sweep(axes, sweep)
        axes.set_title(sweep.title.replace(": throughput against ", ": "), fontsize=9)
        axes.tick_params(labelleft=True)
        axes.legend(frameon=False, handlelength=2.2, fontsize=8)
    for axes in grid[:, 1:].flat:
        axes.set_ylabel("")
    title = found[0].title if len(found) == 1 else "Throughput by knob"
    return finish(figure, "knobs", title, _note(found))


def draw_sweep(axes: Axes, sweep: Sweep, *, scaled: bool = False) -> None:
    """A sweep's lines in messages a second, or `scaled` by the swept size in bytes a second."""
    seen: dict[str, int] = {}
    for line in sweep.lines:
        place = seen.setdefault(line.broker, 0)
        seen[line.broker] += 1
        ink, marker, style = colour(line.broker), MARKERS[place % len(MARKERS)], DASHES[place % len(DASHES)]
        x = [_place(sweep, value) for value, _ in line.points]
        scales = [float(value) if scaled else 1.0 for value, _ in line.points]
        y = [rate * scale for rate, scale in zip(line.rates, scales, strict=True)]
        axes.plot(x, y, color=ink, linewidth=1.8, linestyle=style, label=line.label, zorder=3)
        for at, scale, (_, point) in zip(x, scales, line.points, strict=True):
            repeats = [each * scale for each in point.estimate(pt.goodput).values]
            dots = axes.scatter([at] * len(repeats), repeats, s=16, marker=marker, color=ink, alpha=0.75, zorder=4)
            named(dots, f"{line.label}, a repeat")
        if not scaled and (law := sweep.law(line)) is not None and law.contention <= 1:
            many = np.geomspace(x[0], x[-1], LAW_POINTS)
            label = f"fitted law, {words.broker_name(line.broker)}"
            axes.plot(
                many,
                [law.rate(each) for each in many],
                color=ink,
                linewidth=0.9,
                linestyle=(0, (1, 1)),
                label=label,
                picker=False,
            )
    _sweep_axes(axes, sweep, scaled=scaled)


def _place(sweep: Sweep, value: Any) -> float:
    return float(value) if sweep.is_on_scale else float(sweep.values.index(value))


def _sweep_axes(axes: Axes, sweep: Sweep, *, scaled: bool) -> None:
    if sweep.is_on_scale:
        axes.set_xscale("log")
    axes.set_yscale("log")
    places = [_place(sweep, value) for value in sweep.values]
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    texts = dict(zip(places, (_value_text(sweep.knob, value) for value in sweep.values), strict=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: texts.get(x, "")))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{rate_tick(y)}B/s" if scaled else rate_tick(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{sweep.what} (log scale)" if sweep.is_on_scale else sweep.what)
    axes.set_ylabel(f"{'bytes' if scaled else 'messages'} a second (log scale)")
    pointable(
        axes,
        lambda x: f"{sweep.knob_name} {texts[x]}",
        lambda y: f"{rate_tick(round(y))}B/s" if scaled else words.rate(y),
    )
    axes.grid(visible=True, which="major")
    axes.set_axisbelow(True)


def _value_text(knob: str, value: Any) -> str:
    if knob == "size_bytes":
        return words.size(round(value))
    return f"{value:g}" if _is_number(value) else str(value)


def _note(found: Sequence[Sweep]) -> str:
    """Every point of every line, for who cannot see it, and the laws."""
    said = ["Lines: medians over repeats, which are the dots."]
    for sweep in found:
        for line in sweep.lines:
            told = ", ".join(
                f"{words.rate(point.estimate(pt.goodput).median)} at {_value_text(sweep.knob, value)}"
                for value, point in line.points
            )
            law = sweep.law(line)
            whose = "" if all(point.bound_by == "broker" for _, point in line.points) else SHARED_LAW
            where = "" if len(found) == 1 else f"{sweep.scenario}, {sweep.knob_name}, "
            said.append(f"{where}{line.label}: {told}{f' ({law_in_words(law, whose)})' if law is not None else ''}.")
    return " ".join(said)
