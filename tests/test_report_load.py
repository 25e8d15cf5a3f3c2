"""The report of capacities, curves and slow seconds: said in three formats, with what stands behind each number."""

from __future__ import annotations

import contextlib
import re
import time
from html import unescape
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import synthetic

from loadgen.report import points as pt
from loadgen.report import render_run, words, write_report
from loadgen.report.content import gather
from loadgen.report.detail import ONE_RUN
from loadgen.report.table import make_table
from loadgen.runs import Run, RunWriter, load
from loadgen.stats.confidence import estimate
from loadgen.stats.order import percentile_interval

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.report.capacity import CapacityLine

NBSP = "\N{NO-BREAK SPACE}"


class Written:
    """A run and its report in all formats, read back."""

    def __init__(self, run: Run, *, is_drawn: bool = False) -> None:
        self.run = run
        self.content = gather(run)
        with contextlib.nullcontext() if is_drawn else synthetic.undrawn():
            self.html = write_report(run)["html"].read_text(encoding="utf-8")
        self.markdown = (run.path / "report.md").read_text(encoding="utf-8")
        self.text = re.sub(r"[ \n]+", " ", render_run(run))

    def charts(self) -> set[str]:
        """Names of the charts on disk."""
        return {path.stem for path in (self.run.path / "charts").glob("*")}

    def everywhere(self, said: str) -> bool:
        """Whether all three formats say it."""
        return all(said in each for each in (unescape(self.html), self.markdown, self.text))


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Both brokers' curves, three repeats, one search each."""
    return Written(synthetic.curve_run(tmp_path_factory.mktemp("curve")), is_drawn=True)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Both brokers' capacities, three searches each."""
    return Written(synthetic.search_run(tmp_path_factory.mktemp("search")))


def lines(written: Written) -> dict[str, CapacityLine]:
    """The only block's lines by broker."""
    (block,) = written.content.capacities
    return {line.broker: line for line in block.lines}


def searched(root: Path, **given: Any) -> Written:
    """One search of each broker; `rabbitmq` and `kafka` hold what differs of theirs."""
    rng = np.random.default_rng(2)
    writer = RunWriter(root, "search", synthetic.HEADER)
    for broker, capacity in synthetic.CAPACITIES.items():
        for repeat in range(1, given.get("repeats", 1) + 1):
            synthetic.write_search(writer, broker, capacity, rng, repeat=repeat, **given.get(broker, {}))
    return Written(load(writer.finish("complete")))


# --- capacity ---


def test_capacity_stands_with_its_interval_and_what_bounds_it(search: Written) -> None:
    """Every format shows the median over searches, its interval, their number, and what the next rate showed."""
    for broker in synthetic.CAPACITIES:
        found = [each["capacity_msgs_per_s"] for each in search.run.header["searches"] if each["broker"] == broker]
        over = estimate(found)
        line = lines(search)[words.broker_name(broker)]
        assert line.rate.text == words.rate(over.median)
        assert line.rate.interval == f"n 3, {words.interval(over, 'msgs_per_s', is_bare=True)}"
        assert line.bound_by == "broker"
        assert search.everywhere(line.rate.text)
        assert search.everywhere(line.rate.interval)
        assert line.above.startswith(f"at {1.05 * sorted(found)[1]:,.0f} msg/s")
        assert line.effort == "3 searches, 12 trials, 2.6 min"
        assert search.everywhere(line.effort)


def test_what_bounds_a_capacity_is_its_searchs_finding(tmp_path: Path) -> None:
    """The trial at capacity carried what was offered; its line in every table says what the search ended at."""
    rng = np.random.default_rng(2)
    writer = RunWriter(tmp_path, "search", synthetic.HEADER)
    for broker, bound_by in (("rabbitmq", "broker"), ("kafka", "host")):
        search = synthetic.write_search(writer, broker, 1_000.0, rng, bound_by=bound_by)
        confirmed = writer._trials[search["trial"]]
        writer.add_trial({**confirmed, "verdict": {"status": "valid", "bound_by": "offered", "reasons": []}})
    found = Written(load(writer.finish("complete")))
    (block,) = found.content.blocks
    assert {line.broker: line.bound_by for line in block.lines} == {"RabbitMQ": "broker", "Kafka": "host"}
    (capacities,) = found.content.capacities
    assert {line.broker: line.bound_by for line in capacities.lines} == {"RabbitMQ": "broker", "Kafka": "host"}
    (comparison,) = found.content.table.comparisons
    assert [point.bound_by for point in comparison.points] == ["broker", "host"]


