"""The ledger finds every loss, duplicate, reordering and damage, exactly."""

from __future__ import annotations

import contextlib
import pickle
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen import bitcounts, ledger
from loadgen.agent import Handed, Report, Result
from loadgen.bitcounts import MAX_INDEX, PAGE_BITS, BitCounts, ranges_of
from loadgen.errors import TrialError
from loadgen.ledger import SETTLED_TWICE, SETTLED_UNSENT, ReceivedBook, SentBook, explain, settle
from loadgen.payload import UNKNOWN, Parsed

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator


@dataclass(frozen=True)
class Message:
    """One message as a consumer gets it."""

    producer: int
    seq: int
    source: int = 0
    redelivered: bool = False
    intact: bool = True


def receive(book: ReceivedBook, messages: list[Message], batch: int = 7) -> ReceivedBook:
    """Give messages to a book in batches of one source each."""
    while messages:
        source = messages[0].source
        part = [message for message in messages[:batch] if message.source == source]
        first_other = next((i for i, each in enumerate(messages[:batch]) if each.source != source), len(part))
        part, messages = messages[:first_other], messages[first_other:]
        times = np.zeros(len(part), np.int64)
        producer = np.array([each.producer for each in part], np.int64)
        seq = np.array([each.seq for each in part], np.int64)
        parsed = Parsed(times, times, producer, seq, np.array([each.intact for each in part]))
        flags = np.array([each.redelivered for each in part])
        book.receive(parsed, source, flags if flags.any() else None)
    return book


def sent_book(count: int, producer: int = 0, *, confirmed: bool = True, resent: list[int] | None = None) -> SentBook:
    """A producer that sent `count` messages, all of them confirmed or none, and some again."""
    book = SentBook(producer)
    book.sent(count)
    book.resent(np.array(resent or [], np.int64))
    if confirmed:
        book.confirmed(np.arange(count))
    return book


def expected_of(
    groups: dict[str, list[list[Message]]], sent: dict[int, int], resent: dict[int, list[int]]
) -> dict[str, int]:
    """The definitions of the ledger's docstring, one message at a time."""
    totals: dict[str, int] = defaultdict(int)
    for consumers in groups.values():
        copies: dict[tuple[int, int], list[bool]] = defaultdict(list)
        first_was_late: dict[tuple[int, int], list[bool]] = defaultdict(list)
        for messages in consumers:
            highest: dict[tuple[int, int], int] = {}
            seen = set()
            for each in messages:
                totals["received"] += 1
                if not each.intact:
                    totals["corrupted"] += 1
                    continue
                known = each.seq < sent.get(each.producer, 0)
                totals["foreign"] += not known
                late = each.seq < highest.get((each.producer, each.source), -1)
                totals["reordered_redelivery"] += late and each.redelivered
                highest[each.producer, each.source] = max(each.seq, highest.get((each.producer, each.source), -1))
                key = (each.producer, each.seq)
                if known:
                    copies[key].append(each.redelivered)
                    if key not in seen:
                        first_was_late[key].append(late and not each.redelivered)
                    seen.add(key)
        for (producer, seq), flags in copies.items():
            redelivery = min(sum(flags), len(flags) - 1)
            totals["duplicated"] += len(flags) - 1
            totals["dup_redelivery"] += redelivery
            totals["dup_resend"] += min(resent[producer].count(seq), len(flags) - 1 - redelivery)
        totals["distinct"] += len(copies)
        totals["lost"] += sum(sent.values()) - len(copies)
        totals["out_of_order"] += sum(all(late) for late in first_was_late.values())
    return dict(totals)


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[str, list[list[Message]]], dict[int, int]]:
    """What producers sent, and what competing consumers of several groups got after much harm."""
    sent = {producer: draw(st.integers(1, 40)) for producer in range(draw(st.integers(1, 3)))}
    everything = [(producer, seq) for seq in range(40) for producer, count in sent.items() if seq < count]
    groups: dict[str, list[list[Message]]] = {}
    for group in ("", "audit")[: draw(st.integers(1, 2))]:
        consumers: list[list[Message]] = [[] for _ in range(draw(st.integers(1, 3)))]
        for producer, seq in everything:
            for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 2, 3]))):
                copy = Message(
                    producer, seq, source=draw(st.integers(0, 1)),
                    redelivered=draw(st.sampled_from([False, False, True])),
                    intact=draw(st.sampled_from([True] * 9 + [False])),
                )  # fmt: skip
                consumer = draw(st.sampled_from(consumers))
                consumer.insert(max(0, len(consumer) - draw(st.sampled_from([0, 0, 0, 1, 5]))), copy)
        consumers[0] += draw(st.lists(st.builds(Message, st.just(77), st.integers(0, 9)), max_size=2))
        groups[group] = consumers
    return groups, sent


