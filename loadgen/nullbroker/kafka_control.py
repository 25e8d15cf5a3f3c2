"""The rare requests of Kafka's protocol for a null broker, through kio: what clients and admins ask before and beside.

One version of each, from before tagged fields, which is told to whoever asks for versions; a client that asks in a
newer way than that is told so in the oldest, as the protocol wants it.
"""

from __future__ import annotations

import io
from dataclasses import fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from kio.index import load_payload_module, load_request_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer
from kio.static.constants import EntityType
from kio.static.primitive import i32Timedelta

from loadgen.drivers.wire.kafka_protocol import API_FETCH, API_PRODUCE, FETCH_VERSION, PRODUCE_VERSION
from loadgen.nullbroker.kafka_log import Partition

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.nullbroker.kafka_log import Stock

HOST, NODE = "127.0.0.1", 1
_API_VERSIONS = 18
_LATEST = -1
_NOT_THROTTLED = i32Timedelta.parse(timedelta(0))


class Control:
    """The topics by name, each a list of its partitions, and the offsets that groups have committed."""

    def __init__(self, port: int, stock: Stock) -> None:
        self.topics: dict[str, list[Partition]] = {}
        self._stock = stock
        self._port = port
        self._committed: dict[str, dict[tuple[str, int], int]] = {}
        self._producer_ids = 0
        self._answers: dict[tuple[int, int], Callable[[Any, Any], Any]] = {
            (_API_VERSIONS, 0): self._api_versions,
            (2, 1): self._list_offsets,
            (2, 2): self._list_offsets,
            (3, 5): self._metadata,
            (8, 7): self._offset_commit,
            (9, 1): self._offset_fetch,
            (10, 2): self._find_coordinator,
            (19, 4): self._create_topics,
            (20, 3): self._delete_topics,
            (22, 1): self._init_producer_id,
            (24, 2): self._add_partitions_to_txn,
            (26, 2): self._end_txn,
            (32, 1): self._describe_configs,
            (42, 1): self._delete_groups,
        }

    def answer(self, api: int, version: int, body: bytes) -> bytes:
        """The response to a rare request; raises EOFError where a null broker does not know it."""
        is_too_new = api == _API_VERSIONS and version > 0
        version = 0 if is_too_new else version
        if (api, version) not in self._answers:
            raise EOFError
        make = _Make(load_payload_module(api, version, EntityType.response))
        if is_too_new:
            response = make.ApiVersionsResponse(error_code=ErrorCode.unsupported_version, api_keys=self._spoken(make))
        else:
            try:
                request, _ = entity_reader(load_request_schema(api, version))(body, 0)
            except Exception:  # noqa: BLE001 - kio has no common base for what a damaged frame raises
                raise EOFError from None
            response = self._answers[api, version](request, make)
        encoded = io.BytesIO()
        entity_writer(type(response))(encoded, response)
        return encoded.getvalue()

    def _spoken(self, make: Any) -> tuple[Any, ...]:
        spoken = [*self._answers, (API_PRODUCE, PRODUCE_VERSION), (API_FETCH, FETCH_VERSION)]
        return tuple(
            make.ApiVersion(
                api_key=api,
                min_version=min(version for each, version in spoken if each == api),
                max_version=max(version for each, version in spoken if each == api),
            )
            for api in sorted({api for api, _ in spoken})
        )

    def _api_versions(self, _: Any, make: Any) -> Any:
        return make.ApiVersionsResponse(error_code=ErrorCode.none, api_keys=self._spoken(make))

    def _metadata(self, request: Any, make: Any) -> Any:
        names = list(self.topics) if request.topics is None else [each.name for each in request.topics]
        return make.MetadataResponse(
            brokers=(make.MetadataResponseBroker(node_id=NODE, host=HOST, port=self._port),),
            cluster_id="null-broker",
            controller_id=NODE,
            topics=tuple(self._described(name, make) for name in names),
        )

    def _described(self, name: str, make: Any) -> Any:
        if name not in self.topics:
            unknown = ErrorCode.unknown_topic_or_partition
            return make.MetadataResponseTopic(error_code=unknown, name=name, partitions=())
        partitions = tuple(
            make.MetadataResponsePartition(
                error_code=ErrorCode.none,
                partition_index=number,
                leader_id=NODE,
                replica_nodes=(NODE,),
                isr_nodes=(NODE,),
            )
            for number in range(len(self.topics[name]))
        )
        return make.MetadataResponseTopic(error_code=ErrorCode.none, name=name, partitions=partitions)

    def _list_offsets(self, request: Any, make: Any) -> Any:
        topics = []
        for topic in request.topics:
            parts = []
            for each in topic.partitions:
                partition = self.partition(topic.name, each.partition_index)
                # Every offset from 0 on counts as there, so that what a topic took can be told from its ends.
                offset = -1 if partition is None else partition.end if each.timestamp == _LATEST else 0
                code = ErrorCode.unknown_topic_or_partition if partition is None else ErrorCode.none
                parts.append(
                    make.ListOffsetsPartitionResponse(
                        partition_index=each.partition_index, error_code=code, offset=offset
                    )
                )
            topics.append(make.ListOffsetsTopicResponse(name=topic.name, partitions=tuple(parts)))
        return make.ListOffsetsResponse(topics=tuple(topics))

    def partition(self, topic: str, number: int) -> Partition | None:
        """A partition by its topic's name and its number; None if there is none."""
        partitions = self.topics.get(topic, [])
        return partitions[number] if 0 <= number < len(partitions) else None

    def _create_topics(self, request: Any, make: Any) -> Any:
        results = []
        for each in request.topics:
            code = ErrorCode.topic_already_exists if each.name in self.topics else ErrorCode.none
            if code is ErrorCode.none:
                self.topics[each.name] = [Partition(self._stock) for _ in range(max(1, each.num_partitions))]
            results.append(make.CreatableTopicResult(name=each.name, error_code=code, error_message=None))
        return make.CreateTopicsResponse(topics=tuple(results))

    def _delete_topics(self, request: Any, make: Any) -> Any:
        results = []
        for name in request.topic_names:
            code = ErrorCode.none if name in self.topics else ErrorCode.unknown_topic_or_partition
            for partition in self.topics.pop(name, []):
                partition.delete()
            results.append(make.DeletableTopicResult(name=name, error_code=code))
        return make.DeleteTopicsResponse(responses=tuple(results))

    def _describe_configs(self, request: Any, make: Any) -> Any:
        results = tuple(
            make.DescribeConfigsResult(
                error_code=ErrorCode.none,
                error_message=None,
                resource_type=each.resource_type,
                resource_name=each.resource_name,
                configs=(),
            )
            for each in request.resources
        )
        return make.DescribeConfigsResponse(results=results)

    def _find_coordinator(self, _: Any, make: Any) -> Any:
        return make.FindCoordinatorResponse(
            error_code=ErrorCode.none, error_message=None, node_id=NODE, host=HOST, port=self._port
        )

    def _offset_commit(self, request: Any, make: Any) -> Any:
        committed = self._committed.setdefault(request.group_id, {})
        topics = []
        for topic in request.topics:
            for each in topic.partitions:
                committed[topic.name, each.partition_index] = each.committed_offset
            parts = tuple(
                make.OffsetCommitResponsePartition(partition_index=each.partition_index, error_code=ErrorCode.none)
                for each in topic.partitions
            )
            topics.append(make.OffsetCommitResponseTopic(name=topic.name, partitions=parts))
        return make.OffsetCommitResponse(topics=tuple(topics))

    def _offset_fetch(self, request: Any, make: Any) -> Any:
        committed = self._committed.get(request.group_id, {})
        topics = tuple(
            make.OffsetFetchResponseTopic(
                name=topic.name,
                partitions=tuple(
                    make.OffsetFetchResponsePartition(
                        partition_index=number,
                        committed_offset=committed.get((topic.name, number), -1),
                        metadata=None,
                        error_code=ErrorCode.none,
                    )
                    for number in topic.partition_indexes
                ),
            )
            for topic in request.topics
        )
        return make.OffsetFetchResponse(topics=topics)

    def _delete_groups(self, request: Any, make: Any) -> Any:
        results = []
        for name in request.groups_names:
            code = ErrorCode.none if self._committed.pop(name, None) is not None else ErrorCode.group_id_not_found
            results.append(make.DeletableGroupResult(group_id=name, error_code=code))
        return make.DeleteGroupsResponse(results=tuple(results))

    def _init_producer_id(self, _: Any, make: Any) -> Any:
        self._producer_ids += 1
        return make.InitProducerIdResponse(error_code=ErrorCode.none, producer_id=self._producer_ids, producer_epoch=0)

    def _add_partitions_to_txn(self, request: Any, make: Any) -> Any:
        topics = []
        for topic in request.v3_and_below_topics:
            parts = tuple(
                make.AddPartitionsToTxnPartitionResult(partition_index=each, partition_error_code=ErrorCode.none)
                for each in topic.partitions
            )
            topics.append(make.AddPartitionsToTxnTopicResult(name=topic.name, results_by_partition=parts))
        return make.AddPartitionsToTxnResponse(results_by_topic_v3_and_below=tuple(topics))

    def _end_txn(self, _: Any, make: Any) -> Any:
        # Nothing marks its end: readers get all that was written, as if every transaction were committed.
        return make.EndTxnResponse(error_code=ErrorCode.none)


class _Make:
    """Makes a schema's entities by name; what its version says of throttling is that there is none."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        entity = getattr(self._module, name)
        has_throttle = any(each.name == "throttle_time" for each in fields(entity))
        always = {"throttle_time": _NOT_THROTTLED} if has_throttle else {}
        return lambda **values: entity(**always, **values)
