"""The bench of searches: what it prints of three of them, and when a bar is missed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from searches import told

from loadgen.stats.confidence import estimate


def point(*found: tuple[float | None, float]) -> Any:
    """A point's searches: the rate that each found (messages/s) and how long it took (s)."""
    searches = [
        {"id": f"s/{number}", "capacity_msgs_per_s": rate, "elapsed_s": elapsed_s, "trials": ["a", "b"],
         "bound_by": "host", "reason": "?"}
        for number, (rate, elapsed_s) in enumerate(found, 1)
    ]  # fmt: skip
    seen = estimate(rate for rate, _ in found)
    return SimpleNamespace(
        broker="kafka", searches=searches, estimate=seen, limits=(seen.low, seen.high), msgs_per_s=seen.median
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            [(76e3, 54), (77e3, 35), (75e3, 78)],
            ["± 3.3% of the median", "(bar: ± 15%): kept", "78 s (bar: 90 s): kept"],
        ),
        ([(76e3, 54), (77e3, 35), (46e3, 78)], ["(bar: ± 15%): missed", "78 s (bar: 90 s): kept"]),
        ([(76e3, 54), (77e3, 95), (75e3, 78)], ["(bar: ± 15%): kept", "95 s (bar: 90 s): missed"]),
        ([(76e3, 54), (None, 88), (76e3, 78)], ["2 of 3 searches (bar: ± 15%): missed"]),
        ([(None, 54), (None, 88), (76e3, 78)], ["no interval, 1 of 3 searches (bar: ± 15%): missed"]),
    ],
)
def test_a_bar_is_kept_by_all_searches_or_missed(found: list[tuple[float | None, float]], words: list[str]) -> None:
    """Each search has its line; their interval and the longest one are held against the bars."""
    lines, is_kept = told(point(*found), len(found))
    assert len(lines) == len(found) + 1
    assert all(each in lines[-1] for each in words)
    assert is_kept is ("missed" not in lines[-1])