@settings(max_examples=80)
@given(histories(), st.lists(st.integers(0, 39), max_size=20), st.integers(1, 30))
def test_every_harm_is_found_exactly(
    history: tuple[dict[str, list[list[Message]]], dict[int, int]], again: list[int], batch: int
) -> None:
    """Whatever is lost, doubled, swapped or damaged over groups, consumers and sources: each count is right."""
    groups, sent = history
    books = [
        receive(ReceivedBook(group), messages, batch) for group, consumers in groups.items() for messages in consumers
    ]
    books = pickle.loads(pickle.dumps(books))  # noqa: S301 - our own bytes
    resent = {producer: [seq for seq in again if seq < count] for producer, count in sent.items()}
    sent_books = [sent_book(count, producer, resent=resent[producer]) for producer, count in sent.items()]
    account = asdict(settle(pickle.loads(pickle.dumps(sent_books)), books))  # noqa: S301 - our own bytes
    expected = expected_of(groups, sent, resent)
    assert {name: account[name] for name in expected} == expected
    assert account["sent"] == account["acked"] == sum(sent.values())
    assert account["confirmed_lost"] == account["lost"]
    assert account["unconfirmed_lost"] == 0


@contextlib.contextmanager
def small_pages() -> Iterator[None]:
    """Pages of eight numbers, so that a short history passes many."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (bitcounts, ledger):
            patch.setattr(module, "PAGE_SHIFT", 3)
            patch.setattr(module, "PAGE_BITS", 8)
        patch.setattr(bitcounts, "_PAGE_BYTES", 1)
        patch.setattr(bitcounts, "_ONES", np.full(1, 0xFF, np.uint8))
        yield


@settings(max_examples=60)
@given(histories(), st.integers(1, 12), st.randoms(use_true_random=False))
def test_pages_that_are_handed_over_tell_the_same(
    history: tuple[dict[str, list[list[Message]]], dict[int, int]], batch: int, chance: random.Random
) -> None:
    """Whenever consumers part with what they passed: all counts are those of whole books, and nothing is told twice."""
    groups, sent = history
    handed, books = Handed(), []
    with small_pages():
        for group, consumers in groups.items():
            for messages in consumers:
                book = ReceivedBook(group)
                for begin in range(0, len(messages), batch):
                    receive(book, messages[begin : begin + batch])
                    if chance.random() < 0.7:
                        handed.add(Report("consumer0", [], {}, received_book=book.take_passed()))
                books.append(Result("consumer0", "consumer", received_book=pickle.loads(pickle.dumps(book))))  # noqa: S301
        expected = expected_of(groups, sent, {producer: [] for producer in sent})
        sent_books = [sent_book(count, producer) for producer, count in sent.items()]
        account = asdict(settle(sent_books, handed.of("received_book", books)))
        out_of_order = expected.pop("out_of_order", 0)
        assert {name: account[name] for name in expected} == expected
        # A first copy that came late is not known as such where the consumer had it again, behind its page.
        assert out_of_order - account["duplicated"] <= account["out_of_order"] <= out_of_order


def test_what_has_been_shared_out_whole_costs_nothing() -> None:
    """Three consumers that share millions of messages keep a few pages each, and laid together these are closed."""
    shared, handed = [ReceivedBook() for _ in range(3)], Handed()
    times, count = np.zeros(4_096, np.int64), 0
    for first in range(0, 48 * PAGE_BITS, 3 * 4_096):
        for index, book in enumerate(shared):
            seqs = np.arange(first + index, first + 3 * 4_096, 3)
            book.receive(Parsed(times, times, times, seqs, np.ones(4_096, np.bool_)), index)
            handed.add(Report(f"consumer{index}", [], {}, received_book=book.take_passed()))
        count = first + 3 * 4_096
    for book in shared:
        assert len(book.copies[0].open) <= 3
    kept = handed.books["received_book"][""]
    assert len(kept.copies[0].open) <= 3
    assert len(pickle.dumps(kept)) < 100_000, "48 pages are closed"
    results = [Result("consumer0", "consumer", received_book=book) for book in shared]
    account = settle([sent_book(count)], handed.of("received_book", results))
    assert (account.distinct, account.lost, account.duplicated, account.out_of_order) == (count, 0, 0, 0)
    assert account.received == count


def test_pages_of_bits_are_no_boundaries() -> None:
    """Over several pages in large batches: known loss, duplicates and swaps at and around the pages' ends."""
    count = 3 * PAGE_BITS + 1_000
    seqs = np.arange(count)
    lost = np.array([5, PAGE_BITS - 1, PAGE_BITS, 2 * PAGE_BITS + 3, count - 1])
    seqs = np.delete(seqs, lost)
    seqs = np.insert(seqs, 100_000, seqs[[99_999, 99_999, 42]])
    swap = int(np.flatnonzero(seqs == 2 * PAGE_BITS)[0])
    seqs[[swap, swap - 1]] = seqs[[swap - 1, swap]]
    book = ReceivedBook()
    for part in np.array_split(seqs, 70):
        times = np.zeros(len(part), np.int64)
        book.receive(Parsed(times, times, times, part, np.ones(len(part), np.bool_)), 0)
    account = settle([sent_book(count)], [book])
    assert (account.lost, account.duplicated, account.dup_resend, account.out_of_order) == (5, 3, 0, 1)
    assert account.examples["lost"] == [
        (0, 5, 5), (0, PAGE_BITS - 1, PAGE_BITS), (0, 2 * PAGE_BITS + 3, 2 * PAGE_BITS + 3), (0, count - 1, count - 1)
    ]  # fmt: skip
    assert account.examples["duplicated"] == [(0, int(seqs[42]), int(seqs[42])), (0, 100_002, 100_002)]


