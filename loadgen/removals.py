"""What a broker took out of its queues by itself: no loss, and no delivery either.

A queue may be full, a message too old, rejected or delivered too often. Where the trial has dead-letter queues they are
emptied in the end, and each message is known; else there is the broker's own count of each reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.abilities import REMOVALS, Removing
from loadgen.ledger import ReceivedBook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.driver import Admin, Target
    from loadgen.ledger import Account
    from loadgen.payload import Payloads

LIMITS = ("max_length", "max_length_bytes", "message_ttl_ms")


@dataclass(frozen=True, slots=True)
class Removals:
    """`counts` by reason, the broker's own (None: it does not tell); `dead` as `loadgen.ledger` has it takes it."""

    counts: Mapping[str, int] | None = None
    dead: Mapping[str, list[ReceivedBook]] | None = None

    @property
    def unreceived_msgs(self) -> int:
        """How many may have gone without a consumer having had them."""
        if self.dead is not None:
            return sum(book.received_count for reason in ("maxlen", "expired") for book in self.dead.get(reason, ()))
        return sum((self.counts or {}).get(reason, 0) for reason in ("maxlen", "expired"))


def limits(settings: Mapping[str, Any]) -> bool:
    """Whether a broker may take messages out of these queues that nobody received (a stream's are kept until read)."""
    return settings.get("queue_type") != "stream" and any(settings.get(knob) is not None for knob in LIMITS)


def refuses(settings: Mapping[str, Any]) -> bool:
    """Whether a full queue refuses messages."""
    return str(settings.get("overflow")).startswith("reject-publish")


def removals_of(admin: Admin, target: Target, payloads: Payloads) -> Removals:
    """What the broker has removed since the target was created; empties its dead-letter queues."""
    settings = target.settings
    if not isinstance(admin, Removing) or not (limits(settings) or settings.get("dead_letter")):
        return Removals()
    if not settings.get("dead_letter"):
        counts = admin.removed(target)
        if counts is not None and refuses(settings):
            counts = {**counts, "maxlen": 0}  # those were refused, and their producers know
        return Removals(counts)
    books = {reason: [ReceivedBook(str(each)) for each in range(target.subscribers)] for reason in REMOVALS}
    start = np.zeros(1, np.int64)
    for letter in admin.dead_letters(target):
        parsed = payloads.parse(np.frombuffer(letter.body, np.uint8), start, len(letter.body))
        books[letter.reason][letter.subscriber].receive(parsed, 0)
    return Removals(dead=books)


def removed_fields(account: Account, settings: Mapping[str, Any], removals: Removals) -> dict[str, Any]:
    """The fields of a trial's record; null is what does not exist or nobody knows."""
    fields: dict[str, Any] = {"dead_lettered": account.dead_lettered}
    if refuses(settings):
        fields["refused_by_limit"] = account.errors.get("nack", 0)
    if limits(settings) and (removals.counts is not None or removals.dead is not None):
        fields |= {"dropped_by_limit": account.dropped_by_limit, "expired": account.expired}
    return fields


def removed_msgs(record: Mapping[str, Any]) -> int:
    """How many messages of a trial its queues' limits kept from being received: dropped, expired or refused."""
    return sum(record.get(name) or 0 for name in ("dropped_by_limit", "expired", "refused_by_limit"))
