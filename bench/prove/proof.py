"""What a proof is: a claim, the rows by which it was checked, and a chart where a picture helps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from loadgen.report.words import significant


class Scale(StrEnum):
    """How much is measured: `full` for the page, `small` for every run of the tests, on any machine.

    A small proof makes the same claim from fewer messages, with tolerances that are wider by as much as the smaller
    sample, or a machine of which a neighbour takes a third, makes the measured value vary.
    """

    FULL = "full"
    SMALL = "small"


@dataclass(frozen=True, slots=True)
class Row:
    """One check: what the known truth says, what was seen, how far they may lie apart, and whether they do not."""

    name: str
    expected: str
    seen: str
    tolerance: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of a proof: `name` is its file's, `title` is told to those who do not see it."""

    name: str
    title: str
    svg: str


@dataclass(frozen=True, slots=True)
class Proof:
    """A claim in one sentence and what was measured of it; `notes` are paragraphs on how, and on what was left out."""

    name: str
    claim: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether something was checked, and nothing failed."""
        return bool(self.rows) and all(row.ok for row in self.rows)


def near(name: str, expected: float, seen: float, tolerance: float, unit: str = "") -> Row:
    """A row of two numbers that may lie `tolerance` apart, all three in `unit`."""
    return within(
        name, expected, seen, expected - tolerance, expected + tolerance, f"± {_shown(tolerance, unit)}", unit
    )


def within(
    name: str, expected: float, seen: float, low: float, high: float, tolerance: str | None = None, unit: str = ""
) -> Row:
    """A row of a number that must lie in low … high; `expected` stands beside it, and the range where no words do."""
    words = f"{_shown(low, unit)} … {_shown(high, unit)}" if tolerance is None else tolerance
    return Row(name, _shown(expected, unit), _shown(seen, unit), words, low <= seen <= high)


def at_most(name: str, limit: float, seen: float, unit: str = "") -> Row:
    """A row of a number that must not be over a limit."""
    return Row(name, f"at most {_shown(limit, unit)}", _shown(seen, unit), "", seen <= limit)


def at_least(name: str, limit: float, seen: float, unit: str = "") -> Row:
    """A row of a number that must not be under a limit."""
    return Row(name, f"at least {_shown(limit, unit)}", _shown(seen, unit), "", seen >= limit)


def same(name: str, expected: Any, seen: Any) -> Row:
    """A row of two things that must be equal."""
    return Row(name, str(expected), str(seen), "exactly", bool(expected == seen))


def _shown(value: float, unit: str) -> str:
    text = (
        f"{value:,}"
        if isinstance(value, int)
        else significant(value, 4)
        if value >= 0
        else f"−{significant(-value, 4)}"
    )
    return f"{text} {unit}".rstrip()
