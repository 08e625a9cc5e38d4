"""yulunzhang's weights: Torch7's files, against the network out of Torch7's containers."""

import other_projects as others
import pytest
import torch
from torch import nn
from torch7_files import Sequential, Writer, Yulunzhang, convolution, save
from weight_files import assert_equal

from bench.parity import SLACK, relative_error
from rdn_fast.config import ModelConfig
from rdn_fast.weights import torch7
from rdn_fast.weights.convert import load_model, read_weights


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_model_computes_what_yulunzhangs_does(tmp_path, scale, shifted):
    theirs = Yulunzhang(scale, shifted)
    path = save(tmp_path / "RDN.t7", theirs)
    weights = read_weights(path)
    config = ModelConfig(scale, others.G0, others.G, others.D, others.C, mean_shift=shifted)
    assert (weights.config, weights.layout) == (config, "torch7")
    x = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        ours, expected = load_model(path, "cpu").double()(x), theirs.double()(x * 255) / 255
    assert relative_error(ours, expected) <= SLACK[torch.float32]


def test_one_block(tmp_path):
    assert read_weights(save(tmp_path / "RDN.t7", Yulunzhang(2, d=1, c=1))).config.num_blocks == 1


@pytest.mark.parametrize(("tensors", "error"), [("Float", 0), ("Double", 2**-23), ("CudaHalf", 2**-11)])
def test_other_tensors(tmp_path, tensors, error):
    theirs = Yulunzhang(2)
    expected = read_weights(save(tmp_path / "a.t7", theirs)).state
    for key, value in read_weights(save(tmp_path / "b.t7", theirs, tensors)).state.items():
        torch.testing.assert_close(value, expected[key], rtol=error, atol=error / 100)


def test_older_files_keep_a_convolution_as_a_matrix_and_may_lack_a_bias(tmp_path, monkeypatch):
    theirs = Yulunzhang(2)
    expected = read_weights(save(tmp_path / "a.t7", theirs)).state

    def older(layer):
        fields = convolution(layer)
        first = layer.in_channels == 3 and layer.kernel_size == (3, 3)
        return fields | {"weight": layer.weight.flatten(1), "bias": None if first else layer.bias}

    monkeypatch.setattr("torch7_files.convolution", older)
    read = read_weights(save(tmp_path / "b.t7", theirs)).state
    assert_equal(read, expected | {"sfe1.bias": torch.zeros(others.G0)})


def test_convert_keeps_the_mean_colour(cli, tmp_path):
    path = save(tmp_path / "RDN.t7", Yulunzhang(2))
    said = cli("convert", path, tmp_path / "w.safetensors").out
    assert "torch7 layout, RDN x2 D3 C2 G4 G0 6, mean colour subtracted, " in said
    assert_equal(read_weights(tmp_path / "w.safetensors").state, read_weights(path).state)
    assert "EDSR-PyTorch builds no" in cli("convert", path, tmp_path / "w.pth", "--layout", "edsr").user_error()


def test_training_goes_on_and_keeps_the_mean_colour(cli, prepared, tmp_path):
    start = read_weights(save(tmp_path / "RDN.t7", Yulunzhang(2)))
    flags = ("--weights-file", tmp_path / "RDN.t7", "--train-file", prepared.train, "--outputs-dir", tmp_path / "out")
    recipe = ("--patch-size", 8, "--batch-size", 4, "--max-steps", 3, "--lr", "1e-3", "--opt-level", "O0")
    assert cli("train", *flags, *recipe, "--rdb", "naive", "--ema", "0.5").code == 0
    trained = read_weights(tmp_path / "out" / "last.pth")
    assert trained.config == start.config
    for key, value in trained.state.items():
        change = (value - start.state[key]).abs().max()
        assert change == 0 if key == "mean" else 0 < change < 0.01, key


def _function(content: bytes) -> bytes:
    """Return the content of a table that holds a Lua function, then the network."""
    writer = Writer()
    writer.int(8)
    writer.number()
    writer.string("\x1bLua")
    writer.object({"name": "_ENV"})
    return writer.content + content


def test_functions_are_passed_over():
    writer = Writer()
    writer.object(torch.arange(6.0).reshape(2, 3))
    reader = torch7._Reader(_function(b"") + writer.content)
    assert reader.read() is None
    reader.known.clear()
    assert reader.read().tolist() == [[0, 1, 2], [3, 4, 5]]


def _without_skips():
    made = Yulunzhang(2, shifted=False)
    made.net[1] = made.net[1][0][0]  # the body alone
    return made


def _with(layer):
    made = Yulunzhang(2, shifted=False)
    made.net.append(layer)
    return made


class MulConstant(nn.Module):
    pass


def _saved(model):
    writer = Writer()
    writer.object(model.net)
    return writer.content


def _endless():
    writer = Writer()
    writer.torch_class("nn.Sequential")
    return writer.content + b"\3\0\0\0\2\0\0\0" * 10_000


BAD = {
    "a name of two lines": (lambda: _saved(Yulunzhang(2)).replace(b"nn.Sequential", b"nn.Sequent\nal"), "damaged"),
    "without its skips": (lambda: _saved(_without_skips()), "a network of Torch7, but no RDN"),
    "of another layer": (lambda: _saved(_with(MulConstant())), "holds MulConstant of Torch7, which an RDN has not"),
    "one convolution more": (lambda: _saved(_with(nn.Conv2d(3, 3, 3))), "a network of Torch7, but no RDN"),
    "nothing in it": (lambda: _saved(type("Net", (), {"net": Sequential()})), "a network of Torch7, but no RDN"),
    "cut off": (lambda: _saved(Yulunzhang(2))[:-1000], "damaged"),
    "a long string": (lambda: _saved(Yulunzhang(2))[:8] + b"\xff\xff\xff\x7fV 1", "damaged"),
    "numbers without end": (_endless, "damaged"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_rdn_is_one_line(cli, tmp_path, kind):
    make, expected = BAD[kind]
    (tmp_path / "w.t7").write_bytes(make())
    message = cli("convert", tmp_path / "w.t7", tmp_path / "out.pth").user_error()
    assert message.startswith(f"{tmp_path / 'w.t7'}: ")
    assert expected in message


def test_a_tensor_outside_its_storage_is_refused():
    writer = Writer()
    writer.object(torch.zeros(2, 3))
    content = bytearray(writer.content)
    at = content.index(struct_of(2, 3))
    content[at : at + 8] = (10**6).to_bytes(8, "little")
    with pytest.raises(ValueError, match="outside its storage"):
        torch7._Reader(bytes(content)).read()


def struct_of(*longs: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in longs)
