"""rdn_fast.upscale and `rdn-fast upscale`: names, mistakes, what goes on when a picture is bad, and what runs beside what."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT, photograph

import rdn_fast
from rdn_fast import terminal
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.pictures import upscale, upscale_files
from rdn_fast.pictures.encode import FORMATS
from rdn_fast.pictures.tiled import Upscaler

PATIENCE = 60  # seconds that an event may take before a test has failed


class Nearest:
    """In the place of tiles.Upscaler: repeats pixels."""

    def __init__(self, model, *settings, say=print):
        self.scale = model.config.scale

    def __call__(self, image):
        return image.repeat(self.scale, axis=0).repeat(self.scale, axis=1)


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """No implementation is looked for that is the fastest here: that takes longer than these tests."""
    monkeypatch.setattr(rdn_fast.model, "resolve_impl", lambda name, case: "sliced")


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return RDN(ModelConfig(2, 6, 4, 2, 2)).eval()


@pytest.fixture(scope="session")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def run(cli, weights, monkeypatch, tmp_path):
    """run(*arguments): `rdn-fast upscale` with the stand-in and tiny weights, in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(upscale_files, "Upscaler", Nearest)
    return lambda *arguments: cli("upscale", "-w", weights, *arguments)


@pytest.fixture
def tree(tmp_path):
    """tree(*names): makes pictures of 6 x 5 pixels (or files of text) in tmp_path; each picture has its own colour."""

    def make(*names):
        for i, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".txt", ".h5"):
                path.write_text("no picture")
            else:
                Image.new("RGB", (6, 5), (i, 10 * i, 100)).save(path)
        return tmp_path

    return make


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


# ---- from Python ----


@pytest.fixture
def nearest(monkeypatch):
    monkeypatch.setattr(upscale, "Upscaler", Nearest)
    upscale.loaded_upscalers.clear()
    yield
    upscale.loaded_upscalers.clear()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("1", "L"),
        ("L", "L"),
        ("LA", "LA"),
        ("P", "RGB"),
        ("RGB", "RGB"),
        ("RGBA", "RGBA"),
        ("CMYK", "RGB"),
        ("YCbCr", "RGB"),
        ("I;16", "I;16"),
        ("HSV", "RGB"),
    ],
)
def test_modes(nearest, weights, mode, expected):
    image = Image.new(mode, (6, 5))
    result = rdn_fast.upscale(image, weights)
    assert (result.mode, result.size) == (expected, (12, 10))
    assert (image.mode, image.size) == (mode, (6, 5))


def test_file_image_and_array_are_the_same(nearest, weights, tmp_path):
    array = photograph(5, 6)
    Image.fromarray(array).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), array):
        np.testing.assert_array_equal(
            np.asarray(rdn_fast.upscale(source, str(weights))), array.repeat(2, 0).repeat(2, 1)
        )


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 4)])
def test_arrays_of_grey_and_alpha(nearest, weights, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(rdn_fast.upscale(array, weights)), array.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4, 5, 6), np.uint8),
        np.zeros((4, 5, 3)),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((4, 5), np.float32),
    ],
    ids=str,
)
def test_arrays_that_are_no_pictures(nearest, weights, array):
    with pytest.raises(UserError, match=r"^the picture: "):
        rdn_fast.upscale(array, weights)


def test_what_is_computed_is_the_model(model, weights):
    array = photograph(9, 13)
    expected = Upscaler(model, fp32=True)(array)
    for given in (model, weights):
        np.testing.assert_array_equal(np.asarray(rdn_fast.upscale(array, given, fp32=True)), expected)
    assert not np.array_equal(np.asarray(rdn_fast.upscale(array, weights, fp32=True, self_ensemble=True)), expected)


