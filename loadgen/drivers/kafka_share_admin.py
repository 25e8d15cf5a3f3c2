"""A share group's control plane: its configuration on the broker, and how far it has come. Through kio, rare frames.

A group's own configuration is kept under its name before and after it has members. Two of its defaults are changed for
every group: it would begin at the end of the topic, and give members that join within a second of each other their
partitions only with their next heartbeat, five seconds later. The same wait for a group's very first member, while the
broker makes its state, is over before a trial begins (`begin`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kio.schema.describe_configs.v1.request import DescribeConfigsRequest, DescribeConfigsResource
from kio.schema.describe_share_group_offsets.v1.request import (
    DescribeShareGroupOffsetsRequest,
    DescribeShareGroupOffsetsRequestGroup,
    DescribeShareGroupOffsetsRequestTopic,
)
from kio.schema.errors import ErrorCode
from kio.schema.incremental_alter_configs.v0.request import (
    AlterableConfig,
    AlterConfigsResource,
    IncrementalAlterConfigsRequest,
)
from kio.schema.types import GroupId, TopicName
from kio.static.primitive import i8, i32

from loadgen.drivers.kafka_asking import Asking
from loadgen.drivers.kafka_config import SHARE_GROUPS
from loadgen.drivers.wire.kafka_cluster import Cluster
from loadgen.drivers.wire.kafka_protocol import feature_levels
from loadgen.drivers.wire.kafka_share_member import ShareMember
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.endpoint import Endpoint

FEATURE = "share.version"
GROUP_KNOBS = {
    "isolation_level": "share.isolation.level",
    "share_delivery_count_limit": "share.delivery.count.limit",
    "share_partition_max_record_locks": "share.partition.max.record.locks",
    "share_record_lock_duration_ms": "share.record.lock.duration.ms",
}
_GROUP, _SET, _DELETE = i8(32), i8(0), i8(1)  # a kind of resource; what to do with a value


class ShareGroups:
    """Configures and watches share groups of one cluster; connects for each question."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._asking = Asking(endpoint)

    def features(self) -> dict[str, int]:
        """The cluster's feature levels, as a broker tells them."""
        return self._asking.until("no features are told", lambda: feature_levels(self._endpoint, self._endpoint.hosts))

    def check(self) -> None:
        """BrokerError in one line where the cluster has no share groups."""
        level = self.features().get(FEATURE, 0)
        if level < 1:
            raise BrokerError(
                f"kafka at {self._endpoint.address}: share groups are off ({FEATURE} = {level}); expected Kafka 4.2 or "
                f"later with {FEATURE} = 1"
            )

    def configure(self, group: str, settings: Mapping[str, Any]) -> None:
        """Have the group begin at the beginning, at once, and set what its knobs say."""
        told = SHARE_GROUPS | {name: settings.get(knob) for knob, name in GROUP_KNOBS.items()}
        self._alter(group, {name: str(value) for name, value in told.items() if value is not None})

    def begin(self, group: str, topic: str) -> None:
        """Have the broker make the state of each partition, so that the first member need not wait for that."""
        ShareMember(Cluster(self._endpoint, topic), group).leave()

    def delete(self, group: str) -> None:
        """Remove the group and its configuration; what is gone already is no error."""
        self._asking.delete_group(group, f"share group {group} cannot be deleted")
        self._alter(group, dict.fromkeys([*SHARE_GROUPS, *GROUP_KNOBS.values()]))

    def _alter(self, group: str, values: Mapping[str, str | None]) -> None:
        configs = tuple(
            AlterableConfig(name=name, config_operation=_DELETE if value is None else _SET, value=value)
            for name, value in values.items()
        )
        resource = AlterConfigsResource(resource_type=_GROUP, resource_name=group, configs=configs)
        what = f"share group {group} cannot be configured"

        def ask() -> None:
            answer = self._asking.any_node(IncrementalAlterConfigsRequest(resources=(resource,), validate_only=False))
            self._asking.demand(what, answer.responses[0].error_code, answer.responses[0].error_message)

        self._asking.until(what, ask)

    def configuration(self, group: str) -> dict[str, str]:
        """The group's configuration as the broker tells it."""
        resource = DescribeConfigsResource(resource_type=_GROUP, resource_name=group, configuration_keys=None)
        what = f"share group {group} tells no configuration"

        def ask() -> dict[str, str]:
            (result,) = self._asking.any_node(DescribeConfigsRequest(resources=(resource,))).results
            self._asking.demand(what, result.error_code, result.error_message)
            return {each.name: each.value for each in result.configs if not each.is_sensitive}

        return self._asking.until(what, ask)

    def lags(self, group: str, topic: str, partitions: Sequence[int]) -> dict[int, int]:
        """How many records of each partition the group is not done with; none of one that it has not begun with."""
        wanted = DescribeShareGroupOffsetsRequestTopic(
            topic_name=TopicName(topic), partitions=tuple(i32(each) for each in partitions)
        )
        asked = DescribeShareGroupOffsetsRequestGroup(group_id=GroupId(group), topics=(wanted,))
        what = f"share group {group} tells no offsets"

        def ask() -> dict[int, int]:
            (told,) = self._asking.coordinator(group, DescribeShareGroupOffsetsRequest(groups=(asked,))).groups
            if told.error_code == ErrorCode.group_id_not_found:
                return {}
            self._asking.demand(what, told.error_code, told.error_message)
            parts = [each for each_topic in told.topics for each in each_topic.partitions]
            return {int(each.partition_index): int(each.lag) for each in parts if each.lag >= 0}

        return self._asking.until(what, ask)