def test_the_tools_own_limit_stands_beside_the_capacity(search: Written) -> None:
    """The ceiling as a multiple of the capacity, and what it is made of."""
    line = lines(search)["Kafka"]
    (first,) = [each for each in search.run.header["ceilings"] if each["broker"] == "kafka"]
    median = estimate(
        each["capacity_msgs_per_s"] for each in search.run.header["searches"] if each["broker"] == "kafka"
    )
    assert median.median is not None
    assert line.ceiling.text == f"{words.significant(first['achieved_msgs_per_s'] / median.median)}×"
    assert line.ceiling.interval == words.rate(first["achieved_msgs_per_s"])
    assert search.everywhere(line.ceiling.text)
    assert search.everywhere("the null broker took 0.42 of a core")


def test_searches_answer_first(search: Written, curve: Written) -> None:
    """The page's first sentence is the ratio with its interval; one search each has figures and claims nothing."""
    (said,) = search.content.sentences
    assert re.match(
        r"Kafka sustained 2\d\.\d× \(2\d\.\d–\d\d\.\d\) the rate of RabbitMQ \(1\.\d+ M msg/s against", said
    )
    assert search.text.startswith(said)
    first, knee = curve.content.sentences
    assert first == (
        "Kafka sustained 1.20 M msg/s, RabbitMQ 42.0 k msg/s (1 KiB, 1 consumer, class broker; one search each, so no "
        "interval)."
    )
    assert "29.4 k msg/s for RabbitMQ (70" in knee
    assert "one search: 42.0–44.1" in curve.html


@pytest.mark.parametrize(
    ("bounded", "said"),
    [
        (("kafka",), "at least, as Kafka's limit was not reached"),
        (("rabbitmq",), "at most, as RabbitMQ's limit was not reached"),
        (("kafka", "rabbitmq"), "no comparison of the brokers"),
    ],
)
def test_a_lower_bound_is_never_shown_as_a_capacity(tmp_path: Path, bounded: tuple[str, ...], said: str) -> None:
    """Where a generator was the limit the rate reads "at least", and a ratio with it is bounded on one side alone."""
    unreached = {"is_lower_bound": True, "bound_by": "generator", "high_msgs_per_s": None}
    found = searched(tmp_path, repeats=2, **dict.fromkeys(bounded, unreached))
    for broker, capacity in synthetic.CAPACITIES.items():
        text = f"at least {words.rate(capacity)}"
        assert (text in found.html) == (broker in bounded)
        assert (text in found.content.sentences[0]) == (broker in bounded)
    assert found.everywhere(said)
    assert "the client, not the broker, limited" in found.content.sentences[0]


def test_one_search_shows_its_bracket_and_one_trial_its_own_bounds(curve: Written) -> None:
    """A single confirming trial's p99 has the exact bounds of its messages, labelled as a lower bound of doubt."""
    line = lines(curve)["RabbitMQ"]
    trial_id = line.trial_ids[0]
    exact = percentile_interval(curve.run.histogram("e2e", trial=trial_id), 99)
    assert line.rate.interval == "one search: 42.0–44.1"
    assert (
        line.p99.interval == f"{ONE_RUN}: {words.span(exact.low_ns, exact.high_ns, exact.value_ns, 'ns', is_bare=True)}"
    )
    for each in (curve.html, curve.markdown):
        assert "a lower bound of the uncertainty" in each


def test_a_point_without_a_capacity_says_why(tmp_path: Path) -> None:
    """Nothing is shown for it but the reason, and nothing is compared with it."""
    writer = RunWriter(tmp_path, "search", synthetic.HEADER)
    tried = synthetic.probe("kafka", 1, "burst", None)
    writer.add_trial(tried)
    writer.add("searches", synthetic.search_record("kafka", [tried], None, reason="no rate was <sustained>"))
    found = Written(load(writer.finish("complete")))
    assert lines(found)["Kafka"].rate.text == "none found"
    assert "no rate was &lt;sustained&gt;" in found.html
    assert "no rate was <sustained>" in found.text
    assert found.charts() == set()


