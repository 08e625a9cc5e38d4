"""Weights of other projects: their own forward pass against ours, and what read_weights and load_model return."""

import other_projects as others
import pytest
import torch
from weight_files import as_safetensors, assert_equal, saved

import rdn_fast
from bench.parity import FLOAT64, SLACK, relative_error
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.errors import UserError
from rdn_fast.training.inputs import open_inputs
from rdn_fast.weights.convert import load_model, read_weights

D, C, G, G0 = others.D, others.C, others.G, others.G0


def of_our_checkpoint(average):
    def write(path, model):
        state = {"model": others.Reference(model.scale).state_dict(), "average": None, "optimizer": {}, "step": 7}
        saved(path, state | {"average" if average else "model": model.state_dict()})

    return write


# By project: the model that it builds, how it saves a model, and what read_weights() calls the layout.
LAYOUTS = {
    "yjn870, torchSR": (others.Reference, lambda path, m: saved(path, m.state_dict()), "reference"),
    "yjn870, with torch < 1.6": (
        others.Reference,
        lambda path, m: saved(path, m.state_dict(), _use_new_zipfile_serialization=False),
        "reference",
    ),
    "Ascend": (others.Reference, lambda path, m: saved(path, others.ascend(m.state_dict())), "reference (model)"),
    "Ascend, of npu tensors": (
        others.Reference,
        lambda path, m: others.save_from_npu(path, m.state_dict()),
        "reference (model)",
    ),
    "Ascend, of npu tensors, of long ago": (
        others.Reference,
        lambda path, m: others.save_from_npu(path, m.state_dict(), True),
        "reference (model)",
    ),
    "mmagic": (
        others.Reference,
        lambda path, m: saved(path, others.mmagic(m.state_dict(), None)),
        "reference (state_dict generator)",
    ),
    "mmagic, averaged": (
        others.Reference,
        lambda path, m: saved(path, others.mmagic(others.Reference(m.scale).state_dict(), m.state_dict())),
        "reference (state_dict generator_ema)",
    ),
    "EDSR-PyTorch": (others.Edsr, lambda path, m: saved(path, m.state_dict()), "edsr"),
    "EDSR-PyTorch, up-sampling to G0 channels": (
        lambda scale: others.Edsr(scale, G0),
        lambda path, m: saved(path, m.state_dict()),
        "edsr",
    ),
    "Lornatang": (
        others.Lornatang,
        lambda path, m: saved(path, others.lornatang(others.Lornatang(m.scale), m)),
        "lornatang (ema_state_dict)",
    ),
    "Lornatang, published": (
        others.Lornatang,
        lambda path, m: saved(path, {"state_dict": m.state_dict(), "epoch": 3}),
        "lornatang (state_dict)",
    ),
    "lizhengwei1992": (others.Lizhengwei, lambda path, m: saved(path, m.state_dict()), "lizhengwei1992"),
    "BasicSR": (others.Reference, lambda path, m: saved(path, {"params": m.state_dict()}), "reference (params)"),
    "BasicSR, averaged EDSR": (
        others.Edsr,
        lambda path, m: saved(
            path, {"params": others.Edsr(m.scale).state_dict(), "params_ema": others.wrapped(m.state_dict(), "module.")}
        ),
        "edsr (params_ema)",
    ),
    "BasicSR around Lornatang": (
        others.Lornatang,
        lambda path, m: saved(path, {"params": {"state_dict": m.state_dict()}}),
        "lornatang (params state_dict)",
    ),
    "safetensors": (others.Lornatang, lambda path, m: as_safetensors(path, m.state_dict()), "lornatang"),
    "safetensors of EDSR": (others.Edsr, lambda path, m: as_safetensors(path, m.state_dict()), "edsr"),
    "our checkpoint": (others.Reference, of_our_checkpoint(average=False), "reference (model)"),
    "our checkpoint, averaged": (others.Reference, of_our_checkpoint(average=True), "reference (average)"),
    "Lightning": (
        others.Reference,
        lambda path, m: saved(path, others.lightning(m.state_dict(), "model.")),
        "reference (state_dict model)",
    ),
    "Lightning, net": (
        others.Edsr,
        lambda path, m: saved(path, others.lightning(m.state_dict(), "net.")),
        "edsr (state_dict net)",
    ),
    **{
        f"in {key}": (
            others.Reference,
            lambda path, m, key=key: saved(path, {key: m.state_dict(), "epoch": 3}),
            f"reference ({key})",
        )
        for key in ("model_state_dict", "net", "weights", "generator")
    },
    "wrapped again and again": (
        others.Reference,
        lambda path, m: saved(
            path,
            others.wrapped(
                {k.replace("rdbs.", "rdbs._orig_mod."): v for k, v in m.state_dict().items()},
                "module._orig_mod.module.",
            ),
        ),
        "reference",
    ),
}


