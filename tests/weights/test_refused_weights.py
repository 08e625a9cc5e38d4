"""Files that are no weights of an RDN: refused in one line, and no code of theirs is run."""

import pickle
import zipfile

import numpy as np
import other_projects as others
import pytest
import safetensors.torch
import torch
from weight_files import saved, torch_saved

from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.weights.convert import load_model, read_weights

D, C, G, G0 = others.D, others.C, others.G, others.G0


class _Opens:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def _pickled(value, protocol=2) -> bytes:
    return pickle.dumps(value, protocol)


@pytest.mark.parametrize(
    "write",
    [torch_saved, lambda value: torch_saved(value, _use_new_zipfile_serialization=False), _pickled],
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


def changed(**tensors):
    return others.Reference(2).state_dict() | {key.replace("_", "."): value for key, value in tensors.items()}


def edsr_itself():
    """Part of the state dict of EDSR-PyTorch's EDSR."""
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
    "empty": (lambda: b"", "is empty; download or copy it again"),
    "h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(500), "damaged, or not a file of plain tensors"),
    "JSON": (lambda: b'{"a": {"b": {"c": 1}}}', "a JSON file, but no whole model.json of TensorFlow.js"),
    "safetensors' header alone": (
        lambda: (40).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9999],"data',
        "damaged",
    ),
    "truncated zip": (lambda: torch_saved(others.Reference(2).state_dict())[:-700], "damaged"),
    "truncated safetensors": (lambda: safetensors.torch.save(others.Reference(2).state_dict())[:-1], "damaged"),
    "truncated legacy": (
        lambda: torch_saved(others.Reference(2).state_dict(), _use_new_zipfile_serialization=False)[:-700],
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
        "no weights of an RDN (sfe1.weight is missing or no convolution's); "
        "the file's keys begin with sub_mean.weight, head.0.weight",
    ),
    "ESRGAN": (esrgan, "no weights of an RDN (sfe1.weight is missing"),
    "SRResNet": (lornatang_srresnet, "no weights of an RDN (sfe1.weight is missing"),
    "x5": (lambda: changed(upscale_0_weight=torch.rand(150, 6, 3, 3)), "these weights describe no RDN (--scale 5"),
    "grey": (lambda: changed(sfe1_weight=torch.rand(6, 1, 3, 3)), "sfe1.weight is [6, 1, 3, 3], not [6, 3, 3, 3]"),
    "incomplete": (lambda: without(others.Reference(2).state_dict(), "gff.1.bias"), "missing gff.1.bias"),
    "EDSR's, with mean shifts": (
        lambda: others.Edsr(2).state_dict() | edsr_itself(),
        ", edsr's names turned into the reference's, does not fit this model "
        "(RDN x2 D3 C2 G4 G0 6, 4 after up-sampling): unexpected body.0.body.0.weight",
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
    path.write_bytes(content if isinstance(content, bytes) else torch_saved(content))
    message = cli("convert", path, tmp_path / "out.pth").user_error()
    assert message.startswith(str(path))
    assert expected in message
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path / 'none.pth'}: no such file$"):
        load_model(tmp_path / "none.pth")


def test_an_empty_name_is_no_file(cli, tmp_path):
    for command in (["export", "-o", tmp_path / "m.onnx"], ["eval", "--eval-file", tmp_path]):
        assert "is a folder without model.json; name a file" in cli(*command, "-w", "").user_error()


def test_no_flipped_bit_in_a_zip_goes_unseen(tmp_path):
    path = saved(tmp_path / "w.pth", others.Reference(2).state_dict())
    content, rng = path.read_bytes(), np.random.default_rng(0)
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if "/data/" in entry.filename and entry.file_size > 60]
    for entry in rng.choice(np.array(entries, object), 20):
        at = content.index(entry.filename.encode()) + len(entry.filename)
        at += int.from_bytes(content[at - len(entry.filename) - 2 : at - len(entry.filename)], "little")
        flipped = bytearray(content)
        flipped[at + int(rng.integers(entry.file_size))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"damaged, the checksum of .* copy or download it again$"):
            read_weights(path)


def test_an_archive_that_unpacks_to_much_more_than_its_size(tmp_path):
    path = saved(tmp_path / "w.pth", {"sfe1.weight": torch.zeros(4_000_000)})
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry))
    with pytest.raises(UserError, match=r"refused, it unpacks to 16\.0 MB, more than weights of a file of its size"):
        read_weights(tmp_path / "bomb.pth")


def test_tensors_that_share_their_numbers(tmp_path):
    big = RDN(ModelConfig(2, 64, 64, 8, 4)).state_dict()
    path = saved(tmp_path / "w.pth", {key: torch.zeros(1).expand(value.shape) for key, value in big.items()})
    with pytest.raises(UserError, match="its tensors share numbers"):
        read_weights(path)
