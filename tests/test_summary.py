"""The run in words, class by class: who led is what the interval shows, and what is left open is said."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.report import render_run
from loadgen.report.content import gather
from loadgen.report.summary import Finding, findings, lines, unsaid
from loadgen.report.table import make_table
from loadgen.runs import RunWriter, load
from loadgen.stats.confidence import estimate, paired_ratio

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.runs import Run


def finding(kafka: list[float], rabbitmq: list[float], quantity: str = "throughput", **given: Any) -> Finding:
    """A comparison of these values, paired by their order."""
    ratio = paired_ratio(zip(kafka, rabbitmq, strict=True))
    own = {"durability": "broker", "load": "x: 1 KiB", **given}
    return Finding(quantity=quantity, kafka=estimate(kafka), rabbitmq=estimate(rabbitmq), ratio=ratio, **own)


def run_of(root: Path, records: list[dict[str, Any]]) -> Run:
    """A finished run of these trials, without histograms."""
    writer = RunWriter(root, "some", synthetic.HEADER)
    for record in records:
        writer.add_trial(record)
    return load(writer.finish("complete"))


def left_open(run: Run) -> str:
    """What the run's comparisons leave open."""
    table = make_table(run)
    return " ".join(unsaid(table, findings(table)))


VALUES = st.lists(st.floats(1.0, 1e6), min_size=2, max_size=6)


@settings(max_examples=60)
@given(st.data(), st.sampled_from(["throughput", "capacity", "p50", "p99"]))
def test_the_leader_is_who_the_interval_shows(data: st.DataObject, quantity: str) -> None:
    """More throughput or less latency, and only where the interval excludes 1; the factor is at least 1 then."""
    kafka = data.draw(VALUES)
    rabbitmq = data.draw(st.lists(st.floats(1.0, 1e6), min_size=len(kafka), max_size=len(kafka)))
    found = finding(kafka, rabbitmq, quantity)
    low, high = found.ratio.low, found.ratio.high
    assert low is not None
    assert high is not None
    is_better = {"kafka": low > 1, "rabbitmq": high < 1}
    if quantity in {"p50", "p99"}:
        is_better = {"kafka": high < 1, "rabbitmq": low > 1}
    assert (found.leader == "kafka") == is_better["kafka"]
    assert (found.leader == "rabbitmq") == is_better["rabbitmq"]
    if found.leader in {"kafka", "rabbitmq"}:
        assert (found.factor.low or 0) > 1


def test_one_comparison_is_told_in_full() -> None:
    """Leader, factor with its interval, both values, the load, the pairs and what else had a part."""
    (line,) = lines([finding([300.0, 310.0, 290.0], [100.0, 103.0, 97.0], limits="Kafka bound by host")])
    assert line.startswith("Class broker, throughput: Kafka led, 3.00× (")
    assert line.endswith("(300 msg/s for Kafka, 100 msg/s for RabbitMQ; x: 1 KiB; 3 pairs; Kafka bound by host).")


def test_an_interval_that_is_not_printed_is_not_spoken_of() -> None:
    """How sure several intervals are together is said where at least one of them can be read."""
    wide, narrow = finding([1.0, 1e6], [1.0, 1.0]), finding([300.0, 310.0, 290.0], [100.0, 103.0, 97.0], "p99")
    assert not any("intervals" in line for line in lines([wide, wide]))
    assert any(
        "Each of these 2 intervals (those too wide to print among them) is at" in line for line in lines([wide, narrow])
    )
    assert any("Each of these 2 intervals is at" in line for line in lines([narrow, narrow]))


def test_many_loads_are_counted() -> None:
    """Who led in how many, the ends of the factors with their loads, and those that show nothing."""
    found = [
        finding([1e6, 1.1e6, 1.2e6], [2e6, 2.2e6, 2.4e6], "p99", load="a"),
        finding([1e6, 1.1e6, 1.2e6], [4e6, 4.4e6, 4.8e6], "p99", load="b"),
        finding([1e6, 1.1e6, 1.2e6], [8e6, 8.8e6, 9.6e6], "p99", load="c"),
        finding([1e6, 1.0e6, 1.2e6], [1e6, 1.2e6, 1.0e6], "p99", load="d"),
        finding([1e6], [8e6], "p99", load="e"),
    ]
    line, level = lines(found)
    assert level == "Each of these 4 intervals is at 95 %, so that all of them hold in 95 % of runs."
    assert line == (
        "Class broker, p99: 5 loads; Kafka led in 3, 2.00× (2.00–2.00) less (a) … 8.00× (8.00–8.00) less (c); no "
        "difference shown in 1; one repeat each, which cannot tell, in 1."
    )


@pytest.mark.parametrize(
    ("unreached", "leader"),
    [((), "kafka"), (("kafka",), "kafka"), (("rabbitmq",), "not reached"), (("kafka", "rabbitmq"), "not reached")],
)
def test_a_limit_that_was_not_reached_leads_only_from_above(unreached: tuple[str, ...], leader: str) -> None:
    """At least so much leads who has less; where the smaller one may be larger, nothing is compared."""
    found = finding([300.0, 310.0, 290.0], [100.0, 103.0, 97.0], "capacity", unreached=unreached)
    assert found.leader == leader
    (line,) = lines([found])
    assert ("led, at least 3.00×" in line) == (unreached == ("kafka",))


