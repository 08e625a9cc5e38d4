"""Read files of tensors without running code from the file."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open

from rdn_fast import ascend
from rdn_fast.errors import UserError


def _rebuild_npu_tensor(storage, offset: int, size: tuple, stride: tuple, *_) -> torch.Tensor:
    """Build a plain host tensor where the file asks for torch_npu's function; torch_npu need not be installed."""
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


_SAFE = [argparse.Namespace, (_rebuild_npu_tensor, ascend.REBUILD), (int, ascend.FORMAT)]


def load_tensors(path: Path, checksums: bool = False) -> tuple[object, dict[str, str]]:
    """Return what torch.save wrote, or a safetensors file's dict of tensors, on the CPU, and the file's metadata.

    The content decides which of the two it is, not the name; only safetensors files have metadata. Unpickled are
    tensors (torch_npu's too), plain values and argparse.Namespace, nothing else. checksums: check those of the zip
    archive first. Raises UserError naming the file when it is missing, damaged, or asks for other code.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            if file.read(9)[8:] == b"{":  # after the 8 bytes of a safetensors header's length
                with safe_open(path, framework="pt") as tensors:
                    state = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
                    return state, tensors.metadata() or {}
            if checksums:  # torch.load ignores them
                with zipfile.ZipFile(file) as archive:
                    if (broken := archive.testzip()) is not None:
                        raise zipfile.BadZipFile(broken)
            file.seek(0)
            with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE):
                warnings.simplefilter("ignore")  # an error is one line, ours
                # An open file: given a path, torch.load goes by its name.
                return torch.load(file, map_location="cpu", weights_only=True), {}
    except Exception as error:  # a damaged file can raise nearly anything
        if isinstance(error, PermissionError):
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if isinstance(error, pickle.UnpicklingError) and (wanted := re.search(r"GLOBAL (\S+)", str(error))):
            remedy = "where it comes from, save the state dict alone"
            raise UserError(f"{path}: refused, it asks for {wanted[1]}, which may run any code; {remedy}") from None
        raise UserError(f"{path}: damaged, or not a file of plain tensors ({type(error).__name__})") from None
