"""`rdn-fast eval`: its numbers against a computation by hand, its tables and files, and its error messages."""

import csv
import hashlib
import json
import math
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import runs
import safetensors.torch
import torch
from PIL import Image

from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.data.degradation import PLAIN
from rdn_fast.evaluation import metrics
from rdn_fast.evaluation.evaluate import exact_upscaler, score
from rdn_fast.files import finite
from rdn_fast.model import RDN
from rdn_fast.terminal import printable

MEASURED = ["psnr_y", "psnr_y_compat", "ssim_y", "psnr_rgb"]
COLUMNS = [*MEASURED, *(f"bicubic_{name}" for name in MEASURED)]
SHOWN = COLUMNS[:-1]


def small(scale=2) -> RDN:
    """A model with random weights, the same in every run, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(scale)
        return RDN(ModelConfig(scale=scale, num_features=6, growth_rate=4, num_blocks=2, num_layers=2)).eval()


@pytest.fixture
def weights(tmp_path):
    """Return weights(scale=2), which writes a file of small(scale)'s weights."""

    def make(scale=2):
        path = tmp_path / f"x{scale}.pth"
        torch.save(small(scale).state_dict(), path)
        return path

    return make


@pytest.fixture
def evaluate(cli):
    """Return evaluate(weights, set, *further sets and flags), which runs the command on the CPU."""
    return lambda weights, *sets: cli("eval", "--weights-file", weights, "--device", "cpu", "--eval-file", *sets)


@pytest.fixture
def report(evaluate, tmp_path):
    """Return report(weights, set, *further sets and flags): the JSON of a command that must succeed."""

    def run(*arguments):
        ended = evaluate(*arguments, "--json", tmp_path / "report.json")
        assert (ended.code, ended.err) == (0, "")
        return json.loads((tmp_path / "report.json").read_text())

    return run


@pytest.fixture
def numbers(report):
    """Return numbers(weights, set, *flags): the JSON of a single set, without its name."""

    def run(*arguments):
        (only,) = report(*arguments)["sets"]
        return {"images": only["images"], "mean": only["mean"]}

    return run


def pictures(folder) -> dict[str, np.ndarray]:
    """Return the HR images of a folder of PNG, by name, cropped to even sizes."""
    images = {path.stem: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}
    return {name: image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2] for name, image in images.items()}


