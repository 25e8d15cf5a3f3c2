"""Kafka's protocol on a plain socket: one connection, the rare frames (through kio) and who leads which partition.

The hot frames are made and parsed elsewhere; here their bytes are moved, never waiting. Rare frames are called and
waited for. Versions are fixed: each is spoken by brokers from 2.3 to 4.x; those of share groups are newer.
"""

from __future__ import annotations

import io
import math
import struct
import time
from typing import TYPE_CHECKING, Any, TypeVar, cast

from kio.index import load_response_from_request
from kio.schema.api_versions.v0.request import ApiVersionsRequest
from kio.schema.api_versions.v3.request import ApiVersionsRequest as FeaturesRequest
from kio.schema.errors import ErrorCode
from kio.schema.metadata.v5.request import MetadataRequest
from kio.schema.sasl_authenticate.v1.request import SaslAuthenticateRequest
from kio.schema.sasl_handshake.v1.request import SaslHandshakeRequest
from kio.serial import entity_reader, entity_writer

from loadgen.drivers.kafka_config import CLIENT_ID
from loadgen.drivers.wire.framed import FramedConnection, LinkError, wait
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kio.static.protocol import RequestPayload

    from loadgen.endpoint import Endpoint

T = TypeVar("T")
# The last layouts that need no parsing of optional parts; both brought zstd, and Kafka 2.1 to 4.x speak them.
API_PRODUCE, PRODUCE_VERSION = 0, 7
API_FETCH, FETCH_VERSION = 1, 10
API_VERSIONS, FEATURES_VERSION = 18, 3  # since which features are told, too
CALL_TIMEOUT_S = 10.0


def error_name(code: int) -> str:
    """Kafka's own name of an error code."""
    try:
        return ErrorCode(code).name.upper()
    except ValueError:
        return f"ERROR_{code}"


def is_retriable(code: int) -> bool:
    """Whether Kafka says that trying again may help."""
    try:
        return ErrorCode(code).retriable
    except ValueError:
        return False


def demand(where: str, what: str, code: int, text: str | None = None) -> None:
    """Raise LinkError for an error that may pass, BrokerError for one that will not.

    Args:
        where: the broker's address.
        what: in words, what cannot be done.
        code: Kafka's error code; 0 is none.
        text: what the broker adds to it.
    """
    if code and is_retriable(code):
        raise LinkError(error_name(code))
    if code:
        because = f": {text}" if text else ""
        raise BrokerError(f"kafka at {where}: {what}: {error_name(code)}{because}")


def patiently(attempt: Callable[[], T], within_s: float, pause_s: float) -> T:
    """Repeat `attempt` while it fails by LinkError; raises the last one when it has failed for so long."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            return attempt()
        except LinkError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(pause_s)


class Connection(FramedConnection):
    """One connection to one broker, opened and authenticated; after that it never blocks but in `call`."""

    BROKER = "kafka"
    PROTOCOL = "Kafka's"
    ENDED = "without TLS or a user, it may want them"

    def __init__(self, endpoint: Endpoint, host: str, port: int) -> None:
        self._correlation = 0
        self._posted_s = 0.0
        super().__init__(endpoint, host, port)
        try:
            if endpoint.credentials is not None:
                self._authenticate(endpoint.credentials.username, endpoint.credentials.password)
        except BaseException:
            self.close()
            raise

    def _authenticate(self, username: str, password: str) -> None:
        shake = self.call(SaslHandshakeRequest(mechanism="PLAIN"))
        if shake.error_code:
            offered = ", ".join(shake.mechanisms) or "nothing"
            raise BrokerError(f"kafka at {self.address}: for a user's login it offers {offered}; expected PLAIN")
        token = b"\0" + username.encode() + b"\0" + password.encode()
        answer = self.call(SaslAuthenticateRequest(auth_bytes=token))
        if answer.error_code:
            raise BrokerError(f"kafka at {self.address}: user {username!r} was refused; check name and password")

    def next_correlation(self) -> int:
        """A number for the next request, returned with its response."""
        self._correlation = (self._correlation + 1) & 0x7FFFFFFF
        return self._correlation

    def post(self, request: RequestPayload) -> int:
        """Begin to send a rare request; the number that its response will have."""
        correlation = self.next_correlation()
        self.queue([encode(request, correlation)])
        self._posted_s = time.monotonic()
        self.write()
        return correlation

    def call(self, request: RequestPayload, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Send a rare request and wait for its response; only while no other request is under way here."""
        correlation = self.post(request)
        deadline = time.monotonic() + timeout_s
        while True:
            self.write()
            while (found := self.frame()) is None and self.read():
                pass
            if found is not None:
                return self.decode(request, correlation, found)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise LinkError(f"no answer within {timeout_s:g} s")
            wait([self], left_s)

    def heard(self, request: RequestPayload, correlation: int, within_s: float = math.inf) -> Any:
        """The response to a request that was posted, or None if it has not come yet; the only one under way here.

        LinkError where it has not come for longer than `within_s`.
        """
        self.write()
        found = self.frame()
        while found is None and self.read():
            found = self.frame()
        if found is None and time.monotonic() - self._posted_s > within_s:
            raise LinkError(f"no answer within {within_s:g} s")
        return None if found is None else self.decode(request, correlation, found)

    def decode(self, request: RequestPayload, correlation: int, found: tuple[int, int]) -> Any:
        """The response to a rare request, from the frame that was found."""
        begin, end = found
        (got,) = struct.unpack_from(">i", self._view, begin)
        if got != correlation:
            raise LinkError(f"response {got} came where {correlation} was expected")
        response_type = load_response_from_request(request)
        try:
            frame = bytes(self._view[begin:end])
            _, at = entity_reader(cast("Any", response_type.__header_schema__))(frame, 0)
            response, _ = entity_reader(cast("Any", response_type))(frame, at)
        except Exception as error:  # noqa: BLE001 - kio has no common base for what a damaged frame raises
            raise LinkError(f"its {response_type.__name__} cannot be read: {error}") from None
        return response


