"""More than 200 odd files for a folder: pictures of every kind that Pillow knows, damaged ones, and others.

Each has a stem of its own. All pictures are 24 x 20 pixels (icons 32 x 32), turned ones 20 x 24.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from by_hand import SRGB, chunk, tiff_of_grey
from PIL import Image, features
from PIL.ExifTags import Base

HEIGHT, WIDTH = 20, 24
RNG = np.random.default_rng(0)
RGB = np.add.outer(np.arange(HEIGHT) * 3, np.arange(WIDTH) * 5)[..., None] // 2 + np.array([10, 60, 110])
RGB = (RGB + RNG.integers(-8, 9, RGB.shape)).astype(np.uint8)  # smooth, so that lossy formats stay near
RGB16 = (RGB.astype(np.uint32) * 257 + RNG.integers(-60, 61, RGB.shape)).astype(np.uint16)
ALPHA = np.where(np.arange(WIDTH) < WIDTH // 2, 255, 100).astype(np.uint8) * np.ones((HEIGHT, 1), np.uint8)
GREY, GREY16 = RGB[..., 0], RGB16[..., 0]
# What turns a picture that is stored in orientation 1 to 8 upright.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


class Odd(NamedTuple):
    """pixels: uint8 [H, W, 3] that every command must see, None where the format loses some. refused: a part of the
    reason, None for a picture that is read, "" where Pillow's version decides."""

    name: str | bytes
    content: bytes
    pixels: np.ndarray | None = None
    refused: str | None = None


def odd_files() -> Iterator[Odd]:
    """Yield all files. Names are unique, whatever the extension."""
    for number, odd in enumerate(
        itertools.chain(of_pillow(), pngs(), tiffs(), jpegs(), others(), damaged(), wrongly_named(), no_pictures())
    ):
        name = odd.name if isinstance(odd.name, bytes) else odd.name.encode()
        yield odd._replace(name=b"%03d " % number + name)


def write(folder: Path) -> dict[Path, Odd]:
    """Write all files to a folder; return what each is."""
    files = {Path(os.fsdecode(os.path.join(os.fsencode(folder), odd.name))): odd for odd in odd_files()}
    for path, odd in files.items():
        path.write_bytes(odd.content)
    return files


def three(pixels: np.ndarray) -> np.ndarray:
    """Grey or colours, uint8 or uint16, without alpha -> uint8 [H, W, 3]."""
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.dstack([pixels] * 3)


def saved(image: Image.Image | np.ndarray, format: str, **options) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


# ---- every mode in every format that Pillow writes ----

LOSSLESS = {"BMP", "DIB", "IM", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "QOI", "DDS"}
EXACT = {"1", "L", "RGB", "RGBA", "LA"}
FLOATS = {"IM", "PPM", "TIFF"}  # that keep them; others round, SPIDER makes floats of everything
NOT_READ = {"EPS", "PALM", "PDF"}  # by Pillow alone


