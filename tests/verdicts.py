"""What a verdict holds against a trial, but for what others who use this machine cause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

BUSY = frozenset({"schedule lag", "backlog"})
"""What a machine that is busy with something else does to an open loop."""


def against(record: dict[str, Any], but: Collection[str]) -> list[dict[str, Any]]:
    """The checks that failed, without those of these names."""
    return [each for each in record["verdict"]["checks"] if each["passed"] is False and each["name"] not in but]
