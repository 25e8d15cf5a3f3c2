"""The report of the generator's own limits: as an open loop and as a closed one, in words and in both charts."""

from __future__ import annotations

from html import unescape
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import synthetic

from loadgen.report import render_run, words, write_report
from loadgen.runs import Run, RunWriter, load

if TYPE_CHECKING:
    from pathlib import Path

PACED = {"paced_msgs_per_s": 0.85, "unpaced_msgs_per_s": None, "paced_reason": None}
HALF_PACED = {"paced_msgs_per_s": 0.6, "unpaced_msgs_per_s": 0.85, "paced_reason": "the schedule lagged by <3> ms"}
UNPACED = {"paced_msgs_per_s": None, "unpaced_msgs_per_s": 0.6, "paced_reason": "the schedule lagged by <3> ms"}


def searched(root: Path, kafka: dict[str, Any], factor: float = 12.0) -> Run:
    """Capacities of both brokers and a curve of Kafka; ceilings are `factor` times as much, `kafka` shares of it."""
    rng = np.random.default_rng(1)
    writer = RunWriter(root, "load", synthetic.HEADER)
    for broker, capacity in synthetic.CAPACITIES.items():
        home = f"load/{broker}/{synthetic.DRIVERS[broker][0]}/capacity/1"
        search = synthetic.write_search(writer, broker, capacity, rng, home=home, ceiling_msgs_per_s=factor * capacity)
        of = PACED if broker == "rabbitmq" else kafka
        rates = {name: of[name] and of[name] * factor * capacity for name in ("paced_msgs_per_s", "unpaced_msgs_per_s")}
        writer.add("ceilings", synthetic.ceiling_record(search, **{**of, **rates}))
    for fraction in synthetic.FRACTIONS:
        record = synthetic.fraction_trial("kafka", fraction, 1, synthetic.CAPACITIES["kafka"])
        synthetic.write_long_trial(writer, record, 1e6 / max(0.01, 1.05 - fraction), rng)
    return load(writer.finish("complete"))


class Written:
    """The report in three formats, and its drawings."""

    def __init__(self, run: Run) -> None:
        self.page = unescape(write_report(run)["html"].read_text(encoding="utf-8"))
        self.markdown = (run.path / "report.md").read_text(encoding="utf-8").replace("&lt;", "<")
        self.text = " ".join(render_run(run).split())
        self.capacity = (run.path / "charts" / "capacity.svg").read_text(encoding="utf-8")
        self.curve = (run.path / "charts" / "curve-1.svg").read_text(encoding="utf-8")

    def everywhere(self, said: str) -> bool:
        """Whether all three formats say it."""
        return all(said in each for each in (self.page, self.markdown, self.text))


def test_the_open_loops_ceiling_stands_beside_the_capacity(tmp_path: Path) -> None:
    """As a multiple of the capacity, with the closed loop's beside it, and what the next higher rate showed."""
    capacity = synthetic.CAPACITIES["kafka"]
    found = Written(searched(tmp_path, HALF_PACED))
    paced, closed = words.rate(0.6 * 12 * capacity), words.rate(12 * capacity)
    assert found.everywhere(f"{words.significant(7.2)}×")
    assert found.everywhere(f"{paced} paced, {closed} as a closed loop")
    assert found.everywhere(f"it paces {paced} (the schedule lagged by <3> ms)")
    assert found.everywhere("the highest rate that was tried")  # RabbitMQ's
    assert f"the tool itself paces {words.significant(7.2)}× that here" in found.page


def test_both_ceilings_are_drawn(tmp_path: Path) -> None:
    """In the chart of capacities with marks of their own, and on the curve; those beyond its edge are in words."""
    capacity = synthetic.CAPACITIES["kafka"]
    far = Written(searched(tmp_path / "far", HALF_PACED))
    for said in ("the tool as a closed loop", "the tool as an open loop", "7.20×", "10.2×", words.rate(capacity)):
        assert said in far.capacity, said
    paced, closed = words.rate(0.6 * 12 * capacity), words.rate(12 * capacity)
    beyond = f"Kafka: the tool alone paces {paced} (7.20×), the tool as a closed loop {closed} (12.0×) →"
    assert beyond in far.curve
    near = Written(searched(tmp_path / "near", PACED, factor=1.4))
    assert "→" not in near.curve
    assert f"Kafka: the tool alone paces {words.rate(0.85 * 1.4 * capacity)} (1.19×)" in near.curve
    assert f"Kafka: the tool as a closed loop {words.rate(1.4 * capacity)} (1.40×)" in near.curve


def test_where_no_rate_was_paced_only_the_closed_loop_is_shown_and_it_is_said(tmp_path: Path) -> None:
    """Nothing is drawn that nobody measured."""
    found = Written(searched(tmp_path, UNPACED))
    assert found.everywhere("As an open loop it paced no rate that was tried: the schedule lagged by <3> ms.")
    assert "Kafka: the tool alone 14.4 M msg/s (12.0×) →" in found.curve


@pytest.mark.parametrize("capacities", [0, 1])
def test_the_chart_of_capacities_needs_a_capacity(tmp_path: Path, capacities: int) -> None:
    """A run that found none has no such chart."""
    writer = RunWriter(tmp_path, "load", synthetic.HEADER)
    tried = synthetic.probe("kafka", 1, "confirm", 10.0)
    writer.add_trial(tried)
    writer.add("searches", synthetic.search_record("kafka", [tried], 10.0 if capacities else None))
    run = load(writer.finish("complete"))
    write_report(run)
    assert len(list((run.path / "charts").glob("capacity.svg"))) == capacities
