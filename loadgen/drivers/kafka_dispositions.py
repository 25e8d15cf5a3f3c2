"""What a consumer of a share group says of each record: accepted, released to come again, or rejected for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.drivers.failures import Failures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.driver import Int64

GAP, ACCEPT, RELEASE, REJECT = 0, 1, 2, 3  # the protocol's numbers; a gap is an offset without a record
_SAID = np.array([ACCEPT, RELEASE, RELEASE, REJECT])  # by what becomes of a message (`loadgen.drivers.failures`)


class Dispositions:
    """By offset: a record is released at its first delivery only, or (`fail_every`) until the group's limit ends it.

    A rejected one never comes again: every record ends.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        fail_every = settings.get("fail_every", 0)
        self._failures = Failures(settings["release_every"], fail_every, settings["reject_every"])

    @property
    def accept_all(self) -> bool:
        """Whether nothing is ever released or rejected."""
        return not self._failures

    def of(self, offsets: Int64, deliveries: Int64) -> Int64:
        """What is said of the records at these offsets (int64[n]), which came for the so manieth time each."""
        said: Int64 = _SAID[self._failures.of(offsets, deliveries == 1)]
        return said
