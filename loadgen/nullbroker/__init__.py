"""A broker that does nothing, in a process of its own: what the load generator reaches when no broker bounds it.

It is sink and source. What a producer publishes is confirmed at once and relayed from memory to the consumers that
are there (of every subscriber, where there are several); without any it is counted and dropped. Nothing is written to
disk, and what waits for consumers is bounded: beyond that, producers are not read from. It speaks as much of AMQP
0-9-1, of Kafka's protocol or of RabbitMQ's streams as this project's drivers and their control planes need, to which
it is an ordinary broker, and handles whole batches with numpy: what it costs is stated with every ceiling, since it
takes CPU from the clients whose limit it is to show.

What it is not: it keeps nothing, delivers nothing a second time, knows no credentials, and checks no limits.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from loadgen.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from loadgen.endpoint import BrokerName

__all__ = ["null_broker"]

PROTOCOLS: dict[BrokerName, str] = {"rabbitmq": "amqp", "kafka": "kafka"}
STREAMS = "stream"
STOP_S = 5.0


@contextlib.contextmanager
def null_broker(broker: BrokerName, cpus: Collection[int] = (), *, streams: bool = False) -> Iterator[Endpoint]:
    """A null broker that stands for `broker` while the block lasts; it ends with this process in any case.

    The endpoint's `pids` is the null broker's, so that its CPU is measured as a broker's is.

    Args:
        broker: whose protocol it speaks.
        cpus: the CPUs that it may use; none means all.
        streams: whether it speaks RabbitMQ's stream protocol instead of AMQP.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)  # from now on nobody has to wait for the process
        protocol = STREAMS if streams else PROTOCOLS[broker]
        command = [sys.executable, "-m", "loadgen.nullbroker", protocol, str(listener.fileno())]
        process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[listener.fileno()],
        )
        if cpus:
            os.sched_setaffinity(process.pid, cpus)
        port = listener.getsockname()[1]
    try:
        yield Endpoint(
            broker,
            (("127.0.0.1", port),),
            stream_port=port if streams else None,
            version="null broker",
            pids=(process.pid,),
            source="external",
        )
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
