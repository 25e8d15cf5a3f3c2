"""Kafka's codecs, one record batch at a time through their C libraries, framed as the Java client frames them.

The number of a codec is its place in `CODECS`: the low three bits of a batch's attributes.
"""

from __future__ import annotations

import zlib

import cramjam
import lz4.frame
import zstandard

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
CODEC_MASK = 0x07
_GZIP_WBITS = 31  # zlib's way of saying: with a gzip header and trailer
# snappy-java's stream: a magic, two version numbers, then blocks of at most 32 KB, each behind its length.
_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_HEAD = _XERIAL_MAGIC + (1).to_bytes(4, "big") + (1).to_bytes(4, "big")
_XERIAL_BLOCK_BYTES = 32 << 10


class Codecs:
    """Compresses and decompresses record batches; keeps its contexts, so one for each producer or consumer."""

    def __init__(self) -> None:
        self._zstd_compressor = zstandard.ZstdCompressor()
        self._zstd_decompressor = zstandard.ZstdDecompressor()

    def compress(self, codec: int, data: memoryview) -> bytes:
        """The records section of a batch, compressed by codec number `codec` at the Java client's default level."""
        if codec == 1:
            packer = zlib.compressobj(wbits=_GZIP_WBITS)
            return packer.compress(data) + packer.flush()
        if codec == 2:
            return _snappy_compress(data)
        if codec == 3:
            lz4_bytes: bytes = lz4.frame.compress(
                data, block_size=lz4.frame.BLOCKSIZE_MAX64KB, block_linked=False, store_size=False
            )
            return lz4_bytes
        if codec == 4:
            return self._zstd_compressor.compress(data)
        raise ValueError(f"codec number {codec}: expected 1 … 4")

    def decompress(self, codec: int, data: memoryview) -> bytes:
        """The records section that codec number `codec` made, by whatever client; ValueError if it is damaged."""
        try:
            return self._decompress(codec, data)
        except (zlib.error, RuntimeError, zstandard.ZstdError, cramjam.DecompressionError) as error:
            raise ValueError(f"{CODECS[codec]}: {error}") from None

    def _decompress(self, codec: int, data: memoryview) -> bytes:
        if codec == 1:
            return zlib.decompress(data, _GZIP_WBITS)
        if codec == 2:
            return _snappy_decompress(data)
        if codec == 3:
            unpacked: bytes = lz4.frame.decompress(data)
            return unpacked
        if codec == 4:
            # Java's stream states no content size, which the one-shot call would ask for.
            stream = self._zstd_decompressor.decompressobj()
            whole = stream.decompress(data)
            if not stream.eof:
                raise zstandard.ZstdError("the stream is cut short")
            return whole
        raise ValueError(f"codec number {codec}: expected 1 … 4")


def _snappy_compress(data: memoryview) -> bytes:
    parts = [_XERIAL_HEAD]
    for begin in range(0, len(data), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(data[begin : begin + _XERIAL_BLOCK_BYTES]))
        parts += [len(block).to_bytes(4, "big"), block]
    return b"".join(parts)


def _snappy_decompress(view: memoryview) -> bytes:
    if view[: len(_XERIAL_MAGIC)] != _XERIAL_MAGIC:  # librdkafka and others may send one raw block
        return bytes(cramjam.snappy.decompress_raw(view))
    parts, at = [], len(_XERIAL_HEAD)
    while at < len(view):
        size_bytes = int.from_bytes(view[at : at + 4], "big")
        if at + 4 + size_bytes > len(view):
            raise ValueError("snappy: a block is cut short")
        parts.append(bytes(cramjam.snappy.decompress_raw(view[at + 4 : at + 4 + size_bytes])))
        at += 4 + size_bytes
    return b"".join(parts)
