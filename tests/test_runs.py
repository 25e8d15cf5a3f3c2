"""Runs on disk: what is written is what is read, also after a kill, a full disk or a second run in the same second."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import synthetic

import loadgen.runs as runs_module
from loadgen.errors import HostError, ScenarioError
from loadgen.histogram import Histogram
from loadgen.hlog import read_base_time, read_hlog
from loadgen.record import LATENCY_KINDS, completed
from loadgen.recorder import Recorder
from loadgen.redaction import refuse_secrets
from loadgen.runs import RunWriter, load

PACKAGE = Path(runs_module.__file__).parent
SCHEMA = json.loads((PACKAGE / "run.schema.json").read_text())
SECOND_NS = synthetic.SECOND_NS


def document(path: Path) -> dict[str, Any]:
    """A run's run.json as anybody would read it."""
    found: dict[str, Any] = json.loads((path / "run.json").read_text())
    return found


def deltas(values_ns: dict[int, list[int]], kind: str = "e2e") -> list[Any]:
    """Interval deltas of given durations, by interval."""
    recorder = Recorder([kind], origin_ns=0)
    for interval, values in values_ns.items():
        recorder.record(kind, interval * SECOND_NS, np.array(values, np.int64))
    return recorder.take()


@pytest.fixture
def writer(tmp_path: Path) -> RunWriter:
    """A fresh run under the test's own root."""
    return RunWriter(tmp_path, "demo", synthetic.HEADER)


def test_finished_run_is_read_as_it_was_written(writer: RunWriter, tmp_path: Path) -> None:
    """Header, trials and environment come back, under the folder, the id and `latest`."""
    record = synthetic.trial("kafka", goodput_msgs_per_s=np.float64(1234.5))
    writer.add_trial(record)
    path = writer.finish("complete")
    for run in (load(path), load(writer.id, tmp_path), load("latest", tmp_path), load(path / "run.json")):
        assert (run.id, run.status, run.path) == (writer.id, "complete", path.resolve())
        assert run.environment == synthetic.HEADER["environment"]
        assert run.trial(record["id"])["goodput_msgs_per_s"] == 1234.5
        assert run.header["brokers"]["kafka"]["version"] == "4.3.1"
    assert re.fullmatch(r"\d{8}T\d{6}Z-demo", writer.id)
    assert (tmp_path / "latest").readlink() == Path(writer.id)


def test_every_stage_of_a_run_keeps_the_schema(tmp_path: Path) -> None:
    """run.json is a valid document when the run begins, while it lasts, and at its end."""
    stages = []
    writer = RunWriter(tmp_path, "demo", synthetic.HEADER)
    stages.append(document(writer.path))
    writer.begin_trial({"id": "a/b/1", "scenario": "a", "broker": "kafka"}, started_s=time.time())
    stages.append(document(writer.path))
    writer.add_trial({"id": "a/b/1", "status": "failed", "error": "the broker went away"})
    stages.append(document(writer.path))
    writer.finish("partial", "interrupted")
    stages += [document(writer.path), document(synthetic.compare_run(tmp_path, repeats=1).path)]
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    for stage in stages:
        validator.validate(stage)


def test_schema_refuses_what_it_does_not_document(writer: RunWriter) -> None:
    """A trial's field that the schema does not know is a mistake that a test finds."""
    writer.add_trial({"id": "a/1", "invented_field": 1})
    with pytest.raises(jsonschema.ValidationError, match="invented_field"):
        jsonschema.validate(document(writer.path), SCHEMA)


