"""`rdn-fast prepare --repack`: files that cannot be mapped become files that can, and nothing of them is lost."""

import os
import re
import resource
import signal
import subprocess
import time
import tracemalloc

import h5py
import numpy as np
import pytest
from runs import command
from waiting import PATIENCE

from rdn_fast import terminal
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.repack import repack


@pytest.fixture
def pairs(photograph):
    """make(scale=2): five pairs of different sizes, each of which holds every value from 0 to 255."""

    def make(scale=2):
        made = []
        for i in range(5):
            lr, hr = (
                photograph(12 + i, 10 + 2 * i, seed=i),
                photograph(scale * (12 + i), scale * (10 + 2 * i), seed=100 + i),
            )
            for image in (lr, hr):
                image.flat[:256] = np.arange(256)
            made.append((lr, hr))
        return made

    return make


@pytest.fixture
def run(cli, tmp_path):
    """run(old): `rdn-fast prepare --repack old new.h5`; what it ended with."""
    return lambda old: cli("prepare", "--repack", old, tmp_path / "new.h5")


@pytest.fixture
def refused(run, tmp_path):
    """refused(old): the one-line message about an unusable file. It begins with the file; nothing is written."""

    def message(old):
        before = sorted(tmp_path.rglob("*"))
        text = run(old).user_error()
        assert text.startswith(f"--repack {old}: "), text
        assert sorted(tmp_path.rglob("*")) == before
        return text.removeprefix(f"--repack {old}: ")

    return message


def assert_holds(path, pairs, scale=2):
    """The file can be mapped, and its pixels are those of `pairs`, a list in its order."""
    with h5py.File(path) as file:
        for group in file.values():
            for data in group.values():
                assert (data.dtype, data.chunks, data.compression) == (np.uint8, None, None)
                assert data.id.get_offset() is not None
    mapped = PairedH5(path, scale)
    assert len(mapped) == len(pairs)
    for i, (lr, hr) in enumerate(pairs):
        np.testing.assert_array_equal(mapped[i].lr, lr)
        np.testing.assert_array_equal(mapped[i].hr, hr)


# ---- what is written ----


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": True},
        {"chunks": (5, 4, 2)},
        {"compression": "gzip"},
        {"compression": "lzf", "shuffle": True, "fletcher32": True},
    ],
    ids=["contiguous", "chunked", "small chunks", "gzip", "lzf"],
)
def test_pixels_are_the_same_and_can_be_mapped(tmp_path, make_h5, pairs, run, options):
    old = make_h5(tmp_path / "old.h5", pairs(), **options)
    before = old.read_bytes()
    ended = run(old)
    assert (ended.code, ended.err) == (0, "")
    assert_holds(tmp_path / "new.h5", pairs())
    assert old.read_bytes() == before


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_scale_is_read_off_the_sizes_and_told(tmp_path, make_h5, pairs, run, scale):
    ended = run(make_h5(tmp_path / "old.h5", pairs(scale), chunks=True))
    assert f"new.h5: 5 pairs at x{scale}; " in ended.out
    assert_holds(tmp_path / "new.h5", pairs(scale), scale)


@pytest.mark.parametrize("tracked", [False, True])
def test_names_and_their_order_are_kept(tmp_path, pairs, run, tracked):
    old = tmp_path / "old.h5"
    keys = ["10", "butterfly", "2", "0", "a b"]
    with h5py.File(old, "w") as file:
        groups = [file.create_group(group, track_order=tracked) for group in ("lr", "hr")]
        for key, pair in zip(keys, pairs(), strict=True):
            for group, image in zip(groups, pair, strict=True):
                group.create_dataset(key, data=image, chunks=True)
        file["hr/2"].attrs["name"] = "zebra, née Zèbre"
        file["hr/10"].attrs["name"] = np.bytes_("bytes")
    assert run(old).code == 0
    with h5py.File(old) as file, h5py.File(tmp_path / "new.h5") as new:
        for group in ("lr", "hr"):
            assert list(new[group]) == list(file[group]) == (keys if tracked else sorted(keys))
        names = {key: new["hr"][key].attrs.get("name") for key in keys}
        assert names == {"10": b"bytes", "butterfly": None, "2": "zebra, née Zèbre".encode(), "0": None, "a b": None}
        for key, (lr, hr) in zip(keys, pairs(), strict=True):
            np.testing.assert_array_equal(new["lr"][key], lr)
            np.testing.assert_array_equal(new["hr"][key], hr)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "i2", "i4", ">i8", "u8"])
