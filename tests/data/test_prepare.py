"""`rdn-fast prepare`: what it writes from pictures of any kind, and what is left when it fails."""

import os
import re
import resource
import signal
import subprocess

import h5py
import numpy as np
import pytest
from PIL import Image
from runs import command
from waiting import PATIENCE

from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.h5_writer import write_pairs
from rdn_fast.data.images import read_image
from rdn_fast.data.pairs import Pair, five_crops
from rdn_fast.errors import UserError

BICUBIC = Image.Resampling.BICUBIC


def where(height: int, width: int) -> np.ndarray:
    """An image whose pixel (y, x) is (y, x, 0)."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.mgrid[:height, :width]
    return image


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), BICUBIC))


@pytest.fixture
def prepare(cli, tmp_path):
    """prepare(folder, *flags): run the command; what it ended with. It writes tmp_path / "out.h5"."""
    return lambda folder, *flags: cli("prepare", "--images-dir", folder, "--output-path", tmp_path / "out.h5", *flags)


@pytest.fixture
def pairs(prepare, tmp_path):
    """pairs(folder, *flags, scale=2): the pairs of a command that must succeed, as {name: (lr, hr)}."""

    def run(folder, *flags, scale=2):
        ended = prepare(folder, "--scale", scale, *flags)
        assert (ended.code, ended.err) == (0, "")
        return {pair.name: (pair.lr, pair.hr) for pair in PairedH5(tmp_path / "out.h5", scale)}

    return run


# ---- what is written ----


def test_layout_is_the_references(image_folder, prepare, tmp_path):
    assert prepare(image_folder(3)).code == 0
    with h5py.File(tmp_path / "out.h5") as file:
        assert set(file) == {"lr", "hr"}
        for group in file.values():
            assert set(group) == {str(i) for i in range(15)}  # five crops of three pictures
            for data in group.values():
                assert data.dtype == np.uint8
                assert data.ndim == 3
                assert data.shape[2] == 3
                assert (data.chunks, data.compression) == (None, None)
                assert data.id.get_offset() is not None


def test_names_and_order_are_the_files(image_folder, pairs, photograph):
    images = {f"{name}.png": photograph(40, 40) for name in ("b", "a", "10", "c.d")}
    crops = [f"{name} (crop {k})" for name in ("10", "a", "b", "c.d") for k in range(5)]
    assert list(pairs(image_folder(images))) == crops
    assert list(pairs(image_folder(images, name="again"), "--eval")) == ["10", "a", "b", "c.d"]


@pytest.mark.parametrize(
    ("size", "half", "origins"),
    [
        # torchvision's FiveCrop: the centre is at round((H - h) / 2), and Python rounds a half to the even number.
        ((40, 48), (20, 24), [(0, 0), (0, 24), (20, 0), (20, 24), (10, 12)]),
        ((34, 38), (17, 19), [(0, 0), (0, 19), (17, 0), (17, 19), (8, 10)]),  # 8.5 and 9.5
        ((37, 43), (18, 21), [(0, 0), (0, 22), (19, 0), (19, 22), (10, 11)]),  # 9.5 and 11
        ((2, 3), (1, 1), [(0, 0), (0, 2), (1, 0), (1, 2), (0, 1)]),  # 0.5 and 1
    ],
)
def test_five_crops_are_torchvisions(size, half, origins):
    image = where(*size)
    crops = five_crops(image)
    assert len(crops) == 5
    for crop, (top, left) in zip(crops, origins, strict=True):
        np.testing.assert_array_equal(crop, image[top : top + half[0], left : left + half[1]])


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_training_pairs_are_the_crops_and_their_bicubic(image_folder, pairs, scale):
    # Crops of 18 x 21: cut to multiples of the scale at the bottom and right.
    image = where(37, 43)
    h, w = 18 // scale * scale, 21 // scale * scale
    written = pairs(image_folder({"a.png": image}), scale=scale)
    for (lr, hr), (top, left) in zip(written.values(), [(0, 0), (0, 22), (19, 0), (19, 22), (10, 11)], strict=True):
        np.testing.assert_array_equal(hr, image[top : top + h, left : left + w])
        np.testing.assert_array_equal(lr, resized(hr, h // scale, w // scale))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_evaluation_pair_is_the_cropped_image_and_its_bicubic(image_folder, pairs, photograph, scale):
    image = photograph(43, 47)
    lr, hr = pairs(image_folder({"a.png": image}), "--eval", scale=scale)["a"]
    h, w = 43 // scale, 47 // scale
    np.testing.assert_array_equal(hr, image[: h * scale, : w * scale])
    np.testing.assert_array_equal(lr, resized(hr, h, w))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_compat_resizes_the_evaluation_image(image_folder, pairs, photograph, scale):
    image = photograph(43, 47)
    lr, hr = pairs(image_folder({"a.png": image}), "--eval", "--yjn870-compat", scale=scale)["a"]
    h, w = 43 // scale, 47 // scale
    np.testing.assert_array_equal(hr, resized(image, h * scale, w * scale))
    np.testing.assert_array_equal(lr, resized(hr, h, w))
    assert not np.array_equal(hr, image[: h * scale, : w * scale])


def test_compat_resizes_training_crops(image_folder, pairs, photograph):
    image = photograph(37, 43)
    lr, hr = pairs(image_folder({"a.png": image}), "--yjn870-compat", scale=4)["a (crop 4)"]
    np.testing.assert_array_equal(hr, resized(image[10:28, 11:32], 16, 20))
    np.testing.assert_array_equal(lr, resized(hr, 4, 5))


def test_scale_is_2_unless_given(image_folder, prepare, tmp_path):
    assert prepare(image_folder(1), "--eval").code == 0
    assert len(PairedH5(tmp_path / "out.h5", 2)) == 1


def test_summary_and_missing_folders_of_the_output(image_folder, cli, tmp_path):
    output = tmp_path / "new" / "folder" / "out.h5"
    ended = cli("prepare", "--images_dir", image_folder(2), f"--output_path={output}")
    assert ended.code == 0
    assert ended.out == f"{output}: 10 pairs from 2 images at x2, 0 files skipped\n"
    assert len(PairedH5(output, 2)) == 10


def test_as_a_process_of_its_own(image_folder, run_cli, tmp_path):
    folder = image_folder(2)
    (folder / "notes.txt").write_text("no picture")
    ended = run_cli("prepare", "--images-dir", "images", "--output-path", "out.h5", "--scale", 3, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "skipped images/notes.txt: " in ended.stdout
    assert ended.stdout.endswith("out.h5: 10 pairs from 2 images at x3, 1 files skipped\n")
    assert len(PairedH5(tmp_path / "out.h5", 3)) == 10


def test_output_may_be_read_as_the_umask_says(image_folder, prepare, tmp_path):
    before = os.umask(0o027)
    try:
        assert prepare(image_folder(1)).code == 0
    finally:
        os.umask(before)
    assert (tmp_path / "out.h5").stat().st_mode & 0o777 == 0o640


# ---- all kinds of pictures ----


def save_dds_without_pixel_format(image: Image.Image, path) -> None:
    image.save(path)
    content = bytearray(path.read_bytes())
    content[80:84] = bytes(4)
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_reduced_to_8_bits(tmp_path, suffix):
    grey = np.arange(0, 65536, 50, dtype=np.uint16)[:1280].reshape(32, 40)
    grey[0, :3] = 0, 65535, 128  # 128 is 0.498 of an 8-bit step
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(grey).save(path)
    rgb = read_image(path)
    assert rgb[0, :3, 0].tolist() == [0, 255, 0]
    expected = (grey.astype(np.float64) / 65535 * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(rgb, np.dstack([expected] * 3))


def test_32_bit_grey_is_read_as_16_bits(tmp_path):
    grey = np.array([[0, 257, 65535], [256, 300, 128 * 257]], np.int32)
    Image.fromarray(grey).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 1], [[0, 1, 255], [1, 1, 128]])


def test_transparency_is_dropped_and_the_colours_stay(tmp_path, photograph):
    image = photograph(20, 22)
    alpha = np.random.default_rng(0).integers(0, 256, (20, 22), dtype=np.uint8)
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), image)
    Image.fromarray(np.dstack([image[..., 0], alpha])).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png"), np.dstack([image[..., 0]] * 3))


def test_palette_is_looked_up(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (7, 3), dtype=np.uint8)
    index = np.random.default_rng(1).integers(0, 7, (20, 22), dtype=np.uint8)
    image = Image.frombytes("P", (22, 20), index.tobytes())
    image.putpalette(colours.tobytes())
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name), colours[index])


def test_cmyk_is_converted(tmp_path):
    ink = np.random.default_rng(0).integers(0, 256, (20, 22, 4), dtype=np.uint8)
    Image.frombytes("CMYK", (22, 20), ink.tobytes()).save(tmp_path / "a.tif")
    paper, black = 255 - ink[..., :3].astype(int), 255 - ink[..., 3:].astype(int)
    assert np.abs(read_image(tmp_path / "a.tif") - paper * black / 255).max() <= 1


def test_one_bit_is_black_and_white(tmp_path):
    bits = np.random.default_rng(0).random((20, 22)) < 0.5
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "1"
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.dstack([np.where(bits, 255, 0)] * 3))


def test_every_kind_of_picture_makes_a_pair(tmp_path, pairs, photograph):
    folder = tmp_path / "images"
    folder.mkdir()
    image = Image.fromarray(photograph(24, 28))
    for mode in ("RGB", "RGBA", "LA", "L", "P", "1"):
        image.convert(mode).save(folder / f"{mode}.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "I16.png")
    for mode in ("CMYK", "YCbCr"):
        image.convert(mode).save(folder / f"{mode}.jpg")
    written = pairs(folder, "--eval")
    assert sorted(written) == sorted(["RGB", "RGBA", "LA", "L", "P", "1", "I16", "CMYK", "YCbCr"])
    for name, (lr, hr) in written.items():
        assert (lr.shape, hr.shape) == ((12, 14, 3), (24, 28, 3)), name
        assert len(np.unique(hr)) > 1, name


# ---- what cannot be used ----


@pytest.fixture
def spoilt(image_folder, tmp_path):
    """spoilt(kind): a folder with one good picture and one file that cannot be used; and that file's path."""

    def make(kind):
        folder = image_folder(1)
        good = Image.open(folder / "picture_0.png")
        path = folder / {"text": "notes.txt", "float": "depth.tif", "dds": "a.dds", "jpeg": "a.jpg"}.get(
            kind, "zebra.png"
        )
        if kind == "text":
            path.write_text("no picture")
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "truncated":
            content = (folder / "picture_0.png").read_bytes()
            path.write_bytes(content[: len(content) // 2])
        elif kind == "jpeg":
            good.save(path)
            path.write_bytes(path.read_bytes()[:300])
        elif kind == "damaged":
            content = bytearray((folder / "picture_0.png").read_bytes())
            content[60:80] = bytes(20)
            path.write_bytes(content)
        elif kind == "float":
            Image.fromarray(np.zeros((40, 40), np.float32)).save(path)
        elif kind == "small":
            Image.fromarray(where(3, 40)).save(path)
        elif kind == "dds":
            save_dds_without_pixel_format(good, path)
        return folder, path

    return make


KINDS = pytest.mark.parametrize("kind", ["text", "empty", "truncated", "jpeg", "damaged", "float", "small", "dds"])


@KINDS
def test_file_that_cannot_be_used_is_named_and_skipped(spoilt, prepare, tmp_path, kind):
    folder, path = spoilt(kind)
    ended = prepare(folder, "--scale", 4)
    assert (ended.code, ended.err) == (0, "")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("skipped ")]
    assert re.fullmatch(rf"skipped {re.escape(str(path))}: .{{5,}}", line)
    assert ended.out.endswith("5 pairs from 1 images at x4, 1 files skipped\n")
    assert PairedH5(tmp_path / "out.h5", 4).names() == [f"picture_0 (crop {k})" for k in range(5)]


@KINDS
def test_strict_stops_there_and_writes_nothing(spoilt, prepare, tmp_path, kind):
    folder, path = spoilt(kind)
    before = sorted(tmp_path.rglob("*"))
    message = prepare(folder, "--scale", 4, "--strict").user_error()
    assert message.startswith(f"{path}: ")
    assert "--strict" in message
    assert sorted(tmp_path.rglob("*")) == before


def test_strict_does_not_mind_good_pictures(image_folder, prepare, tmp_path):
    assert prepare(image_folder(2), "--strict").code == 0
    assert len(PairedH5(tmp_path / "out.h5", 2)) == 10


def test_too_large_picture_is_named_and_skipped(image_folder, prepare, photograph, monkeypatch):
    folder = image_folder({"a.png": photograph(20, 20), "b.png": photograph(60, 60)})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # PIL refuses twice as many
    ended = prepare(folder)
    assert (ended.code, ended.err) == (0, "")
    assert f"skipped {folder / 'b.png'}: " in ended.out


def test_too_small_picture_is_told_its_size(image_folder, prepare, photograph):
    folder = image_folder({"a.png": photograph(20, 20), "b.png": photograph(7, 30)})
    assert "b.png: 15x3 pixels are too small for x4" in prepare(folder, "--scale", 4).out  # its half-size crops
    assert "0 files skipped" in prepare(folder, "--scale", 4, "--eval").out


def test_hidden_files_and_folders_are_no_pictures(image_folder, prepare):
    folder = image_folder(1)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "thumbnails.png").mkdir()
    ended = prepare(folder, "--strict")
    assert ended.code == 0
    assert ended.out.endswith("5 pairs from 1 images at x2, 0 files skipped\n")


