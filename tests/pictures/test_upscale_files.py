"""`rdn-fast upscale`: what goes on when a picture is bad, and what runs beside what."""

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
from PIL import Image
from runs import ROOT, photograph
from stand_in import PATIENCE, Nearest, files

from rdn_fast import terminal
from rdn_fast.pictures import upscale_files
from rdn_fast.pictures.tiled import Upscaler

pytestmark = pytest.mark.usefixtures("untimed")


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
            if image.shape[1] > 6 + 8:  # continued by 4 pixels on every side
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
    kind, name = ("failed", "b") if left else ("error", "a")
    assert line.startswith(f"rdn-fast: {kind}: out/{name}_out.png: cannot be written (File too large)")
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

    def writing(result, *flags):
        ended = write(result, *flags)
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
    Image.fromarray(photograph(24, 8)).save(tmp_path / "a.png")
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(tmp_path, weights, number):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(photograph(16, 16)).save(folder / "000.png")
    for i in range(1, 400):
        os.link(folder / "000.png", folder / f"{i:03}.png")
    out = tmp_path / "out"
    untimed = "rdn_fast.model.resolve_impl = lambda *_: 'sliced'"  # as the fixture does
    program = f"import sys, rdn_fast.model, rdn_fast.cli; {untimed}; sys.exit(rdn_fast.cli.main())"
    arguments = [sys.executable, "-c", program, "upscale", "-w", weights, "-i", folder, "-o", out]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    while len(list(out.glob("*.png"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (128 + number, f"rdn-fast: stopped by {number.name}\n".encode())
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
    flags = ("-i", tmp_path / "a.png", "-o", tmp_path, "--tile", 8, "--tile_pad", "exact", "--fp32", "-s", 2)
    assert cli("upscale", "-w", weights, *flags).code == 0
    with Image.open(tmp_path / "a_out.png") as image:
        continued = np.pad(array, ((4, 4), (4, 4), (0, 0)), "reflect")
        expected = Upscaler(model, tile=0, fp32=True)(continued)[8:-8, 8:-8]
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1
