"""LR pictures that lie beside HR pictures: found under customary names, matched by name, checked by size, and told."""

import json
import os

import h5py
import numpy as np
import pytest
from PIL import Image
from runs import TINY

from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.data.degradation import PLAIN, Degradation
from rdn_fast.data.from_folder import training_pairs
from rdn_fast.data.given_lr import GIVEN, GivenLR, find_lr
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.pairs import Pair, five_crops, five_crops_of_pair, join
from rdn_fast.data.prepare import prepare
from rdn_fast.errors import Failure, UserError
from rdn_fast.evaluation.datasets import load_pairs, open_datasets
from rdn_fast.training.inputs import open_inputs

BESIDE = ["LR_bicubic/X2", "LR_bicubic/x2", "LR_bicubic_X2", "LRbicx2", "LRbicX2", "LR/x2", "LRx2", "LR_x2", "X2", "x2"]


@pytest.fixture
def pictures(tmp_path, photograph):
    """Return pictures("HR", "LR/X2", "{}x2"), which writes HR and LR pictures of other content into two folders.

    It returns the folders and {name: (LR, HR)}. larger: pixels by which HR exceeds scale times LR.
    """

    def make(hr_name, lr_name, lr_file="{}", hr_file="{}", scale=2, count=2, larger=0):
        hr, lr, pairs = tmp_path / hr_name, tmp_path / lr_name, {}
        for folder in (hr, lr):
            folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            name, h, w = f"{i:04}", 20 + i, 24 + 3 * i
            pair = photograph(h, w, seed=100 + i), photograph(scale * h + larger, scale * w + larger, seed=i)
            for folder, file, pixels in zip((lr, hr), (lr_file, hr_file), pair, strict=True):
                Image.fromarray(pixels).save(folder / f"{file.format(name)}.png")
            pairs[name] = pair
        return hr, lr, pairs

    return make


def check(found, pairs, scale=2):
    """The pairs found are the given ones, in the order of their names, HR cropped to the size of LR."""
    assert len(found) == len(pairs)
    for pair, (lr, hr) in zip(found, pairs.values(), strict=True):
        np.testing.assert_array_equal(pair.lr, lr)
        np.testing.assert_array_equal(pair.hr, hr[: scale * lr.shape[0], : scale * lr.shape[1]])


# ---- where they are found ----


@pytest.mark.parametrize("name", BESIDE)
def test_customary_folders_inside_and_beside(pictures, name):
    hr, lr, pairs = pictures("Set5/HR", f"Set5/{name}", "{}x2")
    pictures("B100", f"B100/{name}", "{}x2")
    inside = hr.parent.parent / "B100"
    assert find_lr(hr, 2) == [lr]
    assert find_lr(inside, 2) == [inside / name]
    assert find_lr(hr, 3) == find_lr(inside, 4) == find_lr(lr, 2) == []
    check(load_pairs(hr, 2), pairs)


@pytest.mark.parametrize(
    ("hr", "lr", "files"),
    [
        ("DIV2K_train_HR", "DIV2K_train_LR_bicubic/X3", "{}x3"),
        ("DIV2K_valid_HR", "DIV2K_valid_LR_bicubic_X3", "{}x3"),
        ("Flickr2K/Flickr2K_HR", "Flickr2K/Flickr2K_LR_bicubic/X3", "{}x3"),
        ("B100/GTmod12", "B100/LRbicx3", "{}"),
        ("B100/original", "B100/LR_bicubic/X3", "{}X3"),
    ],
)
def test_folders_of_data_sets(pictures, hr, lr, files):
    hr, lr, pairs = pictures(hr, lr, files, scale=3)
    assert find_lr(hr, 3) == [lr]
    check(load_pairs(hr, 3), pairs, 3)


def test_selfexsrs_one_folder(pictures, capsys):
    folder, _, pairs = pictures("Set14/image_SRF_2", "Set14/image_SRF_2", "img_{}_SRF_2_LR", hr_file="img_{}_SRF_2_HR")
    assert find_lr(folder, 2) == [folder]
    assert find_lr(folder, 4) == []
    found = load_pairs(folder, 2)
    check(found, pairs)
    assert (found.lr_made_by, found.lr_folder) == (f"{GIVEN} image_SRF_2", folder)
    (dataset,) = open_datasets([], folder.parent.parent, 2)
    assert (dataset.name, dataset.path) == ("Set14", folder)


