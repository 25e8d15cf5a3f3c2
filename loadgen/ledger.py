"""What became of every single message, with about a bit of memory a message.

Each producer keeps a `SentBook` and each consumer a `ReceivedBook`; both are small enough to be sent to the
fleet, where `settle` lays them side by side. Consumers of one group share the messages (they compete);
every group gets all of them. The definitions, for one producer's messages and one group; an account sums
over both:

* sent: handed to the client. acked: confirmed by the broker, unsettled: neither confirmed nor known to have failed;
  both None where nothing is confirmed.
* received: every message handed to a consumer, duplicates, damaged and foreign ones included.
* distinct: different messages that came intact at least once.
* lost: sent, not known to have failed, and never received intact. confirmed_lost had been confirmed,
  unconfirmed_lost had not. A damaged message is corrupted and, unless it also came intact, lost: damage may
  have hit the stamp, so that nobody can tell whose loss it is.
* duplicated: copies beyond the first, over all consumers of the group. Of a message that came c times, f
  times with the broker's redelivered flag, min(f, c - 1) are dup_redelivery; of the others as many are
  dup_resend as the producer really sent it again. What is left was doubled by nobody who says so. A producer
  whose client repeats unseen (`resends_known` False) may have sent any message again, and all of its other
  duplicates are dup_resend. (Which copy came first in two consumers nobody knows: the definition does not
  depend on it.)
* out_of_order: first copies, not flagged as redelivered, with a lower sequence number than the highest that
  this consumer had received from the same producer and source. Where several consumers received a message,
  it counts if its first copy was late in each of them.
* reordered_redelivery: copies flagged as redelivered that came late in the same sense.
* corrupted: received, but some byte is not as it was sent (or the message is of another run).
* early: copies of messages that consumers were to skip, since they begin behind them; none of these is lost.
* begun: producers whose first message behind those came; what consumers get first is the right one.
* foreign: intact, but of a producer that is not in the books or of a number that it never sent.
* due: intended inside the measured window, None in a closed loop. missing: of those, never sent, or never
  received intact by some group, or never confirmed although the trial has confirms: there is no latency of
  them, or not of both kinds.
* dropped_by_limit, expired: sent, never received, and taken out of the queue by the broker because it was full or the
  message too old, as its dead letters show. Such a message is neither lost nor missing.
* dead_lettered: what came to dead-letter queues, by the broker's reason; None where there are none. A message that was
  received and then rejected is among them, and received like any other.
* errors: what the broker or the client said about messages that failed, by name. A failed message is not
  lost; if it came all the same it is received like any other.

With no received books at all (nothing consumes) there is no group, and received, lost and the rest are 0.
Bound: a producer sends at most `MAX_MESSAGES`; more are refused with TrialError. Where several consumers share the
messages none of them ever sees a page complete: each hands over the pages it has passed (`ReceivedBook.take_passed`),
and laid together (`together`) those are closed. What stays, at a bit a message, are pages where something went wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from loadgen.bitcounts import MAX_INDEX, PAGE_BITS, PAGE_SHIFT, BitCounts, ranges_of, uncounted
from loadgen.errors import TrialError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadgen.driver import Bool, Int64
    from loadgen.payload import Parsed

MAX_MESSAGES = MAX_INDEX
MAX_EXAMPLES = 10
SETTLED_TWICE = "settled twice"
SETTLED_UNSENT = "settled but never sent"

Removed = Mapping[str, Sequence[BitCounts]]
"""Of one producer's messages for one group: those that were dead-lettered, by the broker's reason."""
Range = tuple[int, int, int]
"""Producer, first and last sequence number."""


class SentBook:
    """What one producer sent, numbered 0, 1, 2, …, and what it learned about it.

    Args:
        producer: its number.
        confirms: whether the broker confirms at all; without, `acked` is None and every loss unconfirmed.
    """

    def __init__(self, producer: int, *, confirms: bool = True) -> None:
        self.producer = producer
        self.confirms = confirms
        self.sent_count = 0
        self.confirmed_count = 0
        self.errors: Counter[str] = Counter()
        self.confirmed_bits = BitCounts()
        self.failed_bits = BitCounts()
        self.resent_bits = BitCounts()
        self.resends_known = True
        self.skipped = 0  # so many messages consumers skip: they begin behind them
        self.due: range | None = None  # the messages that are intended inside the measured window

    def sent(self, count: int) -> None:
        """The next `count` messages were handed to the client."""
        self.sent_count += count
        if self.sent_count > MAX_MESSAGES:
            raise TrialError(
                f"producer {self.producer}: over {MAX_MESSAGES} messages; use more producers or a shorter run"
            )

    def confirmed(self, seqs: Int64) -> None:
        """The broker confirmed these (int64[n])."""
        if not len(seqs):
            return
        self.confirmed_count += self._settle(self.confirmed_bits, self.failed_bits, seqs)

    def failed(self, seqs: Int64, error: str) -> None:
        """These (int64[n]) were refused or given up, for the reason `error`."""
        if not len(seqs):
            return
        self._settle(self.failed_bits, self.confirmed_bits, seqs)
        self.errors[error] += len(seqs)

    def resent(self, seqs: Int64 | None) -> None:
        """These (int64[n], once for each repetition) were sent again; None: the client repeats and does not tell."""
        if seqs is None:
            self.resends_known = False
        elif len(seqs):
            self.resent_bits.add(seqs)

    def _settle(self, bits: BitCounts, others: BitCounts, seqs: Int64) -> int:
        """Mark messages as settled; how many of them had not been settled in this way before."""
        if int(seqs.min()) < 0 or int(seqs.max()) >= self.sent_count:
            self.errors[SETTLED_UNSENT] += int(((seqs < 0) | (seqs >= self.sent_count)).sum())
            seqs = seqs[(seqs >= 0) & (seqs < self.sent_count)]
        repeated = bits.add(seqs)
        if repeated is not None:
            self.errors[SETTLED_TWICE] += int(repeated.sum())
        if others:
            both = int(others.contains(seqs).sum())
            if both:
                self.errors[SETTLED_TWICE] += both
        return len(seqs) - (0 if repeated is None else int(repeated.sum()))


class ReceivedBook:
    """What one consumer received.

    Args:
        group: the subscriber group whose members share the messages.
    """

    def __init__(self, group: str = "") -> None:
        self.group = group
        self.received_count = 0
        self.corrupted_count = 0
        self.reordered_redelivery_count = 0
        self.corrupted_examples: list[Range] = []
        self.copies: dict[int, BitCounts] = {}
        self.flagged: dict[int, BitCounts] = {}
        self.late: dict[int, BitCounts] = {}
        self.holders: dict[int, BitCounts] | None = None
        """How many consumers' books each message is in; None: this is one consumer's."""
        self._highest: dict[tuple[int, int], int] = {}
        self._passed: dict[int, int] = {}

    def take_passed(self) -> ReceivedBook | None:
        """The pages that this consumer had passed when this was last called, which leave the book; None for none.

        What comes late to such a page makes a new one. A message that came to this consumer before and after its page
        was handed over counts as held by two: a first copy in order stays one, and one out of order that such a late
        duplicate followed is not counted as `out_of_order`.
        """
        taken = ReceivedBook(self.group)
        for producer, copies in self.copies.items():
            below = self._passed.get(producer, 0)
            highest = max((seq for (of, _), seq in self._highest.items() if of == producer), default=0)
            self._passed[producer] = highest >> PAGE_SHIFT
            pages = copies.take_open(below)
            if pages:
                taken.copies[producer] = pages
                taken.flagged[producer] = self.flagged[producer].take_open(below)
                taken.late[producer] = self.late[producer].take_open(below)
        return taken if taken.copies else None

    def receive(self, parsed: Parsed, source: int, redelivered: Bool | None = None) -> None:
        """Count a batch of n messages of one source (queue or partition) in the order in which they came.

        Args:
            parsed: what the messages say of themselves.
            source: number of the queue or partition.
            redelivered: the broker's flag (bool[n]), None where none of them is set.
        """
        producer, seq = parsed.producer, parsed.seq
        self.received_count += len(seq)
        intact = parsed.intact
        if np.count_nonzero(intact) < len(seq):
            self._count_corrupted(producer[~intact], seq[~intact])
            producer, seq = producer[intact], seq[intact]
            redelivered = None if redelivered is None else redelivered[intact]
        if not len(seq):
            return
        first = int(producer[0])
        if np.count_nonzero(producer == first) == len(seq):
            self._receive_of(first, seq, source, redelivered)
            return
        order = np.argsort(producer.astype(np.uint16), kind="stable")
        producer, seq = producer[order], seq[order]
        redelivered = None if redelivered is None else redelivered[order]
        begins = np.flatnonzero(np.diff(producer, prepend=-1)).tolist()
        for begin, end in zip(begins, [*begins[1:], len(seq)], strict=True):
            flags = None if redelivered is None else redelivered[begin:end]
            self._receive_of(int(producer[begin]), seq[begin:end], source, flags)

    def _receive_of(self, producer: int, seq: Int64, source: int, redelivered: Bool | None) -> None:
        copies = self.copies.get(producer)
        if copies is None:
            copies = self.copies[producer] = BitCounts()
            self.flagged[producer] = BitCounts()
            self.late[producer] = BitCounts()
        repeated = copies.add(seq)
        if redelivered is not None and redelivered.any():
            self.flagged[producer].add(seq[redelivered])
        late = self._late(producer, source, seq)
        if late is None:
            return
        if redelivered is not None:
            self.reordered_redelivery_count += int((late & redelivered).sum())
            late &= ~redelivered
        if repeated is not None:
            late &= ~repeated
        self.late[producer].add(seq[late])

    def _late(self, producer: int, source: int, seq: Int64) -> Bool | None:
        """Which messages are lower than the highest before them, or None where none is."""
        highest = self._highest.get((producer, source), -1)
        if int(seq[0]) > highest and np.count_nonzero(seq[1:] > seq[:-1]) == len(seq) - 1:
            self._highest[producer, source] = int(seq[-1])
            return None
        before = np.maximum.accumulate(np.concatenate(([highest], seq)))
        self._highest[producer, source] = int(before[-1])
        late: Bool = seq < before[:-1]
        return late

    def _count_corrupted(self, producer: Int64, seq: Int64) -> None:
        self.corrupted_count += len(seq)
        examples = self.corrupted_examples
        for each, number in zip(producer.tolist(), seq.tolist(), strict=True):
            if each < 0:  # the stamp itself is damaged and does not tell
                continue
            if examples and examples[-1][0] == each and examples[-1][2] == number - 1:
                examples[-1] = (each, examples[-1][1], number)
            elif len(examples) < MAX_EXAMPLES:
                examples.append((each, number, number))
            else:
                break


@dataclass(slots=True)
class Account:
    """What became of all messages of a trial; the module's docstring defines each number.

    `examples` has the first `MAX_EXAMPLES` ranges (producer, first and last sequence number) of "lost",
    "duplicated" and "corrupted" messages.
    """

    sent: int = 0
    acked: int | None = 0
    unsettled: int | None = 0
    received: int = 0
    distinct: int = 0
    lost: int = 0
    confirmed_lost: int = 0
    unconfirmed_lost: int = 0
    duplicated: int = 0
    dup_redelivery: int = 0
    dup_resend: int = 0
    out_of_order: int = 0
    reordered_redelivery: int = 0
    corrupted: int = 0
    foreign: int = 0
    early: int = 0
    begun: int = 0
    due: int | None = None
    missing: int | None = None
    dropped_by_limit: int = 0
    expired: int = 0
    dead_lettered: dict[str, int] | None = None
    errors: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Range]] = field(default_factory=lambda: {"lost": [], "duplicated": [], "corrupted": []})


def together(books: Iterable[ReceivedBook]) -> list[ReceivedBook]:
    """The books of all consumers as one for each group, in the groups' order; the books themselves stay as they are."""
    merged: dict[str, ReceivedBook] = {}
    for book in books:
        lay_to(merged.setdefault(book.group, ReceivedBook(book.group)), book)
    return [merged[group] for group in sorted(merged)]


