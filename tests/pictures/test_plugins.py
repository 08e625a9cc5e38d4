"""HEIC and JPEG XL through Pillow's plug-ins, where they are installed."""

import numpy as np
import pytest
from by_hand import SRGB
from PIL import Image
from runs import photograph

from rdn_fast.data.images import read_image
from rdn_fast.data.jxl_header import read_jxl_header
from rdn_fast.data.plugins import missing_plugins
from rdn_fast.pictures.picture import read_picture

SUFFIXES = pytest.mark.parametrize("suffix", [".heic", ".jxl"])
FORMATS = {".heic": "HEIF", ".jxl": "JXL"}


@pytest.fixture(autouse=True)
def installed(request):
    """Skip a test whose plug-in is not installed; its file's suffix is the parameter, or its name says which."""
    suffix = request.node.callspec.params.get("suffix") if hasattr(request.node, "callspec") else None
    jxl = suffix == ".jxl" or "jxl" in request.node.name
    heif = pytest.importorskip("pillow_jxl" if jxl else "pillow_heif")
    missing_plugins()
    return heif


def smooth(channels: int) -> np.ndarray:
    y, x = np.mgrid[:24, :32]
    every = np.dstack([4 * x + 50, 200 - 3 * y, x + y, 255 - 8 * (x > 20)]).astype(np.uint8)
    return every[..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]]


@SUFFIXES
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_written_and_read(saved, made, channels, suffix):
    pixels = smooth(channels)
    exif = Image.Exif()
    exif[0x8298] = "me"
    target, notes = made(saved("a.png", Image.fromarray(pixels.squeeze()), exif=exif), suffix)
    assert notes == []
    with Image.open(target) as image:
        assert image.format == FORMATS[suffix]
    picture = read_picture(target)
    assert picture.exif[0x8298] == "me"
    large = pixels.repeat(2, 0).repeat(2, 1)
    if picture.pixels.shape != large.shape:  # HEIC has no grey with alpha
        assert (suffix, channels) == (".heic", 2)
        large = large[..., [0, 0, 0, 1]]
    assert np.abs(picture.pixels.astype(int) - large).mean() <= 1.5
    again, _ = made(target)
    assert again.suffix == suffix
    assert read_picture(again).size == (128, 96)


@SUFFIXES
def test_command_takes_and_makes_them(run, tmp_path, suffix):
    source = tmp_path / f"in/a{suffix}"
    source.parent.mkdir()
    Image.fromarray(smooth(3)).save(source, FORMATS[suffix])
    assert run("-i", "in", "-o", "out").code == 0
    with Image.open(f"out/a_out{suffix}") as image:
        assert (image.format, image.size) == (FORMATS[suffix], (64, 48))
    assert run("-i", source, "-o", "out", "--ext", "png").code == 0
    expected = read_image(source).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(read_image("out/a_out.png"), expected)
    assert run("-i", source, "-o", f"low{suffix}", "--quality", 5).code == 0
    assert (tmp_path / f"low{suffix}").stat().st_size < (tmp_path / f"out/a_out{suffix}").stat().st_size
    words = run("-i", source, "-o", "out", "--ext", "heic", "--lossless").user_error() if suffix == ".heic" else ""
    assert words.startswith("--lossless: HEIF files are never lossless" if words else "")


@SUFFIXES
def test_profiles_and_xmp(saved, made, suffix):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    other = SRGB.replace(b"sRGB", b"myRG").replace(b"s\0R\0G\0B", b"m\0y\0R\0G")
    for profile, notes in ((SRGB, []), (other, ["its ICC profile is left out: pillow-jxl-plugin writes none, and "])):
        target, said = made(saved("a.jpg", smooth(3), icc_profile=profile, xmp=xmp), suffix)
        assert xmp in target.read_bytes()
        if suffix == ".jxl":
            assert [note[: len(words)] for note, words in zip(said, notes, strict=True)] == notes
        else:
            assert said == []
            assert read_picture(target).icc_profile == profile


