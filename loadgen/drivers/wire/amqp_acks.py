"""Which delivery tags a consumer acknowledges, and when: one `multiple` for each `ack_every`, the rest when idle."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadgen.driver import Target

IDLE_S = 0.001  # nothing to read for so long is idle: under load, acks keep to `ack_every`


class Acks:
    """The acknowledgements one consumer owes; delivery tags count from 1, one for each message handed out."""

    def __init__(self, target: Target) -> None:
        self.is_manual = target.settings["ack"] == "manual"
        self._every = target.settings["ack_every"]
        self.handed = self._settled = self._acked = 0

    @property
    def has_rest(self) -> bool:
        """Whether settled messages wait for their acknowledgement."""
        return self.is_manual and self._settled > self._acked

    def settle(self, count: int | None = None) -> list[int]:
        """All that was handed out, or `count` more, is processed: the tags to acknowledge now, each with `multiple`."""
        self._settled = self.handed if count is None else min(self.handed, self._settled + count)
        if not self.is_manual or self._settled - self._acked < self._every:
            return []
        due = list(range(self._acked + self._every, self._settled + 1, self._every))
        self._acked = due[-1]
        return due

    def rest(self) -> list[int]:
        """What is settled and not acknowledged yet, when idle and at the end."""
        if not self.has_rest:
            return []
        self._acked = self._settled
        return [self._acked]
