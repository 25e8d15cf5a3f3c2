"""Whole trials on real brokers: what is counted is what was sent, and what goes wrong is told and kept."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from patience import until
from verdicts import due

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario, engine, trial
from loadgen.board import Board, Cell
from loadgen.drivers import memory
from loadgen.drivers.memory import memory_endpoint
from loadgen.engine import Options, execute, plan_of
from loadgen.errors import BrokerError
from loadgen.outcome import exit_status
from loadgen.pinning import Pins
from loadgen.plan import Plan, Profile, make_plan
from loadgen.runs import Run, load
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint

SHORT = Profile("test", warmup_s=0.5, duration_s=1.0, repeats=1)
KNOBS: dict[str, dict[str, Any]] = {"rabbitmq": {"rabbitmq": RabbitMQ()}, "kafka": {"kafka": Kafka()}}


class Quiet:
    """A listener that only keeps what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        """A line that stays."""
        self.lines.append(text)

    def progress(self, text: str) -> None:
        """A line that the next one replaces."""


def plan_for(brokers: tuple[BrokerName, ...] = ("rabbitmq", "kafka"), **changes: Any) -> Plan:
    """A short plan for these brokers."""
    values: dict[str, Any] = {
        "name": "short",
        "question": "?",
        "rate": Rate.fixed(500),
        "message": Message(size_bytes=200),
    }
    for broker in brokers:
        values |= KNOBS[broker]
    return make_plan([Scenario(**{**values, **changes})], SHORT, brokers=brokers)


def run_once(endpoint: Endpoint, **changes: Any) -> dict[str, Any]:
    """One short trial's record."""
    plan = plan_for((endpoint.broker,), **changes)
    record, outcome = run_trial(plan.trials[0], Setting(endpoint, lambda _: None))
    assert outcome.error is None, outcome.traceback
    return record


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
@pytest.mark.parametrize("durability", [Durability.NONE, Durability.BROKER, Durability.FLUSHED])
def test_in_an_open_loop_every_message_due_is_sent_received_and_timed(
    endpoints: dict[BrokerName, Endpoint], broker: BrokerName, durability: Durability
) -> None:
    """At a fixed rate the counts are the schedule's, and each message of the window has its latencies."""
    record = run_once(endpoints[broker], durability=durability)
    sent, unsent = record["sent"], 750 - record["sent"]  # of a machine that is too busy
    assert due(record) == 750
    assert record["received"] == sent > 0
    assert record["acked"] == (None if durability == Durability.NONE else sent)
    assert [record[each] for each in ("lost", "duplicated", "corrupted", "out_of_order")] == [0, 0, 0, 0]
    latency = record["latency_ns"]
    assert (
        latency["e2e"]["count"] == latency["schedule_lag"]["count"] == latency["e2e_service"]["count"] + unsent == 500
    )
    assert latency["e2e"]["min"] > 0
    assert latency["e2e"]["p50"] >= latency["e2e_service"]["p50"]
    if durability != Durability.NONE:
        assert latency["ack"]["count"] == 500
    assert record["broker_counts"]["depth_at_end"] == 0
    # Not the status: a busy machine may make the schedule late, and that is no defect of ours.
    checks = {check["name"]: check["passed"] for check in record["verdict"]["checks"]}
    for name in ("traffic", "integrity", "loss", "drained", "duplicates", "order", *([] if unsent else ["errors"])):
        assert checks[name] is True, record["verdict"]["reasons"]
    keeps_count = record["broker_counts"]["stored"] is not None
    assert checks["broker's count"] is (True if keeps_count else None)
    assert checks["Little's law"] is not False


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
@pytest.mark.parametrize("durability", [Durability.NONE, Durability.BROKER])
def test_a_closed_loop_has_no_response_time_and_loses_nothing_confirmed(
    endpoints: dict[BrokerName, Endpoint], broker: BrokerName, durability: Durability
) -> None:
    """Saturated, the ledger is exact, response times are null and service times are there."""
    record = run_once(endpoints[broker], rate=Rate.saturate(), durability=durability, preset="throughput")
    assert record["sent"] > 0
    assert record["confirmed_lost"] == record["corrupted"] == record["duplicated"] == 0
    assert record["latency_ns"]["e2e"] is None
    assert record["latency_ns"]["ack"] is None
    assert record["latency_ns"]["e2e_service"]["count"] > 0
    assert record["verdict"]["bound_by"] in {"broker", "host", "generator", "unknown"}
    if broker == "kafka" and durability == Durability.BROKER:
        assert record["broker_counts"]["stored"] == record["sent"]


