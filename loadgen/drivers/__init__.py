"""The drivers, one way each of talking to a broker, found by entry point."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from loadgen.driver import Driver

GROUP = "loadgen.drivers"


def load_driver(name: str) -> Driver:
    """The driver of this entry point's name; raises ScenarioError with the names there are."""
    found = entry_points(group=GROUP)
    if name not in found.names:
        raise ScenarioError(f"driver = {name}: no such driver; there are {', '.join(sorted(found.names))}")
    return cast("Driver", found[name].load())
