"""Several runs beside each other: the same points, ratios with honest intervals, and everything else that differs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import synthetic

from loadgen import cli
from loadgen.analysis.across import compare_runs
from loadgen.errors import ScenarioError
from loadgen.report import render_across
from loadgen.runs import Run, RunWriter, load

if TYPE_CHECKING:
    from pathlib import Path

ENVIRONMENT, BROKERS = synthetic.HEADER["environment"], synthetic.HEADER["brokers"]
GOODPUT = {"A": (1_000.0, 1_020.0, 980.0), "B": (2_000.0, 2_040.0, 1_960.0), "C": (1_010.0, 985.0, 1_000.0)}


def run_of(
    root: Path, name: str, goodput: tuple[float, ...], header: dict[str, Any] | None = None, **given: Any
) -> Run:
    """A run of one throughput point and one latency point of Kafka."""
    writer = RunWriter(root, name.lower(), {**synthetic.HEADER, **(header or {})})
    for repeat, value in enumerate(goodput, 1):
        writer.add_trial(synthetic.trial("kafka", repeat=repeat, goodput_msgs_per_s=value, **given))
        open_loop = synthetic.demanded_trial("kafka", repeat, 500.0, value / 1_000)
        writer.add_trial(open_loop)
    return load(writer.finish("complete"))


def test_the_same_points_are_compared_against_the_first_run(tmp_path: Path) -> None:
    """Twice the rate is shown as such, and nothing where nothing changed; latencies of open loops likewise."""
    found = compare_runs([run_of(tmp_path, name, values) for name, values in GOODPUT.items()])
    assert [row.measure for row in found.rows] == ["rate", "p50", "p99"]
    (rate, _, p99) = found.rows
    for row in (rate, p99):
        first, double, same = row.ratios
        assert first is None
        assert double is not None
        assert same is not None
        assert (double.direction, same.direction) == ("higher", "no difference shown")
        assert double.ratio == pytest.approx(2, rel=0.01)
        assert double.confidence == pytest.approx(1 - 0.05 / 6)
    text = " ".join(render_across(found).split())
    assert "rate: A 1.00 k msg/s (n 3); B 2.00 k msg/s (n 3), B/A 2.00× (" in text
    assert "C/A 0.998×" in text
    assert not found.warnings
    assert "`loadgen ab` has them take turns" in text


@pytest.mark.parametrize(
    ("header", "given", "word"),
    [
        ({"environment": {**ENVIRONMENT, "kernel": "6.8.0"}}, {}, "machine differ: kernel 6.1.0 / 6.8.0"),
        (
            {"brokers": {**BROKERS, "kafka": {**BROKERS["kafka"], "version": "4.2"}}},
            {}, "broker versions differ: kafka 4.3.1 / 4.2",
        ),
        ({"plan": {"warmup_s": 9.0, "duration_s": 4.0}}, {}, "lengths of trials differ"),
        ({}, {"versions": {"loadgen": "9.9"}}, "loadgen differ: loadgen"),
        ({}, {"settings": {"linger_ms": 5.0}}, "settings differ: linger_ms 0.0, 5.0"),
    ],
)  # fmt: skip
def test_what_else_differs_is_flagged(tmp_path: Path, header: dict[str, Any], given: dict[str, Any], word: str) -> None:
    """Another machine, other versions, lengths or settings: each is said beside the ratio."""
    runs = [run_of(tmp_path, "a", GOODPUT["A"]), run_of(tmp_path, "b", GOODPUT["B"], header, **given)]
    assert word in " ".join(render_across(compare_runs(runs)).split())


def test_settings_of_brokers_are_told_by_name_and_places_are_none(tmp_path: Path) -> None:
    """A setting that differs is named with both values; another port or folder is no other setting."""

    def kafka(*deviations: str) -> dict[str, Any]:
        return {"brokers": {**BROKERS, "kafka": {**BROKERS["kafka"], "deviations": list(deviations)}}}

    places = "listeners = PLAINTEXT://127.0.0.1:{} (why)", "log.dirs = {}/run/data (a folder)"
    first = kafka(places[0].format(9092), places[1].format("<checkout>"), "num.io.threads = 8 (found so)")
    second = kafka(places[0].format(19092), places[1].format("/home/me"), "num.io.threads = 2 (found so)")
    runs = [run_of(tmp_path, "a", GOODPUT["A"], first), run_of(tmp_path, "b", GOODPUT["B"], second)]
    assert compare_runs(runs).warnings == ("brokers’ settings differ: kafka num.io.threads 8 / 2",)


def test_single_repeats_cannot_tell(tmp_path: Path) -> None:
    """One value each has a ratio and no interval."""
    found = compare_runs([run_of(tmp_path, name, GOODPUT[name][:1]) for name in "AB"])
    assert all(ratio is None or ratio.low is None for row in found.rows for ratio in row.ratios)
    assert "one repeat, which cannot tell" in render_across(found)


def test_trials_that_do_not_count_are_in_no_ratio(tmp_path: Path) -> None:
    """An invalid trial's rate is left out; a point whose trials are all invalid has no row."""
    invalid = {"status": "invalid", "bound_by": "unknown", "reasons": ["x"]}
    found = compare_runs([run_of(tmp_path, "a", GOODPUT["A"]), run_of(tmp_path, "b", GOODPUT["B"], verdict=invalid)])
    assert [row.measure for row in found.rows] == ["p50", "p99"]


def test_runs_without_a_common_point_are_refused(tmp_path: Path) -> None:
    """One line, and so is a run given twice."""
    first = run_of(tmp_path, "a", GOODPUT["A"])
    writer = RunWriter(tmp_path, "other", synthetic.HEADER)
    writer.add_trial(synthetic.trial("rabbitmq", "scaling"))
    with pytest.raises(ScenarioError, match="has no point in common with"):
        compare_runs([first, load(writer.finish("complete"))])
    with pytest.raises(ScenarioError, match="is given twice"):
        compare_runs([first, first])


def test_report_of_several_runs_prints_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`loadgen report A B`: for people, and as JSON."""
    ids = [run_of(tmp_path, name, GOODPUT[name]).id for name in "AB"]
    assert cli.main(["report", *ids, "--results", str(tmp_path)]) == 0
    assert f"A: {ids[0]}" in capsys.readouterr().out
    assert cli.main(["report", *ids, "--results", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["runs"] == ids
    assert document["rows"][0]["ratios"][1]["ratio"] == pytest.approx(2, rel=0.01)