@pytest.mark.parametrize("driver", ["pika", "pika-blocking", "aio-pika", "rstream", "confluent"])
def test_client_drivers_carry_a_trial(endpoints: dict[BrokerName, Endpoint], driver: str) -> None:
    """The client libraries run the same trial with the same exact ledger."""
    broker: BrokerName = "kafka" if driver == "confluent" else "rabbitmq"
    part = Kafka(driver=driver) if broker == "kafka" else RabbitMQ(driver=driver)
    record = run_once(endpoints[broker], rate=Rate.fixed(60), **{broker: part})  # that a blocking client can keep up
    assert due(record) == 90
    assert record["sent"] == record["acked"] == record["received"] > 0
    assert record["driver_kind"] == "client"


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_several_producers_and_consumers_share_the_rate_and_the_messages(
    endpoints: dict[BrokerName, Endpoint], broker: BrokerName
) -> None:
    """Two producers offer the rate together, and two consumers receive each message once."""
    knobs = {"kafka": Kafka(partitions=2)} if broker == "kafka" else {}
    record = run_once(endpoints[broker], rate=Rate.poisson(600), producers=2, consumers=2, **knobs)
    assert record["sent"] == record["acked"] == record["received"]
    assert 700 < due(record) < 1_100
    assert record["duplicated"] == record["lost"] == 0


@pytest.mark.parametrize("driver", ["amqp", "pika", "kafka", "confluent"])
def test_acks_at_a_low_rate_are_observed_when_they_come(endpoints: dict[BrokerName, Endpoint], driver: str) -> None:
    """Nobody waits for the next send to see a confirmation: acks come well within the gap between two sends.

    Were acks seen at sends only, every one would take a whole gap, 250 ms at 4 msg/s. Half a gap separates that from
    any delay that a busy machine adds to the fastest of them.
    """
    broker: BrokerName = "rabbitmq" if driver in {"amqp", "pika"} else "kafka"
    part = RabbitMQ(driver=driver) if broker == "rabbitmq" else Kafka(driver=driver)
    record = run_once(endpoints[broker], rate=Rate.fixed(4), duration_s=1.5, **{broker: part})
    assert record["latency_ns"]["ack"]["count"] == 6
    assert record["latency_ns"]["ack"]["min"] < 125_000_000


