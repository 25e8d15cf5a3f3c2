"""A trial's figures: rates, latencies and the ledger's account, from what its agents reported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.agent import SECOND_NS, SIDES
from loadgen.drain import replayed_s
from loadgen.driver import confirms
from loadgen.fairness import shared_work
from loadgen.ledger import explain, settle
from loadgen.pacer import make_pacer
from loadgen.record import LATENCY_KINDS
from loadgen.removals import refuses, removed_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.agent import Result
    from loadgen.fleet import Outcome
    from loadgen.histogram import Histogram
    from loadgen.ledger import Account
    from loadgen.plan import Trial
    from loadgen.removals import Removals
    from loadgen.trial import Live

Record = dict[str, Any]


def offered_msgs_per_s(trial: Trial) -> float | None:
    """What the schedule asks for in the measured window, on average; None in a closed loop."""
    rate = trial.rate
    if not isinstance(rate.msgs_per_s, (int, float)):
        return None
    if rate.kind == "burst":
        pacer = make_pacer(rate, 0, 1, trial.warmup_s + trial.duration_s, trial.seed)
        begin_ns, end_ns = (round(each * SECOND_NS) for each in (trial.warmup_s, trial.warmup_s + trial.duration_s))
        return (pacer.due(end_ns - 1) - pacer.due(begin_ns - 1)) / trial.duration_s
    if rate.to_msgs_per_s is None:
        return rate.msgs_per_s
    # A ramp is linear over warm-up and window together, so that its mean is its rate in the window's middle.
    risen = (trial.warmup_s + trial.duration_s / 2) / (trial.warmup_s + trial.duration_s)
    return rate.msgs_per_s + (rate.to_msgs_per_s - rate.msgs_per_s) * risen


def account_of(outcome: Outcome, settings: Mapping[str, Any], removals: Removals) -> Account | None:
    """What became of all messages, as far as agents lived to tell; None where no producer did.

    What was received means something only where every agent told (`_all_told`).
    """
    sent = [result.sent_book for result in outcome.results if result.sent_book is not None]
    received = outcome.books("received_book")
    if not sent:
        return None
    account = settle(sent, received, removals.dead, refusing=refuses(settings))
    if not received and removals.unreceived_msgs:  # nobody consumed: what is gone is told by the broker alone
        unreceived = removals.counts or account.dead_lettered or {}
        account.dropped_by_limit, account.expired = unreceived.get("maxlen", 0), unreceived.get("expired", 0)
    elif removals.counts is not None:
        explain(account, removals.counts)
    return account


def _all_told(trial: Trial, outcome: Outcome) -> bool:
    sent = sum(result.sent_book is not None for result in outcome.results)
    received = sum(result.received_book is not None for result in outcome.results)
    return sent == trial.producers and received == trial.receivers


def figures(
    trial: Trial, live: Live, outcome: Outcome, account: Account | None, removals: Removals, cut_s: int = 0
) -> Record:
    """All that the agents' results and reports say, under the record's names.

    The first `cut_s` seconds of the planned window count as warm-up: it was not steady yet.
    """
    results = outcome.results
    producers = [result for result in results if SIDES[result.role] == "producers"]
    planned_s = _window_s(trial, outcome, producers)
    window_s = None if planned_s is None else planned_s - cut_s
    used_s = [(SIDES[result.role], _cpu_s(result, cut_s, cut_s + (window_s or 0.0))) for result in results]
    histograms = live.measured(cut_s)
    return {
        "status": "failed" if outcome.error else "partial" if outcome.interrupted else "complete",
        "error": outcome.error,
        "traceback": outcome.traceback,
        "warmup_s": trial.warmup_s + cut_s,
        "window_s": window_s,
        "drain_s": outcome.drain_s,
        "workers": outcome.workers,
        **_rates(trial, results, account if _all_told(trial, outcome) else None, window_s, cut_s),
        **_accounted(trial, outcome, account),
        **({} if account is None else removed_fields(account, trial.settings, removals)),
        **shared_work(trial, results, cut_s),
        "failed_deliveries": _failed_deliveries(results),
        "latency_ns": _latencies(histograms),
        "out_of_range": sum(histogram.out_of_range_count for histogram in histograms.values()),
        "misshared_msgs": sum(sum(each.per_second.get("misshared", ())[cut_s:]) for each in producers),
        "resolution_ns": _resolution(histograms),
        "blocked_share": max((result.blocked_share for result in producers), default=0.0),
        "stood_still": _stood_still(producers),
        "cpu_s": {side: sum(s for of, s in used_s if of == side) for side in ("producers", "consumers")},
        "agent_cpu_share_max": max((s for _, s in used_s), default=0.0) / window_s if window_s else 0.0,
    }


def _stood_still(producers: Sequence[Result]) -> Record | None:
    """Of the producer that stood still for longest; None where no producer lived to tell, or one could not."""
    told = [each.stood_still for each in producers if each.stood_still is not None]
    if not told or len(told) < len(producers):
        return None
    longest = max(told, key=lambda still: still.total_ns)
    return {
        "times": longest.times,
        "total_s": longest.total_ns / SECOND_NS,
        "longest_s": longest.longest_ns / SECOND_NS,
    }


def _cpu_s(result: Result, begin_s: float, end_s: float) -> float:
    """The CPU that an agent used between two moments of the window, interpolated between its notes."""
    if not result.cpu_at:
        return 0.0
    at_s, used_s = zip(*result.cpu_at, strict=True)
    return float(np.interp(end_s, at_s, used_s) - np.interp(begin_s, at_s, used_s))


def _window_s(trial: Trial, outcome: Outcome, producers: Sequence[Result]) -> float | None:
    """How long the measured window really was; None where no producer lived to tell."""
    if outcome.error is None and not outcome.interrupted:
        return replayed_s(trial, outcome) or trial.duration_s
    return min((result.window_s for result in producers), default=None)


def _rates(
    trial: Trial, results: Sequence[Result], account: Account | None, window_s: float | None, cut_s: int
) -> Record:
    """Rates over the window that passed; null where none of it did, as one over nothing would be invented."""

    def rate(number: float) -> float | None:
        return number / window_s if window_s else None

    def total(what: str) -> int:
        return sum(sum(result.per_second.get(what, ())[cut_s:]) for result in results)

    received, acked = total("received"), total("acked")
    # A requester counts the first reply to each request that it waits for, and nothing else.
    twice = 0 if account is None or trial.pattern.is_request_reply else account.duplicated + account.foreign
    once = max(0, received - twice)
    return {
        "sent_msgs_per_s": rate(total("sent")),
        "acked_msgs_per_s": rate(acked) if confirms(trial.settings) else None,
        "achieved_msgs_per_s": rate(received if trial.consumers else acked),
        # Duplicates and foreign messages of the whole trial are taken off, the stricter way.
        "goodput_msgs_per_s": rate(once),
        "goodput_bytes_per_s": rate(total("received_bytes") * (once / received if received else 1)),
    }


def _accounted(trial: Trial, outcome: Outcome, account: Account | None) -> Record:
    """The ledger's account; null is what it cannot know."""
    if account is None:
        return {}
    unsent = sum(
        max(0, result.due - result.sent_book.sent_count) for result in outcome.results if result.sent_book is not None
    )
    known: Record = {
        "sent": account.sent,
        "acked": account.acked,
        "missing_msgs": account.missing,
        "errors": {**account.errors, **({"unsent": unsent} if unsent else {})},
        "ledger_examples": account.examples,
    }
    if trial.consumers and _all_told(trial, outcome):
        known |= {
            name: getattr(account, name)
            for name in (
                "received", "lost", "confirmed_lost", "unconfirmed_lost", "duplicated", "dup_resend", "dup_redelivery",
                "out_of_order", "reordered_redelivery", "corrupted", "foreign",
            )
        }  # fmt: skip
    if not outcome.drained and (outcome.interrupted or outcome.error is not None):
        # Consumers were stopped while messages were on their way: what they had not seen was not lost.
        known |= dict.fromkeys(("lost", "confirmed_lost", "unconfirmed_lost", "missing_msgs"))
        known["ledger_examples"] = {**account.examples, "lost": []}
    return known | _of_requests(trial, outcome, account) | _of_handled(outcome)


