"""--quality and --lossless, and AVIF, which Pillow writes by itself where it was built with it."""

import io

import numpy as np
import pytest
from by_hand import RGB16, SRGB, png16
from PIL import Image, features
from runs import photograph
from stand_in import files

from rdn_fast.data import plugins
from rdn_fast.data.decode import decode
from rdn_fast.data.images import read_image
from rdn_fast.pictures.picture import read_picture

AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")


def made_with(run, name, *flags) -> int:
    """Make out/NAME's result anew; return its bytes."""
    ended = run("-i", "a.png", "-o", f"out/{name}", "--overwrite", *flags)
    assert ended.code == 0, ended
    return len((run.folder / "out" / name).read_bytes())


@pytest.fixture
def run(run, tmp_path):
    Image.fromarray(photograph(40, 50)).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()

    def running(*arguments):
        return run(*arguments)

    running.folder = tmp_path
    return running


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", pytest.param("a.avif", marks=AVIF)])
def test_quality_is_that_of_pillow_and_95_where_none_is_given(run, name):
    sizes = [made_with(run, name, "--quality", quality) for quality in (1, 50, 95)]
    assert sizes == sorted(set(sizes))
    usual = made_with(run, name)
    assert usual == sizes[2]
    large = read_picture(run.folder / "a.png").pixels.repeat(2, 0).repeat(2, 1)
    options = {"a.jpg": {"subsampling": 0}, "a.avif": {"subsampling": "4:4:4"}}.get(name, {})
    file = io.BytesIO()
    format = {"a.jpg": "JPEG", "a.webp": "WEBP", "a.avif": "AVIF"}[name]
    Image.fromarray(large).save(file, format, quality=50, **options)
    made_with(run, name, "--quality", 50)
    np.testing.assert_array_equal(read_image(run.folder / "out" / name), np.asarray(Image.open(file).convert("RGB")))


def test_lossless_is_lossless(run):
    made_with(run, "a.webp", "--lossless")
    expected = read_image(run.folder / "a.png").repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(read_image(run.folder / "out/a.webp"), expected)
    for name in ("a.png", "a.tif"):  # they always are
        made_with(run, name, "--lossless")
        np.testing.assert_array_equal(read_image(run.folder / "out" / name), expected)


def test_what_is_lossless_stays_so_until_it_is_said(run, tmp_path):
    Image.fromarray(photograph(40, 50)).save(tmp_path / "b.webp", lossless=True)
    for flags, lossless, notes in (
        ((), True, []),
        (("--quality", 60), True, ["b.webp: lossless as it was; --no-lossless writes it with quality 60"]),
        (("--quality", 60, "--no-lossless"), False, []),
        (("--no-lossless",), False, []),
    ):
        ended = run("-i", "b.webp", "-o", "out", "--overwrite", *flags)
        assert ended.code == 0
        assert [line for line in ended.out.splitlines() if line.startswith("b.webp")] == notes
        assert read_picture("out/b_out.webp").lossless == lossless
    ended = run("-i", "b.webp", "-o", "out", "--ext", "jpg", "--quality", 60)
    assert "lossless" not in ended.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--quality", 0), "--quality 0: give a number from 1 to 100"),
        (("--quality", 101), "--quality 101: give a number from 1 to 100"),
        (("--quality", "high"), "argument --quality: invalid int value: 'high'"),
        (("--quality", 50, "--lossless", "--ext", "webp"), "--quality and --lossless contradict each other"),
        (("--quality", 50), "--quality 50: PNG files are always lossless; leave it out, or give --ext"),
        (("--no-lossless", "--ext", "tif"), "--no-lossless: TIFF files are always lossless"),
        (("--lossless", "--ext", "jpg"), "--lossless: JPEG files are never lossless; give --ext png, tif, webp or jxl"),
    ],
)
def test_mistakes_are_one_line_before_any_work(run, unread, flags, words):
    assert run("-i", "a.png", "-o", "out", *flags).user_error().startswith(words)
    assert files("out") == []


def test_of_several_formats_those_with_a_quality_have_it(run, tmp_path):
    Image.open(tmp_path / "a.png").save(tmp_path / "b.jpg")
    assert run("-i", "a.png", "b.jpg", "-o", "out", "--quality", 20).code == 0
    assert run("-i", "a.png", "b.jpg", "-o", "fine").code == 0
    png, jpg = ((tmp_path / "fine" / name).read_bytes() for name in ("a_out.png", "b_out.jpg"))
    assert (tmp_path / "out/a_out.png").read_bytes() == png
    assert len((tmp_path / "out/b_out.jpg").read_bytes()) < len(jpg) / 2


