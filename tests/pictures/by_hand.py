"""Random arrays, a stand-in for the model, and PNG and TIFF files written and read by the formats' descriptions.

Pillow can neither write nor read PNG files of 16-bit colours, and writes no grey of 2, 4 or 12 bits.
"""

import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RNG = np.random.default_rng(0)
RGB, GREY = (RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((11, 7, 3), (11, 7)))
ALPHA = RNG.integers(1, 256, (11, 7), dtype=np.uint8)  # 0 would change the colours below it
RGB16, ALPHA16 = (RNG.integers(0, 65536, shape, dtype=np.uint16) for shape in ((11, 7, 3), (11, 7)))
GREY16 = RGB16[..., 0]
DEEP = {
    "grey": GREY16[..., None],
    "grey, alpha": np.dstack([GREY16, ALPHA16]),
    "RGB": RGB16,
    "RGBA": np.dstack([RGB16, ALPHA16]),
}


def repeated(image: np.ndarray) -> np.ndarray:
    """Enlarge by 2 as a model would, [H, W, 3] -> [2*H, 2*W, 3]: nearest neighbours."""
    assert image.ndim == 3
    assert image.shape[2] == 3
    return image.repeat(2, axis=0).repeat(2, axis=1)


def twice(picture) -> tuple[int, int]:
    """Width and height of a Picture through repeated()."""
    return 2 * picture.size[0], 2 * picture.size[1]


def opened(path) -> tuple[str, np.ndarray]:
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


def large(array: np.ndarray) -> np.ndarray:
    return array.repeat(2, axis=0).repeat(2, axis=1)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_grey(rows: list[list[int]], bits: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of grey with 1, 2, 4 or 8 bits and these chunks before its pixels."""
    header = struct.pack(">2I5B", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    stream = b"".join(b"\0" + packed(row, bits) for row in rows)
    parts = (b"IHDR", header), *chunks, (b"IDAT", zlib.compress(stream)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff_of_grey(rows: list[list[int]], bits: int, **tags: int) -> bytes:
    """A little-endian TIFF of grey, uncompressed. tags: planes=2, signed=2, white_is_zero=0, by number in `known`."""
    known = {"planes": 284, "signed": 339, "white_is_zero": 262}
    data = b"".join(packed(row, bits) for row in rows)
    entries = {256: len(rows[0]), 257: len(rows), 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: len(rows)}
    entries |= {279: len(data)} | {known[name]: value for name, value in tags.items()}
    directory = b"".join(struct.pack("<2H2I", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    at = 8 + len(data) + len(data) % 2
    return (
        b"II*\0"
        + struct.pack("<I", at)
        + data.ljust(at - 8, b"\0")
        + (struct.pack("<H", len(entries)) + directory + bytes(4))
    )


def packed(row: list[int], bits: int) -> bytes:
    """A row's samples one after the other, most significant bit first, filled up to a byte; 16 bits little-endian."""
    if bits >= 16:
        return b"".join((value % 2**bits).to_bytes(bits // 8, "little") for value in row)
    text = "".join(f"{value % 2**bits:0{bits}b}" for value in row)
    return bytes(int(text[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(text), 8))


def png16(pixels: np.ndarray, filters: str = "01234", *chunks: tuple[bytes, bytes]) -> bytes:
    """pixels: uint16 [H, W, C]; row y is stored with filter filters[y % len]."""
    height, width, channels = pixels.shape
    step = 2 * channels
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    stream = b""
    for y, row in enumerate(rows):
        kind = int(filters[y % len(filters)])
        left, above = np.r_[[0] * step, row[:-step]], rows[y - 1] if y else 0 * row
        corner = np.r_[[0] * step, above[:-step]]
        stream += bytes([kind]) + ((row - predicted(kind, left, above, corner)) % 256).astype(np.uint8).tobytes()
    header = struct.pack(">2I5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = (b"IHDR", header), *chunks, (b"IDAT", zlib.compress(stream)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def predicted(kind, left, above, corner):
    distances = [abs(left + above - corner - x) for x in (left, above, corner)]
    paeth = np.where(
        (distances[0] <= distances[1]) & (distances[0] <= distances[2]),
        left,
        np.where(distances[1] <= distances[2], above, corner),
    )
    return (0, left, above, (left + above) // 2, paeth)[kind]


def pixels_of_png16(content: bytes) -> np.ndarray:
    """uint16 [H, W, C]; checks every chunk's checksum."""
    at, stream = 8, b""
    while at < len(content):
        (size,), name = struct.unpack(">I", content[at : at + 4]), content[at + 4 : at + 8]
        data = content[at + 8 : at + 8 + size]
        assert struct.unpack(">I", content[at + 8 + size : at + 12 + size])[0] == zlib.crc32(name + data)
        if name == b"IHDR":
            width, height, bits, colours, *rest = struct.unpack(">2I5B", data)
            assert (bits, rest) == (16, [0, 0, 0])
            channels = {0: 1, 4: 2, 2: 3, 6: 4}[colours]
        stream += data if name == b"IDAT" else b""
        at += 12 + size
    step, lines = 2 * channels, np.frombuffer(zlib.decompress(stream), np.uint8).reshape(height, -1).astype(int)
    rows = np.zeros((height + 1, 2 * width * channels + step), int)  # a row above and a pixel at the left, all zeros
    for y, line in enumerate(lines, 1):
        for x, byte in enumerate(line[1:], step):
            around = (np.array(value) for value in (rows[y, x - step], rows[y - 1, x], rows[y - 1, x - step]))
            rows[y, x] = (byte + predicted(line[0], *around)) % 256
    return np.ascontiguousarray(rows[1:, step:].astype(np.uint8)).view(">u2").reshape(height, width, channels)
