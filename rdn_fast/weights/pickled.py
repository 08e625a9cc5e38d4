"""Read torch.save's files that also hold objects of other libraries. None of their code is imported or run.

Such an object is made a StandIn, which keeps its state and does nothing. The tensors are built here out of the bytes.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from rdn_fast import ascend
from rdn_fast.errors import UserError

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Python's own modules and names whose objects are values. Nothing of a file that asks for others would run here either,
# but weights need none of them and harmful files do: it is refused.
_PLAIN_MODULES = {"argparse", "collections", "copyreg", "copy_reg", "dataclasses", "datetime", "decimal", "enum"}
_PLAIN_MODULES |= {"fractions", "ipaddress", "pathlib", "re", "types", "uuid", "zoneinfo", "__main__"}
_PLAIN_NAMES = {"_codecs.encode", "functools.partial", "random.Random", "logging.Logger", "logging.getLogger"}
_PLAIN_NAMES |= {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("object", "set", "frozenset", "complex", "bytearray", "slice", "range", "getattr", "list", "dict")
}
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of torch < 1.6


class StandIn:
    """Stands in for whatever a file names: a class, its object, a function, its result."""

    state = None

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        return StandIn()

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        pass

    def append(self, _):
        pass

    extend = update = add = append


class _Function:
    """A function of this module for the unpickler. It has no attributes that a file could set."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setstate__(self, _):
        raise pickle.UnpicklingError("a state for a function")


class _Tensor(torch.Tensor):
    """A tensor while the file is unpickled: nothing in it can set the tensor's state."""

    def __setstate__(self, _):
        raise pickle.UnpicklingError("a state for a tensor")


def _tensor(storage: torch.Tensor, offset: int, shape: tuple, strides: tuple, *_) -> torch.Tensor:
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if shape and min(shape) == 0:
        return torch.empty(shape, dtype=storage.dtype).as_subclass(_Tensor)
    if min((offset, *strides)) < 0 or last >= len(storage):
        raise pickle.UnpicklingError("a tensor outside its storage")
    return storage.as_strided(shape, strides, offset).as_subclass(_Tensor)


class _Unpickler(pickle.Unpickler):
    """storages: one-dimensional tensors by key, made when they are first asked for, of at most `limit` bytes in all."""

    def __init__(self, file, path: Path, limit: int):
        super().__init__(file, encoding="utf-8", errors="replace")
        self.path, self.limit, self.storages = path, limit, {}

    def find_class(self, module: str, name: str):
        whole = f"{module}.{name}"
        if whole == "collections.OrderedDict":
            return OrderedDict
        if whole in (ascend.REBUILD, "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            return _Function(_tensor)
        if whole in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return _Function(lambda data, *_: data)
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        root = module.partition(".")[0]
        python = root in sys.stdlib_module_names or root in ("__builtin__", "nt", "posix")
        if python and root not in _PLAIN_MODULES and whole not in _PLAIN_NAMES:
            remedy = "where it comes from, save the state dict alone"
            raise UserError(f"{self.path}: refused, it asks for {whole}, which may run any code; {remedy}")
        return type(name, (StandIn,), {"__module__": module})

    def persistent_load(self, identifier):
        if identifier[0] == "module":  # of torch < 1.6, with the class's source
            return identifier[1]
        _, dtype, key, _, count = identifier[:5]
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        if key not in self.storages:
            self.limit -= count * dtype.itemsize
            if count < 0 or self.limit < 0:
                raise pickle.UnpicklingError("more tensors than bytes")
            self.storages[key] = torch.empty(count, dtype=dtype)
        return self.storages[key]


def read(path: Path) -> object:
    """Return what a file of torch.save holds: a whole module as its state dict, other objects as StandIns.

    Raises UserError for a file that asks for what weights never need; pickle.UnpicklingError and the like for a
    damaged file.
    """
    with path.open("rb") as file:
        limit = path.stat().st_size
        saved = _read_zip(file, path, limit) if zipfile.is_zipfile(file) else _read_old(file, path, limit)
    return _plain(saved, 0)


def _read_zip(file, path: Path, limit: int):
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise pickle.UnpicklingError("compressed, as torch.save writes none")
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        folder = pickled.removesuffix("data.pkl")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickled)), path, limit)  # read() checks the CRC
        saved = unpickler.load()
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise UserError(f"{path}: written on a big-endian machine; save it anew on another")
        for key, storage in unpickler.storages.items():
            _fill(storage, archive.read(f"{folder}data/{key}"))
    return saved


def _read_old(file, path: Path, limit: int):
    """Read a file of torch < 1.6: pickles of a magic number, the version, the machine, the object, and all keys."""
    file.seek(0)
    if _Unpickler(file, path, limit).load() != _MAGIC:
        raise pickle.UnpicklingError("no magic number")
    for _ in range(2):
        _Unpickler(file, path, limit).load()
    unpickler = _Unpickler(file, path, limit)
    saved = unpickler.load()
    for key in _Unpickler(file, path, limit).load():
        if int.from_bytes(file.read(8), "little") != len(unpickler.storages[key]):
            raise pickle.UnpicklingError("a storage of another length")
        storage = unpickler.storages[key]
        _fill(storage, file.read(storage.nbytes))
    return saved


def _fill(storage: torch.Tensor, content: bytes) -> None:
    """Copy the bytes into the storage. Raises ValueError when they are more or fewer."""
    if len(storage):
        storage.view(torch.uint8).numpy()[:] = np.frombuffer(content, np.uint8)


def _plain(value, depth: int):
    """Return the value with its modules as state dicts and its tensors as plain ones, those in dicts too."""
    if isinstance(value, _Tensor):
        return value.as_subclass(torch.Tensor)
    if depth < 5 and isinstance(value, dict):
        return {key: _plain(kept, depth + 1) for key, kept in value.items()}
    if isinstance(value, StandIn) and isinstance(value.state, dict) and "_modules" in value.state:
        return _state_dict(value, "", 0)
    return value


def _state_dict(module: StandIn, prefix: str, depth: int) -> dict[str, torch.Tensor]:
    state = module.state if isinstance(module, StandIn) and isinstance(module.state, dict) and depth < 50 else {}
    found = {}
    for kind in ("_parameters", "_buffers"):
        tensors = {key: tensor for key, tensor in state.get(kind, {}).items() if tensor is not None}
        found |= {f"{prefix}{key}": _plain(tensor, 5) for key, tensor in tensors.items()}
    for name, inner in state.get("_modules", {}).items():
        found |= _state_dict(inner, f"{prefix}{name}.", depth + 1)
    return found
