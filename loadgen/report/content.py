"""Everything that a report shows, as data: made once, for the page, the Markdown and the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.analysis import shapes
from loadgen.analysis.ab import compare_variants, effect_of, multiplicity
from loadgen.analysis.decision import decide
from loadgen.analysis.outages import costs, courses
from loadgen.report import ab, answer, capacity, curve, detail, hurt, slowest, summary
from loadgen.report.decision import DecisionText, decision_text
from loadgen.report.promises import note, promises
from loadgen.report.soak import soak_blocks
from loadgen.report.table import Table, make_table

if TYPE_CHECKING:
    from loadgen.analysis.ab import Compared
    from loadgen.analysis.drift import Long
    from loadgen.analysis.outages import Course
    from loadgen.analysis.tail import Tail
    from loadgen.record import Record
    from loadgen.report.ab import PairBlock
    from loadgen.report.capacity import CapacityBlock
    from loadgen.report.curve import CurveSheet
    from loadgen.report.detail import Block
    from loadgen.report.promises import Promise
    from loadgen.report.soak import SoakBlock
    from loadgen.report.table import Row
    from loadgen.runs import Run


@dataclass(frozen=True)
class Search:
    """A capacity search and those of its trials that are no answers; without an id, of searches that never ended."""

    id: str
    answer: str
    probes: tuple[Record, ...]


@dataclass(frozen=True)
class Variants:
    """A against B, point by point; `multiplicity` says how intervals were corrected for being several."""

    compared: tuple[Compared, ...]
    blocks: tuple[PairBlock, ...]
    effect_ratio: float
    multiplicity: str


@dataclass(frozen=True)
class Content:
    """A report's parts; `worst` are the trials whose seconds are drawn. `variants` is None but for A/B runs."""

    table: Table
    sentences: tuple[str, ...]
    caveats: tuple[str, ...]
    capacities: tuple[CapacityBlock, ...]
    curves: tuple[CurveSheet, ...]
    blocks: tuple[Block, ...]
    worst: tuple[Tail, ...]
    searches: tuple[Search, ...]
    variants: Variants | None = None
    soaks: tuple[SoakBlock, ...] = ()
    long: tuple[Long, ...] = ()
    """The trials behind `soaks`."""
    promises: tuple[Promise, ...] = ()
    """Of trials with faults."""
    courses: tuple[Course, ...] = ()
    """Of the same trials, second by second."""
    promise_note: str = ""
    """What the table of promises cannot show, and what was counted in its place."""
    decision: DecisionText | None = None
    """Of a run that was asked to decide."""
    summary: tuple[str, ...] = ()
    """Who led, by class and quantity; empty where the sentences say all of it."""
    unsaid: tuple[str, ...] = ()
    """What the run's comparisons leave open."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The article's rows; who asked for a decision did not ask for those that it has no measurement of."""
        return self.table.rows if self.decision is None else self.table.measured

    @property
    def in_words(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What stands below the first sentences: (heading, sentences), those without any left out."""
        parts = (("Class by class", self.summary), ("What this run cannot say", self.unsaid))
        return tuple((head, said) for head, said in parts if said)

    @property
    def has_single_runs(self) -> bool:
        """Whether a figure stands on one repeat, with that run's own bounds."""
        parts = (self.blocks, self.curves, self.capacities)
        return any(each.has_single_runs for part in parts for each in part)


def gather(run: Run, other: Run | None = None) -> Content:
    """All that a run has to say, its table with the trials with faults of another; reads their files only."""
    table = make_table(run, other)
    variants = _variants(run)
    soaks, long = soak_blocks(run)
    decision, paid = decide(run), costs(run)
    found = [] if variants else summary.findings(table)
    led = summary.lines(found)
    said = [block.answer for block in variants.blocks] if variants else answer.sentences(table)
    said = [*said, *shapes.sentences(run), *hurt.sentences(run, paid)]
    said += [f"{each.title}: {each.answer} {each.kept}" for each in soaks]
    return Content(
        table=table,
        sentences=tuple(said),
        caveats=tuple(answer.caveats(run, table)),
        capacities=tuple(capacity.capacity_blocks(run, table.capacities)),
        curves=tuple(curve.curve_sheets(run, table.curves)),
        blocks=tuple(detail.blocks(run, table.comparisons)),
        worst=tuple(slowest.worst(run, table.tails)),
        searches=tuple(_searches(run, table)),
        variants=variants,
        soaks=tuple(soaks),
        long=tuple(long),
        promises=tuple(promises(run, paid)),
        courses=tuple(courses(run)),
        promise_note=note(run),
        decision=None if decision is None else decision_text(decision),
        summary=tuple(led) if len(led) > 1 else (),
        unsaid=() if variants else tuple(summary.unsaid(table, found)),
    )


def _variants(run: Run) -> Variants | None:
    effect_ratio = effect_of(run)
    compared = tuple(compare_variants(run, effect_ratio))
    if not compared:
        return None
    return Variants(compared, tuple(ab.pair_blocks(compared, effect_ratio)), effect_ratio, multiplicity(compared))


def _searches(run: Run, table: Table) -> list[Search]:
    probes = {record["id"]: record for record in table.probes}
    found = []
    for each in run.header["searches"]:
        tried = tuple(probes.pop(trial_id) for trial_id in each["trials"] if trial_id in probes)
        found.append(Search(each["id"], capacity.search_text(each), tried))
    left = tuple(probes.values())
    return [*found, *([Search("", "searches that did not come to their end", left)] if left else [])]