def of_pillow() -> Iterator[Odd]:
    Image.init()
    extensions = {format: extension for extension, format in reversed(Image.registered_extensions().items())}
    opaque = Image.fromarray(RGB)
    images = [opaque.convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV")]
    images += [Image.fromarray(np.dstack([RGB, ALPHA])), Image.fromarray(np.dstack([GREY, ALPHA]))]
    images += [images[-2].convert("PA"), images[-2].convert("RGBa"), opaque.convert("RGBX")]
    images += [Image.fromarray(GREY16), Image.fromarray(GREY16.astype(np.int32)), Image.fromarray(GREY / np.float32(2))]
    for format, image in itertools.product(sorted(Image.SAVE), images):
        with contextlib.suppress(Exception):  # a mode that the format does not hold
            options = {"sizes": [image.size]} if format == "ICO" else {}  # by itself 16 x 12, too small to be measured
            if not (content := saved(image, format, **options)) or (format == "ICNS" and image.mode != "RGB"):
                continue
            refused = "not a picture" if format in NOT_READ else None
            if format == "SPIDER" or (image.mode == "F" and format in FLOATS):
                refused = "no defined range"
            exact = format in LOSSLESS and image.mode in EXACT
            pixels = np.asarray(image.convert("RGB")) if exact else None
            mode = image.mode.replace(";", "")
            yield Odd(f"{format} {mode}{extensions.get(format, '.' + format.lower())}", content, pixels, refused)
    for size in (16, 32):
        icon = Image.fromarray(np.kron(RGB[:16, :16], np.ones((size // 16, size // 16, 1), np.uint8)))
        yield Odd(f"icon {size}.ico", saved(icon, "ICO", sizes=[(size, size)]), np.asarray(icon))


# ---- PNG: all types and depths, interlaced too, transparent colours, chunks ----

ADAM7 = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)  # x, y, steps
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of the colour types


def png(samples: np.ndarray, bits: int, kind: int, interlaced: bool, *chunks: tuple[bytes, bytes]) -> bytes:
    """samples: [H, W, C], of colour type `kind`."""
    height, width, _ = samples.shape
    header = struct.pack(">2I5B", width, height, bits, kind, 0, 0, interlaced)
    passes = [samples[y::high, x::wide] for x, y, wide, high in (ADAM7 if interlaced else [(0, 0, 1, 1)])]
    stream = b"".join(b"\0" + _packed(row.ravel(), bits) for each in passes for row in each)
    parts = (b"IHDR", header), *chunks, (b"IDAT", zlib.compress(stream)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _packed(row: np.ndarray, bits: int) -> bytes:
    if bits >= 8:
        return row.astype(f">u{bits // 8}").tobytes()
    return np.packbits((row[:, None] >> np.arange(bits - 1, -1, -1)) & 1).tobytes()


def pngs() -> Iterator[Odd]:
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    for interlaced, (kind, channels) in itertools.product((False, True), CHANNELS.items()):
        for bits in {0: (1, 2, 4, 8, 16), 3: (1, 2, 4, 8)}.get(kind, (8, 16)):
            samples = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, channels))
            if kind == 3:
                pixels = palette[samples[..., 0]]
            else:
                colours = samples[..., : 3 if channels > 2 else 1]
                pixels = three(
                    np.rint(np.broadcast_to(colours, (HEIGHT, WIDTH, 3)) * 255 / (2**bits - 1)).astype(np.uint8)
                )
            table = ((b"PLTE", palette[: 2**bits].tobytes()),) if kind == 3 else ()
            name = f"png type {kind} {bits} bits{' interlaced' * interlaced}"
            yield Odd(f"{name}.png", png(samples, bits, kind, interlaced, *table), pixels)
            if kind in (0, 2):
                key = b"".join(int(value).to_bytes(2, "big") for value in samples[3, 4])
                yield Odd(f"{name} tRNS.png", png(samples, bits, kind, interlaced, (b"tRNS", key)), pixels)
            elif kind == 3:
                yield Odd(
                    f"{name} tRNS.png", png(samples, bits, kind, interlaced, *table, (b"tRNS", b"\0\x80")), pixels
                )
    large = zlib.compress(SRGB + bytes(2**21))
    for name, data in {
        "gAMA": struct.pack(">I", 100_000),
        "cICP": bytes((9, 16, 0, 1)),
        "iCCP": b"x\0\0" + zlib.compress(SRGB),
        "iCCP large": b"x\0\0" + large,
        "iCCP damaged": b"x\0\0nonsense",
        "tEXt": b"parameters\0a cat",
        "zTXt bomb": b"a\0\0" + zlib.compress(bytes(2**25)),
        "iTXt": b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta/>",
        "eXIf damaged": b"MM\0*\xff\xff\xff\xff",
        "pHYs": struct.pack(">2IB", 0, 0, 1),
        "zzZz": b"unknown",
    }.items():
        yield Odd(f"png {name}.png", png(RGB, 8, 2, False, (name[:4].encode(), data)), RGB)
    for orientation, turn in TURNS.items():
        exif = Image.Exif()
        exif[Base.Orientation] = orientation
        yield Odd(f"png turned {orientation}.png", saved(RGB, "PNG", exif=exif), turn(RGB))
        deep = png(RGB16, 16, 2, False, (b"eXIf", exif.tobytes()[6:]))
        yield Odd(f"png deep turned {orientation}.png", deep, three(turn(RGB16)))
    frames = [Image.fromarray(255 - RGB)]
    yield Odd("png animated.png", saved(RGB, "PNG", save_all=True, append_images=frames), RGB)
    hidden = saved(RGB, "PNG", save_all=True, append_images=frames, default_image=True)
    yield Odd("png animated, another first.png", hidden, RGB)


# ---- TIFF: compressions, depths, photometric kinds, tiles, planes, byte orders, pages ----


def tiff(pixels: np.ndarray, photometric: str = "minisblack", **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric=photometric, **{"metadata": None} | options)
    return file.getvalue()


def tiffs() -> Iterator[Odd]:
    for compression in ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "zstd", "lzma"):
        for name, pixels in {"RGB": RGB, "L": GREY, "I16": GREY16}.items():
            with contextlib.suppress(Exception):  # a compression that this libtiff does not have
                yield Odd(
                    f"tif {compression} {name}.tif", saved(pixels, "TIFF", compression=compression), three(pixels)
                )
    for compression in ("group3", "group4", "tiff_ccitt", "packbits"):
        bits = Image.fromarray(GREY).convert("1")
        yield Odd(
            f"tif {compression} 1.tif",
            saved(bits, "TIFF", compression=compression),
            three(np.asarray(bits) * np.uint8(255)),
        )
    yield Odd("tif jpeg.tif", saved(RGB, "TIFF", compression="jpeg"))
    layouts = {
        "tiled": {"tile": (16, 16)},
        "big-endian": {"byteorder": ">"},
        "BigTIFF": {"bigtiff": True},
        "deflate, predictor": {"compression": "zlib", "predictor": True},
        "tiled, deflate, big-endian": {"tile": (16, 16), "compression": "zlib", "byteorder": ">"},
        "strips of 3": {"rowsperstrip": 3},
    }
    for name, options in layouts.items():
        for kind, pixels in {"RGB": RGB, "RGB 16": RGB16, "grey 16": GREY16}.items():
            photometric = "rgb" if pixels.ndim == 3 else "minisblack"
            with contextlib.suppress(ImportError, KeyError):  # needs imagecodecs
                yield Odd(f"tif {name} {kind}.tif", tiff(pixels, photometric, **options), three(pixels))
    for kind, pixels in {"RGB": RGB, "RGB 16": RGB16}.items():
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        deep = pixels.dtype == np.uint16
        content = tiff(planes, "rgb", planarconfig="separate")
        yield Odd(f"tif planes {kind}.tif", content, None if deep else RGB, "channels lie apart" if deep else None)
    for kind, pixels in {"8": GREY, "16": GREY16}.items():
        yield Odd(
            f"tif white is zero {kind}.tif", tiff(pixels, "miniswhite"), three(np.iinfo(pixels.dtype).max - pixels)
        )
    for bits in (1, 2, 4, 8, 10, 12, 14, 16):
        samples = RNG.integers(0, 2**bits, (HEIGHT, WIDTH))
        pixels = three(np.rint(samples * 255 / (2**bits - 1)).astype(np.uint8))
        refused = "BitsPerSample" if bits in (10, 14) else None
        content = tiff_of_grey(samples.tolist(), bits)
        yield Odd(f"tif grey {bits} bits.tif", content, None if refused else pixels, refused)
        refused = "BitsPerSample" if bits in (10, 12, 14) else None
        content = tiff_of_grey(samples.tolist(), bits, white_is_zero=0)
        yield Odd(f"tif grey {bits} bits, white is zero.tif", content, None if refused else 255 - pixels, refused)
    values = GREY16.astype(np.int64)
    yield Odd("tif uint32 small.tif", tiff(values.astype(np.uint32)), three(GREY16))
    for dtype, shift in (("uint32", 2**31), ("int32", -40_000), ("int16", -(2**15)), ("int8", -300)):
        yield Odd(f"tif {dtype}.tif", tiff((values + shift).astype(dtype)), None, "no defined range")
    for dtype in ("float32", "float64", "float16", "uint64"):
        yield Odd(f"tif {dtype}.tif", tiff(values.astype(dtype)), None, "")
    yield Odd("tif RGB float.tif", tiff(RGB.astype(np.float32), "rgb"), None, "")
    for kind, pixels in {"8": np.dstack([RGB, ALPHA]), "16": np.dstack([RGB16, ALPHA.astype(np.uint16) * 257])}.items():
        yield Odd(f"tif RGBA {kind}.tif", tiff(pixels, "rgb", extrasamples=["unassalpha"]), three(pixels[..., :3]))
        yield Odd(f"tif RGBA premultiplied {kind}.tif", tiff(pixels, "rgb", extrasamples=["assocalpha"]))
        yield Odd(f"tif CMYK {kind}.tif", tiff(pixels, "separated"))
    yield Odd("tif grey, alpha.tif", tiff(np.dstack([GREY, ALPHA]), extrasamples=["unassalpha"]), three(GREY))
    yield Odd("tif grey, alpha 16.tif", tiff(np.dstack([GREY16, GREY16]), extrasamples=["unassalpha"]), None, "")
    yield Odd("tif five channels.tif", tiff(np.dstack([RGB, GREY, GREY]), "rgb"), None, "")
    yield Odd("tif pages.tif", saved(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(255 - RGB)]), RGB)
    yield Odd("tif georeferenced.tif", tiff(RGB, "rgb", extratags=[(33550, "d", 3, (1.0, 1.0, 0.0), True)]), RGB)
    for orientation, turn in TURNS.items():
        for kind, pixels in {"": RGB, "deep ": RGB16}.items():
            content = tiff(pixels, "rgb", extratags=[(274, "H", 1, orientation, True)])
            yield Odd(f"tif {kind}turned {orientation}.tif", content, three(turn(pixels)))


# ---- JPEG and the rest ----


def jpegs() -> Iterator[Odd]:
    image = Image.fromarray(RGB)
    cmyk = image.convert("CMYK")
    kinds = {
        "progressive": {"progressive": True},
        "4-2-0": {"subsampling": 2},
        "4-2-2": {"subsampling": 1},
        "restarts": {"restart_marker_rows": 1},
        "comment": {"comment": "café".encode()},
        "profile": {"icc_profile": SRGB},
        "XMP": {"xmp": b"<x:xmpmeta/>"},
        "quality 1": {"quality": 1},
        "RGB kept": {"keep_rgb": True},
        "damaged EXIF": {"exif": b"Exif\0\0MM\0*\xff\xff\xff\xff"},
    }
    for name, options in kinds.items():
        yield Odd(f"jpeg {name}.jpg", saved(image, "JPEG", **options))
    yield Odd("jpeg grey progressive.jpeg", saved(image.convert("L"), "JPEG", progressive=True))
    yield Odd("jpeg CMYK.jpe", saved(cmyk, "JPEG"))
    yield Odd("jpeg CMYK with a profile of RGB.jpg", saved(cmyk, "JPEG", icc_profile=SRGB))
    content = saved(image, "JPEG")
    yield Odd("jpeg trailing bytes.jfif", content + b"trailing" * 50)
    yield Odd("jpeg twice.jpg", content + content)
    yield Odd("jpeg mpo.jpg", saved(image, "MPO", save_all=True, append_images=[image.rotate(180)]))
    for orientation in TURNS:
        exif = Image.Exif()
        exif[Base.Orientation] = orientation
        yield Odd(f"jpeg turned {orientation}.jpg", saved(image, "JPEG", exif=exif))


def others() -> Iterator[Odd]:
    image, clear = Image.fromarray(RGB), Image.fromarray(np.dstack([RGB, ALPHA]))
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}
    yield Odd("webp lossless.webp", saved(image, "WEBP", lossless=True), RGB)
    yield Odd("webp lossless, alpha.webp", saved(clear, "WEBP", lossless=True), RGB)
    yield Odd("webp lossy, alpha.webp", saved(clear, "WEBP", quality=50))
    yield Odd("webp animated.webp", saved(image, "WEBP", lossless=True, **frames), RGB)
    yield Odd("gif animated.gif", saved(image.convert("P"), "GIF", **frames))
    yield Odd("gif transparent.gif", saved(image.convert("P"), "GIF", transparency=3))
    yield Odd("gif interlaced.gif", saved(GREY, "GIF", interlace=1), three(GREY))
    for kind, options in {"lossless": {"irreversible": False}, "lossy": {"irreversible": True}}.items():
        if features.check_codec("jpg_2000"):
            exact = RGB if kind == "lossless" else None
            yield Odd(f"jpeg2000 {kind}.jp2", saved(image, "JPEG2000", **options), exact)
            yield Odd(
                f"jpeg2000 {kind} 16.j2k",
                saved(GREY16, "JPEG2000", **options),
                exact if exact is None else three(GREY16),
            )
    if features.check_module("avif"):
        yield Odd("avif.avif", saved(image, "AVIF"))
        yield Odd("avif alpha.avif", saved(clear, "AVIF"))
        exif = Image.Exif()
        exif[Base.Orientation] = 6
        yield Odd("avif turned.avif", saved(image, "AVIF", exif=exif))
    size = b"%d %d" % (WIDTH, HEIGHT)
    bits = np.packbits(GREY < 99, axis=1)
    yield Odd(
        "pnm P1.pbm",
        b"P1\n# a comment\n" + size + b"\n" + b" ".join(b"%d" % (v < 99) for v in GREY.ravel()),
        three(np.where(GREY < 99, 0, 255).astype(np.uint8)),
    )
    yield Odd(
        "pnm P4.pbm", b"P4\n" + size + b"\n" + bits.tobytes(), three(np.where(GREY < 99, 0, 255).astype(np.uint8))
    )
    yield Odd("pnm P2.pgm", b"P2\n" + size + b"\n255\n" + b" ".join(b"%d" % v for v in GREY.ravel()), three(GREY))
    yield Odd("pnm P3.ppm", b"P3\n" + size + b"\n255\n" + b" ".join(b"%d" % v for v in RGB.ravel()), RGB)
    yield Odd("pnm P5 16.pgm", b"P5\n" + size + b"\n65535\n" + GREY16.astype(">u2").tobytes(), three(GREY16))
    yield Odd("pnm P6 16.ppm", b"P6\n" + size + b"\n65535\n" + RGB16.astype(">u2").tobytes(), three(RGB16))
    yield Odd(
        "pnm P5 of 1023.pgm",
        b"P5\n" + size + b"\n1023\n" + (GREY16 >> 6).astype(">u2").tobytes(),
        three(np.rint((GREY16 >> 6) / 1023 * 255).astype(np.uint8)),
    )
    yield Odd("pfm.pfm", b"Pf\n" + size + b"\n-1.0\n" + GREY.astype("<f4").tobytes(), None, "no defined range")
    yield Odd("tga rle.tga", saved(image, "TGA", compression="tga_rle"), RGB)
    yield Odd("tga from the top.tga", saved(image, "TGA", orientation=1), RGB)
    for comment in ("DXT1", "DXT3", "DXT5", "BC5"):
        with contextlib.suppress(Exception):
            yield Odd(f"dds {comment}.dds", saved(clear if comment[0] == "D" else image, "DDS", pixel_format=comment))