def test_an_objective_stands_with_the_capacity_that_it_limits(tmp_path: Path) -> None:
    """Capacities under an objective are told from those without one, and never compared with them."""
    rate = {"kind": "search", "msgs_per_s": None, "p99_ms": 10.0, "fractions": None}
    found = searched(tmp_path, kafka={"rate": rate, "p99_ms": 10.0})
    assert [block.load for block in found.content.capacities] == ["1 KiB, 1 consumer", "1 KiB, 1 consumer, p99 ≤ 10 ms"]
    assert [block.ratio for block in found.content.capacities] == ["", ""]
    assert found.everywhere("at capacity (p99 ≤ 10 ms)")


def test_producers_that_a_search_added_keep_brokers_comparable(tmp_path: Path) -> None:
    """How many producers it took is said, and is no other load: the scenario asked for none."""
    found = searched(tmp_path, repeats=2, kafka={"producers": 4})
    (block,) = found.content.capacities
    assert [line.own_label for line in block.lines] == ["", "4 producers"]
    assert block.ratio
    records = [record | {"producers": 4} if record["broker"] == "kafka" else record for record in found.run.records]
    (comparison,) = pt.comparisons(records)
    assert [point.own_label for point in comparison.points] == ["", "4 producers"]
    assert comparison.ratio(pt.offered).pairs == 2


# --- probes ---


def test_probes_enter_no_figure_and_are_listed_under_their_search(search: Written, curve: Written) -> None:
    """What a search tried is in no comparison, claim or caveat; it can be unfolded, and links lead to it."""
    for written in (search, curve):
        probes = {record["id"] for record in written.run.records if record["purpose"] != "measure"}
        assert probes
        table = written.content.table
        assert not probes & {record["id"] for record in table.trials}
        points = [point for comparison in table.comparisons for point in comparison.points]
        assert not probes & {record["id"] for point in points for record in (*point.used, *point.struck)}
        assert not probes & {
            trial_id for row in table.rows for cell in row.cells for f in cell.figures for trial_id in f.trial_ids
        }
        assert probes == {record["id"] for each in written.content.searches for record in each.probes}
        folded = written.html[written.html.index('<details id="searches">') :]
        for trial_id in probes:
            assert folded.count(f">{trial_id}</th>") == 1
        assert f"{len(probes)} trials of {len(written.run.header['searches'])} capacity searches" in folded


def test_an_unended_search_leaves_its_probes_in_sight(tmp_path: Path) -> None:
    """A run that was interrupted within a search lists what the search had tried."""
    writer = RunWriter(tmp_path, "search", synthetic.HEADER)
    writer.add_trial(synthetic.probe("kafka", 1, "burst", None))
    found = Written(load(writer.finish("partial", "interrupted")))
    (left,) = found.content.searches
    assert [record["id"] for record in left.probes] == [found.run.records[0]["id"]]
    assert "searches that did not come to their end" in found.html
    assert found.run.records[0]["id"] in found.markdown


# --- curves ---


def test_the_curve_is_drawn_with_what_it_means(curve: Written) -> None:
    """Its title names the knees; its words give the ends, the capacity, the ceiling, and the overload's caveat."""
    figure = curve.html[curve.html.index("Response time against load") :]
    title = figure[: figure.index("</h3>")]
    assert title == (
        "Response time against load (1 KiB, class broker): "
        f"RabbitMQ’s knee is at 29.4 k msg/s (70{NBSP}% of capacity), "
        f"Kafka’s knee is at 840 k msg/s (70{NBSP}% of capacity)"
    )
    note = figure[figure.index("<figcaption>") : figure.index("</figcaption>")]
    for said in (
        "RabbitMQ, p50 and p99: ", f"at the knee, 70{NBSP}% of capacity (840 k msg/s)",
        "Capacity 42.0 k msg/s (one search: 42.0–44.1); the tool itself carries 12.0× that here",
        "as long as the trial lasts", "(here 12 s)", f"at overload, 110{NBSP}% of capacity",
    ):  # fmt: skip
        assert said in note, said
    assert f'aria-label="{title}' in curve.html
    assert {"curve-1", "timeline", "latency"} <= curve.charts()


