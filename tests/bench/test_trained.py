"""What is published of a model that was trained in full: its record, of a real run and evaluations, and its tables."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime

import pytest
from bench_rows import make_row, short
from runs import ROOT, TINY, events, make_data

from bench import plots, quality, report, trained
from bench.published import EDSR_BASELINE, PAPER, PUBLISHED
from rdn_fast.cli import main
from rdn_fast.config import make_configs
from rdn_fast.weights.shipped import select

# 21 patches: 8 + 8 + 5
FLAGS = (*TINY, *["--batch-size", "8", "--eval-every", "1", "--opt-level", "O0", "--rdb", "naive", "--epochs", "100"])
BLOCKS = "<!-- bench:compared --><!-- /bench --><!-- bench:trained --><!-- /bench -->"


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
    assert datetime.fromisoformat(weights.pop("date")) <= datetime.now()
    assert weights == {
        "event": "weights",
        "file": "model.safetensors",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (settings,) = run.of("settings")
    assert (settings["batch_size"], settings["num_epochs"], settings["max_steps"]) == (8, 100, 10)
    assert settings["train_file" if "train_file" in settings else "data_path"] in ("train_x2.h5", "data")
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
    assert main(["convert", str(select().file), str(other)]) == 0
    assert f"--weights {other}: is not {made}/run/last.pth" in told(other, made / "plain.json")
    assert "nowhere.json" in told(made / "model.safetensors", made / "nowhere.json")
    assert "nowhere" in told(made / "model.safetensors", made / "plain.json", outputs="nowhere")


def test_the_speed_is_held_against_the_benchmark_of_the_same_training(run):
    device = run.start["device"].removeprefix("cpu (").removesuffix(")") + ", family 25"
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
    assert "| not measured |" in short(quality.training_table({"small_x2": run}, [])).splitlines()[2]
    assert "| 50.0% |" in short(quality.training_table({"small_x2": run}, [[new]]))
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
    text = short(report.render(BLOCKS, [], {"small_x2": run}, "bench/figures"))
    for name in ("small_x3", "small_x4", "rdn_b_x2"):
        assert text.count(f"| {name} | not measured |") == 1  # how it was trained
        assert text.count(f"| {name} |  | not measured |") == 1  # its quality
    (weights,) = run.of("weights")
    assert f"| small_x2 | model.safetensors | {weights['bytes']:,} | `{weights['sha256']}` |" in text
    assert "bench/figures/training_small_x2.svg" in text
    assert "rdn_b_x2.svg" not in text


def cells(table: str) -> dict[str, list[str]]:
    """Return {first cell of a row: its other cells}."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in rows}


def table_of(models: dict, scale: int) -> dict[str, list[str]]:
    return cells(quality.scale_tables(models).split(f"**x{scale}**")[1].split("**x")[0].split("\n\n")[1])


def test_a_scale_has_one_table_of_all_that_is_known(run):
    table, mean, better = table_of({"small_x2": run}, 2), run.means(False)["Set5"], run.means(True)["Set5"]
    assert table["model"] == ["parameters", "how", "Set5", "Set14", "B100"]
    assert table["bicubic"] == [
        "",
        "measured",
        f"{mean['bicubic_psnr_y']:.2f} ({mean['bicubic_psnr_y_compat']:.2f}), {mean['bicubic_ssim_y']:.4f}",
        "",
        "",
    ]
    for name, of in (("small_x2", mean), ("small_x2, self-ensemble", better)):
        shown = f"**{of['psnr_y']:.2f} ({of['psnr_y_compat']:.2f}), {of['ssim_y']:.4f}**"
        assert table[f"**{name}**"] == [f"{run.parameters / 1e6:.2f} M", "measured", shown, "", ""]
    psnr, ssim = PAPER.figures[2]["B100"]
    assert table[PAPER.model][-1] == f"{psnr:.2f}, {ssim:.4f}"
    for source in PUBLISHED:
        assert table[source.model][1].startswith(f"published: {source.source}")


def test_published_figures_of_the_other_convention_are_in_brackets():
    for scale in (2, 3, 4):
        table = table_of({}, scale)
        assert "bicubic" not in table
        for source in PUBLISHED:
            _, how, set5, *_ = table[source.model]
            assert set5.startswith("(") != source.canonical
            assert ("HR resized" in how) == (source.model == "RDN, yjn870" and scale == 3)


