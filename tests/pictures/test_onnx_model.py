"""`-w model.onnx`: the same pictures and figures as torch's from our files; what is assumed of others'; errors."""

import functools
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import levels, model

from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.pictures.upscale import upscale
from rdn_fast.weights import onnx_model
from rdn_fast.weights.convert import load_model
from rdn_fast.weights.onnx_export import build, export
from rdn_fast.weights.onnx_model import OnnxModel, load_any_model
from rdn_fast.weights.shipped import select

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

# By name: the size that the shipped model is exported for, None: any.
SIZES = {"64 x 64": (64, 64), "72 x 100": (72, 100), "any size": None}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The shipped model as ONNX files, by name; "fp16" is for 64 x 64."""
    folder = tmp_path_factory.mktemp("onnx")
    files = {name: folder / f"{number}.onnx" for number, name in enumerate((*SIZES, "fp16"))}
    for name, size in SIZES.items():
        export(None, str(files[name]), dynamic=size is None, size=size or (64, 64))
    export(None, str(files["fp16"]), fp16=True)
    return files


@pytest.fixture(scope="module")
def photographs():
    """Two photographs, uint8 [H, W, 3], of 256 x 256 and 150 x 225."""
    data = pytest.importorskip("skimage.data")
    whole = (Image.fromarray(data.astronaut()), (256, 256)), (Image.fromarray(data.chelsea()), (225, 150))
    return [np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image, size in whole]


@pytest.fixture(scope="module")
def expected_of(photographs):
    """expected_of(number, height, width): torch's result for the top left of a photograph."""
    return functools.cache(lambda i, height, width: np.asarray(upscale(photographs[i][:height, :width], fp32=True)))


def save(path, proto, **metadata):
    """Write an onnx.ModelProto with nothing but these metadata."""
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, metadata)
    path.write_bytes(proto.SerializeToString())
    return path


def tiny(made: RDN | None = None, size=("batch", "height", "width")):
    return build(made or model(), size, 13)


# ---- equal to torch ----


@pytest.mark.parametrize("name", [*SIZES, "fp16"])
@pytest.mark.parametrize(
    ("number", "height", "width"),
    [(0, 101, 77), (1, 64, 64), (0, 37, 23), (1, 23, 37), (0, 13, 90), (1, 90, 13), (1, 1, 1)],
)
def test_photographs_are_within_one_level_of_torchs(shipped, photographs, expected_of, name, number, height, width):
    expected = expected_of(number, height, width)
    made = np.asarray(upscale(photographs[number][:height, :width], shipped[name]))
    assert levels(made, expected) <= 1
    assert (made != expected).mean() < (2e-3 if name == "fp16" else 5e-4)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [("batch", "height", "width"), (1, 40, 48)], ids=["dynamic", "fixed"])
def test_every_scale_in_tiles_that_see_all(tmp_path, photograph, scale, size):
    """The tiny model's receptive radius is 9, less than a quarter of the window: exact but for rounding."""
    made = model(scale)
    proto = build(made, size, 13)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    image = photograph(83, 57)
    expected = Upscaler(made, tile=0).exactly(image)
    result = Upscaler(OnnxModel(str(path)), tile_pad="exact").exactly(image)
    assert np.abs(result - expected).max() < 1e-2  # of 255


def test_sixteen_bits_and_self_ensemble(tmp_path, photograph):
    image = photograph(47, 60).astype(np.uint16) * 257
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny(size=(1, 40, 40)).SerializeToString())
    ours, theirs = (Upscaler(made, self_ensemble=True) for made in (model(), load_any_model(path)))
    assert levels(theirs(image), ours(image)) <= 2


def test_a_window_of_two_edges_computes_no_turned_pictures(shipped, photograph):
    with pytest.raises(UserError, match=r"takes 72 x 100 LR pixels, only a file for squares .*--self-ensemble"):
        Upscaler(load_any_model(shipped["72 x 100"]), self_ensemble=True)(photograph(80, 120))


