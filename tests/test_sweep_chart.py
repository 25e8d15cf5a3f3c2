"""Throughput along a sweep: which charts are drawn, and what they say in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from synthetic import HEADER, trial

from loadgen.report import points as pt
from loadgen.report import sweep_chart, write_report
from loadgen.report.table import make_table
from loadgen.runs import Run, RunWriter, load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZES = (64, 1024, 16_384)


def run_of(
    root: Path, knob: str, values: tuple[Any, ...], kafka: Callable[[Any], float] | None = None, **given: Any
) -> Run:
    """Three repeats of a closed loop at each value; RabbitMQ's rate falls with it, Kafka's less."""
    writer = RunWriter(root, "sweep", HEADER)
    for repeat in (1, 2, 3):
        for place, value in enumerate(values):
            for broker, rate in (
                ("rabbitmq", 40_000 / (1 + place)),
                ("kafka", kafka(value) if kafka else 900_000 - place),
            ):
                name = f"{broker}.{knob}" if knob == "prefetch" else knob
                record = trial(broker, "sweep", repeat=repeat, goodput_msgs_per_s=rate + repeat, **given)
                record |= {"id": f"{record['id']}-{value}", "point": {name: value}}
                record["settings"] = {**record["settings"], knob: value}
                if knob == "size_bytes":
                    record["message"] = {"size_bytes": value, "compressibility": 0.0, "keys": 0}
                writer.add_trial(record)
    return load(writer.finish("complete"))


@pytest.mark.parametrize(
    ("knob", "values", "labels"),
    [
        ("compressibility", (0.0, 0.5), ("1 KiB, as", "1 KiB (compressibility 0.5), as")),
        ("keys", (0, 1000), ("1 KiB, as", "1 KiB (1,000 keys), as")),
        ("key_exponent", (0.0, 1.5), ("1 KiB (8 keys), as", "1 KiB (8 keys with exponent 1.5), as")),
        ("timeout_ms", (50.0, 250.0), ("replies within 50 ms", "replies within 250 ms")),
        ("requests_in_flight", (1, 1000), ("1 in flight each", "1,000 in flight each")),
    ],
)
def test_a_sweep_that_both_brokers_share_has_a_comparison_for_each_value(
    tmp_path: Path, knob: str, values: tuple[Any, ...], labels: tuple[str, ...]
) -> None:
    """Its points stand apart, in order, each with its label and both brokers' repeats beside each other."""
    writer = RunWriter(tmp_path, "sweep", HEADER)
    for repeat in (1, 2):
        for value in reversed(values):
            for broker in ("rabbitmq", "kafka"):
                record = trial(broker, "sweep", repeat=repeat, point={knob: value})
                record["id"] += f"-{value}"
                if knob in {"compressibility", "keys", "key_exponent"}:
                    record["message"] = {**record["message"], "keys": 8 * (knob == "key_exponent"), knob: value}
                writer.add_trial(record)
    found = make_table(load(writer.finish("complete"))).comparisons
    assert len(found) == len(values)
    for comparison, label in zip(found, labels, strict=True):
        assert label in pt.load_label(comparison.shared)
        assert comparison.ratio(pt.goodput).pairs == 2


def test_message_sizes_have_a_panel_in_messages_and_one_in_bytes(tmp_path: Path) -> None:
    """Both brokers have a line each, and the words tell every point of it."""
    (chart,) = sweep_chart.draw(make_table(run_of(tmp_path, "size_bytes", SIZES)).comparisons)
    assert "throughput against message size" in chart.title
    assert "bytes a second" in chart.svg
    assert "messages a second" in chart.svg
    for words in ("RabbitMQ: 40.0 k msg/s at 64 B", "at 1 KiB", "Kafka: 900 k msg/s", "at 16 KiB"):
        assert words in chart.note


def test_a_knob_of_one_broker_is_drawn_for_it(tmp_path: Path) -> None:
    """All knobs are small multiples of one drawing, without bytes: here a panel for each broker's own prefetch."""
    (chart,) = sweep_chart.draw(make_table(run_of(tmp_path, "prefetch", (1, 10, 100))).comparisons)
    assert chart.title == "Throughput by knob"
    assert "bytes a second" not in chart.svg
    assert chart.note.count("prefetch, ") == 2
    texts = {text for _, _, text, _ in chart.marks}
    assert "RabbitMQ: 20.0 k msg/s at prefetch 10" in texts
    assert {whose for *_, whose in chart.marks} == {"rabbitmq", "kafka"}


def test_words_and_zeros_have_places_of_their_own(tmp_path: Path) -> None:
    """A knob whose values are no numbers above 0 has a place for each, in the table's order."""
    for values in (("lz4", "none", "zstd"), (0, 5, 10)):
        run = run_of(tmp_path, "prefetch", values)
        (found,) = {sweep.values for sweep in sweep_chart.sweeps(make_table(run).comparisons)}
        assert found == values
        (chart,) = sweep_chart.draw(make_table(run).comparisons)
        assert f"20.0 k msg/s at {values[1]}" in chart.note


def test_the_scaling_law_is_drawn_and_told_where_places_share_the_work(tmp_path: Path) -> None:
    """Consumers are such places: four values give a law, whose residuals are told; three do not."""

    def kafka(places: int) -> float:
        return 100_000 * places / (1 + 0.1 * (places - 1))

    (chart,) = sweep_chart.draw(make_table(run_of(tmp_path, "consumers", (1, 2, 4, 8), kafka)).comparisons)
    assert "fitted law, Kafka" in chart.svg
    assert "scaling law: contention 0.10, crosstalk 0.000; residuals +0%, " in chart.note
    assert "fitted law, RabbitMQ" not in chart.svg, "more of them only cost"
    (chart,) = sweep_chart.draw(make_table(run_of(tmp_path, "consumers", (1, 2, 4), kafka)).comparisons)
    assert "law" not in chart.note


@pytest.mark.parametrize("values", [(64, 1024), (64,)])
def test_two_values_are_no_sweep(tmp_path: Path, values: tuple[int, ...]) -> None:
    """A pair of figures is shown better by the table."""
    assert not sweep_chart.draw(make_table(run_of(tmp_path, "size_bytes", values)).comparisons)


def test_an_open_loop_has_no_throughput_to_draw(tmp_path: Path) -> None:
    """What was offered is what was carried."""
    run = run_of(tmp_path, "size_bytes", SIZES, rate={"kind": "fixed", "msgs_per_s": 1_000.0})
    assert not sweep_chart.draw(make_table(run).comparisons)


def test_the_page_shows_it(tmp_path: Path) -> None:
    """The chart is a file of its own, and stands in the page."""
    paths = write_report(run_of(tmp_path, "size_bytes", SIZES))
    assert (paths["charts"] / "sweep-1.svg").exists()
    assert "throughput against message size" in paths["html"].read_text()