@AVIF
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_avif_keeps_colours_transparency_and_metadata(saved, made, channels):
    y, x = np.mgrid[:24, :32]
    every = np.dstack([4 * x + 50, 200 - 3 * y, x + y, 255 - 8 * (x > 20)])
    pixels = every[..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]]
    image = Image.fromarray(pixels.astype(np.uint8).squeeze())
    exif = Image.Exif()
    exif[0x8298] = "me"
    source = saved("a.png", image, exif=exif, icc_profile=SRGB if channels > 2 else None)
    target, notes = made(source, ".avif")
    assert notes == []
    with Image.open(target) as result:
        assert result.format == "AVIF"
        assert result.size == (64, 48)
        assert result.getexif()[0x8298] == "me"
        assert result.info.get("icc_profile") == (SRGB if channels > 2 else None)
        shown = np.asarray(result.convert(image.mode)).reshape(48, 64, channels).astype(int)
    assert np.abs(shown - pixels.repeat(2, 0).repeat(2, 1)).max() <= 6


@AVIF
def test_avif_has_8_bits_and_says_so(tmp_path, made, monkeypatch):
    (tmp_path / "a.png").write_bytes(png16(RGB16, "0"))
    target, notes = made(tmp_path / "a.png", ".avif")
    assert notes == ["16 bits reduced to the 8 that AVIF is written with"]
    content = target.read_bytes()
    at = content.index(b"av1C") + 6
    (tmp_path / "b.avif").write_bytes(content[:at] + bytes([content[at] | 0x40]) + content[at + 1 :])
    with Image.open(target) as image:  # libavif opens no file that is not what it says
        assert decode(image, tmp_path / "b.avif").notes == [
            "10 bits read as 8: Pillow keeps no more of such AVIF files"
        ]


# ---- what is not there ----


@pytest.fixture
def bare(monkeypatch):
    """Pillow without its plug-ins."""
    monkeypatch.setattr(plugins, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    for name in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.SAVE, name, raising=False)
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name not in ("HEIF", "JXL")])
    plugins.missing_plugins.cache_clear()
    yield
    plugins.missing_plugins.cache_clear()


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
NEEDS = {
    "heic": "HEIC needs a plug-in of Pillow: pip install pillow-heif",
    "jxl": "JPEG XL needs a plug-in of Pillow: pip install pillow-jxl-plugin",
}


def test_a_missing_plug_in_is_named(bare, run, tmp_path, cli):
    (tmp_path / "b.heic").write_bytes(HEIC)
    (tmp_path / "c.jxl").write_bytes(b"\xff\x0a" + bytes(20))
    (tmp_path / "d.jxl").write_bytes(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20))
    for name in ("b.heic", "c.jxl", "d.jxl"):
        assert run("-i", name, "-o", "out").user_error() == f"{name}: {NEEDS[name[2:]]}"
    for ext, words in NEEDS.items():
        message = run("-i", "a.png", "-o", "out", "--ext", ext).user_error()
        assert message == f"--ext {ext}: cannot be written here; {words}"
        message = run("-i", "a.png", "-o", f"out/a.{ext}").user_error()
        assert message == f"-o out/a.{ext}: cannot be written here; {words}"
    ended = cli("prepare", "--images-dir", tmp_path, "--output-path", tmp_path / "x.h5")
    assert f"b.heic: {NEEDS['heic']}" in ended.out


def test_files_left_out_for_a_missing_plug_in_are_counted_with_it(bare, run, tmp_path, monkeypatch):
    from rdn_fast.pictures import paths

    monkeypatch.setattr(paths, "picture_extensions", lambda: {".png", ".jpg"})
    (tmp_path / "b.heic").write_bytes(HEIC)
    assert f"left out of .: 1 .heic ({NEEDS['heic']}); a file" in run("-i", ".", "-o", "out").out


def test_pillow_without_avif(bare, run, monkeypatch, tmp_path):
    monkeypatch.delitem(Image.SAVE, "AVIF", raising=False)
    words = "--ext avif: cannot be written here; this Pillow was built without AVIF; pip install -U pillow"
    assert run("-i", "a.png", "-o", "out", "--ext", "avif").user_error() == words
    (tmp_path / "a.png").rename(tmp_path / "b.avif")
    assert run("-i", "b.avif", "-o", "out").code == 0
    assert files("out") == ["b_out.png"]
