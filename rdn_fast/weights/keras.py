"""Read the convolutions of Keras models: HDF5 files, and folders of TensorFlow.js with model.json and its shards."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch

from rdn_fast.data.h5_open import open_h5
from rdn_fast.errors import UserError, why_no_file

_PARAMETERS = {"kernel": "weight", "bias": "bias"}
_DTYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint16": "<u2", "uint8": "u1"}


def read_hdf5(path: Path) -> dict[str, torch.Tensor]:
    """Return {"LAYER.weight": [out, in, kh, kw], "LAYER.bias": [out], ...} of a Keras HDF5 file, of weights or a model.

    Raises UserError for an HDF5 file that Keras 2 has not written. h5py raises for damaged files.
    """
    with open_h5(path) as file:
        if "lr" in file and "hr" in file:
            raise UserError(f"{path}: is a file of pictures (`rdn-fast prepare`); give weights")
        layers = file.get("model_weights", file)
        if "layer_names" not in layers.attrs:
            remedy = "where it comes from, call save_weights() of Keras 2 (tf_keras)"
            raise UserError(f"{path}: an HDF5 file without Keras's layer_names; {remedy}")
        arrays = {}
        for layer in layers.attrs["layer_names"]:
            group = layers[_text(layer)]
            for name in group.attrs["weight_names"]:
                dataset = group[_text(name)]
                if dataset.id.get_storage_size() < dataset.nbytes:  # else a small file could ask for all memory
                    raise UserError(f"{path}: {_text(name)} has fewer bytes than its shape needs; download it again")
                kind = _text(name).rpartition("/")[2].removesuffix(":0")
                arrays[f"{_text(layer)}/{kind}"] = dataset[()]
    return _as_torch(arrays)


def read_tfjs(model_json: Path) -> dict[str, torch.Tensor]:
    """Return the same of a layers model of TensorFlow.js. Quantized numbers become float32: number * scale + min.

    Raises UserError for another JSON file, and for shards that are missing or of another size than the manifest says.
    """
    arrays = {}
    for group in _manifest(model_json):
        stored = b"".join(_shard(model_json, name) for name in group["paths"])
        offset = 0
        for weight in group["weights"]:
            quantization = weight.get("quantization", {})
            dtype = np.dtype(_DTYPES[quantization.get("dtype", weight["dtype"])])
            count = math.prod(weight["shape"])
            if count < 0 or offset + count * dtype.itemsize > len(stored):
                raise UserError(f"{model_json}: its shards end before {_text(weight['name'])}; download them again")
            array = np.frombuffer(stored, dtype, count, offset).reshape(weight["shape"])
            offset += array.nbytes
            if "scale" in quantization:
                with np.errstate(all="ignore"):  # what is not finite is refused later
                    array = (array * np.float64(quantization["scale"]) + quantization["min"]).astype(np.float32)
            arrays[weight["name"]] = array
        if offset < len(stored):
            raise UserError(f"{model_json}: its shards hold more than its manifest tells; download both again")
    return _as_torch(arrays)


def shards(model_json: Path) -> list[Path]:
    """Return the files that hold the numbers of a model.json which read_tfjs() has read."""
    return [model_json.parent / name for group in _manifest(model_json) for name in group["paths"]]


def _manifest(model_json: Path) -> list[dict]:
    try:
        return json.loads(model_json.read_bytes())["weightsManifest"]
    except (ValueError, KeyError, TypeError, RecursionError):
        remedy = "download it again, or give weights"
        raise UserError(f"{model_json}: a JSON file, but no whole model.json of TensorFlow.js; {remedy}") from None


def _shard(model_json: Path, name: str) -> bytes:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{model_json}: names {_text(name)}, outside its folder; nothing is read")
    shard = model_json.parent / name
    if (flaw := why_no_file(shard)) is not None:
        raise UserError(f"{model_json}: its shard {_text(name)}: {flaw}; copy it there")
    return shard.read_bytes()


def _as_torch(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the state dict of arrays called LAYER/kernel, LAYER/bias and so on; a kernel is [kh, kw, in, out]."""
    state = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition("/")
        tensor = torch.from_numpy(np.array(array))
        if tensor.ndim == 4:
            tensor = tensor.permute(3, 2, 0, 1)
        state[f"{layer}.{_PARAMETERS.get(kind, kind)}"] = tensor
    return state


def _text(name: bytes | str) -> str:
    text = name.decode() if isinstance(name, bytes) else name
    if not text.isprintable():  # errors show names
        raise ValueError("a name that cannot be printed")
    return text
