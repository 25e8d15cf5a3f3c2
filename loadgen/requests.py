"""The requests of one requester that wait for their replies: which came in time, which were given up.

All have the same patience, so that they are given up in the order in which they were sent; nothing is looked for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from loadgen.driver import Bool, Int64

FIRST_RING_MSGS = 1 << 12


@dataclass(slots=True)
class Sent:
    """A batch of requests: where it ends, when it was sent, and when each was intended (int64[n])."""

    end: int
    sent_ns: int
    intended_ns: Int64


class OpenRequests:
    """Requests numbered 0, 1, 2, …; each is answered or given up once.

    Args:
        timeout_ns: how long after it was sent a request is given up.
    """

    def __init__(self, timeout_ns: int) -> None:
        self._timeout_ns = timeout_ns
        self._batches: deque[Sent] = deque()
        self._low = self._next = 0  # of all below `low` is known what became of them
        self._is_open: npt.NDArray[np.bool_] = np.zeros(FIRST_RING_MSGS, np.bool_)
        self.count = 0
        self.replied = 0
        self.timed_out = 0

    def sent(self, intended_ns: Int64, sent_ns: int) -> None:
        """The next requests (int64[n]) were sent."""
        first, self._next = self._next, self._next + len(intended_ns)
        self._make_room()
        self._is_open[np.arange(first, self._next) & (len(self._is_open) - 1)] = True
        self._batches.append(Sent(self._next, sent_ns, intended_ns))
        self.count += len(intended_ns)

    def answered(self, seqs: Int64, waited_ns: Int64) -> Bool:
        """Replies to these came after so long: which are the first of their request, and in time (bool[n]).

        Whether a reply is in time is not a matter of when `expire` came to look: a requester that was kept from its CPU
        reads a reply before it has given up what had waited too long.
        """
        known = (seqs >= self._low) & (seqs < self._next) & (waited_ns < self._timeout_ns)
        places = seqs & (len(self._is_open) - 1)
        fresh: Bool = known & self._is_open[places]
        # Of two replies to one request in one batch the first one counts.
        firsts = np.zeros(len(seqs), np.bool_)
        firsts[np.unique(np.where(fresh, seqs, -1), return_index=True)[1]] = True
        fresh &= firsts
        self._is_open[places[fresh]] = False
        number = int(np.count_nonzero(fresh))
        self.replied += number
        self.count -= number
        return fresh

    def expire(self, now_ns: int) -> Int64:
        """Give up what has waited too long: when each of these requests was intended (int64[n])."""
        given_up: list[Int64] = []
        while self._batches:
            batch = self._batches[0]
            begin = batch.end - len(batch.intended_ns)
            places = np.arange(begin, batch.end) & (len(self._is_open) - 1)
            waiting = self._is_open[places]
            if waiting.any():
                if now_ns - batch.sent_ns < self._timeout_ns:
                    break
                given_up.append(batch.intended_ns[waiting])
                self._is_open[places] = False
            self._low = batch.end
            self._batches.popleft()
        if not given_up:
            return np.empty(0, np.int64)
        intended_ns = np.concatenate(given_up)
        self.timed_out += len(intended_ns)
        self.count -= len(intended_ns)
        return intended_ns

    def _make_room(self) -> None:
        """Let the ring hold every number from `low` on."""
        size = len(self._is_open)
        if self._next - self._low <= size:
            return
        while size < self._next - self._low:
            size *= 2
        numbers = np.arange(self._low, self._next)
        grown = np.zeros(size, np.bool_)
        kept = numbers[: len(self._is_open)]
        grown[kept & (size - 1)] = self._is_open[kept & (len(self._is_open) - 1)]
        self._is_open = grown
