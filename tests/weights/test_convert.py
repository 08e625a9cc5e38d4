"""Weights of other projects: their own forward pass against ours, round trips, what files say, and those that are none."""

import io
import pickle
import tempfile
from pathlib import Path

import other_projects as others
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import rdn_fast
from bench.parity import FLOAT64, SLACK, relative_error
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.training.inputs import open_inputs
from rdn_fast.weights import convert as converting
from rdn_fast.weights.convert import load_model, read_weights

D, C, G, G0 = others.D, others.C, others.G, others.G0


@pytest.fixture(autouse=True)
def _same_weights_in_every_run():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        yield


@pytest.fixture
def convert(cli):
    """convert(source, target, *flags): run the command, which must succeed; its one line."""

    def run(*arguments):
        ended = cli("convert", *arguments)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.count("\n") == 1
        return ended.out

    return run


@pytest.fixture
def reference(tmp_path):
    """A file of the reference's: x2."""
    return saved(tmp_path / "reference.pth", others.Reference(2).state_dict())


def saved(path, value, **options):
    torch.save(value, path, **options)
    return path


def assert_equal(state, expected):
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == value.dtype, key
        assert torch.equal(state[key], value), key


def as_safetensors(path, state, metadata=None):
    safetensors.torch.save_file(state, path, metadata)


def of_our_checkpoint(average):
    def write(path, model):
        state = {"model": others.Reference(model.scale).state_dict(), "average": None, "optimizer": {}, "step": 7}
        saved(path, state | {"average" if average else "model": model.state_dict()})

    return write


# Layout of ours, then how a file is made of a model; what read_weights() calls it.
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


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("project", LAYOUTS)
def test_a_model_computes_what_its_project_computes(tmp_path, project, scale):
    build, save, layout = LAYOUTS[project]
    theirs = build(scale)
    theirs.scale = scale
    save(tmp_path / "weights.bin", theirs)
    weights = read_weights(tmp_path / "weights.bin")
    tail = G if project in ("EDSR-PyTorch", "BasicSR, averaged EDSR", "safetensors of EDSR", "Lightning, net") else None
    assert (weights.config, weights.layout) == (ModelConfig(scale, G0, G, D, C, tail), layout)
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


def test_load_model_without_a_file_takes_the_one_that_comes_with_the_package(reference, monkeypatch):
    monkeypatch.setattr(converting, "SHIPPED", reference)
    assert_equal(load_model(device="cpu").state_dict(), torch.load(reference))


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


def test_parameters_and_channels_last_tensors_are_read_as_plain_ones(tmp_path):
    state = dict(others.Reference(2).to(memory_format=torch.channels_last).named_parameters())
    for key, value in read_weights(saved(tmp_path / "w.pth", state)).state.items():
        assert type(value) is torch.Tensor
        assert value.is_contiguous()
        assert torch.equal(value, state[key])


# Round trips


def through(folder: Path, source: Path, *targets: tuple[str, str]) -> Path:
    """Convert to each (file name, layout) in turn; the last file."""
    for name, layout in targets:
        converting.convert(str(source), str(folder / name), layout, metadata=[])
        source = folder / name
    return source


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.sampled_from([2, 3, 4]), *[st.integers(1, 5)] * 4, st.none() | st.integers(1, 5)),
    seed=st.integers(0, 2**32),
    magnitude=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
)
def test_every_round_trip_is_exact_to_the_last_bit(shape, seed, magnitude):
    config = ModelConfig(*shape)
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: torch.randn(value.shape, generator=generator) * magnitude
        for key, value in RDN(config).state_dict().items()
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = saved(folder / "first.pth", state)
        for way in (
            [("a.safetensors", "reference"), ("b.pth", "reference")],
            [("a.pt", "edsr"), ("b.pth", "reference")],
            [
                ("a.safetensors", "edsr"),
                ("b.pt", "edsr"),
                ("c.safetensors", "reference"),
                ("d.pth", "edsr"),
                ("e.pth", "reference"),
            ],
        ):
            last = through(folder, first, *way)
            assert_equal(torch.load(last, weights_only=True), state)
            if shape[-1] != shape[1]:
                assert read_weights(last).config == config


