"""`rdn-fast convert`: round trips to the last bit, what the command says and writes, and its mistakes."""

import json
import re
import tempfile
from pathlib import Path

import other_projects as others
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from weight_files import assert_equal, saved

from bench.parity import FLOAT64, SLACK, relative_error
from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.weights import convert as converting
from rdn_fast.weights.convert import load_model, read_weights

D, C, G, G0 = others.D, others.C, others.G, others.G0


@pytest.fixture
def convert(cli):
    """convert(source, target, *flags) runs the command, which must succeed; returns the line that it prints."""

    def run(*arguments):
        ended = cli("convert", *arguments)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.count("\n") == 1
        return ended.out

    return run


def through(folder: Path, source: Path, *targets: tuple[str, str]) -> Path:
    """Convert to each (file name, layout) in turn. Return the last file."""
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
    """From EDSR's layout to EDSR's nothing changes. By way of the reference's, biases change by one rounding."""
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


# ---- what the command says and writes ----


def test_convert_says_what_was_read_and_written(convert, tmp_path):
    source = saved(tmp_path / "model_best.pt", {"params_ema": others.Edsr(3).state_dict()})
    target = tmp_path / "out.safetensors"
    millions = sum(p.numel() for p in others.Edsr(3).parameters()) / 1e6
    line = convert(source, target)
    read_as = "edsr (params_ema) layout, RDN x3 D3 C2 G4 G0 6, 4 after up-sampling"
    assert line.startswith(f"{source}: {read_as}, {millions:.2f} M parameters -> ")
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


def test_the_same_weights_and_metadata_are_the_same_bytes(convert, reference, tmp_path):
    flags = ("--metadata", *(f"key{i}=ünï {i}" for i in range(9)))
    contents = set()
    for i in range(4):
        convert(reference, tmp_path / f"{i}.safetensors", *flags)
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
    (content,) = contents
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
    written = tmp_path / "0.safetensors"
    assert read_weights(written).metadata["key8"] == "ünï 8"
    assert_equal(safetensors.torch.load_file(written), torch.load(reference))


@pytest.mark.parametrize(
    ("flags", "numbers"),
    [
        ((), "float32"),
        (("--layout", "edsr"), "float32, biases float64"),
        (("--layout", "edsr", "--fp16"), "float16"),
    ],
)
def test_the_line_tells_which_numbers_are_written(convert, reference, tmp_path, flags, numbers):
    said = convert(reference, tmp_path / "w.pth", *flags)
    assert re.search(r", RGB 0\.\.\d+, (.*), \d+\.\d MB$", said.rstrip())[1] == numbers
    dtypes = {key.rpartition(".")[2]: value.dtype for key, value in torch.load(tmp_path / "w.pth").items()}
    said_of = {"weight": numbers.split(", ")[0], "bias": numbers.rpartition(" ")[2]}
    assert {kind: str(dtype) for kind, dtype in dtypes.items()} == {k: f"torch.{v}" for k, v in said_of.items()}


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
    "a folder": (["folder.pth"], "folder.pth: is a folder; give a file"),
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
