"""A against B, as data for the page and the Markdown: what differs, which effect it has, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadgen.analysis.ab import finding, level, needed, percentage
from loadgen.report import words
from loadgen.report.detail import NOTHING, Quantity, quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.analysis.ab import Compared, Effect

SAME = "nothing: A and B are the same configuration"


@dataclass(frozen=True)
class EffectLine:
    """One quantity of a point: both variants', their ratio, and in words whether a difference is shown."""

    measure: str
    a: Quantity
    b: Quantity
    ratio: Quantity
    said: str
    is_shown: bool
    is_answer: bool
    pairs: int
    needed: str


@dataclass(frozen=True)
class PairBlock:
    """One point of A against B; `differences` are (setting, A's, B's), `answer` is its first finding in a sentence."""

    broker: str
    driver: str
    own_label: str
    differences: tuple[tuple[str, str, str], ...]
    answer: str
    lines: tuple[EffectLine, ...]
    struck: int

    @property
    def in_words(self) -> str:
        """What differs: `rabbitmq.prefetch 10 in A, 100 in B`."""
        return "; ".join(f"{name} {a} in A, {b} in B" for name, a, b in self.differences) or SAME


def pair_blocks(found: Sequence[Compared], effect_ratio: float) -> list[PairBlock]:
    """Every point of an A/B run."""
    return [_block(each, effect_ratio) for each in found]


def label(compared: Compared) -> str:
    """What tells one point from the run's others: `prefetch 10`; empty where there is but one a broker."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in compared.point.items())


def _block(compared: Compared, effect_ratio: float) -> PairBlock:
    first = compared.effects[0]
    where = ", ".join(part for part in (words.broker_name(compared.broker), label(compared)) if part)
    return PairBlock(
        broker=words.broker_name(compared.broker),
        driver=compared.driver,
        own_label=label(compared),
        differences=tuple((name, _value(a), _value(b)) for name, a, b in compared.differences),
        answer=f"{where}, {first.measure}: {finding(first, effect_ratio)}.",
        lines=tuple(_line(each, effect_ratio) for each in compared.effects),
        struck=compared.struck,
    )


def _value(value: Any) -> str:
    """A setting's value; one that is not set is what the client or the broker makes of it."""
    return "unset" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _line(effect: Effect, effect_ratio: float) -> EffectLine:
    known = effect.ratio.ratio is not None
    return EffectLine(
        measure=effect.measure,
        a=quantity(effect.a, effect.unit),
        b=quantity(effect.b, effect.unit),
        ratio=Quantity(*_ratio(effect)) if known else NOTHING,
        said=_said(effect, effect_ratio),
        is_shown=effect.is_shown,
        is_answer=effect.is_answer,
        pairs=effect.ratio.pairs,
        needed=needed(effect) if effect.spread_log is not None else words.NOTHING,
    )


def _ratio(effect: Effect) -> tuple[str, str]:
    """The ratio, and below it the interval with its level."""
    ratio = effect.ratio
    assert ratio.ratio is not None
    if ratio.low is None or ratio.high is None:
        return f"{words.significant(ratio.ratio)}×", "one pair, no interval"
    ends = f"{words.significant(ratio.low)}–{words.significant(ratio.high)}"
    return f"{words.significant(ratio.ratio)}×", f"{ends} at {level(effect)}"


def _said(effect: Effect, effect_ratio: float) -> str:
    ratio = effect.ratio.ratio
    if ratio is None:
        return "no pair of usable repeats"
    if effect.is_shown:
        return f"B is {abs(ratio - 1):.1%} {'higher' if ratio > 1 else 'lower'}"
    if effect.is_told:
        return f"no difference shown, and one of {percentage(effect_ratio)} would have been, nine times in ten"
    return "no difference shown"


def columns(effect_ratio: float) -> tuple[tuple[str, Callable[[EffectLine], Quantity]], ...]:
    """The table of a block's effects: heads, and each line's cell."""
    return (
        ("", lambda line: Quantity(line.measure, "the answer" if line.is_answer else "")),
        ("A", lambda line: line.a),
        ("B", lambda line: line.b),
        ("B / A", lambda line: line.ratio),
        ("shown?", lambda line: Quantity(line.said, "")),
        ("pairs", lambda line: Quantity(str(line.pairs), "")),
        (f"repeats to show {percentage(effect_ratio)}", lambda line: Quantity(line.needed, "")),
    )
