"""`rdn-fast eval`: its numbers against a computation by hand, its table and JSON, and what it says to files that it cannot use."""

import json
import math
import re

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from rdn_fast import metrics
from rdn_fast.config import Config
from rdn_fast.data.prepare import Pair
from rdn_fast.evaluate import score
from rdn_fast.model import RDN
from rdn_fast.progress import finite

COLUMNS = ["psnr_y", "psnr_y_compat", "ssim_y", "bicubic_psnr_y", "bicubic_psnr_y_compat", "bicubic_ssim_y"]


def small(scale=2) -> RDN:
    """A model with random weights, the same in every run, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scale)
        return RDN(Config(scale=scale, num_features=6, growth_rate=4, num_blocks=2, num_layers=2)).eval()


@pytest.fixture
def weights(tmp_path):
    """weights(scale=2): a file of them."""

    def make(scale=2):
        path = tmp_path / f"x{scale}.pth"
        torch.save(small(scale).state_dict(), path)
        return path

    return make


@pytest.fixture
def evaluate(cli):
    """evaluate(weights, set, *flags): run the command; what it ended with."""
    return lambda weights, images, *flags: cli("eval", "--weights-file", weights, "--eval-file", images, "--device", "cpu", *flags)


@pytest.fixture
def report(evaluate, tmp_path):
    """report(weights, set, *flags): the JSON of a command that must succeed."""

    def run(*arguments):
        ended = evaluate(*arguments, "--json", tmp_path / "report.json")
        assert (ended.code, ended.err) == (0, "")
        return json.loads((tmp_path / "report.json").read_text())

    return run


# ---- numbers ----


def test_report_has_every_column_for_every_image_and_the_mean(report, weights, prepared):
    result = report(weights(), prepared.eval)
    assert set(result) == {"images", "mean"}
    assert [list(row) for row in result["images"]] == [["name", *COLUMNS]] * 4
    assert [row["name"] for row in result["images"]] == [f"picture_{i}" for i in range(4)]
    assert list(result["mean"]) == COLUMNS


def test_mean_is_the_mean_over_images(report, weights, prepared):
    result = report(weights(), prepared.eval)
    for column in COLUMNS:
        values = [row[column] for row in result["images"]]
        assert len(set(values)) == 4
        assert result["mean"][column] == pytest.approx(sum(values) / 4, rel=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_values_are_the_metrics_of_the_models_output(report, weights, image_folder, scale):
    folder = image_folder(3, size=(52, 47))
    result = report(weights(scale), folder)
    for row in result["images"]:
        picture = np.asarray(Image.open(folder / f"{row['name']}.png"))
        h, w = picture.shape[0] // scale, picture.shape[1] // scale
        hr = picture[: h * scale, : w * scale]
        lr = Image.fromarray(hr).resize((w, h), Image.Resampling.BICUBIC)
        with torch.no_grad():
            x = torch.tensor(np.asarray(lr)).permute(2, 0, 1)[None].float() / 255
            output = small(scale)(x)[0].permute(1, 2, 0).numpy() * 255
        cubic = np.asarray(lr.resize((w * scale, h * scale), Image.Resampling.BICUBIC))
        assert row["psnr_y"] == pytest.approx(metrics.psnr_y(output, hr, scale), rel=1e-4)  # a value near .5 may round otherwise
        assert row["psnr_y_compat"] == pytest.approx(metrics.psnr_y_compat(output, hr, scale), rel=1e-5)
        assert row["ssim_y"] == pytest.approx(metrics.ssim_y(output, hr, scale), abs=1e-4)
        assert row["bicubic_psnr_y"] == metrics.psnr_y(cubic, hr, scale)
        assert row["bicubic_psnr_y_compat"] == metrics.psnr_y_compat(cubic, hr, scale)
        assert row["bicubic_ssim_y"] == metrics.ssim_y(cubic, hr, scale)


def test_h5_and_folder_give_the_same_numbers(report, weights, prepared):
    assert report(weights(), prepared.eval) == report(weights(), prepared.images)


def test_safetensors_and_pth_give_the_same_numbers(report, weights, prepared, tmp_path):
    safetensors.torch.save_file(small().state_dict(), tmp_path / "w.safetensors")
    assert report(tmp_path / "w.safetensors", prepared.eval) == report(weights(), prepared.eval)


def test_half_precision_weights_are_computed_in_float32(report, prepared, tmp_path):
    state = {name: value.half() for name, value in small().state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    torch.save({name: value.float() for name, value in state.items()}, tmp_path / "float.pth")
    assert report(tmp_path / "half.pth", prepared.eval) == report(tmp_path / "float.pth", prepared.eval)


def test_scale_may_be_given_when_it_is_right(report, weights, prepared):
    assert report(weights(), prepared.eval, "--scale", 2) == report(weights(), prepared.eval)


def test_as_a_process_of_its_own(run_cli, report, weights, prepared, tmp_path):
    ended = run_cli("eval", "--weights-file", weights(), "--eval-file", prepared.eval, "--device", "cpu", "--json", "own.json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "picture_3" in ended.stdout
    here, there = report(weights(), prepared.eval), json.loads((tmp_path / "own.json").read_text())
    for column in COLUMNS:
        assert there["mean"][column] == pytest.approx(here["mean"][column], rel=1e-4)


# ---- the table ----


def test_table_shows_two_decimals_of_psnr_and_four_of_ssim(evaluate, weights, prepared, tmp_path):
    ended = evaluate(weights(), prepared.eval, "--json", tmp_path / "report.json")
    result = json.loads((tmp_path / "report.json").read_text())
    for row in (*result["images"], {"name": "mean", **result["mean"]}):
        (line,) = [line for line in ended.out.splitlines() if re.search(rf"\W{row['name']}\W", line)]
        shown = re.findall(r"-?\d+\.\d+", line)
        assert shown == [f"{row[column]:.4f}" if "ssim" in column else f"{row[column]:.2f}" for column in COLUMNS]
    assert "canonical" in ended.out  # both conventions are labelled
    assert "yjn870" in ended.out


@pytest.mark.parametrize("name", ["photo[copy]", "a [bold] b", "100%", "Ä 漢"])
def test_table_shows_names_as_they_are(evaluate, weights, image_folder, photograph, name):
    ended = evaluate(weights(), image_folder({f"{name}.png": photograph(30, 30)}))
    assert ended.code == 0
    assert name in ended.out


# ---- equal images ----


def test_score_of_a_perfect_prediction(photograph):
    hr = photograph(32, 30)
    row = score(hr.astype(np.float32), Pair("a", hr[::2, ::2], hr), 2)
    assert list(row) == COLUMNS
    assert row["psnr_y"] == row["psnr_y_compat"] == math.inf
    assert row["ssim_y"] == pytest.approx(1, abs=1e-12)
    assert 5 < row["bicubic_psnr_y"] < 60


def test_infinity_is_null_in_json_and_inf_in_the_table(evaluate, weights, prepared, tmp_path, monkeypatch):
    with h5py.File(prepared.eval) as file:
        answers = {file[f"lr/{i}"][()].tobytes(): file[f"hr/{i}"][()].astype(np.float32) for i in range(4)}
    monkeypatch.setattr("rdn_fast.evaluate.predict", lambda _, lr: answers[lr.tobytes()])
    ended = evaluate(weights(), prepared.eval, "--json", tmp_path / "report.json")
    assert ended.code == 0
    assert "inf" in ended.out
    result = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [row["psnr_y"] for row in result["images"]] == [None] * 4
    assert result["mean"]["psnr_y"] is None
    assert result["mean"]["ssim_y"] == pytest.approx(1, abs=1e-12)


def test_finite_replaces_infinity_everywhere_and_nothing_else():
    value = {"images": [{"name": "inf", "a": math.inf, "b": -math.inf, "c": math.nan, "d": 1.5}], "n": 3, "none": None}
    assert finite(value) == {"images": [{"name": "inf", "a": None, "b": None, "c": None, "d": 1.5}], "n": 3, "none": None}


# ---- mistakes ----


@pytest.mark.parametrize("scale", [3, 4, 7])
def test_wrong_scale(evaluate, weights, prepared, scale):
    message = evaluate(weights(), prepared.eval, "--scale", scale).user_error()
    assert message.startswith(f"--scale {scale}: ")
    assert "x2 model" in message
    assert "--scale 2" in message


def test_set_of_another_scale(evaluate, weights, prepared):
    message = evaluate(weights(3), prepared.eval).user_error()
    assert message.startswith(f"{prepared.eval}: pair ")
    assert "not 3 times" in message


def save(path, content) -> None:
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)


BAD_WEIGHTS = {
    "other network": lambda: {"conv.weight": torch.zeros(3, 3), "conv.bias": torch.zeros(3)},
    "numbered tensors": lambda: {0: torch.zeros(3)},
    "checkpoint": lambda: {"model": small().state_dict(), "optimizer": {}, "step": 7},
    "list": lambda: [torch.zeros(3)],
    "tensor": lambda: torch.zeros(3),
    "nothing": dict,
    "key missing": lambda: {name: value for name, value in small().state_dict().items() if name != "gff.1.bias"},
    "scalar": lambda: small().state_dict() | {"sfe1.weight": torch.tensor(1.0)},
    "empty file": lambda: b"",
    "text": lambda: b"epoch,psnr\n1,33.7\n",
    "web page": lambda: b"<!DOCTYPE html><html><body>404: Not Found</body></html>",
    "h5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(500),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_weights_that_are_none(evaluate, prepared, tmp_path, kind):
    path = tmp_path / "w.pth"
    save(path, BAD_WEIGHTS[kind]())
    assert evaluate(path, prepared.eval, "--json", tmp_path / "report.json").user_error().startswith(str(path))
    assert not (tmp_path / "report.json").exists()


def test_checkpoint_given_as_weights_is_told_where_it_goes(evaluate, prepared, tmp_path):
    save(tmp_path / "c.pt", BAD_WEIGHTS["checkpoint"]())
    assert "--resume" in evaluate(tmp_path / "c.pt", prepared.eval).user_error()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_truncated_weights(evaluate, prepared, tmp_path, suffix, part):
    path = tmp_path / f"w.{suffix}"
    safetensors.torch.save_file(small().state_dict(), path) if suffix == "safetensors" else torch.save(small().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    message = evaluate(path, prepared.eval).user_error()
    assert message.startswith(f"{path}: damaged")


@pytest.mark.parametrize("missing", ["weights", "set", "h5"])
def test_missing_files(evaluate, weights, prepared, tmp_path, missing):
    arguments = {
        "weights": (tmp_path / "none.pth", prepared.eval),
        "set": (weights(), tmp_path / "none"),
        "h5": (weights(), tmp_path / "none.h5"),
    }[missing]
    message = evaluate(*arguments).user_error()
    assert message.startswith(f"{arguments[0 if missing == 'weights' else 1]}: no such file")


def test_folder_given_as_weights(evaluate, prepared, tmp_path):
    assert evaluate(tmp_path, prepared.eval).user_error().startswith(f"{tmp_path}: ")


@pytest.mark.parametrize("name", ["notes.txt", "cut.png"])
def test_file_in_the_folder_that_is_no_picture(evaluate, weights, image_folder, name):
    folder = image_folder(1)
    (folder / name).write_bytes((folder / "picture_0.png").read_bytes()[:200] if name == "cut.png" else b"no picture")
    message = evaluate(weights(), folder).user_error()
    assert message.startswith(f"{folder / name}: ")
    assert "remove it from the folder" in message


def test_too_large_picture_in_the_folder(evaluate, weights, image_folder, monkeypatch):
    folder = image_folder(1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # PIL refuses twice as many
    assert evaluate(weights(), folder).user_error().startswith(f"{folder / 'picture_0.png'}: ")


@pytest.mark.parametrize("scale", [2, 4])
def test_images_smaller_than_the_metrics_need(evaluate, weights, image_folder, photograph, scale):
    side = -(-metrics.smallest_side(scale) // scale) * scale  # the smallest multiple of the scale that works
    assert evaluate(weights(scale), image_folder({"a.png": photograph(side, side)}, name="enough")).code == 0
    message = evaluate(weights(scale), image_folder({"good.png": photograph(40, 40), "tiny.png": photograph(side, side - 1)})).user_error()
    assert "tiny" in message
    assert f"smaller than the {metrics.smallest_side(scale)} pixels" in message


def test_empty_folder(evaluate, weights, image_folder):
    folder = image_folder(0)
    assert evaluate(weights(), folder).user_error().startswith(f"{folder}: holds no files")


def test_report_that_cannot_be_written(evaluate, weights, prepared, tmp_path):
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / "report.json"
    assert str(path) in evaluate(weights(), prepared.eval, "--json", path).user_error()


@pytest.mark.parametrize("flags", [("--weights-file", "w.pth"), ("--eval-file", "set.h5"), ()], ids=" ".join)
def test_both_files_are_required(cli, flags):
    message = cli("eval", *flags).user_error()
    for flag in {"--weights-file", "--eval-file"} - set(flags):
        assert flag in message
