"""Was the trial in one state, and do its rate, its latency and what was under way fit together?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.checks import Check
from loadgen.checks.causes import slow_consumers

if TYPE_CHECKING:
    from loadgen.facts import Facts


def check_steady(facts: Facts) -> Check:
    """The measured window is of one state: of a rate, backlog or latency that still changes, a mean says little.

    With fewer than forty messages, or in less than four seconds, few messages under way cannot tell, which is nothing
    against a trial.
    """
    if facts.steady is None:
        return Check("steady state", None, "not looked at")
    found, reason = facts.steady
    return Check("steady state", True if found else None, reason, weighs=found is False or facts.steady_weighs)


def check_backlog(facts: Facts) -> Check:
    """An open loop's backlog did not grow: where it does, latency depends on how long one measures."""
    if not facts.is_open_loop:
        return Check("backlog", True, "a closed loop bounds it")
    if facts.consumers == 0:
        return Check("backlog", None, "not looked at: nobody consumed", weighs=False)
    if facts.backlog is None:
        return Check("backlog", None, "not looked at")
    found, reason = facts.backlog
    if found is False and (cause := slow_consumers(facts)):
        reason = f"{reason}: {cause}"
    return Check("backlog", None if found is False and facts.is_carried else found, reason)


def check_little(facts: Facts) -> Check:
    """Little's law (Little, "A proof for the queuing formula L = λW", Operations Research 9, 1961).

    The number under way is counted by a gauge of its own. Where it does not fit the rate times the mean service time,
    one of the three is wrong. With fewer than 20 under way it cannot tell, which is nothing against a trial: at low
    rates it is always so. Where they differ by more than three standard errors, if perhaps by chance, it is.
    """
    found, reason = facts.little or (None, "not looked at" if facts.consumers else "not looked at: nobody consumed")
    return Check("Little's law", found, reason, weighs=facts.little_weighs)
