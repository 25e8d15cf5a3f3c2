"""Are the times to be believed? The schedule, the rate that was carried, and what histogram and clock can resolve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.checks import Check, milliseconds, percent
from loadgen.checks.causes import cause_of_lag

if TYPE_CHECKING:
    from loadgen.facts import Facts

LAG_FLOOR_NS = 1_000_000
"""A schedule lag p99 under 1 ms is fine: time.sleep alone shows 0.2 ms on a quiet machine (measured)."""
LAG_SHARE = 0.1
"""Above the floor, the lag may be 10 % of the latency, median by median and p99 by p99: no shown figure moves much."""
LAG_HOPELESS = 10.0
"""Ten times the allowed lag is as large as the latency itself: the generator was measured."""
HELD_BACK_P99_SHARE = 0.01
"""A broker that left producers no room for 1 % of the time explains what a p99 shows."""
HELD_BACK_LAG_SHARE = 0.5
"""... and in all for at least half as long as that p99: a second's lag does not come from a tenth of a second."""
HELD_BACK_MEDIAN_SHARE = 0.5
"""A median is explained by what holds half of the time only."""
MISSING_SHARE = 0.01
"""With 1 % of the messages in no percentile not even the p99 can be told."""
BUCKET_SHARE = 0.01
"""Buckets of 1 % of a value hide less than repeats differ by; those of three digits are 0.1 % from 1 µs on."""
RESOLUTION_SHARE = 0.2
"""A consumer may spend a fifth of the shown latency between a batch's first byte and its stamp.

That time is part of the latency and belongs to the client. It is 7 % (AMQP) and 8 % (Kafka) of the median on a quiet
machine of two cores, and up to 17 % on one that other work fills (measured)."""
CLOCK_SHARE = 0.1
"""A clock that may err by a tenth of what it shows hides the differences that are looked for."""
CLOCK_SOURCES = frozenset({"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"})
"""Clock sources that all CPUs agree on, read in nanoseconds; acpi_pm and hpet take a microsecond a reading."""


def _allowed_lag_ns(e2e_p50_ns: float | None) -> float:
    """What a schedule lag's p99 may be beside an end-to-end median, in ns."""
    return max(LAG_FLOOR_NS, LAG_SHARE * (e2e_p50_ns or 0))


def check_schedule(facts: Facts) -> Check:
    """Messages left when they were intended: lag under max(1 ms, 10 % of the latency), at the median and at the p99.

    The latency of the p99 is the service time's, from when messages really left: in a response time the lag is part
    of what it is held against. Up to ten times that cannot tell, beyond it the generator was measured. Lag of
    producers that the broker held back (no room for 1 % of the time, and for long enough, explains a p99) is the
    broker's own, and response times include it. A generator that stood still fills its window when it catches up:
    that explains nothing. What the producers did meanwhile names the cause (`causes`).
    """
    name = "schedule lag"
    if not facts.is_open_loop:
        return Check(name, True, "a closed loop has no schedule")
    if facts.lag_p99_ns is None:
        return Check(name, None, "not measured")
    median_ns, allowed_median_ns = facts.lag_p50_ns or 0, _allowed_lag_ns(facts.e2e_p50_ns)
    allowed_ns = max(allowed_median_ns, LAG_SHARE * (facts.service_p99_ns or 0))
    text = f"p99 {facts.lag_p99_ns / 1e6:.2f} ms, allowed {allowed_ns / 1e6:.2f} ms"
    is_median_late = median_ns >= allowed_median_ns
    if is_median_late:
        text += f"; median {median_ns / 1e6:.2f} ms, allowed {allowed_median_ns / 1e6:.2f} ms"
    elif facts.lag_p99_ns < allowed_ns:
        return Check(name, True, text)
    held_back = facts.producers_held_back_share or 0
    explains_ns = held_back * facts.window_s * 1e9 / HELD_BACK_LAG_SHARE
    needed = HELD_BACK_MEDIAN_SHARE if is_median_late else HELD_BACK_P99_SHARE
    if held_back >= needed and explains_ns >= facts.lag_p99_ns and not facts.is_generator_full:
        return Check(name, True, f"{text}: the broker held producers back {percent(held_back)} of the time")
    cause = cause_of_lag(facts)
    text += f": {cause}" if cause else ""
    is_hopeless = facts.lag_p99_ns > LAG_HOPELESS * allowed_ns or median_ns > LAG_HOPELESS * allowed_median_ns
    return Check(name, False if is_hopeless else None, text)


def check_carried(facts: Facts) -> Check:
    """An open loop's rate was carried within 1 %; if not, the number stands and `bound_by` says why."""
    if not facts.is_open_loop:
        return Check("rate", True, "a closed loop offers no rate")
    if facts.offered_msgs_per_s is None:
        return Check("rate", None, "the offered rate is not known")
    text = f"offered {facts.offered_msgs_per_s:,.0f}, sent {facts.achieved_msgs_per_s:,.0f} msg/s"
    if facts.consumers:
        text += f", goodput {facts.goodput_msgs_per_s / facts.subscribers:,.0f} msg/s"
        text += f" at each of {facts.subscribers} subscribers" if facts.subscribers > 1 else ""
    return Check("rate", True, text if facts.is_carried else f"{text}: not carried")