def lay_to(whole: ReceivedBook, book: ReceivedBook) -> None:
    """Add a consumer's book, or several laid together, to a group's."""
    whole.received_count += book.received_count
    whole.corrupted_count += book.corrupted_count
    whole.reordered_redelivery_count += book.reordered_redelivery_count
    _extend(whole.corrupted_examples, book.corrupted_examples)
    whole.holders = {} if whole.holders is None else whole.holders
    for producer, copies in book.copies.items():
        whole.copies.setdefault(producer, BitCounts()).add_counts(copies)
        whole.flagged.setdefault(producer, BitCounts()).add_counts(book.flagged[producer])
        whole.late.setdefault(producer, BitCounts()).add_counts(book.late[producer])
        holders = whole.holders.setdefault(producer, BitCounts())
        if book.holders is None:
            holders.add_present(copies)
        else:
            holders.add_counts(book.holders[producer])


Dead = Mapping[str, Sequence[ReceivedBook]]
"""What came to dead-letter queues: by the broker's reason, a book for each group."""


def settle(
    sent_books: Iterable[SentBook], received_books: Iterable[ReceivedBook], dead: Dead | None = None, *,
    refusing: bool = False,
) -> Account:  # fmt: skip
    """Lay the books of all producers and consumers of a trial side by side.

    Args:
        sent_books: a book for each producer.
        received_books: a book for each consumer.
        dead: what dead-letter queues held in the end; None where there are none.
        refusing: a full queue refuses messages, which are not missing then: the scenario asks for it.
    """
    sent_books = list(sent_books)
    if len({book.producer for book in sent_books}) != len(sent_books):
        raise ValueError("two books of one producer: each producer of a trial needs a number of its own")
    account = Account()
    _add_sent(account, sent_books)
    groups = {book.group: book for book in together(received_books)}
    for book in groups.values():
        account.received += book.received_count
        account.corrupted += book.corrupted_count
        account.reordered_redelivery += book.reordered_redelivery_count
        _extend(account.examples["corrupted"], book.corrupted_examples)
    gone = {group: {reason: _of_group(books, group) for reason, books in (dead or {}).items()} for group in groups}
    if dead is not None:
        account.dead_lettered = {reason: sum(book.received_count for book in books) for reason, books in dead.items()}
        account.corrupted += sum(book.corrupted_count for books in dead.values() for book in books)
    if all(book.due is not None for book in sent_books):
        account.due = sum(len(book.due or ()) for book in sent_books)
        holding = [
            [book, *(each for found in gone[group].values() for each in found)] for group, book in groups.items()
        ]
        account.missing = sum(_missing(sent, holding, refusing=refusing) for sent in sent_books)
    known = {book.producer for book in sent_books}
    for group, book in groups.items():
        for sent in sorted(sent_books, key=lambda book: book.producer):
            removed = {
                reason: [each.copies[sent.producer] for each in found if sent.producer in each.copies]
                for reason, found in gone[group].items()
            }
            _settle_producer(account, sent, book, removed)
        account.foreign += _foreign([book], known)
    account.foreign += sum(_foreign(books, known) for books in (dead or {}).values())
    return account


