"""RabbitMQ's stream protocol for a null broker: publishes and deliveries in bulk, the rare frames one by one."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from loadgen.drivers.wire.stream_frames import HEAD, ID_BYTES
from loadgen.drivers.wire.stream_protocol import (
    KEY,
    MAX_FRAME_BYTES,
    RESPONSE_BIT,
    VERSION,
    Code,
    Key,
    Reader,
    answer,
    command,
    properties,
    text,
    texts,
)
from loadgen.nullbroker.kafka_log import Stock
from loadgen.nullbroker.stream_log import Stream, Subscription, published

if TYPE_CHECKING:
    from loadgen.nullbroker.server import Peer

HOST, NODE = "127.0.0.1", 0
BUFFER_BYTES = 512 << 10
HEARTBEAT_S = 60  # as RabbitMQ ships it
_SIZE = struct.Struct(">I")
_CONFIRM = struct.Struct(">IHHBI")  # size, key, version, publisher, how many
_ERROR = struct.Struct(">IHHBIQH")  # … one publishing id and its code
_NO_SIZE_BYTES = 1 << 28  # less than what the first bytes of TLS or HTTP would be as a length
_LAST, _OFFSET, _TIMESTAMP = 2, 4, 5  # where a subscription may begin


class StreamRelay:
    """All streams of a null broker that listens on `port`, and which make up each super stream."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.stock = Stock()
        self.streams: dict[str, Stream] = {}
        self.supers: dict[str, list[str]] = {}

    def session(self, peer: Peer) -> StreamSession:
        """A client has connected."""
        return StreamSession(self, peer)

    def turn(self) -> None:
        """Hand out what came: chunks are of all that came in a turn."""
        for stream in self.streams.values():
            stream.deliver()

    def wait_s(self) -> float | None:
        """Nothing happens by itself."""
        return None


