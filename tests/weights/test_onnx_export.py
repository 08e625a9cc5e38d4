"""`rdn-fast export`: what onnxruntime computes from the file, the graph in it, and that no wrong file is written."""

import re
import shlex
import sys

import numpy as np
import pytest
import torch

from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.weights import onnx_export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

# scale, G0, G, D, C, channels after up-sampling, tail, mean shift
SMALL = (2, 6, 4, 2, 2)
SHIFTED = (8, 4, 6, 1, 2, None, "espcn", True)
CONFIGS = [SMALL, (3, 5, 7, 1, 3), (4, 8, 3, 2, 1), (2, 8, 4, 2, 2, 3), (4, 4, 6, 1, 2, 3), (8, 4, 4, 1, 1)]
CONFIGS += [(4, 5, 3, 1, 2, None, "single"), (3, 6, 4, 2, 2, None, "espcn"), SHIFTED]


def model(*config, gain: float = 1) -> RDN:
    """Return a model with random weights, the same in every run; the first convolution's weights are times `gain`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config[0])
        made = RDN(ModelConfig(*config), rdb="naive").eval()
    with torch.no_grad():
        made.sfe1.weight.mul_(gain)
    return made


def image(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def run(path, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["output"], {"image": x.numpy()})[0])


def exactly(of: RDN, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return of.double()(x.double())


@pytest.fixture
def exported(cli, tmp_path):
    """exported(model, *flags) runs the command, which must succeed; returns the file and what was printed."""

    def make(of: RDN, *flags):
        torch.save(of.state_dict(), tmp_path / "w.pth")
        ended = cli("export", "-w", tmp_path / "w.pth", "-o", tmp_path / "m.onnx", *flags)
        assert (ended.code, ended.err) == (0, "")
        return tmp_path / "m.onnx", ended.out

    return make


@pytest.fixture
def fails(cli, tmp_path):
    """fails(*flags, ...) runs the command, which must fail and leave all files as they were; returns its one line."""

    def run(*flags, code=2, of=None, weights="w.pth", output="m.onnx") -> str:
        torch.save((of or model(*SMALL)).state_dict(), tmp_path / "w.pth")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        ended = cli("export", "-w", tmp_path / weights, "-o", tmp_path / output, *flags)
        assert ended.code == code, ended
        assert ended.out == ""
        assert ended.err.count("\n") == 1, ended.err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        return ended.err.removeprefix("rdn-fast: ").rstrip("\n")

    return run


# ---- what it computes ----


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("opset", [(), ("--opset", 11)], ids=["default", "11"])
def test_onnxruntime_computes_what_torch_does(exported, config, opset):
    path, said = exported(model(*config), "--size", 11, 14, *opset)
    x = image(1, 3, 11, 14)
    expected = exactly(model(*config), x)
    assert expected.std() > 1e-2  # else the next line says nothing
    assert (run(path, x) - expected).abs().max() < 1e-4
    assert float(re.search(r"and torch \S+: (\S+) \(limit 1.0e-04\)", said)[1]) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_dynamic_file_takes_shapes_that_the_export_has_not_seen(exported, config):
    path, _ = exported(model(*config), "--dynamic")
    for shape in ((2, 3, 13, 7), (3, 3, 6, 33), (1, 3, 1, 1)):
        x = image(*shape)
        result = run(path, x)
        assert result.shape == (shape[0], 3, config[0] * shape[2], config[0] * shape[3])
        assert (result - exactly(model(*config), x)).abs().max() < 1e-4


def test_file_for_one_size_takes_that_size_alone(exported):
    path, _ = exported(model(*SMALL), "--size", 9, 12)
    assert run(path, image(1, 3, 9, 12)).shape == (1, 3, 18, 24)
    for shape in ((1, 3, 12, 9), (2, 3, 9, 12)):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            run(path, image(*shape))


@pytest.mark.parametrize("flags", [(), ("--dynamic", "--opset", 11)], ids=["one size", "dynamic, 11"])
def test_fp16_is_half_precision_but_for_the_last_convolution(exported, flags):
    config, x = (2, 16, 16, 2, 3), image(1, 3, 32, 32)
    whole = exported(model(*config), "--size", 32, 32, *flags)[0].stat().st_size
    path, _ = exported(model(*config), "--fp16", "--size", 32, 32, *flags)
    assert path.stat().st_size < 0.6 * whole
    graph = onnx.load(path).graph
    halves = {w.name for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT16}
    assert {w.name for w in graph.initializer} - halves == {"output.weight", "output.bias"}
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    half, expected = model(*config), exactly(model(*config), x)
    half.compute_dtype, half.output_dtype = torch.float16, torch.float32
    with torch.inference_mode():
        own = (half(x) - expected).abs().max()
    assert 1e-6 < (run(path, x) - expected).abs().max() < 1e-4 + 2 * own


# ---- what lies in it ----


@pytest.mark.parametrize("opset", [11, 12, 13, 18, 21])
def test_graph_is_plain_operators_under_the_weights_names(exported, opset):
    path, said = exported(model(4, 6, 4, 3, 2), "--opset", opset, "--size", 8, 9)
    made = onnx.load(path)
    onnx.checker.check_model(made, full_check=True)
    assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", opset)]
    assert (
        made.ir_version <= {11: 6, 12: 7, 13: 7, 18: 8, 21: 10}[opset]
    )  # what was there when that opset was: older tools refuse newer ones
    operators = [node.op_type for node in made.graph.node]
    assert {name: operators.count(name) for name in operators} == {
        "Conv": 2 + 3 * 3 + 2 + 3,
        "Relu": 6,
        "Concat": 7,
        "Add": 4,
        "DepthToSpace": 2,
    }
    assert {w.name: tuple(w.dims) for w in made.graph.initializer} == {
        name: tuple(w.shape) for name, w in model(4, 6, 4, 3, 2).state_dict().items()
    }
    assert f"x4, opset {opset}," in said
    assert "image: float32 [1, 3, 8, 9], RGB in 0..1" in said
    assert "output: float32 [1, 3, 32, 36], not clamped" in said


def test_every_tail_and_a_mean_shift_need_no_other_operator(exported):
    graph = onnx.load(exported(model(*SHIFTED))[0]).graph
    operators = [node.op_type for node in graph.node]
    assert {name: operators.count(name) for name in operators} == {
        "Conv": 2 + 3 + 2 + 4,
        "Relu": 2 + 2,
        "Concat": 3,
        "Add": 3,
        "DepthToSpace": 1,
    }
    named = {w.name: tuple(w.dims) for w in graph.initializer}
    assert named.pop("minus_mean") == (1, 3, 1, 1)
    state = model(*SHIFTED).state_dict()
    assert named == {name: tuple(w.shape) for name, w in state.items() if name != "mean"}


def test_weights_in_the_file_are_the_models(exported):
    state = model(*SMALL).state_dict()
    for weight in onnx.load(exported(model(*SMALL))[0]).graph.initializer:
        assert np.array_equal(onnx.numpy_helper.to_array(weight), state[weight.name].numpy())


def test_two_exports_are_equal(exported):
    assert exported(model(*SMALL))[0].read_bytes() == exported(model(*SMALL))[0].read_bytes()


# ---- for Ascend ----


def atc(said: str) -> dict[str, str]:
    """Return the flags of the printed command, as a shell reads them."""
    (line,) = [line for line in said.splitlines() if line.startswith("  atc ")]
    return dict(word.removeprefix("--").split("=", 1) for word in shlex.split(line)[1:])


def test_atc_command_names_the_file_its_input_and_size(exported, tmp_path):
    path, said = exported(model(*SMALL), "--size", 40, 56)
    flags = atc(said)
    assert (flags["model"], flags["output"]) == (str(path), str(tmp_path / "m"))
    (value,) = onnx.load(path).graph.input
    assert flags["input_shape"] == f"{value.name}:1,3,40,56"
    assert flags["framework"] == "5"
    assert flags["soc_version"].startswith("Ascend")
    assert "dynamic_image_size" not in flags


def test_atc_command_of_a_dynamic_file_lists_sizes(exported):
    flags = atc(exported(model(*SMALL), "--dynamic", "--size", 40, 56)[1])
    assert flags["input_shape"] == "image:1,3,-1,-1"
    assert flags["dynamic_image_size"] == "40,56;80,112"
    assert flags["input_format"] == "NCHW"  # atc takes a list of sizes with no other


def test_no_atc_command_for_an_opset_that_it_does_not_read(exported):
    assert "soc_version" in exported(model(*SMALL), "--opset", 18)[1]
    assert "soc_version" not in exported(model(*SMALL), "--opset", 19)[1]


def test_as_a_process_of_its_own_with_a_blank_in_the_name(run_cli, tmp_path):
    torch.save(model(*SMALL).state_dict(), tmp_path / "w.pth")
    ended = run_cli("export", "-w", "w.pth", "-o", "my model.onnx", "--fp16", "--dynamic")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert atc(ended.stdout)["model"] == "my model.onnx"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my model.onnx", "w.pth"]


# ---- a wrong file is noticed ----


def change_weight(made) -> None:
    (weight,) = [w for w in made.graph.initializer if w.name == "rdbs.1.lff.bias"]
    value = onnx.numpy_helper.to_array(weight).copy()
    value[0] += 0.25
    weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))


def change_order(made) -> None:
    (node,) = [node for node in made.graph.node if node.op_type == "DepthToSpace"]
    (mode,) = [attribute for attribute in node.attribute if attribute.name == "mode"]
    mode.s = b"DCR"


def lose_relu(made) -> None:
    node = next(node for node in made.graph.node if node.op_type == "Relu")
    node.op_type = "Neg"


@pytest.mark.parametrize("flags", [(), ("--dynamic",), ("--fp16",)], ids=["one size", "dynamic", "fp16"])
@pytest.mark.parametrize("change", [change_weight, change_order, lose_relu])
@pytest.mark.parametrize("before", [None, b"\x08\x08\x12\x08rdn_fast, an earlier file"], ids=["new", "over"])
def test_wrong_file_is_not_written(fails, tmp_path, monkeypatch, flags, change, before):
    right = onnx_export.build

    def wrong(*arguments):
        made = right(*arguments)
        change(made)
        return made

    monkeypatch.setattr(onnx_export, "build", wrong)
    if before:
        (tmp_path / "m.onnx").write_bytes(before)
    message = fails(*flags, code=1)
    assert message.startswith(f"failed: {tmp_path / 'm.onnx'}: is not written")
    assert "differs from torch's" in message


def test_weights_too_large_for_fp16(fails):
    large = model(*SMALL, gain=1e6)
    message = fails("--fp16", code=1, of=large)
    assert message.startswith("failed: ")
    assert "leave out --fp16" in message


# ---- mistakes ----


@pytest.mark.parametrize("opset", [10, 0, -1, 1000])
def test_opset_out_of_range(fails, opset):
    message = fails("--opset", opset)
    assert message.startswith(f"error: --opset {opset}: must be from 11 to {onnx.defs.onnx_opset_version()}")


def test_opset_that_onnxruntime_does_not_know(fails, monkeypatch):
    def refuse(*_, **__):
        raise Exception("Opset 28 is under development,\nofficial support is till opset 26")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    message = fails("--opset", 28)
    assert message.startswith(f"error: onnxruntime {onnxruntime.__version__} cannot load the model: Opset 28 is")
    assert message.endswith("give a smaller --opset")


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8, 65_536), (10**30, 8)])
def test_size_that_makes_no_sense(fails, size):
    assert fails("--size", *size).startswith(f"error: --size {size[0]} {size[1]}: ")


def test_size_that_does_not_fit_into_memory(fails, monkeypatch):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(RDN, "forward", full)
    message = fails()
    assert "--size" in message
    assert "--dynamic" in message


def test_size_that_onnxruntime_cannot_compute(fails, monkeypatch):
    class Fail(Exception):  # as onnxruntime's own are
        pass

    def full(*_):
        raise Fail(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION\nFailed to allocate memory for requested buffer of size 64"
        )

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", full)
    message = fails()
    assert "Failed to allocate memory" in message
    assert message.endswith("give a smaller --size, or --dynamic")


@pytest.mark.parametrize("name", ["m.pt", "m", "m.onnx.gz", "none/m.onnx", "folder.onnx", "w.pth/m.onnx"])
def test_output_that_cannot_be_written(fails, tmp_path, name):
    (tmp_path / "folder.onnx").mkdir()
    assert fails(output=name).startswith(f"error: --output {tmp_path / name}: ")


def test_full_disk(fails, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    message = fails()
    assert message.startswith(f"error: --output {tmp_path / 'm.onnx'}: cannot be written (No space left on device)")


@pytest.mark.parametrize(
    "content", [b"", b"not weights", {"conv.weight": torch.zeros(3, 3, 3, 3)}], ids=["empty", "text", "other network"]
)
def test_weights_that_are_no_rdn(fails, tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert fails(weights="other.pth").startswith(f"error: {path}: ")


def test_weights_that_are_not_there(fails, tmp_path):
    assert fails(weights="none.pth").startswith(f"error: {tmp_path / 'none.pth'}: no such file")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_package(fails, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    message = fails()
    assert package in message
    assert "pip install onnx onnxruntime" in message