def test_every_class_of_a_comparison_has_its_line(tmp_path: Path) -> None:
    """All three formats say who led in which class, by how much, under which load."""
    run = synthetic.compare_run(tmp_path)
    content = gather(run)
    *said, level = content.summary
    assert [line.split(":")[0] for line in said] == [
        "Class none, throughput", "Class broker, throughput", "Class broker, p50", "Class broker, p99",
        "Class flushed, throughput",
    ]  # fmt: skip
    assert level.startswith("Each of these 7 intervals is at 99.3 %")  # 1 - 0.05 / 7
    assert re.search(r"Class none, throughput: Kafka led, 3\d\.\d× \(.+–.+\) more", content.summary[0])
    assert re.search(
        r"p50: 2 loads; RabbitMQ led in 2, 2\.\d+× .* less \(latency: 1 KiB, [15],000 msg/s", content.summary[2]
    )
    html, text = synthetic.page_of(run), re.sub(r"\s+", " ", render_run(run))
    markdown = (run.path / "report.md").read_text()
    for line in content.summary:
        assert all(line in each for each in (html, text, markdown))


def test_what_only_one_broker_has_is_said(tmp_path: Path) -> None:
    """A side without valid trials, and one that was never measured, compare nothing."""
    invalid = {"status": "invalid", "bound_by": "unknown", "reasons": ["x"]}
    records = [
        synthetic.trial("kafka"), synthetic.trial("rabbitmq", verdict=invalid),
        synthetic.trial("kafka", durability="none"),
    ]  # fmt: skip
    words = left_open(run_of(tmp_path, records))
    assert "throughput in class broker: RabbitMQ none of 1 trial counts" in words
    assert "throughput in class none: RabbitMQ not measured" in words


def test_who_had_the_same_to_do_and_did_not_do_it_is_named(tmp_path: Path) -> None:
    """Both were asked, and no trial of one counts: that is said, and not that nobody asked."""
    invalid = {"status": "invalid", "bound_by": "unknown", "reasons": ["x"]}
    run = run_of(tmp_path, [synthetic.trial("kafka"), synthetic.trial("rabbitmq", verdict=invalid)])
    said = re.sub(r"\s+", " ", render_run(run))
    assert "Both brokers had the same to do, but no trial of RabbitMQ counts" in said
    promise = "in class broker a confirmed message survives kill -9 of the broker, not a power cut"
    assert promise in synthetic.page_of(run)
    assert promise in (run.path / "report.md").read_text()


def test_different_classes_are_no_comparison(tmp_path: Path) -> None:
    """Each broker in a class of its own: their figures stand beside each other for nothing."""
    words = left_open(
        run_of(
            tmp_path, [synthetic.trial("kafka", durability="none"), synthetic.trial("rabbitmq", durability="flushed")]
        )
    )
    assert "different durability classes (RabbitMQ in flushed; Kafka in none)" in words


def test_single_repeats_and_sweeps_are_said(tmp_path: Path) -> None:
    """One repeat each cannot tell; a knob that one broker sweeps has no partner."""
    assert "This comparison stands on one repeat each" in left_open(
        run_of(tmp_path / "single", [synthetic.trial("kafka"), synthetic.trial("rabbitmq")])
    )
    swept = [
        synthetic.trial(
            "rabbitmq",
            id=f"throughput/rabbitmq/{value}",
            settings={"prefetch": value},
            point={"rabbitmq.prefetch": value},
        )
        for value in (1, 10)
    ]
    assert "have no partner on the other: throughput, class broker" in left_open(
        run_of(tmp_path / "swept", [*swept, synthetic.trial("kafka")])
    )


def test_brokers_that_were_hurt_are_not_compared(tmp_path: Path) -> None:
    """Latencies of trials in which a node was killed are of the kill, and stand elsewhere."""
    fault = {"what": "kill", "kind": "kill", "nodes": [1], "error": None}
    rate = {"kind": "fixed", "msgs_per_s": 100.0}
    latency = {"e2e": synthetic.summary_ns(1e6)}
    records = [
        synthetic.trial(broker, "x", rate=rate, latency_ns=latency, faults=faults, durability=durability)
        for broker in ("kafka", "rabbitmq")
        for faults, durability in (([fault], "broker"), (None, "flushed"))
    ]
    found = findings(make_table(run_of(tmp_path, records)))
    assert [(each.durability, each.quantity) for each in found] == [("flushed", "p50"), ("flushed", "p99")]


def test_capacities_are_compared_as_their_searches_allow(tmp_path: Path) -> None:
    """Bound by the broker: a leader; where one was not reached and might be larger: nothing."""
    content = gather(synthetic.search_run(tmp_path / "reached"))
    assert not content.summary  # the first sentence says all of it
    rng = np.random.default_rng(2)
    writer = RunWriter(tmp_path / "open", "search", synthetic.HEADER)
    for broker, capacity in synthetic.CAPACITIES.items():
        for repeat in (1, 2, 3):
            is_lower = broker == "rabbitmq"
            synthetic.write_search(
                writer, broker, capacity, rng, repeat=repeat, is_lower_bound=is_lower, bound_by="host"
            )
    words = left_open(load(writer.finish("complete")))
    assert "A limit that was not reached compares no brokers: load: 1 KiB, 1 consumer" in words
    assert "clients or machine set a rate" in words
