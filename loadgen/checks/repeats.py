"""Are the repeats of one thing? What a single trial cannot know: whether versions changed between trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen.checks import Check

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SAME_WITHIN = {"broker": "broker", "client": "driver", "python": None, "loadgen": None}
"""Which trials must agree on a version: those of one broker, those of one driver, or all."""


def versions_changed(records: Iterable[Mapping[str, Any]]) -> Check:
    """One version each of broker, client, Python and loadgen in all trials: else they are no repeats of one thing.

    Args:
        records: trials that are summarised or compared together. Each has `versions` {broker, client, python,
            loadgen}; a trial without them, or with one that nobody knows, makes the finding None at best.
    """
    seen: dict[tuple[str, Any], dict[str, None]] = {}
    silent = 0
    for record in records:
        versions = record.get("versions") or {}
        silent += any(versions.get(what) is None for what in SAME_WITHIN)
        for what, within in SAME_WITHIN.items():
            if versions.get(what) is not None:
                whose = record.get(within) if within else None
                seen.setdefault((what, whose), {})[str(versions[what])] = None
    changed = [
        f"{what}{f' of {whose}' if whose else ''}: {', then '.join(found)}"
        for (what, whose), found in seen.items()
        if len(found) > 1
    ]
    if changed:
        return Check("versions", False, f"changed between trials: {'; '.join(changed)}")
    if silent:
        return Check("versions", None, f"{silent} trials do not tell their versions")
    return Check("versions", True, "the same in all trials")