def test_weights_are_loaded_once_and_again_when_written_anew(nearest, weights, tmp_path, monkeypatch):
    loaded, load_model = [], upscale.load_model
    monkeypatch.setattr(upscale, "load_model", lambda path, device: loaded.append(path) or load_model(path, device))
    path = tmp_path / "w.pth"
    path.write_bytes(weights.read_bytes())
    array = photograph(4, 4)
    for _ in range(3):
        rdn_fast.upscale(array, path)
    assert len(loaded) == 1
    os.utime(path, (1, 1))
    rdn_fast.upscale(array, path)
    assert len(loaded) == 2


def test_mistakes_in_python(model, weights, tmp_path):
    array = photograph(4, 4)
    (tmp_path / "a.png").write_bytes(b"x")
    for words, call in {
        "scale 3: these weights are for x2": lambda: rdn_fast.upscale(array, weights, scale=3),
        "scale 4: these weights are for x2": lambda: rdn_fast.upscale(array, model, scale=4),
        "device cpu: an RDN computes where it is": lambda: rdn_fast.upscale(array, model, device="cpu"),
        "nowhere.pth": lambda: rdn_fast.upscale(array, tmp_path / "nowhere.pth"),
        "a.png: not a picture": lambda: rdn_fast.upscale(tmp_path / "a.png", weights),
        "b.png: No such file": lambda: rdn_fast.upscale(tmp_path / "b.png", weights),
        "tile -1": lambda: rdn_fast.upscale(array, weights, tile=-1),
    }.items():
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_several_threads(model):
    """The model's tiles are not for several threads at a time; the function is."""
    arrays = [photograph(8, 8, seed=i) for i in range(4)]
    results = {}
    threads = [
        threading.Thread(
            target=lambda i=i: results.update({i: np.asarray(rdn_fast.upscale(arrays[i], model, fp32=True))})
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(results[i], Upscaler(model, fp32=True)(array))


# ---- names ----


def test_one_file(run, tree, weights):
    folder = tree("a.png")
    ended = run("-i", "a.png", "-o", "out")
    assert (ended.code, ended.err) == (0, "")
    first, last = ended.out.splitlines()
    assert first.startswith(f"{weights}: RDN x2 D2 C2 G4 G0 6, on cpu (")
    assert last == "out: 1 picture made"
    with Image.open(folder / "out/a_out.png") as image:
        assert (image.size, image.getpixel((11, 9))) == ((12, 10), (0, 0, 100))


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (
            (),
            [
                "a_out.png",
                "b_out.JPG",
                "c_out.jpeg",
                "d_out.webp",
                "e_out.tiff",
                "f_out.png",
                "g_out.png",
                "h.i_out.png",
            ],
        ),
        (
            ("--suffix", "x2"),
            ["a_x2.png", "b_x2.JPG", "c_x2.jpeg", "d_x2.webp", "e_x2.tiff", "f_x2.png", "g_x2.png", "h.i_x2.png"],
        ),
        (("--suffix", "", "--ext", "jpg"), ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "g.jpg", "h.i.jpg"]),
        (
            ("--ext", "tif"),
            ["a_out.tif", "b_out.tif", "c_out.tif", "d_out.tif", "e_out.tif", "f_out.tif", "g_out.tif", "h.i_out.tif"],
        ),
    ],
    ids=["auto", "suffix", "no suffix, jpg", "tif"],
)
def test_names_and_formats(run, tree, flags, names):
    tree(
        "in/a.png",
        "in/b.JPG",
        "in/c.jpeg",
        "in/d.webp",
        "in/e.tiff",
        "in/f.gif",
        "in/g.bmp",
        "in/h.i.png",
        "in/notes.txt",
        "in/data.h5",
        "in/.hidden.png",
    )
    ended = run("-i", "in", "-o", "new/out", *flags)
    assert (ended.code, ended.err) == (0, "")
    assert files("new/out") == names
    for name in names:
        with Image.open(Path("new/out") / name) as image:
            assert image.format == FORMATS[Path(name).suffix.lower()]
            assert image.size == (12, 10)


