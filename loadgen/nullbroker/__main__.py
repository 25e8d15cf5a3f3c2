"""One null broker as a process: `python -m loadgen.nullbroker PROTOCOL SOCKET MAKER`.

Args: amqp, kafka or stream; the number of the listening socket that was inherited; the pid of the process that started
it, with which it ends. A line on stdout tells that it serves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from loadgen.nullbroker.amqp import AmqpRelay
from loadgen.nullbroker.kafka import KafkaRelay
from loadgen.nullbroker.server import Server
from loadgen.nullbroker.stream import StreamRelay

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.nullbroker.server import Relay

RELAYS: dict[str, Callable[[int], Relay]] = {"amqp": lambda _: AmqpRelay(), "kafka": KafkaRelay, "stream": StreamRelay}


def main() -> None:
    """Serve one protocol on the inherited socket."""
    protocol, number, maker_pid = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its maker decides when it ends
    with contextlib.suppress(OSError):
        # As the clients of a closed loop (`loadgen.process`): who is not woken at every packet reads more at once.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with socket.socket(fileno=int(number)) as listener:
        server = Server(listener, RELAYS[protocol](listener.getsockname()[1]), int(maker_pid))
        os.write(sys.stdout.fileno(), b"serves\n")
        server.run()


if __name__ == "__main__":
    main()
