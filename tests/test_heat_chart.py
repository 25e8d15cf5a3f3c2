"""Latency over time as a heat map: every message is in its cell, and the trials shown belong together."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.analysis import density as density_module
from loadgen.analysis.density import Density, density
from loadgen.recorder import Recorder
from loadgen.report import heat_chart, write_report
from loadgen.report.slowest import worst
from loadgen.report.table import make_table
from loadgen.runs import Run, RunWriter, load

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TRIAL = "latency/kafka/kafka/broker-400.0/1"


def run_of(root: Path, latencies_ns: dict[int, list[int]], **more: Any) -> Run:
    """A trial with these latencies by the second in which messages were intended."""
    writer = RunWriter(root, "heat", synthetic.HEADER)
    record = synthetic.trial("kafka", "latency", rate={"kind": "fixed", "msgs_per_s": 400.0}, window_s=12.0, **more)
    writer.begin_trial(record, started_s=time.time() + synthetic.WARMUP_S)
    recorder = Recorder(["e2e"], origin_ns=0)
    for second, values in latencies_ns.items():
        when = np.full(len(values), second * synthetic.SECOND_NS, np.int64)
        recorder.record("e2e", when, np.array(values, np.int64))
    writer.add_intervals(record["id"], recorder.take(), agent="consumer0")
    writer.add_trial({**record, "latency_ns": {"e2e": {"count": 1, "p50": 1e6, "p99": 1e6, "p99_9": 1e6}}})
    return load(writer.finish("complete"))


def density_of(run: Run) -> Density:
    """Of the only trial."""
    found = density(run, run.trial(TRIAL), "e2e")
    assert found is not None
    return found


@settings(max_examples=25)
@given(
    latencies_ns=st.dictionaries(
        st.integers(-2, 14), st.lists(st.integers(0, 10**11), min_size=1, max_size=30), min_size=1
    ).filter(lambda found: any(0 <= second < 12 for second in found))
)
def test_every_message_of_the_window_is_in_the_cell_of_its_second_and_latency(
    latencies_ns: dict[int, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What lies before and after the window is in none, and a cell's edges hold its messages (to a bucket's width)."""
    found = density_of(run_of(tmp_path_factory.mktemp("heat"), latencies_ns))
    inside = {second: values for second, values in latencies_ns.items() if 0 <= second < 12}
    assert found.counts.shape == (12, len(found.edges_ns) - 1)
    for second in range(12):
        values = inside.get(second, [])
        assert found.counts[second].sum() == len(values)
        for place in np.flatnonzero(found.counts[second]):
            low, high = found.edges_ns[place], found.edges_ns[place + 1]
            assert any(low <= max(1, value) * 1.0000001 and value * (1 - 1 / 1024) < high for value in values)
    assert np.allclose(found.shares.sum(axis=1), [1.0 if inside.get(second) else 0.0 for second in range(12)])


def test_long_trials_put_intervals_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drawing has no room for a column each: none is lost."""
    monkeypatch.setattr(density_module, "COLUMNS_MAX", 5)
    found = density_of(run_of(tmp_path, {second: [1_000_000] * (second + 1) for second in range(12)}))
    assert found.column_s == 3.0
    assert found.counts.sum(axis=1).tolist() == [6, 15, 24, 33]


def test_two_bands_are_two(tmp_path: Path) -> None:
    """Half of the messages at 1 ms and half at 40 ms: both are to be seen, with nothing between them."""
    (row, *_) = density_of(run_of(tmp_path, dict.fromkeys(range(12), [1_000_000] * 9 + [40_000_000] * 9))).counts
    assert row[0] == row[-1] == 9
    assert not row[1:-1].any()


def test_a_trial_without_latencies_has_none(tmp_path: Path) -> None:
    """Nothing was recorded within its window."""
    run = run_of(tmp_path, {-1: [1_000]})
    assert density(run, run.trial(TRIAL), "e2e") is None


def test_the_worst_tail_is_shown_beside_the_other_brokers_trial_of_its_point(tmp_path: Path) -> None:
    """Both panels are of one point and one repeat: neighbours in time."""
    run = synthetic.curve_run(tmp_path)
    table = make_table(run)
    tails = worst(run, table.tails)
    shown = [record["id"] for record in heat_chart._records(run, table, tails)]
    assert shown == ["load/rabbitmq/amqp/fraction=0.9/1", "load/kafka/kafka/fraction=0.9/1"]
    (chart,) = heat_chart.draw(run, table, tails)
    assert "RabbitMQ: messages most often took" in chart.note
    assert "Kafka: messages most often took" in chart.note
    assert {whose for *_, whose in chart.marks} == {"rabbitmq", "kafka"}
    assert any(
        re.fullmatch(r"over 10 % of its second's messages: [\d.]+ ms to [\d.]+ ms at second \d+", text)
        for _, _, text, _ in chart.marks
    )
    calm = [record["id"] for record in heat_chart._records(run, table, [])]
    assert len({each.rpartition("fraction=")[2] for each in calm}) == 1, "without slow seconds: the first point"


def test_trials_of_a_few_seconds_have_no_heat_map(tmp_path: Path) -> None:
    """Four columns show nothing over time."""
    run = synthetic.compare_run(tmp_path, repeats=1)
    assert heat_chart.draw(run, make_table(run), []) == []
    assert not (write_report(run)["charts"] / "heat.svg").exists()
