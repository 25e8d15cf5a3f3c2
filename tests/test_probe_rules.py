"""The rules of the table's rows that probes and patterns answer: what they call supported, contradicted, or unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import synthetic

from loadgen.probes import Finding
from loadgen.report.article import ARTICLE
from loadgen.report.evidence import finding_figures
from loadgen.report.pattern_rules import ScalingClaim, UseClaim
from loadgen.report.probe_rules import DeliveryClaim, EffortClaim, LimitedClaim, SizeClaim, SpokenClaim
from loadgen.report.rules import Figure
from loadgen.report.table import make_table
from loadgen.runs import RunWriter, load
from loadgen.stats.confidence import Estimate, estimate

if TYPE_CHECKING:
    from pathlib import Path

MB = 1 << 20


def figure(point: str, what: str, *values: float, unit: Any = "number", **more: Any) -> Figure:
    """A figure of these values; counts as they are, others with their interval."""
    seen = estimate(values) if unit != "number" else Estimate(values, sorted(values)[len(values) // 2], None, None)
    repeats = dict(enumerate(values, 1))
    bound_by = more.pop("bound_by", "")
    return Figure(
        what, unit, point, "", seen, ("id",), (), bound_by, is_found=unit == "number", by_repeat=repeats, **more
    )


@pytest.mark.parametrize(
    ("default", "raised", "judgement"),
    [
        (64 * MB, 128 * MB, "supports"),
        (64_000_000, 100 * MB, "supports"),  # "64 MB" is said of both
        (16 * MB, 128 * MB, "contradicts"),
        (64 * MB, 256 * MB, "contradicts"),
        (64 * MB, None, "cannot tell here"),
        (None, 256 * MB, "not measured"),
    ],
)
def test_a_size_is_held_against_both_limits(default: int | None, raised: int | None, judgement: str) -> None:
    """Another default contradicts, and so does a larger message than the most; one that nobody raised is unknown."""
    seen = [("as it comes", default), ("limit raised", raised)]
    figures = [figure(point, "largest message", size) for point, size in seen if size is not None]
    assert SizeClaim(64 * MB, 128 * MB).judge(figures)[0] == judgement


def test_a_protocol_is_spoken_where_a_message_came_back() -> None:
    """All claimed ones must; others that did are named as left out."""
    spoken = [
        figure(f"{name}, some client", "confirmed round trip", 1.0) for name in ("AMQP 0-9-1", "STOMP", "streams")
    ]
    assert SpokenClaim(("AMQP", "STOMP")).judge(spoken) == (
        "supports",
        "a confirmed message went there and back by AMQP, STOMP; and by streams, which the article leaves out",
    )
    assert SpokenClaim(("AMQP", "MQTT")).judge(spoken)[0] == "cannot tell here"


def test_limits_must_take_something_away() -> None:
    """A limit that removed nothing contradicts, one that was not seen at all is unknown."""
    aged, sized = figure("ttl", "aged", 100.0), figure("bytes", "sized", 40.0)
    kept = figure("classic queue", "left", 0.0)
    said = LimitedClaim(("aged", "sized")).judge([aged, sized, kept])
    assert said[0] == "supports"
    assert "classic queue keeps 0" in said[1]
    assert LimitedClaim(("aged", "sized")).judge([aged, figure("bytes", "sized", 0.0)])[0] == "contradicts"
    assert LimitedClaim(("aged", "sized")).judge([aged])[0] == "cannot tell here"


@pytest.mark.parametrize(
    ("lost", "twice", "modes", "judgement"),
    [
        (0, 5, ("at least once",), "supports"),
        (1, 0, ("at least once",), "contradicts"),
        (9, 0, ("at most once",), "supports"),
        (0, 1, ("at most once",), "contradicts"),
        (0, 0, ("exactly once",), "supports"),
        (0, 1, ("exactly once",), "contradicts"),
        (1, 0, ("exactly once",), "contradicts"),
    ],
)
def test_each_mode_has_its_own_breach(lost: int, twice: int, modes: tuple[str, ...], judgement: str) -> None:
    """Repetition breaks at most once, loss at least once, and either one exactly once."""
    figures = [
        figure(f"{modes[0]}, 4 killed", "never processed", lost),
        figure(f"{modes[0]}, 4 killed", "processed more than once", twice),
    ]
    assert DeliveryClaim(modes).judge(figures)[0] == judgement
    assert DeliveryClaim(modes).judge(figures[:1])[0] == (
        "cannot tell here" if modes[0] != "at least once" else judgement
    )


def test_a_mode_that_the_article_leaves_out_is_named() -> None:
    """Both that it held and that it did not."""
    figures = [
        figure(f"{mode}, x", what, count)
        for mode, counts in (("at least once", (0, 3)), ("at most once", (5, 0)), ("exactly once", (0, 2)))
        for what, count in zip(("never processed", "processed more than once"), counts, strict=True)
    ]
    _, reason = DeliveryClaim(("at least once",)).judge(figures)
    assert "at most once held as well, which the article leaves out" in reason
    assert "exactly once did not hold: 2 processed more than once" in reason


EFFORT = ("lines", "calls", "time", "files", "steps")


def test_effort_is_lower_where_more_quantities_are() -> None:
    """One side must lead in twice as many as the other; quantities that nobody named do not count."""
    mine = [figure("start", "lines", 5), figure("start", "calls", 3), figure("start", "time", 1.0, 1.1, 1.2, unit="s")]
    theirs = [
        figure("start", "lines", 9),
        figure("start", "calls", 2),
        figure("start", "time", 3.0, 3.1, 3.2, unit="s"),
    ]
    assert EffortClaim("lower", EFFORT).judge_beside(mine, theirs) == (
        "supports",
        "beside the other broker lower in 2 (lines, time); higher in 1 (calls)",
    )
    assert EffortClaim("higher", EFFORT).judge_beside(theirs, mine)[0] == "supports"
    assert EffortClaim("higher", EFFORT).judge_beside(mine, theirs)[0] == "contradicts"
    assert EffortClaim("lower", EFFORT).judge_beside(mine[:2], theirs[:2])[0] == "cannot tell here"  # one each
    more = (
        [figure("start", "files", 1), figure("start", "steps", 3)],
        [figure("start", "files", 2), figure("start", "steps", 2)],
    )
    assert (
        EffortClaim("lower", EFFORT).judge_beside(mine + more[0], theirs + more[1])[0] == "cannot tell here"
    )  # three to two
    assert EffortClaim("lower", EFFORT).judge_beside(mine, [])[0] == "cannot tell here"
    assert EffortClaim("lower", ("calls",)).judge_beside(mine, theirs)[0] == "contradicts"


def rates(by_places: dict[int, tuple[float, ...]], bound_by: str = "broker") -> list[Figure]:
    """Throughput at each number of places."""
    return [
        figure("throughput", f"{places} queues", *values, unit="msgs_per_s", at=float(places), bound_by=bound_by)
        for places, values in by_places.items()
    ]


def test_scaling_is_more_by_more_places() -> None:
    """A higher interval supports; lower ones everywhere contradict where the broker is the limit; else nobody knows."""
    claim = ScalingClaim("queues")
    grows = {1: (10.0, 10.1, 10.2), 2: (18.0, 18.1, 18.2), 4: (30.0, 30.1, 30.2), 8: (40.0, 40.1, 40.2)}
    judgement, reason = claim.judge(rates(grows, "host"))
    assert judgement == "supports"
    assert (
        "8 queues carried 3.97 times what one did (scaling law of client, host and broker together: contention 0."
        in reason
    )
    falls = {1: (10.0, 10.1, 10.2), 2: (8.0, 8.1, 8.2)}
    assert claim.judge(rates(falls))[0] == "contradicts"
    assert claim.judge(rates(falls, "host"))[0] == "cannot tell here"
    assert claim.judge(rates({1: (10.0, 11.0)}))[0] == "not measured"


def test_a_use_goes_to_whom_it_serves_better() -> None:
    """By a lower time or a higher rate, in each of the uses that the article gives a broker."""
    claim = UseClaim(("RPC", "task queue"))

    def figures(rpc_ns: float, wait_ns: float, rate: float, bound_by: str = "broker", n: int = 3) -> list[Figure]:
        around = (0.99, 1.0, 1.01)[:n]
        return [
            figure("RPC", "p50", *(rpc_ns * each for each in around), unit="ns", bound_by="offered"),
            figure("task queue", "p99", *(wait_ns * each for each in around), unit="ns", bound_by="offered"),
            figure(
                "event streaming", "events", *(rate * each for each in around), unit="msgs_per_s", bound_by=bound_by
            ),
        ]

    mine, theirs = figures(1e5, 1e6, 1e4), figures(2e5, 3e6, 1e6)
    judgement, reason = claim.judge_beside(mine, theirs)
    assert judgement == "supports"
    assert reason == (
        "RPC: better, 0.500× (0.500–0.500) the other's; task queue: better, 0.333× (0.333–0.333) the other's; "
        "event streaming: worse, 0.0100× (0.0100–0.0100) the other's"
    )
    assert claim.judge_beside(theirs, mine)[0] == "contradicts"
    assert claim.judge_beside(figures(1e5, 9e6, 1.0), theirs)[0] == "cannot tell here"
    assert claim.judge_beside(mine, [])[0] == "not measured"
    assert claim.judge_beside(figures(1e5, 1e6, 1e4, n=1), theirs)[0] == "cannot tell here"  # one repeat tells nothing
    held_back = UseClaim(("event streaming",)).judge_beside(theirs, figures(1e5, 1e6, 1e4, "host"))
    assert held_back[0] == "cannot tell here"  # what held the other back was not the broker


# --- in a run ---

FOUND = [
    Finding("rabbitmq", "as it comes", "largest message", "bytes", (16.0 * MB,), "406 <no>", agrees=True),
    Finding("rabbitmq", "limit raised", "largest message", "bytes", (256.0 * MB,), "406", agrees=True),
    Finding("kafka", "as it comes", "largest message", "bytes", (1_048_516.0,), "10", agrees=True),
    Finding("kafka", "limit raised", "largest message", "bytes", error="no broker of its own"),
]


def run_of(root: Path, findings: list[Finding]) -> Any:
    """A run of these findings of the probe of sizes."""
    writer = RunWriter(root, "probe", synthetic.HEADER)
    for number, each in enumerate(findings, 1):
        writer.add("findings", each.record("message_size", number))
    return load(writer.finish("complete"))


def test_a_cell_is_gone_with_its_findings(tmp_path: Path) -> None:
    """A row says what its findings say; without them, or where the broker contradicts them, it is not measured."""

    def cells(findings: list[Finding]) -> list[str]:
        table = make_table(run_of(tmp_path, findings))
        (row,) = (row for row in table.rows if row.feature == "Message size")
        return [cell.judgement for cell in row.cells]

    assert cells(FOUND) == ["contradicts", "cannot tell here"]
    assert cells(FOUND[:2]) == ["contradicts", "not measured"]
    assert cells([]) == ["not measured", "not measured"]
    doubtful = Finding("kafka", "as it comes", "largest message", "bytes", (5.0,), "another", agrees=False)
    assert cells([doubtful]) == ["not measured", "not measured"]


def test_the_page_links_each_figure_to_its_finding(tmp_path: Path) -> None:
    """The broker's own word stands beside each finding, escaped, and one that could not be had says why."""
    run = run_of(tmp_path, FOUND)
    page = synthetic.page_of(run)
    assert page.count('href="#finding-') == 4
    assert '<tr id="finding-4" class="struck">' in page
    assert "406 &lt;no&gt;" in page
    assert "no broker of its own" in page
    assert "16 MiB" in (run.path / "report.md").read_text(encoding="utf-8")