@SUFFIXES
@pytest.mark.parametrize("kind", ["cut off", "text", "flipped"])
def test_damaged_files_are_one_line(run, tmp_path, suffix, kind):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(photograph(60, 70)).save(path, FORMATS[suffix])
    content = path.read_bytes()
    path.write_bytes(b"no picture" if kind == "text" else content[: len(content) // 2])
    if kind == "flipped":
        path.write_bytes(content[:30] + bytes(255 - byte for byte in content[30:90]) + content[90:])
    assert run("-i", path.name, "-o", "out").user_error().startswith(f"{path.name}: ")


def test_a_turned_heic_is_upright(saved, made):
    exif = Image.Exif()
    exif[0x112] = 6
    source = saved("a.heic", smooth(3), format="HEIF", exif=exif.tobytes(), quality=95)
    upright = np.rot90(smooth(3), -1)
    assert np.abs(read_image(source).astype(int) - upright).max() <= 12
    assert read_picture(made(source, ".jpg")[0]).size == (48, 64)


def test_10_bits_of_a_heic(tmp_path, installed):
    ramp = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)
    grey = installed.from_bytes("L;16", (64, 48), ramp.tobytes())
    grey.save(tmp_path / "a.heic", quality=-1)
    picture = read_picture(tmp_path / "a.heic")
    assert picture.pixels.dtype == np.uint16
    assert picture.pixels.max() == 65535
    assert np.abs(picture.pixels[..., 0].astype(int) - ramp).max() <= 70
    installed.from_bytes("RGB;16", (64, 48), np.dstack([ramp] * 3).tobytes()).save(tmp_path / "b.heic", quality=-1)
    assert read_picture(tmp_path / "b.heic").notes == ["10 bits read as 8: Pillow keeps no more of such HEIF files"]


def test_the_orientation_of_a_jxl_is_its_own(saved, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    source = saved("a.jxl", smooth(3), format="JXL", exif=exif.tobytes(), lossless=True)
    np.testing.assert_array_equal(read_image(source), smooth(3))
    jpeg = saved("b.jpg", smooth(3), exif=exif, quality=95)
    with Image.open(jpeg) as image:
        image.save(tmp_path / "b.jxl", lossless_jpeg=True)
    np.testing.assert_array_equal(read_image(tmp_path / "b.jxl"), read_image(jpeg))
    assert not read_picture(tmp_path / "b.jxl").lossless


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_lossless_jxl_stays_lossless(saved, made, channels, container):
    pixels = np.random.default_rng(0).integers(1, 255, (9, 14, channels), dtype=np.uint8).squeeze()
    source = saved("a.jxl", Image.fromarray(pixels), lossless=True, use_container=container)
    target, _ = made(source)
    np.testing.assert_array_equal(np.asarray(Image.open(target)), pixels.repeat(2, 0).repeat(2, 1))
    lossy = saved("a.jxl", Image.fromarray(pixels), quality=90, use_container=container)
    assert not read_picture(lossy).lossless
    assert not read_picture(made(lossy)[0]).lossless


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (14, 9), (700, 1), (256, 160), (1000, 800), (3000, 3)])
def test_size_of_a_jxl(saved, size):
    for options in ({}, {"lossless": True}, {"use_container": True}):
        header = read_jxl_header(saved("a.jxl", Image.new("L", size), **options))
        assert (header.width, header.height) == size
        assert header.keeps_colours == ("lossless" in options)


def test_a_large_jxl_is_refused_before_it_is_decoded(saved, monkeypatch):
    source = saved("a.jxl", Image.new("L", (300, 200)))
    monkeypatch.setattr("rdn_fast.pictures.picture.open_image", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="300x200 pixels are more than --max-pixels 59999"):
        read_picture(source, max_pixels=59_999)


def test_quality_100_of_a_jxl_is_lossless(run, tmp_path):
    Image.fromarray(smooth(3)).save(tmp_path / "a.png")
    for flags in (("--quality", 100), ("--lossless",)):
        assert run("-i", "a.png", "-o", "out", "--ext", "jxl", "--overwrite", *flags).code == 0
        np.testing.assert_array_equal(read_image("out/a_out.jxl"), smooth(3).repeat(2, 0).repeat(2, 1))