def test_the_drawing_has_every_repeat_and_marks_overload(curve: Written) -> None:
    """One dot a repeat and percentile, those of overload hollow; capacities, knees and ceilings are named in it."""
    svg = (curve.run.path / "charts" / "curve-1.svg").read_text(encoding="utf-8")
    dots = re.findall(r'<use [^>]*style="fill: (#\w+); [^"]*stroke: #\w+[^"]*"', svg)
    marked = [each for each in dots if each in {"#e65c00", "#1f3a6e"}]
    hollow = [each for each in dots if each == "#ffffff"]
    repeats, percentiles, brokers = 3, 2, 2
    assert len(hollow) >= repeats * percentiles * brokers
    assert len(marked) >= repeats * percentiles * brokers * (len(synthetic.FRACTIONS) - 1)
    for said in (
        "capacity 42.0 k msg/s", "knee 29.4 k msg/s", "Kafka: the tool alone 14.4 M msg/s (12.0×) →",
        "RabbitMQ: the tool alone 504 k msg/s (12.0×)", "log scale",
    ):  # fmt: skip
        assert said in svg, said


def test_brokers_that_are_near_share_a_linear_axis(tmp_path: Path) -> None:
    """Only where one would be squeezed into a corner is the rate logarithmic; far ceilings are arrows at the edge."""
    run = synthetic.curve_run(tmp_path, repeats=1, capacities={"rabbitmq": 27e3, "kafka": 39e3})
    found = Written(run, is_drawn=True)
    svg = (found.run.path / "charts" / "curve-1.svg").read_text(encoding="utf-8")
    assert "offered rate, messages a second<" in svg
    assert svg.count("×) →") == 2
    assert ONE_RUN in found.html


def test_the_curve_is_told_in_numbers(curve: Written) -> None:
    """Each fraction's rates and percentiles over repeats, with overload and knee marked, in every format."""
    assert [sheet.broker for sheet in curve.content.curves] == ["RabbitMQ", "Kafka"]
    for sheet in curve.content.curves:
        assert [line.is_overload for line in sheet.lines] == [fraction > 1 for fraction in synthetic.FRACTIONS]
        (knee,) = [line for line in sheet.lines if line.remark == "knee"]
        assert knee.fraction == f"70{NBSP}%"
        assert curve.everywhere(sheet.knee)
        for line in sheet.lines:
            assert curve.everywhere(line.p99_9.text)
            assert line.carried == ("0 of 3" if line.is_overload else "3 of 3")
    assert curve.everywhere("overload: above the capacity")
    assert curve.everywhere("grow with the length of the trial")


def test_a_curve_that_never_ran_says_why(tmp_path: Path) -> None:
    """Without a capacity there is no fraction of it: the reason stands where the knee would."""
    writer = RunWriter(tmp_path, "curve", synthetic.HEADER)
    for fraction in (0.5, 1.1):
        record = synthetic.fraction_trial("kafka", fraction, 1, 1e6, error="no capacity was found")
        unrun = {"status": "failed", "offered_msgs_per_s": None, "goodput_msgs_per_s": None, "window_s": None}
        writer.add_trial(record | unrun)
    found = Written(load(writer.finish("complete")))
    assert found.everywhere("nothing was measured: no capacity was found")
    assert "as long as the trial lasts" not in found.html
    assert found.charts() == set()


def test_overload_is_struck_from_comparisons_and_said_to_be_shown(curve: Written) -> None:
    """Its invalid trials count nowhere else, and the caveat tells that the curve shows them."""
    struck = {record["id"] for record in curve.content.table.struck}
    assert len(struck) == 6
    assert any("6 of them are a curve's overload, and shown as such" in each for each in curve.content.caveats)
    points = [point for comparison in curve.content.table.comparisons for point in comparison.points]
    assert all(not point.used for point in points if point.is_beyond_capacity)


def test_curves_of_a_sweep_have_panels_of_their_own(tmp_path: Path) -> None:
    """Two curves of one broker cannot share its colour: each is drawn and named by itself, variants too."""
    writer = RunWriter(tmp_path, "sweep", synthetic.HEADER)
    rng = np.random.default_rng(1)
    for variant in ("A", "B"):
        for fraction in (0.25, 0.5, 0.75, 1.0):
            record = synthetic.fraction_trial("kafka", fraction, 1, 10_000.0)
            record |= {"id": f"load/kafka/{variant}/{fraction}/1", "point": {"variant": variant, "fraction": fraction}}
            synthetic.write_long_trial(writer, record, 1e6 / (1.05 - fraction), rng)
    found = Written(load(writer.finish("complete")), is_drawn=True)
    svg = (found.run.path / "charts" / "curve-1.svg").read_text(encoding="utf-8")
    assert "Kafka, variant A" in svg
    assert "Kafka, variant B" in svg
    comparisons = found.content.table.comparisons
    assert all([point.own_label for point in each.points] == ["variant A", "variant B"] for each in comparisons)
    assert "capacity" not in re.sub(r"of (each one's own )?capacity", "", svg)