def _of_group(books: Sequence[ReceivedBook], group: str) -> list[ReceivedBook]:
    return [book for book in books if book.group == group]


def _foreign(books: Sequence[ReceivedBook], known: set[int]) -> int:
    """How many messages in these books are of producers that are not."""
    counted = (each for book in books for each in book.copies.items())
    return sum(copies.total_count for producer, copies in counted if producer not in known)


def _add_sent(account: Account, books: list[SentBook]) -> None:
    errors: Counter[str] = Counter()
    for book in books:
        account.sent += book.sent_count
        errors.update(book.errors)
    account.errors = dict(sorted(errors.items()))
    account.acked = account.unsettled = None
    if all(book.confirms for book in books):
        account.acked = sum(book.confirmed_count for book in books)
        account.unsettled = sum(uncounted(each.sent_count, each.confirmed_bits, each.failed_bits) for each in books)


def _settle_producer(account: Account, sent: SentBook, book: ReceivedBook, removed: Removed) -> None:
    """Add one producer's messages as one group of consumers received them."""
    none = BitCounts()
    copies, late = (each.get(sent.producer, none) for each in (book.copies, book.late))
    if sent.skipped < sent.sent_count:
        account.begun += int(copies.contains(np.array([sent.skipped], np.int64))[0])
    whole_pages, rest = divmod(sent.sent_count, PAGE_BITS)
    beyond = {page for page in copies.pages() if page >= whole_pages + (rest > 0)}
    for page in [*range(whole_pages + (rest > 0)), *sorted(beyond)]:
        is_wanted = page * PAGE_BITS >= sent.skipped
        if is_wanted and page < whole_pages and copies.is_full_once(page) and late.is_empty(page):
            account.distinct += PAGE_BITS
            continue
        sent_here = min(PAGE_BITS, max(0, sent.sent_count - page * PAGE_BITS))
        _settle_page(account, sent, book, removed, page, sent_here)