def test_biases_that_float32_cannot_multiply_by_255_come_back_too(tmp_path):
    values = torch.rand(20_000)
    lost = values[values * 255 / 255 != values]
    assert len(lost) >= G0
    state = others.Reference(2).state_dict() | {"sfe1.bias": lost[:G0]}
    last = through(tmp_path, saved(tmp_path / "a.pth", state), ("b.pth", "edsr"), ("c.pth", "reference"))
    assert_equal(torch.load(last, weights_only=True), state)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_loads_what_is_written_for_it(tmp_path, scale):
    source = saved(tmp_path / "a.pth", others.Reference(scale).state_dict())
    theirs = others.Edsr(scale, G0)
    theirs.load_state_dict(torch.load(through(tmp_path, source, ("edsr.pt", "edsr")), weights_only=True))
    x = torch.rand(1, 3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = load_model(source, "cpu").double()(x)
        assert relative_error(theirs.double()(x * 255) / 255, expected) <= SLACK[torch.float32]


def test_edsr_weights_stay_theirs(tmp_path):
    """From EDSR's to EDSR's nothing changes; by way of the reference's weights do not, and biases by one rounding."""
    theirs = others.Edsr(2).state_dict()
    source = saved(tmp_path / "a.pt", theirs)
    for way, error in (
        ([("b.safetensors", "edsr"), ("c.pt", "edsr")], 0),
        ([("b.safetensors", "reference"), ("c.pt", "edsr")], 2**-23),
    ):
        others.Edsr(2).load_state_dict(state := torch.load(through(tmp_path, source, *way), weights_only=True))
        for key, value in theirs.items():
            torch.testing.assert_close(state[key].float(), value, rtol=error if key.endswith("bias") else 0, atol=0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_reference_loads_what_is_written_for_it(tmp_path, scale):
    source = saved(tmp_path / "a.pth.tar", others.lornatang(others.Lornatang(scale), others.Lornatang(scale)))
    file = through(tmp_path, source, ("b.pth", "reference"))
    state_dict = (theirs := others.Reference(scale)).state_dict()
    for name, parameter in torch.load(file, map_location=lambda storage, _: storage).items():  # yjn870's own loop
        assert parameter.is_contiguous()
        assert parameter.dtype == torch.float32
        state_dict[name].copy_(parameter)
    x = torch.rand(1, 3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(load_model(source, "cpu").double()(x), theirs.double()(x)) <= FLOAT64


# What the command says and writes


def test_convert_says_what_was_read_and_written(convert, tmp_path):
    source, target = (
        saved(tmp_path / "model_best.pt", {"params_ema": others.Edsr(3).state_dict()}),
        tmp_path / "out.safetensors",
    )
    millions = sum(p.numel() for p in others.Edsr(3).parameters()) / 1e6
    line = convert(source, target)
    assert line.startswith(
        f"{source}: edsr (params_ema) layout, RDN x3 D3 C2 G4 G0 6, 4 after up-sampling, {millions:.2f} M parameters -> "
    )
    assert f"-> {target}: reference layout, RGB 0..1, float32, " in line


def test_safetensors_say_what_they_are(convert, reference, tmp_path):
    target = tmp_path / "w.safetensors"
    convert(reference, target)
    with safe_open(target, framework="pt") as file:
        assert file.metadata() == {
            "rdn_fast_format": "1",
            "architecture": "RDN x2 D3 C2 G4 G0 6",
            "scale": "2",
            "value_range": "0..1",
            "training_data": "not stated",
            "licence": "not stated",
        }
    assert read_weights(target).metadata["architecture"] == "RDN x2 D3 C2 G4 G0 6"


def test_metadata_go_along_and_can_be_added_to(convert, reference, tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert(reference, a, "--metadata", "licence=MIT", "training_data=DIV2K, its 800 images", "note=a=b", "scale=2")
    convert(a, b, "--layout", "edsr", "--metadata", "licence=CC0-1.0", "psnr=")
    expected = {
        "training_data": "DIV2K, its 800 images",
        "note": "a=b",
        "licence": "CC0-1.0",
        "psnr": "",
        "value_range": "0..255",
        "scale": "2",
    }
    assert read_weights(b).metadata.items() >= expected.items()
    assert read_weights(a).metadata["licence"] == "MIT"


def test_the_value_range_of_our_files_is_what_they_say(tmp_path):
    """EDSR-PyTorch can train on RGB in 0..1, and a file of ours could hold the reference's names for 0..255."""
    edsr, ours = others.Edsr(2).state_dict(), others.Reference(2).state_dict()
    as_safetensors(tmp_path / "a", edsr, {"value_range": "0..1"})
    assert torch.equal(read_weights(tmp_path / "a").state["sfe1.bias"], edsr["SFENet1.bias"])
    as_safetensors(tmp_path / "b", ours, {"value_range": "0..255"})
    state = read_weights(tmp_path / "b").state
    assert torch.equal(state["sfe1.bias"], ours["sfe1.bias"] / 255)
    assert torch.equal(state["sfe1.weight"], ours["sfe1.weight"])


@pytest.mark.parametrize("layout", ["reference", "edsr"])
@pytest.mark.parametrize("name", ["half.pth", "half.safetensors"])
def test_fp16_halves_the_file(convert, reference, tmp_path, name, layout):
    convert(reference, tmp_path / name, "--fp16", "--layout", layout)
    raw = (
        safetensors.torch.load_file(tmp_path / name)
        if name.endswith("safetensors")
        else torch.load(tmp_path / name, weights_only=True)
    )
    assert {value.dtype for value in raw.values()} == {torch.float16}
    half, full = read_weights(tmp_path / name).state, read_weights(reference).state
    for key, value in full.items():
        torch.testing.assert_close(half[key], value, rtol=2**-11 if layout == "reference" else 2**-10, atol=1e-7)


def test_fp16_refuses_what_it_cannot_hold(cli, tmp_path):
    source = saved(tmp_path / "w.pth", others.Reference(2).state_dict() | {"gff.1.bias": torch.full((G0,), 7e4)})
    message = cli("convert", source, tmp_path / "half.pth", "--fp16").user_error()
    assert message.startswith("--fp16: gff.1.bias ")
    assert not (tmp_path / "half.pth").exists()


def test_a_checkpoint_is_never_replaced_by_its_weights(cli, tmp_path):
    path = saved(tmp_path / "w.pth", others.ascend(others.Reference(2).state_dict()))
    before = path.read_bytes()
    (tmp_path / "link.pt").symlink_to(path)
    for target in (path, tmp_path / "link.pt", f"{tmp_path}/../{tmp_path.name}/w.pth"):
        assert cli("convert", path, target).user_error().startswith(f"{target}: is the file to read")
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [tmp_path / "link.pt", path]


BAD_USE = {
    "unknown ending": (["out.onnx"], "out.onnx: its name must end in .safetensors or .pth"),
    "no ending": (["out"], "its name must end in"),
    "no such folder": (["none/out.pth"], "none/out.pth: cannot be written (No such file or directory)"),
    "a file for a folder": (["reference.pth/out.pth"], "cannot be written (Not a directory)"),
    "a folder": (["folder.pth"], "folder.pth: cannot be written (Is a directory)"),
    "no =": (["out.safetensors", "--metadata", "MIT"], "--metadata MIT: give KEY=VALUE"),
    "no key": (["out.safetensors", "--metadata", "=MIT"], "--metadata =MIT: give KEY=VALUE"),
    "another scale": (["out.safetensors", "--metadata", "scale=3"], "--metadata scale=3: scale is 2"),
    "another range": (["out.safetensors", "--metadata", "value_range=0..255"], "value_range is 0..1"),
    "nowhere to put it": (["out.pth", "--metadata", "licence=MIT"], "--metadata licence=MIT: "),
    "unknown layout": (["out.pth", "--layout", "esrgan"], "--layout"),
}


@pytest.mark.parametrize("kind", BAD_USE)
def test_bad_use_is_one_line_and_writes_nothing(cli, reference, tmp_path, monkeypatch, kind):
    (tmp_path / "folder.pth").mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    arguments, expected = BAD_USE[kind]
    assert expected in cli("convert", "reference.pth", *arguments).user_error()
    assert sorted(tmp_path.rglob("*")) == before


# Files that are no weights of an RDN


class _Opens:
    """Unpickled in earnest, creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def _pickled(value, protocol=2) -> bytes:
    return pickle.dumps(value, protocol)


def _of_torch(value, **options) -> bytes:
    torch.save(value, file := io.BytesIO(), **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "write",
    [_of_torch, lambda value: _of_torch(value, _use_new_zipfile_serialization=False), _pickled],
    ids=["zip", "legacy", "pickle"],
)
@pytest.mark.parametrize("where", ["a tensor", "beside the weights"])
@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors"])
def test_pickles_that_need_code_are_refused_with_the_reason_and_not_run(cli, tmp_path, write, where, name):
    evil, path = _Opens(tmp_path / "created"), tmp_path / name
    path.write_bytes(
        write(
            {"sfe1.weight": evil} if where == "a tensor" else {"args": evil, "model": others.Reference(2).state_dict()}
        )
    )
    message = cli("convert", path, tmp_path / "out.pth").user_error()
    assert message.startswith(f"{path}: refused, it asks for io.open, which may run any code")
    assert list(tmp_path.iterdir()) == [path]


def test_a_whole_pickled_model_is_refused_by_the_name_of_its_class(tmp_path):
    with pytest.raises(UserError, match=r"asks for other_projects\.Reference, "):
        read_weights(saved(tmp_path / "model.pth", others.Reference(2)))


def test_a_namespace_is_the_only_class_let_in_and_only_while_reading(tmp_path):
    path = saved(tmp_path / "w.pth", others.ascend(others.Reference(2).state_dict()))
    read_weights(path)
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(path, weights_only=True)


def changed(**tensors):
    return others.Reference(2).state_dict() | {key.replace("_", "."): value for key, value in tensors.items()}


def edsr_itself():
    """EDSR of EDSR-PyTorch, in part."""
    return {
        "sub_mean.weight": torch.eye(3)[..., None, None],
        "head.0.weight": torch.rand(8, 3, 3, 3),
        "body.0.body.0.weight": torch.rand(8, 8, 3, 3),
    }


def esrgan():
    return {
        "conv_first.weight": torch.rand(8, 3, 3, 3),
        "body.0.rdb1.conv1.weight": torch.rand(4, 8, 3, 3),
        "conv_last.weight": torch.rand(3, 8, 3, 3),
    }


def lornatang_srresnet():
    return {"conv1.0.weight": torch.rand(8, 3, 9, 9), "trunk.0.rcb.0.weight": torch.rand(8, 8, 3, 3)}


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


def endless():
    checkpoint = {}
    checkpoint["model"] = checkpoint
    return checkpoint


NO_RDN = {
    "text": (lambda: b"epoch,psnr\n1,33.7\n", "damaged, or not a file of plain tensors"),
    "empty": (lambda: b"", "damaged, or not a file of plain tensors"),
    "h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(500), "damaged, or not a file of plain tensors"),
    "JSON": (lambda: b'{"a": {"b": {"c": 1}}}', "damaged, or not a file of plain tensors"),
    "safetensors' header alone": (
        lambda: (40).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9999],"data',
        "damaged",
    ),
    "truncated zip": (lambda: _of_torch(others.Reference(2).state_dict())[:-700], "damaged"),
    "truncated safetensors": (lambda: safetensors.torch.save(others.Reference(2).state_dict())[:-1], "damaged"),
    "truncated legacy": (
        lambda: _of_torch(others.Reference(2).state_dict(), _use_new_zipfile_serialization=False)[:-700],
        "damaged",
    ),
    "pickle of protocol 4": (lambda: _pickled({"a": 1}, 4), "damaged, or not a file of plain tensors"),
    "list": (lambda: [torch.zeros(3)], "holds no state dict of plain tensors"),
    "tensor": (lambda: torch.zeros(3), "holds no state dict of plain tensors"),
    "nothing": (dict, "holds no state dict of plain tensors"),
    "no weights": (lambda: {"epoch": 3, "psnr": 31.2}, "holds no state dict of plain tensors"),
    "numbers for keys": (lambda: {0: torch.zeros(3)}, "holds no state dict of plain tensors"),
    "a name of two lines": (lambda: changed() | {"a\nb": torch.zeros(3)}, "holds no state dict of plain tensors"),
    "endless": (endless, "holds no state dict of plain tensors"),
    "sparse": (
        lambda: changed(sfe1_weight=torch.zeros(6, 3, 3, 3).to_sparse()),
        "holds no state dict of plain tensors",
    ),
    "without numbers": (
        lambda: changed(sfe1_weight=torch.empty(6, 3, 3, 3, device="meta")),
        "holds no state dict of plain tensors",
    ),
    "EDSR": (
        edsr_itself,
        "no weights of an RDN (sfe1.weight is missing or no convolution's); the file's keys begin with sub_mean.weight, head.0.weight",
    ),
    "ESRGAN": (esrgan, "no weights of an RDN (sfe1.weight is missing"),
    "SRResNet": (lornatang_srresnet, "no weights of an RDN (sfe1.weight is missing"),
    "x8": (
        lambda: others.Lornatang(8).state_dict(),
        "unexpected upsampling.2.upsample_block.0.bias; unexpected upsampling.2.upsample_block.0.weight",
    ),
    "grey": (lambda: changed(sfe1_weight=torch.rand(6, 1, 3, 3)), "sfe1.weight is [6, 1, 3, 3], not [6, 3, 3, 3]"),
    "incomplete": (lambda: without(others.Reference(2).state_dict(), "gff.1.bias"), "missing gff.1.bias"),
    "EDSR's, with mean shifts": (
        lambda: others.Edsr(2).state_dict() | edsr_itself(),
        ", edsr's names turned into the reference's, does not fit this model (RDN x2 D3 C2 G4 G0 6, 4 after up-sampling): unexpected body.0.body.0.weight",
    ),
    "twice": (
        lambda: others.Reference(2).state_dict() | others.wrapped(others.Reference(2).state_dict(), "module."),
        "same parameter under two names",
    ),
    "twice, EDSR's": (
        lambda: others.Edsr(2).state_dict() | {"sfe1.bias": torch.zeros(6)},
        "same parameter under two names",
    ),
    "quantized": (lambda: changed(sfe2_bias=torch.zeros(6, dtype=torch.int8)), "sfe2.bias holds torch.int8 numbers"),
    "NaN": (lambda: changed(sfe2_bias=torch.full((6,), torch.nan)), "sfe2.bias holds values that are not finite"),
    "too large": (
        lambda: changed(sfe2_weight=torch.full((6, 6, 3, 3), 1e300, dtype=torch.float64)),
        "sfe2.weight holds values that are not finite",
    ),
    "later format": (
        lambda: safetensors.torch.save(others.Reference(2).state_dict(), {"rdn_fast_format": "2"}),
        "is of a later rdn_fast (format 2)",
    ),
    "unknown range": (
        lambda: safetensors.torch.save(others.Reference(2).state_dict(), {"value_range": "-1..1"}),
        "its value_range is -1..1",
    ),
}


@pytest.mark.parametrize("kind", NO_RDN)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_no_rdn_is_one_line(cli, tmp_path, kind, name):
    make, expected = NO_RDN[kind]
    content = make()
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else _of_torch(content))
    message = cli("convert", path, tmp_path / "out.pth").user_error()
    assert message.startswith(str(path))
    assert expected in message
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError, match=f"^{path}: no such file$"):
            load_model(path)


def test_an_empty_name_is_no_file(cli, tmp_path):
    for command in (["export", "-o", tmp_path / "m.onnx"], ["eval", "--eval-file", tmp_path]):
        assert cli(*command, "-w", "").user_error().endswith(": no such file")


# Fine-tuning


def test_training_starts_from_any_layout(prepared, tmp_path):
    file = saved(tmp_path / "edsr.pt", others.Edsr(2).state_dict())
    run = TrainConfig(train_file=str(prepared.train), patch_size=8, weights_file=str(file))
    assert_equal(open_inputs(ModelConfig(2, G0, G, D, C, G), run).weights, read_weights(file).state)
    with pytest.raises(
        UserError,
        match=r"edsr\.pt does not fit this model \(RDN x2 D3 C2 G4 G0 6\): .*output\.weight is \[3, 4, 3, 3\], not \[3, 6, 3, 3\]",
    ):
        open_inputs(ModelConfig(2, G0, G, D, C), run)
