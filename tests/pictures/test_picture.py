"""Every kind of picture as a real file, through a stand-in for the model that repeats pixels: what comes out is known exactly."""

import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageCms
from PIL.ExifTags import IFD, Base

from rdn_fast.data.images import read_image
from rdn_fast.pictures.encode import FORMATS, encode, fit, to_image
from rdn_fast.pictures.picture import Picture, enlarge, read_picture

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RNG = np.random.default_rng(0)
RGB, GREY, ALPHA = (RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((11, 7, 3), (11, 7), (11, 7)))
RGB16, ALPHA16 = (RNG.integers(0, 65536, shape, dtype=np.uint16) for shape in ((11, 7, 3), (11, 7)))
GREY16 = RGB16[..., 0]
LOSSLESS = pytest.mark.parametrize("suffix", [".png", ".tif"])


def repeated(image: np.ndarray) -> np.ndarray:
    """A model of x2: nearest neighbours."""
    assert image.ndim == 3
    assert image.shape[2] == 3
    return image.repeat(2, axis=0).repeat(2, axis=1)


@pytest.fixture
def made(tmp_path):
    """made(source, suffix=None): up-scale a file or image into one with that suffix; its path and the notes."""

    def make(source, suffix=None, model=repeated):
        target = tmp_path / f"result{suffix or source.suffix}"
        format = FORMATS[target.suffix]
        picture = fit(read_picture(source), 2, format)
        target.write_bytes(encode(enlarge(picture, model), format))
        return target, picture.notes

    return make


