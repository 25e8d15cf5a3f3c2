"""One question to Kafka, each over a connection of its own: to any node, to one, or to a group's coordinator."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from kio.schema.delete_groups.v1.request import DeleteGroupsRequest
from kio.schema.errors import ErrorCode
from kio.schema.find_coordinator.v2.request import FindCoordinatorRequest
from kio.schema.types import GroupId

from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_protocol import CALL_TIMEOUT_S, Connection, demand, patiently
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kio.static.protocol import RequestPayload

    from loadgen.endpoint import Endpoint

T = TypeVar("T")
PATIENCE_S, _PAUSE_S = 10.0, 0.05
_NOTHING_TO_DELETE = frozenset({ErrorCode.none, ErrorCode.group_id_not_found, ErrorCode.non_empty_group})


class Asking:
    """Rare requests through kio, each answered within `timeout_s`.

    A node that does not answer is asked last from then on.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._hosts = deque(endpoint.hosts)

    def any_node(self, request: RequestPayload) -> Any:
        """What the first node says that answers; LinkError with the last one's reason where none does."""
        failure = LinkError("no address")
        for _ in range(len(self._hosts)):
            try:
                return self.node(*self._hosts[0], request)
            except LinkError as error:
                failure = error
                self._hosts.rotate(-1)
        raise failure

    def coordinator(self, group: str, request: RequestPayload) -> Any:
        """What the group's coordinator says; LinkError where there is none now."""
        found = self.any_node(FindCoordinatorRequest(key=group))
        self.demand(f"no coordinator for group {group}", found.error_code)
        return self.node(found.host, int(found.port), request)

    def delete_group(self, group: str, what: str, patience_s: float = PATIENCE_S) -> None:
        """Remove a group of any kind with its offsets; one that is gone already, or has members, is no error."""

        def ask() -> None:
            (result,) = self.coordinator(group, DeleteGroupsRequest(groups_names=(GroupId(group),))).results
            if result.error_code not in _NOTHING_TO_DELETE:
                self.demand(what, result.error_code)

        self.until(what, ask, patience_s)

    def node(self, host: str, port: int, request: RequestPayload) -> Any:
        """What this node says; LinkError where it does not answer."""
        connection = Connection(self._endpoint, host, port)
        try:
            return connection.call(request, self._timeout_s)
        finally:
            connection.close()

    def demand(self, what: str, code: int, text: str | None = None) -> None:
        """See `kafka_protocol.demand`."""
        demand(self._endpoint.address, what, code, text)

    def until(self, what: str, ask: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
        """Ask again while that may help: a coordinator that a broker is only just making is waited for."""
        try:
            return patiently(ask, patience_s, _PAUSE_S)
        except LinkError as error:
            raise BrokerError(f"kafka at {self._endpoint.address}: {what}: {error}") from None
