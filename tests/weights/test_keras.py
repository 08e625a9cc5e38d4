"""idealo's weights: Keras's HDF5 files and TensorFlow.js's folders, against the model computed as idealo writes it."""

import json

import h5py
import numpy as np
import other_projects as others
import pytest
import torch
from keras_files import Idealo, save_hdf5, save_tfjs
from weight_files import assert_equal

from bench.parity import SLACK, relative_error
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.weights.convert import load_model, read_weights

WAYS = {
    "weights": save_hdf5,
    "a whole model": lambda path, model: save_hdf5(path, model, whole=True),
    "TensorFlow.js": save_tfjs,
    "TensorFlow.js, in three shards": lambda path, model: save_tfjs(path, model, shards=3),
}


@pytest.mark.parametrize("shuffle", [False, True], ids=["repeated pixels", "depth_to_space"])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_computes_what_idealos_does(tmp_path, way, scale, shuffle):
    theirs = Idealo(scale, shuffle)
    path = tmp_path / "rdn"
    WAYS[way](path, theirs)
    weights = read_weights(path)
    config = ModelConfig(scale, others.G0, others.G, others.D, others.C, tail="espcn")
    assert (weights.config, weights.layout) == (config, "idealo")
    x = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        ours, expected = load_model(path, "cpu").double()(x), theirs.double()(x)
    assert ours.shape == expected.shape == (2, 3, 5 * scale, 4 * scale)
    assert relative_error(ours, expected) <= SLACK[torch.float32]


@pytest.mark.parametrize(("quantized", "steps"), [("uint8", 255), ("uint16", 65_535), ("float16", 2**10)])
def test_quantized_weights_are_within_half_a_step(tmp_path, quantized, steps):
    theirs = Idealo(2)
    exact = read_weights(save_hdf5(tmp_path / "w.hdf5", theirs)).state
    read = read_weights(save_tfjs(tmp_path / "web", theirs, quantized)).state
    for key, value in exact.items():
        if key.startswith("output."):
            continue  # sums of quantized numbers
        step = (value.max() - value.min()) / steps if quantized != "float16" else value.abs().max() / steps
        assert 0 < (read[key] - value).abs().max() <= 0.51 * step, key


def test_model_json_can_be_named_itself(tmp_path):
    folder = save_tfjs(tmp_path / "web", Idealo(2))
    assert_equal(read_weights(folder / "model.json").state, read_weights(folder).state)


def test_convert_and_export_take_them(cli, tmp_path):
    save_hdf5(tmp_path / "rdn.hdf5", Idealo(3))
    said = cli("convert", tmp_path / "rdn.hdf5", tmp_path / "rdn.safetensors").out
    assert "idealo layout, RDN x3 D3 C2 G4 G0 6, tail espcn, " in said
    assert_equal(read_weights(tmp_path / "rdn.safetensors").state, read_weights(tmp_path / "rdn.hdf5").state)
    message = cli("convert", tmp_path / "rdn.hdf5", tmp_path / "rdn.pth", "--layout", "edsr").user_error()
    assert message.startswith("--layout edsr: EDSR-PyTorch builds no RDN x3 D3 C2 G4 G0 6, tail espcn")


def test_eval_tells_which_weights_it_took(cli, tmp_path, prepared):
    folder = save_tfjs(tmp_path / "web", Idealo(2), shards=2)

    def told() -> dict:
        assert cli("eval", "-w", folder, "--eval-file", prepared.eval, "--json", tmp_path / "r.json").code == 0
        return json.loads((tmp_path / "r.json").read_text())

    before = told()
    assert before["config"]["tail"] == "espcn"
    shard = folder / "group1-shard2of2.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert told()["weights_sha256"] != before["weights_sha256"]