def test_losses_are_told_apart_by_what_was_confirmed() -> None:
    """Confirmed and lost, unconfirmed and lost, and failed ones, which are errors and no losses."""
    book = SentBook(0)
    book.sent(10)
    book.confirmed(np.array([0, 1, 2, 3]))
    book.failed(np.array([6, 7]), "nack")
    book.failed(np.array([8]), "timeout")
    account = settle([book], [receive(ReceivedBook(), [Message(0, 0), Message(0, 4), Message(0, 7)])])
    assert (account.sent, account.acked, account.distinct) == (10, 4, 3)
    assert (account.lost, account.confirmed_lost, account.unconfirmed_lost) == (5, 3, 2)
    assert account.errors == {"nack": 2, "timeout": 1}
    assert account.examples["lost"] == [(0, 1, 3), (0, 5, 5), (0, 9, 9)]


@given(
    received=st.sets(st.integers(0, 59)),
    failed=st.sets(st.integers(40, 59)),
    dropped=st.sets(st.integers(0, 59)),
    expired=st.sets(st.integers(0, 59)),
    rejected=st.sets(st.integers(0, 59)),
)
def test_dead_letters_are_neither_lost_nor_missing(
    received: set[int], failed: set[int], dropped: set[int], expired: set[int], rejected: set[int]
) -> None:
    """Every message nobody received is lost, dropped, expired or failed; those rejected were received first."""
    expired, rejected = expired - dropped, rejected & received
    sent = sent_book(60, confirmed=False)
    sent.confirmed(np.array(sorted(set(range(60)) - failed), np.int64))
    sent.failed(np.array(sorted(failed), np.int64), "nack")
    sent.due = range(10, 50)
    book = receive(ReceivedBook("0"), [Message(0, seq) for seq in sorted(received)])
    dead = {
        reason: [receive(ReceivedBook("0"), [Message(0, seq) for seq in sorted(seqs)])]
        for reason, seqs in (("maxlen", dropped), ("expired", expired), ("rejected", rejected))
    }
    account = settle([sent], [book], dead, refusing=True)
    unheard = set(range(60)) - received - failed
    lost = unheard - dropped - expired
    assert account.dead_lettered == {"maxlen": len(dropped), "expired": len(expired), "rejected": len(rejected)}
    assert (account.dropped_by_limit, account.expired) == (len(unheard & dropped), len(unheard & expired))
    assert (account.lost, account.confirmed_lost, account.received) == (len(lost), len(lost), len(received))
    assert account.missing == len([seq for seq in lost if 10 <= seq < 50])
    # Without dead letters the broker's own counts tell as much, but of which messages.
    counted = settle([sent], [book], refusing=True)
    explain(counted, {"maxlen": account.dropped_by_limit, "expired": account.expired})
    assert (counted.lost, counted.confirmed_lost) == (account.lost, account.confirmed_lost)
    assert (counted.dropped_by_limit, counted.expired) == (account.dropped_by_limit, account.expired)


