"""`locust -f scenarios/….py` without its web UI, on real brokers: exact counts, the run on disk, the exit status."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import locusts
import pytest

from loadgen.histogram import Histogram
from loadgen.judging import describe
from loadgen.load import load_scenarios
from loadgen.locust.messages import unpack
from loadgen.plan import PROFILES, make_plan
from loadgen.record import completed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from locusts import Ended

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.recorder import IntervalDelta

pytestmark = pytest.mark.alone  # its tests of Locust end after seconds, by when all users must have come
SCHEMA = Path("loadgen/run.schema.json")
USERS = ("--headless", "-u", "2", "-r", "2", "--set", "rate=500")
LENGTH = ("-t", "20s")
BROKERS = ("rabbitmq", "kafka")
LOADED_S = 8.0  # under load before it is interrupted


@pytest.fixture(scope="module")
def together(
    tmp_path_factory: pytest.TempPathFactory, endpoints: dict[BrokerName, Endpoint]
) -> Iterator[locusts.Together]:
    """One on each broker, started at once."""
    del endpoints
    made = locusts.Together(tmp_path_factory.mktemp("locusts"))
    for broker in BROKERS:
        html = str(made.folder(broker) / "report.html")
        made.start(broker, *USERS, *LENGTH, "--broker", broker, "--html", html)
    yield made
    made.close()


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory, together: locusts.Together) -> Iterator[locusts.Together]:
    """Two more, when the first have ended: a machine of two cores is small."""
    for name in BROKERS:
        together.ended(name)
    made = locusts.Together(tmp_path_factory.mktemp("later"))
    made.start("turns", *USERS, "-t", "30s", "--threshold", "p99_ms<0.001")
    four = ("--processes", "4", "--headless", "-u", "8", "-r", "8", "--set", "rate=600", "--tags", "rabbitmq")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(locusts.WITNESS, str(tmp_path_factory.mktemp("witness")))
        made.start("four", *four, *LENGTH, file="scenarios/latency.py,tests/locust_witness.py")
        yield made
    made.close()


@pytest.fixture(params=BROKERS)
def ran(request: pytest.FixtureRequest, together: locusts.Together) -> Ended:
    """A test of some seconds on each broker: one consumer and one producer."""
    return together.ended(request.param)


def test_locust_counts_every_message_as_the_broker_and_the_ledger_do(ran: Ended) -> None:
    """Publishes, consumes, the ledger and (Kafka) the end offsets are one number, of about the offered rate."""
    trial = ran.trial
    counts = {ran.carried(method) for method in ("PUBLISH", "CONSUME")}
    assert counts == {trial["sent"]} == {trial["received"]} == {trial["acked"]}
    if trial["broker"] == "kafka":
        assert counts == {trial["broker_counts"]["stored"]}
    assert trial["sent"] > 500
    assert int(ran.row("PUBLISH")["Failure Count"]) == trial["errors"].get("unsent", 0)


def test_the_run_on_disk_is_one_of_the_command_lines(ran: Ended) -> None:
    """The document is valid by the schema and says who ran it; its trial has the fields of any trial, and a verdict."""
    document = json.loads((ran.run.path / "run.json").read_text())
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    assert document["fleet"] == "locust"
    assert ran.run.status == "complete"
    trial = ran.trial
    (planned,) = (
        each
        for scenario in load_scenarios(Path("scenarios/latency.py"))
        for each in make_plan([scenario], PROFILES["quick"], repeats=1).trials
        if each.broker == trial["broker"] and each.rate.msgs_per_s == 500
    )
    assert trial.keys() == completed(describe(planned)).keys()
    assert (trial["producers"], trial["consumers"]) == (1, 1)
    assert trial["offered_msgs_per_s"] == 500
    assert trial["lost"] == trial["duplicated"] == trial["corrupted"] == 0
    assert trial["window_s"] >= 1
    assert trial["verdict"]["checks"]
    assert trial["observer"]["agent_core_share_max"]["producers"] is not None


def test_the_windows_histograms_are_those_on_disk_and_hold_the_windows_messages(ran: Ended) -> None:
    """The log's lines in the window merge to the record's latencies, and there are about rate × window of them."""
    trial = ran.trial
    for kind in ("e2e", "ack", "schedule_lag"):
        merged: Histogram = ran.run.histogram(kind, trial=trial["id"])
        assert merged.count == trial["latency_ns"][kind]["count"]
        assert merged.max == trial["latency_ns"][kind]["max"]
        assert abs(merged.count - 500 * trial["window_s"]) <= 2
    assert {each.agent for each in ran.run.intervals()} == {"producers.w0", "consumers.w0"}


def test_times_below_a_millisecond_are_shown(ran: Ended) -> None:
    """Locust's table, CSV and percentiles have the digits that whole milliseconds would lose."""
    row = ran.row("PUBLISH")
    assert 0 < float(row["Median Response Time"]) == float(row["50%"])
    assert float(row["Min Response Time"]) > 0
    line = next(each for each in reversed(ran.text.splitlines()) if "PUBLISH" in each)
    assert " 0 " not in line.partition("latency")[2].partition("|")[0]
    assert (ran.run.path.parents[1] / "report.html").stat().st_size > 10_000