def test_missing_folder(prepare, tmp_path):
    message = prepare(tmp_path / "nowhere").user_error()
    assert str(tmp_path / "nowhere") in message
    assert "no such folder" in message
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("content", [(), (".hidden",)], ids=["empty", "hidden files only"])
def test_folder_without_files(image_folder, prepare, tmp_path, content):
    folder = image_folder(0)
    for name in content:
        (folder / name).write_bytes(b"x")
    assert f"{folder}: holds no files" in prepare(folder).user_error()
    assert not (tmp_path / "out.h5").exists()


def test_folder_without_pictures(image_folder, prepare, tmp_path):
    folder = image_folder(0)
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("no picture")
    message = prepare(folder).user_error()
    assert str(folder) in message
    assert "none of its 2 files" in message
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("flags", [("--scale", "5"), ("--scale", "two"), ("--half",)], ids=" ".join)
def test_flags_that_do_not_exist(image_folder, prepare, flags):
    assert flags[0] in prepare(image_folder(1), *flags).user_error()


# ---- where it cannot be written ----


def test_failed_run_leaves_the_existing_file_byte_for_byte(spoilt, prepare, tmp_path):
    folder, _ = spoilt("truncated")
    output = tmp_path / "out.h5"
    assert prepare(folder, "--scale", 2).code == 0
    before, files = output.read_bytes(), sorted(tmp_path.rglob("*"))
    prepare(folder, "--scale", 3, "--strict").user_error()
    prepare(folder, "--scale", 3, "--nonsense").user_error()
    (folder / "picture_0.png").write_text("no picture any more")
    prepare(folder, "--scale", 3).user_error()
    assert output.read_bytes() == before
    assert sorted(tmp_path.rglob("*")) == files


