"""How long is a Kafka transaction, by how soon after the one before its first batch is sent?

    python bench/transaction_pause.py [--transactions 200] [--rounds 3]

With transaction.version 2 (KIP-890) the broker answers EndTxn before the marks of its end are written. A batch of the
next transaction that comes meanwhile is tried again by the broker itself, after its
add.partitions.to.txn.retry.backoff.ms (20 ms as shipped). The wire driver's pause after each end is varied here, in
turns: what a pause costs, and what it saves. One producer on an idle broker, transactions of ten messages, each begun
when the one before was heard of.
"""

from __future__ import annotations

import argparse
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np

from loadgen import Message
from loadgen.brokers import open_brokers
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.wire import kafka_transactions
from loadgen.knobs import resolve
from loadgen.payload import Payloads

if TYPE_CHECKING:
    from loadgen.endpoint import Endpoint

PAUSES_MS = (0.0, 0.25, 0.5, 1.0, 2.0, 5.0)
MSGS, SIZE_BYTES = 10, 1_024
HELD_MS = 20.0
WAIT_S = 10.0


def took_ms(endpoint: Endpoint, transactions: int) -> list[float]:
    """How long each of so many transactions took from its first message to the answer to its end."""
    settings = resolve("kafka", {"transaction_msgs": MSGS}, "broker", "default")
    target = Target(endpoint, f"pause-{uuid.uuid4().hex[:12]}", settings)
    driver, payloads = load_driver("kafka"), Payloads(Message(size_bytes=SIZE_BYTES), seed=1, token=2, producer=0)
    found = []
    with closing(driver.admin(endpoint)) as admin:
        admin.create(target)
        with closing(driver.producer(target, payloads)) as producer:
            for first in range(0, transactions * MSGS, MSGS):
                begin_ns, settled = time.monotonic_ns(), 0
                producer.send(first, np.full(MSGS, begin_ns), begin_ns)
                while settled < MSGS:
                    settled += sum(len(each.seqs) for each in producer.poll(WAIT_S))
                found.append((time.monotonic_ns() - begin_ns) / 1e6)
        admin.delete(target)
    return found


def main() -> None:
    """Print a line a pause."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--transactions", type=int, default=200, help="in each round, of each pause")
    parser.add_argument("--rounds", type=int, default=3, help="turns")
    arguments = parser.parse_args()
    found: dict[float, list[float]] = {pause_ms: [] for pause_ms in PAUSES_MS}
    with open_brokers("local", ("kafka",), progress=print) as endpoints:
        took_ms(endpoints["kafka"], arguments.transactions)  # warm
        for _ in range(arguments.rounds):
            for pause_ms in PAUSES_MS:
                with patch.object(kafka_transactions, "PAUSE_NS", int(pause_ms * 1e6)):
                    found[pause_ms] += took_ms(endpoints["kafka"], arguments.transactions)
    for pause_ms, values in found.items():
        told = np.array(values)
        print(
            f"pause {pause_ms:4g} ms: median {np.median(told):6.2f} ms, mean {told.mean():6.2f} ms, "
            f"{100 * (told >= HELD_MS).mean():4.1f} % held for 20 ms ({len(told)} transactions)"
        )


if __name__ == "__main__":
    main()