def check_complete(facts: Facts) -> Check:
    """Every message due in the window has its latencies: one that was not sent, confirmed or received has none.

    Percentiles of the rest would be the better the more is missing, and above the missing share they say nothing.
    """
    name = "latency complete"
    if not facts.is_open_loop:
        return Check(name, True, "a closed loop has no response times")
    if facts.missing is None or facts.due is None:
        return Check(name, None, "not counted")
    if not facts.missing:
        return Check(name, True, f"all of {facts.due:,} messages due")
    share = facts.missing / max(1, facts.due)
    text = f"{facts.missing:,} of {facts.due:,} messages due were not sent, confirmed or received ({share:.2%})"
    if facts.hurt:  # what faults cost is what is looked for; whether a promise was broken, `check_loss` tells
        return Check(name, None, f"{text}: under faults latencies are of the rest")
    return Check(name, False if share > MISSING_SHARE else None, text)


def check_shares(facts: Facts) -> Check:
    """Each message of the schedule was sent by one producer, also where producers come and go.

    One that hears of its new share late has sent messages that were another's by then, and left out some of its own.
    """
    name = "shares of the schedule"
    if not facts.is_open_loop:
        return Check(name, True, "a closed loop has no schedule")
    if not facts.misshared:
        return Check(name, True, "every message was one producer's")
    share = facts.misshared / max(1, facts.due or 0)
    text = f"{facts.misshared:,} messages were sent twice or left out, as producers heard late of their shares"
    return Check(name, False if share > MISSING_SHARE else None, f"{text} ({share:.2%})")


def check_range(facts: Facts) -> Check:
    """No latency fell outside the histogram: a dropped tail makes every percentile above it too small.

    Between hosts a latency is below zero where the clocks err by more than it: that is said.
    """
    if facts.out_of_range:
        text = f"{facts.out_of_range:,} values out of range"
        if facts.clock_error_ns and facts.clock_error_ns > CLOCK_SHARE * (facts.e2e_p50_ns or 0):
            text += f": latencies of about the clocks' error ({milliseconds(facts.clock_error_ns)}) may be below zero"
        return Check("histogram range", False, text)
    return Check("histogram range", True, "all values recorded")


def check_resolution(facts: Facts) -> Check:
    """What is shown is coarse in neither of two ways: the histogram's buckets, and the consumer's reading.

    A bucket may be 1 % of the value that it stands for. A consumer stamps a batch when it has been parsed: the span
    from its first byte until then may be a fifth of the end-to-end latency, median by median and p99 by p99.
    """
    name = "resolution"
    if not facts.is_open_loop:
        return Check(name, True, "a closed loop shows no latency")
    if facts.bucket_share_max is None:
        return Check(name, None, "no latency was measured")
    text = f"histogram buckets {facts.bucket_share_max:.1%} of the latency"
    if facts.e2e_p50_ns is None:
        return Check(name, None if facts.bucket_share_max > BUCKET_SHARE else True, text)
    spans = [
        (f"p{percentile}", span_ns, latency_ns)
        for percentile, span_ns, latency_ns in (
            (50, facts.resolution_p50_ns, facts.e2e_p50_ns),
            (99, facts.resolution_p99_ns, facts.e2e_p99_ns),
        )
        if span_ns is not None and latency_ns is not None
    ]
    if not spans:
        return Check(name, None, f"{text}; how long the consumer took to read a batch was not measured")
    for percentile, span_ns, latency_ns in spans:
        text += f", reading a batch {milliseconds(span_ns)} of {milliseconds(latency_ns)} ({percentile})"
    coarse = any(span_ns > RESOLUTION_SHARE * latency_ns for _, span_ns, latency_ns in spans)
    return Check(name, None if coarse or facts.bucket_share_max > BUCKET_SHARE else True, text)


def check_clock(facts: Facts) -> Check:
    """One trusted clock source throughout, and a clock error far below the end-to-end median.

    An error as large as the median means that the clock was measured. One host's clock errs by its resolution;
    between hosts the error is that of the estimated offset. Confirmations are timed by their own producer's clock.
    """
    name = "clock"
    if facts.clock_error_ns is None:
        return Check(name, None, "not observed")
    if facts.clock_changed:
        return Check(name, None, f"the kernel changed its clock source to {facts.clock_source} while the trial ran")
    text = f"{facts.clock_source or 'unknown source'}, error {milliseconds(facts.clock_error_ns)}"
    if facts.e2e_p50_ns is not None:
        text += f", latency p50 {milliseconds(facts.e2e_p50_ns)}"
        if facts.clock_error_ns >= facts.e2e_p50_ns:
            return Check(name, False, f"{text}: the clock was measured")
        if facts.clock_error_ns > CLOCK_SHARE * facts.e2e_p50_ns:
            return Check(name, None, text)
    if not set((facts.clock_source or "").split(", ")) <= CLOCK_SOURCES:
        return Check(name, None, f"{text}: a source that may differ between CPUs, or is slow to read")
    return Check(name, True, text)