@pytest.mark.parametrize("here", [".", "../HR"])
def test_the_working_folder(pictures, monkeypatch, here):
    hr, _, pairs = pictures("Set5/HR", "Set5/LRbicx2")
    monkeypatch.chdir(hr)
    check(load_pairs(here, 2), pairs)


def test_no_folder_of_hr_pictures_alone_has_any(image_folder, photograph, capsys):
    picture = photograph(48, 48)
    folder = image_folder({"a.png": picture, "a_x2.png": picture, "b_HR.png": picture}, name="images/HR")
    for name in ("LR", "X3", "thumbnails", "LR_bicubic"):  # which do not tell the scale, or another
        image_folder(1, name=f"images/{name}")
    (folder.parent / "X2").mkdir()  # empty
    (folder.parent / "x2.png").write_bytes((folder / "a.png").read_bytes())
    assert find_lr(folder, 2) == []
    pairs = load_pairs(folder, 2)
    assert (len(pairs), pairs.lr_made_by, pairs.lr_folder) == (3, "Pillow's bicubic", None)
    assert capsys.readouterr().out == ""


def test_two_folders_that_fit_are_an_error(pictures):
    hr, lr, _ = pictures("Set5/HR", "Set5/LRbicx2")
    (hr.parent / "X2").symlink_to(lr)
    with pytest.raises(UserError, match=r"lie in .*Set5/LRbicx2 and in .*Set5/X2; give one of them to --eval-lr-dir"):
        load_pairs(hr, 2)
    assert len(load_pairs(hr, 2, lr_dir=lr)) == 2


# ---- which belong together ----


@pytest.mark.parametrize("files", ["{}", "{}x2", "{}X2", "{}_LR", "{}_x2_LR", "{}_LRBI_x2", "{}-small"])
def test_names_of_lr_pictures(pictures, capsys, files):
    hr, lr, pairs = pictures("mine", "small", files)
    given = GivenLR(hr, lr, 2, print)
    check([given.read("", file) for file in given.files], pairs)
    assert capsys.readouterr().out == ""


def test_what_has_no_partner_is_named_or_counted(pictures, image_folder, capsys):
    hr, lr, _ = pictures("mine", "small", count=9)
    (lr / "0003.png").unlink()
    (hr / "0001.png").unlink()
    lines = []
    given = GivenLR(hr, lr, 2, lines.append)
    assert lines == [f"no partner: {lr / '0001.png'}", f"no partner: {hr / '0003.png'}"]
    assert [file.name for file in given.files] == ["0000.png", *(f"000{i}.png" for i in (2, 4, 5, 6, 7, 8))]
    with pytest.raises(UserError, match=r"no partner: .*0001\.png; mend that, or leave out --strict"):
        GivenLR(hr, lr, 2, lines.append, strict=True)
    for i in range(2, 8):
        (hr / f"000{i}.png").unlink()
    lines.clear()
    GivenLR(hr, lr, 2, lines.append)
    some = "0001.png, 0002.png, 0004.png, 0005.png, 0006.png, ..."
    assert lines == [f"no partner: 6 files of {lr}: {some}"]


def test_no_partners_at_all(pictures, image_folder):
    hr, lr, _ = pictures("mine", "small")
    (tmp := lr.parent / "none").mkdir()
    for folder, told in ((tmp, "none: holds no files"), (lr.parent / "gone", "gone: no such folder")):
        with pytest.raises(UserError, match=told):
            GivenLR(hr, folder, 2, print)
    for file in list(lr.iterdir()):
        file.rename(lr / f"other{file.name}")
    with pytest.raises(UserError, match=r"small: no name matches those of .*mine; name LR pictures as HR pictures"):
        GivenLR(hr, lr, 2, print)
    with pytest.raises(UserError, match=r"mine: holds HR and LR pictures; end their names in _HR and _LR"):
        GivenLR(hr, hr, 2, print)


def test_ambiguous_matches_name_both(pictures):
    hr, lr, _ = pictures("mine", "small", "{}x2")
    (lr / "0001_LR.png").write_bytes((lr / "0001x2.png").read_bytes())
    with pytest.raises(UserError, match=r"0001_LR\.png and 0001x2\.png both look like 0001\.png"):
        GivenLR(hr, lr, 2, print)
    (lr / "0001_LR.png").unlink()
    (hr / "0001.bmp").write_bytes((hr / "0001.png").read_bytes())
    with pytest.raises(UserError, match=r"0001x2\.png: may belong to 0001\.bmp or to 0001\.png"):
        GivenLR(hr, lr, 2, print)


