"""Which of the shipped models is taken, by name, scale or neither, and what is read of each."""

import pytest
import torch
from weight_files import assert_equal

import rdn_fast
from rdn_fast.errors import UserError
from rdn_fast.flags import make_parser
from rdn_fast.flags.settings import make_configs_of
from rdn_fast.model import RDN
from rdn_fast.weights import shipped
from rdn_fast.weights.convert import convert, load_model, read_weights
from rdn_fast.weights.shipped import file_of, for_each_scale, select, shipped_models


def test_all_files_of_the_folder_are_models(three_models):
    assert {model.scale: model.file for model in shipped_models()} == three_models
    for model in shipped_models():
        weights = read_weights(model.file)
        assert model.parameters == sum(tensor.numel() for tensor in weights.state.values())
        assert model.scale == weights.config.scale
        assert model.metadata == weights.metadata
        assert (model.name, model.card) == (f"small_x{model.scale}", model.file.with_name(f"small_x{model.scale}.md"))
        assert model.psnr_y("Set5") == float(f"3{model.scale}.25")
        assert model.psnr_y("Set14") is None


def test_of_one_scale_the_smallest_is_taken(three_models, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    for name, features in (("a_x3", 9), ("b_x3", 6), ("c_x3", 12)):
        model = RDN(rdn_fast.ModelConfig(3, features, 4, 2, 2))
        torch.save(model.state_dict(), tmp_path / "w.pth")
        convert(str(tmp_path / "w.pth"), str(tmp_path / f"{name}.safetensors"))
    convert(str(three_models[2]), str(tmp_path / "d_x2.safetensors"))
    assert [model.name for model in shipped_models()] == ["d_x2", "b_x3", "a_x3", "c_x3"]
    assert [model.name for model in for_each_scale().values()] == ["d_x2", "b_x3"]
    assert select(scale=3).name == "b_x3"
    assert list(for_each_scale("c_x3")) == [3]
    assert select("c_x3").name == "c_x3"
    assert select("c_x3").psnr_y("Set5") is None  # no card


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\2\0\0\0\0\0\0\0{}", b"\2\0\0\0\0\0\0\0[]"], ids=str)
def test_a_damaged_file_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    (tmp_path / "small_x2.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"small_x2\.safetensors: damaged; install rdn_fast anew$"):
        select()


def test_a_name_stands_for_its_file_where_there_is_no_other(three_models, reference, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    assert_equal(read_weights("small_x3").state, read_weights(three_models[3]).state)
    assert file_of("small_x5").name == "small_x5"
    assert cli("convert", "small_x4", "x4.pth").code == 0
    assert_equal(torch.load("x4.pth"), read_weights(three_models[4]).state)
    given = make_parser().parse_args(["train", "--weights-file", "small_x3"])
    assert make_configs_of(given)[0].num_features == 6
    reference.rename(tmp_path / "small_x3")
    assert_equal(read_weights("small_x3").state, torch.load(tmp_path / "small_x3"))
    for name in ("../small_x3", "small_x3.safetensors", "small\0x3", "x" * 5000, ""):
        assert str(file_of(name)) == (name or ".")


def test_load_model(three_models):
    for given, scale in (({}, 2), ({"scale": 3}, 3), ({"path": "small_x4"}, 4), ({"path": "small_x4", "scale": 4}, 4)):
        assert_equal(load_model(device="cpu", **given).state_dict(), read_weights(three_models[scale]).state)
    with pytest.raises(UserError, match=r"^scale 2: these weights are for x4; give scale 4 or none, or other weights$"):
        load_model("small_x4", "cpu", scale=2)
    with pytest.raises(UserError, match=r"^scale 5: no model for it comes with rdn_fast, only small_x2 \(x2\), "):
        load_model(scale=5)


@pytest.mark.parametrize(
    ("flags", "scale"), [((), 2), (("-s", 3), 3), (("-n", "small_x4"), 4), (("-w", "small_x3"), 3)]
)
def test_export(cli, three_models, tmp_path, flags, scale):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert cli("export", *flags, "-o", tmp_path / "m.onnx", "--size", 8, 8).code == 0
    said = {prop.key: prop.value for prop in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert said["scale"] == str(scale)


def test_export_of_another_scale(cli, three_models, tmp_path):
    pytest.importorskip("onnxruntime")
    wrong = cli("export", "-w", three_models[3], "-s", 2, "-o", tmp_path / "m.onnx")
    assert wrong.user_error() == "--scale 2: these weights are for x3; give --scale 3 or none, or other weights"
    both = cli("export", "-w", three_models[3], "-n", "small_x3", "-o", tmp_path / "m.onnx")
    assert both.user_error().endswith("each say which weights are taken; give one of them")
