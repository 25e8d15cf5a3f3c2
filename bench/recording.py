"""What recording and checking cost on one core: values and messages a second, medians of seven repeats.

    python bench/recording.py

Bars: recording at least 20 million values a second, stamping and parsing at least 10 million messages of 100 bytes.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import numpy as np

from loadgen.histogram import Histogram
from loadgen.ledger import ReceivedBook, SentBook
from loadgen.payload import Payloads
from loadgen.recorder import Recorder
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.payload import Parsed

REPEATS = 7
BATCH = 2_000
BATCHES = 500
SIZE_BYTES = 100
SECOND_NS = 1_000_000_000


def measure(what: str, bar_per_s: float | None, work: Callable[[], int]) -> None:
    """Print how many a second `work` does, which returns how many it did; the median and the range of all repeats."""
    rates = []
    for _ in range(REPEATS):
        begin_s = time.perf_counter()
        count = work()
        rates.append(count / (time.perf_counter() - begin_s))
    median = statistics.median(rates)
    bar = "" if bar_per_s is None else f"   bar {bar_per_s / 1e6:.0f}: {'kept' if median >= bar_per_s else 'MISSED'}"
    print(f"{what:<52} {median / 1e6:7.1f} M/s  ({min(rates) / 1e6:.1f} to {max(rates) / 1e6:.1f}){bar}")


def measure_recording() -> None:
    """Histogram and recorder, on log-normal durations around a millisecond."""
    rng = np.random.default_rng(1)
    values_ns = rng.lognormal(np.log(1e6), 1.0, BATCH * BATCHES).astype(np.int64)
    moments_ns = np.arange(BATCH * BATCHES) * 1_000

    def histogram() -> int:
        Histogram().add(values_ns)
        return len(values_ns)

    def record(batch: int) -> int:
        count = min(len(values_ns), batch * 20_000)
        recorder = Recorder(["e2e"], 0, SECOND_NS)
        for at in range(0, count, batch):
            recorder.record("e2e", moments_ns[at : at + batch], values_ns[at : at + batch])
        recorder.take()
        return count

    measure("Histogram.add", 20e6, histogram)
    measure(f"Recorder.record, {BATCH} a batch", 20e6, lambda: record(BATCH))
    measure("Recorder.record, 2 a batch", None, lambda: record(2))


def measure_payloads() -> Parsed:
    """Writing and reading back a batch; returns what was read."""
    payloads = Payloads(Message(size_bytes=SIZE_BYTES), seed=1, token=7)
    rows = np.empty((BATCH, SIZE_BYTES), np.uint8)
    intended_ns = np.arange(BATCH) * 1_000 + SECOND_NS
    sent_ns = int(intended_ns[-1]) + 5_000
    starts = np.arange(BATCH) * SIZE_BYTES

    def stamp() -> int:
        for number in range(BATCHES):
            payloads.write(rows, number * BATCH, intended_ns, sent_ns)
        return BATCH * BATCHES

    def parse() -> int:
        for _ in range(BATCHES):
            payloads.parse(rows.reshape(-1), starts, SIZE_BYTES)
        return BATCH * BATCHES

    measure(f"Payloads.write, {SIZE_BYTES} B", 10e6, stamp)
    measure(f"Payloads.parse, {SIZE_BYTES} B, every byte compared", 10e6, parse)
    payloads.write(rows, 0, intended_ns, sent_ns)
    return payloads.parse(rows.reshape(-1), starts, SIZE_BYTES)


def measure_ledger(parsed: Parsed) -> None:
    """The books of a producer and of a consumer, fed with batches like `parsed`."""
    seqs = parsed.seq.copy()

    def keep_received() -> int:
        book = ReceivedBook()
        for number in range(BATCHES):
            np.add(seqs, number * BATCH, out=parsed.seq)
            book.receive(parsed, 0, None)
        return BATCH * BATCHES

    def keep_sent() -> int:
        book = SentBook(0)
        for number in range(BATCHES):
            book.sent(BATCH)
            book.confirmed(seqs + number * BATCH)
        return BATCH * BATCHES

    measure("ReceivedBook.receive", None, keep_received)
    measure("SentBook.sent and confirmed", None, keep_sent)


def main() -> None:
    """Measure each step of a message's way through the generator."""
    measure_recording()
    measure_ledger(measure_payloads())


if __name__ == "__main__":
    main()
