"""What a consumer of a share group says of each record: accepted, released to come again, or rejected for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.driver import Int64

GAP, ACCEPT, RELEASE, REJECT = 0, 1, 2, 3  # the protocol's numbers; a gap is an offset without a record


class Dispositions:
    """By offset, so that it does not depend on who gets a record: of so many, the last is released or rejected.

    A record is released at its first delivery only, and a rejected one never comes again: every record ends.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._release_every: int = settings["release_every"]
        self._reject_every: int = settings["reject_every"]

    @property
    def accept_all(self) -> bool:
        """Whether nothing is ever released or rejected."""
        return not (self._release_every or self._reject_every)

    def of(self, offsets: Int64, deliveries: Int64) -> Int64:
        """What is said of the records at these offsets (int64[n]), which came for the so manieth time each."""
        said = np.full(len(offsets), ACCEPT)
        if self._release_every:
            said[(deliveries == 1) & ((offsets + 1) % self._release_every == 0)] = RELEASE
        if self._reject_every:
            said[(offsets + 1) % self._reject_every == 0] = REJECT
        return said
