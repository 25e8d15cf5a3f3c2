"""How a producer writes its part of a backlog: before the trial begins, as fast as it goes, every message confirmed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from loadgen.agent import POLL_S, SECOND_NS, StoppedError
from loadgen.board import Cell
from loadgen.errors import TrialError

if TYPE_CHECKING:
    from loadgen.driver import Producer
    from loadgen.producing import ProducerAgent

PATIENCE_S = 30.0  # how long nothing may be sent or confirmed before the backlog is given up


class Writing:
    """One producer's parts of the backlog, each written when the fleet orders it."""

    def __init__(self, agent: ProducerAgent, producer: Producer) -> None:
        spec = agent.spec
        self._agent, self._producer = agent, producer
        self._parts = spec.backlog.parts(spec.index, spec.count) if spec.backlog.msgs else ()
        self._done = 0
        self._settled = 0
        self._moved_ns = 0
        agent.book.skipped = spec.backlog.skipped_of(spec.index, spec.count)

    def turn(self) -> None:
        """Write the part that is ordered, if it is not written yet; else keep the connection alive."""
        if not self._parts:
            return
        if self._agent.board.ordered(Cell.BACKLOG) > self._done:
            self._write(self._parts[self._done])
            self._done += 1
            self._agent.row[Cell.BACKLOG] = self._done
        else:
            self._observe(0.0)

    def _write(self, until: int) -> None:
        """Send until so many messages were sent in all, and wait for every confirmation."""
        agent, room_seen = self._agent, 1
        takes_parts = bool(agent.spec.target.settings.get("transaction_msgs"))
        self._moved_ns = time.monotonic_ns()
        while agent.sent < until:
            room = self._producer.room_msgs
            room_seen = max(room_seen, room)
            number = min(until - agent.sent, room, agent.send_msgs)
            # As in a closed loop: single messages would cost more than they carry.
            if number > 0 and (takes_parts or number >= min(agent.send_msgs, room_seen, until - agent.sent)):
                now_ns = time.monotonic_ns()
                self._producer.send(agent.sent, np.full(number, now_ns), now_ns)
                agent.sent += number
                agent.book.sent(number)
                agent.row[Cell.SENT] = agent.sent
                self._moved_ns = now_ns
                self._observe(0.0)
            else:
                self._observe(POLL_S)
        while self._settled < agent.sent:
            self._observe(POLL_S, ends=True)

    def _observe(self, timeout_s: float, *, ends: bool = False) -> None:
        """Book what the broker said; raises StoppedError where the trial is ended, TrialError where nothing moves."""
        agent = self._agent
        told = self._producer.flush(timeout_s) if ends else self._producer.poll(timeout_s)
        for each in told:
            self._settled += len(each.seqs)
            if each.error is None:
                agent.book.confirmed(each.seqs)
            else:
                agent.book.failed(each.seqs, each.error)
                agent.errors[each.error] = agent.errors.get(each.error, 0) + len(each.seqs)
        now_ns = agent.row[Cell.HEARTBEAT_NS] = time.monotonic_ns()
        if agent.must_end(Cell.STOP_PRODUCING):
            raise StoppedError
        if told:
            self._moved_ns = now_ns
        elif self._settled < agent.sent and now_ns - self._moved_ns > PATIENCE_S * SECOND_NS:
            waiting = agent.sent - self._settled
            raise TrialError(f"backlog: {waiting:,} messages are unconfirmed, and nothing came for {PATIENCE_S:g} s")
