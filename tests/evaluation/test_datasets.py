"""Which datasets are found in a folder, their names and order, and what is printed of those that are left out."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from runs import ROOT

from rdn_fast.data.prepare import prepare
from rdn_fast.errors import Failure, UserError
from rdn_fast.evaluation.datasets import load_pairs, open_datasets, unique_name


@pytest.fixture
def data(tmp_path, image_folder):
    """Return data("Set5", "B100/HR", ...), which makes a folder of such folders, each with two images.

    Those of names with LR are half as large.
    """

    def make(*names):
        for name in names:
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            folder = image_folder(2, size=(36, 32), name=f"data/{name}")
            for file in folder.iterdir() if "LR" in name else ():
                Image.open(file).reduce(2).save(file)
        return tmp_path / "data"

    return make


def names(data, scale=2) -> list[str]:
    return [each.name for each in open_datasets([], data, scale)]


def test_order_is_the_fields_then_that_of_names(data):
    given = ["zoo", "DIV2K_valid_HR", "Urban100", "Set14", "Animals", "Manga109", "BSD100", "Set5"]
    expected = "Set5 Set14 BSD100 Urban100 Manga109 DIV2K_valid_HR Animals zoo"
    assert names(data(*given)) == expected.split()


def test_folders_are_sets_when_they_or_their_hr_hold_images(data):
    folder = data("Set5/HR", "Set5/LR_bicubic/X2", "Set14", ".hidden", "deep/er/B100")
    (folder / "texts").mkdir()
    (folder / "texts" / "readme.txt").write_text("x")
    (folder / "list.txt").write_text("x")
    sets = open_datasets([], folder, 2)
    assert [(each.name, each.path) for each in sets] == [("Set5", folder / "Set5/HR"), ("Set14", folder / "Set14")]
    assert [pair.hr.shape for pair in sets[0].pairs] == [(36, 32, 3), (32, 28, 3)]


def test_folder_of_images_is_one_set(data):
    folder = data("Set5", "Set5/thumbnails")
    assert [(each.name, each.path) for each in open_datasets([], folder / "Set5", 2)] == [("Set5", folder / "Set5")]


def test_evaluation_files_of_the_scale_are_sets_and_others_are_told(data, prepared, image_folder, tmp_path, capsys):
    folder = data("B100")
    for name in ("Set5_x2", "Set5_x3", "B100_x2", "mine"):
        shutil.copy(prepared.eval, folder / f"{name}.h5")  # x2, whatever the names say
    shutil.copy(prepared.train, folder / "DIV2K_x2.h5")
    (folder / "broken.h5").write_bytes(prepared.eval.read_bytes()[:1000])
    prepare(image_folder(2), folder / "other.h5", 3, evaluation=True)
    capsys.readouterr()
    assert names(folder) == ["Set5", "B100", "mine"]
    told = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in told] == [
        ["left out", str(folder / f"{name}.h5")] for name in ("DIV2K_x2", "broken", "other")
    ]
    assert "training" in told[0]


def test_a_training_file_is_evaluated_when_it_is_named(prepared):
    (only,) = open_datasets([prepared.train], None, 2)
    assert (only.name, len(only.pairs)) == ("train", 20)


def test_sets_that_are_named_come_before_those_found(data, prepared):
    found = open_datasets([prepared.images, prepared.eval], data("Set5"), 2)
    assert [each.name for each in found] == ["images", "eval", "Set5"]


def test_sets_of_the_same_name_are_made_distinct(data):
    folder = data("a/Set5", "b/Set5", "c/set5/HR")
    found = open_datasets([folder / "a/Set5", folder / "b/Set5/", folder / "c/set5/HR"], None, 2)
    assert [each.name for each in found] == ["Set5", "Set5_2", "set5_3"]


def test_name_of_the_working_folder(data, monkeypatch):
    monkeypatch.chdir(data("Set5") / "Set5")
    assert [each.name for each in open_datasets(["."], None, 2)] == ["Set5"]


def test_distinct_names_stay_so():
    taken: set[str] = set()
    assert [unique_name(name, taken) for name in ("a", "a_2", "a", "A", "b")] == ["a", "a_2", "a_3", "A_4", "b"]


@pytest.mark.parametrize("kind", ["no folder", "a file", "empty", "no sets"])
def test_data_without_sets(data, tmp_path, kind):
    folder = tmp_path / "data"
    if kind == "a file":
        folder.write_text("x")
    elif kind != "no folder":
        folder.mkdir()
    if kind == "no sets":
        (folder / "Set5_x3.h5").write_text("of another scale by its name")
        (folder / "texts").mkdir()
    with pytest.raises(UserError, match=f"--data {folder}: "):
        open_datasets([], folder, 2)


def test_a_bad_image_is_named_and_the_first_of_several(data):
    folder = data("Set5") / "Set5"
    for name in ("b.png", "a.png"):
        (folder / name).write_text("no picture")
    with pytest.raises(UserError, match=r"Set5/a\.png: not a picture .* leave out --strict"):
        load_pairs(folder, 2, strict=True)


def test_a_bad_image_costs_only_itself(data, capsys):
    folder = data("Set5") / "Set5"
    Image.new("RGB", (40, 14)).save(folder / "small.png")
    content = (folder / "picture_0.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    (dataset,) = open_datasets([folder], None, 2)
    assert len(dataset.pairs) == 2
    assert capsys.readouterr().out.splitlines() == dataset.notes
    assert "cut.png: " in dataset.notes[0]
    assert dataset.notes[1].endswith("small.png: 40x14 pixels; PSNR and SSIM at x2 need 15 on each side")


def test_pairs_of_a_folder_come_by_name(image_folder, photograph):
    folder = image_folder({f"{name}.png": photograph(30 + 2 * i, 30, seed=i) for i, name in enumerate("cabdfe")})
    pairs = load_pairs(folder, 2)
    assert [pair.name for pair in pairs] == [*"abcdef"]
    for pair in pairs:
        assert (pair.hr == Image.open(folder / f"{pair.name}.png")).all()


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", "readme.txt", "LICENSE"])
def test_files_that_are_no_pictures_are_named_and_skipped(data, name, capsys):
    folder = data("Set5") / "Set5"
    (folder / name).write_text("no picture")
    capsys.readouterr()
    assert len(load_pairs(folder, 2)) == 2
    assert capsys.readouterr().out == f"skipped {folder / name}: not a picture of a kind that Pillow reads\n"
    for path in folder.glob("*.png"):
        path.rename(path.with_suffix(""))
    assert len(load_pairs(folder, 2)) == 2  # pictures whatever they are called
    for path in folder.iterdir():
        path.write_text("no picture")
    with pytest.raises(UserError, match=r"none of its 3 files is an image that can be evaluated"):
        load_pairs(folder, 2)


def test_layouts_of_benchmark_archives(data, photograph, capsys):
    folder = data("Set5", "B100/GTmod12", "B100/LRbicx2", "Set14/image_SRF_2", "Set14/image_SRF_3", "Urban100/x")
    for path in (folder / "Set14/image_SRF_2").iterdir():
        path.unlink()
    for kind, edge in (("HR", 32), ("LR", 16), ("bicubic", 32)):
        Image.fromarray(photograph(edge, edge)).save(folder / f"Set14/image_SRF_2/img_001_SRF_2_{kind}.png")
    capsys.readouterr()
    sets = open_datasets([], folder, 2)
    assert [(each.name, str(each.path.relative_to(folder)), len(each.pairs)) for each in sets] == [
        ("Set5", "Set5", 2),
        ("Set14", "Set14/image_SRF_2", 1),
        ("B100", "B100/GTmod12", 2),
    ]
    assert sets[1].pairs[0].hr.shape == (32, 32, 3)
    told = capsys.readouterr().out.splitlines()
    assert f"{folder / 'Set14/image_SRF_2'}: its 1 files *_HR; 1 others are left out" in told
    assert f"left out: {folder / 'Urban100'}: its images lie in x; give the right one to --eval-file" in told
    assert len([line for line in told if "LR images are the pictures of" in line]) == 2
    assert len(told) == 4
    (named,) = open_datasets([folder / "Set14/image_SRF_2"], None, 2)
    assert (named.name, [pair.name for pair in named.pairs]) == ("Set14", ["img_001_SRF_2_HR"])


MEASURED = """
import sys
from pathlib import Path
from rdn_fast.evaluation.datasets import load_pairs

def megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))

def read(folder):
    for pair in load_pairs(folder, 2):
        assert pair.hr.shape == (1000, 1500, 3)

read(sys.argv[1])
before = megabytes()
read(sys.argv[2])
pairs = load_pairs(sys.argv[2], 2)
print(len(pairs), megabytes() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_a_folder(photograph, tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, number in ((few, 8), (many, 30)):
        folder.mkdir()
        Image.fromarray(np.tile(photograph(200, 300), (5, 5, 1))).save(folder / "0.bmp")
        for i in range(1, number):
            os.link(folder / "0.bmp", folder / f"{i}.bmp")
    told = subprocess.run(
        [sys.executable, "-c", MEASURED, few, many], capture_output=True, text=True, check=True, cwd=ROOT
    )
    number, grown = told.stdout.split()
    assert int(number) == 30
    assert float(grown) < 60  # megabytes; 30 pairs have 169


@pytest.mark.parametrize("change", ["cut", "gone", "another"])
def test_a_picture_that_changes_is_named(image_folder, photograph, change):
    folder = image_folder(2)
    pairs = load_pairs(folder, 2)
    file = folder / "picture_1.png"
    content = file.read_bytes()
    if change == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif change == "gone":
        file.unlink()
    else:
        Image.fromarray(photograph(60, 60)).save(file)
    assert pairs[0].name == "picture_0"
    with pytest.raises(Failure, match=r"picture_1\.png: (was changed|can no longer be read)"):
        pairs[1]
