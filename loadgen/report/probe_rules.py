"""The article's claims that probes answer, as rules: what was found would have to be so to support or contradict them.

A finding that the broker's own word does not confirm is never given to a rule. What a rule says beyond its judgement is
what the article leaves out or has wrong.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from loadgen.probes.quantities import LOST, TWICE
from loadgen.report import words
from loadgen.report.rules import NOT_MEASURED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loadgen.report.rules import Figure, Opinion

SAME_SHARE = 0.05  # "1 MB" is said of 1,000,000 and of 1,048,576 bytes alike
CLEAR_TIMES = 2
ROUND_TRIP = "confirmed round trip"
BY_DEFAULT, RAISED = "as it comes", "limit raised"
CONFIRMED_LOST, CAME_TWICE = "confirmed and lost", "came twice"
BROKEN_UNDER = {
    "at most once": (CAME_TWICE,),
    "at least once": (CONFIRMED_LOST,),
    "exactly once": (CONFIRMED_LOST, CAME_TWICE),
}
"""By what the ledger of a trial with faults shows a mode broken."""
BROKEN_BY = {"at most once": (TWICE,), "at least once": (LOST,), "exactly once": (LOST, TWICE)}


@dataclass(frozen=True)
class SpokenClaim:
    """`AMQP, STOMP, MQTT`: a message went there and back by each of them, confirmed."""

    protocols: tuple[str, ...]

    def judge(self, figures: Sequence[Figure]) -> Opinion:
        """A protocol is spoken where a round trip was timed."""
        spoken = [figure.point.partition(",")[0] for figure in figures if figure.what == ROUND_TRIP]
        silent = [each for each in self.protocols if not any(name.startswith(each) for name in spoken)]
        if silent:
            return "cannot tell here", f"no confirmed round trip by {' or '.join(silent)}"
        more = [name for name in spoken if not name.startswith(self.protocols)]
        also = f"; and by {' and '.join(more)}, which the article leaves out" if more else ""
        return "supports", f"a confirmed message went there and back by {', '.join(self.protocols)}{also}"


@dataclass(frozen=True)
class LimitedClaim:
    """`per queue`, `configurable (days/size)`: limits of one place take messages away, and none beside it."""

    by: tuple[str, ...]
    untried: str = ""
    """What else the article says, and no probe asks."""

    def judge(self, figures: Sequence[Figure]) -> Opinion:
        """`by` are the quantities that must be over nothing."""
        found = {what: [each for each in figures if each.what == what] for what in self.by}
        if missing := [what for what, each in found.items() if not each]:
            return "cannot tell here", f"nothing was seen {' or '.join(missing)}"
        without = [each.point for some in found.values() for each in some if not each.estimate.median]
        if without:
            return "contradicts", f"no message went by the limit of {' and '.join(without)}"
        kept = [
            f"{each.point} keeps {words.shown(each.estimate.median, each.unit)}"
            for each in figures
            if each.what not in self.by
        ]
        said = "limits of age and size of one place took its messages, and none of the place beside it"
        said += f"; after consumption {', '.join(kept)}" if kept else ""
        return "supports", f"{said}; not tried: {self.untried}" if self.untried else said


@dataclass(frozen=True)
class DeliveryClaim:
    """`at-least-once, exactly-once`: the modes that no crash of a consumer, and no fault of a broker, may break."""

    modes: tuple[str, ...]

    def judge(self, figures: Sequence[Figure]) -> Opinion:
        """At most once must process none twice, at least once must lose none, exactly once neither."""
        calm, hurt = ([each for each in figures if bool(each.under) == is_hurt] for is_hurt in (False, True))
        tried = {mode: [_broken(mode, calm, BROKEN_BY), _broken(mode, hurt, BROKEN_UNDER)] for mode in BROKEN_BY}
        seen = {mode: ", ".join(filter(None, hows)) for mode, hows in tried.items() if hows != [None, None]}
        unseen = [mode for mode in self.modes if mode not in seen]
        broken = [f"{mode}: {seen[mode]}" for mode in self.modes if seen.get(mode)]
        if unseen and not broken:
            return "cannot tell here", f"{' and '.join(unseen)} could not be tried"
        others = [
            f"{mode} {'did not hold: ' + how if how else 'held as well, which the article leaves out'}"
            for mode, how in seen.items()
            if mode not in self.modes
        ]
        also = f"; {'; '.join(others)}" if others else ""
        if broken:
            return "contradicts", f"{'; '.join(broken)}{also}"
        return "supports", f"{' and '.join(self.modes)} held {self._under(tried)}{also}"

    def _under(self, tried: Mapping[str, Sequence[str | None]]) -> str:
        """What the modes held under, by what each was tried by."""
        crashed, hurt = ([mode for mode in self.modes if tried[mode][way] is not None] for way in (0, 1))
        if not hurt:
            return "while consumers were killed, not the broker"
        faults = "under the faults named here" + ("" if len(hurt) == len(self.modes) else f" ({' and '.join(hurt)})")
        return f"while consumers were killed, and {faults}" if crashed else faults


def _broken(mode: str, figures: Sequence[Figure], by: Mapping[str, Sequence[str]]) -> str | None:
    """How a mode was broken, "" where it was not; None where it was not tried."""
    found: dict[str, float] = {}
    for each in figures:
        if each.point.startswith(mode):
            found[each.what] = found.get(each.what, 0) + (each.estimate.median or 0)
    if not found.keys() >= set(by[mode]):
        return None
    return ", ".join(f"{found[what]:,.0f} {what}" for what in by[mode] if found[what])


@dataclass(frozen=True)
class SizeClaim:
    """`up to 128 MB (default 64 MB)`: what is taken by default, and what is taken when the limit is raised."""

    default_bytes: int
    most_bytes: int

    def judge(self, figures: Sequence[Figure]) -> Opinion:
        """A larger or smaller default contradicts, and so does a larger message than the most."""
        taken = {figure.point: figure.estimate.median or 0 for figure in figures}
        default, raised = taken.get(BY_DEFAULT), taken.get(RAISED)
        if default is None:
            return NOT_MEASURED
        parts = [f"the default takes {words.exact(default)}"]
        is_other = abs(default / self.default_bytes - 1) > SAME_SHARE
        if is_other:
            parts[0] += f", not {words.exact(self.default_bytes)}"
        is_more = raised is not None and raised > self.most_bytes
        if is_more:
            parts.append(f"{words.exact(raised or 0)} went through where the limit was raised")
            parts[1] += f", over {words.exact(self.most_bytes)}"
        if is_other or is_more:
            return "contradicts", "; ".join(parts)
        if raised is None:
            return "cannot tell here", f"{parts[0]}, as claimed; no higher limit was tried"
        return "supports", f"{parts[0]}, and at the most {words.exact(raised)} was tried"


@runtime_checkable
class BesideClaim(Protocol):
    """A claim that says more or less, and so needs both brokers' figures."""

    @abstractmethod
    def judge_beside(self, figures: Sequence[Figure], other: Sequence[Figure]) -> Opinion:
        """Judge this broker's figures beside the other's."""