def test_wider_integers_keep_their_values(tmp_path, make_h5, pairs, run, dtype):
    old = make_h5(tmp_path / "old.h5", [(lr.astype(dtype), hr.astype(dtype)) for lr, hr in pairs()], compression="gzip")
    assert "float" not in run(old).out
    assert_holds(tmp_path / "new.h5", pairs())


FLOATS = pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8"])


@FLOATS
def test_floats_from_0_to_1(tmp_path, make_h5, pairs, run, dtype):
    old = make_h5(
        tmp_path / "old.h5", [((lr / 255).astype(dtype), (hr / 255).astype(dtype)) for lr, hr in pairs()], chunks=True
    )
    assert "new.h5: 5 pairs at x2, float values taken as 0..1; " in run(old).out
    assert_holds(tmp_path / "new.h5", pairs())


@FLOATS
def test_floats_from_0_to_255(tmp_path, make_h5, pairs, run, dtype):
    old = make_h5(tmp_path / "old.h5", [(lr.astype(dtype), hr.astype(dtype)) for lr, hr in pairs()])
    assert "new.h5: 5 pairs at x2, float values taken as 0..255; " in run(old).out
    assert_holds(tmp_path / "new.h5", pairs())


@pytest.mark.parametrize("largest", [1, 255])
def test_floats_are_rounded_to_nearest(tmp_path, make_h5, pairs, run, seed, largest):
    rng = np.random.default_rng(seed)

    def spread(image):
        return np.clip(image + rng.uniform(-0.49, 0.49, image.shape), 0, 255) / 255 * largest

    assert run(make_h5(tmp_path / "old.h5", [(spread(lr), spread(hr)) for lr, hr in pairs()])).code == 0
    assert_holds(tmp_path / "new.h5", pairs())