def test_variants_of_one_configuration_are_two_points(tmp_path: Path) -> None:
    """A against A has the same settings twice: the variant alone tells them apart."""
    writer = RunWriter(tmp_path, "ab", synthetic.HEADER)
    for variant in ("A", "B"):
        for repeat in (1, 2):
            record = synthetic.trial("kafka", repeat=repeat, point={"variant": variant})
            writer.add_trial(record | {"id": f"throughput/kafka/{variant}/{repeat}"})
    (comparison,) = make_table(load(writer.finish("complete"))).comparisons
    assert [(point.own_label, len(point.used)) for point in comparison.points] == [("variant A", 2), ("variant B", 2)]


def test_a_curve_answers_no_claim_of_maximum_throughput(tmp_path: Path) -> None:
    """Half of a capacity is no throughput, and overload's latency no latency, whatever the scenario is called."""
    writer = RunWriter(tmp_path, "curve", synthetic.HEADER)
    for scenario in ("throughput", "latency"):
        for fraction in (0.5, 1.1):
            record = synthetic.fraction_trial("kafka", fraction, 1, 1e6, scenario=scenario, verdict={
                "status": "valid", "bound_by": "broker", "reasons": []
            }, latency_ns={"e2e": {"count": 9, "p50": 1e6, "p99": 2e6, "p99_9": 3e6}})  # fmt: skip
            writer.add_trial(record | {"id": f"{scenario}/{fraction}"})
    rows = {row.feature: row for row in make_table(load(writer.finish("complete"))).rows}
    assert not rows["Throughput"].is_measured
    points = {figure.point for cell in rows["Latency"].cells for figure in cell.figures}
    assert points == {f"1 KiB, 50{NBSP}% of capacity, 1 consumer"}


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        ({"kind": "search", "p99_ms": None}, "at capacity"),
        ({"kind": "search", "p99_ms": 2.5}, "at capacity (p99 ≤ 2.5 ms)"),
        ({"kind": "curve", "fractions": [0.5], "p99_ms": None}, f"50{NBSP}% of capacity"),
        ({"kind": "curve", "fractions": [0.125]}, f"12.5{NBSP}% of capacity"),
        ({"kind": "fixed", "msgs_per_s": 5_000.0}, "5,000 msg/s"),
        ({"kind": "poisson", "msgs_per_s": 5_000.0}, "5,000 msg/s poisson"),
        (
            {"kind": "burst", "msgs_per_s": 500.0, "burst_times": 8, "burst_s": 0.5, "every_s": 3.0},
            "500 msg/s with bursts of 8 times that for 0.5 s every 3 s",
        ),
        ({"kind": "saturate", "msgs_per_s": None}, "as fast as it goes"),
    ],
)
def test_loads_by_name(rate: dict[str, Any], text: str) -> None:
    """Each kind of rate has its words."""
    assert pt.rate_label(rate) == text


# --- the slowest seconds ---


def test_the_slowest_seconds_are_told_and_drawn(curve: Written) -> None:
    """RabbitMQ's planted pauses are its worst trial; every trial with a schedule can be unfolded."""
    planted = "load/rabbitmq/amqp/fraction=0.9/1"
    assert curve.content.worst[0].trial_id == planted
    assert [each.second.at_s for each in curve.content.worst[0].slow] == [8, 3]
    for each in (curve.html, curve.markdown, curve.text):
        assert "second 8 (p50" in each
        assert "gc pause of 80 ms (Full)" in each
    details = re.findall(r'<details class="tail"><summary><a href="#trial-\d+">([^<]+)</a>: ', curve.html)
    valid = [record["id"] for record in curve.content.table.trials if record["point"]["fraction"] <= 1]
    assert sorted(details) == sorted(valid)
    svg = (curve.run.path / "charts" / "timeline.svg").read_text(encoding="utf-8")
    assert planted in svg
    assert "gc pause" in svg


