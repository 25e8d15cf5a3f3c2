"""Which delivery tags a consumer acknowledges, and when: one `multiple` for each `ack_every`, the rest when idle.

With `ack_every` 1 each message is acknowledged by itself, as most applications do.

A message that fails is told apart, right when it is settled: what came before it is acknowledged first.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from loadgen.drivers.failures import ACCEPT, NAMES, Failures

if TYPE_CHECKING:
    from loadgen.driver import Bool, Int64, Target

IDLE_S = 0.001  # nothing to read for so long is idle: under load, acks keep to `ack_every`

Said = tuple[int, int]
"""A delivery tag and what becomes of its message (`loadgen.drivers.failures`); `multiple` is for all before it, too."""


class Acks:
    """The acknowledgements one consumer owes; delivery tags count from 1, one for each message handed out.

    `failures` says which messages fail; those are noted (`note`) before they are handed out. `failed` counts them.
    """

    def __init__(self, target: Target) -> None:
        settings = target.settings
        self.is_manual = settings["ack"] == "manual"
        self._every = settings["ack_every"]
        self.handed = self._settled = self._acked = 0
        self.failures = Failures(*(settings.get(f"{each}_every", 0) for each in ("requeue", "fail", "reject")))
        self.failed = dict.fromkeys(NAMES.values(), 0)
        self._failing: deque[Said] = deque()

    @property
    def is_multiple(self) -> bool:
        """Whether an acknowledgement goes for several messages."""
        return bool(self._every > 1)

    @property
    def has_rest(self) -> bool:
        """Whether settled messages wait for their acknowledgement."""
        return self.is_manual and self._settled > self._acked

    @property
    def owes(self) -> bool:
        """Whether something that was handed out is not acknowledged."""
        return self.is_manual and self.handed > self._acked

    def note(self, seqs: Int64, redelivered: Bool | None) -> None:
        """The messages that are handed out next, in the order of their tags: number and broker's flag of each."""
        is_first = np.ones(len(seqs), np.bool_) if redelivered is None else ~redelivered
        said = self.failures.of(seqs, is_first)
        places = np.flatnonzero(said)
        self._failing += zip((places + self.handed + 1).tolist(), said[places].tolist(), strict=True)

    def settle(self, count: int | None = None) -> list[Said]:
        """All that was handed out, or `count` more, is processed: what is to be said now."""
        self._settled = self.handed if count is None else min(self.handed, self._settled + count)
        if not self.is_manual:
            return []
        said = self._fail()
        if self._settled - self._acked >= self._every:
            due = range(self._acked + self._every, self._settled + 1, self._every)
            said += [(tag, ACCEPT) for tag in due]
            self._acked = due[-1]
        return said

    def _fail(self) -> list[Said]:
        """Of the settled messages, those that fail, each behind an acknowledgement of what came before it."""
        said: list[Said] = []
        while self._failing and self._failing[0][0] <= self._settled:
            tag, verdict = self._failing.popleft()
            before = range(self._acked + 1, tag)  # empty where the one before has been told: it cannot be said again
            said += [(each, ACCEPT) for each in (before[-1:] if self.is_multiple else before)]
            said.append((tag, verdict))
            self.failed[NAMES[verdict]] += 1
            self._acked = tag
        return said

    def rest(self) -> list[Said]:
        """What is settled and not acknowledged yet, when idle and at the end."""
        if not self.has_rest:
            return []
        self._acked = self._settled
        return [(self._acked, ACCEPT)]
