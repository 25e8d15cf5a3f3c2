"""On which nodes a quorum queue or a stream lies, by RabbitMQ's own word."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

from loadgen.drivers.rabbitmq_management import in_path, management_request
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadgen.endpoint import Endpoint

WITHIN_S = 15.0  # the management API learns of a new queue late
PAUSE_S = 0.2
REFUSED = (401, 403)


@dataclass(frozen=True, slots=True)
class Replicas:
    """The nodes of a queue or stream: its leader's name, all members', and those that are in step."""

    leader: str
    members: tuple[str, ...]
    online: tuple[str, ...]


def replicas_of(endpoint: Endpoint, queue: str) -> Replicas | None:
    """Where a queue lies, as of some seconds ago; None where the management API does not tell (yet)."""
    told = _told(endpoint, f"queues/{in_path(endpoint.virtual_host)}/{in_path(queue)}")
    if not isinstance(told, dict) or "members" not in told or not told.get("leader"):
        return None
    return Replicas(str(told["leader"]), tuple(told["members"]), tuple(told.get("online") or ()))


def raft_leader_of(endpoint: Endpoint, queue: str) -> str | None:
    """The name of the node that leads a quorum queue now, by the word of its members; None where none of them does.

    Whichever node answers asks them all. Of two that say that they lead, one has not heard of the other's term yet.
    """
    told = _told(endpoint, f"queues/quorum/{in_path(endpoint.virtual_host)}/{in_path(queue)}/status")
    if not isinstance(told, list):
        return None
    leading = [each for each in told if isinstance(each, dict) and each.get("Raft State") == "leader"]
    return str(max(leading, key=lambda each: int(each["Term"]))["Node Name"]) if leading else None


def _told(endpoint: Endpoint, path: str) -> Any:
    """What the management API answers; None where it does not (yet)."""
    if endpoint.management_url is None:
        return None
    try:
        return management_request(endpoint, path)
    except HTTPError as error:
        if error.code in REFUSED:
            raise BrokerError(
                f"rabbitmq at {endpoint.address}: its management API refuses this user ({error.code}), so that nobody "
                "knows on which nodes a queue lies; the user needs the tag monitoring"
            ) from None
        return None
    except (OSError, ValueError):
        return None


def demand_replicas(endpoint: Endpoint, queues: Iterable[str], wanted: int) -> None:
    """Wait until each queue lies on so many nodes, all in step; BrokerError where it does not.

    RabbitMQ declares a queue on fewer nodes without a word where there are no more, and then promises less than its
    class says. Where there is no management API to ask, the class is taken at its word.
    """
    if endpoint.management_url is None:
        return
    until_s = time.monotonic() + WITHIN_S
    for queue in queues:
        while (found := replicas_of(endpoint, queue)) is None or len(found.online) < wanted:
            if time.monotonic() > until_s:
                seen = "nobody knows how many nodes" if found is None else f"{len(found.online)} of {wanted} nodes"
                raise BrokerError(
                    f"rabbitmq at {endpoint.address}: queue {queue} lies on {seen}; this durability class needs a "
                    f"cluster of {wanted}"
                )
            time.sleep(PAUSE_S)
