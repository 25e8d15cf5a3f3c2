"""How long nothing was confirmed, and nothing delivered: seen by the counters that all agents share.

The fleet looks at them some twenty times a second, so that a gap is told to 0.07 s, and one below 0.1 s not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["confirm", "delivery"]
SHORTEST_NS = 100_000_000


@dataclass(slots=True)
class _Counter:
    """A counter, when it last grew, and the gaps between (begin and end in monotonic ns)."""

    value: int = 0
    grew_ns: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)

    def sample(self, now_ns: int, value: int) -> None:
        if value == self.value and self.grew_ns:
            return
        if self.grew_ns and now_ns - self.grew_ns >= SHORTEST_NS:
            self.gaps.append((self.grew_ns, now_ns))
        self.value, self.grew_ns = value, now_ns


class Gaps:
    """Watches how many messages were confirmed and how many received."""

    def __init__(self) -> None:
        self._counters: dict[Kind, _Counter] = {"confirm": _Counter(), "delivery": _Counter()}
        self._seen_ns = 0

    def sample(self, now_ns: int, confirmed: int, received: int) -> None:
        """Note the counters."""
        self._seen_ns = now_ns
        self._counters["confirm"].sample(now_ns, confirmed)
        self._counters["delivery"].sample(now_ns, received)

    def longest(self, kind: Kind, begin_ns: int, end_ns: int) -> tuple[int, int] | None:
        """The longest gap that reaches into this span (begin and end); one that never ended, as far as the span's end.

        After the window's end nothing comes any more: that is no gap.
        """
        counter = self._counters[kind]
        open_ns = min(self._seen_ns, end_ns)
        open_gap = [(counter.grew_ns, open_ns)] if open_ns - counter.grew_ns >= SHORTEST_NS else []
        found = [each for each in (*counter.gaps, *open_gap) if each[0] < end_ns and each[1] > begin_ns]
        return max(found, key=lambda each: each[1] - each[0], default=None)