def test_weights_in_an_h5_file_are_not_replaced(image_folder, prepare, tmp_path):
    """Keras writes such files."""
    with h5py.File(tmp_path / "out.h5", "w") as file:
        file.create_group("model_weights")
    before = (tmp_path / "out.h5").read_bytes()
    message = prepare(image_folder(1)).user_error()
    assert "is there already, and holds no pairs of LR and HR; give another name" in message
    assert (tmp_path / "out.h5").read_bytes() == before


def test_successful_run_replaces_the_existing_file(image_folder, prepare, tmp_path):
    (tmp_path / "out.h5").write_bytes(b"\x89HDF\r\n\x1a\nan earlier file")
    assert prepare(image_folder(1)).code == 0
    assert len(PairedH5(tmp_path / "out.h5", 2)) == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, MemoryError])
def test_interrupted_writing_leaves_nothing(tmp_path, error):
    (tmp_path / "out.h5").write_bytes(b"\x89HDF\r\n\x1a\nas it was")

    def pairs():
        yield Pair("a", where(4, 4), where(8, 8))
        raise error

    with pytest.raises(error):
        write_pairs(tmp_path / "out.h5", pairs())
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]
    assert (tmp_path / "out.h5").read_bytes() == b"\x89HDF\r\n\x1a\nas it was"


