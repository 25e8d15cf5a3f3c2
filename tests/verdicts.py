"""What a verdict holds against a trial, and what was due in it, but for what others who use this machine cause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

BUSY = frozenset({"schedule lag", "backlog", "latency complete"})
"""What a machine that is busy with something else does to an open loop: it is late, and leaves messages unsent."""


def against(record: dict[str, Any], but: Collection[str]) -> list[dict[str, Any]]:
    """The checks that failed, without those of these names."""
    return [each for each in record["verdict"]["checks"] if each["passed"] is False and each["name"] not in but]


def due(record: dict[str, Any]) -> int:
    """How many messages an open loop was to send: a producer that did not run in time leaves some of them unsent."""
    unsent: int = record["errors"].get("unsent", 0)
    return int(record["sent"]) + unsent