def test_without_confirms_nothing_is_acked() -> None:
    """Acked is None, and every loss is of an unconfirmed message."""
    book = SentBook(0, confirms=False)
    book.sent(3)
    account = settle([book], [receive(ReceivedBook(), [Message(0, 0)])])
    assert (account.acked, account.lost, account.confirmed_lost, account.unconfirmed_lost) == (None, 2, 0, 2)
    assert account.unsettled is None


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sets(st.integers(0, 59)), st.sets(st.integers(0, 59)), st.integers(0, 60)), min_size=1))
def test_what_is_neither_confirmed_nor_refused_is_counted(
    producers: list[tuple[set[int], set[int], int]],
) -> None:
    """Of every producer, over as many pages as it has sent, and a message that was settled both ways once."""
    with small_pages():
        books, left = [], 0
        for number, (confirmed, failed, count) in enumerate(producers):
            book = SentBook(number)
            book.sent(count)
            book.confirmed(np.array(sorted(seq for seq in confirmed if seq < count), np.int64))
            book.failed(np.array(sorted(seq for seq in failed if seq < count), np.int64), "nack")
            books.append(book)
            left += len(set(range(count)) - confirmed - failed)
        assert settle(books, []).unsettled == left


def test_settling_twice_or_what_was_never_sent_is_an_error() -> None:
    """A driver that settles a message twice, both ways or before it was sent is told of."""
    book = SentBook(0)
    book.sent(20)
    book.confirmed(np.arange(15))
    book.confirmed(np.array([3, 4]))
    book.failed(np.array([5]), "nack")
    book.confirmed(np.arange(19, 30))
    assert book.errors == {SETTLED_TWICE: 3, "nack": 1, SETTLED_UNSENT: 10}
    assert book.confirmed_count == 16


def test_nothing_is_lost_where_nothing_consumes() -> None:
    """A trial that only publishes has no group that could miss a message."""
    account = settle([sent_book(100)], [])
    assert (account.sent, account.acked, account.received, account.lost) == (100, 100, 0, 0)


def test_only_what_was_sent_again_explains_a_duplicate() -> None:
    """Of three doubled messages the one that its producer repeated is a resend; who cannot tell is believed."""
    twice = [Message(0, seq) for seq in (0, 0, 1, 1, 2, 2)]
    account = settle([sent_book(3, resent=[1, 1])], [receive(ReceivedBook(), twice)])
    assert (account.duplicated, account.dup_redelivery, account.dup_resend) == (3, 0, 1)
    silent = sent_book(3)
    silent.resent(None)
    assert settle([silent], [receive(ReceivedBook(), twice)]).dup_resend == 3


@pytest.mark.parametrize("offset", [0, PAGE_BITS - 15, 3 * PAGE_BITS])
def test_what_is_missing_of_the_window_is_counted_once(offset: int) -> None:
    """Unsent, unconfirmed and lost messages of the window count, each once, and those of the warm-up do not."""
    book = SentBook(0)
    book.sent(offset + 20)
    book.due = range(offset + 10, offset + 25)
    book.confirmed(np.delete(np.arange(offset + 20), offset + np.array([2, 11, 12])))
    halves = [ReceivedBook(), ReceivedBook()]
    for seq in range(max(0, offset - 50), offset + 20):
        if seq - offset not in {3, 12, 13}:
            receive(halves[seq % 2], [Message(0, seq)])
    account = settle([book], halves)
    assert (account.due, account.missing) == (15, 3 + 5)
    assert settle([book], []).missing == 2 + 5
    closed = sent_book(5)
    assert (settle([closed], []).due, settle([closed], []).missing) == (None, None)


def test_damage_is_told_with_the_places_that_are_known() -> None:
    """Where the stamp is whole the message is named, where it is not it only counts; ten ranges at most."""
    book = ReceivedBook()
    damaged = [Message(1, seq, intact=False) for seq in (4, 5, 6, 9)] + [Message(UNKNOWN, UNKNOWN, intact=False)]
    damaged += [Message(1, seq, intact=False) for seq in range(20, 60, 2)]
    account = settle([sent_book(100, 1)], [receive(book, damaged)])
    assert account.corrupted == len(damaged)
    assert account.examples["corrupted"][:2] == [(1, 4, 6), (1, 9, 9)]
    assert len(account.examples["corrupted"]) == 10
    assert account.lost == 100