def test_pictures_of_other_scales_are_left_out(pictures, photograph):
    hr, lr, pairs = pictures("mine", "small", "{}x2")
    for name in pairs:
        Image.fromarray(photograph(10, 10)).save(lr / f"{name}x3.png")
    lines = []
    given = GivenLR(hr, lr, 2, lines.append)
    check([given.read("", file) for file in given.files], pairs)
    assert lines == [f"{lr}: 2 pictures of other scales, as 0000x3.png, are left out"]
    for folder in (hr, lr):  # a name of HR that ends so, too
        (folder / ("0000.png" if folder == hr else "0000x2.png")).rename(folder / "box3.png")
    assert {a.name: b.name for a, b in GivenLR(hr, lr, 2, print).files.items()} == {
        "0001.png": "0001x2.png",
        "box3.png": "box3.png",
    }


# ---- sizes ----


@pytest.mark.parametrize(
    ("scale", "hr", "lr"), [(2, (40, 60), (20, 30)), (3, (41, 62), (13, 20)), (4, (59, 50), (12, 12))]
)
def test_sizes_that_fit(scale, hr, lr):
    """Equal, cropped to multiples of the scale, and to multiples of 12."""
    big, small = (
        np.arange(3 * hr[0] * hr[1], dtype=np.uint32).astype(np.uint8).reshape(*hr, 3),
        np.zeros((*lr, 3), np.uint8),
    )
    pair = join("a", small, big, scale)
    assert pair.lr is small
    np.testing.assert_array_equal(pair.hr, big[: scale * lr[0], : scale * lr[1]])


@pytest.mark.parametrize(
    ("scale", "hr", "lr"),
    [
        (2, (40, 60), (20, 29)),
        (2, (41, 60), (21, 30)),
        (3, (41, 62), (13, 19)),
        (2, (40, 60), (30, 20)),
        (4, (40, 40), (20, 20)),
    ],
)
def test_sizes_that_do_not_fit_are_named(scale, hr, lr):
    with pytest.raises(ValueError, match=f"^{lr[1]}x{lr[0]} pixels, HR {hr[1]}x{hr[0]}, which is not {scale} times"):
        join("a", np.zeros((*lr, 3), np.uint8), np.zeros((*hr, 3), np.uint8), scale)


def test_crops_of_a_pair_show_the_same(seed):
    random = np.random.default_rng(seed)
    for _ in range(20):
        scale = int(random.choice([2, 3, 4, 8]))
        lr = random.integers(0, 256, (*random.integers(2, 12, 2), 3), dtype=np.uint8)
        pair = Pair("a", lr, lr.repeat(scale, 0).repeat(scale, 1))
        crops = five_crops_of_pair(pair)
        assert [crop.name for crop in crops] == [f"a (crop {k})" for k in range(5)]
        for crop, expected in zip(crops, five_crops(lr), strict=True):
            np.testing.assert_array_equal(crop.lr, expected)
            np.testing.assert_array_equal(crop.hr, expected.repeat(scale, 0).repeat(scale, 1))
    with pytest.raises(ValueError, match="1x9 LR pixels are too few"):
        five_crops_of_pair(Pair("a", np.zeros((9, 1, 3), np.uint8), np.zeros((18, 2, 3), np.uint8)))


# ---- prepare ----


@pytest.mark.parametrize("recursive", [False, True])
def test_prepare_takes_them(pictures, cli, tmp_path, recursive):
    hr, lr, pairs = pictures("mine", "small/X2", "{}x2", larger=1)
    images, given = (hr, lr)
    if recursive:  # pictures of one name in two folders inside
        images, given = tmp_path / "all", tmp_path / "all_lr"
        for folder, target in ((hr, images), (lr, given)):
            (target / "a").mkdir(parents=True)
            os.rename(folder, target / "a" / "b")
    file, flags = tmp_path / "pairs.h5", ["--recursive"] if recursive else []
    ended = cli("prepare", "--images-dir", images, "--lr-dir", given, "--output-path", file, "--eval", *flags)
    assert (ended.code, ended.err) == (0, "")
    words = f"{GIVEN} all_lr" if recursive else f"{GIVEN} small/X2"
    assert ended.out == f"{file}: 2 pairs from 2 images at x2, LR from {words}, 0 files skipped\n"
    found = PairedH5(file, 2)
    check(found, pairs)
    assert found.names() == [f"a/b/{name}" if recursive else name for name in pairs]
    with h5py.File(file) as opened:
        assert opened.attrs["lr_made_by"].decode() == words
    assert str(tmp_path).encode() not in file.read_bytes()
    assert cli("prepare", "--images-dir", images, "--lr-dir", given, "--output-path", file, *flags).code == 0
    assert len(PairedH5(file, 2)) == 10
    first = PairedH5(file, 2)[0]
    np.testing.assert_array_equal(first.lr, pairs["0000"][0][:10, :12])
    np.testing.assert_array_equal(first.hr, pairs["0000"][1][:20, :24])


