"""What a trial's settings come to on a stream broker: the names of its streams and the arguments they are made with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadgen.driver import Target

_ARGUMENTS = {
    "max_length_bytes": "max-length-bytes",
    "max_age": "max-age",
    "max_segment_size_bytes": "stream-max-segment-size-bytes",
    "initial_cluster_size": "initial-cluster-size",
}


class Streams:
    """The stream of a target or, with several partitions, those of its super stream."""

    def __init__(self, target: Target) -> None:
        self.target = target
        count: int = target.settings["partitions"]
        self.is_super = count > 1
        self.names = [f"{target.name}-{number}" for number in range(count)] if self.is_super else [target.name]

    def read_by(self, index: int, count: int) -> dict[int, str]:
        """The streams that consumer `index` of `count` reads, by their numbers.

        With a single active consumer each subscribes to all, and the broker lets one of them be active.
        """
        shares_all = self.target.settings["single_active_consumer"]
        return {number: name for number, name in enumerate(self.names) if shares_all or number % count == index}

    def arguments(self) -> dict[str, str]:
        """As Create has them, in the broker's own names."""
        settings = self.target.settings
        leader = {"queue-leader-locator": "balanced"} if settings.get("initial_cluster_size") else {}
        return leader | {
            name: str(settings[knob]) for knob, name in _ARGUMENTS.items() if settings.get(knob) is not None
        }
