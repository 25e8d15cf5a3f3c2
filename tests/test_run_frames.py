"""What a notebook asks a run for: frames, merged histograms and percentiles, and one line where there is no answer."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

import loadgen
from loadgen.analysis.history import histories, history
from loadgen.errors import ScenarioError
from loadgen.histogram import Histogram
from loadgen.record import completed, point_label
from loadgen.recorder import Recorder
from loadgen.run import Run
from loadgen.runs import RunWriter, load, load_runs

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

RESOLUTION = 1 / 1024
"""How wide a bucket is at most, as a share of its value."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A comparison of invented numbers, one of whose trials is invalid."""
    return synthetic.compare_run(tmp_path_factory.mktemp("results"), repeats=3)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Capacity searches and curves of invented numbers."""
    return synthetic.curve_run(tmp_path_factory.mktemp("results"), repeats=2)


def write_values(root: Path, by_trial: dict[str, list[list[int]]]) -> Run:
    """A run in which trial `id` of Kafka recorded these latencies (ns), a list for each of its agents."""
    writer = RunWriter(root, "values", synthetic.HEADER)
    for number, (trial_id, agents) in enumerate(by_trial.items(), 1):
        record = synthetic.trial("kafka", "values", repeat=number) | {"id": trial_id}
        writer.begin_trial(record, started_s=time.time())
        whole = Histogram()
        for agent, values in enumerate(agents):
            recorder = Recorder(["e2e"], origin_ns=0)
            for second, value in enumerate(values):
                moment = second % int(synthetic.WINDOW_S) * synthetic.SECOND_NS
                recorder.record("e2e", moment, np.array([value], np.int64))
            writer.add_intervals(trial_id, recorder.take(), agent=f"consumer{agent}")
            if values:
                whole.add(np.array(values, np.int64))
        writer.add_trial(record | {"latency_ns": {"e2e": whole.summary()}})
    return load(writer.finish("complete"))


# --- trials ---


def test_trials_have_a_row_each_with_units_in_the_names(run: Run) -> None:
    """Every trial is a row, the invalid one too, which does not count; rates, percentiles and knobs are columns."""
    frame: pd.DataFrame = run.trials
    assert list(frame["trial"]) == [record["id"] for record in run.records]
    assert list(frame.loc[~frame["counts"], "verdict"]) == ["invalid"]
    first = run.records[0]
    row = frame.iloc[0]
    assert row["e2e_p99_9_ns"] == first["latency_ns"]["e2e"]["p99_9"]
    assert row["cpu_broker_s"] == first["cpu_s"]["broker"]
    assert (row["rabbitmq.prefetch"], row["offered_msgs_per_s"]) == (100, 1_000.0)
    assert frame.loc[frame["broker"] == "kafka", "rabbitmq.prefetch"].isna().all()
    assert str(frame["created_utc"].dtype).startswith("datetime64")


def test_a_trial_known_only_by_its_intervals_has_a_row(tmp_path: Path) -> None:
    """Nothing but an id is a row of missing values, and no error."""
    writer = RunWriter(tmp_path, "bare", synthetic.HEADER)
    writer.add_trial({"id": "a/1"})
    bare = load(writer.finish("complete"))
    assert bare.trials.loc[0, "trial"] == "a/1"
    assert bare.series.empty
    assert "1 trials" in repr(bare)


def test_points_are_the_same_in_every_repeat_and_differ_by_load() -> None:
    """Repeats share a point; another rate, size, class or swept value is another one, A/B's number of a pair is not."""
    base = completed(synthetic.trial("kafka", "latency", rate={"kind": "fixed", "msgs_per_s": 1_000.0}))
    assert point_label(base) == point_label(base | {"repeat": 2, "seed": 9, "point": {"pair": 3}})
    others: list[dict[str, Any]] = [
        {"rate": {"kind": "fixed", "msgs_per_s": 2_000.0}},
        {"rate": {"kind": "poisson", "msgs_per_s": 1_000.0}},
        {"message": {"size_bytes": 100}},
        {"durability": "flushed"},
        {"point": {"kafka.linger_ms": 5}},
    ]
    assert len({point_label(base | each) for each in [{}, *others]}) == 6


