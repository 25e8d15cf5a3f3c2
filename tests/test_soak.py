"""Long trials: what the tool keeps of them is bounded, and what drifts or grows in them is found."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from synthetic import HEADER, trial

from loadgen.analysis.drift import long_trials
from loadgen.cli import main
from loadgen.hlog import read_hlog
from loadgen.load import load_scenarios, scenario_file
from loadgen.plan import INTERVALS_MAX, PROFILES, make_plan
from loadgen.recorder import Recorder
from loadgen.report import render_run, write_report
from loadgen.retention import is_limited, kept_bytes_max
from loadgen.runs import RunWriter, load
from loadgen.seconds import BEFORE_FILE, SECONDS_FILE, TURN_S
from loadgen.series import Gathered

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.plan import Trial
    from loadgen.runs import Run

SECOND_NS = 1_000_000_000
LENGTH_S, INTERVAL_S = 3_600, 5


def soak_trial() -> Trial:
    """A trial of the soak scenario, as it is in the quick profile."""
    (scenario,) = load_scenarios(scenario_file("soak"))
    return make_plan([scenario], PROFILES["quick"], repeats=1).trials[0]


@pytest.mark.parametrize(
    ("duration_s", "interval_s"), [(4, 1), (600, 1), (1_200, 2), (4 * 3_600, 30), (7 * 86_400, 1_200)]
)
def test_no_trial_keeps_more_intervals_than_a_short_one(duration_s: float, interval_s: int) -> None:
    """Ten minutes are kept by the second, hours by longer intervals, and never more than `INTERVALS_MAX` of them."""
    long = replace(soak_trial(), duration_s=duration_s, warmup_s=2.0)
    assert long.interval_s == interval_s
    assert duration_s / long.interval_s <= INTERVALS_MAX


KAFKA = {"partitions": 2, "retention_bytes": 1 << 20, "retention_ms": None, "segment_bytes": 1 << 20}
STREAM = {"partitions": 2, "max_length_bytes": None, "max_age": "2h", "max_segment_size_bytes": 1_000_000}


@pytest.mark.parametrize(
    ("kept", "settings", "expected"),
    [
        ("kafka", KAFKA, (4 << 20) + 301 * 1e6),
        ("kafka", {**KAFKA, "retention_bytes": -1, "retention_ms": 1_000}, (2 << 20) + 302 * 1e6),
        ("kafka", {**KAFKA, "retention_bytes": None}, None),
        ("stream", STREAM, 7_200 * 1e6 + 2_000_000),
        ("stream", {**STREAM, "max_length_bytes": 5_000_000}, 12_000_000),
        ("stream", {**STREAM, "max_age": None}, None),
        ("rabbitmq", {"max_length": 1_000}, 2 * 3 * 1_000 * 1_064),
        ("rabbitmq", {"max_length_bytes": 1_000, "queues": 2}, 2 * 6 * 1_000),
        ("rabbitmq", {"message_ttl_ms": 500}, 1e6),
        ("rabbitmq", {"message_ttl_ms": 500, "queue_type": "quorum"}, 1e6 + (1 << 30)),
        ("rabbitmq", {"max_length": None}, None),
    ],
)
def test_what_a_limit_keeps_is_known_beforehand(kept: str, settings: dict[str, Any], expected: float | None) -> None:
    """The limit itself, a segment of each partition, and what comes in until the broker looks; the least of several."""
    found = kept_bytes_max(kept, settings, subscribers=3, size_bytes=1_064, rate_bytes_per_s=1e6)
    assert found == (None if expected is None else pytest.approx(expected))
    assert is_limited(settings) is (expected is not None)


def test_what_a_limit_hands_to_dead_letters_is_not_gone() -> None:
    """A queue's limit moves messages to its dead-letter queue, which has none: then nothing bounds what is kept."""
    settings = {"max_length": 1_000, "dead_letter": True}
    assert kept_bytes_max("rabbitmq", settings, subscribers=1, size_bytes=1_064, rate_bytes_per_s=1e6) is None


