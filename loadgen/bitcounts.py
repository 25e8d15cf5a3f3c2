"""How often each of very many numbers was seen, at a bit a number for the common case of once or never.

Counts are kept in pages of 2^16 numbers as bit planes: plane 0 has the ones of every count, plane 1 the
twos, and so on. Counting once more is binary addition with carry over a mask of bits, a few bytes at a time
for a batch that follows on. A page in which all was seen exactly once is closed: it costs a byte, so that what a run
of days needs is bounded by the pages in which something was out of order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadgen.errors import TrialError

if TYPE_CHECKING:
    from loadgen.driver import Bool, Int64, UInt8

PAGE_SHIFT = 16
PAGE_BITS = 1 << PAGE_SHIFT
MAX_INDEX = 1 << 40  # 16 MiB of closed pages: five days at 2.5 million a second
_PAGE_BYTES = PAGE_BITS // 8
_FEW = 8  # so few numbers are counted faster one by one

Planes = list["UInt8"]
_ONES = np.full(_PAGE_BYTES, 0xFF, np.uint8)


class BitCounts:
    """Counts of numbers below MAX_INDEX; `open` holds the planes of each page that was touched and is not closed."""

    __slots__ = ("_closed", "open", "total_count")

    def __init__(self) -> None:
        self.open: dict[int, Planes] = {}
        self._closed = bytearray()  # 1 where each number of the page was counted exactly once
        self.total_count = 0

    def __getstate__(self) -> tuple[dict[int, Planes], bytes, int]:
        self.close_full()
        return self.open, bytes(self._closed), self.total_count

    def __setstate__(self, state: tuple[dict[int, Planes], bytes, int]) -> None:
        self.open, closed, self.total_count = state
        self._closed = bytearray(closed)

    def __bool__(self) -> bool:
        """Whether anything was counted."""
        return bool(self.open) or 1 in self._closed

    def __contains__(self, page: int) -> bool:
        """Whether some number of this page was counted."""
        return page in self.open or self.is_closed(page)

    def pages(self) -> set[int]:
        """The pages of which something was counted."""
        closed = np.flatnonzero(np.frombuffer(bytes(self._closed), np.uint8)).tolist()
        return {*self.open, *closed}

    def is_closed(self, page: int) -> bool:
        """Whether this page is known to hold each of its numbers exactly once."""
        return page < len(self._closed) and self._closed[page] == 1

    def add(self, numbers: Int64) -> Bool | None:
        """Count each of n numbers (int64[n]) once more.

        Returns:
            Which of them (bool[n]) had been counted before, earlier in this batch included; None for none.
        """
        count = len(numbers)
        if count <= _FEW:
            return self._add_few(numbers.tolist())
        first, last = int(numbers[0]), int(numbers[-1])
        if last - first == count - 1 and np.count_nonzero(numbers[1:] > numbers[:-1]) == count - 1:
            _demand_within(first, last)
            self.total_count += count
            return self._add_run(first, last + 1)
        lowest, highest = int(numbers.min()), int(numbers.max())
        _demand_within(lowest, highest)
        self.total_count += count
        if lowest >> PAGE_SHIFT == highest >> PAGE_SHIFT:
            return self._add_scattered(lowest, highest, numbers)
        repeated = np.zeros(count, np.bool_)
        order = np.argsort(numbers >> PAGE_SHIFT, kind="stable")
        pages = numbers[order] >> PAGE_SHIFT
        begins = np.flatnonzero(np.diff(pages, prepend=-1)).tolist()
        for begin, end in zip(begins, [*begins[1:], count], strict=True):
            rows = order[begin:end]
            part = numbers[rows]
            again = self._add_scattered(int(part.min()), int(part.max()), part)
            if again is not None:
                repeated[rows] = again
        return repeated if repeated.any() else None

    def contains(self, numbers: Int64) -> Bool:
        """Which of n numbers (int64[n]) were counted at least once: bool[n]."""
        found = np.zeros(len(numbers), np.bool_)
        pages = numbers >> PAGE_SHIFT
        for page in np.unique(pages).tolist():
            if page in self:
                here = pages == page
                found[here] = self.counts_of(page)[numbers[here] & (PAGE_BITS - 1)] > 0
        return found

    def is_full_once(self, page: int) -> bool:
        """Whether each number of a page was counted exactly once."""
        planes = self.open.get(page)
        if planes is None:
            return self.is_closed(page)
        return len(planes) == 1 and bool((planes[0] == 0xFF).all())

    def is_empty(self, page: int) -> bool:
        """Whether no number of a page was counted."""
        return page not in self

    def counts_of(self, page: int) -> Int64:
        """How often each number of a page was counted: int64[PAGE_BITS]."""
        planes = self.open.get(page)
        if planes is None:
            return np.full(PAGE_BITS, self.is_closed(page), np.int64)
        counts = np.zeros(PAGE_BITS, np.int64)
        for power, plane in enumerate(planes):
            counts += np.unpackbits(plane, bitorder="little").astype(np.int64) << power
        return counts

    def _planes(self, page: int) -> Planes:
        """A page's planes, to be written to."""
        planes = self.open.get(page)
        if planes is None:
            plane = np.full(_PAGE_BYTES, 0xFF if self.is_closed(page) else 0, np.uint8)
            planes = self.open[page] = [plane]
            if self.is_closed(page):
                self._closed[page] = 0
        return planes

    def _add_run(self, first: int, end: int) -> Bool | None:
        """Count first … end - 1 once more; which of them had been counted before, None for none."""
        repeated = None
        begin = first
        while begin < end:
            page = begin >> PAGE_SHIFT
            stop = min(end, (page + 1) << PAGE_SHIFT)
            if stop - begin == PAGE_BITS and page not in self:
                self._close(page)
            else:
                base = page << PAGE_SHIFT
                low, high = begin - base, stop - base
                at = low >> 3
                mask = np.full((high + 7 >> 3) - at, 0xFF, np.uint8)
                mask[0] &= 0xFF << (low & 7) & 0xFF
                mask[-1] &= 0xFF >> (-high & 7)
                before = self._add_mask(page, at, mask)
                if before is not None:
                    repeated = np.zeros(end - first, np.bool_) if repeated is None else repeated
                    bits = np.unpackbits(before, bitorder="little")
                    skip = low & 7
                    repeated[begin - first : stop - first] = bits[skip : skip + stop - begin]
                elif high == PAGE_BITS:
                    self._close_if_full(page)
            begin = stop
        return repeated

    def _add_scattered(self, lowest: int, highest: int, numbers: Int64) -> Bool | None:
        """Count numbers of one page, in any order, once more each."""
        page = lowest >> PAGE_SHIFT
        floor = lowest & ~7
        seen = np.zeros((highest | 7) + 1 - floor, np.bool_)
        places = numbers - floor
        seen[places] = True
        if int(np.count_nonzero(seen)) < len(numbers):
            _, first_rows = np.unique(numbers, return_index=True)
            return self._add_repeating(lowest, highest, numbers, first_rows)
        mask = np.packbits(seen, bitorder="little")
        before = self._add_mask(page, (floor & (PAGE_BITS - 1)) >> 3, mask)
        if before is None:
            return None
        return np.unpackbits(before, bitorder="little").view(np.bool_)[places]

    def _add_repeating(self, lowest: int, highest: int, numbers: Int64, first_rows: Int64) -> Bool:
        """Count numbers of which some come more than once in the batch: the first copies, then the others."""
        repeated = np.ones(len(numbers), np.bool_)
        before = self._add_scattered(lowest, highest, numbers[first_rows])
        repeated[first_rows] = False if before is None else before
        rest = np.delete(numbers, first_rows)
        self._add_scattered(int(rest.min()), int(rest.max()), rest)
        return repeated

    def _add_few(self, numbers: list[int]) -> Bool | None:
        repeated = []
        for row, number in enumerate(numbers):
            _demand_within(number, number)
            page, at, bit = number >> PAGE_SHIFT, (number & (PAGE_BITS - 1)) >> 3, 1 << (number & 7)
            planes = self._planes(page)
            first = planes[0]
            if len(planes) == 1 and not first[at] & bit:
                first[at] |= bit
            elif self._add_mask(page, at, np.array([bit], np.uint8)) is not None:
                repeated.append(row)
            if number & (PAGE_BITS - 1) == PAGE_BITS - 1:
                self._close_if_full(page)
        self.total_count += len(numbers)
        if not repeated:
            return None
        which = np.zeros(len(numbers), np.bool_)
        which[repeated] = True
        return which

    def _add_mask(self, page: int, at: int, mask: UInt8, power: int = 0) -> UInt8 | None:
        """Add 2^power to the counts whose bits are set in `mask` (uint8[m], the page's bytes at …).

        Returns:
            The bits of the mask (uint8[m]) whose counts were not 0, or None where all were.
        """
        planes = self._planes(page)
        end = at + len(mask)
        before = planes[0][at:end] & mask
        for plane in planes[1:]:
            before |= plane[at:end] & mask
        carry = mask
        while len(planes) < power:
            planes.append(np.zeros(_PAGE_BYTES, np.uint8))
        for plane in planes[power:]:
            window = plane[at:end]
            carried = window & carry
            window ^= carry
            carry = carried
            if not carry.any():
                break
        else:
            planes.append(np.zeros(_PAGE_BYTES, np.uint8))
            planes[-1][at:end] = carry
        return before if before.any() else None

    def close_full(self) -> None:
        """Close the pages that have come full by calls that did not end with them."""
        for page in list(self.open):
            self._close_if_full(page)

    def take_open(self, below: int) -> BitCounts:
        """Part with the open pages below a page: their counts, which are no longer counted here."""
        taken = BitCounts()
        for page in [page for page in self.open if page < below]:
            self._close_if_full(page)
            if page in self.open:
                taken.open[page] = self.open.pop(page)
        return taken

    def add_counts(self, other: BitCounts) -> None:
        """Count each number as often more as the other did."""
        for page in other.pages():
            planes = other.open.get(page, [_ONES])
            if page in self:
                for power, plane in enumerate(planes):
                    self._add_mask(page, 0, plane, power)
            else:
                self.open[page] = [plane.copy() for plane in planes]
            self._close_if_full(page)
        self.total_count += other.total_count

    def add_present(self, other: BitCounts) -> None:
        """Count each number once more that the other counted at all."""
        for page in other.pages():
            self._add_mask(page, 0, np.bitwise_or.reduce(other.open.get(page, [_ONES])))
            self._close_if_full(page)

    def _close(self, page: int) -> None:
        if page >= len(self._closed):
            self._closed.extend(bytes(page + 1 - len(self._closed)))
        self._closed[page] = 1

    def _close_if_full(self, page: int) -> None:
        if self.is_full_once(page):
            self.open.pop(page, None)
            self._close(page)


def uncounted(end: int, *holders: BitCounts) -> int:
    """How many of the numbers 0 … end - 1 none of these counted."""
    missing = 0
    for page in range(-(-end // PAGE_BITS)):
        if any(bits.is_full_once(page) for bits in holders):
            continue
        counted = np.zeros(PAGE_BITS, np.bool_)
        for bits in holders:
            counted |= bits.counts_of(page) > 0
        missing += int(np.count_nonzero(~counted[: end - page * PAGE_BITS]))
    return missing


def ranges_of(which: Bool, count_max: int) -> list[tuple[int, int]]:
    """The first `count_max` runs of True as (first, last) places."""
    edges = np.flatnonzero(np.diff(which, prepend=False, append=False))[: 2 * count_max]
    return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]


def _demand_within(lowest: int, highest: int) -> None:
    if lowest < 0 or highest >= MAX_INDEX:
        raise TrialError(
            f"message number {lowest if lowest < 0 else highest}: the ledger counts 0 … {MAX_INDEX - 1}; "
            "use more producers or a shorter run"
        )
