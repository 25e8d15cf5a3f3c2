"""`loadgen` with its imports made: a process that waits for command lines and forks for each of them.

Half a second of load costs four seconds of importing numpy, scipy and matplotlib, and the tests of documented commands
start dozens. `CLIENT` is what stands in place of the installed program: it hands over its words, folder, environment
and standard streams, and exits as the command does. Nothing is measured here, so profiles are short, brokers are not
warmed up and nothing waits for the disk.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
from dataclasses import replace

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({path!r})
    words = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(asked, [len(words).to_bytes(4, "big")], [0, 1, 2])
    asked.sendall(words)
    sys.exit((asked.recv(1) or b"\\xff")[0])
"""


def serve(path: str) -> None:
    """Run each command in a fork of its own, until this process is ended."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - imported before anybody waits
    import scipy.stats  # noqa: F401, PLC0415

    from loadgen import engine, plan, report  # noqa: F401, PLC0415

    plan.PROFILES |= {
        name: replace(profile, warmup_s=0.0, duration_s=0.5, repeats=1, search_budget_s=3.0)
        for name, profile in plan.PROFILES.items()
    }
    plt.figure().text(0, 0, "fonts are found").figure.savefig(os.devnull, format="svg")
    plt.close()
    engine.WARM_LOADS, engine.WRITTEN_SOURCES = (), frozenset()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        while True:
            asked, _ = listener.accept()
            with asked:
                if os.fork() == 0:
                    listener.close()
                    run(asked)
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that have ended meanwhile
                pass


def run(asked: socket.socket) -> None:
    """One command, in the folder and with the streams and the environment of who asked."""
    from loadgen import cli  # noqa: PLC0415

    size, streams, _, _ = socket.recv_fds(asked, 4, 3)
    with asked.makefile("rb") as words:
        argv, folder, environment = json.loads(words.read(int.from_bytes(size, "big")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        status = cli.main(argv)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter would
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    asked.sendall(bytes([status]))
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
