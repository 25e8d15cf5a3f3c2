"""The article's table: ten rows of claims, the measurements beside them, and what else a run has to say.

No measured cell is written by hand: each is made of the trials or the findings that answer its row, with their
interval, number and ids. A row that nothing answers says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loadgen.analysis import is_measured
from loadgen.analysis.capacity import PointCapacity, capacities
from loadgen.analysis.curve import Curve, curves
from loadgen.record import enters
from loadgen.report import points as pt
from loadgen.report import slowest
from loadgen.report.article import ARTICLE
from loadgen.report.evidence import finding_figures
from loadgen.report.fault_evidence import Hurt
from loadgen.report.probe_rules import BesideClaim
from loadgen.report.rules import NOT_MEASURED, Figure, Judgement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.analysis.tail import Tail
    from loadgen.record import Record
    from loadgen.report.article import Claimed
    from loadgen.runs import Run

BROKERS = ("rabbitmq", "kafka")


@dataclass(frozen=True)
class Cell:
    """One broker's side of a row."""

    broker: str
    claim: str
    figures: tuple[Figure, ...]
    judgement: Judgement
    reason: str


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    feature: str
    cells: tuple[Cell, ...]

    @property
    def is_measured(self) -> bool:
        """Whether anything in the run answers it."""
        return any(cell.figures for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """What the run says to the article, its comparisons, capacities and curves, and its slow seconds.

    `trials` are answers of their scenarios; `probes` were capacity searches' ways to one, and are in no figure.
    """

    run_id: str
    rows: tuple[Row, ...]
    comparisons: tuple[pt.Comparison, ...]
    trials: tuple[Record, ...]
    struck: tuple[Record, ...] = field(default=())
    probes: tuple[Record, ...] = field(default=())
    findings: tuple[dict[str, Any], ...] = field(default=())
    capacities: tuple[PointCapacity, ...] = field(default=())
    curves: tuple[Curve, ...] = field(default=())
    tails: tuple[Tail, ...] = field(default=())
    short: tuple[Record, ...] = field(default=())
    """Trials with response times, but too few seconds to tell slow ones from the others."""
    other: Run | None = None
    """Another run, whose trials with faults are cited."""

    @property
    def measured(self) -> tuple[Row, ...]:
        """The rows that something in the run answers."""
        return tuple(row for row in self.rows if row.is_measured)


def make_table(run: Run, other: Run | None = None) -> Table:
    """Answer the article's rows from a run, and from the trials with faults of another; files only, never a broker."""
    trials = tuple(record for record in run.records if is_measured(record))
    comparisons = pt.comparisons(trials, run.header["searches"])
    findings, hurt = run.header["findings"], Hurt(run, other)
    tails, short = slowest.tails(run, trials)
    return Table(
        run_id=run.id,
        rows=tuple(Row(claimed.feature, _cells(claimed, comparisons, findings, hurt)) for claimed in ARTICLE),
        comparisons=tuple(comparisons),
        trials=trials,
        struck=tuple(record for record in trials if not enters(record)),
        probes=tuple(record for record in run.records if not is_measured(record)),
        findings=tuple(findings),
        capacities=tuple(capacities(run)),
        curves=tuple(curves(run)),
        tails=tuple(tails),
        short=tuple(short),
        other=other,
    )


def _cells(
    claimed: Claimed, comparisons: Sequence[pt.Comparison], findings: Sequence[dict[str, Any]], hurt: Hurt
) -> tuple[Cell, ...]:
    figures = [_figures(claimed, comparisons, findings, hurt, broker) for broker in BROKERS]
    return tuple(_cell(claimed, index, figures[index], figures[1 - index]) for index in range(len(BROKERS)))


def _figures(
    claimed: Claimed,
    comparisons: Sequence[pt.Comparison],
    findings: Sequence[dict[str, Any]],
    hurt: Hurt,
    broker: str,
) -> list[Figure]:
    measured = [] if claimed.measure is None else claimed.measure(comparisons, broker)
    found = [] if claimed.probe is None else finding_figures(findings, claimed.probe, broker)
    return measured + found + ([] if claimed.faults is None else hurt.figures(claimed.faults, broker))


def _cell(claimed: Claimed, index: int, figures: Sequence[Figure], other: Sequence[Figure]) -> Cell:
    broker, claim = BROKERS[index], (claimed.rabbitmq, claimed.kafka)[index]
    counted, beside = ([figure for figure in each if figure.estimate.n] for each in (figures, other))
    if not counted:
        return Cell(broker, claim, tuple(figures), "not measured", _why_not(figures))
    rule = claimed.rules[index]
    opinion = rule.judge_beside(counted, beside) if isinstance(rule, BesideClaim) else rule.judge(counted)
    return Cell(broker, claim, tuple(figures), *opinion)


def _why_not(figures: Sequence[Figure]) -> str:
    if not figures:
        return NOT_MEASURED[1]
    said = [figure.said for figure in figures if figure.is_found]
    return said[0] if said else "every trial that would answer it is invalid or incomplete"
