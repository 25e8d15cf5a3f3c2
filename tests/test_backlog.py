"""Backlogs: written and confirmed before consumers begin, drained from the right message on, and never called late."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from verdicts import against, due

from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.agent import SECOND_NS, Drained, Result
from loadgen.backlog import Backlog
from loadgen.drain import drained, replayed_s
from loadgen.drivers.memory import memory_endpoint
from loadgen.errors import ScenarioError
from loadgen.fleet import Fleet, Outcome
from loadgen.flow import Flow
from loadgen.ledger import ReceivedBook, SentBook, settle
from loadgen.load import apply_sets, load_scenarios, parse_set, scenario_file
from loadgen.payload import Parsed
from loadgen.plan import PROFILES, Profile, Trial, make_plan
from loadgen.record import completed
from loadgen.report.phases import load_label, notes
from loadgen.report.points import comparisons
from loadgen.trial import Live, Setting, run_trial

if TYPE_CHECKING:
    from loadgen.board import Board
    from loadgen.endpoint import BrokerName, Endpoint

SHORT = Profile("test", warmup_s=1.0, duration_s=1.0, repeats=1)
NOISE = {"schedule lag", "backlog", "rate", "latency complete"}  # what a busy machine does to an open loop


def planned(broker: BrokerName, part: Any, **changes: Any) -> Trial:
    """One short trial with a backlog."""
    values: dict[str, Any] = {"name": "backlog", "question": "?", "message": Message(size_bytes=100)}
    values |= {"rate": Rate.saturate(), "backlog_msgs": 4_000, broker: part, **changes}
    return make_plan([Scenario(**values)], SHORT, brokers=(broker,)).trials[0]


def ran(trial: Trial, endpoint: Endpoint) -> tuple[dict[str, Any], Outcome]:
    """Its record, after it has come to its end."""
    record, outcome = run_trial(trial, Setting(endpoint, lambda _: None))
    assert outcome.error is None, outcome.traceback or outcome.error
    return record, outcome


@given(st.integers(2, 10_000), st.integers(1, 9), st.sampled_from(["beginning", "offset", "time", "end"]))
def test_producers_share_a_backlog_out(msgs: int, producers: int, start_from: Any) -> None:
    """Together they write it all, part by part, and what is skipped is what the first part holds."""
    backlog = Backlog(msgs, start_from)
    parts = [backlog.parts(each, producers) for each in range(producers)]
    assert sum(each[-1] for each in parts) == msgs
    assert {len(each) for each in parts} == {backlog.part_count}
    assert all(list(each) == sorted(each) for each in parts)
    skipped = 0 if start_from == "beginning" else sum(each[0] for each in parts)
    assert backlog.skipped(producers) == skipped <= msgs
    assert (skipped == msgs) == (start_from == "end")


KAFKA, QUEUE, STREAM = {"kafka": Kafka()}, {"rabbitmq": RabbitMQ()}, {"rabbitmq": RabbitMQ(driver="stream")}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**QUEUE, "backlog_msgs": 100, "start_from": "offset"}, "a queue is read from its head"),
    ({**KAFKA, "start_from": "time"}, "there is no backlog to begin in"),
    ({**KAFKA, "backlog_msgs": 100, "start_from": "end", "rate": Rate.saturate()}, "nothing follows a backlog"),
    ({**KAFKA, "backlog_msgs": 100, "backlog_s": 1}, "backlog_msgs and backlog_s"),
    ({**KAFKA, "backlog_s": 1, "rate": Rate.saturate()}, "no rate to fall behind"),
    ({**KAFKA, "backlog_msgs": 100, "rate": Rate.search()}, "looks for a steady state"),
    ({**KAFKA, "backlog_msgs": 100, "consumers": 0}, "nobody drains it"),
    ({**KAFKA, "backlog_msgs": 100, "durability": "none"}, "without confirms"),
    ({**KAFKA, "backlog_bytes": 100}, "is 0 messages"),
    ({"kafka": Kafka(group="share"), "backlog_msgs": 100, "start_from": "time"}, "share group have no position"),
    ({"kafka": Kafka(transaction_msgs=9), "backlog_msgs": 100, "start_from": "time"}, "do not count messages"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_cannot_be_is_one_line(changes: dict[str, Any], said: str) -> None:
    """Each impossible backlog is refused by its knob, before any broker is touched."""
    with pytest.raises(ScenarioError, match=said) as caught:
        Scenario(**{"name": "a", "question": "?", "rate": Rate.fixed(100), **changes})
    assert "\n" not in str(caught.value)


def test_sizes_come_to_messages_and_bytes() -> None:
    """Bytes and seconds come to messages; the plan counts what is stored, and has no warm-up."""
    by_bytes = planned("kafka", Kafka(), backlog_msgs=None, backlog_bytes=1_000_000)
    by_time = planned("kafka", Kafka(), backlog_msgs=None, backlog_s=2.5, rate=Rate.fixed(100))
    assert (by_bytes.backlog.msgs, by_time.backlog.msgs) == (10_000, 250)
    assert 1_000_000 < by_bytes.stored_bytes_max < 2_000_000
    assert (by_bytes.warmup_s, by_bytes.is_replay, by_time.is_replay) == (0.0, True, False)
    with pytest.raises(ScenarioError, match="warmup_s"):
        planned("kafka", Kafka(), warmup_s=1)


def test_the_size_that_is_asked_for_takes_the_place_of_the_files() -> None:
    """By number, bytes or time, with one `--set`: gigabytes of backlog as well; two of them are still refused."""
    (scenario,) = load_scenarios(scenario_file("backlog"))
    for text, msgs in (("backlog_bytes=5000000000", 4_882_812), ("backlog_msgs=7000", 7_000), ("backlog_s=2", 4_000)):
        plan = make_plan([apply_sets(scenario, [parse_set(text)])], PROFILES["quick"], repeats=1)
        assert {trial.backlog.msgs for trial in plan.trials} == {msgs}
    with pytest.raises(ScenarioError, match="backlog_bytes and backlog_s"):
        apply_sets(scenario, [parse_set("backlog_s=2"), parse_set("backlog_bytes=5000000")])


@pytest.mark.parametrize("name", ["replay", "backlog"])
def test_a_trial_stores_a_gigabyte_at_the_most(name: str) -> None:
    """The scenarios are bounded on disk in profile quick."""
    plan = make_plan(load_scenarios(scenario_file(name)), PROFILES["quick"], repeats=1)
    assert max(trial.stored_bytes_max for trial in plan.trials) < 1e9


def test_the_ledger_tells_a_wrong_start() -> None:
    """What lies before the start is not lost, but early where it comes; the first behind it must come."""
    sent, received = SentBook(0), ReceivedBook()
    sent.sent(100)
    sent.confirmed(np.arange(100))
    sent.skipped = 40

    def take(*seqs: int) -> None:
        numbers = np.array(seqs)
        whole = np.ones(len(seqs), np.bool_)
        received.receive(Parsed(numbers, numbers, np.zeros_like(numbers), numbers, whole), 0)

    take(*range(41, 100))
    account = settle([sent], [received])
    assert (account.lost, account.early, account.begun, account.examples["lost"]) == (1, 0, 0, [(0, 40, 40)])
    take(40)
    assert (settle([sent], [received]).lost, settle([sent], [received]).begun) == (0, 1)
    take(39)
    account = settle([sent], [received])
    assert (account.early, account.lost, account.duplicated) == (1, 0, 0)


def test_a_drain_in_memory() -> None:
    """Producers go on meanwhile: latencies are of what was due in the window, counts are of everything."""
    record, _ = ran(planned("rabbitmq", RabbitMQ(), rate=Rate.fixed(500), producers=2), memory_endpoint("rabbitmq"))
    assert due(record) == 4_000 + 500
    assert record["sent"] == record["received"]
    assert (record["lost"], record["duplicated"]) == (0, 0)
    assert record["latency_ns"]["e2e"]["count"] == record["latency_ns"]["ack"]["count"] == 500
    backlog = record["backlog"]
    assert (backlog["msgs"], backlog["bytes"], backlog["early_msgs"]) == (4_000, 400_000, 0)
    assert backlog["first_ns"] > 0
    assert backlog["build_s"] > 0
    assert not against(record, NOISE)


def test_what_a_drain_comes_to() -> None:
    """100 messages wait and 10 a second come; 30 a second go from 1 s on: 120 are read when 5 s have passed."""
    trial = replace(planned("rabbitmq", RabbitMQ(), backlog_msgs=100, rate=Rate.fixed(10)), duration_s=10.0)
    flow, outcome = Flow(), Outcome(start_ns=0, build_s=4.0)
    for at_s in range(11):
        flow.enter(at_s * SECOND_NS, 100 + 10 * at_s, min(100 + 10 * at_s, max(0, 30 * (at_s - 1))))
    seen = Drained(opened_ns=SECOND_NS // 2, first_ns=SECOND_NS, backlog_msgs=100)
    outcome.results.append(Result("consumer0", "consumer", drained=seen))
    found = drained(trial, flow, outcome, None)
    assert found is not None
    assert (found["build_msgs_per_s"], found["first_ns"]) == (25.0, SECOND_NS // 2)
    assert (found["catch_up_s"], found["drain_msgs_per_s"]) == (6.0, 30.0)  # 160 by then, of which 10 are under way
    replay = replace(trial, rate=Rate.saturate())
    seen.backlog_ns = seen.last_ns = 3 * SECOND_NS
    found = drained(replay, flow, outcome, None)
    assert found is not None
    assert (found["catch_up_s"], found["drain_msgs_per_s"], replayed_s(replay, outcome)) == (3.0, 50.0, 3.0)
    seen.backlog_msgs = 99
    assert (drained(replay, flow, outcome, None) or {})["catch_up_s"] is None


def test_a_queue_that_cannot_seek_is_found_out() -> None:
    """A consumer that begins elsewhere than it was told to makes the trial invalid: the check can fail."""
    record, _ = ran(planned("kafka", Kafka(), start_from="offset"), memory_endpoint("kafka"))
    assert record["backlog"]["early_msgs"] == 2_000
    assert [each["name"] for each in against(record, NOISE)] == ["start"]
    assert record["verdict"]["status"] == "invalid"


def test_a_drain_that_is_too_slow_has_no_time_to_catch_up() -> None:
    """A consumer that works longer on each message than producers take to send one never catches up."""
    trial = planned("rabbitmq", RabbitMQ(), rate=Rate.fixed(400), think_ms=2, backlog_msgs=1_000)
    record, _ = ran(trial, memory_endpoint("rabbitmq"))
    assert record["backlog"]["catch_up_s"] is None
    assert due(record) == 1_400
    assert record["received"] == record["sent"]
    assert record["latency_ns"]["e2e"]["p50"] > 1e9  # a new one waits for a thousand of 2 ms


SEEKS = [
    ("rabbitmq", RabbitMQ(driver="stream"), "offset"),
    ("rabbitmq", RabbitMQ(driver="stream"), "time"),
    ("rabbitmq", RabbitMQ(driver="stream", single_active_consumer=True), "offset"),
    ("kafka", Kafka(), "offset"),
    ("kafka", Kafka(), "time"),
    ("kafka", Kafka(driver="confluent"), "offset"),
    ("kafka", Kafka(driver="confluent", group_protocol="static"), "time"),
]


@pytest.mark.parametrize(("broker", "part", "start_from"), SEEKS)
def test_a_replay_begins_where_it_is_told(
    endpoints: dict[BrokerName, Endpoint], broker: BrokerName, part: Any, start_from: str
) -> None:
    """The broker hands out first what it stored at the middle's offset, and then everything behind it, once."""
    record, outcome = ran(planned(broker, part, start_from=start_from), endpoints[broker])
    (seen,) = [result.drained for result in outcome.results if result.drained is not None]
    assert seen.firsts == {0: (2_000, 0, 2_000)}  # the broker's own offset, the producer, its message
    assert (record["sent"], record["acked"], record["received"], record["lost"]) == (4_000, 4_000, 2_000, 0)
    assert record["latency_ns"] == dict.fromkeys(record["latency_ns"])  # nobody was to receive them yet
    assert record["backlog"]["skipped_msgs"] == 2_000
    assert record["window_s"] == pytest.approx(min(1.0, record["backlog"]["catch_up_s"]))
    assert record["broker_counts"]["depth_at_end"] == 0
    assert not against(record, NOISE)


