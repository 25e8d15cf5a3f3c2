"""Tests of loadgen.gclog: pauses of all collectors, and logs that grow and rotate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadgen.gclog import GcLogs, parse

if TYPE_CHECKING:
    from pathlib import Path

SECOND_NS = 1_000_000_000


@pytest.mark.parametrize(
    ("line", "ended_ns", "duration_ns"),
    [
        (
            b"[0.250s][info][gc] GC(0) Pause Young (Normal) (G1 Evacuation Pause) 24M->4M(256M) 3.456ms",
            1_250,
            3456,
        ),
        (b"[250ms][gc] GC(1) Pause Full (System.gc()) 9M->8M(9M) 12,500ms", 1_250, 12_500),
        (
            b"[1970-01-01T00:00:05.000+0000][gc          ] GC(5) Pause Remark 12M->12M(1024M) 5.716ms",
            2_000,
            5716,
        ),
        (b"[1970-01-01T02:00:05.000+0200][gc] GC(5) Pause Cleanup 12M->12M(1024M) 0.127ms", 2_000, 127),
        (b"[1.000s][gc,phases] GC(3) y: Pause Mark End 0.010ms", 2_000, 10),
        (b"[0.2s][gc,start] GC(0) Pause Young (Normal) (G1 Evacuation Pause)", None, 0),
        (b"[0.2s][gc,phases] GC(0)   Evacuate Collection Set: 19.1ms", None, 0),
        (b"[gc] GC(0) Pause Young 1M->1M(1M) 3.4ms", None, 0),
    ],
)
def test_pause_lines_of_all_collectors_and_stamps(line: bytes, ended_ns: int | None, duration_ns: int) -> None:
    """A pause has its end on CLOCK_MONOTONIC and its length; other lines and unstamped ones are no pauses."""
    pauses = parse([line], started_ns=SECOND_NS, wall_minus_monotonic_ns=3 * SECOND_NS)
    expected = [] if ended_ns is None else [(ended_ns * 1_000_000, duration_ns * 1_000)]
    assert [(pause.ended_ns, pause.duration_ns) for pause in pauses] == expected


def test_a_collections_line_tells_the_heap_that_it_left() -> None:
    """What is in use after it, in bytes; a pause that tells none has none."""
    lines = [b"[1.000s][gc] GC(0) Pause Young (Normal) 24M->4M(256M) 3.4ms", b"[1.0s][gc] GC(1) Pause Mark End 0.1ms"]
    assert [pause.heap_bytes for pause in parse(lines, 0, 0)] == [4 << 20, None]


def test_a_log_is_read_as_it_grows(tmp_path: Path) -> None:
    """Old pauses are left out, a half-written line waits for its end, a rotated file goes on where it was."""
    path = tmp_path / "kafkaServer-gc.log"
    line = "[{}s][gc] GC(0) Pause Young 1M->1M(9M) 1.5ms\n"
    path.write_text(line.format(1))
    logs = GcLogs(tmp_path, 0)
    assert logs.found
    assert logs.read() == []
    with path.open("a") as file:
        file.write(line.format(2) + line.format(3)[:20])
    assert [pause.ended_ns for pause in logs.read()] == [2 * SECOND_NS]
    with path.open("a") as file:
        file.write(line.format(3)[20:])
    path.rename(tmp_path / "kafkaServer-gc.log.0")
    path.write_text(line.format(4))
    assert sorted(pause.ended_ns for pause in logs.read()) == [3 * SECOND_NS, 4 * SECOND_NS]
    assert logs.read() == []


def test_without_a_log_no_pause_means_nothing(tmp_path: Path) -> None:
    """An empty folder has no log, until one appears."""
    logs = GcLogs(tmp_path)
    assert logs.read() == []
    assert not logs.found
    (tmp_path / "gc.log").write_text("")
    logs.read()
    assert logs.found
