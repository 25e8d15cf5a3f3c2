"""Produce requests and their answers in both versions, by the protocol's own schema."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.index import load_payload_module, load_request_schema
from kio.schema.errors import ErrorCode
from kio.schema.types import BrokerId, TopicName
from kio.serial import entity_reader, entity_writer
from kio.static.constants import EntityType
from kio.static.primitive import i32, i32Timedelta, i64

from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_produce import TRANSACTIONAL_VERSION, produce_format
from loadgen.drivers.wire.kafka_protocol import API_PRODUCE, PRODUCE_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSIONS = [PRODUCE_VERSION, TRANSACTIONAL_VERSION]
BOTH = pytest.mark.parametrize("version", VERSIONS)
TOPICS = st.text("abcdefghij-", min_size=1, max_size=249)
PARTITIONS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=200, unique=True)


@BOTH
@given(topic=TOPICS, own=st.none() | TOPICS, acks=st.sampled_from([-1, 0, 1]), partitions=PARTITIONS, data=st.data())
def test_a_request_says_what_it_should(
    version: int, topic: str, own: str | None, acks: int, partitions: list[int], data: st.DataObject
) -> None:
    """Read by the schema it has every batch, whatever their number, sizes and names; its size is told first."""
    sizes = st.integers(1, 300) | st.sampled_from([127, 128, 16_383, 16_384, 70_000])
    batches = [(each, bytes([each % 251]) * data.draw(sizes)) for each in partitions]
    made = produce_format(topic, own, acks, version).request(7, [(each, memoryview(batch)) for each, batch in batches])
    size, frame = b"".join(made)[:4], b"".join(made)[4:]
    assert int.from_bytes(size, "big") == len(frame)
    schema: Any = load_request_schema(API_PRODUCE, version)
    header, header_bytes = entity_reader(schema.__header_schema__)(frame, 0)
    request, body_bytes = entity_reader(schema)(frame, header_bytes)
    assert header_bytes + body_bytes == len(frame)
    assert (header.request_api_version, header.correlation_id, header.client_id) == (version, 7, "loadgen")
    assert (request.transactional_id, request.acks, request.timeout.total_seconds()) == (own, acks, 30)
    (sent,) = request.topic_data
    assert sent.name == topic
    assert [(each.index, bytes(each.records)) for each in sent.partition_data] == batches


@BOTH
@given(topic=TOPICS, partitions=PARTITIONS, data=st.data())
def test_an_answer_is_read_whatever_is_said_of_errors(
    version: int, topic: str, partitions: list[int], data: st.DataObject
) -> None:
    """Partition and code of each, also where a text, single records or another leader are told beside it."""
    codes = data.draw(st.lists(st.sampled_from([0, 6, 45, 51]), min_size=len(partitions), max_size=len(partitions)))
    told = list(zip(partitions, codes, strict=True))
    says_more = version == TRANSACTIONAL_VERSION and data.draw(st.booleans())
    frame = memoryview(answered(version, topic, told, says_more=says_more))
    assert produce_format(topic, "own", -1, version).answered(frame) == told


def answered(version: int, topic: str, told: Sequence[tuple[int, int]], *, says_more: bool) -> bytes:
    """A broker's answer to request 7, by the schema."""
    make: Any = load_payload_module(API_PRODUCE, version, EntityType.response)
    more: dict[str, Any] = {}
    if says_more:
        error = make.BatchIndexAndErrorMessage(batch_index=i32(3), batch_index_error_message="no")
        more = {
            "record_errors": (error,),
            "error_message": "no leader here",
            "current_leader": make.LeaderIdAndEpoch(leader_id=BrokerId(2), leader_epoch=i32(9)),
        }
    elif version == TRANSACTIONAL_VERSION:
        more = {"record_errors": ()}
    parts = tuple(
        make.PartitionProduceResponse(
            index=i32(partition), error_code=ErrorCode(code), base_offset=i64(5), log_append_time=None,
            log_start_offset=i64(0), **(more if code or not says_more else {"record_errors": ()}),
        )
        for partition, code in told
    )  # fmt: skip
    topics = (make.TopicProduceResponse(name=TopicName(topic), partition_responses=parts),)
    response = make.ProduceResponse(responses=topics, throttle_time=i32Timedelta.parse(timedelta()))
    body = io.BytesIO()
    body.write((7).to_bytes(4, "big") + b"\0" * response.__flexible__)
    entity_writer(type(response))(body, response)
    return body.getvalue()


def test_a_damaged_answer_is_an_error_of_the_connection() -> None:
    """One that says more of an error than there is."""
    whole = answered(TRANSACTIONAL_VERSION, "t", [(0, 6)], says_more=True)
    with pytest.raises(LinkError, match="its ProduceResponse cannot be read"):
        produce_format("t", "own", -1, TRANSACTIONAL_VERSION).answered(memoryview(whole[:-20]))