def test_unknown_fields_are_null_and_never_absent() -> None:
    """A record says nothing in the fields that nobody gave, and every documented field is there."""
    record = completed({"id": "a/1", "driver": "confluent", "cpu_s": {"broker": 1.0}, "error": None})
    assert set(SCHEMA["properties"]["trials"]["items"]["properties"]) == set(record)
    assert record["cpu_s"] == {"producers": None, "consumers": None, "broker": 1.0}
    assert record["latency_ns"] == dict.fromkeys(LATENCY_KINDS)
    assert (record["driver_kind"], record["acked"], record["errors"]) == ("client", None, {})


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that begin in the same second do not share or overwrite anything."""
    monkeypatch.setattr(runs_module.time, "time", lambda: 1_700_000_000.0)
    ids = [RunWriter(tmp_path, "demo", {}).id for _ in range(3)]
    assert ids == [f"20231114T221320Z-demo{suffix}" for suffix in ("", "-2", "-3")]


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../up", "-x"])
def test_names_that_are_no_folder_are_refused(tmp_path: Path, name: str) -> None:
    """A run's name becomes a folder's, and never leads out of the root."""
    with pytest.raises(ScenarioError, match="run name"):
        RunWriter(tmp_path, name, {})


def test_long_names_are_cut(tmp_path: Path) -> None:
    """A run of very many scenarios still has a folder."""
    assert RunWriter(tmp_path, "x" * 500, {}).path.is_dir()


def test_root_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A root that is a file is told as the host's fault, in one line."""
    root = tmp_path / "file"
    root.write_text("")
    with pytest.raises(HostError, match="cannot be written") as caught:
        RunWriter(root, "demo", {})
    assert "\n" not in str(caught.value)


# --- histograms ---


def test_histogram_is_of_the_measured_window_over_all_agents(writer: RunWriter) -> None:
    """Warm-up and what comes after the window stay out; agents are added up; the largest value is exact."""
    record = {"id": "a/kafka/1", "window_s": 2.0}
    writer.begin_trial(record, started_s=time.time() + 5)
    writer.add_intervals("a/kafka/1", deltas({-1: [9_000_001], 0: [1_000], 1: [2_000_123]}), agent="consumer0")
    writer.add_intervals("a/kafka/1", deltas({1: [3_000], 2: [9_000_002]}), agent="consumer1")
    writer.add_intervals("a/kafka/1", deltas({0: [5]}, kind="ack"), agent="producer0")
    writer.add_trial(record)
    run = load(writer.finish("complete"))
    merged = run.histogram("e2e", trial="a/kafka/1")
    assert (merged.count, merged.max) == (3, 2_000_123)
    assert run.histogram("ack", trial="a/kafka/1").count == 1
    assert run.histogram("schedule_lag", trial="a/kafka/1").count == 0
    assert {each.agent for each in run.intervals(kind="e2e")} == {"consumer0", "consumer1"}
    assert sorted({round(each.start_s) for each in run.intervals("a/kafka/1", "e2e")}) == [-1, 0, 1, 2]


def test_intervals_are_written_once_old_and_stragglers_still_count(writer: RunWriter) -> None:
    """An interval is held until it is 3 s old; what comes for it later is a further line of the same tag."""
    log = writer.path / "histograms.hlog"
    writer.begin_trial({"id": "a/1", "window_s": 10.0}, started_s=time.time())
    for interval in range(3):
        writer.add_intervals("a/1", deltas({interval: [100 + interval]}), agent="c0")
    assert not log.exists()
    writer.add_intervals("a/1", deltas({3: [1]}), agent="c0")
    writer.add_intervals("a/1", deltas({0: [7]}), agent="c0")
    lines = list(read_hlog(log))
    assert [(each.tag, each.histogram().count) for each in lines] == [("a/1/e2e/c0", 1)] * 2
    writer.add_trial({"id": "a/1", "window_s": 10.0})
    assert load(writer.finish("complete")).histogram("e2e", trial="a/1").count == 5


def test_other_tools_find_absolute_times_in_the_log(writer: RunWriter) -> None:
    """The log's base time plus an interval's start is when that interval was."""
    started_s = time.time() + 7
    writer.begin_trial({"id": "a/1", "window_s": 2.0}, started_s=started_s)
    writer.add_intervals("a/1", deltas({1: [5]}), agent="c0")
    writer.add_trial({"id": "a/1", "window_s": 2.0})
    log = writer.finish("complete") / "histograms.hlog"
    assert read_base_time(log) + next(read_hlog(log)).start_s == pytest.approx(started_s + 1, abs=0.01)