def test_prepare_names_what_does_not_fit(pictures, cli, photograph, tmp_path):
    hr, lr, pairs = pictures("mine", "small", count=4)
    (lr / "0000.png").unlink()
    Image.fromarray(photograph(20, 20)).save(lr / "0001.png")
    (lr / "0002.png").write_text("no picture")
    command = ("prepare", "--images-dir", hr, "--lr-dir", lr, "--output-path", tmp_path / "a.h5", "--eval")
    ended = cli(*command)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0] == f"no partner: {hr / '0000.png'}"
    assert lines[1].startswith(
        f"skipped {hr / '0001.png'}: its LR picture {lr / '0001.png'}: 20x20 pixels, HR 54x42, wh"
    )
    assert lines[2].startswith(f"skipped {hr / '0002.png'}: its LR picture {lr / '0002.png'}: not a picture")
    assert lines[3].endswith("1 pairs from 1 images at x2, LR from given pictures of small, 2 files skipped")
    check(PairedH5(tmp_path / "a.h5", 2), {"0003": pairs["0003"]})
    assert "no partner: " in cli(*command, "--strict").user_error()


def test_flags_that_contradict_it(pictures, cli, tmp_path):
    hr, lr, _ = pictures("mine", "small")
    command = ("prepare", "--images-dir", hr, "--output-path", tmp_path / "a.h5", "--lr-dir")
    assert cli(*command, lr, "--bicubic", "matlab").user_error().startswith("--bicubic matlab: LR pictures of --lr-dir")
    assert cli(*command, lr, "--degradation", "dn").user_error().startswith("--degradation dn: LR pictures of")
    assert cli(*command, lr, "--yjn870-compat").user_error().startswith("--yjn870-compat: a resized HR does not fit")
    assert (
        cli(*command, tmp_path / "x").user_error()
        == f"--lr-dir {tmp_path / 'x'}: no such folder; give a folder of images"
    )
    assert not (tmp_path / "a.h5").exists()


def test_prepare_tells_of_lr_pictures_that_it_does_not_take(pictures, capsys, tmp_path):
    hr, lr, _ = pictures("DIV2K_train_HR", "DIV2K_train_LR_bicubic/X2", "{}x2")
    prepare(hr, tmp_path / "a.h5", 2)
    line, _ = capsys.readouterr().out.splitlines()
    assert line == f"{lr}: holds LR pictures; prepare --lr-dir and train --train-lr-dir take them"
    assert PairedH5(tmp_path / "a.h5", 2).lr_made_by == "Pillow's bicubic"


def test_one_decoder_for_both(tmp_path, photograph):
    """A turned HR picture of 16 bits and grey; an LR picture with a palette."""
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    hr.mkdir(), lr.mkdir()
    pixels = photograph(40, 60)[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(pixels).save(hr / "a.png", exif=exif)
    Image.fromarray(pixels[:20, :30].astype(np.uint16) * 257).save(lr / "a.png", exif=exif)
    Image.fromarray(pixels).save(hr / "b.png")
    alpha = np.dstack([pixels[:20, :30]] * 3 + [np.full((20, 30), 7, np.uint8)])
    Image.fromarray(alpha).save(lr / "b.png")
    one, other = (GivenLR(hr, lr, 2, print).read("", hr / name) for name in ("a.png", "b.png"))
    for pair, turns in ((one, 3), (other, 0)):
        for found, given in ((pair.lr, pixels[:20, :30]), (pair.hr, pixels)):
            np.testing.assert_array_equal(found, np.rot90(given, turns)[..., None].repeat(3, 2))


# ---- train ----


def test_a_training_file_for_each_folder_of_lr_pictures(pictures, tmp_path, capsys):
    hr, lr, pairs = pictures("mine", "small/X2", "{}x2")
    other = tmp_path / "other" / "X2"
    other.mkdir(parents=True)
    for file in lr.iterdir():
        Image.fromarray(255 - np.asarray(Image.open(file))).save(other / file.name)
    made, plain, another = (training_pairs(hr, 2, lr_dir=each) for each in (lr, None, other))
    assert len({each.path for each in (made, plain, another)}) == 3
    assert [each.lr_made_by for each in (made, plain, another)] == [
        f"{GIVEN} small/X2",
        "Pillow's bicubic",
        f"{GIVEN} other/X2",
    ]
    np.testing.assert_array_equal(made[0].lr, 255 - another[0].lr)
    np.testing.assert_array_equal(made[0].lr, pairs["0000"][0][:10, :12])
    capsys.readouterr()
    assert training_pairs(hr, 2, lr_dir=lr).path == made.path
    assert capsys.readouterr().out == ""
    file = lr / "0001x2.png"
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))
    assert training_pairs(hr, 2, lr_dir=lr).path == made.path
    assert f"{made.path} is out of date; making it." in capsys.readouterr().out


