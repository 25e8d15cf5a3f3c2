"""Workers that are not alike: how long each takes, who gets a message from which broker, and how that is told."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import trial as invented

from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.agent import Result
from loadgen.fairness import jain_index, shared_work
from loadgen.judging import describe
from loadgen.load import apply_sets, parse_set
from loadgen.locust.messages import pack, unpack
from loadgen.plan import Profile, make_plan
from loadgen.record import completed, flat
from loadgen.report.points import comparisons
from loadgen.report.work import notes
from loadgen.think import Think
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.plan import Trial

SHORT = Profile("test", warmup_s=0.25, duration_s=0.75, repeats=1)
AMOUNTS = st.lists(st.integers(0, 10**12), min_size=2, max_size=9).filter(any)


@given(AMOUNTS, st.floats(1e-3, 1e3), st.randoms(use_true_random=False))
def test_jain_s_index_is_of_shares_alone(amounts: list[int], factor: float, random: Any) -> None:
    """Between 1/n and 1, whatever the unit, whoever comes first."""
    index = jain_index(amounts)
    assert index is not None
    assert 1 / len(amounts) - 1e-9 <= index <= 1
    shuffled = [factor * amount for amount in amounts]
    random.shuffle(shuffled)
    assert jain_index(shuffled) == pytest.approx(index)


@given(st.integers(1, 9), st.integers(0, 9), st.floats(1e-200, 1e200))
def test_jain_s_index_is_the_share_of_those_who_share_alike(having: int, without: int, amount: float) -> None:
    """Of n, k who have as much and others who have nothing: k/n, as its authors say; of one, nobody shares."""
    index = jain_index([amount] * having + [0.0] * without)
    assert index == (pytest.approx(having / (having + without)) if having + without > 1 else None)
    assert jain_index([0.0] * without) is None


@given(st.integers(2, 20), st.floats(1, 100), st.floats(0.1, 1e3))
def test_unlike_workers_carry_as_much_as_like_ones(count: int, spread: float, mean_ms: float) -> None:
    """Each is slower than the one before by one factor, the last by `spread` than the first; together as before."""
    times = [Think("exponential", mean_ms, spread).of(index, count).mean_ms for index in range(count)]
    assert times[-1] / times[0] == pytest.approx(spread)
    factors = [after / before for before, after in pairwise(times)]
    assert factors == pytest.approx([factors[0]] * (count - 1))
    assert sum(1 / each for each in times) == pytest.approx(count / mean_ms)
    assert Think("fixed", mean_ms, spread).of(count + 7, count).mean_ms == pytest.approx(times[-1])
    assert Think("fixed", mean_ms, spread).of(0, 1) == Think("fixed", mean_ms)


def scenario(broker: BrokerName, part: Any, **given: Any) -> Scenario:
    """Two workers, the second of which takes longer."""
    values = {"rate": Rate.fixed(100), "consumers": 2, "message": Message(size_bytes=200), **given}
    return Scenario(name="unlike", question="?", **values, **{broker: part})


def planned(broker: BrokerName, part: Any, **given: Any) -> Trial:
    """Its only trial."""
    return make_plan([scenario(broker, part, **given)], SHORT, brokers=(broker,)).trials[0]


def test_the_spread_is_swept_recorded_and_travels() -> None:
    """`--set think_spread=1,4` is two points; a record says it, a run repeats it, and a worker elsewhere hears it."""
    swept = apply_sets(scenario("rabbitmq", RabbitMQ(), think_ms=2), [parse_set("think_spread=1,4")])
    trials = make_plan([Scenario(**swept.model_dump())], SHORT, brokers=("rabbitmq",)).trials
    assert sorted(each.think.spread for each in trials) == [1, 4]
    assert len({each.id for each in trials}) == 2
    (slow,) = [each for each in trials if each.think.spread == 4]
    assert describe(slow)["think"] == {"kind": "fixed", "mean_ms": 2.0, "spread": 4.0}
    assert unpack(pack(slow.think)) == slow.think
    assert completed({"id": "old", "think": {"kind": "fixed", "mean_ms": 2.0}})["think"]["spread"] == 1


def result(number: int, subscriber: int, counts: list[int], busy_ms: list[int], think_ms: float = 2.0) -> Result:
    """What a consumer told of each second of a window."""
    per_second = {"received": counts, "busy_ns": [each * 1_000_000 for each in busy_ms]}
    return Result(f"consumer{number}", "consumer", subscriber=subscriber, think_ms=think_ms, per_second=per_second)


def test_shares_are_of_the_window_and_of_each_subscriber() -> None:
    """What came in seconds that turned out to be warm-up counts for nothing; the least fair subscriber is told."""
    trial = planned("rabbitmq", RabbitMQ(), subscribers=2, think_ms=2)
    told = [
        result(3, 1, [9, 1, 2], [0, 0, 0]),
        result(2, 1, [0, 4, 5], [0, 500, 500]),
        result(0, 0, [70, 5, 5], [99, 10, 10], 1.0),
        result(1, 0, [0, 5, 5], [0, 30, 30]),
    ]
    found = shared_work(trial, told, cut_s=1)
    assert [each["agent"] for each in found["work"]] == ["consumer0", "consumer1", "consumer2", "consumer3"]
    assert [each["msgs"] for each in found["work"]] == [10, 10, 9, 3]
    assert [each["busy_s"] for each in found["work"]] == [0.02, 0.06, 1.0, 0.0]
    assert [each["think_ms"] for each in found["work"]] == [1.0, 2.0, 2.0, 2.0]
    assert found["fairness"] == {"of_msgs": pytest.approx(144 / 180), "of_busy_time": pytest.approx(0.5)}
    assert shared_work(trial, told[1:], cut_s=1) == {}, "one did not live to tell"
    row = flat(completed({**invented("rabbitmq"), **found}))
    assert (row["fairness_of_msgs"], row["fairness_of_busy_time"]) == (pytest.approx(0.8), pytest.approx(0.5))


def worked(spread: float, *workers: tuple[float, int, float], **given: Any) -> dict[str, Any]:
    """A complete record in which consumers of (think_ms, messages, busy_s) shared four seconds."""
    work: list[dict[str, Any]] = [
        {"agent": f"consumer{n}", "subscriber": 0, "think_ms": think_ms, "msgs": msgs, "busy_s": busy_s}
        for n, (think_ms, msgs, busy_s) in enumerate(workers)
    ]
    columns = [[each[name] for each in work] for name in ("msgs", "busy_s")]
    fairness = dict(zip(("of_msgs", "of_busy_time"), map(jain_index, columns), strict=True))
    think = {"kind": "fixed", "mean_ms": 4.0, "spread": spread}
    about = {"think": think, "consumers": len(work), "work": work, "fairness": fairness}
    return completed({**invented("rabbitmq"), **about, **given})


def told_of(*records: dict[str, Any]) -> str:
    """The report's sentence about these repeats of one point; empty where it has none."""
    (comparison,) = comparisons(records)
    return " ".join(notes(comparison.points))