def test_repeats_merge_exactly(tmp_path: Path) -> None:
    """The histogram read back is the one recorded, bucket for bucket."""
    run = synthetic.compare_run(tmp_path, repeats=1)
    record = next(each for each in run.records if each["latency_ns"]["e2e"])
    found = run.histogram("e2e", trial=record["id"]).summary()
    for name in ("count", "p50", "p90", "p99", "p99_9", "max"):
        assert found[name] == record["latency_ns"]["e2e"][name]


# --- series ---


def test_series_is_a_frame_with_every_column(writer: RunWriter) -> None:
    """Rows of different columns make one frame; what a row lacks, or what is no number, is null."""
    writer.add_series([{"agent": "p0", "sent": 1}, {"agent": "observer", "cpu_share": np.float64(0.5)}])
    writer.add_series([{"agent": "p0", "sent": 2, "lag_s": float("nan")}])
    run = load(writer.finish("complete"))
    assert (run.path / "series.parquet").exists()
    assert not (run.path / "series.jsonl").exists()
    assert run.samples["sent"].dropna().tolist() == [1, 2]
    assert run.samples["cpu_share"].tolist()[1] == 0.5
    assert run.samples["lag_s"].isna().all()


def test_column_of_mixed_types_costs_nothing_but_its_type(writer: RunWriter) -> None:
    """A column whose type changes is kept as text, and the others keep theirs."""
    writer.add_series([{"a": 1, "b": 1}, {"a": "one", "b": 2}, {"a": None, "b": None}])
    frame = load(writer.finish("complete")).samples
    assert frame["a"].tolist()[:2] == ["1", "one"]
    assert frame["b"].tolist()[:2] == [1, 2]


def test_run_without_series_has_an_empty_frame(writer: RunWriter) -> None:
    """No rows are no error."""
    assert load(writer.finish("complete")).samples.empty


# --- runs that did not end well ---

KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
import synthetic, test_runs
from loadgen.runs import RunWriter
writer = RunWriter(__import__("pathlib").Path(sys.argv[1]), "demo", synthetic.HEADER)
writer.add_trial(synthetic.trial("kafka"))
record = {**synthetic.trial("rabbitmq"), "latency_ns": {}}
writer.begin_trial(record, started_s=time.time() + 1)
for interval in range(-1, 6):
    writer.add_intervals(record["id"], test_runs.deltas({interval: [1000, 2000]}), agent="c0")
    writer.add_series([{"trial": record["id"], "interval": interval, "received": 2}])
writer.add_intervals("never/announced/1", test_runs.deltas({0: [7], 9: [8]}), agent="c0")
print(record["id"], flush=True)
time.sleep(600)
"""


def test_killed_run_keeps_what_was_measured(tmp_path: Path) -> None:
    """Kill -9 leaves a run that loads as partial: done trials whole, the one in hand with its written latencies."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        in_hand = process.stdout.readline().strip()
        path = next(tmp_path.glob("*-demo"))
        alive = load(path)
        os.kill(process.pid, signal.SIGKILL)
    with (path / "histograms.hlog").open("a") as log, (path / "series.jsonl").open("a") as series:
        log.write("Tag=never/announced/1/e2e/c0,3.0,1.0,0.1,HISTFAAA")
        series.write('{"trial": "torn')
    run = load(path)
    assert (alive.status, run.status) == ("running", "partial")
    assert [each["status"] for each in run.records] == ["complete", "partial", "partial"]
    # Seven intervals of two messages: warm-up is not measured, and the three youngest were not old enough.
    assert run.trial(in_hand)["latency_ns"]["e2e"]["count"] == 6
    assert run.trial(in_hand)["settings"] == {"prefetch": 100}
    assert run.trial("never/announced/1")["verdict"]["status"] == "unknown"
    assert len(run.samples) == 7
    assert (path / "series.parquet").exists()
    jsonschema.validate({**run.header, "trials": run.records}, SCHEMA)


