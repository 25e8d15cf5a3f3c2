"""loadgen measures RabbitMQ and Apache Kafka side by side, every number with its proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadgen.runs import load as load_run
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
    "RabbitMQ", "Rate", "Reset", "Restart", "Scenario", "Throttle", "Uniform", "load_run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load on first use: `loadgen --help` must not wait for pydantic and numpy."""
    if name == "load_run":
        from loadgen.runs import load  # noqa: PLC0415

        return load
    if name in __all__:
        from loadgen import scenario  # noqa: PLC0415

        return getattr(scenario, name)
    raise AttributeError(f"module 'loadgen' has no attribute {name!r}")
