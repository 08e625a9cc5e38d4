"""`rdn-fast upscale`: which files it takes, how it names results, and mistakes, all found before a picture is read."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import photograph
from stand_in import Nearest, files

import rdn_fast
from rdn_fast.errors import UserError
from rdn_fast.pictures import upscale_files
from rdn_fast.pictures.formats import FORMATS

pytestmark = pytest.mark.usefixtures("untimed")


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


@pytest.mark.parametrize("pattern", ["in/**/a.png", "{}/in/**/a.png", "in/**/*.png"])
def test_recursive_mirrors_the_folders_of_a_pattern(run, tree, pattern):
    folder = tree("in/a.png", "in/x/a.png", "in/x [2024]/y/a.png")
    for made in (3, 0):
        assert run("-i", pattern.format(folder), "-o", "out", "-r").out.splitlines()[-1].startswith(f"out: {made} ")
    assert files("out") == ["a_out.png", "x [2024]/y/a_out.png", "x/a_out.png"]


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
    ended = run("-i", "in/a.png", "in/a_out.png", "-o", "in")
    assert ended.code == 1
    assert "failed in/a.png: its result in/a_out.png would take the place of a picture" in ended.out
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


# ---- mistakes ----


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
        (("-i", "in/a.png", "other/a.png", "-o", "out"), ("in/a.png", "other/a.png", "out/a_out.png")),
        (("-i", "**/a.png", "-o", "out"), ("in/a.png", "other/a.png", "out/a_out.png")),
        (
            ("-i", "in/b.jpg", "other/b.png", "-o", "out", "--ext", "webp"),
            ("in/b.jpg", "other/b.png", "out/b_out.webp"),
        ),
        (("-i", "in/a.png", "-o", "made"), ("in/a.png", "made/a_out.png", "is a folder")),
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


def test_empty_name_is_not_the_shipped_model(cli, tree, unread, tmp_path):
    tree("a.png")
    cli("upscale", "-w", "", "-i", tmp_path / "a.png", "-o", tmp_path / "out").user_error()
    with pytest.raises(UserError):
        rdn_fast.upscale(photograph(4, 4), "")
    assert files(tmp_path) == ["a.png"]


# ---- flags given twice, and files that appear meanwhile ----


def test_inputs_given_twice_add_up(run, tree):
    tree("a.png", "b.png", "c.png")
    assert run("-i", "a.png", "-i", "b.png", "c.png", "-o", "out").code == 0
    assert files("out") == ["a_out.png", "b_out.png", "c_out.png"]


def test_a_result_that_appears_during_the_work_is_kept_and_said(run, tree, monkeypatch):
    folder = tree("in/a.png", "in/b.png")

    class Late(Nearest):
        def __call__(self, image):
            (folder / "out" / "a_out.png").write_bytes(b"theirs")
            return super().__call__(image)

    monkeypatch.setattr(upscale_files, "Upscaler", Late)
    ended = run("-i", "in", "-o", "out")
    assert ended.code == 0
    assert "kept out/a_out.png: it appeared during the work; --overwrite makes it anew" in ended.out
    assert ended.out.endswith("out: 1 picture made, 1 there already (--overwrite makes them anew)\n")
    assert (folder / "out/a_out.png").read_bytes() == b"theirs"
    assert run("-i", "in", "-o", "out", "--overwrite").code == 0
    assert (folder / "out/a_out.png").read_bytes() != b"theirs"


# ---- one bad name costs only itself; what is left out is said ----


@pytest.mark.parametrize(
    ("arguments", "failed", "made"),
    [
        (("-i", "in", "other", "-o", "out"), {"in/a.png": "out/a_out.png", "other/a.png": "out/a_out.png"}, 2),
        (("-i", "in", "-o", "made"), {"in/a.png": "is a folder"}, 1),
        (("-i", "in/a.png", "in/a_out.png", "in/b.jpg", "-o", "in"), {"in/a.png": "take the place"}, 2),
        (("-i", "in", f"{'x' * 236}.png", "-o", "out"), {f"{'x' * 236}.png": "too long"}, 2),
    ],
    ids=["two of one name", "a folder", "an input", "too long"],
)
def test_a_bad_name_costs_only_itself(run, tree, arguments, failed, made):
    tree("in/a.png", "in/b.jpg", "other/a.png", "other/c.png", "made/a_out.png/x.png", f"{'x' * 236}.png")
    if "in/a_out.png" in arguments:
        tree("in/a_out.png")
    inputs = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    ended = run(*arguments)
    assert (ended.code, ended.err) == (1, "")
    lines = [line for line in ended.out.splitlines() if line.startswith("failed ")]
    assert len(lines) == len(failed)
    for name, words in failed.items():
        (line,) = [line for line in lines if line.startswith(f"failed {name}: ")]
        assert words in line
    assert f"{made} {'picture' if made == 1 else 'pictures'} made, {len(failed)} failed" in ended.out
    assert {path: path.read_bytes() for path in inputs} == inputs


def test_files_without_a_pictures_extension_are_counted_by_kind(run, tree):
    folder = tree("in/a.jpg")
    for name in ("b.nef", "c.svg", "d.CR2", "e.cr2", "noext", ".hidden.cr2"):
        (folder / "in" / name).write_bytes(b"x")
    ended = run("-i", "in", "-o", "out")
    assert ended.code == 0
    assert "left out of in: 2 .cr2, 1 .nef, 1 .svg, 1 without extension; a file that is named is tried" in ended.out
    (folder / "in/a.jpg").unlink()
    message = run("-i", "in", "-o", "out").user_error()
    assert "no pictures in this folder" in message
    assert "(2 .cr2, 1 .nef, 1 .svg, 1 without extension)" in message


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("shots [2024]/*.png", ["a_out.png", "b_out.png"]),
        ("shots [2024]/[a].png", ["a_out.png"]),
        ("shots [2024]/**/*.png", ["a_out.png", "b_out.png", "c_out.png"]),
        ("{}/shots [2024]/?.png", ["a_out.png", "b_out.png"]),
        ("shots [12]*/*.png", ["d_out.png"]),
        ("*/d.png", ["d_out.png"]),
    ],
)
def test_brackets_in_folders(run, tree, pattern, found):
    folder = tree("shots [2024]/a.png", "shots [2024]/b.png", "shots [2024]/x/c.png", "shots 2/d.png")
    ended = run("-i", pattern.format(folder), "-o", "out")
    assert (ended.code, ended.err) == (0, "")
    assert files("out") == found
