"""Read files of tensors without running code from the file."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch

from rdn_fast import ascend
from rdn_fast.errors import UserError, why_no_file
from rdn_fast.terminal import bytes_in_words
from rdn_fast.weights import keras, other_files, pickled, shipped, torch7


def _rebuild_npu_tensor(storage, offset: int, size: tuple, stride: tuple, *_) -> torch.Tensor:
    """Build a plain host tensor where the file asks for torch_npu's function; torch_npu need not be installed."""
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


_HDF5 = b"\x89HDF\r\n\x1a\n"
_MOST_PACKED = 8  # times an archive's size that its content may have: torch.save packs nothing
_SAFE = [argparse.Namespace, (_rebuild_npu_tensor, ascend.REBUILD), (int, ascend.FORMAT)]


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file of weights in hexadecimal; of TensorFlow.js's, that of model.json and its shards."""
    file = _file(Path(path))
    parts = keras.shards(file) if file.suffix == ".json" else []
    return hashlib.sha256(b"".join(part.read_bytes() for part in (file, *parts))).hexdigest()


def _file(path: Path) -> Path:
    """Return the file, or model.json of the folder, or a shipped model's file. Raises UserError when there is none."""
    path = shipped.file_of(path)
    file = path / "model.json" if os.path.isdir(path) else path
    if (flaw := why_no_file(file)) is not None:
        missing = file != path and flaw == "no such file"
        raise UserError(f"{path}: is a folder without model.json; name a file" if missing else f"{file}: {flaw}")
    return file


def load_tensors(path: Path) -> tuple[object, dict[str, str]]:
    """Return what torch.save wrote, or the dict of tensors of another file, on the CPU, and the file's metadata.

    Others are safetensors, Keras's HDF5, Torch7's, and TensorFlow.js's model.json, or the folder that holds one. The
    content decides which it is, not the name; only safetensors files have metadata. Unpickled are tensors (torch_npu's
    too) and plain values; objects of other libraries become stand-ins, and a whole module its state dict. No code of
    the file is run. The checksums of a zip archive are checked. Raises UserError naming the file when it is missing,
    damaged, unpacks to far more than its size, or asks for what weights never need.
    """
    path = _file(path)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            if head[8:9] == b"{" and b"\0" in head[:8]:  # after the length of a safetensors header
                content = head + file.read()  # safetensors' own functions open no name that is not UTF-8
                header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
                return safetensors.torch.load(content), header.get("__metadata__", {})
            if (what := other_files.describe(path, head)) is not None:
                raise UserError(f"{path}: is {what}")
            if head.startswith(_HDF5):
                return keras.read_hdf5(path), {}
            if torch7.looks_like(head):
                return torch7.read(path), {}
            if head.lstrip().startswith(b"{"):
                return keras.read_tfjs(path), {}
            if head.startswith(b"PK\3\4"):
                _check_zip(file)
            file.seek(0)
            try:
                with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE):
                    warnings.simplefilter("ignore")  # an error is one line, ours
                    # An open file: given a path, torch.load goes by its name.
                    return torch.load(file, map_location="cpu", weights_only=True), {}
            except pickle.UnpicklingError:  # it may hold more than tensors and plain values
                return pickled.read(path), {}
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        if isinstance(error, PermissionError):
            raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or give another") from None
        raise UserError(f"{path}: damaged, or not a file of plain tensors ({type(error).__name__})") from None


def _check_zip(file: BinaryIO) -> None:
    """Check sizes and checksums of an archive of torch.save, which torch.load ignores. Raises UserError."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MOST_PACKED * os.fstat(file.fileno()).st_size:
            what = "more than weights of a file of its size can hold"
            raise UserError(f"{file.name}: refused, it unpacks to {bytes_in_words(unpacked)}, {what}; get it anew")
        if (broken := archive.testzip()) is not None:
            reason = f"the checksum of {broken} in it is wrong"
            raise UserError(f"{file.name}: damaged, {reason}; copy or download it again")