def _of_requests(trial: Trial, outcome: Outcome, account: Account) -> Record:
    """What became of requests: replied to in time, given up, or neither yet; some replies came after that."""
    if not trial.pattern.is_request_reply:
        return {}
    replied, timed_out = (sum(getattr(result, name) for result in outcome.results) for name in ("replied", "timed_out"))
    return {
        "requests": {
            "timeout_ms": trial.pattern.timeout_ms,
            "replied": replied,
            "timed_out": timed_out,
            "unanswered": account.sent - replied - timed_out,
            "late_replies": max(0, account.distinct - replied),
        }
    }


def _of_handled(outcome: Outcome) -> Record:
    """What a role in the middle received: where a message was lost or doubled, it tells on which leg."""
    books = outcome.books("handled_book")
    if not books:
        return {}
    sent = [result.sent_book for result in outcome.results if result.sent_book is not None]
    first_leg = settle(sent, books)
    names = ("received", "lost", "duplicated", "out_of_order", "corrupted", "foreign")
    return {"handled": {name: getattr(first_leg, name) for name in names}}


def _failed_deliveries(results: Sequence[Result]) -> dict[str, int] | None:
    """How many deliveries consumers had fail on purpose, in which way; None where they cannot."""
    told = [result.failed for result in results if result.failed is not None]
    return {how: sum(each[how] for each in told) for how in told[0]} if told else None


def _latencies(histograms: dict[str, Histogram]) -> Record:
    return {
        kind: histograms[kind].summary() if kind in histograms and histograms[kind].count else None
        for kind in LATENCY_KINDS
    }


def _resolution(histograms: dict[str, Histogram]) -> Record:
    histogram = histograms.get("resolution")
    if histogram is None or not histogram.count:
        return {"p50": None, "p99": None}
    p50, p99 = histogram.percentiles([50, 99])
    return {"p50": p50, "p99": p99}
