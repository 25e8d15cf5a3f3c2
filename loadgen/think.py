"""How long a consumer works on each message, whatever batches they come in: a server with a queue before it.

A batch of n messages is n pieces of work, one after another. Each begins when the one before it ended, or when it
came; the application has a message when its work begins, and acknowledges it when that ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.driver import Int64

ThinkKind = Literal["fixed", "exponential"]
MS_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Think:
    """How long the work on one message takes: `mean_ms` each, or exponential with that mean; 0 is no work.

    Where the consumers of a subscriber are not alike, the slowest takes `spread` times as long as the fastest.
    """

    kind: ThinkKind = "fixed"
    mean_ms: float = 0.0
    spread: float = 1.0

    def of(self, index: int, count: int) -> Think:
        """Consumer `index`'s own, of `count`: each takes longer than the one before it by the same factor.

        The harmonic mean of all is `mean_ms`: together they carry as many messages a second as if they were alike, so
        that a sweep of `spread` changes how work is shared and not how much of it there is room for. Whoever comes
        beyond those planned is as slow as the slowest.
        """
        if self.spread == 1 or count < 2:
            return Think(self.kind, self.mean_ms)
        times = self.spread ** (np.arange(count) / (count - 1))
        own = times[min(index, count - 1)] * np.mean(1 / times)
        return Think(self.kind, self.mean_ms * float(own))


class Worker:
    """One consumer's work, at moments in ns; the same seed draws the same times."""

    def __init__(self, think: Think, seed: Sequence[int]) -> None:
        self._mean_ns = think.mean_ms * MS_NS
        self._is_fixed = think.kind == "fixed"
        self._rng = np.random.default_rng(seed)
        self._free_ns = 0

    def take(self, count: int, came_ns: int) -> tuple[Int64, Int64]:
        """When the work on each of `count` messages that came at `came_ns` begins, and when it ends (int64[count]).

        A worker that was late for the end before does not fall behind for it: what counts is when it would have ended.
        """
        drawn = np.full(count, self._mean_ns) if self._is_fixed else self._rng.exponential(self._mean_ns, count)
        begin_ns = max(came_ns, self._free_ns)
        ends = begin_ns + np.rint(np.cumsum(drawn)).astype(np.int64)
        begins = np.concatenate(([begin_ns], ends[:-1]))
        self._free_ns = int(ends[-1])
        return begins, ends
