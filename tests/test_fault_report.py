"""What a report says of trials with faults: their cost in latency, their drawing, the table's cells that cite them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.outages import PERCENTS, cost, costs, courses, spans
from loadgen.cli import main
from loadgen.histogram import Histogram
from loadgen.report import fault_chart, hurt, promises, render_run, timeouts, write_report
from loadgen.report.slowest import worst
from loadgen.report.table import make_table
from loadgen.runs import RunWriter, load

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.report.table import Cell
    from loadgen.runs import Run

FIXED = {"kind": "fixed", "msgs_per_s": 400.0}
FAULT = {
    "what": "kill of the leader", "kind": "kill", "hurts": "nodes", "nodes": [2], "at_s": 3.2, "mended_after_s": 5.0,
    "confirm_gap_s": 1.5, "confirm_gap_at_s": 3.1, "delivery_gap_s": 1.6, "delivery_gap_at_s": 3.15,
    "back_after_s": 1.9, "error": None,
}  # fmt: skip
EXACT = {"settings": {"transaction_ms": 20, "isolation_level": "read_committed"}, "duplicated": 0, "id": "exact"}
HURT_SECONDS = (3, 4, 5)  # from 3.2 s to 5.1 s, in whole seconds


def hurt_trial(broker: str, durability: str = "replicated", **given: Any) -> dict[str, Any]:
    """A trial under one kill in which all went well."""
    name = given.pop("scenario", "delivery-kill-leader")
    record = synthetic.trial(
        broker, name, durability=durability, rate=FIXED, window_s=synthetic.LONG_WINDOW_S, interval_s=1.0
    )
    account = {
        "confirmed_lost": 0, "unconfirmed_lost": 0, "duplicated": 5, "dup_resend": 2, "dup_redelivery": 3,
        "reordered_redelivery": 3, "faults": [FAULT],
    }  # fmt: skip
    return record | account | given


def write(writer: RunWriter, record: dict[str, Any], rng: np.random.Generator) -> None:
    """Its messages, slow in the seconds of the fault, and what the observer saw each second."""
    synthetic.write_long_trial(writer, record, 1e6, rng, dict.fromkeys(HURT_SECONDS, 900e6))
    rows = [
        {
            "trial": record["id"], "agent": "observer", "elapsed_s": float(second),
            "acked_msgs_per_s": 0.0 if second == 6 else 400.0, "received_msgs_per_s": 9_000.0 if second == 8 else 400.0,
        }
        for second in range(1, 15)
    ]  # fmt: skip
    writer.add_series(rows)


def run_of(root: Path, *records: dict[str, Any], name: str = "faults", **header: Any) -> Run:
    """A finished run of these trials."""
    rng = np.random.default_rng(3)
    writer = RunWriter(root, name, synthetic.HEADER | header)
    for record in records:
        write(writer, record, rng)
    return load(writer.finish("complete"))


def cell(run: Run, feature: str, broker: str = "kafka", other: Run | None = None) -> Cell:
    """One broker's side of a row."""
    row = next(row for row in make_table(run, other).rows if row.feature == feature)
    return next(each for each in row.cells if each.broker == broker)


# --- what a fault cost ---


def test_latency_under_faults_is_that_of_the_seconds_they_touch(tmp_path: Path) -> None:
    """By the log's own lines: those of the fault's seconds, and all others of the window."""
    record = hurt_trial("kafka")
    run = run_of(tmp_path, record)
    found = cost(run, run.trial(record["id"]))
    assert found.intervals == HURT_SECONDS
    for told, is_under in ((found.under, True), (found.apart, False)):
        whole = Histogram()
        for interval in run.within(record["id"], "e2e"):
            if (round(interval.start_s) in HURT_SECONDS) == is_under:
                whole.merge(interval.histogram)
        assert told == tuple(whole.percentiles(PERCENTS))
    assert found.under is not None
    assert found.apart is not None
    assert found.under[2] > 900e6 > found.apart[2]
    (told,) = hurt.sentences(run, costs(run))
    assert re.search(r"p99\.9 of messages intended in these 3 seconds was 9\d\d ms, of all others \d\.\d\d ms", told)


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.floats(0, 30), st.none() | st.floats(0, 30), st.none() | st.floats(0, 9)),
        min_size=1,
        max_size=5,
    ),
    st.floats(1, 25),
)
def test_spans_of_faults_lie_in_the_window(told: list[Any], window_s: float) -> None:
    """Whatever faults there are: each begins inside the window and ends there, and none ends before it begins."""
    faults = [
        FAULT | {"at_s": at_s, "mended_after_s": mended_s, "back_after_s": back_s, "delivery_gap_s": gap_s}
        for at_s, mended_s, back_s, gap_s in sorted(told, key=lambda each: each[0])
    ]
    found = spans({"faults": faults, "window_s": window_s})
    assert len(found) == sum(each["at_s"] < window_s for each in faults)
    assert all(0 <= begin_s <= end_s <= window_s for begin_s, end_s in found)


