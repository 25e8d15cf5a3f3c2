"""One share group member's session with one broker: what it fetches, and what it says of what it got. Through kio.

A session's requests are numbered, and one is under way at a time. What a request says of records is known to have been
heard when it is answered; a session that is lost takes what was not yet said with it, and those records come again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from kio.schema.share_acknowledge.v2 import request as acknowledging
from kio.schema.share_fetch.v2 import request as fetching
from kio.schema.types import GroupId
from kio.static.primitive import i8, i32, i32Timedelta, i64

from loadgen.drivers.wire.framed import LinkError, wait

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kio.static.protocol import RequestPayload

    from loadgen.driver import Int64
    from loadgen.drivers.wire.kafka_protocol import Connection
    from loadgen.drivers.wire.kafka_share_member import ShareMember

MAX_FETCH_BYTES = 50 << 20  # the Java client's fetch.max.bytes
_LOOK_S = 0.02
_FINAL, _MAX_EPOCH = -1, 2**31 - 1
_ACQUIRE_MODES = {"batch_optimized": 0, "record_limit": 1}


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of the offsets first … last: one word for all of them, or one for each."""

    first: int
    last: int
    words: tuple[int, ...]


def said_of(offsets: Int64, words: Int64) -> list[Said]:
    """What is said of these offsets (ascending int64[n], a word each), in as few pieces as there are gaps."""
    if not len(offsets):
        return []
    cuts = np.flatnonzero(np.diff(offsets) != 1) + 1
    found = []
    for run, each in zip(np.split(offsets, cuts), np.split(words, cuts), strict=True):
        alike = bool((each == each[0]).all())
        found.append(Said(int(run[0]), int(run[-1]), (int(each[0]),) if alike else tuple(each.tolist())))
    return found


class ShareSession:
    """A member's session with the broker at the other end of `connection`."""

    def __init__(self, connection: Connection, member: ShareMember, settings: Mapping[str, Any]) -> None:
        self.connection = connection
        self._member = member
        self._settings = settings
        self._epoch = 0
        self._known: frozenset[int] = frozenset()
        self._unsaid: dict[int, list[Said]] = {}
        self._under_way: tuple[RequestPayload, int] | None = None
        self._wanted: frozenset[int] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._under_way is not None

    @property
    def has_unsaid(self) -> bool:
        """Whether something waits to be said."""
        return bool(self._unsaid)

    def say(self, partition: int, said: list[Said]) -> None:
        """Say this with the next request."""
        if said:
            self._unsaid.setdefault(partition, []).extend(said)

    def fetch(self, partitions: frozenset[int]) -> None:
        """Ask for records of these partitions, and say what is to be said."""
        # The first request of a session opens it and cannot say anything.
        unsaid = self._take_unsaid() if self._epoch else {}
        asked = (partitions - self._known) | unsaid.keys()
        topics = tuple(
            fetching.FetchPartition(
                partition_index=i32(each),
                acknowledgement_batches=tuple(
                    fetching.AcknowledgementBatch(**_batch(said)) for said in unsaid.get(each, [])
                ),
            )
            for each in sorted(asked)
        )
        forgotten = tuple(i32(each) for each in sorted(self._known - partitions))
        topic_id = self._member.topic_id
        settings = self._settings
        self._wanted = partitions
        self._post(
            fetching.ShareFetchRequest(
                group_id=GroupId(self._member.group),
                member_id=self._member.member_id,
                share_session_epoch=i32(self._epoch),
                max_wait=i32Timedelta.parse(timedelta(milliseconds=settings["fetch_max_wait_ms"])),
                min_bytes=i32(settings["fetch_min_bytes"]),
                max_bytes=i32(MAX_FETCH_BYTES),
                max_records=i32(settings["max_poll_records"]),
                batch_size=i32(settings["max_poll_records"]),
                share_acquire_mode=i8(_ACQUIRE_MODES[settings["share_acquire_mode"]]),
                topics=(fetching.FetchTopic(topic_id=topic_id, partitions=topics),) if topics else (),
                forgotten_topics_data=(
                    (fetching.ForgottenTopic(topic_id=topic_id, partitions=forgotten),) if forgotten else ()
                ),
            )
        )

    def acknowledge(self) -> None:
        """Say what is to be said, in a request of its own."""
        self._wanted = None
        self._post(self._acknowledgement(self._epoch))

    def _acknowledgement(self, epoch: int) -> acknowledging.ShareAcknowledgeRequest:
        partitions = tuple(
            acknowledging.AcknowledgePartition(
                partition_index=i32(partition),
                acknowledgement_batches=tuple(acknowledging.AcknowledgementBatch(**_batch(said)) for said in unsaid),
            )
            for partition, unsaid in sorted(self._take_unsaid().items())
        )
        topic = acknowledging.AcknowledgeTopic(topic_id=self._member.topic_id, partitions=partitions)
        return acknowledging.ShareAcknowledgeRequest(
            group_id=GroupId(self._member.group),
            member_id=self._member.member_id,
            share_session_epoch=i32(epoch),
            topics=(topic,) if partitions else (),
        )

    def _take_unsaid(self) -> dict[int, list[Said]]:
        """What waits to be said, of each partition in the order of its offsets: the broker refuses any other."""
        unsaid, self._unsaid = self._unsaid, {}
        return {partition: sorted(said, key=lambda each: each.first) for partition, said in unsaid.items()}

    def _post(self, request: RequestPayload) -> None:
        self._under_way = (request, self.connection.post(request))

    def hear(self) -> Any:
        """The answer to the request under way, once it has come, else None."""
        assert self._under_way is not None
        answer = self.connection.heard(*self._under_way)
        if answer is None:
            return None
        self._under_way = None
        if not answer.error_code:
            self._known = self._known if self._wanted is None else self._wanted
            self._epoch = 1 if self._epoch == _MAX_EPOCH else self._epoch + 1
        return answer

    def reopen(self) -> None:
        """The broker does not know this session any more: the next request begins another."""
        self._epoch, self._known = 0, frozenset()
        self._unsaid.clear()

    def close(self, timeout_s: float) -> None:
        """Say what is left and end the session, which releases what nothing was said of; never raises."""
        deadline_s = time.monotonic() + timeout_s
        with suppress(LinkError):
            while self._under_way is not None and self.hear() is None and time.monotonic() < deadline_s:
                wait([self.connection], _LOOK_S)
            if self._under_way is None and self._epoch:
                self.connection.call(self._acknowledgement(_FINAL), timeout_s)
        self.connection.close()


def _batch(said: Said) -> dict[str, Any]:
    return {
        "first_offset": i64(said.first),
        "last_offset": i64(said.last),
        "acknowledge_types": tuple(i8(each) for each in said.words),
    }
