"""loadgen measures RabbitMQ and Apache Kafka side by side, every number with its proof.

In Python and Jupyter: `load_run` and `load_runs` read what was measured, `loadgen.plots` draws it (docs/jupyter.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadgen import plots
    from loadgen.run import Run
    from loadgen.runs import load as load_run
    from loadgen.runs import load_runs
    from loadgen.scenario import (
        At,
        Crash,
        Cut,
        Delay,
        Durability,
        FromFile,
        Full,
        Kafka,
        Kill,
        LogNormal,
        Message,
        Pause,
        RabbitMQ,
        Rate,
        Reset,
        Restart,
        Scenario,
        Throttle,
        Uniform,
    )

__all__ = [
    "At", "Crash", "Cut", "Delay", "Durability", "FromFile", "Full", "Kafka", "Kill", "LogNormal", "Message", "Pause",
    "RabbitMQ", "Rate", "Reset", "Restart", "Run", "Scenario", "Throttle", "Uniform", "load_run", "load_runs", "plots",
]  # fmt: skip

_ELSEWHERE = {"Run": ("run", "Run"), "load_run": ("runs", "load"), "load_runs": ("runs", "load_runs")}


def __getattr__(name: str) -> Any:
    """Load on first use: `loadgen --help` must not wait for pydantic and numpy."""
    if name == "plots":
        return import_module("loadgen.plots")
    if name in __all__:
        module, own = _ELSEWHERE.get(name, ("scenario", name))
        return getattr(import_module(f"loadgen.{module}"), own)
    raise AttributeError(f"module 'loadgen' has no attribute {name!r}")
