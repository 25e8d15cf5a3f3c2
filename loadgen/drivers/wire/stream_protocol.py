"""RabbitMQ's stream protocol: its keys, codes and rare frames as bytes.

Layouts are those of the server's PROTOCOL.adoc, big-endian. They are few and flat, so they are written and read here:
rstream's own schema counts a text's characters where the protocol counts its bytes, and has no StreamStats. The hot
frames (Publish, PublishConfirm, Deliver) are made and parsed in bulk elsewhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

from loadgen.errors import BrokerError, ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VERSION = 1
RESPONSE_BIT = 0x8000
MAX_FRAME_BYTES = 1 << 20  # stream.frame_max as shipped
_HEAD = struct.Struct(">IHH")  # size, key, version
KEY = struct.Struct(">HH")  # key, version
_ANSWER = struct.Struct(">IH")  # correlation, code


class Key(IntEnum):
    """What a frame is."""

    DECLARE_PUBLISHER = 1
    PUBLISH = 2
    PUBLISH_CONFIRM = 3
    PUBLISH_ERROR = 4
    QUERY_PUBLISHER_SEQUENCE = 5
    DELETE_PUBLISHER = 6
    SUBSCRIBE = 7
    DELIVER = 8
    CREDIT = 9
    STORE_OFFSET = 10
    QUERY_OFFSET = 11
    UNSUBSCRIBE = 12
    CREATE = 13
    DELETE = 14
    METADATA = 15
    METADATA_UPDATE = 16
    PEER_PROPERTIES = 17
    SASL_HANDSHAKE = 18
    SASL_AUTHENTICATE = 19
    TUNE = 20
    OPEN = 21
    CLOSE = 22
    HEARTBEAT = 23
    CONSUMER_UPDATE = 26
    STREAM_STATS = 28
    CREATE_SUPER_STREAM = 29
    DELETE_SUPER_STREAM = 30


class Code(IntEnum):
    """What an answer says."""

    OK = 1
    STREAM_DOES_NOT_EXIST = 2
    SUBSCRIPTION_ID_ALREADY_EXISTS = 3
    SUBSCRIPTION_ID_DOES_NOT_EXIST = 4
    STREAM_ALREADY_EXISTS = 5
    STREAM_NOT_AVAILABLE = 6
    SASL_MECHANISM_NOT_SUPPORTED = 7
    AUTHENTICATION_FAILURE = 8
    SASL_ERROR = 9
    SASL_CHALLENGE = 10
    SASL_AUTHENTICATION_FAILURE_LOOPBACK = 11
    VIRTUAL_HOST_ACCESS_FAILURE = 12
    UNKNOWN_FRAME = 13
    FRAME_TOO_LARGE = 14
    INTERNAL_ERROR = 15
    ACCESS_REFUSED = 16
    PRECONDITION_FAILED = 17
    PUBLISHER_DOES_NOT_EXIST = 18
    NO_OFFSET = 19


def code_name(code: int) -> str:
    """A code in words, as in results and errors."""
    try:
        return Code(code).name.lower().replace("_", " ")
    except ValueError:
        return f"code {code}"


class StreamError(BrokerError):
    """A request that the broker refused, with its code."""

    def __init__(self, address: str, what: str, code: int) -> None:
        super().__init__(f"rabbitmq at {address} refused {what}: {code_name(code)}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Offset:
    """Where a subscription begins: `value` is an offset, or ms since the epoch for `timestamp`; else None."""

    kind: Literal["none", "first", "last", "next", "offset", "timestamp"]
    value: int | None = None

    def __post_init__(self) -> None:
        if (self.kind in {"offset", "timestamp"}) != (self.value is not None):
            raise ScenarioError(f"offset specification {self.kind}: takes a value only as offset or timestamp")

    def encode(self) -> bytes:
        """As the protocol writes it."""
        number = ("none", "first", "last", "next", "offset", "timestamp").index(self.kind)
        if self.value is None:
            return struct.pack(">H", number)
        return struct.pack(">HQ" if self.kind == "offset" else ">Hq", number, self.value)


NONE, FIRST, LAST, NEXT = Offset("none"), Offset("first"), Offset("last"), Offset("next")


# --- writing ---


def text(value: str) -> bytes:
    """A string."""
    encoded = value.encode()
    return struct.pack(">h", len(encoded)) + encoded


def texts(values: Iterable[str]) -> bytes:
    """An array of strings."""
    encoded = [text(each) for each in values]
    return struct.pack(">i", len(encoded)) + b"".join(encoded)


def properties(values: Mapping[str, str]) -> bytes:
    """An array of keys with their values."""
    return struct.pack(">i", len(values)) + b"".join(text(key) + text(value) for key, value in values.items())


def blob(value: bytes) -> bytes:
    """Bytes behind their length."""
    return struct.pack(">i", len(value)) + value


def command(key: int, body: bytes = b"") -> bytes:
    """A frame that has no correlation: nobody answers it."""
    return _HEAD.pack(KEY.size + len(body), key, VERSION) + body


def request(key: int, correlation: int, body: bytes = b"") -> bytes:
    """A frame whose answer will have this correlation."""
    return command(key, struct.pack(">I", correlation) + body)


def answer(key: int, correlation: int, code: int, body: bytes = b"") -> bytes:
    """Our answer to a frame of the broker's."""
    return command(key | RESPONSE_BIT, _ANSWER.pack(correlation, code) + body)


# --- reading ---


class Reader:
    """Reads the fields of a frame in their order; struct.error where it ends too soon."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, form: str) -> int:
        """One whole number in struct's letter for it."""
        (value,) = struct.unpack_from(f">{form}", self._data, self._at)
        self._at += struct.calcsize(f">{form}")
        return int(value)

    def text(self) -> str:
        """A string; that of length −1 is empty."""
        length = max(0, self.number("h"))
        if self._at + length > len(self._data):
            raise struct.error("a text is cut short")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def texts(self) -> list[str]:
        """An array of strings."""
        return [self.text() for _ in range(self.number("i"))]

    def properties(self) -> dict[str, str]:
        """An array of keys with their values; the broker leaves out an empty one at a frame's end."""
        return {self.text(): self.text() for _ in range(self.number("i"))} if self._at < len(self._data) else {}

    def stats(self) -> dict[str, int]:
        """An array of names with numbers."""
        return {self.text(): self.number("q") for _ in range(self.number("i"))}


@dataclass(frozen=True, slots=True)
class Metadata:
    """Where streams are led: by stream its leader's (host, port), and the code of each that has none."""

    brokers: int
    leaders: dict[str, tuple[str, int]]
    missing: dict[str, int]

    @classmethod
    def read(cls, reader: Reader) -> Metadata:
        """From the answer to Metadata, which has no code of its own."""
        brokers: dict[int, tuple[str, int]] = {}
        for _ in range(reader.number("i")):
            reference = reader.number("H")
            brokers[reference] = (reader.text(), reader.number("I"))
        leaders: dict[str, tuple[str, int]] = {}
        missing: dict[str, int] = {}
        for _ in range(reader.number("i")):
            stream, code, leader = reader.text(), reader.number("H"), reader.number("H")
            for _ in range(reader.number("i")):
                reader.number("H")
            if code == Code.OK and leader in brokers:
                leaders[stream] = brokers[leader]
            else:
                missing[stream] = code if code != Code.OK else Code.STREAM_NOT_AVAILABLE
        return cls(len(brokers), leaders, missing)
