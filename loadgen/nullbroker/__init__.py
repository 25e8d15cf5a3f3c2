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
import select
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from loadgen.endpoint import Endpoint
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from loadgen.endpoint import BrokerName

__all__ = ["null_broker"]

PROTOCOLS: dict[BrokerName, str] = {"rabbitmq": "amqp", "kafka": "kafka"}
STREAMS = "stream"
STOP_S = 5.0
START_S = 60.0  # for an interpreter with numpy to be loaded where much else runs: some tenths of a second where not


@contextlib.contextmanager
def null_broker(broker: BrokerName, cpus: Collection[int] = (), *, streams: bool = False) -> Iterator[Endpoint]:
    """A null broker that stands for `broker` while the block lasts; it ends with this process in any case.

    The endpoint's `pids` is the null broker's, so that its CPU is measured as a broker's is.

    Args:
        broker: whose protocol it speaks.
        cpus: the CPUs that it may use; none means all.
        streams: whether it speaks RabbitMQ's stream protocol instead of AMQP.

    Raises:
        BrokerError: it did not begin to serve.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        port = listener.getsockname()[1]
        protocol = STREAMS if streams else PROTOCOLS[broker]
        command = [sys.executable, "-m", "loadgen.nullbroker", protocol, str(listener.fileno())]
        process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[listener.fileno()],
        )
    try:
        if cpus:
            os.sched_setaffinity(process.pid, cpus)
        _wait_until_it_serves(process)
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


def _wait_until_it_serves(process: subprocess.Popen[bytes]) -> None:
    """Its port takes connections before: a client's handshake would wait for an interpreter, and give up in the end."""
    assert process.stdout is not None
    with process.stdout as told:
        waited = select.select([told], [], [], START_S)[0]
        if waited and told.readline():
            return
    how = f"ended with exit status {process.wait()}" if waited else f"did not serve within {START_S:.0f} s"
    raise BrokerError(f"the null broker's process {how}: is this machine out of memory, or too busy?")