def test_a_message_received_ever_again_keeps_its_count() -> None:
    """One poisoned message that comes ten thousand times costs a few bits."""
    book = receive(ReceivedBook(), [Message(0, 3)] + [Message(0, 3, redelivered=True)] * 10_000, batch=50)
    account = settle([sent_book(5)], [book])
    assert (account.duplicated, account.dup_redelivery, account.dup_resend) == (10_000, 10_000, 0)
    assert len(pickle.dumps(book)) < 400_000


def test_books_of_millions_are_small() -> None:
    """One consumer of everything costs nearly nothing, four that share it a bit a message each."""
    count = 64 * PAGE_BITS
    alone, shared = ReceivedBook(), [ReceivedBook() for _ in range(4)]
    times = np.zeros(4_096, np.int64)
    for first in range(0, count, 4_096):
        seqs = np.arange(first, first + 4_096)
        alone.receive(Parsed(times, times, times, seqs, np.ones(4_096, np.bool_)), 0)
        for index, book in enumerate(shared):
            quarter = times[:1_024]
            book.receive(Parsed(quarter, quarter, quarter, seqs[index::4], np.ones(1_024, np.bool_)), 0)
    assert len(pickle.dumps(alone)) < 10_000
    assert len(pickle.dumps(shared[0])) < count / 8 * 1.1
    for books in ([alone], shared):
        account = settle([sent_book(count)], books)
        assert (account.distinct, account.lost, account.duplicated, account.out_of_order) == (count, 0, 0, 0)


def test_more_than_the_ledger_can_hold_is_refused() -> None:
    """The bound is an error, not a machine without memory."""
    with pytest.raises(TrialError, match="over"):
        SentBook(0).sent(MAX_INDEX + 1)
    with pytest.raises(TrialError, match="message number"):
        BitCounts().add(np.array([MAX_INDEX]))
    with pytest.raises(TrialError, match="message number"):
        BitCounts().add(np.arange(-20, 0))


def test_two_books_of_one_producer_are_refused() -> None:
    """Each producer has a number of its own."""
    with pytest.raises(ValueError, match="one producer"):
        settle([SentBook(1), SentBook(1)], [])


numbers = st.one_of(st.integers(0, 60), st.integers(PAGE_BITS - 20, PAGE_BITS + 20), st.integers(0, 4 * PAGE_BITS))
runs = st.tuples(numbers, st.integers(1, 80)).map(lambda run: list(range(run[0], run[0] + run[1])))


@settings(max_examples=80)
@given(st.lists(st.one_of(runs, st.lists(numbers, max_size=40)), max_size=10))
def test_bit_counts_are_counts(batches: list[list[int]]) -> None:
    """After any batches each number's count, and what was told to be repeated, is that of a dictionary."""
    counts = BitCounts()
    expected: dict[int, int] = defaultdict(int)
    for each in batches:
        repeated = counts.add(np.array(each, np.int64))
        told = [False] * len(each) if repeated is None else repeated.tolist()
        for number, was_told in zip(each, told, strict=True):
            assert was_told == (expected[number] > 0)
            expected[number] += 1
        counts = pickle.loads(pickle.dumps(counts))  # noqa: S301 - our own bytes
    asked = np.array([*sorted(expected), 7 * PAGE_BITS], np.int64)
    assert counts.contains(asked).tolist() == [True] * len(expected) + [False]
    for page in range(5):
        held = counts.counts_of(page)
        assert {int(at) + page * PAGE_BITS: int(held[at]) for at in np.flatnonzero(held)} == {
            number: count for number, count in expected.items() if number // PAGE_BITS == page
        }
    assert counts.total_count == sum(expected.values())


def test_ranges_are_the_runs_of_true() -> None:
    """First and last places, as many as asked for."""
    which = np.array([True, True, False, True, False, False, True])
    assert ranges_of(which, 10) == [(0, 1), (3, 3), (6, 6)]
    assert ranges_of(which, 2) == [(0, 1), (3, 3)]
    assert ranges_of(np.zeros(4, np.bool_), 2) == []
