"""The first fields of a JPEG XL file, which Pillow's plug-in decodes whole when it opens one (ISO/IEC 18181)."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

from rdn_fast.errors import why_no_file

_RATIOS = (None, (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of width to height
_ENOUGH = 64  # bytes of the codestream
_EDGE, _BITS = ((9, 1), (13, 1), (18, 1), (30, 1)), ((0, 8), (0, 10), (0, 12), (6, 1))


class JxlHeader(NamedTuple):
    """width, height: as stored, before the orientation. keeps_colours: the file stores the picture's own colours, as
    lossless ones do, and not XYB; None where the fields before it are of rare kinds.
    """

    width: int
    height: int
    keeps_colours: bool | None


def read_jxl_header(path: str | Path) -> JxlHeader | None:
    """Return the header of a JPEG XL file; None for other files, and for pipes, which would be waited for."""
    if why_no_file(path) is not None:
        return None
    with open(path, "rb") as file:
        stream = _codestream(file)
    return _parse(_Bits(stream[2:])) if stream[:2] == b"\xff\x0a" and len(stream) > 8 else None


def _codestream(file: BinaryIO) -> bytes:
    """Return the first bytes of the codestream, which lies in a box where the file has those."""
    head = file.read(12)
    if head != b"\0\0\0\x0cJXL \r\n\x87\n":
        return head + file.read(_ENOUGH)
    while len(head := file.read(8)) == 8:
        size, kind, start = int.from_bytes(head[:4]), head[4:], file.tell() - 8
        if size == 1:  # it follows as 64 bits
            size = int.from_bytes(file.read(8))
        if kind in (b"jxlc", b"jxlp"):
            return file.read(_ENOUGH)[4 * (kind == b"jxlp") :]  # jxlp: part of it, which begins with its number
        if size < 8:
            break
        file.seek(start + size)
    return b""


class _Bits:
    """Reads numbers, least significant bit first."""

    def __init__(self, data: bytes):
        self._left = int.from_bytes(data, "little")

    def read(self, bits: int) -> int:
        value = self._left & ((1 << bits) - 1)
        self._left >>= bits
        return value

    def choose(self, kinds: tuple[tuple[int, int], ...]) -> int:
        """Read a number of one of four kinds, each of so many bits, to which its offset is added."""
        bits, offset = kinds[self.read(2)]
        return self.read(bits) + offset


def _parse(stream: _Bits) -> JxlHeader:
    in_eights = stream.read(1)

    def edge() -> int:
        return 8 * (stream.read(5) + 1) if in_eights else stream.choose(_EDGE)

    height = edge()
    ratio = _RATIOS[stream.read(3)]
    width = height * ratio[0] // ratio[1] if ratio else edge()
    return JxlHeader(width, height, _keeps_colours(stream))


def _keeps_colours(stream: _Bits) -> bool | None:
    if stream.read(1):  # all fields have their default: XYB
        return False
    if stream.read(1):
        stream.read(3)  # orientation
        if stream.read(3):  # intrinsic size, preview, animation: more fields follow the bit that is set
            return None
    if stream.read(1):  # floats
        return None
    stream.choose(_BITS)
    stream.read(1)  # whether 16 bits suffice to decode
    kind = stream.read(2)  # of the number of extra channels
    if kind > 1 or (kind == 1 and not stream.read(1)):  # several, or one that is no usual alpha
        return None
    return not stream.read(1)