@pytest.mark.parametrize(
    ("given", "end_s"),
    [
        ({}, 5.1),
        ({"back_after_s": None}, 12.0),
        ({"back_after_s": None, "delivery_gap_s": None}, 8.2),
        ({"back_after_s": None, "at_s": 0.5}, 5.5),
    ],
)
def test_a_fault_lasts_until_the_rate_is_back(given: dict[str, Any], end_s: float) -> None:
    """Not back: to the window's end. Where no rate could be compared, until it was mended."""
    ((begin_s, found_s),) = spans({"faults": [FAULT | given], "window_s": 12.0})
    assert (begin_s, found_s) == (given.get("at_s", 3.2), pytest.approx(end_s))


def test_the_same_again_and_again_is_told_as_one(tmp_path: Path) -> None:
    """By the shortest and the longest of its gaps; what could not be carried out stands by itself."""
    kills = [
        FAULT | {"at_s": at_s, "nodes": [node], "confirm_gap_s": gap_s, "back_after_s": back_s}
        for at_s, node, gap_s, back_s in ((3.2, 2, 1.5, 1.9), (6.0, 1, 0.5, None), (9.0, 3, 2.5, 2.9))
    ]
    failed = FAULT | {"at_s": 11.0, "error": "not carried out"}
    run = run_of(tmp_path, hurt_trial("kafka", "broker", faults=[*kills, failed]))
    (said,) = hurt.sentences(run, costs(run))
    assert (
        "3 × kill of the leader (node 1, 2, 3, at 3 to 9 s): nothing was confirmed for 0.5 to 2.5 s and nothing was "
        "delivered for 1.6 s, the rate was back after 1.9 to 2.9 s, 1 time not before the next one or the end; mended "
        "after 5.0 s; kill of the leader (node 2) at 11 s: not carried out."
    ) in said


# --- the timeouts beside a gap ---

CLUSTERS = {
    "rabbitmq × 3": {"environment": {"aten": {"poll_interval": 5000}, "kernel": {"net_ticktime": 60}, "rabbit": []}},
    "kafka × 3": {"broker": {"broker.session.timeout.ms": "9000", "controller.quorum.fetch.timeout.ms": "2000"}},
    "kafka × 3, linked through a proxy": {"broker": {"broker.session.timeout.ms": "7000"}},
}
KAFKA_WAITS = "(broker.session.timeout.ms is 9 s, controller.quorum.fetch.timeout.ms 2 s)"
LINKED = {"links": {"bytes": 10, "cpu_s": 0.1}}
PAUSE = {"kind": "pause", "mended_after_s": 12.0}
CUT = {"kind": "cut", "hurts": "nodes_network", "mended_after_s": 20.0}


@pytest.mark.parametrize(
    ("broker", "durability", "fault", "more", "told"),
    [
        ("kafka", "replicated", {}, {}, KAFKA_WAITS),
        ("kafka", "replicated_flushed", PAUSE, {}, KAFKA_WAITS),
        ("kafka", "replicated", PAUSE | {"mended_after_s": 3.0}, {}, "(controller.quorum.fetch.timeout.ms is 2 s)"),
        ("kafka", "replicated", CUT, LINKED, "(broker.session.timeout.ms is 7 s)"),
        ("rabbitmq", "replicated", PAUSE, {}, "(aten.poll_interval is 5 s)"),
        (
            "rabbitmq", "replicated", PAUSE | {"mended_after_s": 45.0}, {},
            "(aten.poll_interval is 5 s, kernel.net_ticktime 60 s)",
        ),
        ("rabbitmq", "replicated", {}, {}, ""),  # killed: its connections end at once
        ("kafka", "broker", {}, {}, ""),  # one node: nobody takes over
        ("kafka", "replicated", {"nodes": [1, 2, 3]}, {}, ""),  # nor where all fall
        ("kafka", "replicated", {"kind": "restart"}, {}, ""),  # leaderships are handed over
        ("kafka", "replicated", CUT | {"hurts": "clients_network"}, LINKED, ""),  # nodes hear
        ("rabbitmq", "replicated", CUT | {"kind": "reset"}, LINKED, ""),  # closed, and not silent
        ("rabbitmq", "replicated", CUT | {"kind": "delay"}, LINKED, ""),
    ],
)  # fmt: skip
def test_timeouts_stand_beside_a_gap_as_the_broker_told_them(
    tmp_path: Path, broker: str, durability: str, fault: dict[str, Any], more: dict[str, Any], told: str
) -> None:
    """Read from the configuration that the run recorded of that cluster, where others waited for a silent node."""
    brokers = {name: {"version": "1", "configuration": each} for name, each in CLUSTERS.items()}
    record = hurt_trial(broker, durability, faults=[FAULT | fault], **more)
    run = run_of(tmp_path, record, brokers=brokers)
    (said,) = hurt.sentences(run, costs(run))
    assert f"nothing was delivered for 1.6 s{f' {told}' if told else ''}, the rate was back" in said
    meant = promises.note(run)
    assert ("nodes waited for" in meant) == bool(told)
    assert all(f"{name} (" in meant for name in re.findall(r"[a-z]+\.[a-z_.]+", told))