@pytest.mark.parametrize(
    ("broker", "part"),
    [("rabbitmq", RabbitMQ(driver="stream", partitions=2)), ("kafka", Kafka(partitions=2))],
    ids=["stream", "kafka"],
)
def test_the_end_of_a_backlog(endpoints: dict[BrokerName, Endpoint], broker: BrokerName, part: Any) -> None:
    """From the end of each of two partitions on there is only what two producers send later, and all of that."""
    trial = planned(broker, part, start_from="end", rate=Rate.fixed(500), producers=2, message=Message(keys=100))
    record, outcome = ran(trial, endpoints[broker])
    assert (due(record), record["received"], record["lost"]) == (4_500, record["sent"] - 4_000, 0)
    assert record["latency_ns"]["e2e"]["count"] == 500
    firsts = [result.drained.firsts for result in outcome.results if result.drained is not None]
    assert sum(offset for offset, _, _ in firsts[0].values() if offset is not None) == 4_000
    assert not against(record, NOISE)


@pytest.mark.parametrize(
    ("broker", "part", "durability"),
    [("rabbitmq", RabbitMQ(), "broker"), ("rabbitmq", RabbitMQ(), "flushed"), ("kafka", Kafka(), "broker")],
    ids=["classic", "quorum", "kafka"],
)
def test_the_broker_holds_the_backlog_when_consumers_begin(
    endpoints: dict[BrokerName, Endpoint],
    monkeypatch: pytest.MonkeyPatch,
    broker: BrokerName,
    part: Any,
    durability: str,
) -> None:
    """By its own count all of it waits at that moment; then it is drained while producers go on."""
    depths: list[int] = []
    start = Fleet._start

    def started(self: Fleet, board: Board) -> None:
        assert isinstance(self.watcher, Live)
        depths.append(self.watcher.gauge(0).depth_msgs)
        start(self, board)

    monkeypatch.setattr(Fleet, "_start", started)
    sized = {"backlog_msgs": None, "backlog_bytes": 400_000}  # messages of 100 B
    record, _ = ran(planned(broker, part, rate=Rate.fixed(300), durability=durability, **sized), endpoints[broker])
    assert depths == [4_000]
    assert (due(record), record["received"], record["duplicated"]) == (4_300, record["sent"], 0)
    assert record["latency_ns"]["e2e"]["count"] == 300
    assert record["rss_bytes"]["broker"] > 1 << 20
    found = {each["name"]: each["passed"] for each in record["verdict"]["checks"]}
    assert found["steady state"] is found["start"] is True  # a planned backlog is no doubt
    assert not against(record, NOISE)
    (comparison,) = comparisons([completed(record)])  # as a report reads it
    assert load_label(comparison.shared) == "a backlog of 4,000 from its beginning"
    if record["verdict"]["status"] != "invalid":
        (note,) = notes(comparison.points)
        assert "drained at" in note