def test_a_plan_of_hours_counts_what_is_kept_and_not_what_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    """Four hours into a log with a limit need its limit; `--duration` sets the window, of one repeat."""
    assert main(["plan", "scenarios/soak.py", "--duration", "4h", "--broker", "kafka"]) == 0
    line, total = capsys.readouterr().out.splitlines()
    assert "2 + 14400 s" in line
    assert float(line.rpartition("at most ")[2].removesuffix(" GB")) < 1.0, "and not the 30 GB that are sent"
    assert total.startswith("1 trials, about 240")


@pytest.mark.parametrize("text", ["4x", "0", "-1h", "8d", "h", "nan"])
def test_a_duration_that_is_none_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What was expected, and the status of a usage error."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", "scenarios/soak.py", f"--duration={text}"])
    assert ended.value.code == 64
    assert "expected a time such as 90s, 20m, 4h" in capsys.readouterr().err


def write_hour(root: Path, *, slow_per_hour: float = 0.0, leak_bytes_per_s: float = 0.0, limit: bool = True) -> Run:
    """An hour of invented messages, a hundred a second, whose latency and whose consumers' memory may grow."""
    rng = np.random.default_rng(11)
    writer = RunWriter(root, "soak", HEADER)
    settings = {"partitions": 1, "retention_bytes": 1 << 20 if limit else None}
    record = trial(
        "kafka", "soak", rate={"kind": "fixed", "msgs_per_s": 100.0, "to_msgs_per_s": None}, settings=settings,
        window_s=float(LENGTH_S), interval_s=float(INTERVAL_S), sent=100 * LENGTH_S, received=100 * LENGTH_S,
    )  # fmt: skip
    writer.begin_trial({**record, "latency_ns": {}}, started_s=time.time() + 2, interval_s=INTERVAL_S)
    recorder, gathered = Recorder(["e2e"], origin_ns=0), Gathered(INTERVAL_S)
    for second in range(-2, LENGTH_S):
        when = second * SECOND_NS + np.arange(100) * (SECOND_NS // 100)
        values = 1e6 * (1 + slow_per_hour * second / 3_600) * rng.lognormal(0, 0.3, 100)
        recorder.record("e2e", when, values.astype(np.int64))
        writer.add_intervals(record["id"], recorder.take(), agent="consumer0")
        row = gathered.add("consumer0", {"received": 100, "elapsed_s": second + 3.0})
        if row is not None:
            writer.add_series([{"trial": record["id"], "agent": "consumer0", **row}])
    writer.add_series(
        {
            "trial": record["id"],
            "agent": "observer",
            "elapsed_s": 2.0 + at_s,
            "received_msgs_per_s": 100 + rng.normal(0, 1),
            "consumers_rss_bytes": 90e6 + leak_bytes_per_s * at_s + rng.normal(0, 1e5),
            "broker_data_bytes": 5_000_000,
            "retained_msgs": min(100 * at_s, 1_000) if limit else 100 * at_s,
            "forgotten_msgs": max(0, 100 * at_s - 1_000) if limit else 0,
        }
        for at_s in range(INTERVAL_S, LENGTH_S + 1, INTERVAL_S)
    )
    writer.add_trial(record)
    return load(writer.finish("complete"))


@pytest.fixture(scope="module")
def drifting(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An hour in which latency rises by half and consumers leak 10 MB."""
    return write_hour(tmp_path_factory.mktemp("runs"), slow_per_hour=0.5, leak_bytes_per_s=10e6 / 3_600)


def test_an_hour_is_kept_in_few_lines_that_hold_every_message(drifting: Run) -> None:
    """The log and the series have an interval a line; the histograms hold all messages of the window, none twice."""
    (record,) = drifting.records
    starts = [interval.start_s for interval in drifting.within(record["id"], "e2e")]
    assert len(set(starts)) == len(starts) == LENGTH_S // INTERVAL_S
    assert drifting.histogram("e2e", trial=record["id"]).count == 100 * LENGTH_S
    rows = drifting.samples[drifting.samples["agent"] == "consumer0"]
    assert rows["received"].sum() >= 100 * (LENGTH_S - INTERVAL_S)
    assert len(rows) <= LENGTH_S / INTERVAL_S + 1


def test_the_last_minutes_are_there_by_the_second_and_those_before_are_gone(drifting: Run) -> None:
    """Two files of five minutes, whatever the length: each second once, up to the last one."""
    lines = [line for name in (BEFORE_FILE, SECONDS_FILE) for line in read_hlog(drifting.path / name)]
    begin_s = drifting.records[0]["hlog_start_s"]
    seconds = [round(line.start_s - begin_s) for line in lines]
    assert seconds == list(range(LENGTH_S - 2 * TURN_S, LENGTH_S))
    assert {line.histogram().count for line in lines} == {100}
    assert sorted(each.name for each in drifting.path.glob("seconds*")) == [SECONDS_FILE, BEFORE_FILE]


def test_what_drifts_is_found_with_its_interval(drifting: Run) -> None:
    """Latency that rises by half and memory by 10 MB within the hour: both intervals hold the true slope."""
    (found,) = long_trials(drifting)
    by_name = {each.name: each for each in found.drifts}
    assert by_name["rate"].direction == "no drift shown"
    for name, true_share in (("p50", 0.5 / 1.275), ("memory of consumers", 10e6 / 95.5e6)):
        drift = by_name[name]
        assert drift.direction == "rises"
        assert drift.low is not None
        assert drift.high is not None
        assert drift.low < true_share < drift.high
    assert by_name["p99"].direction == "rises"


def test_what_a_limit_removed_is_told_by_the_brokers_own_count(drifting: Run, tmp_path: Path) -> None:
    """With a limit that works, and without one, where nothing is ever removed."""
    (found,) = long_trials(drifting)
    assert found.kept is not None
    assert (found.kept.max_msgs, found.kept.last_msgs) == (1_000, 1_000)
    assert found.kept.forgotten_msgs == 100 * LENGTH_S - 1_000
    endless = write_hour(tmp_path, limit=False)
    (other,) = long_trials(endless)
    assert other.kept is not None
    assert (other.kept.last_msgs, other.kept.forgotten_msgs) == (100 * LENGTH_S, 0)
    assert "without a limit nothing is ever removed" in " ".join(render_run(endless).split())


def test_the_report_tells_what_drifts(drifting: Run) -> None:
    """In the first sentences, in a table and in a drawing; in the terminal and in Markdown too."""
    html = write_report(drifting)["html"].read_text()
    for text in (html, render_run(drifting), (drifting.path / "report.md").read_text()):
        assert "Over time" in text
        assert "memory of consumers" in text
        assert "p50 rises by" in " ".join(text.split())
        assert "the limit works" in " ".join(text.split())
    assert (drifting.path / "charts/soak.svg").exists()
    assert 'id="soak-' in html


def test_short_trials_say_nothing_of_hours(tmp_path: Path) -> None:
    """Below five minutes there is no drift to be told, and no file of seconds: its intervals are seconds."""
    writer = RunWriter(tmp_path, "short", HEADER)
    record = trial("kafka")
    writer.begin_trial(record, started_s=time.time())
    recorder = Recorder(["e2e_service"], origin_ns=0)
    recorder.record("e2e_service", np.arange(100), np.full(100, 1_000_000))
    writer.add_intervals(record["id"], recorder.take(), agent="consumer0")
    writer.add_trial(record)
    run = load(writer.finish("complete"))
    assert not long_trials(run)
    assert "Over time" not in render_run(run)
    assert not list(run.path.glob("seconds*"))
