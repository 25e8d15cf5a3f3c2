"""A check as the command line asks for it: a run, its limits, its baseline; what came of it, and its files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from loadgen.errors import EXIT_CANNOT_TELL, EXIT_INVALID, EXIT_OK, EXIT_THRESHOLD, LoadgenError, ScenarioError
from loadgen.files import as_host_error
from loadgen.gate import formats
from loadgen.gate.baselines import refuse_incomparable
from loadgen.gate.judging import EVERY_POINT, Finding, count, judge
from loadgen.gate.limits import usual_limits
from loadgen.record import plain

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from loadgen.gate.limits import Limit
    from loadgen.run import Run


INVALID = "was cut short, or a point of it has no valid trial"


class RefusedError(LoadgenError):
    """A run whose numbers are not to be used."""

    exit_status = EXIT_INVALID


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found; `notes` say what else differs from the baseline."""

    run: Run
    baseline: Run | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def exit_status(self) -> int:
        """1 where a limit was missed, however many cannot be told; 3 where one cannot; else 0."""
        told = count(self.findings)
        return EXIT_THRESHOLD if told["missed"] else EXIT_CANNOT_TELL if told["cannot tell"] else EXIT_OK

    @property
    def lines(self) -> list[str]:
        """For a terminal: the notes, each limit, and what they come to."""
        told = count(self.findings)
        against = f" against {self.baseline.id}" if self.baseline is not None else ""
        total = f"{self.run.id}{against}: " + ", ".join(f"{number} {outcome}" for outcome, number in told.items())
        return [*self.notes, *(each.line for each in self.findings), total]

    def described(self) -> dict[str, Any]:
        """For machines."""
        return {
            "run": self.run.id,
            "baseline": None if self.baseline is None else self.baseline.id,
            "exit_status": self.exit_status,
            "notes": list(self.notes),
            "findings": [
                plain(
                    {
                        "point": each.point, "metric": each.limit.metric.name, "kind": each.limit.kind,
                        "outcome": each.outcome, "said": each.said, "value": each.value, "before": each.before,
                        "change": None if each.change is None else asdict(each.change), "needed": each.needed,
                    }
                )
                for each in self.findings
            ],
        }  # fmt: skip


def check(
    run: Run,
    baseline: Run | None,
    limits: Sequence[Limit] | None,
    *,
    is_invalid: bool,
    allowed: Collection[str] = (),
) -> Checked:
    """Hold a run against limits; without any, against the usual ones.

    Args:
        run: what is checked.
        baseline: what relative limits hold it against.
        limits: of a file; None where there is none.
        is_invalid: whether the run says of itself that its numbers are not to be used.
        allowed: what is passed over: `machine`, `versions`, `scenario`, `invalid`.

    Raises:
        ScenarioError: nothing to hold it against, or a baseline of another machine, other versions or points.
        RefusedError: an invalid run.
    """
    if limits is None and baseline is None:
        raise ScenarioError("check: has nothing to hold the run against; expected --thresholds FILE or --baseline RUN")
    if limits is not None and baseline is None and (lacking := [each for each in limits if each.kind != "limit"]):
        raise ScenarioError(f"check: {lacking[0].text}: needs --baseline RUN")
    if is_invalid and "invalid" not in allowed:
        raise RefusedError(f"{run.id}: {INVALID}: not checked; to do so: --allow invalid")
    notes = [] if baseline is None else refuse_incomparable(run, baseline, allowed)
    asked = usual_limits(has_baseline=baseline is not None) if limits is None else limits
    findings = judge(asked, run, baseline)
    if limits is None:  # which of the usual ones speak of anything is not for the user to know
        findings = [each for each in findings if each.point != EVERY_POINT]
        if baseline is not None and not any(each.limit.kind == "relative" for each in findings):
            nothing = "no rate or response time can be held against the baseline's (a curve's are at its own rates)"
            findings.append(Finding(EVERY_POINT, asked[-1], "cannot tell", nothing))
    return Checked(run, baseline, tuple(findings), tuple(notes))


def write(checked: Checked, files: dict[str, Path | None]) -> None:
    """Write what CI reads: `junit`, `summary` (appended to), `bencher`, `benchmark_action` (two files of that stem)."""
    run, found = checked.run, checked.findings
    texts: dict[Path, str] = {}
    if (path := files.get("junit")) is not None:
        texts[path] = formats.junit(found, run)
    if (path := files.get("bencher")) is not None:
        texts[path] = formats.bencher(found, run)
    if (path := files.get("benchmark_action")) is not None:
        for worse, name in (("higher", "smaller"), ("lower", "bigger")):
            texts[path.with_name(f"{path.stem}-{name}-is-better.json")] = formats.benchmark_action(found, run, worse)
    _put(texts, files.get("summary"), formats.summary(found, run, checked.notes, checked.baseline))


def write_refusal(run_id: str, why: str, files: dict[str, Path | None]) -> None:
    """Write `junit` and `summary` of a run that was not checked, so that an earlier check's are not taken for its."""
    junit, summary = formats.refusal(run_id, why)
    path = files.get("junit")
    _put({} if path is None else {path: junit}, files.get("summary"), summary)


def _put(texts: dict[Path, str], summary_path: Path | None, summary: str) -> None:
    for path, text in texts.items():
        with as_host_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if summary_path is not None:
        with as_host_error(summary_path):
            summary_path.parent.mkdir(parents=True, exist_ok=True)
            with summary_path.open("a", encoding="utf-8") as file:  # a job's summary is of several steps
                file.write(summary)
