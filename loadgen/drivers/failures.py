"""Which messages fail at a consumer: handed back once, failing whenever they come, or rejected for good.

By the message's own number, so that it does not depend on who gets it: of so many, the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from loadgen.driver import Bool, Int64

ACCEPT, REQUEUE, FAIL, REJECT = 0, 1, 2, 3
NAMES = {REQUEUE: "requeued", FAIL: "failed", REJECT: "rejected"}


class Failures:
    """Of each so many messages (0: none) the last is requeued at its first delivery only, fails, or is rejected.

    Where a message would be several of these, the last one counts.
    """

    def __init__(self, requeue_every: int, fail_every: int, reject_every: int) -> None:
        self._requeue_every, self._fail_every, self._reject_every = requeue_every, fail_every, reject_every

    def __bool__(self) -> bool:
        return bool(self._requeue_every or self._fail_every or self._reject_every)

    def of(self, numbers: Int64, is_first: Bool) -> Int64:
        """What becomes of the messages of these numbers (int64[n]), which come for the first time or not (bool[n])."""
        said = np.full(len(numbers), ACCEPT)
        if self._requeue_every:
            said[is_first & ((numbers + 1) % self._requeue_every == 0)] = REQUEUE
        if self._fail_every:
            said[(numbers + 1) % self._fail_every == 0] = FAIL
        if self._reject_every:
            said[(numbers + 1) % self._reject_every == 0] = REJECT
        return said