@pytest.mark.parametrize("name", ["result.png", "new/result.jpg", "result.TIFF", "result.webp"])
def test_output_may_be_a_file(run, tree, name):
    tree("in/a.png")
    for source in ("in/a.png", "in", "in/*"):
        assert run("-i", source, "-o", name, "--overwrite").code == 0
    with Image.open(name) as image:
        assert image.format == FORMATS[Path(name).suffix.lower()]
    assert files(Path(name).parent if "/" in name else "in") == (["result.jpg"] if "/" in name else ["a.png"])


def test_folder_named_like_a_picture_is_a_folder(run, tree):
    tree("in/a.png")
    Path("out.png").mkdir()
    assert run("-i", "in", "-o", "out.png").code == 0
    assert files("out.png") == ["a_out.png"]


def test_recursive_mirrors_the_folders(run, tree):
    tree("in/a.png", "in/x/b.png", "in/x/y/a.png", "in/.hidden/c.png")
    assert run("-i", "in", "-o", "flat").code == 0
    assert files("flat") == ["a_out.png"]
    assert run("-i", "in", "-o", "out", "-r").code == 0
    assert files("out") == ["a_out.png", "x/b_out.png", "x/y/a_out.png"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("in/*.png", ["a_out.png"]),
        ("in/**/*.png", ["a_out.png", "b_out.png"]),
        ("in/**", ["a_out.png", "b_out.png", "c_out.jpg"]),
        ("in/x/[bc].*", ["b_out.png", "c_out.jpg"]),
    ],
)
def test_globs(run, tree, pattern, names):
    tree("in/a.png", "in/x/b.png", "in/x/c.jpg", "in/x/notes.txt")
    assert run("-i", pattern, "-o", "out").code == 0
    assert files("out") == names


def test_several_inputs_each_picture_once(run, tree):
    tree("a[1].png", "in/b.png", "in/c.png", "d.jpg")
    assert run("-i", "a[1].png", "in", "in/b.png", "*.jpg", "-o", "out").out.endswith("out: 4 pictures made\n")
    assert files("out") == ["a[1]_out.png", "b_out.png", "c_out.png", "d_out.jpg"]


def test_two_names_of_one_picture_become_two_results(run, tree):
    folder = tree("in/a.png")
    (folder / "in/b.png").symlink_to("a.png")
    (folder / "also").symlink_to("in")  # another way to the same names
    assert run("-i", "in", "also", "-o", "out").out.endswith("out: 2 pictures made\n")
    assert files("out") == ["a_out.png", "b_out.png"]


def test_name_that_is_a_link_is_not_written_over(run, tree):
    folder = tree("in/a.png")
    (folder / "in/a_out.png").symlink_to("a.png")
    assert "take the place" in run("-i", "in/a.png", "in/a_out.png", "-o", "in").user_error()
    assert (folder / "in/a_out.png").is_symlink()


def test_picture_found_twice_goes_where_it_was_found_first(run, tree):
    tree("in/a.png", "in/x/a.png")
    assert run("-i", "in", "in/x/a.png", "-o", "out", "-r").code == 0
    assert files("out") == ["a_out.png", "x/a_out.png"]


def test_result_that_is_found_and_named_is_up_scaled(run, tree):
    tree("a.jpg", "a_out.png")
    assert run("-i", ".", "a_out.png", "-o", ".").code == 0
    assert files(".") == ["a.jpg", "a_out.jpg", "a_out.png", "a_out_out.png"]


def test_existing_results_are_kept_unless_overwrite(run, tree):
    tree("in/a.png", "in/b.png")
    assert run("-i", "in", "-o", "out").code == 0
    Path("out/a_out.png").write_text("kept")
    Path("out/b_out.png").unlink()
    ended = run("-i", "in", "-o", "out")
    assert (ended.code, ended.out.splitlines()[-1]) == (
        0,
        "out: 1 picture made, 1 there already (--overwrite makes them anew)",
    )
    assert Path("out/a_out.png").read_text() == "kept"
    assert run("-i", "in", "-o", "out", "--overwrite").out.endswith("out: 2 pictures made\n")
    assert Image.open("out/a_out.png").size == (12, 10)