@pytest.fixture(scope="module")
def complete_run(endpoints: dict[BrokerName, Endpoint], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one short trial on each broker, long enough that everything that is asked once a second was answered."""
    del endpoints  # they run, so `local` finds them
    options = Options("short", ["loadgen"], results=tmp_path_factory.mktemp("short"))
    return execute(plan_for(duration_s=3.0), options, Quiet())


def test_a_run_on_disk_says_what_was_measured(complete_run: Run) -> None:
    """The folder holds both trials with exact histograms, the series, versions and configuration, and no secret."""
    run = load(complete_run.path)
    assert run.status == "complete"
    assert exit_status(run) in {0, 2}
    assert [trial["broker"] for trial in run.records] == ["rabbitmq", "kafka"]
    for record in run.records:
        histogram = run.histogram("e2e", trial=record["id"])
        assert histogram.count == record["latency_ns"]["e2e"]["count"] == 500 * record["window_s"] > 0
        assert histogram.percentile(99) == record["latency_ns"]["e2e"]["p99"]
    series = run.samples
    assert series[series["agent"] == "consumer0"]["received"].sum() == sum(each["received"] for each in run.records)
    assert [due(record) for record in run.records] == [1_750] * 2
    text = (Path(engine.__file__).parent.parent / "docs" / "results.md").read_text().partition("## series.parquet")[2]
    documented = {
        name.replace("<group>", group)
        for cell in re.findall(r"^\| (`.+?`) \|", text, re.MULTILINE)
        for name in re.findall(r"`(.+?)`", cell)
        for group in ("producers", "consumers", "broker", "loadgen", "resting")
    }
    assert documented == {*series.columns, "errors"}, "docs/results.md tells of each column, and no other"
    for record in run.records:
        observed = series[(series["agent"] == "observer") & (series["trial"] == record["id"])]
        # Producer, consumer, gauge and control plane; Kafka's clients have more, its static consumer is no member.
        assert observed["broker_connections"].max() >= 3
        assert observed["connected_consumers"].max() == 1 or record["broker"] == "kafka"
        assert observed["depth_msgs"].notna().any()
        assert 0 < observed["sent_msgs_per_s"].max() < 1_750 * 5
        assert observed["received_msgs_per_s"].max() > 0
        assert observed["acked_msgs_per_s"].max() > 0
        assert observed["errors_per_s"].max() == 0
        assert observed["broker_rss_bytes"].min() > 1 << 20
        assert observed["resting_rss_bytes"].min() > 1 << 20, "the other broker, which nobody measures now"
        (others,) = [each for each in record["verdict"]["checks"] if each["name"] == "other programs"]
        assert "; the resting broker " in others["reason"]
    brokers = run.header["brokers"]
    assert brokers["kafka"]["version"].startswith("4.")
    assert brokers["rabbitmq"]["version"].startswith("4.")
    assert brokers["kafka"]["configuration"]
    assert brokers["rabbitmq"]["deviations"]
    assert (run.path.parent / "latest").resolve() == run.path


def test_a_rerun_is_the_same_plan(complete_run: Run) -> None:
    """What a run keeps gives the same trials, in the same order, with the same seeds."""
    again = plan_of(complete_run, ("rabbitmq", "kafka"))
    kept = [(record["id"], record["seed"], record["settings"]) for record in complete_run.records]
    assert [(each.id, each.seed, each.settings) for each in again.trials] == kept


class Interrupting(Quiet):
    """A listener at which Ctrl-C arrives, as it would in the main thread, while the first trial runs."""

    def progress(self, text: str) -> None:
        """Interrupt once load flows; the load that warms a broker up is no trial of the run."""
        if text.startswith("[1/1]") and "msg/s" in text and "backlog" in text and " 0 msg/s" not in text:
            raise KeyboardInterrupt


def test_ctrl_c_keeps_what_was_measured(endpoints: dict[BrokerName, Endpoint], tmp_path: Path) -> None:
    """An interrupted run is partial, says so, and has the seconds that were measured."""
    del endpoints
    plan = plan_for(("rabbitmq",), duration_s=30.0)
    run = execute(plan, Options("short", ["loadgen"], results=tmp_path), Interrupting())
    assert run.status == "partial"
    assert run.header["reason"] == "interrupted"
    assert exit_status(run) == 130
    record = run.records[0]
    assert record["status"] == "partial"
    assert 0 < record["received"] <= record["sent"]
    # What was on its way was not lost, and rates are over the time that passed.
    assert record["lost"] is record["confirmed_lost"] is record["missing_msgs"] is None
    assert record["window_s"] < 30
    assert (record["achieved_msgs_per_s"] is None) == (record["window_s"] == 0)


def test_a_run_stops_before_the_disk_is_full(
    endpoints: dict[BrokerName, Endpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the reserve the run ends with one line; what was measured before is kept, and no further trial begins."""
    del endpoints

    class Filling(Quiet):
        def message(self, text: str) -> None:
            if text.startswith("[1/3] "):
                monkeypatch.setattr(trial, "MIN_FREE_BYTES", 1 << 60)

    plan = plan_for(("kafka",), kafka=Kafka(linger_ms=[0, 1, 2]))
    run = execute(plan, Options("full", ["loadgen"], tmp_path), Filling())
    assert run.status == "partial"
    assert [record["status"] for record in run.records] == ["complete", "failed"]
    assert "GB free where kafka keeps its data" in str(run.reason)
    assert run.records[1]["verdict"]["status"] == "invalid"
    assert exit_status(run) == 2


def test_a_dead_agent_fails_the_trial_with_its_name(
    endpoints: dict[BrokerName, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that is killed is noticed at once; its trial is invalid and names it."""
    killed: list[int] = []

    def kill_consumer(self: trial.Live, board: Board) -> None:
        if board.total(Cell.RECEIVED) and not killed:
            killed.append(1)
            for process in __import__("multiprocessing").active_children():
                if process.name == "consumer0":
                    process.kill()
        del self

    monkeypatch.setattr(trial.Live, "turned", kill_consumer)
    plan = plan_for(("kafka",), duration_s=20.0)
    record, outcome = run_trial(plan.trials[0], Setting(endpoints["kafka"], lambda _: None))
    assert killed
    assert outcome.error is not None
    assert "consumer0 died" in outcome.error
    assert record["verdict"]["status"] == "invalid"


def test_agents_end_when_the_tool_is_killed(endpoints: dict[BrokerName, Endpoint], tmp_path: Path) -> None:
    """After kill -9 of the tool no agent goes on sending, and the run on disk is partial with what was written."""
    del endpoints
    command = [sys.executable, "-m", "loadgen.cli", "run", "scenarios/latency.py", "--set", "duration_s=60",
               "--set", "warmup_s=0", "--set", "rate=200", "--broker", "rabbitmq",
               "--repeats", "1", "--results", str(tmp_path)]  # fmt: skip
    tool = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert until(lambda: any("/e2e/" in path.read_text() for path in tmp_path.glob("*/histograms.hlog")), 0.1)
        agents = _children(tool.pid)
        assert agents
    finally:
        tool.send_signal(signal.SIGKILL)
        tool.wait()
    assert until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in agents))
    run = load(next(path for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()))
    assert run.status == "partial"
    assert run.records[0]["status"] == "partial"
    assert run.records[0]["latency_ns"]["e2e"]["count"] > 0


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


def test_pins_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs are pinned apart by default from four cores on, and a list that cannot be is refused."""
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: set(range(8)))
    halves = Pins((0, 1, 2, 3), (4, 5, 6, 7))
    assert engine._wanted(Options("x", []), Quiet()) == halves
    assert engine._wanted(Options("x", [], brokers="docker"), Quiet()) == Pins()  # not ours to pin
    assert engine._wanted(Options("x", [], cpus_client="1,4-5"), Quiet()) == Pins((), (1, 4, 5))
    with pytest.raises(engine.ScenarioError, match="may use 0, 1"):
        engine._wanted(Options("x", [], cpus_broker="8"), Quiet())
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: {0, 1})
    assert engine._wanted(Options("x", []), Quiet()) == Pins()
    # A rerun keeps to the earlier run's, or says that it cannot.
    assert engine._wanted(Options("x", [], pins=Pins((0,), (1,))), Quiet()) == Pins((0,), (1,))
    quiet = Quiet()
    assert engine._wanted(Options("x", [], pins=halves), quiet) == Pins()
    assert "may use 0, 1" in quiet.lines[0]


def test_the_whole_flow_runs_without_a_broker(tmp_path: Path) -> None:
    """`memory` in place of the brokers: a whole run, on disk, accounted for to the last message."""
    run = execute(plan_for(), Options("short", ["loadgen"], results=tmp_path, brokers="memory"), Quiet())
    assert run.status == "complete"
    for record in run.records:
        assert record["driver"] == "memory"
        assert due(record) == 750
        assert record["sent"] == record["acked"] == record["received"] > 0


@pytest.mark.parametrize(
    ("fault", "found"),
    [("loss_every", "confirmed_lost"), ("duplicate_every", "duplicated"), ("corrupt_every", "corrupted")],
)
def test_a_fault_of_the_broker_is_found_to_the_message_and_judged(fault: str, found: str) -> None:
    """What a broker loses, doubles or changes is counted exactly, and the trial is not valid."""
    record = run_once(memory_endpoint("rabbitmq", **{fault: 50}))
    assert due(record) == 750
    assert record[found] == record["sent"] // 50 > 0
    assert record["verdict"]["status"] == "invalid"
    assert record["dup_resend"] == record["dup_redelivery"] == 0


def checks_of(record: dict[str, Any]) -> dict[str, bool | None]:
    """What each checker said."""
    return {check["name"]: check["passed"] for check in record["verdict"]["checks"]}


def test_messages_that_were_given_up_are_in_the_percentiles() -> None:
    """An overloaded open loop has a latency for every message due, and what it never sent makes it invalid."""
    record = run_once(memory_endpoint("rabbitmq", confirm_delay_ms=1_500.0), rate=Rate.fixed(2_000))
    unsent = record["errors"]["unsent"]
    assert record["sent"] + unsent == 3_000
    assert record["missing_msgs"] == unsent > 0
    for kind in ("e2e", "ack", "schedule_lag"):
        assert record["latency_ns"][kind]["count"] == 2_000
        assert record["latency_ns"][kind]["max"] >= 1_000_000_000
    checks = checks_of(record)
    assert (checks["latency complete"], checks["errors"]) == (False, None)


def test_a_trial_without_consumers_keeps_its_account() -> None:
    """Acked and refused messages are told, received ones are unknown, and the broker must hold what it confirmed."""
    record = run_once(memory_endpoint("rabbitmq", refuse_every=50), consumers=0)
    refused = record["sent"] // 50
    assert (due(record), record["acked"]) == (750, record["sent"] - refused)
    assert sum(record["errors"].values()) == refused + 750 - record["sent"]
    assert (record.get("received"), record.get("lost")) == (None, None)
    assert record["broker_counts"]["stored"] == record["acked"] > 0
    checks = checks_of(record)
    assert checks["loss"] is checks["broker's count"] is True


def test_a_ramp_is_held_to_its_mean_rate() -> None:
    """Over 0.5 s of warm-up and a window of 1 s from 200 to 800 msg/s the window's mean is 600 msg/s."""
    record = run_once(memory_endpoint("kafka"), rate=Rate.ramp(200, 800))
    assert record["offered_msgs_per_s"] == pytest.approx(600)
    assert record["latency_ns"]["e2e"]["count"] == pytest.approx(600, abs=1)
    assert record["missing_msgs"] == record["errors"].get("unsent", 0)


def test_an_interrupted_trial_invents_neither_losses_nor_rates() -> None:
    """Rates are of the time that passed, and what consumers had not seen yet is unknown, not lost."""
    plan = plan_for(("kafka",), rate=Rate.fixed(1_000), duration_s=30.0)
    endpoint = memory_endpoint("kafka", delay_ms=500.0)
    turns: list[str] = []

    def interrupt(text: str) -> None:
        turns.append(text)
        if len(turns) == 4:  # one each half second, the first within the warm-up
            raise KeyboardInterrupt

    record, outcome = run_trial(plan.trials[0], Setting(endpoint, interrupt))
    assert outcome.interrupted
    assert record["status"] == "partial"
    assert record["sent"] > record["received"] > 0
    assert [record[each] for each in ("lost", "confirmed_lost", "unconfirmed_lost", "missing_msgs")] == [None] * 4
    assert 0 < record["window_s"] < 20, "and not the 30 that were planned"
    assert record["sent_msgs_per_s"] > record["sent"] / 25


def test_what_stays_on_the_broker_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A queue that cannot be deleted is in the record, among its reasons and in a line that stays."""

    def refuse(*_: object) -> None:
        raise BrokerError("not allowed")

    monkeypatch.setattr(memory.MemoryAdmin, "delete", refuse)
    quiet = Quiet()
    run = execute(plan_for(("kafka",)), Options("short", ["loadgen"], results=tmp_path, brokers="memory"), quiet)
    left = run.records[0]["left_behind"]
    assert left["name"].startswith("loadgen-short-")
    assert left["reason"] == "not allowed"
    assert any(left["name"] in reason for reason in run.records[0]["verdict"]["reasons"])
    assert any(left["name"] in line for line in quiet.lines)


def test_a_window_of_one_outlives_many_confirmations_between_two_bookings() -> None:
    """Each message is confirmed before the next is sent, and none is overwritten before it was booked."""
    scenario = Scenario(
        name="one", question="?", message=Message(size_bytes=100), rate=Rate.saturate(),
        rabbitmq=RabbitMQ(confirm_window=1),
    )  # fmt: skip
    plan = make_plan([scenario], Profile("test", 0.2, 1.0, 1), brokers=("rabbitmq",))
    record, _ = run_trial(plan.trials[0], Setting(memory_endpoint("rabbitmq"), lambda _: None))
    assert record["error"] is None
    assert record["acked"] == record["sent"] == record["received"] > 0