def test_training_goes_on_with_their_tail(cli, prepared, tmp_path):
    start = read_weights(save_hdf5(tmp_path / "rdn.hdf5", Idealo(2)))
    flags = ("--weights-file", tmp_path / "rdn.hdf5", "--train-file", prepared.train, "--outputs-dir", tmp_path / "out")
    recipe = ("--patch-size", 8, "--batch-size", 4, "--max-steps", 3, "--lr", "1e-3", "--opt-level", "O0")
    assert cli("train", *flags, *recipe, "--rdb", "naive").code == 0
    trained = read_weights(tmp_path / "out" / "last.pth")
    assert (trained.config, trained.layout) == (start.config, "reference")
    for key, value in trained.state.items():
        assert 0 < (value - start.state[key]).abs().max() < 0.01, key


# ---- files that are not quite that ----


def _without_names(folder):
    with h5py.File(folder / "w", "w") as file:
        file["dense"] = np.zeros(3)


def _pictures(folder):
    with h5py.File(folder / "w", "w") as file:
        file["lr/0"] = file["hr/0"] = np.zeros((4, 4, 3), np.uint8)


def _another_network(folder):
    model = Idealo(2)
    model.named = torch.nn.ModuleDict({"F_m1": model.named["F_m1"], "F_1_1_1": model.named["F_1_1"]})
    save_hdf5(folder / "w", model)


def _without_numbers(folder):
    save_hdf5(folder / "w", Idealo(2))
    with h5py.File(folder / "w", "r+") as file:
        del file["F_0/F_0/kernel:0"]
        file["F_0"].create_dataset("F_0/kernel:0", (100_000, 100_000, 10, 10), np.float32)  # 4 TB, none of it stored


def _cut_off(folder):
    save_hdf5(folder / "w", Idealo(2))
    content = (folder / "w").read_bytes()
    (folder / "w").write_bytes(content[: len(content) // 2])


def _tfjs(change):
    def make(folder):
        save_tfjs(folder / "w", Idealo(2))
        content = json.loads((folder / "w" / "model.json").read_text())
        change(folder / "w", content["weightsManifest"][0])
        (folder / "w" / "model.json").write_text(json.dumps(content))

    return make


BAD = {
    "no Keras": (_without_names, "an HDF5 file without Keras's layer_names"),
    "a training file": (_pictures, "is a file of pictures (`rdn-fast prepare`)"),
    "another network": (_another_network, "no weights of an RDN (rdbs.0.layers.0.conv.weight is missing"),
    "terabytes": (_without_numbers, "F_0/kernel:0 has fewer bytes than its shape needs"),
    "cut off": (_cut_off, "damaged"),
    "a folder": (lambda folder: (folder / "w").mkdir(), "is a folder without model.json"),
    "another JSON": (lambda folder: (folder / "w").write_text('{"epoch": 3}'), "no whole model.json of TensorFlow.js"),
    "a shard is missing": (
        _tfjs(lambda folder, _: (folder / "group1-shard1of1.bin").unlink()),
        "its shard group1-shard1of1.bin: no such file; copy it there",
    ),
    "a shard is cut off": (
        _tfjs(lambda folder, _: (folder / "group1-shard1of1.bin").write_bytes(bytes(100))),
        "its shards end before F_m1/kernel",
    ),
    "a shard is too long": (
        _tfjs(lambda folder, manifest: manifest["weights"].pop()),
        "its shards hold more than its manifest tells",
    ),
    "another folder": (
        _tfjs(lambda _, manifest: manifest.update(paths=["../../etc/passwd"])),
        "names ../../etc/passwd, outside its folder",
    ),
    "terabytes of JSON": (
        _tfjs(lambda _, manifest: manifest["weights"][0].update(shape=[10**6, 10**6])),
        "its shards end before F_m1/kernel",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_one_line(cli, tmp_path, kind):
    make, expected = BAD[kind]
    make(tmp_path)
    message = cli("convert", tmp_path / "w", tmp_path / "out.pth").user_error()
    assert message.startswith(str(tmp_path / "w"))
    assert expected in message
    with pytest.raises(UserError):
        read_weights(tmp_path / "w")
