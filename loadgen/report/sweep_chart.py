"""Throughput against what a scenario sweeps, both axes logarithmic: where it is a straight line, a plateau or a cliff.

A sweep of message sizes has a second panel in bytes a second: small messages win the first, large ones the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from loadgen.report import points as pt
from loadgen.report import words
from loadgen.report.drawing import DASHES, Chart, colour, finish, rate_tick, styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

VALUES_MIN = 3  # two values are a pair of figures, which the table shows better
NOT_AXES = frozenset({"fraction", "variant", "msgs_per_s"})
MARKERS = ("o", "s", "^")


@dataclass(frozen=True)
class Line:
    """One broker, driver and class along the sweep: its points in the order of the swept value."""

    label: str
    broker: str
    durability: str
    points: tuple[tuple[float, pt.Point], ...]


@dataclass(frozen=True)
class Sweep:
    """One scenario's throughput along one of its knobs."""

    scenario: str
    knob: str
    lines: tuple[Line, ...]

    @property
    def values(self) -> list[float]:
        """What was swept, in order."""
        return sorted({value for line in self.lines for value, _ in line.points})


def draw(comparisons: Sequence[pt.Comparison]) -> list[Chart]:
    """A chart for each numeric sweep of a closed loop with three values or more."""
    with styled():
        return [_chart(sweep, number) for number, sweep in enumerate(sweeps(comparisons), 1)]


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
            lines = _lines(points, knob)
            if lines:
                found.append(Sweep(scenario, knob, lines))
    return found


def _lines(points: Sequence[pt.Point], knob: str) -> tuple[Line, ...]:
    grouped: dict[tuple[str, str, str, str], list[tuple[float, pt.Point]]] = {}
    for point in points:
        value = point.swept.get(knob)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            continue
        rest = ", ".join(f"{name.rpartition('.')[2]} {each}" for name, each in point.swept.items() if name != knob)
        key = (point.broker, point.driver, point.durability, rest)
        grouped.setdefault(key, []).append((float(value), point))
    return tuple(
        Line(_label(broker, driver, rest), broker, durability, tuple(sorted(found, key=lambda each: each[0])))
        for (broker, driver, durability, rest), found in grouped.items()
        if len({value for value, _ in found}) >= VALUES_MIN
    )


def _label(broker: str, driver: str, rest: str) -> str:
    own = {"rabbitmq": "amqp", "kafka": "kafka"}.get(broker) == driver
    return words.broker_name(broker) + ("" if own else f" ({driver})") + (f", {rest}" if rest else "")


def _chart(sweep: Sweep, number: int) -> Chart:
    is_size = sweep.knob == "size_bytes"
    figure = Figure(figsize=(11.5 if is_size else 7.2, 4.2), layout="constrained")
    grid = figure.subplots(1, 2 if is_size else 1, squeeze=False)
    draw_sweep(grid[0, 0], sweep)
    if is_size:
        draw_sweep(grid[0, 1], sweep, scaled=True)
    grid[0, 0].legend(frameon=False, handlelength=2.2)
    title = f"{sweep.scenario}: throughput against {_knob_name(sweep.knob)}, class {_classes(sweep)}"
    return finish(figure, f"sweep-{number}", title, " ".join(_in_words(line, sweep.knob) for line in sweep.lines))


def _classes(sweep: Sweep) -> str:
    return " and ".join(dict.fromkeys(line.durability for line in sweep.lines))


def _knob_name(knob: str) -> str:
    return "message size" if knob == "size_bytes" else knob.rpartition(".")[2].replace("_", " ")


def draw_sweep(axes: Axes, sweep: Sweep, *, scaled: bool = False) -> None:
    """A sweep's lines in messages a second, or `scaled` by the swept size in bytes a second."""
    seen: dict[str, int] = {}
    for line in sweep.lines:
        place = seen.setdefault(line.broker, 0)
        seen[line.broker] += 1
        ink, marker = colour(line.broker), MARKERS[place % len(MARKERS)]
        x = [value for value, _ in line.points]
        y = [(point.estimate(pt.goodput).median or 0.0) * (value if scaled else 1.0) for value, point in line.points]
        axes.plot(x, y, color=ink, linewidth=1.8, linestyle=DASHES[place % len(DASHES)], label=line.label, zorder=3)
        for value, point in line.points:
            repeats = [each * (value if scaled else 1.0) for each in point.estimate(pt.goodput).values]
            axes.scatter([value] * len(repeats), repeats, s=16, marker=marker, color=ink, alpha=0.75, zorder=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sweep.values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _value_text(sweep.knob, x)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{rate_tick(y)}B/s" if scaled else rate_tick(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{_knob_name(sweep.knob)} (log scale)")
    axes.set_ylabel(f"{'bytes' if scaled else 'messages'} a second (log scale)")
    axes.grid(visible=True, which="major")
    axes.set_axisbelow(True)


def _value_text(knob: str, value: Any) -> str:
    return words.size(round(value)) if knob == "size_bytes" else f"{value:g}"


def _in_words(line: Line, knob: str) -> str:
    """A line's points, for who cannot see it."""
    told = [
        f"{words.rate(point.estimate(pt.goodput).median)} at {_value_text(knob, value)}" for value, point in line.points
    ]
    return f"{line.label}: {', '.join(told)}."
