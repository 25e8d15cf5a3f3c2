"""Runs as a store: listed, tagged, pruned, moved as folders; and their history, with the run that changed a level."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from commandline import loadgen

from loadgen import store
from loadgen.analysis.changes import ALPHA, runs_least
from loadgen.analysis.history import histories
from loadgen.errors import ScenarioError
from loadgen.gate.checking import check
from loadgen.gate.limits import Limit
from loadgen.gate.metrics import metric
from loadgen.runs import RUN_FILE, SCHEMA_VERSION, Run, RunWriter, load, newest
from loadgen.stats.changes import changes

KEPT = Path(__file__).with_name("runs")


def written(root: Path, number: int, p50_ms: float = 1.0, **settings: Any) -> Run:
    """A run of three repeats, begun `number` days after the first one."""
    writer = RunWriter(root, "latency", {**synthetic.HEADER, "scenarios": [{"name": "latency"}]})
    rate = {"kind": "fixed", "msgs_per_s": 1_000.0, "to_msgs_per_s": None}
    for repeat in (1, 2, 3):
        record = synthetic.trial("kafka", "latency", repeat=repeat, rate=rate)
        told = {"count": 4_000, "p50": p50_ms * 1e6 * (1 + repeat / 1_000), "p99": 9e6}
        writer.add_trial({**record, "settings": {**record["settings"], **settings}, "latency_ns": {"e2e": told}})
    path = writer.finish("complete")
    document = json.loads((path / RUN_FILE).read_text())
    document["created_utc"] = f"2026-11-{number + 1:02}T00:00:00.000Z"
    document["environment"] = {**document["environment"], "git": {"revision": f"rev{number:02}", "dirty": False}}
    (path / RUN_FILE).write_text(json.dumps(document))
    return load(path)


def test_runs_are_listed_tagged_and_pruned(tmp_path: Path) -> None:
    """What is tagged stays, nothing goes without --yes, and a run moves with its tag."""
    results = tmp_path / "results"
    made = [written(results, number) for number in range(4)]
    assert loadgen("runs", "tag", "release", made[0].id, folder=tmp_path).returncode == 0
    rows = json.loads(loadgen("runs", "list", "--json", folder=tmp_path).stdout)
    assert [row["id"] for row in rows] == [run.id for run in made], "the oldest first, and `latest` only once"
    assert [row["tags"] for row in rows] == [["release"], [], [], []]
    told = loadgen("runs", "prune", "--keep", "1", folder=tmp_path)
    assert told.stdout.count("would be removed") == 2
    assert len(store.stored(results)) == 4
    assert loadgen("runs", "prune", "--keep", "1", "--yes", folder=tmp_path).stdout.count("removed: ") == 2
    assert [run.id for run in store.stored(results)] == [made[0].id, made[3].id]
    moved = tmp_path / "elsewhere" / made[0].id
    shutil.copytree(made[0].path, moved)
    (there,) = store.stored(moved.parent)
    assert store.tags(there) == ["release"]
    assert store.tag(there, "release", is_on=False) == []
    for name, said in (("a b", "expected letters"), ("gone", "has no tag gone; it has none")):
        with pytest.raises(ScenarioError, match=said):
            store.tag(there, name, is_on=False)


def test_folders_that_somebody_named_and_killed_runs_stay(tmp_path: Path) -> None:
    """The example that comes with the project is never one too many; listing changes nothing on disk."""
    run = written(tmp_path, 1)
    shutil.copytree(run.path, tmp_path / "example")
    assert [each.path.name for each in store.superfluous(store.stored(tmp_path), 0)] == [run.id]
    killed = tmp_path / run.id / RUN_FILE
    document = json.loads(killed.read_text())
    killed.write_text(json.dumps({**document, "status": "running", "writer": {**document["writer"], "pid": 2**22}}))
    assert {each.status for each in store.stored(tmp_path)} == {"complete", "running"}
    assert store.superfluous(store.stored(tmp_path), 0) == []


def test_what_is_shipped_names_no_folder_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline goes into git: checkout and home are told by what they are."""
    monkeypatch.chdir(tmp_path)
    text = json.dumps({"log.dirs": f"{tmp_path}/.brokers/kafka", "other": "/usr/share"})
    assert json.loads(store.portable(text)) == {"log.dirs": "<checkout>/.brokers/kafka", "other": "/usr/share"}


