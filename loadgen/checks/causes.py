"""What held up a generator, and who was slow where a backlog grew: names for what the other checkers find.

They are told apart by what the processes did meanwhile. A *busy* generator used up a core. One that *waited for a CPU*
was ready to run and was not given one, by the kernel's count of its threads (`schedstat`). One whose loop stood still
for longer than it ever waits, and neither ran nor waited for a CPU by that count, was *stopped* where one spell makes
up most of it, and *starved* where that happened again and again, as under a quota. A call that does not return looks
the same from here, so nothing is said of that where the broker was hurt on purpose.

Consumers are *slow* where their own work on messages took up nearly all of their time: the broker had more for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.checks import percent

if TYPE_CHECKING:
    from loadgen.facts import Facts

EXPLAINS_SHARE = 0.01
"""What takes 1 % of the time explains a p99."""
ONE_SPELL_SHARE = 0.5
"""More than half of it at a stretch was one stop; a quota's spells are a tenth of a second each."""
SLOW_SHARE = 0.8
"""Consumers that work four fifths of their time would, without that work, have time for five times as many messages."""


def cause_of_lag(facts: Facts) -> str:
    """Why messages left late, by what the producers did meanwhile; empty where that tells nothing."""
    if facts.is_generator_full:
        return f"busy, a client's thread used {percent(facts.agent_core_share_max)} of its core"
    still = facts.producers_stood_still
    if still is not None and still.total_s >= EXPLAINS_SHARE * facts.window_s and not facts.hurt:
        if still.longest_s >= ONE_SPELL_SHARE * still.total_s:
            return f"stopped, a producer neither ran nor waited for a CPU for {still.longest_s:.2f} s at a stretch"
        share = percent(still.total_s / facts.window_s)
        return f"starved, a producer neither ran nor waited for a CPU {still.times:,} times, {share} of the time"
    waited_s = facts.producers_cpu_wait_s or 0.0
    if waited_s >= EXPLAINS_SHARE * facts.window_s:
        return f"short of CPU, producers were ready and waited for one for {waited_s:.2f} s"
    return ""


def slow_consumers(facts: Facts) -> str:
    """That consumers' own work bounds what they receive; empty where it does not."""
    busy_share = facts.consumers_busy_share
    if busy_share is None or busy_share < SLOW_SHARE:
        return ""
    return f"the consumers were slow, at work on messages {percent(busy_share)} of the time"
