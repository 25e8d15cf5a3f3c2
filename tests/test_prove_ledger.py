"""Harm done by a queue in another process is found by the ledger, message by message."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prove import ledger
from prove.proof import Scale

if TYPE_CHECKING:
    from loadgen.fleet import Outcome


@pytest.fixture(scope="module")
def measured() -> tuple[ledger.Case, ledger.Harmed, Outcome]:
    """The small case, once: what the queue says it did, and what the agents said."""
    (case,) = ledger.cases(Scale.SMALL)
    return case, *ledger.measure(case)


def test_every_harmed_message_is_found(measured: tuple[ledger.Case, ledger.Harmed, Outcome]) -> None:
    """Losses, duplicates, swaps and refusals done at once are each told apart, and none is invented."""
    rows = ledger.compare(*measured)
    assert all(row.ok for row in rows), [row for row in rows if not row.ok]
    assert len(rows) == 6


@pytest.mark.parametrize("kind", ["lost", "duplicated", "reordered", "refused"])
def test_one_message_too_many_or_too_few_fails(measured: tuple[ledger.Case, ledger.Harmed, Outcome], kind: str) -> None:
    """Where the queue's log has another message in place of one, the numbers agree and the proof does not."""
    case, done, outcome = measured
    (first, *_) = sorted(done[kind])
    swapped = {**done, kind: (done[kind] - {first}) | {(first[0], 1 << 40)}}
    rows = ledger.compare(case, swapped, outcome)
    assert next(row.name for row in rows if not row.ok).endswith(kind)


def test_no_harm_at_all_proves_nothing(measured: tuple[ledger.Case, ledger.Harmed, Outcome]) -> None:
    """A queue that did nothing is no evidence that the ledger finds something."""
    case, _, outcome = measured
    rows = ledger.compare(case, {kind: set() for kind in ledger.KINDS}, outcome)
    assert not any(row.ok for row in rows[:4])


def test_an_account_that_names_nobody_fails(
    measured: tuple[ledger.Case, ledger.Harmed, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is accused wrongly by an account without examples, which is no merit."""
    monkeypatch.setattr(ledger, "_examples", lambda _: set())
    assert [row.name for row in ledger.compare(*measured) if not row.ok] == [
        "all at once: messages that the account names, and did not suffer"
    ]