def test_own_results_are_not_up_scaled_again(run, tree):
    tree("a.png", "b.jpg", "c_out.png")
    assert run("-i", ".", "-o", ".").code == 0
    first = ["a.png", "a_out.png", "b.jpg", "b_out.jpg", "c_out.png", "c_out_out.png"]
    assert files(".") == first
    ended = run("-i", ".", "-o", ".", "--ext", "png")
    assert "left out: 3 pictures named *_out.*" in ended.out
    assert ended.code == 0
    assert files(".") == sorted([*first, "b_out.png"])
    assert "left out" not in run("-i", "a_out.png", "-o", "again").out  # named, it is a picture like others


def test_results_below_the_input_are_not_up_scaled_again(run, tree):
    tree("in/a.png", "in/x/b.png")
    for made in ("in/out: 2 pictures made", "in/out: 0 pictures made, 2 there already"):
        assert made in run("-i", "in", "-o", "in/out", "-r").out
    assert files("in/out") == ["a_out.png", "x/b_out.png"]


# ---- mistakes, all found before a picture is read ----


@pytest.fixture
def unread(monkeypatch):
    """Fails the test when a picture is read."""
    monkeypatch.setattr(upscale_files, "read_picture", lambda *_: pytest.fail("a picture was read"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-i", "nowhere.png", "-o", "out"), ("-i nowhere.png", "no such file")),
        (("-i", "in", "nowhere", "-o", "out"), ("-i nowhere", "no such file")),
        (("-i", "in/*.gif", "-o", "out"), ("-i in/*.gif", "matches")),
        (("-i", "in/*.txt", "-o", "out"), ("-i in/*.txt", "matches")),
        (("-i", "empty", "-o", "out"), ("-i empty", "no pictures", "--recursive")),
        (("-i", "empty", "-o", "out", "-r"), ("-i empty", "no pictures")),
        (("-i", "in", "-o", "in/notes.txt"), ("-o in/notes.txt", "is a file")),
        (("-i", "in/a.png", "-o", "out.bmp"), ("-o out.bmp", "png, jpg, webp")),
        (("-i", "in", "-o", "out.png"), ("-o out.png", "2 pictures", "folder")),
        (("-i", "in/a.png", "-o", "out.png", "--ext", "jpg"), ("-o out.png", "--ext jpg")),
        (("-i", "in/a.png", "-o", "in/a.png"), ("in/a.png", "take the place")),
        (("-i", "in", "-o", "in", "--suffix", ""), ("in/a.png", "take the place")),
        (("-i", "in/a.png", "in/a_out.png", "in/b.jpg", "-o", "in"), ("in/a.png", "in/a_out.png", "take the place")),
        (("-i", "in/a.png", "other/a.png", "-o", "out"), ("in/a.png", "other/a.png", "out/a_out.png")),
        (("-i", "**/a.png", "-o", "out"), ("in/a.png", "other/a.png", "out/a_out.png")),
        (("-i", "in", "other", "-r", "-o", "out"), ("in/a.png", "other/a.png", "out/a_out.png")),
        (
            ("-i", "in/b.jpg", "other/b.png", "-o", "out", "--ext", "webp"),
            ("in/b.jpg", "other/b.png", "out/b_out.webp"),
        ),
        (("-i", "in", "-o", "made"), ("in/a.png", "made/a_out.png", "is a folder")),
        (("-i", "in", "-o", "out", "--suffix", "x/y"), ("--suffix x/y",)),
        (("-i", "in", "-o", "out", "--suffix", "x" * 300), ("in/a.png", "--suffix")),
        (("-i", "in", "-o", "in/notes.txt/out"), ("in/notes.txt/out", "cannot be written", "-o")),
        (("-i", "in", "-o", "out", "-s", "3"), ("--scale 3", "x2")),
        (("-i", "in", "-o", "out", "--max-pixels", "-1"), ("--max-pixels -1",)),
        (("-i", "in", "-o", "out", "-t", "x"), ("--tile",)),
        (("-i", "in", "-o", "out", "--ext", "gif"), ("--ext",)),
        (("-i", "in", "-o", "out", "--device", "abacus"), ("--device abacus",)),
        (("-i", "in"), ("-o",)),
        (("-o", "out"), ("-i",)),
    ],
    ids=lambda value: " ".join(value)[:60] if value and value[0].startswith("-") else "",
)
def test_mistakes(run, tree, unread, arguments, words):
    folder = tree("in/a.png", "in/b.jpg", "in/notes.txt", "other/a.png", "other/b.png", "made/a_out.png/x.png")
    if "in/a_out.png" in arguments:
        tree("in/a_out.png")
    (folder / "empty").mkdir()
    before = files(folder)
    message = run(*arguments).user_error()
    for word in words:
        assert word in message
    assert files(folder) == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("-t", "-1"), "--tile -1: "),
        (("--tile-pad", "-1"), "--tile-pad -1: "),
        (("--tile_pad", "wide"), "--tile-pad wide: "),
        (("--tile_pad=1.5",), "--tile-pad 1.5: "),
    ],
    ids=str,
)
def test_tiles_that_cannot_be(cli, tree, unread, weights, monkeypatch, arguments, word):
    folder = tree("a.png")
    assert (
        cli("upscale", "-w", weights, "-i", folder / "a.png", "-o", folder / "out", *arguments)
        .user_error()
        .startswith(word)
    )
    assert files(folder) == ["a.png"]


