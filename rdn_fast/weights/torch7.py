"""Read yulunzhang's RDN from Torch7's binary files. Lua functions in the file are passed over, nothing is run.

Everything is little-endian. An object is an int32 kind and its content; tables, Torch objects and functions have an
int32 number first, under which the object is meant when it comes again.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from rdn_fast.errors import UserError

PREFIX = "torch7."
_NIL, _NUMBER, _STRING, _TABLE, _TORCH, _BOOLEAN, _FUNCTIONS = 0, 1, 2, 3, 4, 5, (6, 7, 8)
_DTYPES = {"Byte": "u1", "Char": "i1", "Short": "<i2", "Int": "<i4", "Long": "<i8", "Float": "<f4", "Double": "<f8"}
_DTYPES |= {"Half": "<f2", "Cuda": "<f4", "CudaHalf": "<f2", "CudaDouble": "<f8", "CudaLong": "<i8"}
_DEEPEST = 500  # tables in tables
_KNOWN = {"Sequential", "ConcatTable", "CAddTable", "Concat", "Identity", "SpatialConvolution", "ReLU", "PixelShuffle"}


def looks_like(head: bytes) -> bool:
    """Return whether a file that begins so holds a Torch object."""
    return head[:4] == b"\4\0\0\0" and head[12:14] == b"V "


@dataclass
class _Object:
    """A Torch object: its class, without the package, and its fields."""

    kind: str
    fields: dict = field(default_factory=dict)


class _Reader:
    def __init__(self, content: bytes):
        self.content, self.offset = content, 0
        self.known: dict[int, object] = {}  # by number

    def read(self, depth: int = 0):
        """Return the next object: None, float, bool, str, dict (table), np.ndarray (tensor, storage) or _Object."""
        if depth > _DEEPEST:
            raise ValueError("tables in tables without end")
        kind = self._int()
        if kind == _NIL:
            return None
        if kind == _NUMBER:
            return self._numbers("<f8", 1)[0].item()
        if kind == _STRING:
            return self._string()
        if kind == _BOOLEAN:
            return bool(self._int())
        number = self._int()
        if number in self.known:
            return self.known[number]
        if kind == _TABLE:
            return self._table(number, depth)
        if kind == _TORCH:
            return self._torch(number, depth)
        if kind in _FUNCTIONS:
            self._string()  # the function's bytes
            self.known[number] = None
            self.read(depth + 1)  # the values that it refers to
            return None
        raise ValueError(f"kind {kind}")

    def _table(self, number: int, depth: int) -> dict:
        table = self.known[number] = {}
        for _ in range(self._int()):
            key, value = self.read(depth + 1), self.read(depth + 1)
            if isinstance(key, (str, float)):
                table[key] = value
        return table

    def _torch(self, number: int, depth: int):
        name = self._string()
        if name.startswith("V "):
            name = self._string()
        kind = name.rpartition(".")[2]
        if not name.isprintable():  # errors show it
            raise ValueError("a class whose name cannot be printed")
        if name.startswith("torch.") and kind.endswith("Storage"):
            dtype = _DTYPES[kind.removesuffix("Storage")]
            self.known[number] = storage = self._numbers(dtype, self._long())
            return storage
        if name.startswith("torch.") and kind.endswith("Tensor"):
            self.known[number] = tensor = self._tensor(depth)
            return tensor
        made = self.known[number] = _Object(kind)
        content = self.read(depth + 1)
        made.fields = content if isinstance(content, dict) else {}
        return made

    def _tensor(self, depth: int) -> np.ndarray:
        axes = self._int()
        shape, strides = ([self._long() for _ in range(axes)] for _ in range(2))
        first = self._long() - 1
        storage = self.read(depth + 1)
        if storage is None or not axes:
            return np.empty(0, np.float32)
        last = first + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if min(shape) < 1 or min(strides) < 0 or not 0 <= first <= last < len(storage):
            raise ValueError("a tensor outside its storage")
        steps = [stride * storage.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(storage[first:], shape, steps, writeable=False)

    def _numbers(self, dtype: str, count: int) -> np.ndarray:
        numbers = np.frombuffer(self.content, dtype, count, self.offset)
        self.offset += numbers.nbytes
        return numbers

    def _int(self) -> int:
        (value,) = struct.unpack_from("<i", self.content, self.offset)
        self.offset += 4
        return value

    def _long(self) -> int:
        (value,) = struct.unpack_from("<q", self.content, self.offset)
        self.offset += 8
        return value

    def _string(self) -> str:
        length = self._int()
        if not 0 <= length <= len(self.content) - self.offset:
            raise ValueError("a string outside the file")
        self.offset += length
        return self.content[self.offset - length : self.offset].decode("latin1")


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of the RDN that a Torch7 file holds: the reference's names behind "torch7.", RGB in 0..255.

    Convolutions have no names there: their order and kernels tell which is which. The colour that a first 1x1
    convolution subtracts becomes `mean`; the one that a last adds goes into the output's bias. Raises UserError for
    another network, and ValueError and the like for a damaged file.
    """
    layers = list(_layers(_Reader(path.read_bytes()).read(), set()))
    counts = Counter(layer.kind for layer in layers)
    if other := sorted(counts.keys() - _KNOWN):
        raise UserError(f"{path}: holds {other[0]} of Torch7, which an RDN has not; give weights of an RDN")
    shuffles = counts["PixelShuffle"]
    convs = [_parameters(layer) for layer in layers if layer.kind == "SpatialConvolution"]
    shifted = len(convs) > 1 and all(_only_adds(*conv) for conv in (convs[0], convs[-1]))
    (_, minus_mean), (_, plus_mean) = (convs[0], convs[-1]) if shifted else ((None, None), (None, None))
    convs = convs[1:-1] if shifted else convs
    names = _names([weight.shape[-1] for weight, _ in convs], shuffles)
    blocks = sum(name.endswith(".lff") for name in names)
    if not names or counts["CAddTable"] != blocks + 1 or counts["Concat"] != counts["ReLU"] + max(0, blocks - 1):
        raise UserError(f"{path}: a network of Torch7, but no RDN; give weights of an RDN")
    state = {}
    for name, (weight, bias) in zip(names, convs, strict=True):
        state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    if shifted:
        state |= {"mean": -minus_mean, "output.bias": state["output.bias"] + plus_mean}
    return {f"{PREFIX}{key}": value for key, value in state.items()}


