"""Chunks of a PNG file: those that Pillow does not keep, and those that unpack to more than Pillow takes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PACKED = (b"iCCP", b"zTXt", b"iTXt")
_PILLOWS_MOST = 2**20  # bytes that such a chunk may unpack to; a file with a larger one is refused
_MOST = 2**25  # bytes that we unpack


class Chunk(NamedTuple):
    name: bytes
    start: int  # of the chunk's length field in the file
    data: bytes


def read_chunks(path: str | Path, behind_pixels: bool = False) -> Iterator[Chunk]:
    """Yield the chunks before the pixels, as far as they are whole; none of a file that is no PNG.

    behind_pixels: those behind the pixels, too.
    """
    with open(path, "rb") as file:
        if file.read(8) != SIGNATURE:
            return
        while len(head := file.read(8)) == 8:
            size, name = struct.unpack(">I4s", head)
            start = file.tell() - 8
            if name == b"IDAT" and behind_pixels:
                file.seek(size + 4, 1)
                continue
            if name == b"IDAT" or len(data := file.read(size)) < size or len(file.read(4)) < 4:
                return
            yield Chunk(name, start, data)


def without_large_chunks(path: str | Path) -> io.BytesIO | None:
    """Return the file's content without the chunks that Pillow would refuse it for; None where there are none."""
    large = [chunk for chunk in read_chunks(path) if chunk.name in _PACKED and unpacked(chunk, _PILLOWS_MOST) is None]
    if not large:
        return None
    content, parts, at = Path(path).read_bytes(), [], 0
    for chunk in large:
        parts.append(content[at : chunk.start])
        at = chunk.start + 12 + len(chunk.data)
    return io.BytesIO(b"".join([*parts, content[at:]]))


def read_profile(path: str | Path) -> bytes | None:
    """Return the ICC profile of a PNG file; None without one, for a damaged one, and for one of more than 32 MiB."""
    profiles = (unpacked(chunk) for chunk in read_chunks(path) if chunk.name == b"iCCP")
    return next(profiles, None) or None


def unpacked(chunk: Chunk, most: int = _MOST) -> bytes | None:
    """Return what a packed chunk unpacks to; None for more than `most` bytes. Empty for a damaged chunk."""
    _, _, rest = chunk.data.partition(b"\0")
    if chunk.name == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        if not packed:
            return rest
    else:
        rest = rest[1:]  # the method
    unpacking = zlib.decompressobj()
    try:
        unpacked = unpacking.decompress(rest, most)
    except zlib.error:
        return b""
    return None if unpacking.unconsumed_tail else unpacked
