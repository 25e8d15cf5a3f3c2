"""Was every message accounted for? What was sent, confirmed, received, lost, doubled, reordered, changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.checks import Check

if TYPE_CHECKING:
    from loadgen.facts import Facts


def _unseen(name: str) -> Check:
    """What only a consumer can find, where there is none: the scenario asks for publishing alone."""
    return Check(name, None, "not looked at: nobody consumed", weighs=False)


def check_integrity(facts: Facts) -> Check:
    """No message arrived changed: in no class and at no rate is one allowed."""
    if facts.consumers == 0:
        return _unseen("integrity")
    bad = facts.corrupted
    return Check("integrity", bad == 0, f"{bad:,} corrupted messages" if bad else "every message arrived as sent")


def check_foreign(facts: Facts) -> Check:
    """Every message was one that this trial's producers sent: others took resources, and nobody knows whose."""
    if facts.consumers == 0:
        return _unseen("foreign")
    strange = facts.foreign
    return Check("foreign", strange == 0, f"{strange:,} messages that nobody here sent" if strange else "none")


def check_confirmed(facts: Facts) -> Check:
    """Sent is confirmed and refused: each message has the broker's word, or is known to have failed.

    Refused are those that a full queue did not take, that were returned, or whose transaction was undone. Where
    producers gave up waiting, a confirmation may still come; where they waited for none any more, one is missing from
    the books. What is unconfirmed under faults was promised by nobody, and class `none` confirms nothing.
    """
    name = "confirmations"
    if facts.acked is None:
        return Check(name, True, "nothing is confirmed here")
    if facts.unsettled is None:
        return Check(name, None, "not counted")
    if not facts.unsettled:
        refused = facts.sent - facts.acked
        text = f"of {facts.sent:,} sent {facts.acked:,} were confirmed and {refused:,} refused"
        return Check(name, True, text if refused else f"all of {facts.sent:,} sent were confirmed")
    text = f"{facts.unsettled:,} of {facts.sent:,} sent were neither confirmed nor refused"
    if facts.hurt:
        return Check(name, True, f"{text}: under faults nobody promised them")
    if facts.gave_up_confirms:
        return Check(name, None, f"{text} when waiting for it was given up: counts are not final")
    return Check(name, False, f"{text}, though none was waited for any more")


def _is_held(facts: Facts) -> bool:
    """Whether the broker still holds what did not come: as many as are missing, and all that it confirmed of them."""
    held = facts.depth_at_end or 0
    return held > 0 and facts.confirmed_lost <= held <= facts.lost


def check_loss(facts: Facts) -> Check:
    """No confirmed message is missing once the queue is drained; class `none` only states its loss.

    What was never confirmed may be lost in any class (the producer knew). Before a drain ends, missing is not lost, and
    what the broker counts in its queue then is accounted for. Where nobody consumes, it must hold what it confirmed.
    """
    name = "loss"
    if facts.consumers == 0:
        return _loss_unconsumed(facts)
    is_none = facts.durability == "none"
    if not facts.drained and (missing := facts.lost if is_none else facts.confirmed_lost):
        if _is_held(facts):
            text = f"of {facts.lost:,} messages that did not come the queue still holds {facts.depth_at_end:,}"
            return Check(name, True, f"{text} by the broker's own count")
        what = "messages" if is_none else "confirmed messages"
        return Check(name, None, f"{missing:,} {what} missing when the drain was given up")
    if is_none:
        return Check(name, True, f"{facts.lost:,} of {facts.sent * facts.subscribers:,} lost, as class none allows")
    if facts.confirmed_lost:
        text = f"{facts.confirmed_lost:,} confirmed messages lost in class {facts.durability}"
        return Check(name, False, text)
    unconfirmed = f"; {facts.lost:,} unconfirmed ones lost" if facts.lost else ""
    return Check(name, True, f"no confirmed message lost{unconfirmed}")


def _loss_unconsumed(facts: Facts) -> Check:
    """With no consumer, what the broker counts as stored (or as waiting) stands for what was received."""
    held = facts.depth_at_end if facts.stored is None else facts.stored
    if held is None:
        return Check("loss", None, "nobody consumed, and the broker did not tell what it holds")
    if facts.durability == "none" or facts.acked is None:
        return Check("loss", True, f"nobody consumed: the broker holds {held:,} of {facts.sent:,} sent")
    gone = (facts.dropped_by_limit or 0) + (facts.expired or 0) if facts.stored is None else 0
    text = f"nobody consumed: the broker holds {held:,} of {facts.acked:,} confirmed messages"
    text += f", its queue's limits removed {gone:,}" if gone else ""
    return Check("loss", held + gone >= facts.acked, text)


