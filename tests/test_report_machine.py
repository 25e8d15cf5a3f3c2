"""What the report says of the machines that a run was measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import synthetic

from loadgen.report.answer import machine
from loadgen.runs import RunWriter, load

if TYPE_CHECKING:
    from pathlib import Path

ONE_HOST = {"source": "tsc", "offset_ns": 0, "error_ns": 100, "drift_ppm": None, "samples": 0, "changed": False}


def told(root: Path, *clocks: dict[str, Any]) -> dict[str, str]:
    """The environment's lines of a run whose trials had these clocks."""
    writer = RunWriter(root, "clocks", synthetic.HEADER)
    for repeat, clock in enumerate(clocks, 1):
        writer.add_trial(synthetic.trial("kafka", repeat=repeat, clock=clock))
    return dict(machine(load(writer.finish("complete"))))


@pytest.mark.parametrize(
    ("drift_ppm", "words"), [(3.21, ", drifts by +3.2 ppm"), (None, "")], ids=["drift", "drift unknown"]
)
def test_clocks_of_several_hosts_are_told_with_their_error(drift_ppm: float | None, words: str, tmp_path: Path) -> None:
    """Those of the trial in which they were known worst: by how much they differ, and to how much that is known."""
    far = {"source": "tsc", "offset_ns": -1_250_000, "drift_ppm": drift_ppm, "samples": 40, "changed": False}
    lines = told(tmp_path, {**far, "error_ns": 40_000}, {**far, "error_ns": 90_000}, ONE_HOST)
    off = f"-1.250 ms from the deciding machine's, ± 0.090 ms{words}"
    assert lines["Workers' clocks"] == f"{off} (by 40 round trips, in the worst trial)"


def test_one_host_has_one_clock(tmp_path: Path) -> None:
    """Nothing is said of clocks that are one."""
    assert "Workers' clocks" not in told(tmp_path, ONE_HOST)