def test_the_report_says_who_did_the_work() -> None:
    """Where workers are not alike: both ends, and whether the slow one was the limit; else only uneven shares."""
    waiting = told_of(
        worked(4, (2.5, 300, 0.8), (10, 380, 3.92)),
        worked(4, (2.5, 300, 0.8), (10, 380, 3.92), repeat=2, id="2"),
    )
    assert waiting == (
        "RabbitMQ (amqp): who did the work: of 2 consumers the fastest (2.50 ms a message) had 44.1 % of the messages "
        "and was busy for 20.0 % of the time and the slowest (10.0 ms a message) had 55.9 % of the messages and was "
        "busy for 98.0 % of the time: one was the limit while another had time left; fairness (Jain’s index, 1 is "
        "even) 0.99 of messages, 0.70 of busy time"
    )
    assert "limit" not in told_of(worked(4, (2.5, 300, 0.8), (10, 100, 1.0)))
    assert told_of(worked(1, (4, 100, 0.4), (4, 300, 1.2))) == (
        "RabbitMQ (amqp): who did the work: 2 consumers had between 25.0 % and 75.0 % of the messages; fairness "
        "(Jain’s index, 1 is even) 0.80 of messages"
    )
    assert told_of(worked(1, (4, 100, 0.4), (4, 110, 0.44))) == ""
    assert told_of(worked(4, (2.5, 300, 0.8), (10, 3, 0.1), membership={"joins_at_s": 2.0, "leaves_at_s": None})) == ""


DRAINED: dict[str, Any] = {"rate": Rate.saturate(), "backlog_msgs": 48, "duration_s": 30, "think_ms": 16}
"""A backlog is there for both workers, of 9 ms a message and 72 ms, and all of it is counted, however long it takes."""


def shares(endpoint: Endpoint, part: Any, **given: Any) -> tuple[tuple[int, int], list[int]]:
    """How many messages the fast and the slow one of two workers had in the window of a trial on a real broker.

    And, in no order, how many each had in the whole trial, by its book.
    """
    trial = planned(endpoint.broker, part, think_spread=8, **given)
    record, outcome = run_trial(trial, Setting(endpoint, lambda _: None))
    assert outcome.error is None, outcome.traceback
    assert (record["received"], record["lost"], record["duplicated"]) == (record["sent"], 0, 0)
    fast, slow = record["work"]
    assert slow["think_ms"] / fast["think_ms"] == pytest.approx(8)
    assert fast["busy_s"] == pytest.approx(fast["msgs"] * fast["think_ms"] / 1e3, rel=0.3)  # the window may cut a task
    books = [each.received_book.received_count for each in outcome.results if each.received_book is not None]
    return (fast["msgs"], slow["msgs"]), books


@pytest.mark.parametrize(
    ("broker", "part"),
    [
        ("rabbitmq", RabbitMQ(exchange="direct", prefetch=1, ack_every=1)),
        ("kafka", Kafka(group="share", share_acquire_mode="record_limit", max_poll_records=1)),
    ],
    ids=["prefetch 1", "share group"],
)
def test_who_asks_for_one_at_a_time_gets_what_it_can_do(
    endpoints: dict[BrokerName, Endpoint], broker: BrokerName, part: Any
) -> None:
    """RabbitMQ with prefetch 1 and a share group leave work to whoever is free: the fast one does most of it."""
    (fast, slow), books = shares(endpoints[broker], part, **DRAINED)
    assert sorted(books) == sorted([fast, slow])
    assert fast + slow == 48
    assert fast >= 2 * slow > 0


def test_a_member_of_a_group_gets_what_its_partitions_hold(kafka_endpoint: Endpoint) -> None:
    """However slow it is, and though the other one idles."""
    assert shares(kafka_endpoint, Kafka(partitions=2, partitioner="round_robin"), **DRAINED)[0] == (24, 24)


def test_who_has_room_is_dealt_its_turn(rabbitmq_endpoint: Endpoint) -> None:
    """RabbitMQ deals in turn to all whose prefetch has room: with much of it, the slow one gets as much as the fast.

    It is given 75 messages of 18 ms in a second, which it ends later: with prefetch 1 it would have had fewer.
    """
    part = RabbitMQ(exchange="direct", prefetch=1_000, ack_every=1)
    _, books = shares(rabbitmq_endpoint, part, rate=Rate.fixed(150), think_ms=4)
    assert sum(books) == 150
    assert min(books) >= 70
