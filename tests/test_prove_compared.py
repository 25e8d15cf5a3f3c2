"""What PerfTest and EndToEndLatency print is read right, and tools that disagree fail the proof."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pytest
from prove import compared

from loadgen.errors import TrialError

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName

SIDES: tuple[Literal["less", "more"], ...] = ("less", "more")

PERF_TEST = """id: test-1, starting producer #0, channel #0
id: test-1, time 1.001 s, sent: 1009 msg/s, confirmed: 1008 msg/s, nacked: 0 msg/s, received: 1009 msg/s, \
min/median/75th/95th/99th consumer latency: 265/2471/2571/3079/34288 µs, confirm latency: 38/209/1420/2348/3134 µs
id: test-1, time 7.001 s, sent: 1000 msg/s, confirmed: 1001 msg/s, nacked: 0 msg/s, received: 999 msg/s, \
min/median/75th/95th/99th consumer latency: 158/160/179/698/1265 µs, confirm latency: 269/913/2567/7235/10716 µs
id: test-1, time 8.001 s, sent: 999 msg/s, confirmed: 1000 msg/s, nacked: 0 msg/s, received: 1001 msg/s, \
min/median/75th/95th/99th consumer latency: 180/170/674/2167/838 µs, confirm latency: 240/636/801/2099/8324 µs
id: test-1, time 9.001 s, sent: 1001 msg/s, confirmed: 1001 msg/s, nacked: 0 msg/s, received: 1000 msg/s, \
min/median/75th/95th/99th consumer latency: 180/150/674/2167/700 µs, confirm latency: 240/636/801/2099/8324 µs
id: test-1, time 9.402 s, sent: 401 msg/s, confirmed: 401 msg/s, nacked: 0 msg/s, received: 401 msg/s, \
min/median/75th/95th/99th consumer latency: 180/9999/674/2167/8382 µs, confirm latency: 240/636/801/2099/8324 µs
test stopped (Producer reached message limit, Consumer reached message limit)
id: test-1, sending rate avg: 1007 msg/s
"""
PACED = """1001 records sent, 200.1 records/sec (0.20 MB/sec), 2.4 ms avg latency, 306.0 ms max latency.
2000 records sent, 499.6 records/sec (0.49 MB/sec), 1.46 ms avg latency, 306.00 ms max latency, 1 ms 50th, 4 ms 95th, \
30 ms 99th, 306 ms 99.9th.
"""
END_TO_END = """0\t316.359196
1000\t1.1907560000000001
2000\t0.599735
3000\t0.942145
4000\t0.638753
Avg latency: 1.9145 ms
Percentiles: 50th = 0, 99th = 16, 99.9th = 54
"""


def ours(rate: float, median_ms: float) -> dict[str, Any]:
    """The fields of a trial's record that the proof reads."""
    sent = round(rate * 10)
    latency = {"p50": median_ms * 1e6, "p99": median_ms * 3e6, "mean": median_ms * 1.1e6}
    return {
        "warmup_s": 2.0,
        "window_s": 8.0,
        "sent": sent,
        "received": sent,
        "duplicated": 0,
        "goodput_msgs_per_s": rate,
        "resolution_ns": {"p50": median_ms * 5e4, "p99": median_ms * 1e5},
        "broker_counts": {"stored": sent, "depth_at_end": 0},
        "latency_ns": dict.fromkeys(("e2e", "e2e_service", "ack_service", "schedule_lag"), latency),
    }


@pytest.fixture
def rabbitmq() -> compared.Round:
    """A round in which both agree."""
    theirs = replace(compared.parse_perf_test(PERF_TEST, 12_000), left_msgs=0)
    return compared.Round(theirs, ours(1_000.0, 0.17), 0.06)


@pytest.fixture
def kafka() -> compared.Round:
    """The same for Kafka."""
    theirs = replace(
        compared.parse_end_to_end(END_TO_END, 5_000), stored_msgs=5_000, fetch_ms=0.1,
        rate_msgs_per_s=compared.parse_paced(PACED),
    )  # fmt: skip
    return compared.Round(theirs, ours(500.0, 0.5), 0.06)


def rounds_of(one: compared.Round, *factors: float) -> list[compared.Round]:
    """Rounds in which the tool's median was so many times what it was in this one."""
    return [replace(one, theirs=replace(one.theirs, median_ms=one.theirs.median_ms * each)) for each in factors]


VARIED = (0.96, 1.0, 1.04)


def test_perf_test_is_read_by_its_warm_whole_seconds(rabbitmq: compared.Round) -> None:
    """Not the JVM's first seconds, nor the last, cut one."""
    theirs = rabbitmq.theirs
    assert (theirs.rate_msgs_per_s, theirs.median_ms, theirs.percentiles_ms["p99"]) == (1_000.0, 0.16, 0.838)


def test_end_to_end_latency_is_read_in_whole_and_in_full(kafka: compared.Round) -> None:
    """Its own percentiles, its mean, and the median of every thousandth message but the first ones."""
    theirs = kafka.theirs
    assert theirs.percentiles_ms == {"p50": 0.0, "p99": 16.0, "p99.9": 54.0}
    assert (theirs.median_ms, theirs.mean_ms) == (0.638753, 1.9145)
    assert theirs.rate_msgs_per_s == 499.6  # of the whole run, not of its first second


def test_a_tool_that_said_nothing_is_told() -> None:
    """One line with the end of its output, for either."""
    with pytest.raises(TrialError, match=r"no second after 6 s: .*refused"):
        compared.parse_perf_test("connection refused", 1)
    with pytest.raises(TrialError, match=r"no latencies: .*0.5"):
        compared.parse_end_to_end("0\t0.5", 1)
    with pytest.raises(TrialError, match=r"no rate: .*refused"):
        compared.parse_paced("refused")


