"""Was the machine itself in order? Clients' and host's CPU, the neighbours, the disk, and whether anyone looked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.checks import Check, percent

if TYPE_CHECKING:
    from loadgen.facts import Facts

OTHERS_CORES = 0.2
"""Other programs may use a fifth of a core; a desktop uses a tenth."""
RESTING_CORES = 0.5
"""Three Kafka nodes that nobody uses take 0.26 to 0.38 of a core (measured): what takes more than half of one is not at
rest, but collecting garbage, compacting or deleting what a trial of its own left."""
STEAL_SHARE = 0.05
"""A hypervisor that takes over 5 % of the CPU time is as large as the differences that are looked for."""
FREQUENCY_FALL_SHARE = 0.1
"""The fastest CPU may fall by a tenth: turbo differs by that with the number of busy cores."""
SAMPLES_MIN = 2
"""The fewest observer's samples that say something about a window."""


def host_text(facts: Facts) -> str:
    """How busy the host was, for people."""
    pressure = facts.psi_cpu_some_share
    text = f"host CPU at {percent(facts.host_busy_share)}"
    return text if pressure is None else f"{text}, tasks waiting for a CPU {percent(pressure)} of the time"


def check_generator(facts: Facts) -> Check:
    """A client thread at 95 % of its core: that bounds a rate, and casts doubt on an open loop's latency.

    Latencies of an open loop that carried its rate on a full core contain the client's own queue.
    """
    if facts.agent_core_share_max is None:
        return Check("generator CPU", None, "not observed")
    text = f"busiest client thread at {percent(facts.agent_core_share_max)} of a core"
    return Check("generator CPU", None if facts.is_generator_full and facts.is_carried else True, text)


def check_host(facts: Facts) -> Check:
    """A used-up machine bounds a rate ("with this client on this host") and casts doubt on a latency."""
    if facts.host_busy_share is None:
        return Check("host CPU", None, "not observed")
    return Check("host CPU", None if facts.is_host_full and facts.is_carried else True, host_text(facts))


def check_others(facts: Facts) -> Check:
    """Programs that are no clients and no brokers used at most a fifth of a core, and a resting broker half of one."""
    if facts.others_cores is None:
        return Check("other programs", None, "not observed")
    names = f" ({', '.join(facts.others_names)})" if facts.others_names else ""
    resting = f"; the resting broker {facts.resting_cores:.2f}" if facts.resting_cores is not None else ""
    text = f"others used {facts.others_cores:.2f} cores{names}{resting}"
    is_much = facts.others_cores > OTHERS_CORES or (facts.resting_cores or 0.0) > RESTING_CORES
    return Check("other programs", None if is_much else True, text)


def check_steal(facts: Facts) -> Check:
    """The hypervisor took at most 5 % of the CPU time."""
    if facts.steal_share is None:
        return Check("stolen CPU", None, "not observed")
    text = f"{percent(facts.steal_share)} of the CPU time stolen"
    return Check("stolen CPU", None if facts.steal_share > STEAL_SHARE else True, text)


def check_frequency(facts: Facts) -> Check:
    """The CPUs' clock held still: the fastest one's lowest reading is within 10 % of its highest, and none was hot.

    Virtual machines do not tell their CPUs' frequency: that is unknown, and casts no doubt on the number. What the same
    work took again and again tells how fast they were, and that is shown.
    """
    name = "CPU frequency"
    if facts.throttles:
        return Check(name, None, f"CPUs were slowed down {facts.throttles:,.0f} times because they were hot")
    if facts.frequency_fall_share is None:
        slow = facts.slow_share
        shown = "" if slow is None else f"; {percent(slow)} slower than at its fastest, on average"
        return Check(name, None, f"not observed: this machine does not tell it{shown}", weighs=False)
    text = f"fell by {percent(facts.frequency_fall_share)}"
    if facts.frequency_fall_share > FREQUENCY_FALL_SHARE:
        return Check(name, None, f"{text}: set the governor to performance")
    return Check(name, True, text)


def check_swap(facts: Facts) -> Check:
    """Nothing was swapped in or out: one page from a disk takes as long as a message."""
    if facts.swapped_bytes is None:
        return Check("swap", None, "not observed: this kernel does not count it", weighs=False)
    text = f"{facts.swapped_bytes / 1e6:,.1f} MB swapped" if facts.swapped_bytes else "nothing swapped"
    return Check("swap", None if facts.swapped_bytes else True, text)


def check_alarms(facts: Facts) -> Check:
    """No resource alarm and no blocked connection: under one the broker refuses work, by design.

    A broker that has none or cannot be asked (`alarms` None) is unknown, and no doubt is cast on the number: work that
    was refused shows in the rate and in what is missing. An alarm that the scenario ordered (`Full`) is none of this.
    """
    if facts.short_by_order:
        raised = ", ".join(facts.alarms or ()) or "none was seen"
        return Check("alarms", True, f"ordered by the scenario: {raised}")
    if facts.alarms:
        return Check("alarms", False, f"the broker raised an alarm: {', '.join(facts.alarms)}")
    if facts.blocked_connections:
        return Check("alarms", False, f"the broker blocked {facts.blocked_connections:,} connections")
    if facts.alarms is None:
        return Check("alarms", None, "not observed: this broker has none, or was not asked", weighs=False)
    return Check("alarms", True, "none")


def check_disk(facts: Facts) -> Check:
    """The broker's disk did not run full."""
    if facts.disk_full:
        return Check("disk", False, "the broker's disk ran full")
    if facts.disk_full is None:
        return Check("disk", None, "not observed: it is not on this machine, or not known where", weighs=False)
    return Check("disk", True, "had room")


def check_observed(facts: Facts) -> Check:
    """The observer looked to the end, and often enough for its means to say something about the window."""
    if facts.observer_defects:
        return Check("observation", None, f"the observer failed: {facts.observer_defects[0]}")
    if facts.samples is not None and facts.samples < SAMPLES_MIN:
        return Check("observation", None, f"only {facts.samples} samples in the window")
    if facts.samples is None:
        return Check("observation", None, "nobody observed")
    return Check("observation", True, f"{facts.samples} samples")