def train(cli, tmp_path, *flags):
    run = ("--max-steps", "1", "--patch-size", "8", "--batch-size", "1", "--outputs-dir", tmp_path / "out")
    return cli("train", *TINY, *run, *flags)


@pytest.mark.slow
def test_train_uses_and_tells_them(pictures, cli, tmp_path):
    hr, lr, _ = pictures("mine", "small", "{}x2")
    val, val_lr, _ = pictures("Set5/HR", "Set5/LRbicx2")
    ended = train(cli, tmp_path, "--train-dir", hr, "--train-lr-dir", lr, "--eval-file", val)
    assert (ended.code, ended.err) == (0, "")
    assert f"\nLR images: {GIVEN} small; of validation: {GIVEN} LRbicx2\n" in ended.out
    assert f"{val}: LR images are the pictures of {val_lr} (--bicubic makes them instead)\n" in ended.out
    assert "taken as they are" not in ended.out


def test_which_pictures_a_run_uses(pictures, capsys):
    hr, lr, _ = pictures("mine", "small", "{}x2")
    val, _, _ = pictures("Set5/HR", "Set5/LRbicx2")
    paths = {"train_dir": str(hr), "train_lr_dir": str(lr), "eval_file": str(val), "patch_size": 8, "batch_size": 1}

    def words(**given):
        return open_inputs(ModelConfig(), TrainConfig(**{**paths, **given})).lr_in_words

    assert words() == f"{GIVEN} small; of validation: {GIVEN} LRbicx2"
    assert "taken as they are" not in capsys.readouterr().out
    assert words(bicubic="pillow") == f"{GIVEN} small; of validation: Pillow's bicubic"
    told = f"{val}: its LR images come from Pillow's bicubic, not from {GIVEN} small"
    assert told in capsys.readouterr().out
    plain = words(train_lr_dir=None, eval_file=str(hr), eval_lr_dir=str(lr))
    assert plain == f"Pillow's bicubic; of validation: {GIVEN} small"
    assert words(train_lr_dir=None, bicubic="matlab") == "MATLAB's bicubic"


def test_mistakes_of_train(pictures, prepared, cli, tmp_path):
    hr, lr, _ = pictures("mine", "small")
    none = tmp_path / "none"
    for flags, told in (
        (
            ("--train-file", prepared.train, "--train-lr-dir", lr),
            f"--train-lr-dir {lr}: belongs to HR pictures of --train",
        ),
        (("--train-dir", hr, "--train-lr-dir", none), f"--train-lr-dir {none}: no such folder; "),
        (("--train-dir", none, "--train-lr-dir", lr), f"--train-dir {none}: no such folder; "),
        (("--train-dir", hr, "--eval-lr-dir", lr), f"--eval-lr-dir {lr}: belongs to HR pictures of --eval-file"),
        (("--train-dir", hr, "--eval-file", hr, "--eval-lr-dir", none), f"--eval-lr-dir {none}: no such folder; "),
        (
            ("--train-dir", hr, "--eval-file", prepared.eval, "--eval-lr-dir", lr),
            f"--eval-lr-dir {lr}: {prepared.eval} is no folder of HR images; an h5 file has its own LR images",
        ),
    ):
        assert train(cli, tmp_path, *flags).user_error().startswith(told)


# ---- eval ----


@pytest.fixture
def evaluate(cli, tmp_path):
    """evaluate(*flags): the report of the shipped model, and what was printed."""

    def run(*flags):
        ended = cli("eval", "--device", "cpu", *flags, "--json", tmp_path / "r.json")
        assert (ended.code, ended.err) == (0, "")
        return json.loads((tmp_path / "r.json").read_text()), ended.out

    return run


