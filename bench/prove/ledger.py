"""Known harm, found again to the message: what a queue lost, doubled, swapped, damaged and refused.

The queue in memory writes down the identity of each message that it harms (`memory.harm_log`), in a process of its own;
producers and consumers are the ordinary ones of a trial, also in processes of their own. What the books of the ledger
hold is compared with that log message by message, and so is the account made of them.

Swaps are only seen as such where one consumer receives all messages, and damage is told apart by its first ten
places: hence a case of its own for each.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.bitcounts import PAGE_BITS
from loadgen.drivers.memory import REFUSED, memory_endpoint
from loadgen.errors import TrialError
from loadgen.ledger import settle
from loadgen.payload import SEQUENCE_BITS
from loadgen.scenario import Rate
from loadgen.trial import Setting, run_trial
from prove.proof import Proof, Row, Scale, same
from prove.trials import trial_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.bitcounts import BitCounts
    from loadgen.driver import Int64
    from loadgen.fleet import Outcome
    from loadgen.ledger import ReceivedBook, SentBook

Message = tuple[int, int]
"""Producer and sequence number."""
Harmed = dict[str, set[Message]]
WINDOW_MSGS = (
    256  # a closed loop of batches of 64: enough for swaps, and no more than a log of every harm keeps up with
)
KINDS = ("lost", "duplicated", "reordered", "corrupted", "refused")


@dataclass(frozen=True, slots=True)
class Case:
    """One trial: the harm to do, and the agents among which it is done."""

    name: str
    behaviour: Mapping[str, Any]
    rate: Rate
    producers: int = 2
    consumers: int = 1
    duration_s: float = 2.0


def cases(scale: Scale) -> list[Case]:
    """The trials; at small scale all harm that can be told apart in one."""
    everything = {"loss_every": 53, "duplicate_every": 59, "reorder_every": 61, "refuse_every": 67}
    if scale is Scale.SMALL:
        return [Case("all at once", everything, Rate.saturate(), duration_s=1.0)]
    damage = {"corrupt_every": 701}  # of 6,000 messages at most ten, so that each has its place
    return [
        Case("loss, duplicates, swaps and refusals at once, one consumer", everything, Rate.saturate()),
        Case(
            "loss and duplicates, three consumers that compete",
            {"loss_every": 97, "duplicate_every": 101},
            Rate.saturate(),
            consumers=3,
        ),
        Case("damage", damage, Rate.fixed(3_000), producers=1),
    ]


def prove(scale: Scale) -> Proof:
    """Run every case and compare."""
    rows: list[Row] = []
    sent = 0
    chosen = cases(scale)
    for case in chosen:
        done, outcome = measure(case)
        rows += compare(case, done, outcome)
        sent += sum(book.sent_count for book in _sent_books(outcome))
    note = (
        f"{sent:,} messages in {len(chosen)} trials, with ordinary agents in processes of their own. A row of one kind "
        "of harm compares sets of messages (producer and sequence number), not only their sizes."
    )
    return Proof(
        name="ledger",
        claim="Of all messages that a queue lost, doubled, swapped, damaged or refused, the ledger knows which.",
        rows=tuple(rows),
        notes=(note,),
    )


def measure(case: Case) -> tuple[Harmed, Outcome]:
    """What the queue says it did, and what the agents said."""
    with tempfile.TemporaryDirectory(prefix="prove-") as folder:
        log = Path(folder) / "harm"
        endpoint = memory_endpoint("rabbitmq", **case.behaviour, harm_log=str(log))
        trial = trial_of(
            "rabbitmq", case.rate, warmup_s=0.0, duration_s=case.duration_s, producers=case.producers,
            consumers=case.consumers, knobs={"confirm_window": WINDOW_MSGS},
        )  # fmt: skip
        _, outcome = run_trial(trial, Setting(endpoint, lambda _: None))
        if outcome.error is not None:
            raise TrialError(f"{case.name}: {outcome.error}")
        done: Harmed = {kind: set() for kind in KINDS}
        for line in log.read_text(encoding="ascii").splitlines():
            kind, _, identity = line.partition(" ")
            done[kind].add((int(identity) >> SEQUENCE_BITS, int(identity) & ((1 << SEQUENCE_BITS) - 1)))
    return done, outcome


def compare(case: Case, done: Harmed, outcome: Outcome) -> list[Row]:
    """One row for each kind of harm by the ledger's books, and one for the account that is made of them."""
    sent = _sent_books(outcome)
    received = outcome.books("received_book")
    found = _found(sent, received)
    rows = []
    injected = {kind.removesuffix("_every") for kind in case.behaviour}
    for kind, name in zip(KINDS, ("loss", "duplicate", "reorder", "corrupt", "refuse"), strict=True):
        if name in injected:
            rows.append(_row(f"{case.name}: {kind}", done[kind], found[kind]))
    account = settle(sent, received)
    told = {
        # A damaged message never came intact: it counts as lost too, since damage may hide whose it was.
        "lost": account.lost - len(done["corrupted"]),
        "duplicated": account.duplicated,
        "reordered": account.out_of_order,
        "corrupted": account.corrupted,
        "refused": account.errors.get(REFUSED, 0),
    }
    rows.append(
        same(f"{case.name}: the account", _counts(done), ", ".join(f"{n:,} {kind}" for kind, n in told.items() if n))
    )
    named = {message for kind in ("lost", "duplicated", "corrupted") for message in _examples(account.examples[kind])}
    known = done["lost"] | done["duplicated"] | done["corrupted"]
    # Who names nobody accuses nobody wrongly: there must be some.
    accused = f"{len(named - known):,} of {len(named):,}"
    name = f"{case.name}: messages that the account names, and did not suffer"
    rows.append(Row(name, "0 of some", accused, "exactly", bool(named) and named <= known))
    return rows


