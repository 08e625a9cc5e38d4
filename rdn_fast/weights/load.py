"""Files of tensors -> tensors, without running code from the file."""

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


def _rebuilt(storage, offset: int, size: tuple, stride: tuple, *_) -> torch.Tensor:
    """A tensor of a file that torch_npu wrote: where torch_npu is missing, and on the host where it is not."""
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


_SAFE = [argparse.Namespace, (_rebuilt, ascend.REBUILD), (int, ascend.FORMAT)]


def load_tensors(path: Path, checksums: bool = False) -> tuple[object, dict[str, str]]:
    """What torch.save wrote, or the tensors of a safetensors file with its metadata, on the CPU; the content tells them apart, not the name.

    No code of the file's is run: beside tensors, torch_npu's too, and plain values it may hold an argparse.Namespace. Raises UserError naming the file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            if file.read(9)[8:] == b"{":  # behind the length of a safetensors header
                with safe_open(path, framework="pt") as tensors:
                    return {key: tensors.get_tensor(key) for key in tensors.keys()}, tensors.metadata() or {}  # noqa: SIM118
            if checksums:  # torch.load does not look at them
                with zipfile.ZipFile(file) as archive:
                    if (broken := archive.testzip()) is not None:
                        raise zipfile.BadZipFile(broken)
            file.seek(0)
            with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE):
                warnings.simplefilter("ignore")  # the one line of an error is ours
                return torch.load(
                    file, map_location="cpu", weights_only=True
                ), {}  # of a path, torch would believe the name
    except Exception as error:  # a damaged file can raise nearly anything
        if isinstance(error, PermissionError):
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if isinstance(error, pickle.UnpicklingError) and (wanted := re.search(r"GLOBAL (\S+)", str(error))):
            remedy = "where it comes from, save the state dict alone"
            raise UserError(f"{path}: refused, it asks for {wanted[1]}, which may run any code; {remedy}") from None
        raise UserError(f"{path}: damaged, or not a file of plain tensors ({type(error).__name__})") from None
