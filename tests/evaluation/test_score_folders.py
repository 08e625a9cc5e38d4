"""`rdn-fast metrics`: what it finds, prints and writes, and what it refuses."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from rdn_fast.evaluation import metrics


@pytest.fixture
def folders(image_folder, photograph, tmp_path):
    """folders(n=3, end="_x2_SR"): folders of n blurred pictures, and of their HR pictures, which are 1 pixel larger."""

    def make(n=3, end="_x2_SR"):
        hr = {f"p{i}": photograph(45 + 2 * i, 51, i) for i in range(n)}
        sr = {name: image[:-1, :-1] for name, image in hr.items()}
        sr = {
            name: np.asarray(Image.fromarray(image).resize((25, 25)).resize(image.shape[1::-1]))
            for name, image in sr.items()
        }
        return (
            image_folder({f"{name}{end}.png": image for name, image in sr.items()}, name="sr"),
            image_folder({f"{name}.png": image for name, image in hr.items()}, name="hr"),
        )

    return make


@pytest.fixture
def report(cli, tmp_path):
    """report(sr, hr, *flags): the JSON of a command that must succeed, and what it printed."""

    def run(*arguments):
        ended = cli("metrics", *arguments, "--json", tmp_path / "r.json")
        assert (ended.code, ended.err) == (0, "")
        return json.loads((tmp_path / "r.json").read_text()), ended.out

    return run


def value(of: list[dict], measure="PSNR", channels="Y", over="images", crop=2) -> float:
    wanted = {"measure": measure, "channels": channels, "over": over, "crop": crop}
    (found,) = [each["value"] for each in of if wanted.items() <= each.items()]
    return found


def test_values_are_the_metrics(report, folders):
    sr, hr = folders()
    result, out = report(sr, hr)
    assert (result["scale"], result["crops"], result["notes"], result["claim"]) == (2, [0, 2, 8], [], None)
    assert [image["name"] for image in result["images"]] == ["p0", "p1", "p2"]
    expected = {"PSNR": [], "SSIM": []}
    for image in result["images"]:
        a, b = (np.asarray(Image.open(image[key])) for key in ("sr", "hr"))
        b = b[:-1, :-1]
        expected["PSNR"].append(metrics.psnr_y(a, b, 2))
        expected["SSIM"].append(metrics.ssim_y(a, b, 2))
        assert value(image["values"]) == pytest.approx(expected["PSNR"][-1], abs=1e-9)
        assert value(image["values"], "PSNR", "RGB") == pytest.approx(metrics.psnr_rgb(a, b, 2), abs=1e-9)
    for measure, of_images in expected.items():
        assert value(result["mean"], measure) == pytest.approx(np.mean(of_images), abs=1e-9)
    assert f"3 images of {sr} scored against {hr}, x2" in out
    (row,) = [line for line in out.splitlines() if line.startswith("│ PSNR    │ Y        │ images")]
    assert [f"{value(result['mean'], crop=crop):.2f}" for crop in (0, 2, 8)] == row.split()[7::2][:3]


@pytest.mark.parametrize(("end", "flags", "crops"), [("", (), [0, 2, 3, 4, 8]), ("", ("--scale", "3"), [0, 3, 9])])
def test_crops_follow_from_the_scale(report, folders, end, flags, crops):
    result, _ = report(*folders(end=end), *flags)
    assert result["crops"] == crops


def test_two_files(report, folders):
    sr, hr = folders(1)
    (a,), (b,) = sr.iterdir(), hr.iterdir()
    of_files, _ = report(a, b)
    of_folders, _ = report(sr, hr)
    assert of_files["images"] == of_folders["images"]
    assert {each["over"] for each in of_files["mean"]} == {"images"}


def test_a_claim_is_answered_everywhere(report, folders, tmp_path):
    sr, hr = folders()
    mean = report(sr, hr)[0]["mean"]
    text = f"{value(mean, 'PSNR', 'RGB', crop=0):.4f}"
    result, out = report(sr, hr, "--claim", text, "--markdown", tmp_path / "r.md")
    said = f"{text} is PSNR of RGB, no border cropped ({text})"
    assert said in out.splitlines()
    assert f"- {said}\n" in (tmp_path / "r.md").read_text()
    assert result["claim"]["number"] == text
    assert result["claim"]["given_by"] == [{"measure": "PSNR", "channels": "RGB", "over": "images", "crop": 0}]
    result, out = report(sr, hr, "--claim", "77.77")
    assert "77.77: no convention gives it; the nearest:" in out.splitlines()
    assert result["claim"]["given_by"] == []
    assert len(result["claim"]["nearest"]) == 3


def test_files_hold_the_same(report, folders, tmp_path):
    result, out = report(*folders(), "--csv", tmp_path / "r.csv", "--markdown", tmp_path / "r.md")
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "measure", "channels", "over", "crop", "value"]
    expected = [{"image": image["name"], **each} for image in result["images"] for each in image["values"]]
    expected += [{"image": "mean", **each} for each in result["mean"]]
    assert [{**row, "crop": int(row["crop"]), "value": float(row["value"])} for row in rows] == expected
    markdown = (tmp_path / "r.md").read_text()
    cells = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in cells[0]] == ["measure", "channels", "mean over", "crop 0", "crop 2", "crop 8"]
    assert len(cells) == 2 + 15
    for line in out.splitlines()[-7:]:
        assert f"- {line}" in markdown


def test_what_has_no_partner_or_cannot_be_scored_is_named(report, cli, folders, photograph):
    sr, hr = folders(5)
    (sr / "p0_x2_SR.png").rename(sr / "other.png")
    (sr / "p1_x2_SR.png").write_bytes(b"no picture")
    Image.fromarray(photograph(20, 90)).save(sr / "p2_x2_SR.png")
    result, out = report(sr, hr)
    assert [image["name"] for image in result["images"]] == ["p3", "p4"]
    assert result["notes"][:2] == [f"no partner: {sr / 'other.png'}", f"no partner: {hr / 'p0.png'}"]
    assert result["notes"][2].startswith(f"skipped {sr / 'p1_x2_SR.png'}: ")
    assert result["notes"][3] == f"skipped {sr / 'p2_x2_SR.png'}: 90x20 pixels, its HR picture 51x49"
    assert set(result["notes"]) <= set(out.splitlines())
    assert "no partner: " in cli("metrics", sr, hr, "--strict").user_error()


def test_selfexsrs_one_folder(report, folders, tmp_path):
    _, hr = folders(2, end="")
    sr = tmp_path / "sr"
    for file in list(hr.iterdir()):
        image = Image.open(file)
        image.reduce(2).save(hr / f"{file.stem}_SRF_2_LR.png")
        file.rename(hr / f"{file.stem}_SRF_2_HR.png")
    result, _ = report(sr, hr)
    assert (len(result["images"]), result["scale"], result["notes"]) == (2, 2, [])


def test_equal_pictures_are_null_in_json(report, folders, tmp_path):
    _, hr = folders(2)
    result, out = report(shutil.copytree(hr, tmp_path / "same"), hr, "--strict")
    assert value(result["mean"]) is None
    assert value(result["mean"], "SSIM") == pytest.approx(1)
    line = "equal to HR, so that an infinite PSNR is left out of the means over images: p0, p1"
    assert result["notes"] == [line]
    assert line in out
    assert " inf " in out


def test_mistakes(cli, folders, tmp_path):
    sr, hr = folders()
    picture = next(hr.iterdir())
    assert "one is a folder and one is not" in cli("metrics", sr, picture).user_error()
    assert "one is a folder and one is not" in cli("metrics", tmp_path / "none", hr).user_error()
    assert "could be scored" in cli("metrics", tmp_path / "none.png", picture).user_error()
    assert "--claim best: give a PSNR" in cli("metrics", sr, hr, "--claim", "best").user_error()
    assert "--json" in cli("metrics", sr, hr, "--json", sr / "r.json").user_error()
    (tmp_path / "notes.txt").write_text("notes")
    told = cli("metrics", sr, hr, "--csv", tmp_path / "notes.txt").user_error()
    assert "is there already, and is not a table of rdn-fast metrics" in told
    for i, file in enumerate(list(hr.iterdir())):
        file.rename(hr / f"other{i}.png")
    assert "no names match" in cli("metrics", sr, hr).user_error()
