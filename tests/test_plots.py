"""Plot helpers take and return axes, draw what the report draws, and say in one line what they cannot draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pytest
import synthetic
from matplotlib import pyplot as plt

from loadgen import plots
from loadgen.errors import ScenarioError
from loadgen.histogram import Histogram
from loadgen.report import charts
from loadgen.report.drawing import COLOURS
from loadgen.runs import RunWriter, load, load_runs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matplotlib.axes import Axes

    from loadgen.run import Run

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """No figure outlives its test."""
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A comparison of invented numbers."""
    return synthetic.compare_run(tmp_path_factory.mktemp("results"), repeats=3)


@pytest.fixture(scope="module")
def curved(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Capacities and curves of invented numbers; the capacities lie near each other."""
    capacities = {"rabbitmq": 42e3, "kafka": 60e3}
    return synthetic.curve_run(tmp_path_factory.mktemp("results"), repeats=2, capacities=capacities)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A closed loop over four message sizes."""
    writer = RunWriter(tmp_path_factory.mktemp("results"), "sizes", synthetic.HEADER)
    for size_bytes in (100, 1_000, 10_000, 100_000):
        record = synthetic.trial(
            "kafka", "sizes", goodput_msgs_per_s=1e7 / size_bytes, point={"size_bytes": size_bytes}
        )
        record |= {"id": f"sizes/kafka/kafka/{size_bytes}/1", "message": {"size_bytes": size_bytes}}
        writer.add_trial(record)
    return load(writer.finish("complete"))


def axes() -> Axes:
    """Axes of the caller's own."""
    return plt.subplots()[1]


def test_each_draws_on_the_axes_it_is_given_and_returns_them(run: Run, curved: Run, swept: Run) -> None:
    """No helper makes a figure of its own where it was given one, and none leaves the axes empty."""
    trial = next(each["id"] for each in curved.records if each["point"] == {"fraction": 0.9})
    for draw in (
        lambda ax: plots.histogram(run.histogram("e2e", broker="kafka", offered_msgs_per_s=1_000.0), "Kafka", ax=ax),
        lambda ax: plots.percentiles(run, "e2e", ax=ax),
        lambda ax: plots.timeline(curved, trial, ax=ax),
        lambda ax: plots.heat_map(curved, trial, ax=ax),
        lambda ax: plots.curve(curved, ax=ax),
        lambda ax: plots.capacity(curved, ax=ax),
        lambda ax: plots.compare(run, "e2e_p99_ns", ax=ax),
        lambda ax: plots.sweep(swept, ax=ax),
        lambda ax: plots.history([run], "e2e_p99_ns", ax=ax),
    ):
        given = axes()
        assert draw(given) is given
        assert given.has_data()
    assert len(plt.get_fignums()) == 9
    assert plots.percentiles(run, "e2e").figure.number == 10  # type: ignore[union-attr]
    plt.gcf().canvas.draw()


def test_a_curve_is_the_merged_histogram_in_the_report_s_colours(run: Run) -> None:
    """The bold lines of a broker are those of its merged repeats, as the report has them."""
    drawn = plots.percentiles(run, "e2e", offered_msgs_per_s=5_000.0)
    for broker, name in (("rabbitmq", "RabbitMQ"), ("kafka", "Kafka")):
        (bold,) = [line for line in drawn.get_lines() if line.get_label() == name]
        x, y = charts.curve(run.histogram("e2e", broker=broker, offered_msgs_per_s=5_000.0))
        assert np.array_equal(bold.get_xdata(), x)
        assert np.array_equal(bold.get_ydata(), y)
        assert bold.get_color() == COLOURS[broker]
    assert len(drawn.get_lines()) == 8


def test_points_of_one_broker_are_told_apart(run: Run) -> None:
    """Where a broker has several points, each has a name and a dash of its own."""
    drawn = plots.percentiles(run, "e2e", broker="kafka", scenario="latency")
    bold = [line for line in drawn.get_lines() if not str(line.get_label()).startswith("_")]
    assert [line.get_label() for line in bold] == ["Kafka (kafka), 1,000 msg/s", "Kafka (kafka), 5,000 msg/s"]
    assert len({str(line.get_linestyle()) for line in bold}) == 2


def test_a_comparison_has_a_dot_for_each_repeat_that_counts(run: Run) -> None:
    """Struck trials are in no drawing; the figures are those of the frame."""
    drawn = plots.compare(run, "goodput_msgs_per_s", scenario="throughput", broker="kafka", durability="broker")
    (dots,) = drawn.collections
    frame = run.trials.query("scenario == 'throughput' and broker == 'kafka' and durability == 'broker' and counts")
    assert sorted(x for x, _ in np.asarray(dots.get_offsets())) == sorted(frame["goodput_msgs_per_s"])
    assert drawn.get_xlabel() == "goodput_msgs_per_s (log scale)"


def test_without_a_trial_the_timeline_is_the_worst_one(curved: Run) -> None:
    """It is the trial that a report would show first, and its slow seconds are named."""
    drawn = plots.timeline(curved)
    assert "fraction=0.9/1" in drawn.get_title(loc="left")
    assert any(text.get_text().startswith("gc pause") for text in drawn.texts)


def test_a_history_names_what_was_changed(tmp_path: Path) -> None:
    """A run that was set otherwise says so at its point."""
    rng = np.random.default_rng(1)
    for linger_ms in (0.0, 5.0):
        writer = RunWriter(tmp_path, "latency", synthetic.HEADER)
        for repeat in (1, 2):
            rate = {"kind": "fixed", "msgs_per_s": 1_000.0}
            record = synthetic.trial("kafka", "latency", repeat=repeat, rate=rate, settings={"linger_ms": linger_ms})
            synthetic.write_trial(writer, record, {"e2e": 1e6 + 1e6 * linger_ms}, rng)
        writer.finish("complete")
    drawn = plots.history(load_runs(tmp_path / "*"), "e2e_p50_ns")
    assert [text.get_text() for text in drawn.texts] == ["kafka.linger_ms: 0.0 → 5.0"]
    drawn.figure.canvas.draw()


def test_what_cannot_be_drawn_is_one_line(run: Run, swept: Run) -> None:
    """Each says what there is, or which command measures it."""
    throughput = next(each["id"] for each in run.records if each["scenario"] == "throughput")
    for draw, said in (
        (lambda: plots.histogram(Histogram()), "an empty histogram has no curve"),
        (lambda: plots.percentiles(swept), "no latency of kind 'e2e'.*closed loop"),
        (lambda: plots.timeline(swept), "no usable trial with response times"),
        (lambda: plots.timeline(run, throughput), "a closed loop has no response times"),
        (lambda: plots.curve(run), "no latency-rate curve fits; `loadgen run scenarios/capacity.py`"),
        (lambda: plots.capacity(run), "no capacity was found; `loadgen run … --set rate=search`"),
        (lambda: plots.sweep(swept, "prefetch"), "'prefetch': no sweep.*there are size_bytes of sizes"),
        (lambda: plots.compare(run, "bound_by"), "bound_by: no usable trial has it above 0"),
    ):
        with pytest.raises(ScenarioError, match=said) as caught:
            draw()
        assert "\n" not in str(caught.value)
