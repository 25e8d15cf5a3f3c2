"""What librdkafka tells on the side (is the broker still there?), and a thread that stays one under gevent."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException

from loadgen.drivers.wire.kafka_cluster import GIVE_UP_S
from loadgen.errors import TrialError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.endpoint import Endpoint

_ASK_S = 1.0
_GREEN_LOOK_S = 0.001


class Watch:
    """Notices that a broker has gone away for good; librdkafka itself would retry for ever."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._address = endpoint.address
        self._down_since_s: float | None = None
        self._reason = ""
        self._fatal: str | None = None
        self.failed_requests = 0

    def on_error(self, error: KafkaError) -> None:
        """Librdkafka's error callback; from whatever thread polls."""
        self.failed_requests += 1
        if error.fatal():
            self._fatal = error.name()
        elif error.code() == KafkaError._ALL_BROKERS_DOWN and self._down_since_s is None:  # noqa: SLF001
            self._down_since_s = time.monotonic()
        elif error.code() in {KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._AUTHENTICATION}:  # noqa: SLF001
            self._reason = error.name()

    def well(self) -> None:
        """The broker answered."""
        self._down_since_s = None

    def look(self, client: Any) -> None:
        """TrialError if something is past mending; a broker that was down is asked whether it is back."""
        if self._fatal is not None:
            raise TrialError(f"kafka at {self._address}: {self._fatal}")
        down_since_s = self._down_since_s
        if down_since_s is None or time.monotonic() - down_since_s < GIVE_UP_S:
            return
        try:
            client.list_topics(timeout=_ASK_S)
        except KafkaException:
            raise TrialError(f"kafka at {self._address}: gone for {GIVE_UP_S:g} s: {self._reason}") from None
        self.well()


def _original(module: str, name: str) -> Any:
    """What a module held before gevent patched it, if gevent did."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(sys.modules[module], name)
    return monkey.get_original(module, name)


def start_native_thread(work: Callable[[], None]) -> threading.Event:
    """Run `work` in a thread of the system, also where gevent makes threads green; the event tells its end."""
    stopped = threading.Event()

    def run() -> None:
        try:
            work()
        finally:
            stopped.set()

    _original("_thread", "start_new_thread")(run, ())
    return stopped


def wait_for(event: threading.Event, timeout_s: float) -> None:
    """Wait for an event that a native thread sets; under gevent by looking, since green events cross no threads."""
    if "gevent.monkey" not in sys.modules:
        event.wait(timeout_s)
        return
    deadline_s = time.monotonic() + timeout_s
    while not event.is_set() and (left_s := deadline_s - time.monotonic()) > 0:
        time.sleep(min(left_s, _GREEN_LOOK_S))