def test_run_of_a_living_writer_is_running(writer: RunWriter) -> None:
    """Whoever looks at a run while it is measured sees it as running, and changes nothing."""
    writer.add_series([{"sent": 1}])
    run = load(writer.path)
    assert (run.status, run.reason) == ("running", None)
    assert run.samples["sent"].tolist() == [1]
    assert (writer.path / "series.jsonl").exists()


@pytest.mark.parametrize(("key", "value"), [("started_s", 1.0), ("boot_id", "another"), ("pid", 2**22 + 1)])
def test_reused_process_id_is_no_living_writer(writer: RunWriter, key: str, value: object) -> None:
    """Another process of that number, or the same number after a reboot, does not keep a run alive."""
    kept = document(writer.path)
    kept["writer"][key] = value
    (writer.path / "run.json").write_text(json.dumps(kept))
    assert load(writer.path).status == "partial"


def test_interrupted_run_closes_its_open_trial(writer: RunWriter) -> None:
    """finish("partial") keeps the trial in hand, marked, with the reason."""
    writer.begin_trial({"id": "a/1"}, started_s=time.time())
    run = load(writer.finish("partial", "interrupted"))
    assert (run.status, run.reason, run.trial("a/1")["status"]) == ("partial", "interrupted", "partial")
    assert run.trial("a/1")["error"] == "interrupted"


def full_disk(*_: object, **__: object) -> None:
    """What a write says on a full disk."""
    raise OSError(28, "No space left on device")