@pytest.mark.parametrize("content", [None, b"", b"no weights", "linear"], ids=["missing", "empty", "text", "no RDN"])
def test_weights_that_are_none(cli, tree, unread, tmp_path, content):
    tree("a.png")
    path = tmp_path / "w.pth"
    if content == "linear":
        torch.save({"weight": torch.zeros(3, 3)}, path)
    elif content is not None:
        path.write_bytes(content)
    assert str(path) in cli("upscale", "-w", path, "-i", tmp_path / "a.png", "-o", tmp_path / "out").user_error()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("locked", ["in", "in/x"])
def test_unreadable_folder_is_named(run, tree, unread, monkeypatch, locked):
    folder = tree("in/a.png", "in/x/b.png")
    scandir = os.scandir

    def scanning(path):  # root may read everything
        if Path(path) == Path(locked):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scanning)
    assert (
        run("-i", "in", "-o", "out", "-r").user_error()
        == f"-i {locked}: cannot be read (Permission denied); make it readable, or leave it out"
    )
    monkeypatch.undo()
    assert files(folder) == ["in/a.png", "in/x/b.png"]


def test_empty_name_is_not_the_shipped_model(cli, tree, unread, tmp_path):
    tree("a.png")
    cli("upscale", "-w", "", "-i", tmp_path / "a.png", "-o", tmp_path / "out").user_error()
    with pytest.raises(UserError):
        rdn_fast.upscale(photograph(4, 4), "")
    assert files(tmp_path) == ["a.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_read_only_output(run, tree, unread):
    tree("a.png")
    Path("locked").mkdir(mode=0o500)
    assert "cannot be written" in run("-i", "a.png", "-o", "locked").user_error()
    assert "cannot be written" in run("-i", "a.png", "-o", "locked/out").user_error()


# ---- pictures that cannot be up-scaled ----


def spoil(kind, path):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "truncated":
        Image.fromarray(photograph(40, 40)).save(path)
        path.write_bytes(path.read_bytes()[:600])
    elif kind == "float":
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    elif kind == "pixels":
        Image.new("L", (101, 100)).save(path)
    elif kind == "long":
        Image.new("RGB", (1, 32_751)).save(path)  # a JPEG of 65,502 pixels cannot be


BAD = [
    ("empty", "e.png", "not a picture"),
    ("text", "t.jpg", "not a picture"),
    ("truncated", "u.png", ""),
    ("truncated", "v.jpg", "truncated"),
]
BAD += [("float", "f.tif", "float"), ("pixels", "p.png", "--max-pixels 10000"), ("long", "l.jpg", "65502")]


@pytest.mark.parametrize(("kind", "name", "word"), BAD, ids=[f"{kind} {name}" for kind, name, _ in BAD])
def test_bad_picture_is_named_and_the_rest_goes_on(run, tree, kind, name, word):
    folder = tree("in/a.png", "in/z.png")
    spoil(kind, folder / "in" / name)
    limit = ("--max-pixels", 10_000 if kind == "pixels" else 0)
    ended = run("-i", "in", "-o", "out", *limit)
    assert (ended.code, ended.err) == (1, "")
    (line,) = [line for line in ended.out.splitlines() if line.startswith("failed ")]
    assert line.startswith(f"failed in/{name}: ")
    assert word in line.lower()
    assert ended.out.endswith("out: 2 pictures made, 1 failed\n")
    assert files("out") == ["a_out.png", "z_out.png"]


@pytest.mark.parametrize(("kind", "name", "word"), BAD, ids=[f"{kind} {name}" for kind, name, _ in BAD])
def test_bad_picture_alone_is_one_line(run, tmp_path, kind, name, word):
    spoil(kind, tmp_path / name)
    ended = run("-i", name, "-o", "out", "--max-pixels", 10_000 if kind == "pixels" else 0)
    assert ended.user_error().startswith(f"{name}: ")
    assert word in ended.err.lower()
    assert "failed" not in ended.out
    assert files("out") == []


def test_nothing_but_bad_pictures(run, tree, tmp_path):
    tree("in/a.txt", "in/b.txt")
    ended = run("-i", "in/a.txt", "in/b.txt", "-o", "out")  # named ones are tried, whatever their extension
    assert "none of the 2 pictures" in ended.user_error()
    assert ended.out.count("failed in/") == 2


def test_picture_of_any_name_is_tried_when_named(run, tree):
    folder = tree("a.png")
    (folder / "a.png").rename(folder / "a.txt")
    assert run("-i", "a.txt", "-o", "out").code == 0
    assert files("out") == ["a_out.png"]


def test_limit_on_pixels_and_its_override(run, tmp_path):
    spoil("pixels", tmp_path / "p.png")
    before = Image.MAX_IMAGE_PIXELS
    for limit, code in ((10_099, 2), (10_100, 0), (0, 0)):
        assert run("-i", "p.png", "-o", "out", "--overwrite", "--max-pixels", limit).code == code
    assert before == Image.MAX_IMAGE_PIXELS


def test_what_a_format_loses_is_said(run, tmp_path):
    Image.new("RGBA", (6, 5), (1, 2, 3, 4)).save(tmp_path / "a.png")
    ended = run("-i", "a.png", "-o", "out", "--ext", "jpg")
    assert ended.code == 0
    assert "a.png: transparency replaced by white" in ended.out


def test_picture_too_large_for_the_memory_is_named(run, tree, monkeypatch):
    class Small(Nearest):
        def __call__(self, image):
            if image.shape[1] > 6:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            return super().__call__(image)

    monkeypatch.setattr(upscale_files, "Upscaler", Small)
    folder = tree("in/a.png", "in/c.png")
    Image.new("RGB", (7, 5)).save(folder / "in/b.png")
    ended = run("-i", "in", "-o", "out")
    assert ended.code == 1
    assert "failed in/b.png: there is not memory enough" in ended.out
    assert files("out") == ["a_out.png", "c_out.png"]


def test_picture_that_cannot_be_encoded_is_named(run, tree, monkeypatch):
    tree("in/a.png", "in/b.png")
    encode = upscale_files.encode

    def encoding(picture, format):
        if picture.pixels[0, 0, 0] == 1:
            raise OSError("encoder error -2 when writing\nimage file")
        return encode(picture, format)

    monkeypatch.setattr(upscale_files, "encode", encoding)
    ended = run("-i", "in", "-o", "out", "--ext", "jpg")
    assert ended.code == 1
    assert "failed in/b.png: cannot be encoded (encoder error -2 when writing image file)" in ended.out
    assert files("out") == ["a_out.jpg"]


@pytest.mark.parametrize(
    ("room", "code", "left"), [(10, 2, []), (20_000, 1, ["a_out.png"])], ids=["at once", "in the middle"]
)
def test_full_disk(run, tree, monkeypatch, room, code, left):
    # A limit on the size of files, because a test cannot fill the disk.
    folder = tree("in/a.png")
    for name in "bcdefghi":
        Image.fromarray(photograph(100, 100)).save(folder / f"in/{name}.png")
    Path("out").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        ended = run("-i", "in", "-o", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended.code == code
    (line,) = ended.err.splitlines()
    assert line.startswith(
        f"rdn-fast: {'failed' if left else 'error'}: out/{'b' if left else 'a'}_out.png: cannot be written (File too large)"
    )
    assert files("out") == left


# ---- what runs beside what ----


@pytest.fixture
def watched(monkeypatch):
    """watched[what, name]: an event, set when a picture has been decoded ("read") or encoded ("written")."""

    class Events(dict):
        def __missing__(self, key):
            return self.setdefault(key, threading.Event())

    events, names, read, write = Events(), {}, upscale_files.read_picture, upscale_files._encode_and_write

    def reading(path, *limits):
        picture = read(path, *limits)
        names[int(picture.pixels[0, 0, 0])] = path.stem
        events["read", path.stem].set()
        return picture

    def writing(result):
        ended = write(result)
        events["written", result[0].source.stem].set()
        return ended

    monkeypatch.setattr(upscale_files, "read_picture", reading)
    monkeypatch.setattr(upscale_files, "_encode_and_write", writing)
    events.name = lambda image: names[int(image[0, 0, 0])]
    return events


def test_next_is_decoded_and_those_before_are_encoded_while_the_model_computes(run, tree, watched, monkeypatch):
    class Waiting(Nearest):
        def __call__(self, image):
            name = watched.name(image)
            if name != "d":
                assert watched["read", chr(ord(name) + 1)].wait(PATIENCE), name
            if name != "a":
                assert watched["written", chr(ord(name) - 1)].wait(PATIENCE), name
            return super().__call__(image)

    monkeypatch.setattr(upscale_files, "Upscaler", Waiting)
    tree(*(f"in/{name}.png" for name in "abcd"))
    assert run("-i", "in", "-o", "out").code == 0
    assert len(files("out")) == 4


def test_parts_of_a_picture_are_told(run, tmp_path, monkeypatch):
    class Telling(Nearest):
        def __call__(self, image):
            for share in (0.5, 1):
                self.progress(share)
            return super().__call__(image)

    told = []
    monkeypatch.setattr(upscale_files, "Upscaler", Telling)
    monkeypatch.setattr(upscale_files.Bar, "set_done", lambda _, done, text: told.append((done, text)))
    alpha = Image.new("RGBA", (6, 5))
    alpha.save(tmp_path / "a.png")  # constant alpha does not go through the model
    alpha.putpixel((0, 0), (1, 2, 3, 4))
    alpha.save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"")
    Image.new("L", (6, 5)).save(tmp_path / "d.png")
    assert run("-i", "a.png", "b.png", "c.png", "d.png", "-o", "out").code == 1
    parts = [
        (0.5, "a.png 50%"),
        (1, "a.png"),
        (1.25, "b.png 25%"),
        (1.5, "b.png 50%"),
        (1.75, "b.png 75%"),
        (2, "b.png"),
    ]
    assert told == [*parts, (3.5, "d.png 50%"), (4, "d.png")]


def test_one_large_picture_has_an_eta(cli, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "_PLAIN_SECONDS", 0.0)
    Image.fromarray(photograph(32, 16)).save(tmp_path / "a.png")
    out = cli("upscale", "-w", weights, "-i", tmp_path / "a.png", "-o", tmp_path / "out", "-t", 16, "--tile-pad", 0).out
    assert "pictures 0/1  a.png 50%  ETA 0:00:" in out
    assert "pictures 1/1  a.png  ETA 0:00:00" in out


def test_memory_does_not_grow_with_the_number_of_files(run, tree, watched, monkeypatch):
    monkeypatch.setattr(upscale_files, "_encoders", lambda: (2, 2))
    names = [f"{i:02}" for i in range(20)]
    ahead, behind = [], []

    def done(what):
        return sum(watched[what, name].is_set() for name in names)

    class Counting(Nearest):
        def __call__(self, image):
            number = names.index(watched.name(image))
            ahead.append(done("read") - number - 1)
            behind.append(number - done("written"))
            return super().__call__(image)

    monkeypatch.setattr(upscale_files, "Upscaler", Counting)
    tree(*(f"in/{name}.png" for name in names))
    assert run("-i", "in", "-o", "out").code == 0
    assert len(ahead) == 20
    assert max(ahead) <= 2
    assert max(behind) <= 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("a bug")], ids=["Ctrl-C", "bug"])
