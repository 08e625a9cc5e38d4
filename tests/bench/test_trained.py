"""What is published of a model that was trained in full: its record, of a real run and evaluations, and its tables."""

from __future__ import annotations

import hashlib
import json

import pytest
from bench_rows import make_row, short
from runs import ROOT, TINY, events, make_data

from bench import plots, report, trained
from rdn_fast.cli import main
from rdn_fast.config import make_configs
from rdn_fast.weights.convert import SHIPPED

# 21 patches: 8 + 8 + 5
FLAGS = (*TINY, *["--batch-size", "8", "--eval-every", "1", "--opt-level", "O0", "--rdb", "naive", "--epochs", "100"])
BLOCK = "<!-- bench:trained --><!-- /bench -->"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run in two pieces, of which the record is made by the command."""
    folder = tmp_path_factory.mktemp("trained")
    data = make_data(folder / "data")
    train = ["train", "--data-path", str(data), "--outputs-dir", str(folder / "run"), *FLAGS, "--resume", "auto"]
    weights = folder / "model.safetensors"
    assert main([*train, "--max-steps", "4"]) == main([*train, "--max-steps", "10"]) == 0
    assert main(["convert", str(folder / "run" / "last.pth"), str(weights), "--fp16"]) == 0
    for name, flags in (("plain", ()), ("ensemble", ("--self-ensemble",))):
        assert (
            main(
                [
                    "eval",
                    "-w",
                    str(weights),
                    "--eval-file",
                    str(data / "Set5_x2.h5"),
                    "--json",
                    str(folder / f"{name}.json"),
                    *flags,
                ]
            )
            == 0
        )
    return folder


@pytest.fixture(scope="module")
def run(made):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "FOLDER", made / "records")
        words = (
            "small_x2",
            "--outputs-dir",
            made / "run",
            "--weights",
            made / "model.safetensors",
            "--eval",
            made / "plain.json",
            made / "ensemble.json",
        )
        assert trained.main([str(word) for word in words]) == 0
    (found,) = trained.read(made / "records").values()
    return found


def test_the_record_is_the_run_and_its_evaluations_without_the_steps(made, run):
    for kind in ("start", "resume", "epoch"):
        assert run.of(kind) == events(made / "run", kind)
    assert len(run.of("resume")) == 1
    assert not run.of("step")
    (weights,) = run.of("weights")
    content = (made / "model.safetensors").read_bytes()
    assert weights == {
        "event": "weights",
        "file": "model.safetensors",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    for name, ensemble in (("plain", False), ("ensemble", True)):
        (evaluated,) = json.loads((made / f"{name}.json").read_text())["sets"]
        assert run.means(ensemble) == {evaluated["name"]: evaluated["mean"]}
    assert str(made) not in json.dumps(run.records)  # no path of this machine is published


def test_patches_and_seconds_add_up_over_pieces(run):
    epochs = run.of("epoch")
    # The first piece ended in the middle of the second epoch, after one full batch of it.
    assert [(epoch["step"], run.patches(epoch)) for epoch in epochs] == [(3, 21), (4, 29), (6, 42), (9, 63), (10, 71)]
    assert (
        min(epoch["fps_end_to_end"] for epoch in epochs)
        <= run.in_steps
        <= max(epoch["fps_end_to_end"] for epoch in epochs)
    )
    seconds = [epoch["seconds"] for epoch in epochs]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    # Wall time: from the first epoch's end to the second's; then from the first epoch's end after the resume on.
    assert run.images_s == pytest.approx((29 - 21 + 71 - 42) / (seconds[1] - seconds[0] + seconds[4] - seconds[2]))


def test_what_is_not_of_the_run_is_refused(made, tmp_path, capsys):
    def told(weights, evaluation, outputs="run"):
        flags = ["--outputs-dir", str(made / outputs), "--weights", str(weights), "--eval", str(evaluation)]
        assert trained.main(["small_x2", *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("trained: error: ")
        assert error.count("\n") == 1
        return error

    other = tmp_path / "model.safetensors"
    assert main(["convert", str(made / "model.safetensors"), str(other)]) == 0  # the same weights, another file
    assert f"--eval {made}/plain.json: is of " in told(other, made / "plain.json")
    assert main(["convert", str(SHIPPED), str(other)]) == 0
    assert f"--weights {other}: is not {made}/run/last.pth" in told(other, made / "plain.json")
    assert "nowhere.json" in told(made / "model.safetensors", made / "nowhere.json")
    assert "nowhere" in told(made / "model.safetensors", made / "plain.json", outputs="nowhere")


def test_the_speed_is_held_against_the_benchmark_of_the_same_training(run):
    device = run.start["device"].split("(")[1].rstrip(")") + ", family 25"
    given = {
        "case": "end to end",
        "device": device,
        "torch": run.start["torch"],
        "dtype": "float32",
        "batch": 8,
        "shape": "x2 D2 C2 G4 G0 6, 8x8",
    }
    old, new = make_row(**given, images_s=5.0), make_row(**given, images_s=2 * run.images_s)
    assert run.benchmark([[old], [new]]) == 2 * run.images_s
    assert "| not measured |" in short(trained.tables({"small_x2": run}, [])).splitlines()[2]
    assert "| 50.0% |" in short(trained.tables({"small_x2": run}, [[new]]))
    others = {
        "case": "long run",
        "recipe": "stock",
        "batch": 16,
        "ranks": 2,
        "dtype": "float16",
        "shape": "x2 D2 C2 G4 G0 6, 32x32",
        "device": "another",
    }
    for name, value in others.items():
        assert run.benchmark([[make_row(**given | {"images_s": 5.0, name: value})]]) is None


def test_the_page_tells_of_the_run_and_of_what_was_not_run(run):
    text = short(report.render(BLOCK, [], {"small_x2": run}, "bench/figures"))
    mean, better = run.means(False)["Set5"], run.means(True)["Set5"]
    row = next(line for line in text.splitlines() if line.startswith("| small_x2 | Set5 |"))
    assert [cell.strip() for cell in row.split("|")[3:6]] == [
        f"{mean['bicubic_psnr_y']:.2f} ({mean['bicubic_psnr_y_compat']:.2f}), {mean['bicubic_ssim_y']:.4f}",
        f"**{mean['psnr_y']:.2f} ({mean['psnr_y_compat']:.2f}), {mean['ssim_y']:.4f}**",
        f"{better['psnr_y']:.2f} ({better['psnr_y_compat']:.2f}), {better['ssim_y']:.4f}",
    ]
    assert "| rdn_b_x2 | not measured |" in text
    assert "bench/figures/training_small_x2.svg" in text
    assert "rdn_b_x2.svg" not in text


def test_the_quality_table_has_a_line_for_every_set(run):
    mean, better = run.means(False)["Set5"], run.means(True)["Set5"]
    ours = f"**{mean['psnr_y']:.2f}** | {better['psnr_y']:.2f}"
    line = f"| small_x2 | Set5 | {mean['bicubic_psnr_y']:.2f} | {ours} | {trained.PAPER['Set5'][0]:.2f} |"
    assert line in short(trained.quality_table({"small_x2": run}, {}))
    assert "| 模型 | 数据集 |" in short(trained.quality_table({"small_x2": run}, report.CHINESE))


def test_the_curve_is_the_validation_over_patches_and_minutes(run):
    (figure,) = trained.charts({"small_x2": run}).values()
    patches, minutes = figure.panels
    epochs = run.of("epoch")
    assert patches.lines["canonical"] == (
        [run.patches(epoch) / 1e3 for epoch in epochs],
        [epoch["psnr_y"] for epoch in epochs],
    )
    assert minutes.lines["reference-compatible"] == (
        [epoch["seconds"] / 60 for epoch in epochs],
        [epoch["psnr_y_compat"] for epoch in epochs],
    )


def test_the_curve_is_the_same_bytes_every_time(run, tmp_path):
    (figure,) = trained.charts({"small_x2": run}).values()
    for name in ("a.svg", "b.svg"):
        plots.draw(tmp_path / name, figure)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert plots.is_current(tmp_path / "a.svg", figure)


def test_a_record_without_minutes_has_no_curve_over_them(run):
    for epoch in (old := trained.Run("small_x2", [dict(record) for record in run.records])).of("epoch"):
        del epoch["seconds"]
    assert old.images_s is None
    (figure,) = trained.charts({"small_x2": old}).values()
    assert [panel.x for panel in figure.panels] == ["thousands of patches"]


def test_the_published_records_are_of_the_published_weights():
    """Of the model that comes with the package the very file is there to be compared."""
    models = trained.read(trained.FOLDER)
    (weights,) = models["small_x2"].of("weights")
    content = (ROOT / "rdn_fast" / "weights" / weights["file"]).read_bytes()
    assert (weights["bytes"], weights["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_preset_is_the_seeds_recipe():
    """mission: 800 epochs of 4,000 patches, rdn-b, x2, batch 64, patches of 32, Adam at 4e-4."""
    model, config = make_configs({}, "full")
    seed_model, seed = make_configs({}, "train-full-1p")
    assert (model, config.patch_size, config.lr, config.seed) == (seed_model, 32, seed.lr, seed.seed)
    assert config.drop_last
    assert config.max_steps * config.batch_size == seed.num_epochs * 4_000 == 3_200_000