def test_the_largest_float_decides_for_the_whole_file(tmp_path, make_h5, pairs, run):
    dark = tuple(image // 128 for image in pairs()[0])  # 0 and 1, of 255
    old = make_h5(
        tmp_path / "old.h5", [tuple(image.astype(np.float32) for image in pair) for pair in (dark, *pairs()[1:])]
    )
    assert "taken as 0..255" in run(old).out
    assert_holds(tmp_path / "new.h5", [dark, *pairs()[1:]])


def test_dark_floats_alone_are_0_to_1(tmp_path, make_h5, pairs, run):
    old = make_h5(tmp_path / "old.h5", [tuple(image / 1020 for image in pair) for pair in pairs()])
    assert "taken as 0..1;" in run(old).out
    assert_holds(tmp_path / "new.h5", [tuple(np.rint(image / 4) for image in pair) for pair in pairs()])


def test_integers_beside_floats_stay_as_they_are(tmp_path, make_h5, pairs, run):
    old = make_h5(tmp_path / "old.h5", [(lr, hr / 255) for lr, hr in pairs()])
    assert "taken as 0..1;" in run(old).out
    assert_holds(tmp_path / "new.h5", pairs())


def test_sizes_before_and_after_are_told(tmp_path, make_h5, photograph, run):
    old = make_h5(
        tmp_path / "old.h5",
        [(photograph(100, 120).astype(np.float64), photograph(200, 240).astype(np.float64))],
        chunks=True,
    )
    megabytes = re.search(r"; ([\d.]+) MB before, ([\d.]+) MB now\n", run(old).out).groups()
    assert megabytes == tuple(f"{path.stat().st_size / 1e6:.1f}" for path in (old, tmp_path / "new.h5"))
    assert float(megabytes[0]) > 4 * float(megabytes[1]) > 0


def test_progress_is_told(tmp_path, make_h5, pairs, run, monkeypatch):
    monkeypatch.setattr(terminal, "_PLAIN_SECONDS", 0)
    told = run(make_h5(tmp_path / "old.h5", [(lr / 255, hr / 255) for lr, hr in pairs()])).out
    for i in range(5):
        assert f"pairs {i + 1}/5  " in told
    assert "images checked 10/10  " in told


def test_one_image_at_a_time_is_in_memory(tmp_path, make_h5, photograph, capsys):
    lr, hr = (photograph(*size).astype(np.float32) for size in ((100, 100), (200, 200)))
    old = make_h5(tmp_path / "old.h5", [(lr, hr)] * 30, chunks=True)
    tracemalloc.start()  # counts numpy's arrays, too
    try:
        repack(old, tmp_path / "new.h5")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The largest image as float32 and float64, the next one as float32, and some; all pairs as float32 would be 18 MB.
    assert peak < 8 * hr.size * 3
    assert 30 * (lr.nbytes + hr.nbytes) > 6 * peak


# ---- what cannot be used ----


WRONG = {
    "NaN": ("f4", np.nan),
    "infinity": ("f4", np.inf),
    "minus infinity": ("f8", -np.inf),
    "negative": ("f4", -1e-6),
    "above 255": ("f4", 255.5),
    "negative integer": ("i2", -1),
    "16 bits": ("u2", 256),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize(("name", "which"), [("lr", 0), ("hr", 1)])
def test_value_that_no_pixel_has(tmp_path, make_h5, pairs, refused, kind, name, which):
    dtype, value = WRONG[kind]
    images = [tuple(image.astype(dtype) for image in pair) for pair in pairs()]
    images[3][which][2, 1, 0] = value
    message = refused(make_h5(tmp_path / "old.h5", images, chunks=True))
    assert message.startswith(f"/{name}/3 holds values from ")
    assert f"{value:g}" in message
    assert "0..1 or 0..255" in message


def test_0_to_1_with_overshoot_is_not_taken_for_0_to_255(tmp_path, make_h5, pairs, refused):
    images = [tuple(image / 255 for image in pair) for pair in pairs()]
    images[2][0][0, 0, 0] = 1.03
    message = refused(make_h5(tmp_path / "old.h5", images))
    assert message.startswith("/lr/2 holds 1.03, ")
    assert "clip its values to 0..1" in message


SPOILT = {
    "grey": (lambda image: image[..., 0], "uint8 [24, 20], not an image of numbers [H, W, 3]"),
    "alpha": (lambda image: np.dstack([image, image[..., :1]]), "uint8 [24, 20, 4], not"),
    "channels first": (lambda image: image.transpose(2, 0, 1), "uint8 [3, 24, 20], not"),
    "batch": (lambda image: image[None], "uint8 [1, 24, 20, 3], not"),
    "no pixels": (lambda image: image[:0], "uint8 [0, 20, 3], not"),
    "truth values": (lambda image: image > 99, "bool [24, 20, 3], not"),
    "complex": (lambda image: image.astype(complex), "complex128 [24, 20, 3], not"),
    "one number": (lambda image: image[0, 0, 0], "uint8 [], not"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_dataset_that_is_no_rgb_image(tmp_path, make_h5, pairs, refused, kind):
    spoil, found = SPOILT[kind]
    images = pairs()
    images[0] = (images[0][0], spoil(images[0][1]))
    assert f"/hr/0 is {found}" in refused(make_h5(tmp_path / "old.h5", images))


@pytest.mark.parametrize("kind", ["nothing", "a group", "never written", "a dangling link", "text"])
def test_what_else_can_be_in_a_datasets_place(tmp_path, make_h5, pairs, refused, kind):
    path = make_h5(tmp_path / "old.h5", pairs(), chunks=True)
    with h5py.File(path, "r+") as file:
        shape = file["lr/3"].shape
        del file["lr/3"]
        if kind == "a group":
            file.create_group("lr/3")
        elif kind == "never written":
            file.create_dataset("lr/3", shape, np.uint8, chunks=True)
        elif kind == "a dangling link":
            file["lr/3"] = h5py.SoftLink("/nowhere")
        elif kind == "text":
            file["lr/3"] = "an image"
    message = refused(path)
    expected = {
        "nothing": "/hr/3 has no partner",
        "a group": "/lr/3 is a group",
        "never written": "/lr/3 was never written",
        "a dangling link": "pair 3 cannot be read",
        "text": "/lr/3 is object []",
    }
    assert message.startswith(expected[kind])


@pytest.mark.parametrize(("name", "other"), [("lr", "hr"), ("hr", "lr")])
def test_missing_partner_is_named(tmp_path, make_h5, pairs, refused, name, other):
    path = make_h5(tmp_path / "old.h5", pairs())
    with h5py.File(path, "r+") as file:
        del file[f"{name}/4"]
    assert refused(path).startswith(f"/{other}/4 has no partner")


@pytest.mark.parametrize("group", ["lr", "hr"])
@pytest.mark.parametrize("how", ["missing", "a dataset"])
def test_missing_group(tmp_path, make_h5, pairs, refused, group, how):
    path = make_h5(tmp_path / "old.h5", pairs())
    with h5py.File(path, "r+") as file:
        del file[group]
        if how == "a dataset":
            file[group] = pairs()[0][0]
    assert f"no group `{group}`" in refused(path)


def test_empty_groups(tmp_path, make_h5, refused):
    assert "groups lr and hr are empty" in refused(make_h5(tmp_path / "old.h5", []))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((25, 20), "/hr/0 is 20x25, /lr/0 10x12: not 2, 3, 4 or 8 times as large"),
        ((24, 21), "/hr/0 is 21x24, /lr/0 10x12: not 2, 3, 4 or 8 times as large"),
        ((24, 30), "/hr/0 is 30x24, /lr/0 10x12: not 2, 3, 4 or 8 times as large"),
        ((12, 10), "/hr/0 is 10x12, /lr/0 10x12: not 2, 3, 4 or 8 times as large"),
        ((6, 5), "/hr/0 is 5x6, /lr/0 10x12: not 2, 3, 4 or 8 times as large"),
        ((60, 50), "/hr/0 is 50x60, /lr/0 10x12: not 2, 3, 4 or 8 times as large"),
        ((36, 30), "/hr/1 is 24x26, /lr/1 12x13: x2, but the pairs before are x3"),
    ],
)
def test_sizes_that_are_no_scale(tmp_path, make_h5, photograph, pairs, refused, size, words):
    images = pairs()
    images[0] = (images[0][0], photograph(*size))
    assert refused(make_h5(tmp_path / "old.h5", images)).startswith(words)


@pytest.mark.parametrize(
    "content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)], ids=["empty", "text", "only a signature"]
)
def test_file_that_is_not_hdf5(tmp_path, refused, content):
    path = tmp_path / "old.h5"
    path.write_bytes(content)
    assert "not a readable HDF5 file" in refused(path)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.999])