def test_no_thread_is_left_behind(run, tree, monkeypatch, error):
    class Failing(Nearest):
        def __call__(self, image):
            if image[0, 0, 0] == 2:
                raise error
            return super().__call__(image)

    monkeypatch.setattr(upscale_files, "Upscaler", Failing)
    tree(*(f"in/{name}.png" for name in "abcdefgh"))
    before = set(threading.enumerate())
    if error is KeyboardInterrupt:
        assert run("-i", "in", "-o", "out").code == 130
    else:
        with pytest.raises(RuntimeError, match="a bug"):
            run("-i", "in", "-o", "out")
    assert set(threading.enumerate()) <= before
    assert files("out") == ["a_out.png", "b_out.png"]


def test_ctrl_c(tmp_path, weights):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(400):
        Image.fromarray(photograph(16, 16)).save(folder / f"{i:03}.png") if i == 0 else os.link(
            folder / "000.png", folder / f"{i:03}.png"
        )
    out = tmp_path / "out"
    program = "import sys, rdn_fast.model, rdn_fast.cli; rdn_fast.model.resolve_impl = lambda *_: 'sliced'; sys.exit(rdn_fast.cli.main())"  # as above
    arguments = [sys.executable, "-c", program, "upscale", "-w", weights, "-i", folder, "-o", out]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    while len(list(out.glob("*.png"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (130, b"")
    made = list(out.iterdir())
    assert 3 <= len(made) < 400
    for path in made:
        assert path.name.endswith("_out.png")  # nothing half-written
        with Image.open(path) as image:
            image.load()
            assert image.size == (32, 32)


def test_command_computes_what_the_model_does(cli, model, weights, tmp_path):
    array = photograph(21, 17)
    Image.fromarray(array).save(tmp_path / "a.png")
    assert (
        cli(
            "upscale",
            "-w",
            weights,
            "-i",
            tmp_path / "a.png",
            "-o",
            tmp_path,
            "--tile",
            8,
            "--tile_pad",
            "exact",
            "--fp32",
            "-s",
            2,
        ).code
        == 0
    )
    with Image.open(tmp_path / "a_out.png") as image:
        assert np.abs(np.asarray(image).astype(int) - Upscaler(model, tile=0, fp32=True)(array)).max() <= 1