def _missing(sent: SentBook, groups: Sequence[Sequence[ReceivedBook]], *, refusing: bool) -> int:
    """How many of the messages due in the window were not sent, not received by some group, or not confirmed."""
    due = sent.due or range(0)
    end = min(due.stop, sent.sent_count)
    missing = len(due) - max(0, end - due.start)  # never sent
    required = [[book.copies[sent.producer] for book in books if sent.producer in book.copies] for books in groups]
    if sent.confirms:
        required.append([sent.confirmed_bits])
    if refusing:
        required = [[*holders, sent.failed_bits] for holders in required]
    for page in range(due.start // PAGE_BITS, -(-end // PAGE_BITS)):
        if all(any(bits.is_full_once(page) for bits in holders) for holders in required):
            continue
        whole = np.ones(PAGE_BITS, np.bool_)
        for holders in required:
            there = np.zeros(PAGE_BITS, np.bool_)
            for bits in holders:
                there |= bits.counts_of(page) > 0
            whole &= there
        begin = page * PAGE_BITS
        missing += int(np.count_nonzero(~whole[max(0, due.start - begin) : end - begin]))
    return missing


def _settle_page(
    account: Account, sent: SentBook, book: ReceivedBook, removed: Removed, page: int, sent_here: int
) -> None:
    """Add one page of messages, of which the first `sent_here` were sent, from books that were laid together."""
    producer, none = sent.producer, BitCounts()
    assert book.holders is not None
    copies, flagged, late, holders = (
        each.get(producer, none).counts_of(page) for each in (book.copies, book.flagged, book.late, book.holders)
    )
    account.foreign += int(copies[sent_here:].sum())
    skipped_here = min(sent_here, max(0, sent.skipped - page * PAGE_BITS))
    account.early += int(copies[:skipped_here].sum())
    copies, flagged, late, holders = (each[skipped_here:sent_here] for each in (copies, flagged, late, holders))
    received = copies > 0
    extra = np.where(received, copies - 1, 0)
    account.distinct += int(received.sum())
    account.duplicated += int(extra.sum())
    redelivery = int(np.minimum(flagged, extra).sum())
    account.dup_redelivery += redelivery
    others = extra - np.minimum(flagged, extra)
    if sent.resends_known:
        others = np.minimum(others, sent.resent_bits.counts_of(page)[skipped_here:sent_here])
    account.dup_resend += int(others.sum())
    account.out_of_order += int((received & (late == holders)).sum())
    confirmed = sent.confirmed_bits.counts_of(page)[skipped_here:sent_here] > 0
    failed = sent.failed_bits.counts_of(page)[skipped_here:sent_here] > 0
    # Settled both ways (an error of its own): the confirmation is a promise, so that a loss shows.
    lost = ~received & (confirmed | ~failed)
    for reason, holders_of in removed.items():
        for bits in holders_of:
            explained = lost & (bits.counts_of(page)[:sent_here] > 0)
            lost &= ~explained
            _explain(account, reason, int(explained.sum()))
    account.lost += int(lost.sum())
    account.confirmed_lost += int((lost & confirmed).sum())
    account.unconfirmed_lost += int((lost & ~confirmed).sum())
    for name, which in (("lost", lost), ("duplicated", extra > 0)):
        begin = page * PAGE_BITS + skipped_here
        _extend(
            account.examples[name],
            [(producer, begin + first, begin + last) for first, last in ranges_of(which, MAX_EXAMPLES + 1)],
        )


def _explain(account: Account, reason: str, number: int) -> None:
    """Enter so many messages that nobody received as what the broker did with them."""
    if reason == "expired":
        account.expired += number
    else:  # nobody can have rejected what nobody received: the queue was full
        account.dropped_by_limit += number


def explain(account: Account, counts: Mapping[str, int]) -> None:
    """Tell losses from what the broker removed by its own counts (`loadgen.driver.REMOVALS`), without dead letters.

    Which messages they were nobody knows: as many are neither lost nor missing, the confirmed ones first.
    """
    for reason in ("maxlen", "expired"):
        number = min(account.lost, counts[reason])
        confirmed = min(account.confirmed_lost, number)
        account.lost -= number
        account.confirmed_lost -= confirmed
        account.unconfirmed_lost -= number - confirmed
        if account.missing is not None:
            account.missing = max(0, account.missing - number)
        _explain(account, reason, number)
    if not account.lost:
        account.examples["lost"] = []


def _extend(examples: list[Range], more: list[Range]) -> None:
    """Add ranges until there are MAX_EXAMPLES; one that continues the last (over a page's end) joins it."""
    for producer, first, last in more:
        if examples and examples[-1][0] == producer and examples[-1][2] + 1 == first:
            examples[-1] = (producer, examples[-1][1], last)
        elif len(examples) < MAX_EXAMPLES:
            examples.append((producer, first, last))
