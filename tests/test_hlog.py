"""The histogram log is what HDR tools read, and a killed run's log still is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from loadgen.histogram import Histogram
from loadgen.hlog import HlogWriter, read_base_time, read_hlog

if TYPE_CHECKING:
    from pathlib import Path

STARTED_S = 1_700_000_000.0


def filled(seed: int) -> Histogram:
    """A histogram of a thousand latencies."""
    histogram = Histogram()
    histogram.add(np.random.default_rng(seed).integers(100_000, 90_000_000, 1_000))
    return histogram


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of three intervals of two kinds."""
    path = tmp_path / "histograms.hlog"
    with HlogWriter(path, STARTED_S, "a run\nof two kinds") as writer:
        for second in range(3):
            writer.append("trial/e2e", float(second), 1.0, filled(second))
            writer.append("trial/ack", float(second), 1.0, filled(10 + second))
    return path


def test_what_was_written_is_read_back(log: Path) -> None:
    """Tags, times, counts and the exact largest values survive."""
    intervals = list(read_hlog(log))
    assert [(each.tag, each.start_s, each.length_s) for each in intervals] == [
        (tag, float(second), 1.0) for second in range(3) for tag in ("trial/e2e", "trial/ack")
    ]
    assert read_base_time(log) == STARTED_S
    for number, interval in enumerate(intervals):
        expected = filled(number // 2 + 10 * (number % 2))
        histogram = interval.histogram()
        assert (histogram.counts == expected.counts).all()
        assert histogram.max == expected.max == interval.max_ns


def test_the_python_hdr_tools_read_it(log: Path) -> None:
    """The reader of hdrhistogram finds the intervals, their tags, moments and counts."""
    reader = HistogramLogReader(str(log), HdrHistogram(1, 3_600_000_000_000, 3))
    seen = []
    while (histogram := reader.get_next_interval_histogram()) is not None:
        seen.append((histogram.get_tag(), histogram.get_start_time_stamp() / 1e3, histogram.get_total_count()))
    reader.close()
    assert seen == [(tag, STARTED_S + second, 1_000) for second in range(3) for tag in ("trial/e2e", "trial/ack")]


def test_each_line_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    """A log can be read while its run goes on."""
    path = tmp_path / "running.hlog"
    with HlogWriter(path, STARTED_S) as writer:
        for second in range(3):
            writer.append("e2e", float(second), 1.0, filled(second))
            assert len(list(read_hlog(path))) == second + 1


def test_a_log_cut_at_any_byte_of_its_last_line_keeps_the_others(log: Path) -> None:
    """A run that was killed while it wrote loses that line at most."""
    whole = log.read_bytes()
    last_line = whole.splitlines(keepends=True)[-1]
    for cut in (1, 2, 5, 100, len(last_line) - 1, len(last_line)):
        log.write_bytes(whole[:-cut])
        assert len(list(read_hlog(log))) == 5


def test_damage_elsewhere_is_not_passed_over(log: Path) -> None:
    """A whole line that is no interval raises, with its place."""
    lines = log.read_text().splitlines(keepends=True)
    lines[7] = "Tag=x,1.0,nonsense\n"
    log.write_text("".join(lines))
    with pytest.raises(ValueError, match=":8: not a line"):
        list(read_hlog(log))


@pytest.mark.parametrize("tag", ["", "a b", "a,b", "a\nb", "a\rb", "a\tb", "grün"])
def test_a_tag_that_would_break_the_line_is_refused(log: Path, tag: str) -> None:
    """HdrHistogram splits lines at commas, blanks and line ends."""
    writer = HlogWriter(log.with_name("other.hlog"))
    with writer, pytest.raises(ValueError, match="tag"):
        writer.append(tag, 0.0, 1.0, filled(1))


def test_what_would_overwrite_or_precede_the_log_is_refused(log: Path) -> None:
    """An existing log is not written over, and no interval lies before its start."""
    with pytest.raises(FileExistsError):
        HlogWriter(log)
    with HlogWriter(log.with_name("other.hlog")) as writer, pytest.raises(ValueError, match="before"):
        writer.append("e2e", -1.0, 1.0, filled(1))


def test_an_empty_interval_can_be_written(tmp_path: Path) -> None:
    """A second in which nothing came is a line like any other."""
    path = tmp_path / "empty.hlog"
    with HlogWriter(path) as writer:
        writer.append("e2e", 0.0, 1.0, Histogram())
    (interval,) = read_hlog(path)
    assert (interval.histogram().count, interval.max_ns) == (0, 0)