def test_what_varies_has_an_interval_and_a_count_has_none() -> None:
    """A count is no sample; of times over several starts there is an interval."""
    counted = Finding("kafka", "p", "lines", "number", (5.0, 5.0, 5.0)).record("complexity", 1)
    timed = Finding("kafka", "p", "time", "s", (4.0, 4.1, 4.3)).record("complexity", 2)
    lines, time = finding_figures([counted, timed], "complexity", "kafka")
    assert (lines.estimate.median, lines.estimate.low) == (5.0, None)
    assert time.estimate.low is not None
    assert time.estimate.low < 4.1 < (time.estimate.high or 0)


def whole_run(root: Path, without: str = "") -> Any:
    """A run that answers all ten rows, but for what one probe found or one scenario measured."""
    writer = RunWriter(root, "compare", synthetic.HEADER)
    fixed = {"kind": "fixed", "msgs_per_s": 200.0, "to_msgs_per_s": None}
    latency = {"e2e": {"count": 9, "min": 1, "mean": 1, **dict.fromkeys(("p50", "p90", "p99"), 1e6)}}
    for broker, knob in (("rabbitmq", "rabbitmq.queues"), ("kafka", "kafka.partitions")):
        records = [
            synthetic.trial(broker, "throughput"),
            synthetic.trial(broker, "latency", rate=fixed, latency_ns=latency),
            synthetic.trial(broker, "scaling", point={knob: 1}),
            synthetic.trial(broker, "scaling", point={knob: 2}, repeat=2),
            synthetic.trial(broker, "use-rpc", rate=fixed, latency_ns=latency),
        ]
        for record in records:
            if record["scenario"] != without:
                writer.add_trial(record)
        for probe in sorted({claimed.probe for claimed in ARTICLE if claimed.probe} - {without}):
            writer.add("findings", Finding(broker, "p", "q", "number", (1.0,), agrees=True).record(probe, 1))  # type: ignore[arg-type]
    return load(writer.finish("complete"))