def test_truncated_file(tmp_path, make_h5, pairs, refused, part):
    path = make_h5(tmp_path / "old.h5", pairs(), compression="gzip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    assert "not a readable HDF5 file" in refused(path)


@pytest.mark.parametrize("damage", ["chunk", "group index", "dataset header"])
def test_damaged_file(tmp_path, make_h5, pairs, refused, damage):
    path = make_h5(tmp_path / "old.h5", pairs(), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["hr/3"].id.get_chunk_info(0)
        header = h5py.h5o.get_info(file["lr/3"].id).addr
    content = bytearray(path.read_bytes())
    if damage == "chunk":
        content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    elif damage == "group index":
        index = content.rindex(b"SNOD")  # the signature of a group's index
        content[index : index + 4] = b"XXXX"
    else:
        content[header : header + 16] = bytes(16)
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(
        {"chunk": "/hr/3 cannot be read (", "group index": "damaged (", "dataset header": "pair 3 cannot be read ("}[
            damage
        ]
    )
    assert "rdn-fast prepare" in message


def test_missing_file_and_folder(tmp_path, run):
    for old, reason in ((tmp_path / "none.h5", "no such file"), (tmp_path, "is a folder")):
        assert run(old).user_error().startswith(f"--repack {old}: {reason}")


# ---- the two files ----


@pytest.mark.parametrize("how", ["the same", "another spelling", "symbolic link", "hard link", "old is a link"])
def test_a_file_is_not_repacked_onto_itself(tmp_path, make_h5, pairs, cli, how):
    old = make_h5(tmp_path / "old.h5", pairs(), chunks=True)
    before, new = old.read_bytes(), tmp_path / "new.h5"
    if how == "the same":
        new = old
    elif how == "another spelling":
        (tmp_path / "folder").mkdir()
        new = tmp_path / "folder" / ".." / "old.h5"
    elif how == "hard link":
        os.link(old, new)
    else:
        new.symlink_to(old)
    files = sorted(tmp_path.rglob("*"))
    message = cli("prepare", "--repack", *((new, old) if how == "old is a link" else (old, new))).user_error()
    assert "both are one file" in message
    assert "NEW.h5" in message
    assert old.read_bytes() == new.read_bytes() == before
    assert sorted(tmp_path.rglob("*")) == files


def test_existing_file_is_replaced_only_by_a_whole_one(tmp_path, make_h5, pairs, run):
    (tmp_path / "new.h5").write_bytes(b"\x89HDF\r\n\x1a\nas it was")
    images = pairs()
    images[4] = (images[4][0], images[4][1].astype(np.int16) - 1)  # found while the fifth pair is written
    run(make_h5(tmp_path / "old.h5", images)).user_error()
    assert (tmp_path / "new.h5").read_bytes() == b"\x89HDF\r\n\x1a\nas it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.h5", "old.h5"]
    assert run(make_h5(tmp_path / "old.h5", pairs())).code == 0
    assert_holds(tmp_path / "new.h5", pairs())


def test_new_file_that_cannot_be_written(tmp_path, make_h5, pairs, cli):
    (tmp_path / "file").write_text("x")
    old, new = make_h5(tmp_path / "old.h5", pairs()), tmp_path / "file" / "new.h5"
    message = cli("prepare", "--repack", old, new).user_error()
    assert message.startswith(f"--repack {new}: cannot be written")
    assert "choose another place" in message


def test_full_disk(tmp_path, make_h5, photograph, run_cli):
    # A limit on the size of files, because a test cannot fill the disk.
    old = make_h5(
        tmp_path / "old.h5", [(photograph(60, 60, i), photograph(120, 120, i)) for i in range(4)], chunks=True
    )
    limit = (100_000, 100_000)
    ended = run_cli(
        "prepare", "--repack", old, "new.h5", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("rdn-fast: error: --repack new.h5: cannot be written")
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_file_behind(tmp_path, make_h5, photograph, number):
    hr = photograph(300, 300).astype(np.int64)
    old = make_h5(tmp_path / "old.h5", [(hr[::2, ::2], hr)] * 60, compression="lzf")
    process = subprocess.Popen(
        command("prepare", "--repack", old, "new.h5"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob(".new.h5.*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(number)
    assert process.communicate(timeout=PATIENCE) == ("", f"rdn-fast: stopped by {number.name}\n")
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == [old]


# ---- the flags ----


@pytest.mark.parametrize(
    "flag",
    [
        ("--images-dir", "images"),
        ("--output-path=a.h5",),
        ("--scale", "2"),
        ("--eval",),
        ("--yjn870-compat",),
        ("--strict",),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("first", [True, False])
def test_no_other_flag_goes_with_it(tmp_path, make_h5, pairs, cli, flag, first):
    files = ("--repack", make_h5(tmp_path / "old.h5", pairs()), tmp_path / "new.h5")
    message = cli("prepare", *((*flag, *files) if first else (*files, *flag))).user_error()
    assert message.startswith(f"{flag[0]}: does not go with --repack")
    assert not (tmp_path / "new.h5").exists()


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ((), "--images-dir FOLDER"),
        (("--images-dir", "images"), "--output-path FILE.h5"),
        (("--output-path", "a.h5"), "--images-dir FOLDER"),
    ],
    ids=["both", "output", "images"],
)
def test_without_it_the_two_paths_are_needed(cli, given, missing):
    assert cli("prepare", *given).user_error().startswith(f"{missing} is missing; ")


def test_it_takes_two_files(cli):
    assert "--repack" in cli("prepare", "--repack", "old.h5").user_error()