class StreamSession:
    """One connection with its publishers and its subscriptions."""

    def __init__(self, relay: StreamRelay, peer: Peer) -> None:
        self._relay = relay
        self._peer = peer
        self._raw = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._raw)
        self._begin = self._end = 0
        self._publishers: dict[int, Stream] = {}
        self._subscriptions: dict[int, tuple[Stream, Subscription]] = {}

    def readable(self) -> None:
        """Take what has come; who speaks another protocol is hung up on."""
        self._end += self._peer.read_into(self._view[self._end :])
        need_bytes = 0
        try:
            while self._end - self._begin >= _SIZE.size:
                (size_bytes,) = _SIZE.unpack_from(self._raw, self._begin)
                if not KEY.size <= size_bytes < _NO_SIZE_BYTES:
                    raise EOFError
                need_bytes = _SIZE.size + size_bytes
                past = self._begin + need_bytes
                if past > self._end:
                    break
                begin, self._begin, need_bytes = self._begin, past, 0
                self._frame(begin, past)
        except (struct.error, IndexError, UnicodeDecodeError):
            raise EOFError from None  # a frame that is not what it says
        self._make_room(need_bytes)

    def _make_room(self, need_bytes: int) -> None:
        """Move what is not parsed to the front, into a larger buffer where a frame needs one."""
        rest = bytes(self._view[self._begin : self._end])
        if need_bytes > len(self._raw):
            self._raw = bytearray(2 * need_bytes)
            self._view = memoryview(self._raw)
        self._raw[: len(rest)] = rest
        self._begin, self._end = 0, len(rest)

    def _frame(self, begin: int, end: int) -> None:
        key, _ = KEY.unpack_from(self._raw, begin + _SIZE.size)
        if key == Key.PUBLISH:
            self._publish(begin, end)
        elif key == Key.HEARTBEAT:
            self._peer.write(command(Key.HEARTBEAT))
        elif not key & RESPONSE_BIT:  # an answer to one of ours is none of our business
            self._handle(key, Reader(bytes(self._view[begin + _SIZE.size + KEY.size : end])))

    def _publish(self, begin: int, end: int) -> None:
        _, _, _, publisher, entries = HEAD.unpack_from(self._raw, begin)
        messages = published(self._view, begin + HEAD.size, end, entries)
        stream = self._publishers.get(publisher)
        if stream is None:
            for identity in np.frombuffer(messages.ids, ">u8").tolist():
                size_bytes, code = _ERROR.size - _SIZE.size, Code.PUBLISHER_DOES_NOT_EXIST
                self._peer.write(_ERROR.pack(size_bytes, Key.PUBLISH_ERROR, VERSION, publisher, 1, identity, code))
            return
        stream.publish(messages, self._peer)
        size_bytes = _CONFIRM.size - _SIZE.size + entries * ID_BYTES
        self._peer.write(_CONFIRM.pack(size_bytes, Key.PUBLISH_CONFIRM, VERSION, publisher, entries) + messages.ids)

    def _handle(self, key: int, reader: Reader) -> None:
        """Answer a rare frame; who asks for what a null broker does not know is hung up on."""
        try:
            name = Key(key).name.lower()
        except ValueError:
            raise EOFError from None
        if (heed := getattr(self, f"_heed_{name}", None)) is not None:
            heed(reader)
            return
        if (reply := getattr(self, f"_on_{name}", None)) is None:
            raise EOFError
        correlation = reader.number("I")
        code, body = reply(reader)
        if key == Key.METADATA:  # which has no code of its own
            self._peer.write(command(key | RESPONSE_BIT, struct.pack(">I", correlation) + body))
        else:
            self._peer.write(answer(key, correlation, code, body))
        if key == Key.SASL_AUTHENTICATE:
            self._peer.write(command(Key.TUNE, struct.pack(">II", MAX_FRAME_BYTES, HEARTBEAT_S)))

    def closed(self) -> None:
        """The client is gone, and so are its subscriptions."""
        for stream, subscription in self._subscriptions.values():
            if subscription in stream.subscriptions:
                stream.leave(subscription)
        self._subscriptions.clear()

    # --- frames that nobody answers, by their names ---

    def _heed_tune(self, _: Reader) -> None:
        pass

    def _heed_credit(self, reader: Reader) -> None:
        number, count = reader.number("B"), reader.number("H")
        if number in self._subscriptions:
            self._subscriptions[number][1].chunks_left += count

    def _heed_store_offset(self, reader: Reader) -> None:
        name, stream, offset = reader.text(), reader.text(), reader.number("Q")
        if stream in self._relay.streams:
            self._relay.streams[stream].offsets[name] = offset

    # --- requests, by their names: each gives the code and the body of its answer ---

    def _on_peer_properties(self, _: Reader) -> tuple[Code, bytes]:
        return Code.OK, properties({"product": "null broker"})

    def _on_sasl_handshake(self, _: Reader) -> tuple[Code, bytes]:
        return Code.OK, texts(["PLAIN"])

    def _on_sasl_authenticate(self, _: Reader) -> tuple[Code, bytes]:
        return Code.OK, b""

    def _on_open(self, _: Reader) -> tuple[Code, bytes]:
        return Code.OK, properties({"advertised_host": HOST, "advertised_port": str(self._relay.port)})

    def _on_close(self, _: Reader) -> tuple[Code, bytes]:
        self.closed()
        return Code.OK, b""

    def _on_create(self, reader: Reader) -> tuple[Code, bytes]:
        return self._create([reader.text()]), b""

    def _on_create_super_stream(self, reader: Reader) -> tuple[Code, bytes]:
        name, streams = reader.text(), reader.texts()
        code = Code.STREAM_ALREADY_EXISTS if name in self._relay.supers else self._create(streams)
        if code == Code.OK:
            self._relay.supers[name] = streams
        return code, b""

    def _create(self, names: list[str]) -> Code:
        if any(name in self._relay.streams for name in names):
            return Code.STREAM_ALREADY_EXISTS
        self._relay.streams |= {name: Stream(self._relay.stock) for name in names}
        return Code.OK

    def _on_delete(self, reader: Reader) -> tuple[Code, bytes]:
        return self._delete([reader.text()]), b""

    def _on_delete_super_stream(self, reader: Reader) -> tuple[Code, bytes]:
        return self._delete(self._relay.supers.pop(reader.text(), [])), b""

    def _delete(self, names: list[str]) -> Code:
        found = [self._relay.streams.pop(name) for name in names if name in self._relay.streams]
        for stream in found:
            stream.delete()
        return Code.OK if found else Code.STREAM_DOES_NOT_EXIST

    def _on_metadata(self, reader: Reader) -> tuple[Code, bytes]:
        body = struct.pack(">iH", 1, NODE) + text(HOST) + struct.pack(">I", self._relay.port)
        names = reader.texts()
        body += struct.pack(">i", len(names))
        for name in names:
            code = Code.OK if name in self._relay.streams else Code.STREAM_DOES_NOT_EXIST
            body += text(name) + struct.pack(">HHi", code, NODE, 0)
        return Code.OK, body

    def _on_declare_publisher(self, reader: Reader) -> tuple[Code, bytes]:
        number, _, name = reader.number("B"), reader.text(), reader.text()
        if name not in self._relay.streams:
            return Code.STREAM_DOES_NOT_EXIST, b""
        self._publishers[number] = self._relay.streams[name]
        return Code.OK, b""

    def _on_delete_publisher(self, reader: Reader) -> tuple[Code, bytes]:
        found = self._publishers.pop(reader.number("B"), None)
        return Code.OK if found is not None else Code.PUBLISHER_DOES_NOT_EXIST, b""

    def _on_query_publisher_sequence(self, _: Reader) -> tuple[Code, bytes]:
        return Code.OK, struct.pack(">Q", 0)  # nobody is told apart by a name

    def _on_subscribe(self, reader: Reader) -> tuple[Code, bytes]:
        number, name, kind = reader.number("B"), reader.text(), reader.number("H")
        if kind in {_OFFSET, _TIMESTAMP}:
            reader.number("Q")
        chunks_left, told = reader.number("H"), reader.properties()
        stream = self._relay.streams.get(name)
        if stream is None:
            return Code.STREAM_DOES_NOT_EXIST, b""
        if number in self._subscriptions:
            return Code.SUBSCRIPTION_ID_ALREADY_EXISTS, b""
        if told.get("single-active-consumer") == "true":
            return Code.PRECONDITION_FAILED, b""  # who is active is a thing that a null broker does not decide
        subscription = Subscription(self._peer, number, chunks_left)
        self._subscriptions[number] = stream, subscription
        stream.subscribe(subscription, only_last=kind == _LAST)
        return Code.OK, b""

    def _on_unsubscribe(self, reader: Reader) -> tuple[Code, bytes]:
        number = reader.number("B")
        if number not in self._subscriptions:
            return Code.SUBSCRIPTION_ID_DOES_NOT_EXIST, b""
        stream, subscription = self._subscriptions.pop(number)
        if subscription in stream.subscriptions:
            stream.leave(subscription)
        return Code.OK, b""

    def _on_query_offset(self, reader: Reader) -> tuple[Code, bytes]:
        name, stream = reader.text(), reader.text()
        if stream not in self._relay.streams:
            return Code.STREAM_DOES_NOT_EXIST, struct.pack(">Q", 0)
        offset = self._relay.streams[stream].offsets.get(name)
        return Code.NO_OFFSET if offset is None else Code.OK, struct.pack(">Q", offset or 0)

    def _on_stream_stats(self, reader: Reader) -> tuple[Code, bytes]:
        stream = self._relay.streams.get(reader.text())
        if stream is None:
            return Code.STREAM_DOES_NOT_EXIST, b""
        # Every offset from 0 on counts as there, so that what a stream took can be told from its ends.
        told = {"first_chunk_id": 0 if stream.end else -1, "committed_chunk_id": stream.end - 1}
        return Code.OK, struct.pack(">i", len(told)) + b"".join(
            text(name) + struct.pack(">q", value) for name, value in told.items()
        )