def encode(request: RequestPayload, correlation: int) -> bytes:
    """A rare request as one frame."""
    body = io.BytesIO()
    entity_writer(type(request))(body, request)
    name = CLIENT_ID.encode()
    head = struct.pack(">hhih", request.__api_key__, request.__version__, correlation, len(name)) + name
    head += b"\0" * request.__flexible__  # no tagged fields
    return struct.pack(">i", len(head) + body.tell()) + head + body.getvalue()


def open_any(endpoint: Endpoint, addresses: Sequence[tuple[str, int]]) -> Connection:
    """A connection to the first address that answers; LinkError with the last one's reason."""
    failure = LinkError("no address")
    for host, port in addresses:
        try:
            return Connection(endpoint, host, port)
        except LinkError as error:
            failure = error
    raise failure


def check(endpoint: Endpoint) -> None:
    """BrokerError in one line if the endpoint cannot be reached, does not let us in, or is too old."""
    connection: Connection | None = None
    try:
        connection = open_any(endpoint, endpoint.hosts)
        check_versions(connection)
        # Versions are told to anybody; this is not.
        connection.call(MetadataRequest(topics=(), allow_auto_topic_creation=False))
    except LinkError as error:
        raise BrokerError(f"kafka at {endpoint.address}: {error}") from None
    finally:
        if connection is not None:
            connection.close()


def check_versions(connection: Connection) -> None:
    """BrokerError if the broker does not speak the versions that the hot frames are written in."""
    spoken = _spoken(connection)
    for name, api, version in (("Produce", API_PRODUCE, PRODUCE_VERSION), ("Fetch", API_FETCH, FETCH_VERSION)):
        lowest, highest = spoken.get(api, (0, -1))
        if not lowest <= version <= highest:
            raise BrokerError(
                f"kafka at {connection.address}: speaks {name} {lowest} to {highest}; expected {version} "
                "(Kafka 2.1 and later)"
            )


def feature_levels(endpoint: Endpoint, addresses: Sequence[tuple[str, int]]) -> dict[str, int]:
    """The cluster's features and their levels; none where brokers are older than features (Kafka 2.7)."""
    connection = open_any(endpoint, addresses)
    try:
        if _spoken(connection).get(API_VERSIONS, (0, 0))[1] < FEATURES_VERSION:
            return {}
        answer = connection.call(FeaturesRequest(client_software_name=CLIENT_ID, client_software_version="1"))
    finally:
        connection.close()
    return {each.name: int(each.max_version_level) for each in answer.finalized_features}


def _spoken(connection: Connection) -> dict[int, tuple[int, int]]:
    """The lowest and highest version of each request that the broker knows."""
    answer = connection.call(ApiVersionsRequest())
    return {int(each.api_key): (int(each.min_version), int(each.max_version)) for each in answer.api_keys}