@pytest.fixture
def saved(tmp_path):
    """saved(name, image, **options): the path of a file that Pillow writes; image: an array or PIL.Image."""

    def save(name, image, **options):
        path = tmp_path / name
        (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
        return path

    return save


def opened(path) -> tuple[str, np.ndarray]:
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


def large(array: np.ndarray) -> np.ndarray:
    return array.repeat(2, axis=0).repeat(2, axis=1)


# ---- 16-bit PNG by hand, from the format's description: Pillow can neither write nor read one with colours ----


def png16(pixels: np.ndarray, filters: str = "01234", *chunks: tuple[bytes, bytes]) -> bytes:
    """pixels: uint16 [H, W, C]; row y is stored with filter filters[y % len]."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

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


DEEP = {
    "grey": GREY16[..., None],
    "grey, alpha": np.dstack([GREY16, ALPHA16]),
    "RGB": RGB16,
    "RGBA": np.dstack([RGB16, ALPHA16]),
}
DEEP_KINDS = pytest.mark.parametrize("pixels", DEEP.values(), ids=DEEP)


@DEEP_KINDS
def test_16_bit_png_keeps_16_bits(tmp_path, made, pixels):
    source = tmp_path / "a.png"
    source.write_bytes(png16(pixels))
    target, notes = made(source)
    np.testing.assert_array_equal(pixels_of_png16(target.read_bytes()), large(pixels))
    assert notes == []


@DEEP_KINDS
def test_16_bit_png_becomes_a_16_bit_tiff(tmp_path, made, pixels):
    source = tmp_path / "a.png"
    source.write_bytes(png16(pixels))
    target, _ = made(source, ".tif")
    if pixels.shape[2] == 2:
        pixels = pixels[..., [0, 0, 0, 1]]  # Pillow opens no TIFF of 16 bits with grey and alpha
    with tifffile.TiffFile(target) as file:
        tags = {tag.name: tag.value for tag in file.pages[0].tags}
    assert (tags["ImageWidth"], tags["ImageLength"], tags["SamplesPerPixel"]) == (14, 22, pixels.shape[2])
    assert set(np.ravel(tags["BitsPerSample"])) == {16}
    assert ("ExtraSamples" in tags) == (pixels.shape[2] in (2, 4))
    np.testing.assert_array_equal(strips_of(target).reshape(22, 14, -1), large(pixels))
    np.testing.assert_array_equal(read_picture(target).pixels, large(pixels))


def strips_of(path) -> np.ndarray:
    """uint16 [H, W*C] of a deflated TIFF with horizontal differences, little-endian, by the format's description."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert (page.compression, page.predictor, file.byteorder) == (8, 2, "<")
        data = path.read_bytes()
        strips = zip(page.dataoffsets, page.databytecounts, strict=True)
        differences = np.frombuffer(b"".join(zlib.decompress(data[at : at + size]) for at, size in strips), "<u2")
        return np.cumsum(differences.reshape(page.imagelength, page.imagewidth, -1), axis=1, dtype=np.uint16)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_16_bit_tiff_is_read_exactly(tmp_path, byteorder, compression, tile, kind):
    extra = {"extrasamples": ["unassalpha"]} if kind == "RGBA" else {}
    tifffile.imwrite(
        tmp_path / "a.tif",
        DEEP[kind],
        photometric="rgb",
        byteorder=byteorder,
        compression=compression,
        tile=tile,
        metadata=None,
        **extra,
    )
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, DEEP[kind])


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_grey_tiff_is_read_exactly(tmp_path, byteorder, compression):
    tifffile.imwrite(
        tmp_path / "a.tif",
        GREY16,
        photometric="minisblack",
        byteorder=byteorder,
        compression=compression,
        metadata=None,
    )
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, GREY16[..., None])


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_tiff_whose_0_is_white(tmp_path, dtype, orientation):
    grey = GREY.astype(dtype) if dtype == np.uint8 else GREY16
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite", extratags=tags, metadata=None)
    upright = np.iinfo(dtype).max - (np.rot90(grey, -1) if orientation == 6 else grey)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels[..., 0], upright)
    with Image.open(io.BytesIO((tmp_path / "a.tif").read_bytes())) as image:
        np.testing.assert_array_equal(read_picture(image).pixels[..., 0], upright)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_premultiplied_tiff_is_divided_exactly(tmp_path, byteorder, compression):
    pixels = DEEP["RGBA"].copy()
    pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = (
        (0, 0, 0, 0),
        (65535, 1, 0, 65535),
        (9, 9, 9, 3),
    )  # the last is more than white
    options = {"photometric": "rgb", "extrasamples": ["assocalpha"], "byteorder": byteorder, "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None, **options)
    picture = read_picture(tmp_path / "a.tif")
    colours, alpha = pixels[..., :3].astype(float), pixels[..., 3:].astype(float)
    expected = np.floor(np.minimum(65535, colours * 65535 / np.maximum(alpha, 1)) + 0.5)
    np.testing.assert_array_equal(picture.pixels[..., :3], expected)
    np.testing.assert_array_equal(picture.pixels[..., 3], pixels[..., 3])
    assert picture.notes == []


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("pixels", [GREY, GREY16, np.dstack([RGB, ALPHA])], ids=["grey", "16 bits of grey", "RGBA"])
def test_turned_tiff_of_any_channels(tmp_path, pixels, compression, orientation):
    options = (
        {"photometric": "rgb", "extrasamples": ["unassalpha"]} if pixels.ndim == 3 else {"photometric": "minisblack"}
    )
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        compression=compression,
        extratags=[(274, "H", 1, orientation, True)],
        metadata=None,
        **options,
    )
    mirrored = pixels[:, ::-1] if orientation in (5, 7) else pixels
    expected = np.rot90(mirrored, 1 if orientation in (5, 8) else -1)
    np.testing.assert_array_equal(np.squeeze(read_picture(tmp_path / "a.tif").pixels), expected)
    if pixels.dtype == np.uint8:
        np.testing.assert_array_equal(
            read_image(tmp_path / "a.tif"), expected[..., :3] if pixels.ndim == 3 else np.dstack([expected] * 3)
        )


def test_16_bits_that_pillow_reads_as_8_are_said(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DEEP["RGBA"], photometric="separated", metadata=None)
    picture = read_picture(tmp_path / "a.tif")
    assert (picture.pixels.dtype, picture.pixels.shape) == (np.uint8, (11, 7, 3))
    assert picture.notes == ["16 bits read as 8: Pillow keeps no more of such a TIFF"]


def test_planes_mean_nothing_to_one_channel(tmp_path):
    for compression in (None, "tiff_deflate"):
        Image.fromarray(GREY16).save(tmp_path / "a.tif", tiffinfo={284: 2}, compression=compression)
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            assert file.pages[0].planarconfig == 2
        np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels[..., 0], GREY16)


