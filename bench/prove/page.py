"""docs/method.md: what was proved, when, on what machine, in the numbers that were seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen import brokers, host
from loadgen.report.words import broker_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from prove.proof import Proof, Row

PREFACE = Path(__file__).with_name("preface.md")
CHARTS = Path("images/method")  # beside the page


@dataclass(frozen=True, slots=True)
class Session:
    """When and how the proofs were run, and what the machine had to spare."""

    began: datetime
    command: str
    scale: str
    seconds: dict[str, float]
    steal_share: float


def write(path: Path, proofs: Sequence[Proof], session: Session) -> None:
    """Write the page as a whole, and its charts beside it; charts of an earlier page are removed."""
    text = text_of(proofs, session)  # which tells whether anything differs from the revision: before this does
    folder = path.parent / CHARTS
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for proof in proofs:
        for chart in proof.charts:
            (folder / f"{chart.name}.svg").write_text(chart.svg, encoding="utf-8")
    path.write_text(text, encoding="utf-8")


def text_of(proofs: Sequence[Proof], session: Session) -> str:
    """The page in Markdown."""
    parts = [PREFACE.read_text(encoding="utf-8").rstrip(), _circumstances(session), _summary(proofs, session)]
    parts += [_section(proof) for proof in proofs]
    return "\n\n".join(parts) + "\n"


def _circumstances(session: Session) -> str:
    machine = host.environment()
    cpu, memory_bytes = machine["cpu"], machine["memory_bytes"] or 0
    virtual = ", virtual" if machine["virtualisation"]["hypervisor"] else ""
    scale = "" if session.scale == "full" else f" (scale {session.scale})"
    versions = [
        f"{broker_name(each['broker'])} {each['installed_version'] or 'not installed'}" for each in brokers.status()
    ]
    told = {
        "when": f"{session.began:%Y-%m-%d %H:%M} UTC, in {sum(session.seconds.values()) / 60:.1f} minutes, by "
        f"`{session.command}`{scale}",
        "machine": f"{cpu['model']}, {len(cpu['allowed'])} CPUs{virtual}, {memory_bytes / 2**30:.1f} GiB, "
        f"{machine['os']}, Linux {machine['kernel']}; its host kept {session.steal_share:.1%} of the CPU time",
        "brokers": f"{', '.join(versions)}, installed by this project, with their shipped settings",
        "clients": f"{machine['python']}, {_packages(machine['packages'])}{_revision(machine['git'])}",
    }
    return "\n".join(["## Seen", "", *(f"- **{name}**: {text}" for name, text in told.items())])


def _packages(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {packages[name]}" for name in ("loadgen", "numpy") if name in packages)


def _revision(git: dict[str, Any] | None) -> str:
    if git is None or not git["revision"]:
        return ""
    return f", revision {git['revision'][:10]}{' with changes' if git['dirty'] else ''}"


def _summary(proofs: Sequence[Proof], session: Session) -> str:
    lines = ["| proof | what it shows | checks | |", "| --- | --- | --- | --- |"]
    for proof in proofs:
        kept = sum(row.ok for row in proof.rows)
        result = "passed" if proof.passed else "**failed**"
        lines.append(
            f"| [{proof.name}](#{proof.name}) | {proof.claim} | {kept} of {len(proof.rows)} in "
            f"{session.seconds.get(proof.name, 0.0):.0f} s | {result} |"
        )
    return "\n".join(lines)


def _section(proof: Proof) -> str:
    parts = [f"## {proof.name}", proof.claim]
    parts += [f"![{chart.title}]({CHARTS / chart.name}.svg)" for chart in proof.charts]
    parts.append(
        "\n".join(["| | known | seen | may differ by | |", "| --- | --- | --- | --- | --- |", *map(_line, proof.rows)])
    )
    parts += proof.notes
    return "\n\n".join(parts)


def _line(row: Row) -> str:
    cells = (row.name, row.expected, row.seen, row.tolerance, "✓" if row.ok else "**✗**")
    return f"| {' | '.join(each.replace('|', '∣') for each in cells)} |"
