"""What travels from workers to the master comes out as it went in, and nothing else comes out of it."""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.agent import Report, Result
from loadgen.driver import Target
from loadgen.endpoint import Credentials, Endpoint, Tls
from loadgen.histogram import Histogram
from loadgen.ledger import ReceivedBook, SentBook, settle
from loadgen.locust.messages import PART_BYTES, pack, parts, unpack
from loadgen.locust.rows import Rows
from loadgen.payload import Parsed
from loadgen.recorder import Recorder
from loadgen.scenario import LogNormal, Message, Rate, Uniform
from loadgen.shares import Share

seqs = st.lists(st.integers(0, 200_000), min_size=1, max_size=60, unique=True)


def books(sent: int, confirmed: list[int], received: list[int]) -> tuple[SentBook, ReceivedBook]:
    """A producer's and a consumer's books of one trial."""
    mine = SentBook(3)
    mine.sent(sent)
    mine.confirmed(np.array([each for each in confirmed if each < sent], np.int64))
    mine.failed(np.array([sent - 1]), "nack")
    mine.due = range(2, sent)
    theirs = ReceivedBook()
    seq = np.array(received, np.int64)
    times = np.zeros(len(seq), np.int64)
    theirs.receive(Parsed(times, times, np.full(len(seq), 3), seq, np.arange(len(seq)) != 0), 0)
    return mine, theirs


@settings(max_examples=60)
@given(st.integers(1, 200_000), seqs, seqs)
def test_books_settle_to_the_same_account_after_their_journey(
    sent: int, confirmed: list[int], received: list[int]
) -> None:
    """Losses, duplicates, order and examples are those of the books as they were kept."""
    mine, theirs = books(sent, confirmed, received)
    result = Result("producer3", "producer", sent_book=mine, received_book=theirs, due=sent, cpu_at=[(0.5, 0.25)])
    result.per_second = {"sent": [1, 2, 3]}
    copy = unpack(pack(result))
    assert settle([copy.sent_book], [copy.received_book]) == settle([mine], [theirs])
    assert (copy.agent, copy.role, copy.due, copy.per_second) == ("producer3", "producer", sent, {"sent": [1, 2, 3]})
    assert [tuple(each) for each in copy.cpu_at] == result.cpu_at


@settings(max_examples=60)
@given(st.lists(st.integers(-5, 1 << 43), min_size=1, max_size=300))
def test_histograms_travel_without_loss(values: list[int]) -> None:
    """Every bucket, the extremes, the sum and what was out of range arrive."""
    recorder = Recorder(["e2e"], 0)
    recorder.record("e2e", 0, np.array(values, np.int64))
    before, after = Histogram(), Histogram()
    for delta, copied in zip(deltas := recorder.take(), unpack(pack(deltas)), strict=True):
        delta.add_to(before)
        copied.add_to(after)
    assert (before.counts == after.counts).all()
    assert (before.sum, before.out_of_range_count) == (after.sum, after.out_of_range_count)
    assert before.summary() == after.summary()


SETTINGS = {"prefetch": 100, "confirms": True, "flush_messages": None, "linger_ms": 0.5, "acks": "all"}
TLS = Tls(ca_file=Path("ca.pem"))
ENDPOINT = Endpoint("rabbitmq", (("127.0.0.1", 5672),), Credentials("me", "secret"), TLS, pids=(1, 2))


@pytest.mark.parametrize(
    "value",
    [
        Target(ENDPOINT, "queue", SETTINGS, group="g"),
        Message(size_bytes=Uniform(min_bytes=24, max_bytes=99), keys=5),
        Message(size_bytes=LogNormal(median_bytes=100, sigma=1.0), compressibility=0.5),
        Rate.ramp(10, 2_000),
        Rate.saturate(),
        {"deep": [{1: (2, {3})}, range(3), None, True, 1 << 62, 0.1, b"bytes", "text"]},
    ],
    ids=["target", "uniform", "lognormal", "ramp", "saturate", "plain"],
)
def test_what_agents_must_know_travels_whole(value: object) -> None:
    """Targets with their endpoint, messages, rates and plain values are equal to what was sent."""
    assert unpack(pack(value)) == value


def test_arrays_keep_their_type_and_shape() -> None:
    """An array that arrives can be written to, and is of the same kind."""
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    copy = unpack(pack({"flow": array}))["flow"]
    assert copy.dtype == array.dtype
    assert (copy == array).all()
    copy += 1


def test_only_what_is_named_travels() -> None:
    """Another class is refused where it is sent, and an unknown name where it is read."""
    with pytest.raises(TypeError, match="Share: does not travel"):
        pack(Share(1, 0, 1))
    foreign = msgpack.packb(msgpack.ExtType(1, msgpack.packb(["Popen", ["true"]])))
    for packed in (zlib.compress(foreign), b"nonsense", pickle.dumps({}), zlib.compress(b"\xc1")):
        with pytest.raises(ValueError, match="cannot be read"):
            unpack(packed)


def test_large_messages_go_in_pieces() -> None:
    """The pieces are small and together the whole."""
    data = np.random.default_rng(1).bytes(2 * PART_BYTES + 17)
    pieces = list(parts(data))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= PART_BYTES


@settings(max_examples=40)
@given(st.lists(st.integers(1_000, 10**10), min_size=1, max_size=400), st.integers(0, 5), st.booleans())
def test_locusts_rows_hold_every_message_and_times_of_three_digits(
    values: list[int], refused: int, confirms: bool
) -> None:
    """Counts are the ledger's, times within half a percent, and what has no time is counted apart."""
    recorder = Recorder(["ack"], 0)
    recorder.record("ack", 0, np.array(values, np.int64))
    report = Report("producer0", recorder.take(), {"acked": len(values), "sent": len(values) + 7})
    report.errors = {"nack": refused} if refused else {}
    rows = Rows()
    rows.add("producer", report, confirms=confirms)
    (row,) = rows.take()
    assert row["requests"] == (len(values) + refused if confirms else len(values) + 7)
    assert row["requests"] - row["untimed"] == sum(row["times"].values()) == len(values)
    assert sum(row["failures"].values()) == refused
    exact = np.sort(np.array(values) / 1e6)
    told = np.sort(np.repeat(list(row["times"]), list(row["times"].values())))
    assert np.abs(told / exact - 1).max() < 0.006
    assert (row["min_ms"], row["max_ms"]) == (exact[0], exact[-1])
    assert rows.take() == []
