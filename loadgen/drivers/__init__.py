"""The drivers, one way each of talking to a broker, found by entry point."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import TYPE_CHECKING, cast

from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from loadgen.driver import Driver

GROUP = "loadgen.drivers"


@cache
def _registered() -> EntryPoints:
    """Looked up once: it reads the metadata of every installed package, and a plan asks for each of its trials."""
    return entry_points(group=GROUP)


def load_driver(name: str) -> Driver:
    """The driver of this entry point's name; raises ScenarioError with the names there are."""
    found = _registered()
    if name not in found.names:
        raise ScenarioError(f"driver = {name}: no such driver; there are {', '.join(sorted(found.names))}")
    return cast("Driver", found[name].load())
