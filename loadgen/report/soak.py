"""A long trial in words and numbers: what drifted, and what the broker kept; data for all three formats."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.analysis.drift import long_trials
from loadgen.report import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.analysis.drift import Drift, Kept, Long
    from loadgen.runs import Run

SOAK_HEADS = ("quantity", "mean", "drift an hour", "interval", "")
SOAK_NOTE = (
    "Drift is the slope over the window without its first tenth, as a share of the mean; the intervals of a trial hold "
    "together at 95 %. What rises in minutes after a start need not rise in hours: a broker’s memory fills up first."
)


@dataclass(frozen=True)
class SoakLine:
    """A quantity."""

    name: str
    mean: str
    drift: str
    interval: str
    direction: str

    @property
    def cells(self) -> tuple[str, ...]:
        """As `SOAK_HEADS` has them."""
        return (self.name, self.mean, self.drift, self.interval, self.direction)


@dataclass(frozen=True)
class SoakBlock:
    """A trial."""

    trial_id: str
    broker: str
    title: str
    answer: str
    kept: str
    lines: tuple[SoakLine, ...]


def soak_blocks(run: Run) -> tuple[list[SoakBlock], list[Long]]:
    """The long trials of a run in words, and as they are."""
    found = long_trials(run)
    return [_block(each) for each in found], found


def _block(trial: Long) -> SoakBlock:
    broker = words.broker_name(trial.broker)
    title = f"{broker} ({trial.driver}), {trial.scenario}: {words.seconds(trial.window_s)}"
    return SoakBlock(
        trial.trial_id, broker, title, _answer(trial.drifts), _kept(trial.kept), tuple(map(_line, trial.drifts))
    )


def _line(drift: Drift) -> SoakLine:
    share, low, high = drift.share_per_hour, drift.low, drift.high
    return SoakLine(
        drift.name,
        words.shown(round(drift.mean), drift.unit),
        "–" if share is None else f"{share:+.1%}",
        "" if low is None or high is None else f"{low:+.1%} … {high:+.1%}",
        drift.direction,
    )


def _answer(drifts: Sequence[Drift]) -> str:
    """What drifts, in a sentence."""
    if not drifts:
        return "Too little was seen to tell."
    said = [
        f"{each.name} {each.direction} by {abs(each.share_per_hour or 0):.1%} an hour"
        for each in drifts
        if each.direction in {"rises", "falls"}
    ]
    counted = Counter(each.direction for each in drifts)
    still, unknown = counted["no drift shown"], counted["cannot tell"]
    said += [f"no drift is shown in {still} of {len(drifts)} quantities"] if still else []
    said += [f"of {unknown} it cannot be told"] if unknown else []
    return f"{'; '.join(said)}."


def _kept(kept: Kept | None) -> str:
    if kept is None:
        return "What was kept the broker does not tell."
    text = f"At most {kept.max_msgs:,} messages could be read at once, {kept.last_msgs:,} when it was asked last"
    if kept.max_bytes is not None:
        text += f"; all of the broker’s data took at most {words.shown(kept.max_bytes, 'bytes')}"
    if kept.forgotten_msgs is None:
        return f"{text}: a queue keeps what waits in it, and nothing that was acknowledged."
    if kept.is_limited:
        removed = f"the limit works, it has removed {kept.forgotten_msgs:,}"
        return f"{text}: {removed if kept.forgotten_msgs else 'the limit was not reached'}."
    return f"{text}: without a limit nothing is ever removed."