def test_windows_are_of_the_files_size(shipped, photograph, monkeypatch):
    shapes, right = [], OnnxModel._run
    monkeypatch.setattr(OnnxModel, "_run", lambda self, image: shapes.append(image.shape) or right(self, image))
    upscaler = Upscaler(load_any_model(shipped["64 x 64"]))
    done = []
    upscaler.progress = done.append
    upscaler(photograph(120, 67))
    assert shapes == [(1, 3, 64, 64)] * 6  # tiles of 44, and up to 10 more at the border: 3 rows of 2
    assert done == sorted(done)
    assert len(done) == 6
    assert done[-1] == 1


def test_eval_gives_torchs_figures(cli, shipped, tmp_path, prepared):
    def figures(*weights):
        ended = cli("eval", *weights, "--eval-file", prepared.eval, "--json", tmp_path / "r.json")
        assert ended.code == 0, ended.err
        return json.loads((tmp_path / "r.json").read_text()), ended.out

    expected, _ = figures()
    for name in ("any size", "fp16"):
        report, said = figures("-w", shipped[name])
        assert report["parameters"] == expected["parameters"]
        assert report["precision"] == ("float16 and float32" if name == "fp16" else "float32")
        assert report["model"].startswith(expected["model"] + ", ONNX in onnxruntime ")
        assert ("LR pixels see 16 beyond their edge, not 29" in said) == (name == "fp16")
        for ours, theirs in zip(report["sets"][0]["images"], expected["sets"][0]["images"], strict=True):
            assert abs(ours["psnr_y"] - theirs["psnr_y"]) < 0.01


def test_the_command_makes_pictures_with_a_file(cli, shipped, image_folder, tmp_path):
    folder = image_folder(2)
    outputs = []
    for name, weights in (("torch", select().file), ("onnx", shipped["64 x 64"])):
        ended = cli("upscale", "-i", folder, "-o", tmp_path / name, "-w", weights, "--fp32")
        assert (ended.code, ended.err) == (0, "")
        outputs.append([np.asarray(Image.open(path)) for path in sorted((tmp_path / name).iterdir())])
    assert "RDN x2 D6 C4 G48 G0 48, ONNX in onnxruntime" in ended.out
    assert "assumed" not in ended.out
    for a, b in zip(*outputs, strict=True):
        assert levels(a, b) <= 1


def test_an_interrupt_within_a_tile_leaves_no_picture(cli, shipped, image_folder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(OnnxModel, "_run", interrupted)
    flags = ("-i", image_folder(1), "-o", tmp_path / "out", "-w", shipped["64 x 64"])
    assert cli("upscale", *flags).code == 130
    assert list((tmp_path / "out").iterdir()) == []


# ---- files of others ----


def test_the_scale_of_a_file_without_metadata_is_tried(tmp_path, photograph):
    image = photograph(21, 34)
    for scale in (2, 3, 4):
        path = save(tmp_path / "m.onnx", tiny(model(scale)))
        found = load_any_model(path)
        assert found.config.scale == scale
        assert found.in_words.startswith(f"a network for x{scale}, ONNX in ")
        said = "assumed, as the file does not say: colours RGB, value range 0..1, receptive radius of 32 LR pixels"
        assert found.in_words.endswith(said)
        assert levels(Upscaler(found)(image), Upscaler(model(scale))(image)) <= 1


def test_metadata_tell_colours_and_value_range(tmp_path, photograph):
    made = model()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.mul_(255)
        made.sfe1.weight.copy_(made.sfe1.weight.flip(1))
        made.output.weight.copy_(made.output.weight.flip(0))
        made.output.bias.copy_(made.output.bias.flip(0))
    path = save(tmp_path / "m.onnx", tiny(made), value_range="0..255", colours="BGR")
    image = photograph(20, 30)
    assert levels(Upscaler(load_any_model(path))(image), Upscaler(model())(image)) <= 1
    assert "assumed, as the file does not say: receptive radius" in load_any_model(path).in_words


def test_half_precision_at_both_ends(tmp_path, photograph):
    x, f16 = onnx.helper, onnx.TensorProto.FLOAT16
    sides = [x.make_tensor_value_info("x", f16, [1, 3, "h", "w"]), x.make_tensor_value_info("y", f16, [1, 3, "a", "b"])]
    scales = x.make_tensor("scales", onnx.TensorProto.FLOAT, [4], [1, 1, 2, 2])
    node = x.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest", nearest_mode="floor",
                       coordinate_transformation_mode="asymmetric")  # fmt: skip
    graph = x.make_graph([node], "nearest", sides[:1], sides[1:], [scales])
    made = x.make_model_gen_version(graph, opset_imports=[x.make_opsetid("", 13)])
    image = photograph(20, 30)
    result = Upscaler(load_any_model(save(tmp_path / "m.onnx", made)))(image)
    assert levels(result, image.repeat(2, 0).repeat(2, 1)) <= 1


