"""What a probe finds, and where it may look."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from loadgen.brokers import private_brokers
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from loadgen.endpoint import BrokerName, Endpoint

Unit = Literal["bytes", "s", "ns", "us", "msgs_per_s", "percent", "number"]


class NotHereError(BrokerError):
    """What was asked cannot be measured on brokers that come from elsewhere: no failure of theirs or ours."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One quantity that a probe measured on one broker, and what the broker itself said of it.

    `point` says under which circumstances, `what` names the quantity, `values` has one a repeat. `said` is the broker's
    own word (an error's code and text, an offset, a count), and `agrees` whether it confirms the values: None where
    the broker tells nothing of it. Where nothing could be measured `values` are empty and `error` says why.
    """

    broker: BrokerName
    point: str
    what: str
    unit: Unit
    values: tuple[float, ...] = ()
    said: str = ""
    agrees: bool | None = None
    error: str | None = None

    def record(self, probe: str, number: int) -> dict[str, Any]:
        """As it stands in run.json (run.schema.json, `findings`)."""
        return {"id": f"{probe}/{self.broker}/{number}", "probe": probe, **asdict(self), "values": list(self.values)}


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a probe looks: the run's own brokers, and fresh ones of its own where these come from this program."""

    endpoints: Mapping[BrokerName, Endpoint]
    repeats: int
    progress: Callable[[str], None]

    @contextmanager
    def fresh(
        self, broker: BrokerName, settings: Mapping[str, str] | None = None, ports: Sequence[str] = ()
    ) -> Iterator[Endpoint]:
        """A broker that nobody has used yet, with these settings beside the usual ones.

        Args:
            broker: Which one.
            settings: In its own words; the name of a port in braces stands for its number.
            ports: The names of further ports that are to be free for it.

        Raises:
            NotHereError: the run's brokers are somebody else's, and so are their settings.
        """
        source = self.endpoints[broker].source
        if source != "local":
            raise NotHereError(f"needs a {broker} of its own, with other settings; the run's is of {source} brokers")
        with private_brokers({broker: settings or {}}, ports=ports, progress=self.progress) as endpoints:
            yield endpoints[broker]