# --- histograms ---


@given(st.lists(st.lists(st.integers(0, 10**12), max_size=30), min_size=1, max_size=5))
def test_merged_histograms_are_those_of_the_pooled_samples(parts: list[list[int]]) -> None:
    """Counts, extremes and sums add up, and percentiles of the merged are those of all samples to within a bucket."""
    merged = Histogram()
    for values in parts:
        one = Histogram()
        one.add(np.array(values, np.int64))
        merged.merge(one)
    pooled = np.sort(np.array([value for values in parts for value in values], np.int64))
    assert merged.count == len(pooled)
    if not len(pooled):
        return
    assert (merged.min, merged.max, merged.sum) == (pooled[0], pooled[-1], int(pooled.sum()))
    for percent in (0.0, 50.0, 90.0, 99.0, 99.9, 100.0):
        rank = max(1, -(-int(percent * 10) * len(pooled) // 1000))
        exact = int(pooled[rank - 1])
        assert exact <= merged.percentile(percent) <= exact * (1 + RESOLUTION) + 1


def test_a_run_merges_what_its_trials_and_agents_recorded(tmp_path: Path) -> None:
    """Over trials, agents and seconds no message is lost or doubled on the way through the files."""
    rng = np.random.default_rng(3)
    values = {f"values/{number}": [rng.integers(1, 10**9, 40).tolist() for _ in range(2)] for number in range(1, 4)}
    values["values/4"] = [[7]]
    merged = write_values(tmp_path, values).histogram("e2e", broker="kafka")
    pooled = np.sort([value for agents in values.values() for each in agents for value in each])
    assert merged.count == len(pooled) == 241
    for percent, rank in ((50.0, 121), (99.0, 239), (100.0, 241)):
        assert pooled[rank - 1] <= merged.percentile(percent) <= pooled[rank - 1] * (1 + RESOLUTION)


def test_only_trials_that_count_are_merged_unless_told(tmp_path: Path) -> None:
    """An invalid trial is left out; it is there when asked for, or by its id."""
    writer = RunWriter(tmp_path, "demo", synthetic.HEADER)
    rng = np.random.default_rng(1)
    for repeat, status in ((1, "valid"), (2, "invalid")):
        record = synthetic.trial("kafka", repeat=repeat)
        record["verdict"] = {"status": status, "bound_by": "broker", "reasons": [f"it is {status}"]}
        synthetic.write_trial(writer, record, {"e2e_service": 1e6}, rng)
    found = load(writer.finish("complete"))
    one, two = (found.histogram("e2e_service", trial=record["id"]).count for record in found.records)
    assert found.histogram("e2e_service").count == one
    assert found.histogram("e2e_service", struck=True).count == one + two
    with pytest.raises(ScenarioError, match=r"repeat 2: 1 trials, every one struck out \(it is invalid\); struck=True"):
        found.histogram("e2e_service", repeat=2)


def test_merging_several_points_is_told(run: Run) -> None:
    """Percentiles over different loads are nobody's, so that a warning names the points; one point has none."""
    with pytest.warns(UserWarning, match=r"merged over 2 points \(latency/kafka/kafka/broker/msgs_per_s=1000"):
        both = run.histogram("e2e", broker="kafka", scenario="latency")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = [run.histogram("e2e", broker="kafka", offered_msgs_per_s=rate).count for rate in (1_000.0, 5_000.0)]
    assert both.count == sum(counts)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"broker": "kafak"}, r"no trial has broker 'kafak'; there are kafka, rabbitmq$"),
        ({"brokr": "kafka"}, r"brokr: no column of trials; expected one such as broker"),
        ({"trial": "nowhere/1"}, r"no trial has trial 'nowhere/1'; there are clients/kafka/confluent/broker-max/1"),
        (
            {"kind": "e2e", "scenario": "throughput"},
            r"no latency of kind 'e2e' .*closed loop.*there are ack_service, e2",
        ),
        ({"kind": "rtt"}, r"no latency of kind 'rtt' in these trials; there are ack, ack_service, e2e"),
        ({"durability": "replicated"}, r"no trial has durability 'replicated'; there are broker, flushed, none"),
        ({"purpose": "probe"}, r"no trial has purpose 'probe'; there is measure"),
    ],
)
def test_what_cannot_be_answered_lists_what_can(run: Run, where: dict[str, Any], said: str) -> None:
    """A mistake is one line that names the choices."""
    with pytest.raises(ScenarioError, match=said) as caught:
        run.histogram(**where)
    assert "\n" not in str(caught.value)