def measured_rows(run: Any) -> set[str]:
    """The rows of which both cells have figures."""
    return {row.feature for row in make_table(run).rows if all(cell.figures for cell in row.cells)}


def test_every_row_is_answered_by_what_was_measured_alone(tmp_path: Path) -> None:
    """With everything there all ten rows have figures; take one probe's or scenario's away, and its row has none."""
    every = {claimed.feature for claimed in ARTICLE}
    assert len(every) == 10
    assert measured_rows(whole_run(tmp_path)) == every
    rows = {claimed.probe: claimed.feature for claimed in ARTICLE if claimed.probe and claimed.measure is None}
    rows |= {"throughput": "Throughput", "latency": "Latency", "scaling": "Scaling", "use-rpc": "Use case"}
    for without, feature in rows.items():
        left = measured_rows(whole_run(tmp_path, without))
        assert left == every - {feature}, without


def test_what_probes_found_of_order_is_in_its_row(tmp_path: Path) -> None:
    """What breaks the order stands beside the figures of trials, and is told with the reason."""
    writer = RunWriter(tmp_path, "probe", synthetic.HEADER)
    finding = Finding("kafka", "two consumers", "inverted messages", "number", (7.0,), agrees=True)
    writer.add("findings", finding.record("ordering", 1))
    table = make_table(load(writer.finish("complete")))
    (row,) = (row for row in table.rows if row.feature == "Message ordering")
    assert "7 with two consumers" in row.cells[1].reason