def _layers(module, seen: set[int]) -> Iterator[_Object]:
    """Yield a module and all that are in it, in the order in which they compute. seen: ids of those yielded before."""
    if isinstance(module, _Object) and id(module) not in seen:
        seen.add(id(module))
        yield module
        modules = module.fields.get("modules", {})
        for number in sorted(modules):
            yield from _layers(modules[number], seen)


def _parameters(layer: _Object) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a convolution's weight [out, in, kh, kw] and bias [out]."""
    shape = [int(layer.fields[name]) for name in ("nOutputPlane", "nInputPlane", "kH", "kW")]
    weight = torch.from_numpy(np.array(layer.fields["weight"])).reshape(shape)  # older files keep it as a matrix
    bias = layer.fields.get("bias")
    return weight, torch.zeros(shape[0]) if bias is None else torch.from_numpy(np.array(bias))


def _only_adds(weight: torch.Tensor, bias: torch.Tensor) -> bool:
    return weight.shape == (3, 3, 1, 1) and torch.equal(weight[..., 0, 0].float(), torch.eye(3)) and bias.shape == (3,)


def _names(kernels: list[int], shuffles: int) -> list[str]:
    """Return the reference's names of convolutions with these kernels, or [] if they cannot be those of an RDN."""
    after = ["gff.1", *(f"upscale.{2 * i}" for i in range(shuffles)), "output"]
    inner = kernels[2 : -len(after) - 1]  # of the blocks: 3x3 as often as a block has layers, then 1x1
    names, block, layer = ["sfe1", "sfe2"], 0, 0
    for kernel in inner:
        if kernel == 1:
            names.append(f"rdbs.{block}.lff")
            block, layer = block + 1, 0
        else:
            names.append(f"rdbs.{block}.layers.{layer}.conv")
            layer += 1
    names += ["gff.0", *after]
    expected = [1 if name.endswith((".lff", "gff.0")) else 3 for name in names]
    return names if block and not layer and shuffles and kernels == expected else []
