"""Who leads a topic's partitions, and where these begin and end: asked of whichever node answers. Through kio.

Not through librdkafka, which waits for the node that it was talking to: whoever asks it each second hears nothing for
ten seconds and more after that node was killed, though others know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kio.schema.errors import ErrorCode

from loadgen.drivers.kafka_asking import PATIENCE_S, Asking
from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_cluster import addresses_in, leaders_in, list_offsets, offsets_in, topic_metadata
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kio.static.primitive import i64

    from loadgen.endpoint import Endpoint

    Led = Mapping[int, tuple[int, str, int]]  # by partition: its leader's number, host and port

ANSWER_S = 2.0  # a node that lives answers these in milliseconds; one that stands still (SIGSTOP) must not hold us up


class UnknownTopicError(BrokerError):
    """The node that was asked knows no such topic, or not yet."""


class Topics:
    """Asks for leaders and offsets of one cluster's topics; remembers who led each, and asks that one first."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._address = endpoint.address
        self._asking = Asking(endpoint, ANSWER_S)
        self._led: dict[str, Led] = {}

    def forget(self, topic: str) -> None:
        """A topic that is no more."""
        self._led.pop(topic, None)

    def leaders(self, topic: str, patience_s: float = PATIENCE_S) -> dict[int, int]:
        """The number of each partition's leader now; BrokerError where one has had none for so long."""
        led = self._asking.until(f"topic {topic} tells no leaders", lambda: self._ask_led(topic), patience_s)
        return {partition: number for partition, (number, _, _) in led.items()}

    def offsets(self, topic: str, at: i64, patience_s: float = PATIENCE_S) -> dict[int, int]:
        """The offset of each partition at a time or an end (see `list_offsets`), by its leader's word.

        BrokerError where a partition has had none that answers for so long; with a patience of 0 each is asked once,
        and once more where another leads by now.
        """
        what = f"topic {topic} tells no offsets"
        return self._asking.until(what, lambda: self._ask_offsets(topic, at, what), patience_s)

    def _ask_led(self, topic: str) -> Led:
        answer = self._asking.any_node(topic_metadata(topic))
        code = int(answer.topics[0].error_code)
        if code == ErrorCode.unknown_topic_or_partition and topic not in self._led:
            raise UnknownTopicError(f"kafka at {self._address}: there is no topic {topic}")
        self._asking.demand(f"topic {topic} is not described", code)
        leaders, lost = leaders_in(answer)
        if lost:
            raise LinkError(f"no leader for partition {lost[0]}")
        there = addresses_in(answer)
        return {partition: (number, *there[number]) for partition, number in leaders.items()}

    def _ask_offsets(self, topic: str, at: i64, what: str) -> dict[int, int]:
        known, failure = self._led.get(topic), None
        if known is not None:
            try:
                return self._offsets_of(topic, known, at, what)
            except LinkError as error:  # a leader has gone, or is another by now
                failure = error
        led = self._ask_led(topic)
        if failure is not None and led == known:
            raise failure
        self._led[topic] = led
        return self._offsets_of(topic, led, at, what)

    def _offsets_of(self, topic: str, led: Led, at: i64, what: str) -> dict[int, int]:
        """Of the leaders that are given, each asked once."""
        by_leader: dict[tuple[int, str, int], list[int]] = {}
        for partition, leader in led.items():
            by_leader.setdefault(leader, []).append(partition)
        found: dict[int, int] = {}
        for (_, host, port), partitions in by_leader.items():
            answer = self._asking.node(host, port, list_offsets(topic, partitions, at))
            found |= offsets_in(answer, lambda code: self._asking.demand(what, code))
        return found