def test_percentiles_are_those_of_the_merged_repeats(run: Run) -> None:
    """One row a point, with the percentiles of its merged histogram; columns are named as everywhere."""
    frame = run.percentiles("e2e", (50, 99, 99.9), durability="broker", broker=["rabbitmq", "kafka"])
    assert list(frame.columns[-5:]) == ["mean_ns", "p50_ns", "p99_ns", "p99_9_ns", "max_ns"]
    assert len(frame) == 4
    assert set(frame["repeats"]) == {3}
    kafka = frame[(frame["broker"] == "kafka") & (frame["offered_msgs_per_s"] == 1_000)].iloc[0]
    merged = run.histogram("e2e", broker="kafka", offered_msgs_per_s=1_000.0)
    assert (kafka["count"], kafka["p99_9_ns"]) == (merged.count, merged.percentile(99.9))


def test_a_search_s_own_trials_are_in_no_figure_unless_named(searched: Run) -> None:
    """Probes of a capacity search are rows of `trials`, and are merged only when they are asked for."""
    assert set(searched.trials["purpose"]) >= {"probe", "measure"}
    assert {record["purpose"] for record in searched.select()} == {"measure"}
    assert searched.select(purpose="probe", broker="kafka")


# --- series ---


def test_series_have_a_row_a_second_of_each_window(searched: Run) -> None:
    """Seconds of a trial's window, whose counts are those of the trial's own summary; the slow ones stand out."""
    frame = searched.series
    record = next(
        each for each in searched.records if each["broker"] == "rabbitmq" and each["point"] == {"fraction": 0.9}
    )
    rows = frame[frame["trial"] == record["id"]]
    assert list(rows["at_s"]) == list(range(12))
    assert rows["e2e_count"].sum() == record["latency_ns"]["e2e"]["count"]
    assert rows["e2e_max_ns"].max() == record["latency_ns"]["e2e"]["max"]
    assert set(rows.nlargest(2, "e2e_p99_ns")["at_s"]) == {3.0, 8.0}
    kept, fresh = (each.histogram("e2e", trial=record["id"]) for each in (searched, load(searched.path)))
    assert kept.summary() == fresh.summary()
    assert (kept.counts == fresh.counts).all()


def test_series_have_the_observer_beside_the_latencies(tmp_path: Path) -> None:
    """A sample of the observer stands in the second whose middle it covers, and no agent's row does."""
    writer = RunWriter(tmp_path, "demo", synthetic.HEADER)
    record = synthetic.trial("kafka", "latency")
    synthetic.write_trial(writer, record, {"e2e": 1e6}, np.random.default_rng(1))
    writer.add_series(
        [
            {"trial": record["id"], "agent": "observer", "elapsed_s": second + 1.0, "depth_msgs": 10 * second}
            for second in range(6)
        ]
    )
    series = load(writer.finish("complete")).series
    assert list(series["depth_msgs"]) == [20.0, 30.0, 40.0, 50.0]  # two seconds of warm-up before the window's four
    assert "received" not in series.columns


# --- runs ---