def graph(inputs, outputs, *nodes):
    x = onnx.helper
    made = x.make_graph(
        [x.make_node(*node) for node in nodes],
        "g",
        *(
            [x.make_tensor_value_info(name, kind, shape) for name, kind, shape in values]
            for values in (inputs, outputs)
        ),
    )
    return x.make_model_gen_version(made, opset_imports=[x.make_opsetid("", 13)])


FLOAT, BYTE = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
PICTURE = ("x", FLOAT, [1, 3, "h", "w"])
OTHERS = {
    "grey": (
        graph([("x", FLOAT, [1, 1, "h", "w"])], [("y", FLOAT, None)], ("Identity", ["x"], ["y"])),
        "takes x: tensor(float) [1, 1, 'h', 'w']; a network is needed that takes one float picture",
    ),
    "channels last": (
        graph([("x", FLOAT, [1, "h", "w", 3])], [("y", FLOAT, None)], ("Identity", ["x"], ["y"])),
        "takes x: tensor(float) [1, 'h', 'w', 3]; a network is needed that takes one float picture",
    ),
    "bytes": (
        graph([("x", BYTE, [1, 3, "h", "w"])], [("y", BYTE, None)], ("Identity", ["x"], ["y"])),
        "takes x: tensor(uint8)",
    ),
    "two pictures": (
        graph([PICTURE, ("z", FLOAT, [1, 3, "h", "w"])], [("y", FLOAT, None)], ("Add", ["x", "z"], ["y"])),
        "takes x: tensor(float) [1, 3, 'h', 'w']; z: tensor(float)",
    ),
    "one edge": (
        graph([("x", FLOAT, [1, 3, 64, "w"])], [("y", FLOAT, None)], ("Identity", ["x"], ["y"])),
        "takes x: tensor(float) [1, 3, 64, 'w']",
    ),
    "four at a time": (
        graph([("x", FLOAT, [4, 3, "h", "w"])], [("y", FLOAT, None)], ("Identity", ["x"], ["y"])),
        "takes x: tensor(float) [4, 3, 'h', 'w']",
    ),
    "the same size": (
        graph([PICTURE], [("y", FLOAT, None)], ("Identity", ["x"], ["y"])),
        "makes no picture that is a whole number of times as large: of [1, 3, 64, 64] it makes [1, 3, 64, 64]",
    ),
    "a classifier": (
        graph([PICTURE], [("y", FLOAT, None)], ("GlobalAveragePool", ["x"], ["y"])),
        "makes no picture that is a whole number of times as large: of [1, 3, 64, 64] it makes [1, 3, 1, 1]",
    ),
    "a number": (
        graph([PICTURE], [("y", onnx.TensorProto.INT64, None)], ("Size", ["x"], ["y"])),
        "makes no picture that is a whole number of times as large: of [1, 3, 64, 64] it makes []",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_are_one_line(cli, tmp_path, image_folder, kind):
    made, expected = OTHERS[kind]
    path = save(tmp_path / "m.onnx", made)
    message = cli("upscale", "-i", image_folder(1), "-o", tmp_path / "out", "-w", path).user_error()
    assert message.startswith(f"{path}: {expected}")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"scale": "two"}, "its metadata has scale two, no number from 2 on"),
        ({"scale": "1"}, "its metadata has scale 1, no number from 2 on"),
        ({"receptive_radius": "-3"}, "its metadata has receptive_radius -3, no number from 1 on"),
        ({"value_range": "-1..1"}, "its metadata has value_range -1..1; known are 0..1 and 0..255"),
        ({"colours": "YCbCr"}, "its metadata has colours YCbCr; known are RGB and BGR"),
    ],
)
def test_metadata_that_are_not_understood(cli, tmp_path, prepared, metadata, expected):
    path = save(tmp_path / "m.onnx", tiny(), **metadata)
    assert expected in cli("eval", "-w", path, "--eval-file", prepared.eval).user_error()


