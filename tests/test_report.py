"""The report: every number comes from trials that count, says what stands behind it, and claims no more than it may."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import synthetic

from loadgen.report import points as pt
from loadgen.report import render_run, words, write_report
from loadgen.report.answer import sentences
from loadgen.report.rules import CeilingClaim, Figure, LatencyClaim, ReachClaim
from loadgen.report.table import make_table
from loadgen.runs import Run, RunWriter, load
from loadgen.stats.confidence import estimate, paired_ratio

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.report.table import Cell, Table

MS = 1e6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One comparison of invented numbers for all tests that only read."""
    return synthetic.compare_run(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def table(run: Run) -> Table:
    """Its table."""
    return make_table(run)


@pytest.fixture(scope="module")
def html(run: Run) -> str:
    """Its page."""
    return write_report(run)["html"].read_text(encoding="utf-8")


def cell(table: Table, feature: str, broker: str) -> Cell:
    """One broker's side of a row."""
    row = next(row for row in table.rows if row.feature == feature)
    return next(cell for cell in row.cells if cell.broker == broker)


def run_of(root: Path, records: list[dict[str, Any]]) -> Run:
    """A finished run of these trials, without histograms."""
    writer = RunWriter(root, "some", synthetic.HEADER)
    for record in records:
        writer.add_trial(record)
    return load(writer.finish("complete"))


# --- the table ---


def test_table_has_the_articles_ten_rows(table: Table) -> None:
    """Every row of the article is there in its words, and one that nothing measured says so."""
    assert len(table.rows) == 10
    silent = [row.feature for row in table.rows if not row.is_measured]
    assert silent == [
        "Protocol", "Message retention", "Delivery semantics", "Message size", "Scaling", "Use case", "Complexity",
    ]  # fmt: skip
    for row in table.rows:
        for each in row.cells:
            assert each.claim
            assert (each.judgement == "not measured") == (row.feature in silent)


def test_measured_cells_are_medians_of_named_trials(run: Run, table: Table) -> None:
    """A cell's figure is the median over exactly the trials it names, and its interval that of the repeats."""
    for broker in ("rabbitmq", "kafka"):
        for feature in ("Latency", "Throughput"):
            for figure in cell(table, feature, broker).figures:
                records = [run.trial(trial_id) for trial_id in figure.trial_ids]
                measure = pt.latency("e2e", figure.what) if feature == "Latency" else pt.goodput
                values = [measure(record) for record in records]
                assert figure.estimate == estimate(values)
                assert figure.estimate.median == np.median([value for value in values if value is not None])
                assert figure.estimate.n == 5
                assert {record["driver_kind"] for record in records} == {"wire"}
                assert {record["broker"] for record in records} == {broker}


def test_invalid_trials_are_struck_out_of_every_figure(run: Run, table: Table, html: str) -> None:
    """The invalid trial's absurd rate is in no figure; the trial is listed, struck through, with its reason."""
    useless = run.records[-1]
    assert [record["id"] for record in table.struck] == [useless["id"]]
    figures = cell(table, "Throughput", "kafka").figures
    assert all((figure.estimate.median or 0) < 1e7 for figure in figures)
    assert [useless["id"] in figure.struck_ids for figure in figures] == [False, True, False]
    row = re.search(rf'<tr id="trial-{len(run.records)}" class="struck">.*?</tr>', html, re.DOTALL)
    assert row is not None
    assert "3 confirmed messages &lt;lost&gt;" in row[0]
    assert f"~~`{useless['id']}`~~" in (run.path / "report.md").read_text(encoding="utf-8")
    assert f"{useless['id']}: invalid: ledger" in " ".join(render_run(run).split())


@pytest.mark.parametrize("status", ["partial", "failed"])
def test_incomplete_trials_enter_no_figure(tmp_path: Path, status: str) -> None:
    """A trial that did not come to its end has a window of its own length: it is shown and not counted."""
    records = [synthetic.trial("kafka", repeat=repeat) for repeat in (1, 2)]
    records[1] |= {"status": status, "error": "stopped", "goodput_msgs_per_s": None, "achieved_msgs_per_s": None}
    found = run_of(tmp_path, records)
    (figure,) = cell(make_table(found), "Throughput", "kafka").figures
    assert (figure.estimate.values, figure.struck_ids) == ((1_000.0,), (records[1]["id"],))
    assert "stopped" in synthetic.page_of(found)


def test_row_whose_trials_are_all_invalid_is_not_measured(tmp_path: Path) -> None:
    """Where nothing that counts answers a row it says why, and shows no number."""
    record = synthetic.trial("kafka", verdict={"status": "invalid", "bound_by": "unknown", "reasons": ["x"]})
    found = cell(make_table(run_of(tmp_path, [record])), "Throughput", "kafka")
    assert (found.judgement, found.figures[0].estimate.n) == ("not measured", 0)
    assert "invalid" in found.reason


def test_host_and_generator_bounds_stand_beside_the_number(table: Table, html: str) -> None:
    """A rate that the machine or the client limited is never shown without saying so."""
    caveats = {figure.durability: figure.caveat for figure in cell(table, "Throughput", "kafka").figures}
    assert caveats == {
        "none": "with this client on this host",
        "broker": "with this client on this host",
        "flushed": "",
    }
    assert "with this client on this host" in html
    assert "(generator-bound)" in html


def test_sweep_of_one_broker_is_listed_and_not_paired(tmp_path: Path) -> None:
    """Points that one broker sweeps by itself have no partner: each has its line, and no ratio is made up."""
    records = []
    for prefetch in (1, 10, 100):
        for broker in ("rabbitmq", "kafka"):
            record = synthetic.trial(broker, "task-queue")
            knob = "prefetch" if broker == "rabbitmq" else "max_poll_records"
            record |= {
                "point": {f"{broker}.{knob}": prefetch},
                "settings": {knob: prefetch},
                "id": f"{broker}/{prefetch}",
            }
            records.append(record)
    found = run_of(tmp_path, records)
    (comparison,) = make_table(found).comparisons
    assert [point.own_label for point in comparison.points[:3]] == ["prefetch 1", "prefetch 10", "prefetch 100"]
    assert comparison.ratio(pt.goodput).ratio is None
    assert "prefetch 100" in render_run(found)
    write_report(found)


def test_classes_are_never_compared_with_each_other(tmp_path: Path) -> None:
    """Kafka in one class and RabbitMQ in another give two comparisons and no ratio."""
    found = run_of(tmp_path, [synthetic.trial("kafka"), synthetic.trial("rabbitmq", durability="flushed")])
    assert all(each.ratio(pt.goodput).ratio is None for each in make_table(found).comparisons)
    assert "does not compare the two brokers" in render_run(found)


def test_ratio_pairs_repeats_by_number(tmp_path: Path) -> None:
    """Kafka over RabbitMQ within each repeat, whatever order the trials ran in; a lone repeat is left out."""
    records = [synthetic.trial("rabbitmq", repeat=each, goodput_msgs_per_s=10.0**each) for each in (1, 2, 3)]
    records += [synthetic.trial("kafka", repeat=each, goodput_msgs_per_s=2 * 10.0**each) for each in (4, 3, 1, 2)]
    (comparison,) = make_table(run_of(tmp_path, records)).comparisons
    ratio = comparison.ratio(pt.goodput)
    assert (ratio.pairs, ratio.direction) == (3, "higher")
    assert ratio.low == pytest.approx(2)


def test_cpu_a_message_is_of_the_window() -> None:
    """CPU seconds of the window over the messages of the window, in µs; unknown where either is."""
    record = synthetic.trial("kafka", goodput_msgs_per_s=1_000.0, cpu_s={"broker": 0.04, "producers": None})
    assert pt.cpu_us_per_msg("broker")(record) == pytest.approx(0.04 / (1_000 * synthetic.WINDOW_S) * 1e6)
    assert pt.cpu_us_per_msg("producers")(record) is None
    assert pt.cpu_us_per_msg("broker")({**record, "achieved_msgs_per_s": 0.0}) is None


# --- rules ---


def figure(values: list[float], what: str = "p50", bound_by: str = "offered", unit: str = "ns") -> Figure:
    """A figure of these repeats."""
    return Figure(what, unit, "somewhere", "broker", estimate(values), ("t/1",), (), bound_by)  # type: ignore[arg-type]


UNDER_1_MS, FROM_1_TO_5_MS = LatencyClaim(0, MS), LatencyClaim(MS, 5 * MS)


@pytest.mark.parametrize(
    ("claim", "values_ms", "bound_by", "judgement"),
    [
        (UNDER_1_MS, [0.3, 0.31, 0.32], "offered", "supports"),
        (UNDER_1_MS, [0.3, 0.31, 0.32], "host", "supports"),
        (UNDER_1_MS, [0.9, 1.0, 1.1], "offered", "cannot tell here"),
        (UNDER_1_MS, [2.0, 2.1, 2.2], "offered", "contradicts"),
        (UNDER_1_MS, [2.0, 2.1, 2.2], "host", "cannot tell here"),
        (UNDER_1_MS, [0.3], "offered", "cannot tell here"),
        (FROM_1_TO_5_MS, [2.0, 2.1, 2.2], "offered", "supports"),
        (FROM_1_TO_5_MS, [0.6, 0.61, 0.62], "host", "contradicts"),
        (FROM_1_TO_5_MS, [0.2, 2.0, 20.0], "offered", "cannot tell here"),
        (FROM_1_TO_5_MS, [9.0, 9.1, 9.2], "unknown", "cannot tell here"),
    ],
)
def test_latency_claims(claim: LatencyClaim, values_ms: list[float], bound_by: str, judgement: str) -> None:
    """The interval must lie wholly on one side, and a crowded machine may not contradict by being slow."""
    found, reason = claim.judge([figure([value * MS for value in values_ms], bound_by=bound_by)])
    assert found == judgement
    assert reason


@pytest.mark.parametrize(
    ("check", "limit"), [("host CPU", "host"), ("schedule lag", "generator"), ("generator CPU", "generator")]
)
def test_a_latency_of_a_crowded_machine_is_not_charged_to_the_broker(tmp_path: Path, check: str, limit: str) -> None:
    """Where checks doubt machine or clients, a slow median contradicts nothing, and who led had help."""
    checks = [{"name": check, "passed": None, "reason": "it was full"}]
    records = []
    for repeat in (1, 2, 3):
        for broker, p50_ns in (("rabbitmq", 9 * MS), ("kafka", 2 * MS)):
            record = synthetic.trial(broker, "latency", repeat=repeat, rate={"kind": "fixed", "msgs_per_s": 5_000.0})
            record["verdict"] = {"status": "unknown", "bound_by": "offered", "reasons": [], "checks": checks}
            told = dict.fromkeys(("p50", "p99", "p99_9"), p50_ns + repeat)
            records.append({**record, "latency_ns": {"e2e": {"count": 20_000, **told}}})
    found = run_of(tmp_path, records)
    latency = cell(make_table(found), "Latency", "rabbitmq")
    assert latency.judgement == "cannot tell here"
    assert {each.bound_by for each in latency.figures} == {limit}
    assert f"RabbitMQ bound by {limit}" in synthetic.page_of(found)


def test_a_percentile_needs_messages_beyond_it() -> None:
    """Of 400 messages the p99 is one of the four largest: it is not told."""
    for count, is_told in ((400, False), (500, True)):
        record = synthetic.trial("kafka", "latency")
        record["latency_ns"] = {"e2e": {"count": count, "p50": 1e6, "p99": 9e6}}
        assert (pt.latency("e2e", "p99")(record) is not None) == is_told
        assert pt.latency("e2e", "p50")(record) == 1e6


def test_latency_points_that_disagree_cannot_tell() -> None:
    """A claim that holds at one rate and fails at another gets no single answer; both reasons are shown."""
    found, reason = UNDER_1_MS.judge([figure([0.3 * MS, 0.31 * MS]), figure([2.0 * MS, 2.01 * MS])])
    assert found == "cannot tell here"
    assert reason.count("somewhere") == 2


@pytest.mark.parametrize(
    ("claim", "values", "bound_by", "judgement", "said"),
    [
        (CeilingClaim(100e3), [120e3, 121e3, 122e3], "broker", "contradicts", "more than 100 k"),
        (CeilingClaim(100e3), [40e3, 41e3, 42e3], "broker", "cannot tell here", "a larger one may"),
        (CeilingClaim(100e3), [40e3, 41e3, 42e3], "host", "cannot tell here", "used up this machine"),
        (CeilingClaim(100e3), [40e3, 41e3, 42e3], "generator", "cannot tell here", "the client was"),
        (CeilingClaim(100e3), [90e3, 100e3, 110e3], "broker", "cannot tell here", "too near"),
        (CeilingClaim(100e3), [120e3], "broker", "cannot tell here", "no interval"),
        (ReachClaim(1e6), [1.2e6, 1.21e6, 1.22e6], "host", "supports", "at least 1.00 M"),
        (ReachClaim(1e6), [0.9e6, 1.0e6, 1.1e6], "host", "cannot tell here", "too near"),
        (ReachClaim(1e6), [0.5e6, 0.51e6, 0.52e6], "broker", "cannot tell here", "a larger one may"),
    ],
)
def test_throughput_claims(
    claim: CeilingClaim | ReachClaim, values: list[float], bound_by: str, judgement: str, said: str
) -> None:
    """`Up to` is contradicted only by more, reached only by an interval wholly above, and less tells nothing."""
    slower = figure([10.0, 11.0], "class flushed", "broker", "msgs_per_s")
    found, reason = claim.judge([slower, figure(values, "class broker", bound_by, "msgs_per_s")])
    assert found == judgement
    assert said in reason


@pytest.mark.parametrize(
    ("broken", "partitions", "judgement"),
    [(0, 4, "supports"), (1, 4, "contradicts"), (0, 1, "cannot tell here"), (1, 1, "contradicts")],
)
def test_order_claim(tmp_path: Path, broken: int, partitions: int, judgement: str) -> None:
    """One message out of order contradicts the promise; none supports it only where order could have broken."""
    shape: dict[str, Any] = {"producers": 2, "settings": {"partitions": partitions}, "goodput_msgs_per_s": 2_000.0}
    records = [
        synthetic.trial("kafka", repeat=1, **shape),
        synthetic.trial("kafka", repeat=2, out_of_order=broken, **shape),
    ]
    found = cell(make_table(run_of(tmp_path, records)), "Message ordering", "kafka")
    assert (found.judgement, found.figures[0].estimate.median) == (judgement, 16_000)


def test_an_interval_that_says_nothing_is_not_printed() -> None:
    """Two repeats far apart are told as what was seen; a ratio of such pairs has no bounds either."""
    apart = estimate([3e6, 118e6])
    assert words.interval(apart, "ns") == "3.00–118 ms seen, too few repeats for an interval"
    assert words.interval(estimate([3e6, 3.1e6]), "ns").endswith(" ms")
    assert words.times(paired_ratio([(1.0, 4.0), (9.0, 4.0)])) == "0.750× (2 pairs too far apart for an interval)"


def test_few_valid_trials_are_told_first(tmp_path: Path) -> None:
    """A run of which next to no trial passed all checks says so before its first figure."""
    doubtful = {
        "status": "unknown", "bound_by": "host", "reasons": [],
        "checks": [{"name": "other programs", "passed": None, "reason": "they took 1.5 cores"}],
    }  # fmt: skip
    records = [synthetic.trial(broker, repeat=n, verdict=doubtful) for broker in ("kafka", "rabbitmq") for n in (1, 2)]
    first, *others = sentences(make_table(run_of(tmp_path, records)))
    assert first == "Read with care: only 0 of 4 trials passed every check, most often for “other programs”."
    assert others
    trusted = [synthetic.trial(broker, repeat=n) for broker in ("kafka", "rabbitmq") for n in (1, 2)]
    assert not sentences(make_table(run_of(tmp_path / "trusted", trusted)))[0].startswith("Read with care")


# --- the page, the text, the charts ---


def test_page_begins_with_the_answer(html: str, run: Run) -> None:
    """Two sentences from the data come first, with both figures, the interval, the class and the limit."""
    leads = re.findall(r'<p class="lead">(.+?)</p>', html)
    assert len(leads) == 2
    assert html.index("lead") < html.index("<table")
    assert re.search(r"Kafka carried 3\d\.\d× \(\d\d\.\d–\d\d\.\d\) the messages of RabbitMQ", leads[0])
    assert "class broker" in leads[0]
    assert "on this host" in leads[0]
    assert "At 1,000 msg/s of 1 KiB" in leads[1]
    assert "RabbitMQ is faster" in leads[1]
    assert render_run(run).startswith("Kafka carried 3")


def test_page_needs_no_network(html: str) -> None:
    """Nothing is loaded from anywhere: no address but the names of XML namespaces."""
    assert set(re.findall(r"https?://[^\s\"'<>)]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"<(link|img|iframe|object)\b|@import|src=|url\((?!#)", html)


def test_page_escapes_what_it_did_not_write(html: str) -> None:
    """Reasons and deviations with markup in them are text."""
    assert "<lost>" not in html
    assert "heap &lt;1 GB&gt; &amp; G1" in html


def test_every_link_leads_to_a_trial_and_ids_are_unique(html: str) -> None:
    """Each figure's trials can be reached, and the drawings' ids do not collide."""
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    links = set(re.findall(r'href="#([^"]+)"', html))
    assert links <= set(ids)
    assert sum(link.startswith("trial-") for link in links) >= 50


def test_page_shows_versions_machine_deviations_and_client_drivers(html: str) -> None:
    """What a figure depends on is on the page that shows it."""
    for said in (
        "RabbitMQ 4.3.6", "Kafka 4.3.1", "Invented CPU 9000", "offsets.topic.replication.factor = 1", "pika, client",
        "confluent, client", "0123abcd", "virtual machine", "powersave", "loadgen compare --profile quick",
    ):  # fmt: skip
        assert said in html, said


def test_closed_loop_times_are_never_called_latency(html: str, run: Run) -> None:
    """Service times at full load carry their label in the page, the text, the Markdown and the drawing."""
    label = words.CLOSED_LOOP
    assert html.count(label) > 5
    assert label in render_run(run)
    assert label in (run.path / "report.md").read_text(encoding="utf-8")
    assert label in (run.path / "charts" / "closed-loop.svg").read_text(encoding="utf-8")
    assert label not in (run.path / "charts" / "latency.svg").read_text(encoding="utf-8")


def test_charts_are_written_in_both_formats(html: str, run: Run) -> None:
    """Four drawings, each as SVG and PNG, with units on their axes; the page holds them inline in its own colours."""
    names = {path.name for path in (run.path / "charts").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("latency", "throughput", "cpu", "closed-loop") for kind in ("svg", "png")
    }
    axes = {"latency": "ms", "throughput": "messages a second", "cpu": "µs"}
    for name, unit in axes.items():
        assert unit in (run.path / "charts" / f"{name}.svg").read_text(encoding="utf-8")
        assert (run.path / "charts" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert html.count("<svg") == 4
    assert "var(--kafka)" in html
    assert "#1f3a6e;" not in html.partition("<svg")[2]


def test_drawing_leaves_no_global_state() -> None:
    """Charts need neither pyplot nor a display, and the command line's start needs no matplotlib."""
    code = (
        "import sys, loadgen.report, loadgen.runs\n"
        "assert not {'matplotlib', 'pandas', 'scipy', 'pyarrow', 'numpy'} & set(sys.modules), 'imported early'\n"
        "import loadgen.report.charts\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_report_is_the_same_when_made_again(run: Run, html: str) -> None:
    """A report is a function of the run's files."""
    again = write_report(load(run.path))
    assert again["html"].read_text(encoding="utf-8") == html
    assert set(again) == {"html", "markdown", "charts"}


def test_markdown_tables_keep_their_columns(html: str, run: Run) -> None:
    """No content breaks a row: each table's rows have as many cells as its head."""
    del html
    for block in re.findall(r"(?:^\|.*\n)+", (run.path / "report.md").read_text(encoding="utf-8"), re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1


@pytest.mark.parametrize("records", [[], [{"id": "known/only/by/name", "status": "partial"}]])
def test_run_without_figures_still_has_a_report(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    """An empty run, or one that knows a trial by its name only, says so and makes up nothing."""
    found = run_of(tmp_path, records)
    html = synthetic.page_of(found)
    leads = re.findall(r'<p class="lead">(.+?)</p>', html)
    assert len(leads) == 1
    assert ("is to be used" in leads[0]) == bool(records)
    assert "<svg" not in html
    assert "10 of the table's 10 rows are not measured" in render_run(found)


def test_partial_run_says_so_first(tmp_path: Path) -> None:
    """A run that was cut short is marked in the page's head and among the caveats."""
    writer = RunWriter(tmp_path, "some", synthetic.HEADER)
    writer.add_trial(synthetic.trial("kafka"))
    html = synthetic.page_of(load(writer.finish("partial", "interrupted")))
    assert html.index("interrupted") < html.index("<table")
    assert "The run is partial: interrupted." in html


def test_single_repeat_claims_nothing(tmp_path: Path) -> None:
    """With one repeat there is no interval, no difference is shown, and no claim is judged."""
    found = synthetic.compare_run(tmp_path, repeats=1)
    table = make_table(found)
    assert {cell(table, "Latency", broker).judgement for broker in ("rabbitmq", "kafka")} == {"cannot tell here"}
    text = " ".join(render_run(found).split())
    assert text.count("one repeat each, which cannot tell") >= 2  # of throughput and of latency


# --- words ---


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.0123"), (1.234, "1.23"), (9.999, "10.0"), (99.96, "100"), (12_345, "12,300"), (np.inf, "∞")],
)
def test_three_significant_digits(value: float, text: str) -> None:
    """No more digits than repeats support, and none lost to rounding over a power of ten."""
    assert words.significant(value) == text


@pytest.mark.parametrize(
    ("value_ns", "text"),
    [
        (None, "–"),
        (640_000, "0.640 ms"),
        (5.1e6, "5.10 ms"),
        (9_000, "9.00 µs"),
        (502e6, "502 ms"),
        (12e9, "12.0 s"),
        (0, "0 µs"),
    ],
)
def test_durations_are_in_milliseconds_where_they_can_be(value_ns: float | None, text: str) -> None:
    """One unit over the range that matters, so that figures compare at a glance."""
    assert words.duration(value_ns) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (100, "100 B"),
        (1024, "1 KiB"),
        (1 << 20, "1 MiB"),
        (1500, "1500 B"),
        ({"min_bytes": 24, "max_bytes": 99}, "min 24 max 99 B"),
    ],
)
def test_sizes(size_bytes: Any, text: str) -> None:
    """Sizes read as people write them; a distribution by its bounds."""
    assert words.size(size_bytes) == text