def test_another_set_is_a_column_where_it_was_evaluated(run):
    more = trained.Run("small_x2", json.loads(json.dumps(run.records)))
    for evaluation in more.of("evaluation"):
        evaluation["sets"].append(evaluation["sets"][0] | {"name": "Urban100"})
    table = table_of({"small_x2": more}, 2)
    assert table["model"][-1] == "Urban100"
    assert table[PAPER.model][-1] == "32.89, 0.9353"
    assert table["RDN, yjn870"][-1] == ""
    assert "Urban100" not in table_of({"small_x2": more}, 3)["model"]


def test_the_quality_table_has_a_line_for_every_model_and_set(run):
    mean, better = run.means(False)["Set5"], run.means(True)["Set5"]
    models = {"small_x2": run, "small_x4": trained.Run("small_x4", run.records)}
    text = short(quality.quality_table(models, {}))
    for name, scale in (("small_x2", 2), ("small_x4", 4)):
        ours = f"{mean['bicubic_psnr_y']:.2f} | **{mean['psnr_y']:.2f}** | {better['psnr_y']:.2f}"
        others = " | ".join(f"{source.figures[scale]['Set5'][0]:.2f}" for source in (EDSR_BASELINE, PAPER))
        assert f"| {name} | Set5 | {ours} | {others} |" in text
    assert "| 模型 | 数据集 |" in short(quality.quality_table({"small_x2": run}, report.CHINESE))


def test_what_a_run_began_from_and_where_it_went_on_is_told(run):
    begun = trained.Run("small_x4", json.loads(json.dumps(run.records)))
    begun.start["weights_file"] = "small_x2.safetensors"
    begun.of("resume")[0]["device"] = "npu (some)"
    row = cells(quality.training_table({"small_x4": begun}, []))["small_x4"]
    assert row[1:3] == ["small_x2.safetensors", f"{run.start['device']}, then npu (some)"]
    assert row[4:7] == [run.start["date"][:10], "10", "8 of 8x8"]
    assert cells(quality.training_table({"small_x2": run}, []))["small_x2"][1] == "random weights"
    (figure,) = quality.charts({"small_x4": begun}).values()
    assert figure.panels[0].x == "steps, begun from small_x2.safetensors"


def test_a_model_of_others_is_its_evaluations(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    name, title = next(iter(trained.OTHERS.items()))
    flags = ["--weights", str(made / "model.safetensors"), "--eval", str(made / "plain.json")]
    assert trained.main([name, *flags]) == 0
    models = trained.read(tmp_path)
    assert [record["event"] for record in models[name].records] == ["weights", "evaluation"]
    mean = models[name].means(False)["Set5"]
    shown = f"{mean['psnr_y']:.2f} ({mean['psnr_y_compat']:.2f}), {mean['ssim_y']:.4f}"
    assert table_of(models, models[name].scale)[title][1:3] == ["measured", shown]
    assert not quality.charts(models)
    for wrong in ([name, "--outputs-dir", str(made / "run")], ["small_x2"]):
        assert trained.main([*wrong, *flags]) == 2
        assert capsys.readouterr().err.startswith("trained: error: --outputs-dir: goes with small_x2, ")


def test_the_curve_is_the_validation_over_steps_and_minutes(run):
    (figure,) = quality.charts({"small_x2": run}).values()
    steps, minutes = figure.panels
    epochs = run.of("epoch")
    assert steps.x == "steps"
    assert steps.lines["canonical"] == ([epoch["step"] for epoch in epochs], [epoch["psnr_y"] for epoch in epochs])
    assert minutes.lines["reference-compatible"] == (
        [epoch["seconds"] / 60 for epoch in epochs],
        [epoch["psnr_y_compat"] for epoch in epochs],
    )


def test_a_run_that_was_not_validated_has_no_curve(run):
    for epoch in (unseen := trained.Run("small_x2", json.loads(json.dumps(run.records)))).of("epoch"):
        del epoch["psnr_y"]
    assert not quality.charts({"small_x2": unseen})


def test_the_curve_is_the_same_bytes_every_time(run, tmp_path):
    (figure,) = quality.charts({"small_x2": run}).values()
    for name in ("a.svg", "b.svg"):
        plots.draw(tmp_path / name, figure)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert plots.is_current(tmp_path / "a.svg", figure)


def test_a_record_without_minutes_has_no_curve_over_them(run):
    for epoch in (old := trained.Run("small_x2", [dict(record) for record in run.records])).of("epoch"):
        del epoch["seconds"]
    assert old.images_s is None
    (figure,) = quality.charts({"small_x2": old}).values()
    assert [panel.x for panel in figure.panels] == ["steps"]


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