def test_a_scale_that_the_file_does_not_keep(tmp_path, photograph):
    path = save(tmp_path / "m.onnx", tiny(), scale="3")
    with pytest.raises(
        UserError, match=r"is no network for pictures at x3: of \[1, 3, 20, 30\] it makes \[1, 3, 40, 60\]"
    ):
        Upscaler(load_any_model(path))(photograph(20, 30))


# ---- mistakes, and too little memory ----


def test_a_tile_and_another_scale_and_another_device(cli, shipped, image_folder, tmp_path, monkeypatch):
    flags = ("-i", image_folder(1), "-o", tmp_path / "out", "-w", shipped["64 x 64"])
    assert cli("upscale", *flags, "--tile", 32).user_error() == (
        "tile 32: this file takes 64 x 64 LR pixels alone; leave it out"
    )
    assert "these weights are for x2" in cli("upscale", *flags, "--scale", 3).user_error()
    monkeypatch.setattr(onnx_model.devices, "pick", lambda name: torch.device("meta"))
    assert cli("upscale", *flags, "--device", "cuda").user_error() == (
        "--device cuda: ONNX files are computed on the CPU alone; leave it out, or give weights"
    )


@pytest.mark.parametrize("content", [b"\x08\x07\x12\x08rdn_fast\xff\xff\xff", b"", b"not a model"])
def test_a_damaged_file(cli, tmp_path, prepared, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    message = cli("eval", "-w", path, "--eval-file", prepared.eval).user_error()
    assert message.startswith(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it (")


def test_no_file_and_no_package(cli, shipped, tmp_path, prepared, monkeypatch):
    assert cli("eval", "-w", tmp_path / "none.onnx", "--eval-file", prepared.eval).user_error().endswith("no such file")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = cli("eval", "-w", shipped["fp16"], "--eval-file", prepared.eval).user_error()
    assert message.startswith(f"{shipped['fp16']}: needs onnxruntime (")
    assert message.endswith("pip install onnx onnxruntime")


def test_commands_that_need_weights_say_so(cli, shipped, tmp_path):
    message = cli("convert", shipped["fp16"], tmp_path / "w.pth").user_error()
    assert "is an ONNX model, which only upscale and eval take; give the weights that it was made of" in message


def test_a_file_without_its_ending_is_known_by_its_content(shipped, tmp_path):
    (tmp_path / "model").write_bytes(shipped["fp16"].read_bytes())
    assert isinstance(load_any_model(tmp_path / "model"), OnnxModel)
    assert isinstance(load_any_model(select().file), RDN)


def test_tiles_become_smaller_where_memory_is_short(shipped, photograph, monkeypatch):
    class Session:
        def __init__(self, real):
            self.real = real

        def run(self, names, inputs):
            (x,) = inputs.values()
            if x.shape[-1] > 60:
                raise Exception("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 1")
            return self.real.run(names, inputs)

    said, image, expected = [], photograph(64, 90), load_model(device="cpu")
    made = load_any_model(shipped["any size"])
    made._session = Session(made._session)
    result = Upscaler(made, say=said.append)(image)
    assert levels(result, Upscaler(expected)(image)) <= 1
    assert len(said) == 1
    assert said[0].startswith("out of memory: from now on tiles of ")
    fixed = load_any_model(shipped["64 x 64"])
    fixed._session = Session(fixed._session)
    with pytest.raises(RuntimeError, match="out of memory"):
        Upscaler(fixed)(image)