@pytest.mark.parametrize("broker", sorted(timeouts.KNOWN))
def test_real_brokers_tell_of_each_timeout_by_its_name(broker: str) -> None:
    """In the configuration that a run keeps of them: one that is called otherwise some day is missed here."""
    run = load("results/example")
    configuration = run.header["brokers"][broker]["configuration"]
    values = [timeouts._at(configuration, known.path) for known in timeouts.KNOWN[broker]]
    assert all(value is not None and value > 0 for value in values)


def test_a_run_that_does_not_tell_a_timeout_has_none(tmp_path: Path) -> None:
    """Brokers of another make, an earlier schema: the gap stands alone, and no default is invented."""
    run = run_of(tmp_path, hurt_trial("kafka"))
    (said,) = hurt.sentences(run, costs(run))
    assert "timeout" not in said
    assert "nodes waited for" not in promises.note(run)


# --- the drawing ---


def test_trials_with_faults_are_drawn_beside_each_other(tmp_path: Path) -> None:
    """One drawing a scenario, both brokers and each class in it, with what happened in words for who cannot see it."""
    records = [hurt_trial(broker, each) for each in ("broker", "replicated") for broker in ("rabbitmq", "kafka")]
    run = run_of(tmp_path, *records, hurt_trial("kafka", scenario="failover"))
    both, alone = fault_chart.draw(courses(run))
    assert (both.name, both.title) == ("faults-1", "delivery-kill-leader: before, under and after the fault")
    for name in ("RabbitMQ (amqp)", "Kafka (kafka)"):
        assert both.svg.count(f">{name}, class ") == 2
    assert both.svg.count(">kill, node 2<") == both.svg.count(">mended<") == 4
    assert both.svg.count(">9,000<") == 4, "a backlog that came at once, off the scale"
    assert "Kafka, class replicated: kill of the leader at second 3, nothing confirmed for 1.5 s" in both.note
    assert "RabbitMQ" not in alone.svg
    assert worst(run, make_table(run).tails) == [], "why these seconds are slow is no riddle, and drawn already"


def test_alarms_and_rebalances_stand_beside_the_fault(tmp_path: Path) -> None:
    """What the observer heard of the broker is drawn and told; a collector's pause is not news here."""
    events = [
        {"kind": "alarm", "at_s": 4.0, "duration_s": 3.0, "text": "memory"},
        {"kind": "gc pause", "at_s": 5.0, "duration_s": 0.1, "text": "Full"},
    ]
    run = run_of(tmp_path, hurt_trial("rabbitmq", observer={"events": events}))
    (chart,) = fault_chart.draw(courses(run))
    assert chart.svg.count(">alarm: memory<") == 1
    assert "alarm: memory at second 4" in chart.note
    assert "gc pause" not in chart.svg + chart.note


def test_latencies_of_an_overload_are_called_so(tmp_path: Path) -> None:
    """Where a good part of the load was never sent, the fault alone does not answer for the latencies."""
    run = run_of(tmp_path, hurt_trial("kafka", sent_msgs_per_s=100.0), hurt_trial("rabbitmq", sent_msgs_per_s=395.0))
    over, carried = hurt.sentences(run, costs(run))
    assert "Only 100 msg/s of the 400 msg/s that were due was sent" in over
    assert "were due" not in carried


def test_a_trial_without_times_is_drawn_by_its_rates(tmp_path: Path) -> None:
    """A closed loop has no response times; one cut short before its window is left out."""
    writer = RunWriter(tmp_path, "closed", synthetic.HEADER)
    writer.add_trial(hurt_trial("kafka", rate={"kind": "saturate", "msgs_per_s": None}, offered_msgs_per_s=None))
    writer.add_trial(hurt_trial("rabbitmq", status="failed", error="x", window_s=None, id="cut"))
    (chart,) = fault_chart.draw(courses(load(writer.finish("complete"))))
    assert ">no response times: a closed loop<" in chart.svg
    assert "RabbitMQ" not in chart.svg


