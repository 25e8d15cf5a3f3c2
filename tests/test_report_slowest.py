"""What a report says where slow seconds cannot be told from the others: how many trials, why, and what would help."""

from __future__ import annotations

from html import unescape
from typing import TYPE_CHECKING

import numpy as np
import synthetic

from loadgen.report import render_run
from loadgen.report.content import gather
from loadgen.report.slowest import lead
from loadgen.runs import RunWriter, load

if TYPE_CHECKING:
    from pathlib import Path

FIXED = {"kind": "fixed", "msgs_per_s": 400.0}


def test_trials_too_short_for_slow_seconds_say_so(tmp_path: Path) -> None:
    """Every format tells how many they are, how long they would have to be, and what to do; never silence."""
    rng = np.random.default_rng(4)
    writer = RunWriter(tmp_path, "short", synthetic.HEADER)
    for repeat in (1, 2):
        synthetic.write_trial(writer, synthetic.trial("kafka", "latency", repeat=repeat, rate=FIXED), {"e2e": 1e6}, rng)
        synthetic.write_trial(writer, synthetic.trial("kafka", repeat=repeat), {"e2e_service": 1e6}, rng)
    run = load(writer.finish("complete"))
    page = unescape(synthetic.page_of(run))
    markdown = (run.path / "report.md").read_text(encoding="utf-8")
    window = f"{synthetic.WINDOW_S:g} s"
    for text in (page, markdown, " ".join(render_run(run).split())):
        # The closed loops have no response times, and are not missed.
        assert f"Slow seconds cannot be told in 2 trials with a window of {window}: fewer than 8 seconds" in text
        assert "--set duration_s=" in text
    assert page.count("<h2>The slowest seconds</h2>") == 1
    assert "A second is slow when" not in page  # there is none to explain
    assert "A second is slow when" not in markdown


def test_long_and_short_trials_are_told_apart(tmp_path: Path) -> None:
    """A long trial is explained, a short one beside it is counted, and one with overload or struck out is neither."""
    rng = np.random.default_rng(5)
    writer = RunWriter(tmp_path, "both", synthetic.HEADER)
    long = synthetic.trial("kafka", "latency", rate=FIXED, window_s=synthetic.LONG_WINDOW_S)
    synthetic.write_long_trial(writer, long | {"id": "long"}, 1e6, rng)
    short = synthetic.trial("kafka", "latency", rate=FIXED, window_s=2.0)
    synthetic.write_trial(writer, short | {"id": "short"}, {"e2e": 1e6}, rng)
    struck = {"verdict": {"status": "invalid", "bound_by": "unknown", "reasons": ["x"]}}
    synthetic.write_trial(writer, short | struck | {"id": "struck"}, {"e2e": 1e6}, rng)
    over = synthetic.fraction_trial("kafka", 1.1, 1, 1e3, window_s=2.0) | {"verdict": short["verdict"]}
    synthetic.write_trial(writer, over, {"e2e": 1e6}, rng)
    table = gather(load(writer.finish("complete"))).table
    assert [tail.trial_id for tail in table.tails] == ["long"]
    assert [record["id"] for record in table.short] == ["short"]
    said = lead(table.tails, table.short)
    assert said.startswith(
        "No second stands out in 1 trial. Slow seconds cannot be told in 1 trial with a window of 2 s"
    )


def test_nothing_is_said_where_nothing_was_due(tmp_path: Path) -> None:
    """Closed loops alone have no such section."""
    writer = RunWriter(tmp_path, "closed", synthetic.HEADER)
    synthetic.write_trial(writer, synthetic.trial("kafka"), {"e2e_service": 1e6}, np.random.default_rng(6))
    run = load(writer.finish("complete"))
    assert "slowest seconds" not in synthetic.page_of(run)
    assert "slowest seconds" not in render_run(run)
