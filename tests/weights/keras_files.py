"""idealo's RDN in Keras, computed by torch, and the files that Keras 2 and TensorFlow.js's converter write of it."""

import json

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from other_projects import G0, C, D, G, conv
from torch import nn


class Idealo(nn.Module):
    """The RDN of idealo's image-super-resolution on [B, 3, H, W] in 0..1.

    shuffle: before the last convolution, rearrange the channels as depth_to_space does. Else repeat the pixels.
    """

    top = 1

    def __init__(self, scale, shuffle=False, g0=G0, g=G, d=D, c=C):
        super().__init__()
        self.scale, self.shuffle, self.d, self.c = scale, shuffle, d, c
        self.named = nn.ModuleDict({"F_m1": conv(3, g0), "F_0": conv(g0, g0)})
        for i in range(1, d + 1):
            for j in range(1, c + 1):
                self.named[f"F_{i}_{j}"] = conv(g0 + (j - 1) * g, g)
            self.named[f"LFF_{i}"] = conv(g0 + c * g, g0, 1)
        outputs = 3 * scale**2
        last = {"UPN1": conv(g0, 64, 5), "UPN2": conv(64, 32), "UPN3": conv(32, outputs)}
        self.named.update({"GFF_1": conv(g0 * d, g0, 1), "GFF_2": conv(g0, g0), **last})
        self.named["SR"] = conv(3 if shuffle else outputs, 3)

    def forward(self, x):
        layer = self.named
        first = layer["F_m1"](x)
        block_input, local = layer["F_0"](first), []
        for i in range(1, self.d + 1):
            y = block_input
            for j in range(1, self.c + 1):
                y = torch.cat([y, layer[f"F_{i}_{j}"](y).relu()], 1)
            block_input = layer[f"LFF_{i}"](y) + block_input
            local.append(block_input)
        y = layer["GFF_2"](layer["GFF_1"](torch.cat(local, 1))) + first
        y = layer["UPN3"](layer["UPN2"](layer["UPN1"](y).relu()).relu())
        y = self._depth_to_space(y) if self.shuffle else F.interpolate(y, scale_factor=self.scale, mode="nearest")
        return layer["SR"](y)

    def _depth_to_space(self, y):
        """Channel (i*s + j)*3 + k becomes channel k at place (i, j) of a square of s x s pixels."""
        s, (batch, _, height, width) = self.scale, y.shape
        y = y.view(batch, s, s, 3, height, width).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(batch, 3, s * height, s * width)


def arrays(model: Idealo) -> dict[str, dict[str, np.ndarray]]:
    """Return {layer: {"kernel": [kh, kw, in, out], "bias": [out]}} in the order of Keras's layers."""
    return {
        name: {
            "kernel": layer.weight.detach().permute(2, 3, 1, 0).contiguous().numpy(),
            "bias": layer.bias.detach().numpy(),
        }
        for name, layer in model.named.items()
    }


def save_hdf5(path, model: Idealo, whole: bool = False):
    """Write what Keras 2 does: save_weights(), or save() with the model's description beside."""
    with h5py.File(path, "w") as file:
        root = file
        if whole:
            file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": {"name": "generator"}})
            root = file.create_group("model_weights")
        layers = arrays(model)
        root.attrs["layer_names"] = [b"LR", *(name.encode() for name in layers), b"FDF"]
        root.attrs["backend"] = b"tensorflow"
        for name in ("LR", "FDF"):
            root.create_group(name).attrs["weight_names"] = np.array([])
        for name, parameters in layers.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{kind}:0".encode() for kind in parameters]
            for kind, array in parameters.items():
                group[f"{name}/{kind}:0"] = array
    return path


def save_tfjs(folder, model: Idealo, quantized: str | None = None, shards: int = 1):
    """Write model.json and its shards into the folder, as TensorFlow.js's converter does. Returns the folder."""
    folder.mkdir()
    weights, stored = [], b""
    for name, parameters in arrays(model).items():
        for kind, array in parameters.items():
            weight, kept = {"name": f"{name}/{kind}", "shape": list(array.shape), "dtype": "float32"}, array
            if quantized == "float16":
                weight["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
                kept = array.astype("<f2")
            elif quantized:
                steps = np.iinfo(quantized).max
                low, scale = float(array.min()), float(array.max() - array.min()) / steps
                weight["quantization"] = {"dtype": quantized, "min": low, "scale": scale, "original_dtype": "float32"}
                kept = np.rint((array - low) / scale).astype(quantized)
            weights.append(weight)
            stored += kept.tobytes()
    paths = [f"group1-shard{i + 1}of{shards}.bin" for i in range(shards)]
    length = -(-len(stored) // shards)
    for i, name in enumerate(paths):
        (folder / name).write_bytes(stored[i * length : (i + 1) * length])
    manifest = [{"paths": paths, "weights": weights}]
    content = {"format": "layers-model", "modelTopology": {"class_name": "Model"}, "weightsManifest": manifest}
    (folder / "model.json").write_text(json.dumps(content))
    return folder