def test_16_bit_tiff_in_planes_is_refused_rather_than_read_wrongly(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.ascontiguousarray(RGB16.transpose(2, 0, 1)),
        photometric="rgb",
        planarconfig="separate",
        metadata=None,
    )
    with pytest.raises(ValueError, match="interleaved"):
        read_picture(tmp_path / "a.tif")


def test_8_bit_tiff_in_planes(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.ascontiguousarray(RGB.transpose(2, 0, 1)),
        photometric="rgb",
        planarconfig="separate",
        metadata=None,
    )
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_colours_are_turned_as_8_bit_ones(tmp_path, saved, orientation):
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    source = tmp_path / "deep.png"
    source.write_bytes(png16(RGB16, "0", (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    plain = read_picture(saved("plain.png", (RGB16 >> 8).astype(np.uint8), exif=exif))
    np.testing.assert_array_equal(read_picture(source).pixels >> 8, plain.pixels)
    np.testing.assert_array_equal(np.sort(read_picture(source).pixels, axis=None), np.sort(RGB16, axis=None))


@pytest.mark.parametrize("pixels", [RGB16, GREY16[..., None]], ids=["RGB", "grey"])
def test_transparent_colour_of_16_bits_becomes_alpha(tmp_path, pixels):
    source = tmp_path / "a.png"
    source.write_bytes(png16(pixels, "0", (b"tRNS", pixels[3, 4].astype(">u2").tobytes())))
    expected = np.full((11, 7), 65535, np.uint16)
    expected[(pixels == pixels[3, 4]).all(axis=2)] = 0
    np.testing.assert_array_equal(read_picture(source).pixels, np.dstack([pixels, expected]))


@pytest.mark.parametrize(("suffix", "mode"), [(".jpg", "RGB"), (".webp", "RGB")])
def test_16_bits_into_a_format_of_8(tmp_path, made, suffix, mode):
    flat = np.full((16, 16, 3), 40000, np.uint16)
    (tmp_path / "a.png").write_bytes(png16(flat))
    target, (note,) = made(tmp_path / "a.png", suffix)
    assert "16 bits reduced to the 8" in note
    got, pixels = opened(target)
    assert got == mode
    assert np.abs(pixels.astype(float) - 40000 / 257).max() <= 2


def test_16_bits_are_reduced_to_the_nearest_of_8():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    picture = fit(Picture(every, Image.Exif(), None, None), 2, "JPEG")
    np.testing.assert_array_equal(picture.pixels, np.rint(every / 257))


# ---- 8 bits ----


@LOSSLESS
@pytest.mark.parametrize(
    ("mode", "source"),
    [("RGB", RGB), ("RGBA", np.dstack([RGB, ALPHA])), ("L", GREY), ("LA", np.dstack([GREY, ALPHA]))],
    ids=["RGB", "RGBA", "L", "LA"],
)
def test_8_bits(saved, made, suffix, mode, source):
    target, notes = made(saved(f"a{suffix}", source))
    got, pixels = opened(target)
    assert got == mode
    np.testing.assert_array_equal(pixels, large(source))
    assert notes == []


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_1_bit_becomes_grey(saved, made, name):
    target, _ = made(saved(name, GREY > 99), ".png")
    mode, pixels = opened(target)
    assert mode == "L"
    np.testing.assert_array_equal(pixels, large(np.where(GREY > 99, 255, 0)))


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.tif", "a.bmp"])
def test_palette_becomes_colours(saved, made, name):
    colours, index = RNG.integers(0, 256, (7, 3), dtype=np.uint8), RNG.integers(0, 7, (11, 7), dtype=np.uint8)
    image = Image.frombytes("P", (7, 11), index.tobytes())
    image.putpalette(colours.tobytes())
    mode, pixels = opened(made(saved(name, image), ".png")[0])
    assert mode == "RGB"
    np.testing.assert_array_equal(pixels, large(colours[index]))


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_palette_with_a_transparent_colour_becomes_colours_and_alpha(saved, made, name):
    colours, index = RNG.integers(0, 256, (7, 3), dtype=np.uint8), RNG.integers(0, 7, (11, 7), dtype=np.uint8)
    image = Image.frombytes("P", (7, 11), index.tobytes())
    image.putpalette(colours.tobytes())
    mode, pixels = opened(made(saved(name, image, transparency=3), ".png")[0])
    assert mode == "RGBA"
    np.testing.assert_array_equal(pixels[..., 3], large(np.where(index == 3, 0, 255)))
    np.testing.assert_array_equal(pixels[pixels[..., 3] > 0][:, :3], large(colours[index])[pixels[..., 3] > 0])


def test_palette_with_graded_transparency(saved, made):
    colours, index, alphas = (
        RNG.integers(0, 256, (7, 3), dtype=np.uint8),
        RNG.integers(0, 7, (11, 7), dtype=np.uint8),
        bytes(range(0, 210, 30)),
    )
    image = Image.frombytes("P", (7, 11), index.tobytes())
    image.putpalette(colours.tobytes())
    _, pixels = opened(made(saved("a.png", image, transparency=alphas))[0])
    np.testing.assert_array_equal(pixels, large(np.dstack([colours[index], np.frombuffer(alphas, np.uint8)[index]])))


@pytest.mark.parametrize(("source", "mode"), [(RGB, "RGBA"), (GREY, "LA")], ids=["RGB", "grey"])
def test_transparent_colour_becomes_alpha(saved, made, source, mode):
    key = tuple(map(int, source[2, 3])) if source.ndim == 3 else int(source[2, 3])
    got, pixels = opened(made(saved("a.png", source, transparency=key))[0])
    transparent = (source == source[2, 3]).reshape(11, 7, -1).all(axis=2)
    assert got == mode
    np.testing.assert_array_equal(pixels[..., -1], large(np.where(transparent, 0, 255)))


def test_premultiplied_tiff_is_divided(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.full((4, 5, 4), [50, 20, 0, 100], np.uint8),
        photometric="rgb",
        extrasamples=["assocalpha"],
        metadata=None,
    )
    pixels = read_picture(tmp_path / "a.tif").pixels
    assert pixels.shape == (4, 5, 4)
    assert np.abs(pixels[0, 0].astype(int) - [127, 51, 0, 100]).max() <= 1


def test_cmyk_without_a_profile(saved, made):
    ink = RNG.integers(0, 256, (11, 7, 4), dtype=np.uint8)
    mode, pixels = opened(made(saved("a.tif", Image.frombytes("CMYK", (7, 11), ink.tobytes())))[0])
    paper, black = 255 - ink[..., :3].astype(int), 255 - ink[..., 3:].astype(int)
    assert mode == "RGB"
    assert np.abs(pixels - large(paper * black / 255)).max() <= 1


def test_cmyk_goes_through_its_profile(saved, made, monkeypatch):
    # No CMYK profile comes with Pillow: what littlecms is asked is looked at.
    asked = []

    def convert(image, profile, output, outputMode):
        asked.append((image.mode, profile.read(), outputMode))
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    source = saved("a.jpg", Image.new("CMYK", (7, 11), (10, 200, 30, 40)), icc_profile=b"inks")
    target, _ = made(source, ".png")
    assert asked == [("CMYK", b"inks", "RGB")]
    with Image.open(target) as image:
        assert image.getpixel((0, 0)) == (1, 2, 3)
        assert "icc_profile" not in image.info  # the result's colours are sRGB, not inks


@pytest.mark.parametrize("profile", [b"damaged", SRGB], ids=["damaged", "not for CMYK"])
def test_cmyk_with_a_useless_profile(saved, made, profile):
    image = Image.new("CMYK", (7, 11), (255, 0, 0, 0))
    target, _ = made(saved("a.tif", image, icc_profile=profile))
    with Image.open(target) as result:
        assert result.getpixel((0, 0)) == (0, 255, 255)
        assert "icc_profile" not in result.info


def test_rgb_through_jpeg_and_webp_stays_close(saved, made, photograph):
    source = photograph(40, 48)
    for suffix in (".jpg", ".webp"):
        mode, pixels = opened(made(saved("a.png", source), suffix)[0])
        assert mode == "RGB"
        assert 10 * np.log10(255**2 / np.mean((pixels.astype(float) - large(source)) ** 2)) > 30, suffix


def test_jpeg_is_written_without_chroma_subsampling(saved, made, photograph):
    target, _ = made(saved("a.jpg", photograph(40, 48)))
    with Image.open(target) as image:
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}
        reference = io.BytesIO()
        image.save(reference, "JPEG", quality=95, subsampling=0)
        assert image.quantization == Image.open(reference).quantization


def test_grey_jpeg_stays_grey(saved, made):
    mode, pixels = opened(made(saved("a.jpg", np.full((11, 7), 77, np.uint8)))[0])
    assert mode == "L"
    assert np.abs(pixels.astype(int) - 77).max() <= 1


def test_alpha_in_webp(saved, made):
    mode, pixels = opened(made(saved("a.png", np.dstack([RGB, ALPHA])), ".webp")[0])
    assert mode == "RGBA"
    np.testing.assert_array_equal(pixels[..., 3], large(ALPHA))


@pytest.mark.parametrize(("colour", "mode"), [((0, 100, 200), "RGB"), ((60,), "L")], ids=["RGBA", "LA"])
def test_alpha_into_jpeg_is_replaced_by_white(saved, made, colour, mode):
    source = np.empty((16, 16, len(colour) + 1), np.uint8)
    source[...] = *colour, 0
    source[8:, :, -1] = 51
    target, (note,) = made(saved("a.png", source), ".jpg")
    assert "white" in note
    got, pixels = opened(target)
    assert got == mode
    expected = np.squeeze(255 + (np.array(colour) - 255) * 0.2)
    assert np.abs(pixels[:8].astype(int) - 255).max() <= 2
    assert np.abs(pixels[-8:] - expected).max() <= 3


def test_constant_alpha_costs_nothing_and_stays(saved, made):
    asked = []

    def model(image):
        asked.append(image)
        return repeated(image)

    _, pixels = opened(made(saved("a.png", np.dstack([RGB, np.full((11, 7), 9, np.uint8)])), model=model)[0])
    assert len(asked) == 1
    np.testing.assert_array_equal(asked[0], RGB)
    assert set(pixels[..., 3].flat) == {9}


def test_grey_is_the_mean_of_the_models_colours(saved):
    def coloured(image):  # 10 more red, 5 less blue
        return np.add(repeated(image), [10, 0, -5]).astype(np.uint8)

    picture = enlarge(read_picture(saved("a.png", np.full((3, 4), 100, np.uint8))), coloured)
    assert picture.pixels.shape == (6, 8, 1)
    assert set(picture.pixels.flat) == {102}  # 101.67


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("suffix", FORMATS)
def test_thin_pictures(saved, made, size, suffix):
    with Image.open(made(saved("a.png", Image.new("RGB", size, (9, 99, 200))), suffix)[0]) as image:
        assert image.size == (2 * size[0], 2 * size[1])
        assert np.abs(np.array(image.convert("RGB").getpixel((0, 0))) - [9, 99, 200]).max() <= 6


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_pixels_in_any_lossless_kind(data):
    channels, dtype, format = (
        data.draw(st.sampled_from(kinds)) for kinds in ((1, 2, 3, 4), (np.uint8, np.uint16), ("PNG", "TIFF"))
    )
    shape = *(data.draw(st.integers(1, 70)) for _ in range(2)), channels
    pixels = np.random.default_rng(data.draw(st.integers(0, 2**32))).integers(
        0, np.iinfo(dtype).max, shape, dtype, endpoint=True
    )
    content = encode(fit(Picture(pixels, Image.Exif(), None, None), 1, format), format)
    path = io.BytesIO(content)
    with Image.open(path) as image:
        assert image.size == shape[1::-1]
    if dtype == np.uint8:
        np.testing.assert_array_equal(np.asarray(Image.open(path)).reshape(shape), pixels)


# ---- integers and floats ----


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_of_pillow(saved, made, name):
    mode, pixels = opened(made(saved(name, GREY16), ".png")[0])
    assert mode.startswith("I;16")
    np.testing.assert_array_equal(pixels, large(GREY16))


def test_32_bit_integers_within_16_bits_are_taken_as_such(saved):
    np.testing.assert_array_equal(read_picture(saved("a.tif", GREY16.astype(np.int32))).pixels[..., 0], GREY16)


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_integers_beyond_are_refused(saved, value):
    with pytest.raises(ValueError, match="no defined range"):
        read_picture(saved("a.tif", np.full((3, 4), value, np.int32)))


def test_floats_are_refused(saved):
    with pytest.raises(ValueError, match="float pixels have no defined range"):
        read_picture(saved("a.tif", np.zeros((3, 4), np.float32)))


# ---- what is known of a picture ----


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_profile_dpi_and_exif_are_kept(tmp_path, suffix, deep):
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Copyright], exif[Base.ImageWidth], exif[Base.Orientation] = "Camera", "Somebody", 7, 6
    exif[IFD.Exif] = {
        Base.ISOSpeedRatings: 400,
        Base.ExifImageWidth: 7,
        Base.ExifImageHeight: 11,
        Base.FocalLength: 50.0,
    }
    exif[IFD.GPSInfo] = {1: "N"}
    source = io.BytesIO()
    if deep:
        chunks = (
            (b"iCCP", b"x\0\0" + zlib.compress(SRGB)),
            (b"pHYs", struct.pack(">2IB", 11811, 11811, 1)),
            (b"eXIf", exif.tobytes()[6:]),
        )
        source.write(png16(RGB16, "4", *chunks))
    else:
        Image.fromarray(RGB).save(source, "PNG", exif=exif, icc_profile=SRGB, dpi=(300, 300))
    (tmp_path / "a.png").write_bytes(source.getvalue())
    format = FORMATS[suffix]
    content = encode(enlarge(fit(read_picture(tmp_path / "a.png"), 2, format), repeated), format)
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (22, 14)  # turned
        assert image.info["icc_profile"] == SRGB
        if suffix != ".webp":  # which has no place for it
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        kept = image.getexif()
        assert (kept[Base.Make], kept[Base.Copyright].rstrip("\0")) == ("Camera", "Somebody")
        assert kept.get(Base.Orientation, 1) == 1
        assert kept.get(Base.ImageWidth, 22) == 22
        assert kept.get_ifd(IFD.GPSInfo)[1].rstrip("\0") == "N"
        inner = kept.get_ifd(IFD.Exif)
        assert (inner[Base.ISOSpeedRatings], float(inner[Base.FocalLength])) == (400, 50)
        assert (inner[Base.ExifImageWidth], inner[Base.ExifImageHeight]) == (22, 14)


def test_without_exif_there_is_none_after(saved, made):
    for suffix in (".png", ".jpg", ".webp"):
        with Image.open(made(saved("a.png", RGB), suffix)[0]) as image:
            assert not image.getexif()
            assert not {"icc_profile", "exif"} & set(image.info)


def test_layout_of_a_tiff_is_not_taken_for_exif(tmp_path, made):
    extra = [(33550, "d", 3, (1.0, 1.0, 0.0), True), (271, "s", 0, "Camera", True)]
    tifffile.imwrite(
        tmp_path / "a.tif",
        RGB,
        photometric="rgb",
        tile=(16, 16),
        compression="zlib",
        extratags=extra,
        metadata=None,
        description="a field",
    )
    with tifffile.TiffFile(made(tmp_path / "a.tif")[0]) as file:
        tags = {tag.code: tag.value for tag in file.pages[0].tags}
    assert (tags[270], tags[271]) == ("a field", "Camera")
    assert not {33550, 322, 323, 324, 325} & set(tags)  # pixel size of a map, tiles
    assert (tags[256], tags[257]) == (14, 22)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_orientation_is_applied(saved, name, orientation):
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    corners = np.zeros((32, 64), np.uint8)
    corners[:16, :32], corners[:16, 32:], corners[16:, :32], corners[16:, 32:] = 0, 80, 160, 240
    pixels = read_picture(saved(name, np.dstack([corners] * 3), exif=exif)).pixels.astype(int)
    height, width = pixels.shape[:2]
    assert (height, width) == ((32, 64) if orientation < 5 else (64, 32))
    got = [
        pixels[y, x, 1] for y in (4, height - 4) for x in (4, width - 4)
    ]  # top left, top right, bottom left, bottom right
    a, b, c, d = 0, 80, 160, 240
    expected = [
        (a, b, c, d),
        (b, a, d, c),
        (d, c, b, a),
        (c, d, a, b),
        (a, c, b, d),
        (c, a, d, b),
        (d, b, c, a),
        (b, d, a, c),
    ][orientation - 1]
    assert np.abs(np.subtract(got, expected)).max() <= 4


@pytest.mark.parametrize(("size", "left_out"), [(65_000, False), (70_000, True)])
def test_exif_that_a_jpeg_cannot_hold_is_left_out_and_said(saved, made, size, left_out):
    exif = Image.Exif()
    exif[Base.ImageDescription], exif[IFD.Exif] = "x" * size, {Base.ExifImageWidth: 7, Base.ExifImageHeight: 11}
    source = saved("a.png", RGB, exif=exif)
    target, notes = made(source, ".jpg")
    with Image.open(target) as image:
        assert (Base.ImageDescription in image.getexif()) == (not left_out)
    assert notes == (["its EXIF data is left out: it is larger than a JPEG holds"] if left_out else [])
    target, notes = made(source, ".png")
    with Image.open(target) as image:
        assert len(image.getexif()[Base.ImageDescription]) == size
    assert notes == []


def test_a_tiff_without_a_resolution_has_none(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        assert 282 not in image.tag_v2
    assert read_picture(tmp_path / "a.tif").dpi is None


@pytest.mark.parametrize(("suffix", "most"), [(".jpg", 65_535), (".png", 1e8), (".tif", 2.0**32 - 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_dpi_that_a_format_cannot_hold_are_left_out_and_said(suffix, most, dtype):
    format = FORMATS[suffix]
    for dpi, notes in ((most, []), (2 * most, [f"its DPI are left out: they are more than {format} holds"])):
        picture = fit(Picture(RGB.astype(dtype), Image.Exif(), None, (dpi, dpi)), 1, format)
        with Image.open(io.BytesIO(encode(picture, format))) as image:
            none = 1 if format == "TIFF" else 0  # Pillow's word
            assert image.info.get("dpi", (0, 0))[0] == pytest.approx(none if notes else dpi, rel=1e-6)
        assert [note for note in picture.notes if "16 bits" not in note] == notes


@pytest.mark.parametrize(
    ("channels", "dtype", "suffix", "left_out"),
    [
        (1, np.uint8, ".webp", True),
        (2, np.uint8, ".webp", True),
        (2, np.uint16, ".tif", True),
        (1, np.uint8, ".png", False),
        (1, np.uint16, ".tif", False),
    ],
)
def test_profile_of_grey_is_not_said_of_colours(channels, dtype, suffix, left_out):
    format = FORMATS[suffix]
    profile = SRGB[:16] + b"GRAY" + SRGB[20:]
    for icc_profile, kept in ((profile, None if left_out else profile), (SRGB, SRGB)):
        picture = fit(Picture(np.full((11, 7, channels), 9, dtype), Image.Exif(), icc_profile, None), 1, format)
        with Image.open(io.BytesIO(encode(picture, format))) as image:
            assert image.info.get("icc_profile") == kept
        assert picture.notes == (
            [] if kept else [f"its ICC profile is left out: it is of grey, which {format} holds as colours"]
        )


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x01", b"Exif\0\0II*\0\xff\xff\xff\x7f"]
)
def test_damaged_exif_does_not_cost_the_picture(saved, made, exif):
    _, pixels = opened(made(saved("a.jpg", np.full((8, 8, 3), 77, np.uint8), exif=exif))[0])
    assert np.abs(pixels.astype(int) - 77).max() <= 1


@pytest.mark.parametrize(
    ("name", "options"), [("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {}), ("a.tif", {})]
)
def test_first_of_several_frames_is_taken_and_said(saved, name, options):
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "green", "blue")]
    picture = read_picture(saved(name, frames[0], save_all=True, append_images=frames[1:], **options))
    assert set(map(tuple, picture.pixels[..., :3].reshape(-1, 3))) == {(255, 0, 0)}
    assert picture.notes == ["the first of its 3 pictures"]


def test_16_bit_tiff_of_several_pages(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([RGB16, RGB16[::-1]]), photometric="rgb", metadata=None)
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, RGB16)
    assert picture.notes == ["the first of its 2 pictures"]


# ---- what cannot be used ----


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.gif", "a.bmp"])
def test_truncated(saved, photograph, name):
    path = saved(name, photograph(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^.{5,}$"):
        read_picture(path)


@pytest.mark.parametrize(
    "content", [b"", b"text, no picture", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "nothing but the magic"]
)
def test_not_a_picture(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"^not a picture of a kind that Pillow reads$"):
        read_picture(tmp_path / "a.png")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
IPTC = b"".join(
    b"\x1c" + bytes(tag) + struct.pack(">H", len(data)) + data
    for tag, data in (((3, 20), b"\4"), ((3, 30), b"\4"), ((3, 60), b"\1\0"), ((3, 120), b"\5"), ((8, 10), EPS))
)


@pytest.mark.parametrize("reader", [read_picture, read_image], ids=["upscale", "prepare"])
@pytest.mark.parametrize(
    "content", [EPS, IPTC, b"GRIB\0\0\0\1", b"\0\0\1\xb3\0\x40\x04"], ids=["EPS", "EPS in IPTC", "GRIB", "MPEG"]
)
def test_no_program_is_started_for_a_file(tmp_path, monkeypatch, content, reader):
    for start in ("Popen", "check_call", "check_output", "call", "run"):
        monkeypatch.setattr(subprocess, start, lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked"))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a picture|cannot identify"):
        reader(path)


def test_truncated_16_bit_png(tmp_path):
    content = png16(RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16))
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"^.{5,}$"):
        read_picture(tmp_path / "a.png")


def test_too_many_pixels_are_refused_before_decoding(tmp_path):
    # The header of 60,000 x 60,000 pixels, and no pixels at all.
    path = tmp_path / "bomb.png"
    header = b"IHDR" + struct.pack(">2I5B", 12_000, 9_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 9)
        + b"IDAT"
    )
    with pytest.raises(ValueError, match="12000x9000 pixels are more than --max-pixels 1000000"):
        read_picture(path, max_pixels=1_000_000)
    with pytest.raises(ValueError, match="truncated"):
        read_picture(path)


@pytest.mark.parametrize(("format", "edge"), [("JPEG", 65_500), ("WEBP", 16_383)])
def test_result_larger_than_its_format_holds(format, edge):
    def of(width):
        return Picture(np.zeros((1, width, 3), np.uint8), Image.Exif(), None, None)

    assert fit(of(edge // 2), 2, format).notes == []
    with pytest.raises(
        ValueError,
        match=rf"{2 * (edge // 2 + 1)}x2 pixels of the result are more than {format} files hold; give --ext png",
    ):
        fit(of(edge // 2 + 1), 2, format)


def test_result_larger_than_a_tiff_holds():
    wide = np.broadcast_to(np.zeros((1, 1, 3), np.uint16), (20_000, 20_000, 3))
    with pytest.raises(ValueError, match="TIFF"):
        fit(Picture(wide, Image.Exif(), None, None), 2, "TIFF")
    assert fit(Picture(wide, Image.Exif(), None, None), 2, "PNG").pixels is wide


@pytest.mark.parametrize(("format", "edge"), [("JPEG", 65_500), ("WEBP", 16_383)])
def test_what_fits_can_be_written(format, edge):
    content = encode(Picture(np.zeros((1, edge, 3), np.uint8), Image.Exif(), None, None), format)
    assert Image.open(io.BytesIO(content)).size == (edge, 1)


# ---- PIL images ----


def test_to_image_carries_what_is_known(saved):
    exif = Image.Exif()
    exif[Base.Make] = "Camera"
    image = to_image(read_picture(saved("a.png", RGB, exif=exif, icc_profile=SRGB, dpi=(300, 300))))
    assert image.info["icc_profile"] == SRGB
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert image.getexif()[Base.Make] == "Camera"
    np.testing.assert_array_equal(np.asarray(image), RGB)


def test_an_image_is_left_as_it_is():
    image = Image.fromarray(RGB)
    image.getexif()[Base.Orientation] = 6
    assert read_picture(image).pixels.shape == (7, 11, 3)
    assert image.size == (7, 11)
    assert image.getexif()[Base.Orientation] == 6
