"""The page of proofs is written as a whole from what was seen, and a failure cannot hide in it."""

from __future__ import annotations

import importlib
import re
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prove import PROOFS
from prove import __main__ as command
from prove.charts import draw
from prove.proof import Proof, Row, at_most, near, same, within

if TYPE_CHECKING:
    from pathlib import Path

    from prove.proof import Scale


def proof_of(name: str, *, ok: bool) -> Proof:
    """A proof with one row and a chart."""
    chart = draw(f"{name}-chart", "a line", [lambda axes: axes.plot([0, 1], [0, 1])])
    return Proof(name, f"The claim of {name}.", (same("a | b", 1, 1 if ok else 2),), ("A note.",), (chart,))


@pytest.fixture
def two_proofs(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """In place of the real ones, proofs `good` and `other`; the value says whether each passes."""
    passing = {"good": True, "other": True}
    scales: list[Scale] = []
    for name in list(passing):

        def prove(scale: Scale, name: str = name) -> Proof:
            scales.append(scale)
            return proof_of(name, ok=passing[name])

        monkeypatch.setitem(sys.modules, f"prove.{name}", SimpleNamespace(prove=prove))
    monkeypatch.setattr(command, "PROOFS", ("good", "other", "absent"))
    return passing


def test_a_page_has_every_proof_and_its_charts(
    two_proofs: dict[str, bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Claims, rows, notes and links that lead somewhere; charts of an earlier page are gone."""
    del two_proofs
    page = tmp_path / "method.md"
    old = tmp_path / "images/method/old.svg"
    old.parent.mkdir(parents=True)
    old.write_text("<svg/>")
    assert command.main(["good", "other", "--scale", "small", "--page", str(page)]) == 0
    text = page.read_text()
    for name in ("good", "other"):
        assert f"## {name}\n\nThe claim of {name}." in text
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(links) == 2
    assert all((tmp_path / link).read_text().startswith("<svg") for link in links)
    assert not old.exists()
    assert "python -m prove good other" in text
    assert "a ∣ b" in text
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines[:2]] == ["good: passed", "other: passed"]


def test_the_revision_is_told_as_it_was_before_the_page_changed(
    two_proofs: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page itself writes into the tree is none of the changes that its numbers were measured with."""
    del two_proofs
    seen = []

    def text_of(*_: object) -> str:
        seen.extend(tmp_path.rglob("*"))
        return "told"

    monkeypatch.setattr("prove.page.text_of", text_of)
    assert command.main(["good", "--page", str(tmp_path / "method.md")]) == 0
    assert not seen
    assert (tmp_path / "method.md").read_text() == "told"


def test_one_failure_fails_all(two_proofs: dict[str, bool], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1, the row that failed with both numbers, and the others are run all the same."""
    two_proofs["good"] = False
    assert command.main(["good", "other"]) == 1
    out = capsys.readouterr().out
    assert "good: FAILED" in out
    assert "a | b: expected 1 exactly, seen 2" in out
    assert "other: passed" in out


def test_a_proof_that_cannot_be_measured_has_failed(
    two_proofs: dict[str, bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A module that raises stands on the page as failed, with the reason."""
    del two_proofs
    page = tmp_path / "method.md"
    assert command.main(["absent", "good", "--page", str(page)]) == 1
    assert "absent: FAILED" in capsys.readouterr().out
    assert "**failed**" in page.read_text()
    assert "No module named" in page.read_text()


def test_an_unknown_name_is_told(two_proofs: dict[str, bool], capsys: pytest.CaptureFixture[str]) -> None:
    """The names that there are."""
    del two_proofs
    with pytest.raises(SystemExit):
        command.main(["nothing"])
    assert "there are good, other, absent" in capsys.readouterr().err


def test_every_proof_on_the_page_is_there() -> None:
    """Each name has a module with a function that proves."""
    assert all(callable(importlib.import_module(f"prove.{name}").prove) for name in PROOFS)


def test_a_proof_of_nothing_has_not_passed() -> None:
    """No rows, no proof."""
    assert not Proof("empty", "Nothing.", ()).passed


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_a_row_is_kept_where_the_numbers_are_near(expected: float, seen: float, tolerance: float) -> None:
    """Within the tolerance on either side, and nowhere else."""
    assert near("x", expected, seen, tolerance).ok == (expected - tolerance <= seen <= expected + tolerance)
    assert at_most("x", tolerance, seen).ok == (seen <= tolerance)
    assert within("x", expected, seen, expected, expected).ok == (seen == expected)


def test_rows_say_their_units() -> None:
    """Numbers with four digits and their unit, on both sides of zero."""
    assert near("x", 5.0, -0.123456, 0.1, "ms") == Row("x", "5.000 ms", "−0.1235 ms", "± 0.1000 ms", ok=False)
    assert within("x", 1.0, 2.0, 1.5, 2.5, unit="s").tolerance == "1.500 s … 2.500 s"
    assert at_most("x", 3, 2).expected == "at most 3"