@dataclass(frozen=True)
class EffortClaim(BesideClaim):
    """`lower`, `higher`: in how many of the quantities that make up an effort one broker needs less than the other."""

    direction: Literal["lower", "higher"]
    quantities: tuple[str, ...]

    def judge_beside(self, figures: Sequence[Figure], other: Sequence[Figure]) -> Opinion:
        """Counts are compared as they are, repeated quantities by their intervals, which must not touch.

        Quantities have no weights that all would agree on: one side must lead in twice as many as the other.
        """
        sides: dict[int, list[str]] = {-1: [], 1: [], 0: []}
        judged = [figure for figure in figures if figure.what in self.quantities]
        for mine, theirs in _pairs(judged, other):
            sides[order_of(mine, theirs)].append(mine.what)
        lower, higher, same = sides[-1], sides[1], sides[0]
        if not lower and not higher:
            return "cannot tell here", "no quantity is told apart from the other broker's"
        parts = [
            f"{name} in {len(each)} ({', '.join(each)})"
            for name, each in (("lower", lower), ("higher", higher), ("alike", same))
            if each
        ]
        said = f"beside the other broker {'; '.join(parts)}"
        if max(len(lower), len(higher)) < CLEAR_TIMES * min(len(lower), len(higher)):
            return "cannot tell here", said
        return ("supports" if (len(lower) > len(higher)) == (self.direction == "lower") else "contradicts"), said


FoundClaim = SpokenClaim | LimitedClaim | DeliveryClaim | SizeClaim | EffortClaim


def _pairs(figures: Sequence[Figure], other: Sequence[Figure]) -> Iterator[tuple[Figure, Figure]]:
    known = {(figure.point, figure.what): figure for figure in other}
    for figure in figures:
        if (beside := known.get((figure.point, figure.what))) is not None:
            yield figure, beside


def order_of(mine: Figure, theirs: Figure) -> int:
    """−1 where mine is less, 1 where it is more, 0 where that cannot be told: of one repeat it never can."""
    if mine.unit != "number" and None in {mine.estimate.low, theirs.estimate.low}:
        return 0
    (low, high), (other_low, other_high) = (_bounds(figure) for figure in (mine, theirs))
    return -1 if high < other_low else 1 if low > other_high else 0


def _bounds(figure: Figure) -> tuple[float, float]:
    """The interval; of a count, which is no sample, the values themselves."""
    estimate = figure.estimate
    if figure.unit == "number":
        return min(estimate.values), max(estimate.values)
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high