@pytest.mark.parametrize(
    ("project", "scale"),
    [(project, scale) for project in LAYOUTS for scale in (2, 3, 4)]
    + [(project, 8) for project in LAYOUTS if project.startswith(("Lornatang", "lizhengwei"))],
)
def test_a_model_computes_what_its_project_computes(tmp_path, project, scale):
    build, save, layout = LAYOUTS[project]
    theirs = build(scale)
    theirs.scale = scale
    save(tmp_path / "weights.bin", theirs)
    weights = read_weights(tmp_path / "weights.bin")
    tail = G if project in ("EDSR-PyTorch", "BasicSR, averaged EDSR", "safetensors of EDSR", "Lightning, net") else None
    steps = "single" if project == "lizhengwei1992" and scale in (4, 8) else "shuffle"
    assert (weights.config, weights.layout) == (ModelConfig(scale, G0, G, D, C, tail, steps), layout)
    ours = load_model(tmp_path / "weights.bin", "cpu")
    assert ours.config == weights.config
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.double()(x * theirs.top) / theirs.top
        # In float64, where only the rounding of the biases (/ 255, to float32) is left.
        assert relative_error(ours.double()(x), expected) <= (FLOAT64 if theirs.top == 1 else SLACK[torch.float32])


def test_load_model_is_ready_to_compute(reference):
    model = rdn_fast.load_model(str(reference), torch.device("cpu"))
    assert not model.training
    assert model.sfe2.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert_equal(model.state_dict(), torch.load(reference))


def test_what_is_read_is_apart_from_its_file(tmp_path):
    path, state = tmp_path / "w.safetensors", others.Reference(2).state_dict()
    as_safetensors(path, state)
    weights = read_weights(path)
    with path.open("r+b") as file:  # in place: what is mapped would change with it
        file.write(b"\xff" * path.stat().st_size)
    assert_equal(weights.state, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_read_as_float32(tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in others.Reference(2).state_dict().items()}
    assert_equal(
        read_weights(saved(tmp_path / "w.pth", state)).state, {key: value.float() for key, value in state.items()}
    )


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin", "weights"])
def test_the_content_decides_not_the_name(tmp_path, name):
    state = others.Reference(3).state_dict()
    for save in (saved, lambda path, state: saved(path, state, _use_new_zipfile_serialization=False), as_safetensors):
        save(tmp_path / name, state)
        assert_equal(read_weights(tmp_path / name).state, state)


@pytest.mark.parametrize("start", [b"\x1f\x8b", b'{"', b"\x08\x07\x12"], ids=["gzip", "JSON", "ONNX"])
def test_a_safetensors_header_of_any_length_is_no_other_file(tmp_path, start):
    """The file begins with its header's length: bytes with which other kinds of files begin."""
    state, path = others.Reference(2).state_dict(), tmp_path / "w.safetensors"
    as_safetensors(path, state)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].ljust(int.from_bytes(start, "little"))
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    assert path.read_bytes().startswith(start)
    assert_equal(read_weights(path).state, state)


def test_parameters_and_channels_last_tensors_are_read_as_plain_ones(tmp_path):
    state = dict(others.Reference(2).to(memory_format=torch.channels_last).named_parameters())
    for key, value in read_weights(saved(tmp_path / "w.pth", state)).state.items():
        assert type(value) is torch.Tensor
        assert value.is_contiguous()
        assert torch.equal(value, state[key])


def test_the_value_range_of_our_files_is_what_they_say(tmp_path):
    """EDSR-PyTorch can train on RGB in 0..1, and a file of ours could hold the reference's names for 0..255."""
    edsr, ours = others.Edsr(2).state_dict(), others.Reference(2).state_dict()
    as_safetensors(tmp_path / "a", edsr, {"value_range": "0..1"})
    assert torch.equal(read_weights(tmp_path / "a").state["sfe1.bias"], edsr["SFENet1.bias"])
    as_safetensors(tmp_path / "b", ours, {"value_range": "0..255"})
    state = read_weights(tmp_path / "b").state
    assert torch.equal(state["sfe1.bias"], ours["sfe1.bias"] / 255)
    assert torch.equal(state["sfe1.weight"], ours["sfe1.weight"])


def test_training_starts_from_any_layout(prepared, tmp_path):
    file = saved(tmp_path / "edsr.pt", others.Edsr(2).state_dict())
    run = TrainConfig(train_file=str(prepared.train), patch_size=8, weights_file=str(file))
    assert_equal(open_inputs(ModelConfig(2, G0, G, D, C, G), run).weights, read_weights(file).state)
    shapes = r"gff\.0\.weight is \[6, 18, 1, 1\], not \[6, 24, 1, 1\]"
    with pytest.raises(UserError, match=rf"edsr\.pt does not fit this model \(RDN x2 D4 C2 G4 G0 6\): .*{shapes}"):
        open_inputs(ModelConfig(2, G0, G, 4, C), run)
