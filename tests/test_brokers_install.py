"""Installations: whole or not there, made once, and a missing program told in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S, until

from loadgen.brokers import install, install_kafka, install_rabbitmq, java, ports, process, state
from loadgen.errors import BrokerError, HostError

if TYPE_CHECKING:
    from pathlib import Path


def quiet(_: str) -> None:
    """Progress that nobody reads."""


def test_an_interrupted_installation_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    """After a failure half way there is nothing to find; the next try starts from nothing and succeeds."""

    def breaks(folder: Path, _: object) -> dict[str, str]:
        (folder / "half").touch()
        raise KeyboardInterrupt

    def works(folder: Path, _: object) -> dict[str, str]:
        assert not list(folder.iterdir())
        return {"part": "1.0"}

    with pytest.raises(KeyboardInterrupt):
        install.ensure("x", tmp_path, breaks, quiet)
    assert install.find("x", tmp_path) is None
    assert not list(tmp_path.glob("*.partial-*"))
    assert install.ensure("x", tmp_path, works, quiet).versions == {"part": "1.0"}
    assert install.find("x", tmp_path) == install.Installation(tmp_path / "x", {"part": "1.0"})
    assert not list(tmp_path.glob("*.partial-*"))


def test_two_that_install_at_once_install_once(tmp_path: Path) -> None:
    """The second waits for the first, says so, and takes what the first made."""
    built: list[int] = []
    told: list[str] = []

    def slow(_: Path, __: object) -> dict[str, str]:
        built.append(1)
        until(lambda: any("waiting" in line for line in told))
        return {}

    threads = [threading.Thread(target=install.ensure, args=("x", tmp_path, slow, told.append)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert any("waiting" in line for line in told)


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """A program that was killed while it held the lock does not stop the next one."""
    code = (
        "import os, pathlib, sys; from loadgen.brokers.state import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), what='x', progress=print): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], check=False, timeout=PATIENCE_S)
    with state.locked(tmp_path / "lock", what="x", progress=pytest.fail):
        pass


@pytest.mark.parametrize(("module", "program"), [(install_kafka, "mvn"), (install_rabbitmq, "apt-get")])
def test_a_missing_program_is_one_line_that_says_what_to_do(
    module: object, program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without Maven or apt on PATH nothing is tried: the line names the program and the ways out."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=program) as caught:
        module.ensure(tmp_path, quiet)  # type: ignore[attr-defined]
    assert "install it" in str(caught.value)
    assert "--brokers docker" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failing_program_is_one_line(tmp_path: Path) -> None:
    """What a program said last about its error is all that is shown of it."""
    with pytest.raises(BrokerError, match=r"^asking failed \(exit 3\): E: no such thing$"):
        process.run(["sh", "-c", "echo working; echo 'E: no such thing' >&2; exit 3"], what="asking", timeout_s=9)
    with pytest.raises(BrokerError, match="took longer than 0 s"):
        process.run(["sleep", "9"], what="asking", timeout_s=0.1)
    with pytest.raises(BrokerError, match="cannot run"):
        process.run([tmp_path / "nothing"], what="asking", timeout_s=9)


@pytest.mark.parametrize(
    ("line", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "25" 2025-09-16', 25),
        ('java version "1.8.0_402"', 8),
        ("bash: not a java", 0),
    ],
)
def test_the_version_of_a_java_is_read(line: str, major: int, tmp_path: Path) -> None:
    """The number that counts is 8 for `1.8`, 17 for `17.0.15`, and 0 for what is no Java."""
    fake = tmp_path / "java"
    fake.write_text(f"#!/bin/sh\necho '{line}' >&2\n")
    fake.chmod(0o755)
    assert java.major_version(fake) == major


def test_a_java_that_is_too_old_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With an old Java on PATH the private one is taken, here one that is installed already."""
    old = tmp_path / "bin/java"
    private = tmp_path / f"jre-{java.WHEEL_VERSION}/site/x/bin/java"
    for path, version in ((old, "11.0.1"), (private, "25.0.2")):
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        path.chmod(0o755)
    (tmp_path / f"jre-{java.WHEEL_VERSION}" / install.RECORD).write_text(json.dumps({"versions": {}}))
    monkeypatch.setenv("PATH", str(old.parent))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert java.find_java(tmp_path, quiet) == private


@pytest.mark.parametrize("folder", ["/a b", "/a:b", "/a;b", "/a'b"])
def test_a_path_that_rabbitmq_cannot_bear_is_refused(folder: str) -> None:
    """RabbitMQ's scripts do not quote their own path: better told at once than failed later."""
    with pytest.raises(HostError, match="LOADGEN_BROKERS_DIR"):
        install_rabbitmq.check_path(type(state.brokers_dir())(folder))


def test_reserved_ports_are_held_and_lie_below_the_ephemeral_range() -> None:
    """While they are held nobody else is given them, a broker may listen on them, and no client gets one later."""
    with ports.reserve([str(index) for index in range(50)]) as reserved:
        assert len(set(reserved.values())) == len(reserved)
        assert max(reserved.values()) < ports._ephemeral_lowest()
        taken = next(iter(reserved.values()))
        with ports.socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((ports.HOST, taken))
        with ports.socket.create_server((ports.HOST, taken)):  # as brokers do, with SO_REUSEADDR
            assert ports.is_listening(taken)


def test_a_broker_folder_is_chosen_by_environment_or_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment wins; then the checkout around the current folder, however deep; caches follow."""
    monkeypatch.delenv("LOADGEN_BROKERS_DIR", raising=False)
    monkeypatch.delenv("LOADGEN_CACHE_DIR", raising=False)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "loadgen"\n')
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    assert state.brokers_dir() == tmp_path / ".brokers"
    assert state.cache_dir() == tmp_path / ".brokers/install"
    monkeypatch.setenv("LOADGEN_BROKERS_DIR", str(tmp_path / "c"))
    assert state.cache_dir() == tmp_path / "c/install"


def test_a_folder_that_cannot_be_made_is_told() -> None:
    """The line names the folder and the variable to set."""
    with pytest.raises(HostError, match="LOADGEN_BROKERS_DIR"):
        state.make_dir(type(state.brokers_dir())("/proc/nowhere"))


def test_importing_the_package_costs_nothing() -> None:
    """Neither a broker's client nor a validation library is loaded before it is needed."""
    heavy = "{'pydantic', 'confluent_kafka', 'pika', 'numpy', 'psutil'}"
    code = f"import sys, loadgen.brokers; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(99)"


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    """Ending goes from asking to killing, and reports which it was; what is gone already is told as gone."""
    stubborn = process.spawn(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(99)",
        ],
        environment=dict(os.environ),
        node_dir=tmp_path,
        output=tmp_path / "out",
        cpus=frozenset({0}),
    )
    while not (tmp_path / "out").read_text():
        time.sleep(0.01)
    assert list(process.find_marked(tmp_path)) == [stubborn]
    assert os.sched_getaffinity(stubborn.pid) == {0}
    assert process.end(stubborn, timeout_s=0.2) == "killed"
    assert process.end(stubborn, timeout_s=0.2) == "gone"
    assert not list(process.find_marked(tmp_path))