def _row(name: str, done: set[Message], found: set[Message]) -> Row:
    seen = f"{len(done & found):,} of these, {len(found - done):,} others"
    return Row(name, f"{len(done):,} messages", seen, "exactly", bool(done) and done == found)


def _counts(done: Harmed) -> str:
    return ", ".join(f"{len(messages):,} {kind}" for kind, messages in done.items() if messages)


def _examples(ranges: list[tuple[int, int, int]]) -> set[Message]:
    return {(producer, seq) for producer, first, last in ranges for seq in range(first, last + 1)}


def _sent_books(outcome: Outcome) -> list[SentBook]:
    return [result.sent_book for result in outcome.results if result.sent_book is not None]


def _found(sent: list[SentBook], received: list[ReceivedBook]) -> Harmed:
    """Every harmed message by the books, producer by producer."""
    found: Harmed = {kind: set() for kind in KINDS}
    for book in sent:
        producer, count = book.producer, book.sent_count
        copies = sum((_counted(each.copies.get(producer), count) for each in received), np.zeros(count, np.int64))
        failed = _counted(book.failed_bits, count) > 0
        late = sum((_counted(each.late.get(producer), count) for each in received), np.zeros(count, np.int64))
        damaged = {(who, seq) for each in received for who, seq in _examples(each.corrupted_examples)}
        masks = {"lost": (copies == 0) & ~failed, "duplicated": copies > 1, "reordered": late > 0, "refused": failed}
        for kind, mask in masks.items():
            found[kind] |= {(producer, seq) for seq in np.flatnonzero(mask).tolist()}
        found["corrupted"] |= damaged
    found["lost"] -= found["corrupted"]
    return found


def _counted(bits: BitCounts | None, count: int) -> Int64:
    """How often each of the first `count` numbers was counted: int64[count]."""
    if bits is None or not count:
        return np.zeros(count, np.int64)
    return np.concatenate([bits.counts_of(page) for page in range(-(-count // PAGE_BITS))])[:count]