# --- the table's cells ---


def test_cells_fall_back_where_the_trials_with_faults_are_deleted(tmp_path: Path) -> None:
    """Delivery and order cite them by sums, class and ids; without them nothing is measured."""
    run = run_of(tmp_path, hurt_trial("kafka"), hurt_trial("kafka", "broker"), hurt_trial("kafka", **EXACT))
    delivery, order = cell(run, "Delivery semantics"), cell(run, "Message ordering")
    assert delivery.judgement == "supports"
    assert delivery.reason == "at least once and exactly once held under the faults named here"
    cited = {(figure.point, figure.what): figure for figure in delivery.figures}
    lost = cited["at least once, class replicated, under kill of the leader", "confirmed and lost"]
    assert (lost.estimate.median, lost.trial_ids) == (0, (run.records[0]["id"],))
    assert (
        cited["at least once, class broker, under kill of the leader", "came again by redelivery"].estimate.median == 3
    )
    assert "exactly once, class replicated, read_committed" in " ".join(point for point, _ in cited)
    assert order.judgement == "cannot tell here"
    assert "0 of 4,800 came out of order and 9 more by redelivery" in order.reason
    assert "Delivery semantics · Kafka: claimed" in render_run(run)
    document = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    document["trials"] = [record for record in document["trials"] if not record["faults"]]
    (run.path / "run.json").write_text(json.dumps(document), encoding="utf-8")
    left = load(run.path)
    for feature in ("Delivery semantics", "Message ordering"):
        assert (cell(left, feature).judgement, cell(left, feature).figures) == ("not measured", ())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"confirmed_lost": 2, "verdict": {"status": "invalid", "bound_by": "unknown", "reasons": []}}, "contradicts"),
        ({"confirmed_lost": 2, "faults": [FAULT | {"nodes": [1, 2, 3]}]}, "cannot tell here"),
        ({"faults": [FAULT | {"error": "not carried out"}]}, "not measured"),
        ({"status": "partial"}, "not measured"),
    ],
)
def test_a_broken_promise_contradicts_and_what_was_not_tried_does_not(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    """A loss strikes the trial from rates and counts here; all nodes at once are more than replicas promise."""
    found = cell(run_of(tmp_path, hurt_trial("kafka", **given)), "Delivery semantics")
    assert found.judgement == said
    if said == "contradicts":
        assert "at least once: 2 confirmed and lost" in found.reason


# --- another run's trials ---


def test_another_runs_trials_are_cited_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its id and date in each figure, a link into its page, and no word of them without the option."""
    faults = run_of(tmp_path, hurt_trial("kafka"))
    write_report(faults)
    run_of(tmp_path, synthetic.trial("kafka", "latency", rate=FIXED), name="compare")
    assert main(["report", "--results", str(tmp_path)]) == 0
    assert "Delivery semantics" not in capsys.readouterr().out
    assert main(["report", "--results", str(tmp_path), "--faults", "latest"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"class replicated, under kill of the leader (run {faults.id} of 20" in said
    page = (tmp_path / "latest" / "report.html").read_text(encoding="utf-8")
    assert 'aria-label="delivery-kill-leader: ' in (faults.path / "report.html").read_text(encoding="utf-8")
    assert f'href="../{faults.id}/report.html#trial-1"' in page
    assert 'id="trial-1"' in (faults.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"brokers": {"kafka × 3": {"version": "3.9.0"}}}, "it ran kafka 3.9.0; expected 4.3.1"),
        ({"brokers": {"memory": {"version": "1"}}}, "it has no kafka and no rabbitmq"),
        ({"environment": {"cpu": {"model": "Other", "cores": 2}}}, "another machine: CPU is Other; expected Invented"),
    ],
)
def test_another_machine_or_version_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], header: dict[str, Any], words: str
) -> None:
    """By name it is one line; as the latest it is passed over."""
    faults = run_of(tmp_path, hurt_trial("kafka"), **header)
    run_of(tmp_path, synthetic.trial("kafka", "latency", rate=FIXED), name="compare")
    for wanted, told in ((faults.id, words), ("latest", "no complete run in"), ("nothing", "no run there")):
        assert main(["report", "--results", str(tmp_path), "--faults", wanted]) == 64
        assert told in capsys.readouterr().err
    assert main(["compare", "--brokers", "memory", "--results", str(tmp_path / "empty"), "--faults", "latest"]) == 64
    assert "no complete run in" in capsys.readouterr().err