def test_load_runs_finds_each_run_once_and_in_order(tmp_path: Path) -> None:
    """Folders that fit, the oldest first; `latest` is no further run, and what is none is passed over."""
    paths = [RunWriter(tmp_path, name, synthetic.HEADER).finish("complete") for name in ("b", "a")]
    (tmp_path / "README.md").write_text("no run")
    assert [run.path for run in load_runs(f"{tmp_path}/*")] == [path.resolve() for path in paths]
    assert [run.path for run in load_runs(tmp_path / "latest")] == [paths[1].resolve()]
    with pytest.raises(ScenarioError, match=r"nothing-\*: no run there; expected a pattern"):
        load_runs(tmp_path / "nothing-*")


@pytest.fixture
def three_runs(tmp_path: Path) -> list[Run]:
    """The same point three times; in the last run a knob was set otherwise, and it is slower."""
    rng = np.random.default_rng(1)
    for median_ns, linger_ms in ((1e6, 0.0), (1e6, 0.0), (6e6, 5.0)):
        writer = RunWriter(tmp_path, "latency", synthetic.HEADER)
        for repeat in (1, 2, 3):
            rate = {"kind": "fixed", "msgs_per_s": 1_000.0}
            record = synthetic.trial("kafka", "latency", repeat=repeat, rate=rate, settings={"linger_ms": linger_ms})
            synthetic.write_trial(writer, record, {"e2e": median_ns}, rng)
        writer.finish("complete")
    return load_runs(tmp_path / "*")


def test_a_history_shows_the_step_and_what_was_changed(three_runs: list[Run]) -> None:
    """Each run has its median and interval; the run that was set otherwise says so, and lies above the others."""
    (told,) = histories(three_runs, "e2e_p50_ns")
    assert [each.changed for each in told.moments] == [(), (), ("kafka.linger_ms: 0.0 → 5.0",)]
    assert [each.estimate.n for each in told.moments] == [3, 3, 3]
    low = told.moments[2].estimate.low
    high = max(each.estimate.high or 0 for each in told.moments[:2])
    assert low is not None
    assert low > high
    frame = history(three_runs, "e2e_p50_ns", broker="kafka")
    assert frame["step"].isna().tolist() == [True, False, False]
    assert abs(frame["step"][2] / 6 - 1) < 0.05
    assert frame["step_low"][2] < 6 < frame["step_high"][2] * 1.05
    assert frame["is_shown"].tolist()[::2] == [False, True]


def test_a_history_of_nothing_is_one_line(three_runs: list[Run]) -> None:
    """A broker or a quantity that no run has is told as it is for one run."""
    with pytest.raises(ScenarioError, match="no trial has broker 'rabbitmq'; there is kafka"):
        histories(three_runs, broker="rabbitmq")
    with pytest.raises(ScenarioError, match="bound_by: no trial of these runs has it as a number"):
        histories(three_runs, "bound_by")


# --- how it shows itself ---


def test_a_run_shows_itself_in_a_few_lines(run: Run) -> None:
    """State, trials by verdict, brokers and machine, as text and as a small table that escapes what it shows."""
    text = repr(run)
    assert text.startswith("<Run ")
    assert "25 valid, 6 unknown, 1 invalid" in text or "valid" in text
    assert "rabbitmq 4.3.6, kafka 4.3.1" in text
    assert len(text) < 400
    broken = Run(run.path, {**run.header, "id": "<b>"}, run.records, "partial", "cut & short")
    assert "&lt;b&gt;" in broken._repr_html_()
    assert "cut &amp; short" in broken._repr_html_()


def test_the_package_loads_none_of_it_until_it_is_asked() -> None:
    """`import loadgen` loads no numpy, pandas or matplotlib; every name is there, and wrong ones are told."""
    code = "import sys, loadgen; print(sorted({'numpy', 'pandas', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    for name in loadgen.__all__:
        assert getattr(loadgen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'load_rum'"):
        _ = loadgen.load_rum  # type: ignore[attr-defined]
