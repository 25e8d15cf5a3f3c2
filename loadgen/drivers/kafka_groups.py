"""A consumer group's control plane: its members, what it has committed, its end. Through kio, rare frames.

Not through librdkafka, which ends the whole process where the node goes that it asked for a group (an assertion in
`rd_kafka_enq_once_del_source_return`, its issue 4605), or is not ready to coordinate yet (it hands the retry of
ListConsumerGroupOffsets to a consumer group that an admin client does not have; 2.16).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kio.schema.consumer_group_describe.v0.request import ConsumerGroupDescribeRequest
from kio.schema.describe_groups.v1.request import DescribeGroupsRequest
from kio.schema.errors import ErrorCode
from kio.schema.share_group_describe.v1.request import ShareGroupDescribeRequest
from kio.schema.types import GroupId

from loadgen.drivers.kafka_asking import PATIENCE_S, Asking
from loadgen.drivers.wire.kafka_cluster import committed_in, offset_fetch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadgen.endpoint import Endpoint

_DESCRIBE: dict[str, type[ConsumerGroupDescribeRequest | ShareGroupDescribeRequest]] = {
    "consumer": ConsumerGroupDescribeRequest,
    "share": ShareGroupDescribeRequest,
}
FIRST_S = 30.0  # the first question for a group makes the topic of all groups, on each node of a cluster


class Groups:
    """Watches and deletes consumer groups of one cluster, of the classic protocol and of the one of KIP-848.

    Of share groups it counts the members as well; what else is theirs, `ShareGroups` does.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._asking = Asking(endpoint)

    def members(self, group: str, protocol: str, patience_s: float = PATIENCE_S) -> int:
        """How many members the group has, 0 where nobody ever joined; `protocol` as `group_protocol`, or share."""
        what = f"group {group} cannot be described"

        def ask() -> int:
            if protocol in _DESCRIBE:
                request = _DESCRIBE[protocol](group_ids=(GroupId(group),), include_authorized_operations=False)
                (told,) = self._asking.coordinator(group, request).groups
                if told.error_code == ErrorCode.group_id_not_found:
                    return 0
                self._asking.demand(what, told.error_code, told.error_message)
            else:
                (told,) = self._asking.coordinator(group, DescribeGroupsRequest(groups=(GroupId(group),))).groups
                self._asking.demand(what, told.error_code)
            return len(told.members)

        return self._asking.until(what, ask, patience_s)

    def committed(
        self, topic: str, group: str, partitions: Iterable[int], patience_s: float = PATIENCE_S
    ) -> dict[int, int]:
        """The offsets that the group has committed, by partition; none of a partition of which it has not."""
        what = f"group {group} tells no offsets"
        request = offset_fetch(topic, group, partitions)
        return self._asking.until(
            what,
            lambda: committed_in(
                self._asking.coordinator(group, request), lambda code: self._asking.demand(what, code)
            ),
            patience_s,
        )

    def delete(self, group: str) -> None:
        """Remove the group with what it has committed; one that is gone already, or has members, is no error."""
        self._asking.delete_group(group, f"group {group} cannot be deleted", FIRST_S)
