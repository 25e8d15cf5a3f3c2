"""Which settings of a trial are nobody's default: what its class demands, and what its scenario chose for the load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen.knobs import CLASS_DEMANDS, DEFAULTS
from loadgen.stream_knobs import DEFAULTS as STREAM_DEFAULTS
from loadgen.stream_knobs import DRIVERS as STREAM_DRIVERS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def promised(broker: str, durability: str, settings: Mapping[str, Any]) -> list[str]:
    """What the class demands, as it took effect: `acks all`."""
    return [f"{name} {_plain(settings[name])}" for name in _demanded(broker, durability) if _is_given(settings, name)]


def changed(
    broker: str, driver: str, durability: str, settings: Mapping[str, Any], named: Collection[str] = ()
) -> list[str]:
    """The knobs that differ from our defaults, apart from what the class demands: `prefetch 1`.

    What a knob that has no default was completed to says nothing, unless it is among those that somebody named.
    """
    is_stream = driver in STREAM_DRIVERS or settings.get("queue_type") == "stream"
    defaults = STREAM_DEFAULTS if is_stream else DEFAULTS[broker]  # type: ignore[index]
    demanded = _demanded(broker, durability)
    return [
        f"{name} {_plain(settings[name])}"
        for name, default in defaults.items()
        if name not in demanded
        and _is_given(settings, name)
        and settings[name] != default
        and (default is not None or name in named)
    ]


def _demanded(broker: str, durability: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = CLASS_DEMANDS[durability].get(broker, {})  # type: ignore[call-overload]
    return found


def _is_given(settings: Mapping[str, Any], name: str) -> bool:
    return settings.get(name) is not None


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