def test_tools_that_agree_pass(rabbitmq: compared.Round, kafka: compared.Round) -> None:
    """Counts, rates and medians side by side, every round in a table."""
    proof = compared.compare({"rabbitmq": rounds_of(rabbitmq, *VARIED), "kafka": rounds_of(kafka, *VARIED)})
    assert proof.passed, [row for row in proof.rows if not row.ok]
    assert len(proof.rows) == 10
    assert proof.notes[0].count("| PerfTest |") == 3
    assert proof.notes[3].count("| kafka-producer-perf-test | 500 |") == 3
    assert "calls its median 0 ms" in proof.notes[4]


def test_medians_agree_but_for_what_is_explained(rabbitmq: compared.Round, kafka: compared.Round) -> None:
    """Every difference has its bound on the page, and what was measured for it is in it."""
    for one in (rabbitmq, kafka):
        broker: BrokerName = "rabbitmq" if one is rabbitmq else "kafka"
        rounds = rounds_of(one, *VARIED)
        notes = " ".join(compared.compare({broker: rounds}).notes)
        for side in SIDES:
            for what, bound_ms in compared.explained_ms(broker, rounds, side):
                assert f"{what} (at most {bound_ms:.3f} ms)" in notes
    more = dict(compared.explained_ms("rabbitmq", rounds_of(rabbitmq, *VARIED), "more"))
    less = dict(compared.explained_ms("rabbitmq", rounds_of(rabbitmq, *VARIED), "less"))
    assert (0.17 + sum(more.values())) / 0.17 < 1.4
    assert (0.17 - sum(less.values())) / 0.17 > 0.75
    # A confirmation (0.5 ms) and a fetch (0.1) are longer than our service time (0.5) by a tenth of a millisecond.
    asked = [bound for what, bound in compared.explained_ms("kafka", [kafka] * 2, "more") if "fetch" in what]
    assert asked == [pytest.approx(0.1)]


def test_bounds_are_what_was_measured(rabbitmq: compared.Round) -> None:
    """Rounds that vary more, fewer rounds and a machine that wakes up later leave more room; equal rounds none."""

    def room_ms(rounds: list[compared.Round]) -> float:
        return sum(bound for side in SIDES for _, bound in compared.explained_ms("rabbitmq", rounds, side))

    calm = room_ms(rounds_of(rabbitmq, *VARIED))
    assert room_ms(rounds_of(rabbitmq, 0.9, 1.0, 1.1)) > calm
    assert room_ms(rounds_of(rabbitmq, *VARIED[:2])) > calm
    assert room_ms([replace(each, pass_ms=0.5) for each in rounds_of(rabbitmq, *VARIED)]) > calm
    (chance,) = [bound for what, bound in compared.explained_ms("rabbitmq", [rabbitmq] * 3, "less") if "chance" in what]
    assert chance == pytest.approx(0, abs=1e-12)


def test_one_round_proves_nothing(rabbitmq: compared.Round) -> None:
    """Without a spread nobody knows what chance may do: its row fails."""
    (row,) = [row for row in compared.compare({"rabbitmq": [rabbitmq]}).rows if not row.ok]
    assert row.name == "PerfTest: median beside ours"


def test_a_pass_to_another_process_takes_time() -> None:
    """It is measured, and its process ends."""
    assert 0 < compared.pass_ms() < 1_000


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"left_msgs": 1}, "left in its queue"),
        ({"rate_msgs_per_s": 970.0}, "rate beside ours"),
        ({"median_ms": 0.08}, "median beside ours"),
        ({"median_ms": 0.35}, "median beside ours"),
    ],
)
def test_a_perf_test_that_disagrees_fails(rabbitmq: compared.Round, change: dict[str, Any], failing: str) -> None:
    """One row each, by name."""
    others = replace(rabbitmq, theirs=replace(rabbitmq.theirs, **change))
    (row,) = (row for row in compared.compare({"rabbitmq": rounds_of(others, *VARIED)}).rows if not row.ok)
    assert failing in row.name


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"stored_msgs": 4_999}, "in its topic"),
        ({"percentiles_ms": {"p50": 2.0, "p99": 3.0}}, "whole ms"),
        ({"median_ms": 0.85}, "median beside ours"),
        ({"rate_msgs_per_s": 450.0}, "kafka-producer-perf-test: rate beside ours"),
    ],
)
def test_an_end_to_end_latency_that_disagrees_fails(
    kafka: compared.Round, change: dict[str, Any], failing: str
) -> None:
    """One row each, by name."""
    others = replace(kafka, theirs=replace(kafka.theirs, **change))
    (row,) = (row for row in compared.compare({"kafka": rounds_of(others, *VARIED)}).rows if not row.ok)
    assert failing in row.name


@pytest.mark.parametrize("change", [{"received": 4_999}, {"duplicated": 1}, {"sent": 4_999}])
def test_a_message_of_ours_that_is_missing_fails(kafka: compared.Round, change: dict[str, Any]) -> None:
    """Sent and received once must be rate × time, to the message."""
    others = replace(kafka, ours={**kafka.ours, **change})
    rows = compared.compare({"kafka": [others] * 2}).rows
    assert not rows[0].ok


def test_a_message_of_ours_that_the_broker_has_not_fails(kafka: compared.Round) -> None:
    """Kafka's own count decides."""
    others = replace(kafka, ours={**kafka.ours, "broker_counts": {"stored": 4_999}})
    (row,) = (row for row in compared.compare({"kafka": rounds_of(others, *VARIED)}).rows if not row.ok)
    assert row.name == "Kafka: messages in our topics"
