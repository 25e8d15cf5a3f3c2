"""loadgen measures RabbitMQ and Apache Kafka side by side, every number with its proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadgen.scenario import (
        Durability,
        FromFile,
        Kafka,
        LogNormal,
        Message,
        RabbitMQ,
        Rate,
        Scenario,
        Uniform,
    )

_SCENARIO_WORDS = (
    "Durability", "FromFile", "Kafka", "LogNormal", "Message", "RabbitMQ", "Rate", "Scenario", "Uniform",
)  # fmt: skip
__all__ = [
    "Durability", "FromFile", "Kafka", "LogNormal", "Message", "RabbitMQ", "Rate", "Scenario", "Uniform",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _SCENARIO_WORDS:
        from loadgen import scenario  # noqa: PLC0415

        return getattr(scenario, name)
    raise AttributeError(f"module 'loadgen' has no attribute {name!r}")