def test_eval_uses_and_tells_them(pictures, evaluate, tmp_path):
    hr, lr, pairs = pictures("Set5/HR", "Set5/LR_bicubic/X2", "{}x2")
    report, out = evaluate("--data", tmp_path)
    (found,) = report["sets"]
    line = f"{hr}: LR images are the pictures of {lr} (--bicubic makes them instead)"
    assert (found["name"], found["lr_made_by"], found["notes"]) == ("Set5", f"{GIVEN} LR_bicubic/X2", [line])
    assert line in out.splitlines()
    assert f"LR images: {GIVEN} LR_bicubic/X2. Enlarged by bicubic: Pillow's bicubic." in out
    file = tmp_path / "pairs.h5"
    prepare(hr, file, 2, evaluation=True, lr_dir=lr)
    (of_file,) = open_datasets([file], None, 2)
    check(of_file.pairs, pairs)
    assert of_file.lr_made_by == f"{GIVEN} LR_bicubic/X2"
    assert of_file.notes[0].startswith(f"{file}: its LR images come from {GIVEN} LR_bicubic/X2, not from Pillow's bi")
    named, _ = evaluate("--eval-file", hr, "--eval-lr-dir", lr, "--bicubic", "matlab")
    assert [image["psnr_y"] for image in named["sets"][0]["images"]] == [image["psnr_y"] for image in found["images"]]
    assert named["sets"][0]["images"] != found["images"]  # bicubic beside the model


@pytest.mark.parametrize("made", [PLAIN, Degradation("matlab"), Degradation(kind="dn")])
def test_explicit_flags_make_lr_images(pictures, capsys, made):
    hr, _, given = pictures("Set5/HR", "Set5/LR_bicubic/X2")
    (dataset,) = open_datasets([hr], None, 2, degradation=made)
    assert (dataset.lr_made_by, dataset.lr_folder, dataset.notes) == (made.in_words, None, [])
    for pair, (_, image) in zip(dataset.pairs, given.values(), strict=True):
        np.testing.assert_array_equal(pair.lr, made.shrink(image, 2))
    assert capsys.readouterr().out == ""


def test_lr_folders_are_no_sets(pictures, image_folder, capsys, tmp_path):
    hr, lr, _ = pictures("data/DIV2K_valid_HR", "data/DIV2K_valid_LR_bicubic_X2", "{}x2")
    (dataset,) = open_datasets([], tmp_path / "data", 2)
    assert (dataset.name, dataset.folders) == ("DIV2K_valid_HR", [hr, lr])
    (lr.parent / "DIV2K_valid_LR_bicubic").mkdir()
    lr.rename(lr.parent / "DIV2K_valid_LR_bicubic" / "X2")
    image_folder(1, name="data/DIV2K_valid_LR_bicubic/X4")
    capsys.readouterr()
    assert [each.name for each in open_datasets([], tmp_path / "data", 2)] == ["DIV2K_valid_HR"]
    assert "left out" not in capsys.readouterr().out


def test_mistakes_of_eval(pictures, prepared, cli, tmp_path):
    hr, lr, _ = pictures("Set5/HR", "Set5/LRbicx2")
    command = ("eval", "--device", "cpu", "--eval-file", hr)
    told = cli(*command, prepared.eval, "--eval-lr-dir", lr).user_error()
    assert told.startswith("--eval-lr-dir: 1 folders for the 2 sets of --eval-file")
    told = cli(*command, "--eval-lr-dir", lr, "--degradation", "dn").user_error()
    assert told.startswith("--degradation dn: LR pictures of --eval-lr-dir are taken as they are")
    assert "in a set's folder" in cli(*command, "--json", lr / "r.json").user_error()
    (lr / "0000.png").rename(lr / "other.png")
    told = f"no partner: {lr / 'other.png'}; mend that, or leave out --strict"
    assert told in cli(*command, "--strict").user_error()
    for file in lr.iterdir():
        Image.new("RGB", (20, 30)).save(file)
    assert "give LR pictures that fit, or --bicubic to make them" in cli(*command).user_error()


def test_an_lr_picture_that_changes_is_named(pictures, photograph):
    hr, lr, _ = pictures("Set5/HR", "Set5/LRbicx2")
    pairs = load_pairs(hr, 2)
    Image.fromarray(photograph(60, 60)).save(lr / "0001.png")
    assert pairs[0].name == "0000"
    with pytest.raises(Failure, match=r"LRbicx2/0001\.png: was changed while it was in use"):
        pairs[1]