def halved(hr: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(hr).resize((hr.shape[1] // 2, hr.shape[0] // 2), Image.Resampling.BICUBIC))


def output(lr: np.ndarray, model=None) -> np.ndarray:
    """Return the model's output for an LR image, in 0..255."""
    with torch.no_grad():
        x = torch.tensor(lr.copy()).permute(2, 0, 1)[None].float() / 255
        return (model or small())(x)[0].permute(1, 2, 0).numpy() * 255


# ---- numbers ----


def test_report_has_every_column_for_every_image_and_the_mean(numbers, weights, prepared):
    result = numbers(weights(), prepared.eval)
    assert [list(row) for row in result["images"]] == [["name", *COLUMNS]] * 4
    assert [row["name"] for row in result["images"]] == [f"picture_{i}" for i in range(4)]
    assert list(result["mean"]) == COLUMNS


def test_mean_is_the_mean_over_images(numbers, weights, prepared):
    result = numbers(weights(), prepared.eval)
    for column in COLUMNS:
        values = [row[column] for row in result["images"]]
        assert len(set(values)) == 4
        assert result["mean"][column] == pytest.approx(sum(values) / 4, rel=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_values_are_the_metrics_of_the_models_output(numbers, weights, image_folder, scale):
    folder = image_folder(3, size=(52, 47))
    result = numbers(weights(scale), folder)
    for row in result["images"]:
        picture = np.asarray(Image.open(folder / f"{row['name']}.png"))
        h, w = picture.shape[0] // scale, picture.shape[1] // scale
        hr = picture[: h * scale, : w * scale]
        lr = Image.fromarray(hr).resize((w, h), Image.Resampling.BICUBIC)
        ours = output(np.asarray(lr), small(scale))
        cubic = np.asarray(lr.resize((w * scale, h * scale), Image.Resampling.BICUBIC))
        assert row["psnr_y"] == pytest.approx(metrics.psnr_y(ours, hr, scale), rel=1e-4)  # a .5 may round differently
        assert row["psnr_y_compat"] == pytest.approx(metrics.psnr_y_compat(ours, hr, scale), rel=1e-5)
        assert row["ssim_y"] == pytest.approx(metrics.ssim_y(ours, hr, scale), abs=1e-4)
        assert row["bicubic_psnr_y"] == metrics.psnr_y(cubic, hr, scale)
        assert row["bicubic_psnr_y_compat"] == metrics.psnr_y_compat(cubic, hr, scale)
        assert row["bicubic_ssim_y"] == metrics.ssim_y(cubic, hr, scale)


def test_self_ensemble_is_the_mean_over_eight_turned_and_mirrored_images(report, weights, prepared):
    result = report(weights(), prepared.images, "--self-ensemble")
    assert result["self_ensemble"] is True
    for row, hr in zip(result["sets"][0]["images"], pictures(prepared.images).values(), strict=True):
        ways = [(turns, mirrored) for turns in range(4) for mirrored in (False, True)]
        lr = halved(hr)
        seen = [output(np.rot90(lr[:, ::-1] if mirrored else lr, turns)) for turns, mirrored in ways]
        back = [
            np.rot90(image, -turns)[:, ::-1] if mirrored else np.rot90(image, -turns)
            for image, (turns, mirrored) in zip(seen, ways, strict=True)
        ]
        assert row["psnr_y_compat"] == pytest.approx(metrics.psnr_y_compat(np.mean(back, axis=0), hr, 2), rel=1e-5)
        assert row["psnr_y_compat"] != pytest.approx(metrics.psnr_y_compat(output(lr), hr, 2), rel=1e-5)


def test_h5_and_folder_give_the_same_numbers(numbers, weights, prepared):
    assert numbers(weights(), prepared.eval) == numbers(weights(), prepared.images)


def test_safetensors_and_pth_give_the_same_numbers(numbers, weights, prepared, tmp_path):
    safetensors.torch.save_file(small().state_dict(), tmp_path / "w.safetensors")
    assert numbers(tmp_path / "w.safetensors", prepared.eval) == numbers(weights(), prepared.eval)


def test_checkpoint_gives_the_numbers_of_its_weights(numbers, weights, prepared, tmp_path):
    torch.save({"model": small().state_dict(), "optimizer": {}, "step": 7}, tmp_path / "c.pt")
    assert numbers(tmp_path / "c.pt", prepared.eval) == numbers(weights(), prepared.eval)


def test_half_precision_weights_are_computed_in_float32(numbers, prepared, tmp_path):
    state = {name: value.half() for name, value in small().state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    torch.save({name: value.float() for name, value in state.items()}, tmp_path / "float.pth")
    assert numbers(tmp_path / "half.pth", prepared.eval) == numbers(tmp_path / "float.pth", prepared.eval)


def test_scale_may_be_given_when_it_is_right(numbers, weights, prepared):
    assert numbers(weights(), prepared.eval, "--scale", 2) == numbers(weights(), prepared.eval)


def test_as_a_process_of_its_own(run_cli, report, weights, prepared, tmp_path):
    ended = run_cli(
        "eval", "--weights-file", weights(), "--eval-file", prepared.eval, "--device", "cpu", "--json", "own.json"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "picture_3" in ended.stdout
    here, there = report(weights(), prepared.eval), json.loads((tmp_path / "own.json").read_text())
    for column in COLUMNS:
        assert there["sets"][0]["mean"][column] == pytest.approx(here["sets"][0]["mean"][column], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "scale"),
    [
        (("--eval-file", "x4.h5"), 4),
        (("--eval-file", "images"), 2),
        (("--eval-file", "images", "x3.h5"), 3),
        (("--eval-file", "images", "-s", 4), 4),
        (("--data", "images", "--scale", 3), 3),
        (("--eval-file", "images", "-n", "small_x3"), 3),
        (("--eval-file", "images", "--model_name", "small_x4", "-s", 4), 4),
        (("--eval-file", "images", "-w", "small_x4"), 4),
    ],
    ids=str,
)
def test_the_shipped_model_of_the_scale(cli, three_models, image_folder, make_h5, tmp_path, monkeypatch, flags, scale):
    monkeypatch.chdir(tmp_path)
    image_folder(1)
    hr = runs.photograph(48, 60)
    make_h5(tmp_path / f"x{scale}.h5", [(hr[::scale, ::scale], hr)])
    ended = cli("eval", *flags, "--device", "cpu", "--json", "report.json")
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(Path("report.json").read_text())
    assert (report["scale"], report["weights"]) == (scale, str(three_models[scale]))
    assert report["weights_sha256"] == hashlib.sha256(three_models[scale].read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("-s", 8), "--scale 8: no model for it comes with rdn_fast, only small_x2 (x2), small_x3 (x3), small_x4 (x4)"),
        (("-n", "large"), "--model-name large: no such model comes with rdn_fast; give one of small_x2 (x2), small_x3"),
        (("-n", "small_x2", "-s", 4), "--model-name small_x2 and --scale 4: this model is for x2; give one of the two"),
        (("-n", "small_x2", "-w", "a.pth"), "--weights-file a.pth and --model-name small_x2 each say which weights"),
        (("-w", "small_x2", "-s", 3), "--scale 3: these weights are for x2; give --scale 2 or none, or other weights"),
    ],
    ids=str,
)
def test_no_such_shipped_model(cli, three_models, prepared, flags, told):
    assert cli("eval", "--eval-file", prepared.images, "--device", "cpu", *flags).user_error().startswith(told)


# ---- several sets ----


def test_sets_keep_their_order_and_numbers(report, numbers, weights, prepared, image_folder):
    other = image_folder(2, size=(40, 36), name="Other")
    result = report(weights(), prepared.eval, other, prepared.images)
    assert [each["name"] for each in result["sets"]] == ["eval", "Other", "images"]
    for each, path in zip(result["sets"], (prepared.eval, other, prepared.images), strict=True):
        assert {"images": each["images"], "mean": each["mean"]} == numbers(weights(), path)


def test_exact_upscaler_is_exact_whatever_the_model_computes_in(photograph):
    model, lr = small(), photograph(20, 26)
    expected = output(lr, model)
    model.compute_dtype = torch.bfloat16
    np.testing.assert_allclose(exact_upscaler(model).exactly(lr), expected, atol=1e-3)


def test_exact_upscaler_turns_tf32_off_by_itself_and_on_again(photograph, monkeypatch):
    model, seen = small(), []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(
        model, "forward", lambda x: seen.append(torch.backends.cudnn.allow_tf32) or RDN.forward(model, x)
    )
    exact_float32 = devices.exact_float32
    monkeypatch.setattr(devices, "exact_float32", lambda device: exact_float32(torch.device("cuda")))
    exact_upscaler(model).exactly(photograph(12, 12))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


def test_cuda_measures_in_float32_and_then_is_as_before(monkeypatch):
    cudnn = torch.backends.cudnn
    for name in ("allow_tf32", "benchmark"):
        monkeypatch.setattr(cudnn, name, True)
    with devices.exact_float32(torch.device("cuda")):
        assert not cudnn.allow_tf32
        assert not cudnn.benchmark
    assert cudnn.allow_tf32
    assert cudnn.benchmark
    with devices.exact_float32(torch.device("cpu")):
        assert cudnn.benchmark


def test_report_tells_of_the_model_and_the_machine(report, weights, prepared):
    result = report(weights(3), prepared.images)
    keys = "weights weights_sha256 model config parameters scale self_ensemble precision device versions "
    keys += "bicubic degradation sets"
    assert " ".join(result) == keys
    assert result["weights_sha256"] == hashlib.sha256(Path(result["weights"]).read_bytes()).hexdigest()
    assert (result["weights"], result["scale"]) == (str(weights(3)), 3)
    assert (result["self_ensemble"], result["precision"]) == (False, "float32")
    assert ModelConfig(**result["config"]) == small(3).config
    assert result["parameters"] == sum(value.numel() for value in small(3).state_dict().values())
    assert result["device"].startswith("cpu ")
    assert result["versions"]["torch"] == torch.__version__


def test_first_lines_tell_what_is_evaluated(evaluate, weights, prepared):
    model, machine = evaluate(weights(), prepared.eval).out.splitlines()[:2]
    assert model.startswith(f"{weights()}: RDN x2 D2 C2 G4 G0 6, 0.00 M parameters, float32")
    assert "self-ensemble" not in model
    assert machine.startswith("on cpu ")
    assert f"torch {torch.__version__}" in machine
    assert evaluate(weights(), prepared.eval, "--self-ensemble").out.splitlines()[0].endswith("self-ensemble of 8")


def test_several_sets_end_with_a_table_of_means(evaluate, weights, prepared, tmp_path):
    ended = evaluate(weights(), prepared.eval, prepared.images, "--json", tmp_path / "report.json")
    means = ended.out.partition("\nmeans")[2]
    for each in json.loads((tmp_path / "report.json").read_text())["sets"]:
        (line,) = [line for line in means.splitlines() if line.startswith(f"│ {each['name']} ")]
        assert re.findall(r"[\w.]+", line) == [each["name"], "4", *in_pairs(each["mean"])]
    assert "\nmeans" not in evaluate(weights(), prepared.eval).out


def in_pairs(mean: dict) -> list[str]:
    """Return the cells of the table of means: bicubic before RDN in each measure."""
    keys = [*(prefix + key for key in COLUMNS[:3] for prefix in ("bicubic_", "")), "psnr_rgb"]
    return [f"{mean[key]:.4f}" if "ssim" in key else f"{mean[key]:.2f}" for key in keys]


# ---- files ----


def test_csv_has_a_row_for_each_image_and_each_mean(report, weights, prepared, tmp_path):
    result = report(weights(), prepared.eval, prepared.images, "--csv", tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [
        {"set": each["name"], "image": row["name"], **row, "lr_made_by": "Pillow's bicubic"}
        for each in result["sets"]
        for row in (*each["images"], {"name": "mean", **each["mean"]})
    ]
    assert list(rows[0]) == ["set", "image", *COLUMNS, "lr_made_by"]
    assert [{**row, **{column: float(row[column]) for column in COLUMNS}} for row in rows] == [
        {key: value for key, value in row.items() if key != "name"} for row in expected
    ]


def test_markdown_has_a_row_for_each_set(report, weights, prepared, tmp_path):
    result = report(weights(), prepared.eval, prepared.images, "--markdown", tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    head, line, *rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("|")
    ]
    assert [len(row) for row in (head, line, *rows)] == [9] * 4
    assert {*"".join(line)} == {"-"}
    measures = ("PSNR-Y", "PSNR-Y ref.", "SSIM-Y")
    of_both = [f"{who} {measure}" for measure in measures for who in ("bicubic", "RDN")]
    assert head == ["set", "images", *of_both, "RDN PSNR-RGB"]
    assert rows == [[each["name"], "4", *in_pairs(each["mean"])] for each in result["sets"]]
    assert text.startswith("x2.pth: RDN x2 ")
    assert "canonical" in text  # both conventions are labelled
    assert "yjn870" in text


def test_saved_images_are_what_was_measured(report, weights, prepared, tmp_path):
    result = report(weights(), prepared.eval, prepared.images, "--save-images", tmp_path / "new" / "out")
    for each in result["sets"]:
        folder = tmp_path / "new" / "out" / each["name"]
        assert {path.name for path in folder.iterdir()} == {f"picture_{i}.png" for i in range(4)}
        for row, hr in zip(each["images"], pictures(prepared.images).values(), strict=True):
            with Image.open(folder / f"{row['name']}.png") as saved:
                assert saved.mode == "RGB"
                assert metrics.psnr_y(np.asarray(saved), hr, 2) == row["psnr_y"]


def test_names_of_saved_images_stay_inside_the_folder_and_apart(report, weights, make_h5, photograph, tmp_path):
    names = ["../up", "a/b", "a_b", "A_B", "", "..", "con\nsole", "x" * 300, "Ä 漢"]
    images = [photograph(30, 30, seed=i) for i in range(len(names))]
    make_h5(tmp_path / "odd.h5", [(halved(hr), hr) for hr in images])
    with h5py.File(tmp_path / "odd.h5", "r+") as file:
        for i, name in enumerate(names):
            file[f"hr/{i}"].attrs["name"] = name
    rows = report(weights(), tmp_path / "odd.h5", "--save-images", tmp_path / "out")["sets"][0]["images"]
    assert [row["name"] for row in rows] == [printable(name) for name in names]
    saved = {path.name: path for path in (tmp_path / "out" / "odd").iterdir()}
    assert len(list((tmp_path / "out").rglob("*"))) == 1 + len(saved)
    expected = ("__up", "a_b", "a_b_2", "A_B_3", "_", "__2", "con_nsole", "x" * 200, "Ä 漢")
    assert sorted(saved) == sorted(f"{name}.png" for name in expected)
    assert metrics.psnr_y(np.asarray(Image.open(saved["A_B_3.png"])), images[3], 2) == rows[3]["psnr_y"]


def test_saved_images_never_replace_the_sets_own(evaluate, weights, prepared, image_folder, tmp_path):
    folder = image_folder(2, name="Set")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert str(folder) in evaluate(weights(), folder, "--save-images", tmp_path).user_error()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("flag", ["--json", "--csv", "--markdown", "--figure"])
def test_files_to_write_never_replace_what_is_read(evaluate, weights, prepared, image_folder, tmp_path, flag):
    folder, file = image_folder(2, name="Set"), tmp_path / "Other.png"
    file.write_bytes(prepared.eval.read_bytes())
    of_model = weights().rename(tmp_path / "w.png")  # the content tells, not the name
    (tmp_path / "link").symlink_to(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for target in (folder / "picture_0.png", folder / "new.png", tmp_path / "link/new.png", file, of_model):
        message = evaluate(of_model, folder, file, flag, target).user_error()
        assert message.startswith(f"{flag} {target}: is read by this command")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_two_tables_never_go_to_one_file(evaluate, weights, prepared, tmp_path):
    flags = ("--json", tmp_path / "a", "--csv", tmp_path / ".." / tmp_path.name / "a")
    message = evaluate(weights(), prepared.eval, *flags).user_error()
    assert message.startswith("--csv ")
    assert "given twice" in message
    assert not (tmp_path / "a").exists()


def test_figure_is_a_png(evaluate, weights, prepared, tmp_path):
    assert "must end in .png" in evaluate(weights(), prepared.eval, "--figure", tmp_path / "figure.jpg").user_error()


def test_names_of_any_bytes(report, weights, image_folder, tmp_path):
    folder = image_folder(1).rename(os.fsdecode(os.fsencode(tmp_path) + b"/Set\xff"))
    (folder / "picture_0.png").rename(os.fsdecode(os.fsencode(folder) + b"/a\xfe.png"))
    of_model = weights().rename(os.fsdecode(os.fsencode(tmp_path) + b"/w\xfd.pth"))
    flags = [word for kind in ("csv", "markdown", "figure") for word in (f"--{kind}", tmp_path / f"{kind}.png")]
    (only,) = report(of_model, folder, *flags, "--save-images", tmp_path / "out")["sets"]
    assert (only["name"], only["images"][0]["name"]) == ("Set\\xff", "a\\xfe")
    assert "a\\xfe" in (tmp_path / "csv.png").read_text()
    assert (tmp_path / "markdown.png").read_text().startswith("w\\xfd.pth: ")
    assert (tmp_path / "out" / "Set_xff" / "a_xfe.png").exists()


def test_figure_of_all_sets(report, weights, prepared, image_folder, tmp_path):
    other = image_folder(1, size=(120, 130), name="Other")
    report(weights(), prepared.images, other, "--figure", tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert (figure.format, figure.width) == ("PNG", 1192)


# ---- the table ----


def test_table_shows_two_decimals_of_psnr_and_four_of_ssim(evaluate, weights, prepared, tmp_path):
    ended = evaluate(weights(), prepared.eval, "--json", tmp_path / "report.json")
    (result,) = json.loads((tmp_path / "report.json").read_text())["sets"]
    for row in (*result["images"], {"name": "mean", **result["mean"]}):
        (line,) = [line for line in ended.out.splitlines() if re.search(rf"\W{row['name']}\W", line)]
        shown = re.findall(r"-?\d+\.\d+", line)
        assert shown == [f"{row[column]:.4f}" if "ssim" in column else f"{row[column]:.2f}" for column in SHOWN]
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
    cubic = PLAIN.resize(np.ascontiguousarray(hr[::2, ::2]), *hr.shape[:2])
    row = score(hr.astype(np.float32), cubic, hr, 2)
    assert list(row) == COLUMNS
    assert row["psnr_y"] == row["psnr_y_compat"] == math.inf
    assert row["ssim_y"] == pytest.approx(1, abs=1e-12)
    assert 5 < row["bicubic_psnr_y"] < 60


def test_infinity_is_null_in_json_and_inf_in_the_table(evaluate, weights, prepared, tmp_path, monkeypatch):
    with h5py.File(prepared.eval) as file:
        answers = {file[f"lr/{i}"][()].tobytes(): file[f"hr/{i}"][()].astype(np.float32) for i in range(4)}
    exact = "rdn_fast.evaluation.evaluate.Upscaler.exactly_each"
    monkeypatch.setattr(exact, lambda _, images: (answers[lr.tobytes()] for lr in images))
    ended = evaluate(weights(), prepared.eval, "--json", tmp_path / "report.json", "--figure", tmp_path / "figure.png")
    assert ended.code == 0
    assert "inf" in ended.out
    text = (tmp_path / "report.json").read_text()
    (result,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["sets"]
    assert [row["psnr_y"] for row in result["images"]] == [None] * 4
    assert result["mean"]["psnr_y"] is None
    assert result["mean"]["ssim_y"] == pytest.approx(1, abs=1e-12)


def test_all_means_of_psnr_are_over_the_same_images(report, weights, image_folder, photograph):
    """Bicubic answers black exactly and the model does not: a mean with its 60 dB would stand beside one without."""
    black = np.zeros((40, 40, 3), np.uint8)
    (result,) = report(weights(), image_folder({"a.png": photograph(40, 44), "black.png": black}))["sets"]
    photo, of_black = result["images"]
    assert of_black["bicubic_psnr_y"] is None
    assert of_black["psnr_y"] is not None
    assert {key: value for key, value in result["mean"].items() if "psnr" in key} == {
        key: value for key, value in photo.items() if "psnr" in key
    }
    assert result["mean"]["ssim_y"] == pytest.approx((photo["ssim_y"] + of_black["ssim_y"]) / 2)


def test_finite_replaces_infinity_everywhere_and_nothing_else():
    value = {"images": [{"name": "inf", "a": math.inf, "b": -math.inf, "c": math.nan, "d": 1.5}], "n": 3, "none": None}
    images = [{"name": "inf", "a": None, "b": None, "c": None, "d": 1.5}]
    assert finite(value) == {"images": images, "n": 3, "none": None}


# ---- mistakes ----


@pytest.mark.parametrize("scale", [3, 4, 7])
def test_wrong_scale(evaluate, weights, prepared, scale):
    message = evaluate(weights(), prepared.eval, "--scale", scale).user_error()
    assert message.startswith(f"--scale {scale}: ")
    assert "for x2" in message
    assert "--scale 2" in message


def test_set_of_another_scale(evaluate, weights, prepared):
    message = evaluate(weights(3), prepared.eval).user_error()
    assert message.startswith(f"{prepared.eval}: pair ")
    assert "not 3 times" in message


BAD_WEIGHTS = {
    "other network": lambda: {"conv.weight": torch.zeros(3, 3), "conv.bias": torch.zeros(3)},
    "numbered tensors": lambda: {0: torch.zeros(3)},
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
    content = BAD_WEIGHTS[kind]()
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert evaluate(path, prepared.eval, "--json", tmp_path / "report.json").user_error().startswith(str(path))
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_truncated_weights(evaluate, prepared, tmp_path, suffix, part):
    path = tmp_path / f"w.{suffix}"
    save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    save(small().state_dict(), path)
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


def test_damaged_picture_in_the_folder(evaluate, weights, image_folder):
    folder = image_folder(1)
    (folder / "cut.png").write_bytes((folder / "picture_0.png").read_bytes()[:200])
    ended = evaluate(weights(), folder)
    assert ended.code == 0
    assert f"skipped {folder / 'cut.png'}: " in ended.out
    message = evaluate(weights(), folder, "--strict").user_error()
    assert message.startswith(f"{folder / 'cut.png'}: ")
    assert "remove or repair it, or leave out --strict" in message


def test_file_in_the_folder_that_is_no_picture(evaluate, weights, image_folder):
    folder = image_folder(1)
    (folder / "notes.txt").write_bytes(b"no picture")
    ended = evaluate(weights(), folder)
    assert ended.code == 0
    assert f"skipped {folder / 'notes.txt'}: not a picture" in ended.out


def test_too_large_picture_in_the_folder(evaluate, weights, image_folder, monkeypatch):
    folder = image_folder(1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # PIL refuses twice as many
    assert evaluate(weights(), folder, "--strict").user_error().startswith(f"{folder / 'picture_0.png'}: ")
    assert "none of its 1 files is an image that can be evaluated" in evaluate(weights(), folder).user_error()


@pytest.mark.parametrize("scale", [2, 4])
def test_images_smaller_than_the_metrics_need(evaluate, weights, image_folder, photograph, scale):
    side = -(-metrics.smallest_side(scale) // scale) * scale  # the smallest multiple of the scale that works
    assert evaluate(weights(scale), image_folder({"a.png": photograph(side, side)}, name="enough")).code == 0
    folder = image_folder({"good.png": photograph(40, 40), "tiny.png": photograph(side, side - 1)})
    size, needed = f"{side - scale}x{side}", metrics.smallest_side(scale)
    line = f"{folder / 'tiny.png'}: {size} pixels; PSNR and SSIM at x{scale} need {needed} on each side"
    assert evaluate(weights(scale), folder, "--strict").user_error().startswith(line)
    assert f"skipped {line}" in evaluate(weights(scale), folder).out


def test_empty_folder(evaluate, weights, image_folder):
    folder = image_folder(0)
    assert evaluate(weights(), folder).user_error().startswith(f"{folder}: holds no files")


@pytest.mark.parametrize("flag", ["--json", "--csv", "--markdown", "--figure"])
@pytest.mark.parametrize("kind", ["below a file", "no folder", "a folder"])
def test_files_that_cannot_be_written_are_told_before_the_work(evaluate, tmp_path, flag, kind):
    (tmp_path / "file").write_text("x")
    paths = {"below a file": tmp_path / "file" / "out", "no folder": tmp_path / "none" / "out", "a folder": tmp_path}
    path = paths[kind]
    assert evaluate("none.pth", "none.h5", flag, path).user_error().startswith(f"{flag} {path}: ")


def test_image_folder_that_cannot_be_made(evaluate, weights, prepared, tmp_path):
    (tmp_path / "file").write_text("x")
    message = evaluate(weights(), prepared.eval, "--save-images", tmp_path / "file").user_error()
    assert message.startswith(f"--save-images {tmp_path / 'file'}: ")
    (tmp_path / "out" / "eval").mkdir(parents=True)
    (tmp_path / "out" / "eval" / "picture_1.png").mkdir()  # the second image's file cannot be written
    flags = ("--save-images", tmp_path / "out", "--json", tmp_path / "report.json")
    message = evaluate(weights(), prepared.eval, *flags).user_error()
    assert "picture_1.png" in message
    assert not (tmp_path / "report.json").exists()
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_set_is_required(cli, weights):
    message = cli("eval", "--weights-file", weights()).user_error()
    assert "--eval-file" in message
    assert "--data" in message
