"""What travels between processes and machines, as bytes that only ever become data again.

Locust's own link carries msgpack; pickles from a network would be code that a stranger sends. So the few classes that
travel are named here, and reading makes those and plain values, nothing else.
"""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from loadgen.agent import AgentSpec, Drained, Handed, Report, Result, Standstills
from loadgen.backlog import Backlog
from loadgen.bitcounts import BitCounts
from loadgen.driver import Target
from loadgen.endpoint import Credentials, Endpoint, Tls
from loadgen.ledger import ReceivedBook, SentBook
from loadgen.membership import Membership
from loadgen.part import Part
from loadgen.patterns import Pattern
from loadgen.recorder import IntervalDelta
from loadgen.scenario import Message, Rate
from loadgen.think import Think

if TYPE_CHECKING:
    from collections.abc import Iterator

PART_BYTES = 1 << 20  # more in one piece would keep Locust's loop busy for milliseconds while it is passed on

_OBJECT, _ARRAY = 1, 2
_CLASSES: dict[str, type[Any]] = {
    each.__name__: each
    for each in (
        AgentSpec, Backlog, BitCounts, Credentials, Drained, Endpoint, Handed, IntervalDelta, Membership, Message,
        Pattern, Rate, ReceivedBook, Report, Result, SentBook, Standstills, Target, Think, Tls,
    )
}  # fmt: skip
_BUILTIN: dict[str, type[Any]] = {
    "tuple": tuple, "set": set, "frozenset": frozenset, "Counter": Counter, "Path": Path,
}  # fmt: skip


def pack(value: Any) -> bytes:
    """Plain values, arrays and the classes above, as compressed bytes; raises TypeError for anything else."""
    return zlib.compress(_pack(value), 1)


def unpack(packed: bytes) -> Any:
    """The value again; raises ValueError for bytes that `pack` did not write."""
    try:
        return msgpack.unpackb(zlib.decompress(packed), ext_hook=_made, strict_map_key=False)
    except (zlib.error, msgpack.exceptions.UnpackException, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"a message that cannot be read: {error}") from None


def parts(packed: bytes) -> Iterator[bytes]:
    """The bytes in pieces that are small enough to be passed on."""
    for begin in range(0, len(packed), PART_BYTES):
        yield packed[begin : begin + PART_BYTES]


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, default=_told, strict_types=True)
    return packed


def _told(value: Any) -> Any:
    """What msgpack does not know, as a name and a state."""
    if isinstance(value, np.ndarray):
        plain = np.ascontiguousarray(value)
        return msgpack.ExtType(_ARRAY, msgpack.packb([plain.dtype.str, plain.shape, plain.tobytes()]))
    if isinstance(value, np.generic):
        return value.item()
    return _told_object(value)


def _told_object(value: Any) -> Any:
    if isinstance(value, range):
        return _object("range", [value.start, value.stop, value.step])
    if isinstance(value, Path):
        return _object("Path", str(value))
    name = type(value).__name__
    if type(value) is _BUILTIN.get(name):
        return _object(name, dict(value) if isinstance(value, Counter) else list(value))
    if type(value) is _CLASSES.get(name):
        return _object(name, _state(value))
    if isinstance(value, str):  # an enumeration's member
        return str(value)
    raise TypeError(f"{name}: does not travel between processes")


def _object(name: str, state: Any) -> Any:
    return msgpack.ExtType(_OBJECT, _pack([name, state]))


def _state(value: Any) -> Any:
    if isinstance(value, Part):
        return value.model_dump(mode="json")
    if isinstance(value, BitCounts):
        return list(value.__getstate__())
    if is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    return dict(vars(value))


def _made(code: int, data: bytes) -> Any:
    if code == _ARRAY:
        dtype, shape, raw = msgpack.unpackb(data)
        return np.frombuffer(raw, dtype).reshape(shape).copy()
    name, state = msgpack.unpackb(data, ext_hook=_made, strict_map_key=False)
    if name == "range":
        return range(*state)
    if name in _BUILTIN:
        return _BUILTIN[name](state)
    made = _CLASSES[name]
    if issubclass(made, Part):
        return made(**state)
    new = object.__new__(made)
    if isinstance(new, BitCounts):
        new.__setstate__(tuple(state))
        return new
    for each, value in state.items():
        object.__setattr__(new, each, value)  # also of a frozen dataclass
    return new