def test_the_exit_status_is_the_verdicts(ran: Ended) -> None:
    """An invalid trial is status 2, which no busy machine can make of a run's document; everything else is 0."""
    invalid = ran.trial["verdict"]["status"] == "invalid"
    assert ran.status == (2 if invalid else 0), ran.text
    assert ran.trial["id"] in ran.text


def test_ctrl_c_keeps_what_was_measured(together: locusts.Together) -> None:
    """Interrupted in mid-test it stops in order: the ledger is closed, the run is written and marked partial.

    Its clients have threads of their own (librdkafka's), and Locust's loop turned all the while: a greenlet that asked
    for 5 ms again and again had its turn hundreds of times.
    """
    for name in BROKERS:
        together.ended(name)  # a machine of two cores is small
    by_confluent = ("-t", "5m", "--broker", "kafka", "--set", "kafka.driver=confluent")
    process = together.start("interrupted", *USERS, *by_confluent, file="scenarios/latency.py,bench/heartbeat.py")
    said = locusts.wait_for(process, locusts.STARTED)
    time.sleep(LOADED_S)
    locusts.interrupt(process)
    ended = together.ended("interrupted", said)
    assert ended.run.status == "partial"
    assert ended.trial["sent"] == ended.trial["received"] > 100
    assert (ended.trial["status"], ended.trial["driver"]) == ("partial", "confluent")
    beats = re.search(r"(\d+) heartbeats", ended.text)
    assert beats is not None
    assert int(beats[1]) > 200
    assert ended.trial["latency_ns"]["e2e"]["count"] > 100
    assert ended.status == 130


def test_both_brokers_take_turns_and_never_contend(later: locusts.Together) -> None:
    """Without --broker the users of one make room for those of the other; a limit that is missed is status 1."""
    ended = later.ended("turns")
    first, second = ended.run.records
    assert [first["broker"], second["broker"]] == ["rabbitmq", "kafka"]
    spans = []
    for trial in (first, second):
        assert trial["sent"] == trial["received"] == ended.carried("PUBLISH", f"latency {trial['broker']}")
        begins = {each.start_s for each in ended.run.intervals(trial["id"])}
        spans.append((trial["hlog_start_s"] + min(begins), trial["hlog_start_s"] + max(begins) + 1))
    assert spans[0][1] <= spans[1][0] + 1
    assert ended.text.count("threshold missed") >= 1
    invalid = any(trial["verdict"]["status"] == "invalid" for trial in ended.run.records)
    assert ended.status == (2 if invalid else 1)


def witnessed(kind: str) -> list[IntervalDelta]:
    """What the four workers themselves kept of what they recorded, before it left them."""
    blobs = [path.read_bytes() for path in Path(os.environ[locusts.WITNESS]).iterdir()]
    return [delta for blob in blobs for _, delta in unpack(blob)["deltas"] if delta.kind == kind]


def test_four_workers_histograms_are_merged_without_loss(later: locusts.Together) -> None:
    """What the workers recorded, line by line, is the record's, and every message is in it once."""
    ended = later.ended("four")
    trial = ended.trial
    assert trial["broker"] == "rabbitmq"
    assert (trial["producers"], trial["consumers"]) == (4, 4)
    assert trial["sent"] == trial["received"] == ended.carried("PUBLISH") == ended.carried("CONSUME")
    lines = list(ended.run.intervals(trial["id"], "e2e"))
    assert {each.agent for each in lines} == {f"consumers.w{number}" for number in range(4)}
    assert sum(each.histogram.count for each in lines) == trial["received"]
    for kind in ("e2e", "ack", "ack_service", "schedule_lag"):
        own, all_lines = Histogram(), Histogram()
        for delta in witnessed(kind):
            delta.add_to(own)
        for each in ended.run.intervals(trial["id"], kind):
            all_lines.merge(each.histogram)
        assert own.count >= trial["received"]
        assert (own.counts == all_lines.counts).all(), "bucket for bucket"
    merged = Histogram()
    for each in lines:
        if -0.001 <= each.start_s < trial["window_s"] - 0.001:
            merged.merge(each.histogram)
    told = trial["latency_ns"]["e2e"]
    assert (merged.count, merged.max) == (told["count"], told["max"])
    assert merged.percentiles([50, 99, 99.9]) == [told["p50"], told["p99"], told["p99_9"]]
    assert merged.count == 600 * trial["window_s"]
