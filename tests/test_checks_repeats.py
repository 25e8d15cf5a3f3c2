"""Tests of loadgen.checks.repeats and loadgen.versions: repeats of two versions are no repeats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from loadgen import versions as versions_module
from loadgen.checks.repeats import versions_changed
from loadgen.versions import git_state, versions

if TYPE_CHECKING:
    from pathlib import Path

KAFKA = {"broker": "4.3.1", "client": "confluent-kafka 2.16.1", "python": "3.11.7", "loadgen": "6ef98cf"}
RABBITMQ = {**KAFKA, "broker": "4.3.6", "client": "pika 1.3.2"}


def record(of: str = "kafka", /, **changes: str | None) -> dict[str, Any]:
    """A trial's record with these versions."""
    known = KAFKA if of == "kafka" else RABBITMQ
    driver = "confluent" if of == "kafka" else "pika"
    return {"broker": of, "driver": driver, "versions": {**known, **changes}}


def test_two_brokers_may_differ_and_their_repeats_may_not() -> None:
    """Interleaved trials of both brokers have two versions of broker and client by right."""
    found = versions_changed([record("kafka"), record("rabbitmq"), record("kafka"), record("rabbitmq")])
    assert found[:3] == ("versions", True, "the same in all trials")


@pytest.mark.parametrize("what", sorted(KAFKA))
def test_every_version_that_changes_is_named(what: str) -> None:
    """Of whatever it is: what it was, and what it became."""
    found = versions_changed([record(), record("rabbitmq"), record(**{what: "9.9"})])
    assert found.passed is False
    assert what in found.reason
    assert f"{KAFKA[what]}, then 9.9" in found.reason


def test_one_client_may_be_upgraded_while_another_stays() -> None:
    """A driver's version is compared with that driver's only, loadgen's with everybody's."""
    assert versions_changed([record("kafka", client="2"), record("rabbitmq", client="1")]).passed is True
    assert versions_changed([record("kafka", loadgen="2"), record("rabbitmq", loadgen="1")]).passed is False


@pytest.mark.parametrize("silent", [{}, {"versions": None}, {"versions": {**KAFKA, "broker": None}}])
def test_a_trial_that_does_not_tell_is_unknown(silent: dict[str, Any]) -> None:
    """Unless others already differ, nobody can tell."""
    silent = {"broker": "kafka", "driver": "confluent", **silent}
    assert versions_changed([record(), silent]).passed is None
    assert versions_changed([record(), silent, record(python="2")]).passed is False


def test_versions_are_those_of_what_ran() -> None:
    """Client drivers name their library, wire drivers are loadgen itself; an unknown broker stays unknown."""
    assert str(versions("pika", "4.3.6")["client"]).startswith("pika 1.")
    assert str(versions("confluent", "4.3.6")["client"]).startswith("confluent-kafka ")
    wire = versions("amqp", "unknown")
    assert wire["client"] == f"loadgen {wire['loadgen']}"
    assert wire["broker"] is None
    assert versions("amqp", "4.3.6")["broker"] == "4.3.6"


def test_changes_that_are_not_committed_are_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two states of one dirty tree differ; a clean tree is its revision."""
    (tmp_path / "loadgen").mkdir()
    module = tmp_path / "loadgen/versions.py"
    monkeypatch.setattr(versions_module, "__file__", str(module))
    told = []
    for text, dirty in (("a = 1", True), ("a = 2", True), ("a = 2", False)):
        module.write_text(text)
        state = {"revision": "0123456789abcdef", "dirty": dirty}
        monkeypatch.setattr(versions_module, "git_state", lambda _, state=state: state)
        told.append(versions("amqp", "1")["loadgen"])
    assert len(set(told)) == 3
    assert told[2] == "0123456789ab"
    assert all(str(each).startswith("0123456789ab+") for each in told[:2])


def test_an_installed_package_has_no_revision(tmp_path: Path) -> None:
    """Only a working tree of its own has one; a tree that git does not know has no revision either."""
    assert git_state(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert git_state(tmp_path) in (None, {"revision": None, "dirty": None})
