"""Waiting for what others do, however busy the machine is: asked again and again, and given up in the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 120.0  # a busy machine may need some of it, an idle one nothing


def until(is_so: Callable[[], object], every_s: float = 0.02) -> bool:
    """Whether it came true in time."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := bool(is_so())) and time.monotonic() < deadline_s:
        time.sleep(every_s)
    return found