def check_limits(facts: Facts) -> Check:
    """What a full queue drops or refuses, and what expires, is neither lost nor wrong: the scenario asks for it."""
    name = "queue limits"
    if not facts.limited:
        return Check(name, True, "the queue has none")
    if facts.dropped_by_limit is None:
        return Check(name, None, "the broker does not tell what it removed")
    found = {
        "dropped by a full queue": facts.dropped_by_limit,
        "expired": facts.expired,
        "refused by a full queue": facts.refused_by_limit,
    }
    text = ", ".join(f"{count:,} {what}" for what, count in found.items() if count)
    return Check(name, True, f"{text}: as its limits say, of {facts.sent:,} sent" if text else "none was reached")


def check_dead_letters(facts: Facts) -> Check:
    """Each message that consumers rejected, or that failed too often, came to the dead-letter queue, and no other."""
    name = "dead letters"
    found = {reason: count for reason, count in facts.dead_lettered.items() if count is not None}
    if not found:
        return Check(name, True, "there is no dead-letter queue")
    text = ", ".join(f"{count:,} {reason}" for reason, count in found.items() if count) or "none"
    rejected = facts.failed_deliveries.get("rejected") or 0
    if facts.drained and found.get("rejected", 0) != rejected:
        return Check(name, False, f"{text}, but consumers rejected {rejected:,}")
    failed, limit = facts.failed_deliveries.get("failed") or 0, facts.delivery_limit
    if facts.drained and limit is not None and found.get("delivery_limit", 0) * (limit + 1) != failed:
        return Check(name, None, f"{text}, but {failed:,} deliveries failed, of {limit + 1} a message")
    return Check(name, True, text)


def check_drained(facts: Facts) -> Check:
    """All that was sent came, is lost, or is in the queue by the broker's count: else counts are not final."""
    if facts.consumers == 0:
        return Check("drained", True, "nobody consumed")
    if facts.drained:
        return Check("drained", True, "the queue was emptied")
    if _is_held(facts):
        return Check("drained", True, "the queue was not emptied in time, and holds what is missing")
    return Check("drained", None, "the queue was not emptied in time: counts are not final")


def check_begun(facts: Facts) -> Check:
    """Consumers of a backlog began where they were to: at the right message, and with none before it."""
    if facts.begun is None:
        return Check("start", True, "at the beginning")
    return Check("start", *facts.begun)


def check_duplicates(facts: Facts) -> Check:
    """Every duplicate is explained by a redelivery or a resend; one out of nothing is a defect."""
    if facts.consumers == 0:
        return _unseen("duplicates")
    unexplained = facts.duplicated - facts.explained_duplicates
    if unexplained > 0 and facts.rebalanced:
        return Check("duplicates", True, f"{facts.duplicated:,}: whoever takes over reads again what was not committed")
    if unexplained > 0:
        return Check("duplicates", False, f"{unexplained:,} duplicates without redelivery or resend")
    text = f"{facts.duplicated:,} duplicates, all by redelivery or resend" if facts.duplicated else "none"
    return Check("duplicates", True, text)


def check_order(facts: Facts) -> Check:
    """Where order is promised (one consumer a queue or partition), it changed only with redelivery."""
    if facts.consumers == 0:
        return _unseen("order")
    if not facts.out_of_order:
        return Check("order", True, "kept")
    text = f"{facts.out_of_order:,} messages out of order without redelivery"
    if not facts.order_promised:
        return Check("order", True, f"{text}, which nobody promised here")
    return Check("order", None, text)


def check_stored(facts: Facts) -> Check:
    """The broker's own count lies between what it confirmed (or delivered to each subscriber) and what was sent.

    Many brokers keep none; then the ledger of what was sent and received stands alone, as it does in the other checks.
    """
    if facts.stored is None:
        return Check("broker's count", None, "not looked at: this broker keeps none", weighs=False)
    least, what = -(-(facts.received - facts.duplicated) // facts.subscribers), "received"
    if facts.acked is not None and facts.acked > least:
        least, what = facts.acked, "acked"
    if facts.stored < least:
        return Check("broker's count", False, f"stored {facts.stored:,}, but {least:,} were {what}")
    text = f"stored {facts.stored:,} of {facts.sent:,} sent"
    if facts.stored > facts.sent:
        return Check("broker's count", None, f"{text}: resent, or not of this trial")
    return Check("broker's count", True, text)


def check_traffic(facts: Facts) -> Check:
    """Something was sent and, with consumers, received inside a window that has a length."""
    if facts.window_s <= 0 or facts.sent == 0:
        return Check("traffic", False, "nothing was sent in the measured window")
    if facts.consumers and facts.received == 0:
        return Check("traffic", False, f"nothing of {facts.sent:,} messages was received")
    each = f" by {facts.subscribers} subscribers" if facts.subscribers > 1 else ""
    return Check("traffic", True, f"{facts.sent:,} sent, {facts.received:,} received{each}")


def check_errors(facts: Facts) -> Check:
    """Messages refused, or due and never sent, are part of a result but want an explanation before it is used."""
    expected = {"nack"} if facts.refused_by_limit is not None else set()  # `check_limits` tells of those
    seen = [f"{count:,} {name}" for name, count in sorted(facts.errors.items()) if count and name not in expected]
    return Check("errors", None if seen else True, ", ".join(seen) or "none")
