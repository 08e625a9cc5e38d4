"""How LR images are made: bicubic, blur, noise and JPEG, the same for a picture everywhere, and said in every file."""

import io
import json

import h5py
import numpy as np
import pytest
from PIL import Image
from runs import TINY

from rdn_fast.data.degradation import PLAIN, Degradation
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.imresize import imresize
from rdn_fast.errors import UserError

KINDS = ["bi", "bd", "dn", "jpeg:30-90"]


def flat(value, size=300) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


# ---- pixels ----


def test_plain_is_pillows_bicubic(photograph):
    hr = photograph(40, 36)
    expected = Image.fromarray(hr).resize((18, 20), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(PLAIN.shrink(hr, 2), np.asarray(expected))
    np.testing.assert_array_equal(Degradation("matlab").shrink(hr, 2), imresize(hr, 20, 18))


def test_blur_is_a_mean_of_49_pixels_around_the_middle(photograph):
    hr = photograph(18, 15)
    lr = Degradation(kind="bd").shrink(hr, 3)
    assert lr.shape == (6, 5, 3)
    window = np.exp(-(np.add.outer(np.arange(-3, 4) ** 2, np.arange(-3, 4) ** 2)) / (2 * 1.6**2))
    for y in range(6):
        for x in range(5):
            rows = np.clip(np.arange(3 * y - 2, 3 * y + 5), 0, 17)  # the border is repeated
            columns = np.clip(np.arange(3 * x - 2, 3 * x + 5), 0, 14)
            pixels = hr[np.ix_(rows, columns)].astype(float)
            mean = (pixels * window[..., None]).sum((0, 1)) / window.sum()
            np.testing.assert_array_equal(lr[y, x], np.floor(mean + 0.5))


def test_noise_has_level_30_and_is_not_the_same_in_the_channels():
    noise = Degradation(kind="dn").shrink(flat(128), 2) - 128.0
    assert abs(noise.mean()) < 0.5
    assert noise.std() == pytest.approx(30, rel=0.02)
    for other in (noise[..., 1], noise[:, ::-1, 0], np.roll(noise[..., 0], 1, axis=0)):
        assert abs(np.corrcoef(noise[..., 0].ravel(), other.ravel())[0, 1]) < 0.03


def test_noise_is_clipped_and_rounded():
    for value, mean in ((0, 30 / np.sqrt(2 * np.pi)), (255, 255 - 30 / np.sqrt(2 * np.pi))):
        assert Degradation(kind="dn").shrink(flat(value), 2).mean() == pytest.approx(mean, abs=0.3)


def test_jpeg_has_a_quality_of_the_range_that_differs_between_pictures(photograph):
    seen = set()
    for seed in range(12):
        hr = photograph(64, 64, seed)
        lr, plain = Degradation(kind="jpeg:30-90").shrink(hr, 2), PLAIN.shrink(hr, 2)
        qualities = []
        for quality in range(1, 101):
            file = io.BytesIO()
            Image.fromarray(plain).save(file, "JPEG", quality=quality)
            if (np.asarray(Image.open(file)) == lr).all():
                qualities.append(quality)
        assert qualities
        assert 30 <= qualities[0] <= qualities[-1] <= 90
        seen.add(qualities[0])
    assert len(seen) > 6
    one = Degradation(kind="jpeg:77-77").shrink(hr, 2)
    file = io.BytesIO()
    Image.fromarray(plain).save(file, "JPEG", quality=77)
    np.testing.assert_array_equal(one, np.asarray(Image.open(file)))


@pytest.mark.parametrize("kind", ["dn", "jpeg:30-90"])
def test_a_picture_is_degraded_alike_every_time_and_others_otherwise(kind, photograph):
    degradation, one, other = Degradation(kind=kind), photograph(60, 60, 1), photograph(60, 60, 2)
    first = degradation.shrink(one, 2)
    changes = {}
    for name, hr in (("one", one), ("other", other)):
        changes[name] = degradation.shrink(hr, 2).astype(int) - PLAIN.shrink(hr, 2)
    np.testing.assert_array_equal(degradation.shrink(one.copy(), 2), first)
    assert (changes["one"] != changes["other"]).any()


def test_noise_is_that_of_every_version():
    """The first values as they were when this was written: files of one set made years apart are the same."""
    assert Degradation(kind="dn").shrink(flat(128, 8), 2)[0, 0].tolist() == [232, 130, 152]


# ---- what is refused ----


@pytest.mark.parametrize("kind", ["", "BI", "jpeg", "jpeg:30", "jpeg:90-30", "jpeg:0-50", "jpeg:30-101", "jpeg:a-b"])
def test_unknown_degradations(kind):
    with pytest.raises(UserError, match=f"--degradation {kind}: choose bi, bd, dn, or jpeg:LOW-HIGH"):
        Degradation(kind=kind)


def test_unknown_bicubic(cli, image_folder, tmp_path):
    with pytest.raises(UserError, match="--bicubic cv2: choose pillow or matlab"):
        Degradation("cv2")
    ended = cli("prepare", "--images-dir", image_folder(1), "--output-path", tmp_path / "a.h5", "--bicubic", "cv2")
    assert "--bicubic" in ended.user_error()


def test_blur_without_a_middle_pixel(cli, image_folder, tmp_path):
    folder = image_folder(1)
    for command in (
        ("prepare", "--images-dir", folder, "--output-path", tmp_path / "a.h5"),
        ("eval", "--eval-file", folder),
        ("train", "--train-dir", folder),
    ):
        message = cli(*command, "--degradation", "bd").user_error()
        assert message.startswith("--degradation bd: x2 has no middle pixel"), command
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


# ---- files ----


@pytest.mark.parametrize("bicubic", ["pillow", "matlab"])
@pytest.mark.parametrize("kind", KINDS)
def test_prepare_makes_them_in_any_order_and_says_how(cli, image_folder, photograph, tmp_path, bicubic, kind):
    pictures = {name: photograph(66, 60, seed) for seed, name in enumerate("abc")}
    turned = dict(zip("zyx", pictures.values(), strict=True))
    degradation, flags = Degradation(bicubic, kind), ("--scale", 3, "--bicubic", bicubic, "--degradation", kind)
    made = {}
    for folder, given in (("first", pictures), ("second", turned)):
        images = image_folder({f"{name}.png": picture for name, picture in given.items()}, name=folder)
        file = tmp_path / f"{folder}.h5"
        ended = cli("prepare", "--images-dir", images, "--output-path", file, *flags, "--eval")
        assert ended.code == 0
        assert (degradation.in_words in ended.out) == (degradation != PLAIN)
        assert PairedH5(file, 3).lr_made_by == degradation.in_words
        made[folder] = {pair.name: pair.lr for pair in PairedH5(file, 3)}
    for one, other in zip("abc", "zyx", strict=True):
        np.testing.assert_array_equal(made["first"][one], made["second"][other])
        np.testing.assert_array_equal(made["first"][one], degradation.shrink(pictures[one], 3))


def test_repack_keeps_what_is_said(cli, image_folder, tmp_path):
    old, new = tmp_path / "old.h5", tmp_path / "new.h5"
    assert cli("prepare", "--images-dir", image_folder(1), "--output-path", old, "--bicubic", "matlab").code == 0
    assert cli("prepare", "--repack", old, new).code == 0
    assert PairedH5(new, 2).lr_made_by == "MATLAB's bicubic"


def test_a_file_that_says_nothing(make_h5, tmp_path, photograph):
    hr = photograph(40, 40)
    assert PairedH5(make_h5(tmp_path / "a.h5", [(hr[::2, ::2], hr)]), 2).lr_made_by is None


# ---- evaluation ----


@pytest.fixture
def evaluate(cli, tmp_path):
    """evaluate(set, *flags): the report of the shipped model, and what was printed."""

    def run(*arguments):
        ended = cli("eval", "--device", "cpu", "--eval-file", *arguments, "--json", tmp_path / "r.json")
        assert (ended.code, ended.err) == (0, "")
        return json.loads((tmp_path / "r.json").read_text()), ended.out

    return run


@pytest.mark.parametrize("kind", ["bi", "dn"])
def test_eval_makes_lr_and_bicubic_alike_and_labels_them(evaluate, cli, image_folder, tmp_path, kind):
    folder, degradation = image_folder(2, size=(60, 64)), Degradation("matlab", kind)
    flags = ("--bicubic", "matlab", "--degradation", kind)
    report, out = evaluate(folder, *flags, "--csv", tmp_path / "r.csv", "--markdown", tmp_path / "r.md")
    assert (report["bicubic"], report["degradation"]) == ("matlab", kind)
    assert report["sets"][0]["lr_made_by"] == degradation.in_words
    assert f"LR: {degradation.in_words}" in out.splitlines()[2]
    said = f"LR images: {degradation.in_words}. Enlarged by bicubic: MATLAB's bicubic."
    assert said in out
    assert said in (tmp_path / "r.md").read_text()
    assert (tmp_path / "r.csv").read_text().count(degradation.in_words) == 3
    file = tmp_path / "same.h5"
    assert cli("prepare", "--images-dir", folder, "--output-path", file, "--eval", *flags).code == 0
    of_file, out = evaluate(file, *flags)
    assert of_file["sets"][0]["images"] == report["sets"][0]["images"]
    assert "they are taken as they are" not in out
    plain, _ = evaluate(folder)
    assert plain["sets"][0]["lr_made_by"] == "Pillow's bicubic"
    assert plain["sets"][0]["images"] != report["sets"][0]["images"]


def test_a_file_made_otherwise_is_told(evaluate, cli, image_folder, tmp_path):
    folder, file = image_folder(1), tmp_path / "set.h5"
    assert cli("prepare", "--images-dir", folder, "--output-path", file, "--eval", "--bicubic", "matlab").code == 0
    line = f"{file}: its LR images come from MATLAB's bicubic, not from Pillow's bicubic; they are taken as they are"
    report, out = evaluate(file)
    assert line in out.splitlines()
    assert line in report["sets"][0]["notes"]
    assert report["sets"][0]["lr_made_by"] == "MATLAB's bicubic"
    _, out = evaluate(file, folder, "--bicubic", "matlab")
    assert line not in out
    with h5py.File(file, "a") as opened:
        del opened.attrs["lr_made_by"]
    report, out = evaluate(file, folder, "--bicubic", "matlab")
    assert "taken as they are" not in out
    assert report["sets"][0]["lr_made_by"] is None
    assert "LR images: as the file has them (set); MATLAB's bicubic (images)." in out


# ---- training ----


def train(cli, tmp_path, *flags):
    return cli("train", *TINY, "--max-steps", "2", "--outputs-dir", tmp_path / "out", *flags)


def test_a_resume_keeps_them_and_refuses_others(cli, image_folder, tmp_path):
    folder = image_folder(3, size=(120, 120))
    given = ("--train-dir", folder, "--bicubic", "matlab", "--degradation", "dn")
    assert train(cli, tmp_path, *given).code == 0
    resumed = train(cli, tmp_path, *given, "--resume", "auto", "--max-steps", "3")
    assert resumed.code == 0
    assert "resumed at step 2" in resumed.out
    other = train(cli, tmp_path, *given[:4], "--resume", "auto", "--max-steps", "4")
    assert "lr_made_by was MATLAB's bicubic, noise 30, now MATLAB's bicubic" in other.user_error()


def test_a_run_tells_of_training_and_validation_made_otherwise(cli, image_folder, tmp_path):
    folder, file = image_folder(3, size=(120, 120)), tmp_path / "train.h5"
    assert cli("prepare", "--images-dir", folder, "--output-path", file, "--bicubic", "matlab").code == 0
    told = "its LR images come from"
    validated = train(cli, tmp_path, "--train-file", file, "--eval-file", folder)
    assert f"{folder}: {told} Pillow's bicubic, not from MATLAB's bicubic" in validated.out
    assert told not in train(cli, tmp_path, "--train-file", file, "--eval-file", folder, "--bicubic", "matlab").out
    asked = train(cli, tmp_path, "--train-file", file, "--degradation", "dn")
    assert f"{file}: {told} MATLAB's bicubic, not from Pillow's bicubic, noise 30" in asked.out