def test_a_run_that_still_runs_is_never_removed(tmp_path: Path) -> None:
    """Its writer would find its folder gone."""
    writer = RunWriter(tmp_path, "now", {**synthetic.HEADER, "created": time.time()})
    (run,) = store.stored(tmp_path)
    assert run.status == "running"
    assert store.superfluous([run], 0) == []
    writer.finish("partial", "a test")


def test_a_history_names_the_run_that_changed_the_level(tmp_path: Path) -> None:
    """Slower from the sixth of ten runs on: its run, its revision and what was set otherwise stand there."""
    rng = np.random.default_rng(4)
    results = tmp_path / "results"
    for number in range(10):
        is_late = number >= 5
        written(results, number, (1.4 if is_late else 1.0) * rng.lognormal(0, 0.03), linger_ms=20.0 if is_late else 0.0)
    done = loadgen("history", "--metric", "e2e_p50_ns", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (changed,) = [line for line in done.stdout.splitlines() if "changed with" in line]
    assert "(revision rev05)" in changed
    assert "kafka.linger_ms: 0.0 → 20.0" in changed
    (point,) = json.loads(loadgen("history", "--metric", "e2e_p50_ns", "--json", folder=tmp_path).stdout)
    assert 1.3 < point["changes"][0]["ratio"] < 1.5
    few = loadgen("history", "results/*", "--metric", "luck", folder=tmp_path)
    assert few.returncode == 64
    assert len(few.stderr.strip().splitlines()) == 1


def test_every_schema_version_has_a_run_that_is_kept() -> None:
    """As it was written then, and never anew: whoever raises the version adds a run of the new one."""
    assert {path.name for path in KEPT.iterdir()} == {f"schema-{version}" for version in range(1, SCHEMA_VERSION + 1)}


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_runs_of_earlier_schemas_are_read_as_ever(version: int, tmp_path: Path) -> None:
    """Frames, histograms and series are there; it can be found, reported, checked and held against another."""
    shutil.copytree(KEPT / f"schema-{version}", tmp_path / "20260101T000000Z-latency")
    run = load(tmp_path / "20260101T000000Z-latency")
    assert run.header["schema_version"] == version
    assert run.trials["e2e_p50_ns"].notna().all()
    assert len(run.series)
    assert run.histogram("e2e", broker="kafka").count > 0
    found = newest(tmp_path, lambda document: document["name"] == run.header["name"])
    assert found is not None
    assert found.id == run.id
    assert check(run, None, [Limit("limit", metric("e2e_p99_ms"), at_most=1e6)], is_invalid=False).exit_status == 0
    (point,) = {each.point for each in histories([run])}
    assert point.startswith("latency/kafka/")
    assert run.id in synthetic.page_of(run)


def test_a_document_that_lacks_a_part_is_no_traceback(tmp_path: Path) -> None:
    """One line says which; who looks for the newest run passes over what tells no version."""
    run = written(tmp_path, 1)
    document = json.loads((run.path / RUN_FILE).read_text())
    for version in ("1", None):
        (run.path / RUN_FILE).write_text(json.dumps({**document, "schema_version": version}))
        assert newest(tmp_path, lambda _: True) is None
    del document["trials"]
    (run.path / RUN_FILE).write_text(json.dumps(document))
    with pytest.raises(ScenarioError, match="has no trials; expected a run"):
        load(run.path)


def test_a_change_can_be_shown_whatever_the_number_of_points() -> None:
    """The more points are looked at the more runs it takes, and as many as are named do."""
    for points, least in ((1, 8), (4, 11), (40, 14)):
        assert runs_least(points) == least
        series = np.arange(least) * 0.01 + np.where(np.arange(least) < least // 2, 0, 1)
        assert [each.at for each in changes(series, seed=1, alpha=ALPHA / points)] == [least // 2]