# ---- damaged, wrongly named, no pictures ----


def damaged() -> Iterator[Odd]:
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for format, suffix in {
        "PNG": "png",
        "JPEG": "jpg",
        "TIFF": "tif",
        "WEBP": "webp",
        "GIF": "gif",
        "BMP": "bmp",
        "TGA": "tga",
        "PCX": "pcx",
        "SGI": "rgb",
        "PPM": "ppm",
        "QOI": "qoi",
    }.items():
        with contextlib.suppress(KeyError):  # a format that this Pillow does not write
            content = saved(noise, format)
            yield Odd(f"cut {format}.{suffix}", content[: len(content) // 2], None, "")
    content = bytearray(saved(noise, "PNG"))
    for bit in (3000, 30_000, 60_000):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield Odd(f"flipped {bit}.png", bytes(flipped), None, "")
    for name, data in {
        "empty.png": b"",
        "magic.png": b"\x89PNG\r\n\x1a\n",
        "text.jpg": b"a text, no picture",
        "page.webp": b"<!doctype html><html></html>",
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "archive.tif": b"PK\3\4" + bytes(60),
        "random.bmp": RNG.bytes(999),
    }.items():
        yield Odd(f"no picture {name}", data, None, "not a picture")
    empty = png(np.zeros((1, 0, 3)), 8, 2, False)
    yield Odd("no pixels.png", empty, None, "")
    header = struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    yield Odd("bomb.png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""), None, "")


def wrongly_named() -> Iterator[Odd]:
    contents = {"png": saved(RGB, "PNG"), "tif": tiff(RGB, "rgb"), "bmp": saved(RGB, "BMP")}
    for is_one, called in itertools.product(contents, ("jpg", "png", "tif", "webp", "PNG")):
        if is_one != called.lower():
            yield Odd(f"{is_one} called {called}.{called}", contents[is_one], RGB)
    yield Odd("jpeg called png.png", saved(RGB, "JPEG"))
    for name in ("noext", "a.jpeg.", "a.dat", "a.png.bak"):
        yield Odd(f"png called {name}", contents["png"], RGB)
    for name in (
        "-w",
        "--help",
        "%d {0} $HOME",
        "neu\nline",
        "tab\t\x1b[31m",
        "Grüße 東京 😀",
        "[1]",
        "a b 'c' \"d\"",
        "*?",
    ):
        yield Odd(f"{name}.png", contents["png"], RGB)
    yield Odd(b"caf\xe9.png", contents["png"], RGB)
    yield Odd("x" * 235 + ".png", contents["png"], RGB)


def no_pictures() -> Iterator[Odd]:
    for name in ("Thumbs.db", "desktop.ini", "readme.txt", "LICENSE", "a.heic", "b.jxl", "c.cr2", "d.mp4", "e.pdf"):
        yield Odd(name, b"something that is no picture", None, "not a picture")
