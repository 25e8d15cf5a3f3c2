"""The bench of large runs, in small: what it writes is a run as any other, and its figures are what was put in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reading import KINDS, write_run

from loadgen.report import write_report
from loadgen.runs import load

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES, WINDOW_S = 40_003, 100


def test_a_large_run_s_small_sibling_is_read_whole(tmp_path: Path) -> None:
    """Each message is in the histogram and in the series, percentiles are those put in, and a report is written."""
    run = load(write_run(tmp_path, 2 * MESSAGES, WINDOW_S, 5))
    assert [record["latency_ns"]["e2e"]["count"] for record in run.records] == [MESSAGES] * 2
    for broker, times in (("rabbitmq", 1.0), ("kafka", 4.0)):
        merged = run.histogram("e2e", broker=broker)
        assert merged.count == MESSAGES
        assert abs(merged.percentile(50) / (KINDS["e2e"] * times * 1e6) - 1) < 0.05
        series = run.series[run.series["broker"] == broker]
        assert len(series) == WINDOW_S // 5
        assert series["e2e_count"].sum() == MESSAGES
        assert series["depth_msgs"].notna().all()
    assert write_report(run)["html"].stat().st_size > 10_000
