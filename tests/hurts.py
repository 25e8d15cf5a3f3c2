"""What tests of faults share: a small load on both brokers, one trial of it and its promise, a run of records alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from patience import until

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.board import Cell
from loadgen.brokers.faults import Injector
from loadgen.plan import Profile, make_plan
from loadgen.record import completed
from loadgen.trial import Live, Setting, run_trial

if TYPE_CHECKING:
    from loadgen import At
    from loadgen.board import Board
    from loadgen.brokers.faults import Done
    from loadgen.endpoint import Endpoint
    from loadgen.runs import Run

LONG_S = 300.0  # of a window that ends before
FLOWS_MSGS = 100  # that are received, and confirmed, before load is said to flow


def hurt_scenario(*faults: At, **given: Any) -> Scenario:
    """A small load on both brokers, with faults."""
    known: dict[str, Any] = {
        "name": "hurt", "question": "What does it cost?", "message": Message(size_bytes=200), "rate": Rate.fixed(400),
        "rabbitmq": RabbitMQ(), "kafka": Kafka(), "faults": list(faults),
    }  # fmt: skip
    return Scenario(**{**known, **given})


def bare_run(*records: dict[str, Any], findings: Any = ()) -> Run:
    """A run of these trials and findings, without histograms."""
    asked = {record.get("scenario"): record.get("faults") for record in records}
    scenarios = [{"name": name, "faults": faults} for name, faults in asked.items()]
    known = {
        "id": "r", "status": "complete", "reason": None, "within": lambda *_: iter(()),
        "header": {"findings": list(findings), "scenarios": scenarios, "brokers": {}},
    }  # fmt: skip
    return type("Run", (), {**known, "records": list(records)})  # type: ignore[return-value]


def record_of(endpoint: Endpoint, made: Scenario, window_s: float, warmup_s: float = 1.0) -> dict[str, Any]:
    """One trial of a scenario on this broker."""
    (trial,) = make_plan([made], Profile("hurt", warmup_s, window_s, 1), brokers=(endpoint.broker,)).trials
    record, _ = run_trial(trial, Setting(endpoint, print))
    return completed(record)


class _Watched:
    """A trial whose faults wait for its load, and whose load waits for no more than its faults."""

    def __init__(self, made: Scenario) -> None:
        self._made, self._begin, self._turned = made, Injector._begin, Live.turned
        self._board: Board | None = None
        self._before = (0, 0)  # received and confirmed when the last fault had been mended
        self._mended = 0  # how many have
        self._is_over = False

    def flows(self) -> bool:
        """Whether messages have been received and confirmed since the last fault was mended, and none waits long."""
        if self._board is None:
            return False
        received, acked = self._board.total(Cell.RECEIVED), self._board.total(Cell.ACKED)
        confirms = self._made.durability != Durability.NONE
        rest = self._board.total(Cell.SENT) - (acked if confirms else received)
        grown = received - self._before[0], acked - self._before[1]
        return grown[0] >= FLOWS_MSGS and (not confirms or grown[1] >= FLOWS_MSGS) and rest <= FLOWS_MSGS

    def begin(self, injector: Injector, done: Done, until_ns: int) -> None:
        """A fault that is due: it begins once load flows, and who was hurt before is there again."""
        until(lambda: injector._stopping.is_set() or (self._mended == len(injector.done) and self.flows()))
        done.began_ns = time.monotonic_ns()
        self._begin(injector, done, until_ns)

    def turned(self, live: Live, board: Board) -> None:
        """Note what is mended; after the last fault, once load flows again, have the producers end."""
        self._turned(live, board)
        self._board = board
        injector = live.hurting and live.hurting._injector
        if not injector or self._is_over:
            return
        if (mended := sum(map(self._is_mended, injector.done))) > self._mended:
            self._mended, self._before = mended, (board.total(Cell.RECEIVED), board.total(Cell.ACKED))
        if self._mended == len(self._made.faults) and self.flows():
            self._is_over = True
            assert live.hurting is not None
            live.hurting.sample = lambda *_: None  # type: ignore[method-assign]  # nothing comes any more: no gap
            board.order(Cell.STOP_PRODUCING)

    def _is_mended(self, done: Done) -> bool:
        """Whether all of it is over; of a leader that was killed, others know who leads now."""
        is_led = self._made.durability not in {Durability.REPLICATED, Durability.REPLICATED_FLUSHED}
        return bool(done.mended_ns) and bool(is_led or done.next_leader or done.fault.kind != "kill" or done.error)


def record_mended(endpoint: Endpoint, made: Scenario, warmup_s: float = 1.0) -> dict[str, Any]:
    """One trial of a scenario on this broker that takes as long as its faults do, on whatever machine.

    Each of them begins at its time at the earliest, once load flows (again), and load ends once it does so after all of
    them.
    """
    watched = _Watched(made)
    with pytest.MonkeyPatch.context() as patch:
        # As functions, which a class binds.
        patch.setattr(Injector, "_begin", lambda *given: watched.begin(*given))  # noqa: PLW0108
        patch.setattr(Live, "turned", lambda *given: watched.turned(*given))  # noqa: PLW0108
        return record_of(endpoint, made, LONG_S, warmup_s)


def demand_kept(record: dict[str, Any]) -> None:
    """The trial came to its end, every confirmed message was received, and each copy too many is explained."""
    assert record["status"] == "complete", record["error"]
    assert (record["confirmed_lost"], record["corrupted"], record["foreign"]) == (0, 0, 0)
    assert record["duplicated"] == record["dup_resend"] + record["dup_redelivery"]
    assert record["sent"] > 0