def test_full_disk_leaves_the_last_valid_run(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """When run.json cannot be replaced, the old one stands, no draft stays, and the error is the host's."""
    writer.add_trial({"id": "a/1"})
    with monkeypatch.context() as patched:
        patched.setattr(runs_module.os, "fsync", full_disk)
        with pytest.raises(HostError, match="No space left"):
            writer.add_trial({"id": "a/2"})
    assert [each["id"] for each in document(writer.path)["trials"]] == ["a/1"]
    assert not list(writer.path.glob(".*"))


def test_a_full_disk_lets_a_run_end_in_its_reserve(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the reserve is there nothing else can be written: the run ends partial, with the disk as its reason."""
    reserve, fsync = writer.path / runs_module.RESERVE_FILE, os.fsync
    assert reserve.stat().st_size == runs_module.RESERVE_BYTES
    writer.add_series([{"sent": 1}])
    monkeypatch.setattr(runs_module.os, "fsync", lambda fd: full_disk() if reserve.exists() else fsync(fd))
    writer.add_trial({"id": "a/1"})
    monkeypatch.setattr("loadgen.runs.to_parquet", full_disk)
    run = load(writer.finish("complete"))
    assert (run.status, run.trial("a/1")["status"]) == ("partial", "complete")
    assert re.fullmatch(r".*series\.parquet: cannot be written: No space left on device; free space.*", str(run.reason))
    assert run.samples["sent"].tolist() == [1]


def test_latest_is_the_run_that_began_last(writer: RunWriter, tmp_path: Path) -> None:
    """Also while it runs, so that one which is killed is not mistaken for the one before it."""
    assert load("latest", tmp_path).id == writer.id
    assert load("latest", tmp_path).status == "running"


def test_full_disk_cuts_the_torn_line_off_the_log(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals written before the disk was full can be read after it, and the run can still be closed."""
    writer.begin_trial({"id": "a/1", "window_s": 9.0}, started_s=time.time())
    writer.add_intervals("a/1", deltas({0: [5], 4: [6]}), agent="c0")
    log = writer.path / "histograms.hlog"
    whole = log.read_bytes()

    def torn(*_: object) -> None:
        with log.open("a") as file:
            file.write("Tag=a/1/e2e/c0,1.0")
        full_disk()

    monkeypatch.setattr("loadgen.hlog.HlogWriter.append", torn)
    with pytest.raises(HostError, match="No space left"):
        writer.add_intervals("a/1", deltas({8: [7]}), agent="c0")
    assert log.read_bytes() == whole
    run = load(writer.finish("partial", "disk full"))
    assert run.histogram("e2e", trial="a/1").count == 1


def test_full_disk_cuts_the_torn_line_off_the_series(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows written before the disk was full stay readable."""
    writer.add_series([{"sent": 1}])
    real_open = Path.open

    def torn_open(self: Path, mode: str = "r", **given: Any) -> Any:
        if mode == "a":
            with real_open(self, "a") as file:
                file.write('{"sent"')
            full_disk()
        return real_open(self, mode, **given)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", torn_open)
        with pytest.raises(HostError, match="No space left"):
            writer.add_series([{"sent": 2}])
    assert load(writer.finish("complete")).samples["sent"].tolist() == [1]


# --- what cannot be loaded ---


def test_nothing_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    """A missing run, or no run at all, is one line that says how to get one."""
    with pytest.raises(ScenarioError, match="no run there; run `loadgen run`"):
        load("latest", tmp_path)
    with pytest.raises(ScenarioError, match="20990101T000000Z-x: no run there"):
        load("20990101T000000Z-x", tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "cannot be read"), ("[]", "no schema_version"), ('{"schema_version": 99}', "newer than this loadgen's 1")],
)
def test_what_is_no_run_of_ours_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """Broken files, other files and newer schemas are refused by name, not misread."""
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ScenarioError, match=said):
        load(tmp_path)


def test_unknown_trial_is_told(writer: RunWriter) -> None:
    """Asking for a trial that the run does not have is one clear line."""
    with pytest.raises(ScenarioError, match="no trial nowhere/1"):
        load(writer.path).trial("nowhere/1")


# --- secrets ---


@pytest.mark.parametrize(
    "value",
    [
        {"default_pass": "guest"},
        {"ssl.key.password": "hunter2"},
        {"sasl.jaas.config": 'PlainLoginModule required username="x";'},
        {"delegation.token.secret.key": "abc"},
        {"command": ["loadgen", "up", "--brokers", "amqp://me:hunter2@host"]},
        {"deviations": ["KAFKA_OPTS=-Dssl.keystore.password=hunter2"]},
        {"a": [{"b": {"oauth_token": "abc"}}]},
    ],
)
def test_secrets_are_refused_and_not_repeated(tmp_path: Path, value: dict[str, Any]) -> None:
    """A record with a password is refused wherever it stands, by place; nothing is written and nothing quoted."""
    with pytest.raises(ScenarioError, match="mask it") as caught:
        RunWriter(tmp_path, "demo", value)
    assert "hunter2" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value",
    [
        {"default_pass": "[redacted]", "password": None, "secret": "", "token": "***"},
        {"delegation.token.expiry.time.ms": "86400000", "password.encoder.iterations": 4096},
        {"command": "loadgen up --brokers amqp://me:***@host kafka://host:9092"},
    ],
)
def test_masked_secrets_and_harmless_names_may_stand(value: dict[str, Any]) -> None:
    """What only sounds like a secret, or is masked, is no reason to refuse a run."""
    refuse_secrets(value, "header")


def test_secret_in_a_trial_is_refused(writer: RunWriter) -> None:
    """Trials are checked as headers are."""
    with pytest.raises(ScenarioError, match="trial a/1"):
        writer.add_trial({"id": "a/1", "settings": {"sasl.password": "hunter2"}})


def test_files_made_from_a_run_go_into_its_folder(writer: RunWriter) -> None:
    """Reports and charts are saved whole, folders made on the way."""
    run = load(writer.finish("complete"))
    assert run.save("charts/a.png", b"\x89").read_bytes() == b"\x89"
    assert run.save("report.md", "ä").read_text(encoding="utf-8") == "ä"


def test_empty_histogram_has_no_summary_values() -> None:
    """The summary that records carry is null where nothing was counted, and the schema allows it."""
    schema = SCHEMA["properties"]["trials"]["items"]["properties"]["latency_ns"]["properties"]["e2e"]
    jsonschema.validate(Histogram().summary(), schema)
