"""The answer that docs/decide.md quotes is what the run that comes with the project says today, word by word."""

from __future__ import annotations

import re
from pathlib import Path

from loadgen.analysis.decision import decide
from loadgen.report import render_run
from loadgen.report.decision import decision_text
from loadgen.runs import load

RUN = Path("results/example-decision")
COMMAND = "loadgen decide --rate 20000 --size 1024 --p99 10ms --survive node"


def test_the_docs_quote_the_shipped_runs_answer_whole() -> None:
    """From its first sentence to its last, with nothing left out, of the command at the head of the page."""
    run = load(RUN)
    page = Path("docs/decide.md").read_text(encoding="utf-8")
    assert page.index(COMMAND) < page.index("```text")
    assert " ".join(run.header["command"]).startswith(COMMAND)
    quoted = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    assert quoted[-1].rstrip() in render_run(run)
    decision = decide(run)
    assert decision is not None
    words = " ".join(quoted[-1].split())
    assert all(" ".join(line.split()) in words for line in decision_text(decision).lines)
