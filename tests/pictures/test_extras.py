"""XMP, comments, texts, colour chunks, bytes of EXIF, large profiles: kept, or named in one line."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from by_hand import GREY, RGB, RGB16, SRGB, chunk, png16, png_of_grey, repeated
from PIL import Image, ImageCms, IptcImagePlugin
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from rdn_fast.data.images import read_image
from rdn_fast.data.png_chunks import read_chunks
from rdn_fast.pictures.picture import read_picture
from rdn_fast.pictures.resize import resize
from rdn_fast.pictures.sizes import OutputSize

SUFFIXES = pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
SAID = "© 2024 José Müller, 東京"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" tiff:ImageWidth="7" '
    b'exif:PixelYDimension="11"><dc:creator>Jos\xc3\xa9</dc:creator>'
    b"<tiff:ImageLength>11</tiff:ImageLength></rdf:Description></x:xmpmeta>"
)


def exif_of(path) -> Image.Exif:
    with Image.open(path) as image:
        image.load()
        return image.getexif()


def ascii_tag(tag: int, text: bytes) -> bytes:
    """EXIF data with one tag of text."""
    body = struct.pack(">2HHHII", 0, 1, tag, 2, len(text) + 1, 26)[2:] + bytes(4)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + body + text + b"\0"


@SUFFIXES
def test_bytes_of_exif_stay(saved, made, suffix):
    source = saved("a.jpg", RGB, exif=ascii_tag(Base.Copyright, SAID.encode()))
    target, notes = made(source, suffix)
    assert exif_of(target)[Base.Copyright].encode("latin-1") == SAID.encode()
    assert notes == []
    again, _ = made(target)
    assert exif_of(again)[Base.Copyright].encode("latin-1") == SAID.encode()


@SUFFIXES
def test_bytes_of_exif_stay_in_the_inner_directory(tmp_path, saved, made, suffix):
    inner = struct.pack(">HHHII", 1, Base.CameraOwnerName, 2, len(SAID.encode()) + 1, 26 + 18) + bytes(4)
    exif = b"MM\0*" + struct.pack(">IHHHIII", 8, 1, IFD.Exif, 4, 1, 26, 0) + inner + SAID.encode() + b"\0"
    target, _ = made(saved("a.png", RGB, exif=b"Exif\0\0" + exif), suffix)
    owner = exif_of(target).get_ifd(IFD.Exif)[Base.CameraOwnerName]
    assert owner.rstrip("\0").encode("latin-1") == SAID.encode()


@SUFFIXES
@pytest.mark.parametrize("source", ["a.jpg", "a.png", "packed.png", "french.png", "a.webp", "a.tif"])
def test_xmp_is_kept_and_true(tmp_path, saved, made, source, suffix):
    if source.endswith(".png"):
        info = PngInfo()
        of_language = ("fr-FR", "XMP traduit") if source == "french.png" else ("", "")
        info.add_itxt("XML:com.adobe.xmp", XMP.decode(), *of_language, zip=source == "packed.png")
        path = saved(source, RGB, pnginfo=info)
    elif source == "a.tif":
        path = saved(source, RGB, tiffinfo={700: XMP})
    else:
        path = saved(source, RGB, xmp=XMP)
    target, notes = made(path, suffix)
    with Image.open(target) as image:
        assert image.size == (22, 14)  # turned by the orientation, which is then no longer said
        kept = image.info.get("xmp")
    expected = XMP.replace(b' tiff:Orientation="6"', b"").replace(b'Width="7"', b'Width="22"').replace(b"11", b"14")
    assert kept.rstrip(b"\0").replace(b"  ", b" ") == expected
    assert notes == []


def test_texts_and_colour_chunks_of_a_png_are_kept_or_named(tmp_path, saved, made):
    chunks = [
        (b"gAMA", struct.pack(">I", 100_000)),
        (b"cICP", bytes((9, 16, 0, 1))),
        (b"tEXt", b"parameters\0a cat, 20 steps"),
        (b"iTXt", b"prompt\0\0\0\0\0" + "日本".encode()),
    ]
    for name, content in (
        ("8.png", png_of_grey(GREY.tolist(), 8, *chunks)),
        ("16.png", png16(RGB16, "0", *chunks)),
    ):
        (tmp_path / name).write_bytes(content)
        target, notes = made(tmp_path / name, ".png")
        assert [(kept.name, kept.data) for kept in read_chunks(target) if kept.name != b"IHDR"] == chunks
        assert notes == []
        _, notes = made(tmp_path / name, ".jpg")
        assert notes[-1] == ("left out, JPEG does not hold it here: its text (parameters, prompt), colour space (cICP)")


def test_damaged_exif_data_of_16_bits_is_left_out(tmp_path):
    (tmp_path / "a.png").write_bytes(png16(RGB16, "0", (b"eXIf", b"garbage")))
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, RGB16)
    assert picture.notes == ["its EXIF data is damaged and left out"]


def test_texts_behind_the_pixels_are_kept(tmp_path, made):
    png = png_of_grey(GREY.tolist(), 8)
    end, text = png.index(b"IEND") - 4, (b"tEXt", b"Comment\0a cat")
    (tmp_path / "a.png").write_bytes(png[:end] + chunk(*text) + png[end:])
    target, notes = made(tmp_path / "a.png", ".png")
    assert [(kept.name, kept.data) for kept in read_chunks(target) if kept.name != b"IHDR"] == [text]
    assert notes == []


def test_an_orientation_in_a_text_is_applied_once(saved, made):
    """ImageMagick writes EXIF data as a text of hexadecimal digits."""
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    content = exif.tobytes()
    info = PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n", zip=True)
    target, _ = made(saved("a.png", RGB, pnginfo=info), ".png")
    upright = np.rot90(RGB, -1)
    np.testing.assert_array_equal(read_image(target), upright.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(("gamma", "said"), [(45_455, False), (100_000, True)])
def test_a_gamma_that_is_not_srgbs_is_named(tmp_path, made, gamma, said):
    (tmp_path / "a.png").write_bytes(png_of_grey([[1, 2]], 8, (b"gAMA", struct.pack(">I", gamma))))
    _, notes = made(tmp_path / "a.png", ".webp")
    assert notes == (["left out, WEBP does not hold it here: its gamma (gAMA)"] if said else [])


def test_a_comment_is_kept_or_named(saved, made):
    source = saved("a.jpg", RGB, comment="caf\u00e9".encode())
    for suffix in (".jpg", ".png"):
        target, notes = made(source, suffix)
        with Image.open(target) as image:
            kept = image.info.get("comment", image.info.get("Comment"))
        assert (kept if isinstance(kept, bytes) else kept.encode("latin-1")) == "caf\u00e9".encode()
        assert notes == []
    for suffix in (".webp", ".tif"):
        assert "its comment" in made(source, suffix)[1][0]


# ---- IPTC ----

RECORD = b"\x1c\2\x50\0\4Name"  # dataset 2:80, the author
IPTC = {"odd": RECORD, "even": RECORD + b"\x1c\2\x69\0\5Title"}


def with_iptc(path, data: bytes):
    """Put IPTC data into a JPEG as Photoshop does."""
    segment = b"Photoshop 3.0\x008BIM\4\4\0\0" + struct.pack(">I", len(data)) + data + bytes(len(data) % 2)
    content = path.read_bytes()
    path.write_bytes(content[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + content[2:])
    return path


def iptc_of(path) -> bytes:
    with Image.open(path) as image:
        if image.format == "TIFF":
            return image.tag_v2[33723]
        assert IptcImagePlugin.getiptcinfo(image)[2, 80] == b"Name"
        return image.info["photoshop"][0x0404]


@SUFFIXES
@pytest.mark.parametrize("data", IPTC.values(), ids=IPTC)
@pytest.mark.parametrize("source", ["a.jpg", "a.tif"])
def test_iptc_is_kept_or_named(saved, made, source, data, suffix):
    path = saved(source, RGB, **({"tiffinfo": {33723: data}} if source == "a.tif" else {}))
    target, notes = made(path if source == "a.tif" else with_iptc(path, data), suffix)
    if suffix in (".jpg", ".tif"):
        assert iptc_of(target) == data
        assert notes == []
    else:
        format = {".png": "PNG", ".webp": "WEBP"}[suffix]
        assert notes == [f"left out, {format} does not hold it here: its IPTC data"]


@pytest.mark.parametrize("byteorder", "<>")
def test_iptc_that_a_tiff_calls_integers(tmp_path, made, byteorder):
    data = IPTC["odd"] + bytes(3)  # filled up to 12 bytes
    tag = (33723, "I", 3, struct.unpack(f"{byteorder}3I", data), True)
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", extratags=[tag], metadata=None, byteorder=byteorder)
    assert iptc_of(made(tmp_path / "a.tif", ".jpg")[0]) == data


def test_iptc_that_a_jpeg_cannot_hold_is_named(saved, made):
    source = saved("a.tif", RGB, tiffinfo={33723: bytes(70_000)})
    assert made(source, ".jpg")[1] == ["left out, JPEG does not hold it here: its IPTC data"]


# ---- georeferences ----

KEYS = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)  # projected, UTM zone 33 north
AREA, POINT = ((*KEYS[:3], 3, 1025, 0, 1, kind, *KEYS[4:]) for kind in (1, 2))


def geo_tiff(path, **tags):
    """A TIFF of 7 x 11 pixels. tags: those of `types`."""
    types = {
        "scale": (33550, "d"),
        "points": (33922, "d"),
        "matrix": (34264, "d"),
        "keys": (34735, "H"),
        "doubles": (34736, "d"),
        "texts": (34737, "s"),
        "orientation": (274, "H"),
        "private": (42113, "s"),
    }
    extra = [(*types[name], len(value) if types[name][1] != "s" else 0, value, True) for name, value in tags.items()]
    tifffile.imwrite(path, RGB, photometric="rgb", extratags=extra, metadata=None)
    return path


def tags_of(path) -> dict:
    with tifffile.TiffFile(path) as file:
        return {tag.code: tag.value for tag in file.pages[0].tags if tag.code >= 33550}


def test_pixels_of_10_metres_become_pixels_of_5(tmp_path, made):
    # Column 3, row 4 lies at x 500,000 m, y 4,000,000 m: the left upper corner of that pixel, now of column 6, row 8.
    places = {"scale": (10.0, 20.0, 1.5), "points": (3.0, 4.0, 0.0, 500_000.0, 4_000_000.0, 7.0)}
    system = {"keys": KEYS, "doubles": (6378137.0, 298.25), "texts": "UTM 33N|"}
    target, notes = made(geo_tiff(tmp_path / "a.tif", **places, **system))
    assert tags_of(target) == {
        33550: (5.0, 10.0, 1.5),
        33922: (6.0, 8.0, 0.0, 500_000.0, 4_000_000.0, 7.0),
        34735: KEYS,
        34736: (6378137.0, 298.25),
        34737: "UTM 33N|",
    }
    assert notes == []
    again, _ = made(target)
    assert tags_of(again)[33550] == (2.5, 5.0, 1.5)


def test_a_georeference_is_scaled_by_the_true_factor(tmp_path):
    source = geo_tiff(tmp_path / "a.tif", scale=(10.0, 20.0, 1.5), points=(3.0, 4.0, 0.0, 5.0, 6.0, 7.0))
    picture = read_picture(source)
    made = resize(picture, OutputSize(width=18).steps(*picture.size, 2), repeated)
    assert made.size == (18, 28)
    assert made.extras.georeference[33550] == pytest.approx((10 / (18 / 7), 20 / (28 / 11), 1.5))
    assert made.extras.georeference[33922] == pytest.approx((3 * 18 / 7, 4 * 28 / 11, 0, 5, 6, 7))


def test_points_are_counted_from_the_first_pixels_centre_where_a_key_says_so(tmp_path, made):
    # The centre of pixel 0 lies half an old pixel, so a whole new one, from the border: at 0.5 as new centres count.
    places = {
        "scale": (10.0, 10.0, 0.0),
        "points": (0.0, 0.0, 0.0, 100.0, 200.0, 0.0, 6.0, 10.0, 0.0, 160.0, 100.0, 0.0),
    }
    area, _ = made(geo_tiff(tmp_path / "a.tif", **places, keys=AREA))
    assert tags_of(area)[33922] == (0, 0, 0, 100, 200, 0, 12, 20, 0, 160, 100, 0)
    point, _ = made(geo_tiff(tmp_path / "a.tif", **places, keys=POINT))
    assert tags_of(point)[33922] == (0.5, 0.5, 0, 100, 200, 0, 12.5, 20.5, 0, 160, 100, 0)
    assert tags_of(point)[34735] == POINT


def test_a_transformation_leads_to_the_same_places(tmp_path, made):
    # x = 100 + 4 column + row, y = 200 - 8 row: turned, and with oblong pixels.
    matrix = (4.0, 1.0, 0.0, 100.0, 0.0, -8.0, 0.0, 200.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    area, _ = made(geo_tiff(tmp_path / "a.tif", matrix=matrix, keys=AREA))
    assert tags_of(area)[34264] == (2, 0.5, 0, 100, 0, -4, 0, 200, 0, 0, 0, 0, 0, 0, 0, 1)
    # Of points, (0, 0) lies at (100, 200), now (0.5, 0.5): (0, 0) lies a new pixel's half before it.
    point, _ = made(geo_tiff(tmp_path / "a.tif", matrix=matrix, keys=POINT))
    assert tags_of(point)[34264] == (2, 0.5, 0, 98.75, 0, -4, 0, 202, 0, 0, 0, 0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    "tags",
    [
        {"scale": (1.0, 1.0), "keys": KEYS},
        {"scale": (1.0,)},
        {"points": (1.0,) * 7},
        {"matrix": (1.0,) * 12},
        {"keys": KEYS[:7]},
        {"scale": (1.0, 1.0, 0.0), "orientation": (6,)},
    ],
    ids=["2 edges", "1 edge", "7 numbers", "12 numbers", "half a key", "turned"],
)
def test_a_georeference_that_is_not_true_of_the_result_is_named(tmp_path, made, tags):
    target, notes = made(geo_tiff(tmp_path / "a.tif", **tags))
    assert not tags_of(target)
    assert notes == ["left out, TIFF does not hold it here: its georeference"]


def test_a_georeference_and_private_tags_are_named(tmp_path, made):
    source = geo_tiff(tmp_path / "a.tif", scale=(1.0, 1.0, 0.0), private="0")
    assert made(source)[1] == ["left out, TIFF does not hold it here: its no-data value"]
    assert made(source, ".png")[1] == ["left out, PNG does not hold it here: its no-data value, georeference"]


# ---- large chunks ----


def with_chunk(content: bytes, name: bytes, data: bytes) -> bytes:
    return content[:33] + chunk(name, data) + content[33:]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_profile_of_more_than_a_mebibyte_is_read_and_kept(saved, made, suffix):
    profile = SRGB + np.random.default_rng(0).integers(0, 9, 2**21, dtype=np.uint8).tobytes()
    source = saved("a.png", RGB, icc_profile=profile)
    np.testing.assert_array_equal(read_image(source), RGB)
    target, notes = made(source, suffix)
    picture = read_picture(target)
    assert picture.icc_profile == profile
    assert notes == []


def test_texts_that_unpack_to_much_cost_neither_picture_nor_memory(saved, made):
    source = saved("a.png", RGB)
    packed = zlib.compress(bytes(2**26))
    for name, data in ((b"zTXt", b"a\0\0" + packed), (b"iTXt", b"a\0\1\0\0\0" + packed), (b"iCCP", b"a\0\0" + packed)):
        source.write_bytes(with_chunk(saved("a.png", RGB).read_bytes(), name, data))
        np.testing.assert_array_equal(read_picture(source).pixels, RGB)
        target, _ = made(source, ".png")
        np.testing.assert_array_equal(read_image(target), RGB.repeat(2, 0).repeat(2, 1))


# ---- profiles and lossless WebP ----


@SUFFIXES
def test_a_profile_of_lab_is_not_said_of_rgb(tmp_path, made, suffix):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.new("RGB", (7, 11), (90, 120, 60)), srgb, lab, outputMode="LAB")
    image.save(tmp_path / "a.tif", icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())
    target, notes = made(tmp_path / "a.tif", suffix)
    with Image.open(target) as result:
        assert "icc_profile" not in result.info
        assert np.abs(np.array(result.convert("RGB").getpixel((3, 3))) - (90, 120, 60)).max() <= 4
    assert notes == ["its ICC profile is left out: it is of Lab, which the result's pixels are not"]


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("profile", [None, SRGB])
@pytest.mark.parametrize("lossless", [True, False])
def test_lossless_webp_stays_lossless(saved, made, lossless, profile, frames):
    image = np.zeros((40, 40, 3), np.uint8)
    image[...], image[:, ::5] = (0, 0, 255), (255, 0, 0)
    more = [Image.new("RGB", (40, 40))] * (frames - 1)
    options = {"save_all": True, "append_images": more} if more else {}
    source = saved("a.webp", Image.fromarray(image), lossless=lossless, icc_profile=profile, **options)
    picture = read_picture(source)
    target, _ = made(source)
    with Image.open(target) as result:
        same = np.array_equal(np.asarray(result.convert("RGB")), picture.pixels[..., :3].repeat(2, 0).repeat(2, 1))
    assert same == lossless
    assert b"VP8L" in target.read_bytes() if lossless else b"VP8L" not in target.read_bytes()


def test_info_of_an_image_from_python_keeps_xmp(saved):
    from rdn_fast.pictures.encode import fit, to_image

    with Image.open(io.BytesIO(saved("a.jpg", RGB, xmp=XMP).read_bytes())) as image:
        assert b"Jos\xc3\xa9" in to_image(fit(read_picture(image), (14, 22), None)).info["xmp"]