def test_nothing_is_drawn_where_no_second_stands_out(tmp_path: Path) -> None:
    """A trial whose seconds are alike says so, without a drawing."""
    writer = RunWriter(tmp_path, "calm", synthetic.HEADER)
    record = synthetic.trial("kafka", "latency", rate={"kind": "fixed", "msgs_per_s": 400.0}, window_s=12.0)
    deltas = np.full(400, 1_000_000, np.int64)
    from loadgen.recorder import Recorder  # noqa: PLC0415

    writer.begin_trial(record, started_s=time.time() + synthetic.WARMUP_S)
    recorder = Recorder(["e2e"], origin_ns=0)
    for second in range(12):
        recorder.record("e2e", second * synthetic.SECOND_NS + np.arange(400), deltas)
    writer.add_intervals(record["id"], recorder.take(), agent="consumer0")
    writer.add_trial({**record, "latency_ns": {"e2e": {"count": 4_800, "p50": 1e6, "p99": 1e6, "p99_9": 1e6}}})
    found = Written(load(writer.finish("complete")))
    assert found.everywhere("No second stands out in 1 trial.")
    assert "timeline" not in found.charts()


# --- the page as a whole ---


def test_runs_without_searches_look_as_before(tmp_path: Path) -> None:
    """A comparison at fixed rates and full load has no section, chart or sentence of what it did not measure."""
    found = Written(synthetic.compare_run(tmp_path, repeats=2))
    for each in (found.html, found.markdown, found.text):
        assert "Capacity" not in each
        assert "A second is slow when" not in each
        assert ONE_RUN not in each
    assert found.charts() == {"latency", "throughput", "cpu", "closed-loop"}
    assert '<details id="searches">' not in found.html


def test_single_repeats_show_the_bounds_of_their_own_messages(tmp_path: Path) -> None:
    """With one repeat, p99 stands between exact bounds, which are said to be too narrow; p50 has none."""
    found = Written(synthetic.compare_run(tmp_path, repeats=1))
    block = next(each for each in found.content.blocks if each.is_open_loop)
    record = next(each for each in found.run.records if each["id"] in block.lines[0].trial_ids)
    _, p99, p99_9 = block.lines[0].e2e
    exact = percentile_interval(found.run.histogram("e2e", trial=record["id"]), 99)
    bounds = words.span(exact.low_ns, exact.high_ns, exact.value_ns, "ns", is_bare=True)
    assert p99.interval == f"{ONE_RUN}: {bounds}"
    assert p99_9.text == words.NOTHING, "four messages beyond it are no percentile"
    assert block.lines[0].e2e[0].interval == "no interval"
    for each in (found.html, found.markdown):
        assert "a lower bound of the uncertainty" in each


def test_versions_that_changed_between_repeats_are_a_caveat(tmp_path: Path) -> None:
    """Repeats under two versions of a broker are no repeats, and the reader is told."""
    writer = RunWriter(tmp_path, "some", synthetic.HEADER)
    for repeat, version in ((1, "4.3.1"), (2, "4.3.2")):
        versions = {"broker": version, "client": "c", "python": "p", "loadgen": "l"}
        writer.add_trial(synthetic.trial("kafka", repeat=repeat, versions=versions))
    caveats = Written(load(writer.finish("complete"))).content.caveats
    assert any("broker of kafka: 4.3.1, then 4.3.2" in each for each in caveats)


def test_every_check_of_a_trial_can_be_read(curve: Written) -> None:
    """True, false or unknown, with its reason, escaped."""
    assert "✓ integrity: every message arrived as sent" in curve.html
    assert "✗ latency complete: 9,000 of 90,000 messages &lt;due&gt; were not sent" in curve.html
    assert "<due>" not in curve.html
    assert "<backlog>" not in curve.html


def test_links_ids_and_tables_are_sound(curve: Written, search: Written) -> None:
    """Links lead somewhere, ids are unique, Markdown rows fit their heads, and nothing is loaded from outside."""
    for written in (curve, search):
        ids = re.findall(r'\bid="([^"]+)"', written.html)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'href="#([^"]+)"', written.html)) <= set(ids)
        assert not re.search(r"<(link|img|iframe|object)\b|@import|src=|url\((?!#)", written.html)
        for block in re.findall(r"(?:^\|.*\n)+", written.markdown, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1


def test_the_report_is_the_same_when_made_again(curve: Written) -> None:
    """A report is a function of the run's files."""
    assert write_report(load(curve.run.path))["html"].read_text(encoding="utf-8") == curve.html