@pytest.mark.parametrize(("output", "reason"), [("file/out.h5", "cannot be written"), ("folder", "is a folder")])
def test_output_that_cannot_be_written(image_folder, cli, tmp_path, output, reason):
    folder = image_folder(1)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    message = cli("prepare", "--images-dir", folder, "--output-path", tmp_path / output).user_error()
    assert message.startswith(f"--output-path {tmp_path / output}: {reason}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("room", [4_000, 60_000], ids=["at once", "in the middle"])
def test_full_disk(image_folder, run_cli, photograph, tmp_path, room):
    # A limit on the size of files, because a test cannot fill the disk.
    folder = image_folder({f"{i}.png": photograph(100, 100, seed=i) for i in range(4)})
    output = tmp_path / "out.h5"
    ended = run_cli(
        "prepare",
        "--images-dir",
        folder,
        "--output-path",
        output,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"rdn-fast: error: --output-path {output}: cannot be written")
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heard_while_images_are_skipped(tmp_path, number):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3000):
        (folder / f"{i}.png").write_bytes(b"no image")
    process = subprocess.Popen(
        command("prepare", "--images-dir", folder, "--output-path", tmp_path / "a.h5"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for _ in range(20):
        assert b"skipped" in process.stdout.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert err == f"rdn-fast: stopped by {number.name}\n".encode()
    assert out.count(b"skipped") < 2900
    assert list(tmp_path.iterdir()) == [folder]


# ---- folders of folders ----


def test_folders_inside_are_said_and_taken_with_recursive(image_folder, pairs, prepare, photograph):
    folder = image_folder({"b.png": photograph(32, 32)})
    for inside, name in (("x", "a.png"), ("x/y", "a.png"), (".hidden", "h.png")):
        (folder / inside).mkdir()
        Image.fromarray(photograph(32, 32)).save(folder / inside / name)
    ended = prepare(folder, "--eval")
    assert f"{folder}: 1 folders in it are passed over; prepare --recursive takes their images, too" in ended.out
    assert "1 pairs from 1 images" in ended.out
    assert list(pairs(folder, "--eval", "--recursive")) == ["b", "x/a", "x/y/a"]
    (folder / "b.png").unlink()
    assert "holds no files itself, but 1 folders" in prepare(folder).user_error()
    assert len(pairs(folder, "-r")) == 10
