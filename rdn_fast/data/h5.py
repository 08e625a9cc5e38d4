"""LR/HR pairs of an h5 file as views of one memory map: no h5py read, no lock and no copy once the file is open.

Layout (the reference's): groups `lr` and `hr`, datasets "0", "1", ... each uint8 [H, W, 3] RGB, contiguous.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from rdn_fast.errors import UserError


class Pairs:
    """All pairs of a file: `names[i]`, `lr[i]` uint8 [h, w, 3] and `hr[i]` uint8 [scale*h, scale*w, 3], read-only views."""

    def __init__(self, path: str | Path, scale: int):
        """Open and check `path`; raises UserError naming the file, the dataset and the remedy."""
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path}: no such file; make it with: rdn-fast prepare --images-dir FOLDER --output-path {path} --scale {scale}")
        try:
            with h5py.File(self.path, "r") as file:
                spans = self._spans(file)
        except UserError:
            raise
        except Exception as error:  # a damaged file can raise nearly anything
            raise UserError(f"{path}: not a readable HDF5 file ({_first_line(error)}); prepare it again") from None
        self._bytes = np.memmap(self.path, np.uint8, "r")
        end = max(offset + int(np.prod(shape)) for _, *pair in spans for offset, shape in pair)
        if end > len(self._bytes):
            raise UserError(f"{path}: truncated, {len(self._bytes)} of at least {end} bytes are there; copy or prepare it again")
        self.names = [name for name, _, _ in spans]
        self.lr = [self._view(*lr) for _, lr, _ in spans]
        self.hr = [self._view(*hr) for _, _, hr in spans]
        for name, lr, hr in zip(self.names, self.lr, self.hr, strict=True):
            if hr.shape[:2] != (scale * lr.shape[0], scale * lr.shape[1]):
                sizes = f"hr {hr.shape[1]}x{hr.shape[0]} is not {scale} times lr {lr.shape[1]}x{lr.shape[0]}"
                raise UserError(f"{path}: pair {name}: {sizes}; give the --scale it was made for, or prepare it again")

    def __len__(self) -> int:
        return len(self.names)

    def _spans(self, file: h5py.File) -> list[tuple]:
        """(name, (offset, shape) of lr, (offset, shape) of hr) for every pair, in the order of their numbers."""
        for group in ("lr", "hr"):
            if not isinstance(file.get(group), h5py.Group):
                raise UserError(f"{self.path}: no group `{group}`; a training file has groups lr and hr, as `rdn-fast prepare` writes them")
        lr, hr = file["lr"], file["hr"]
        if not len(lr) and not len(hr):
            raise UserError(f"{self.path}: its groups lr and hr are empty; prepare it again")
        if lr.keys() != hr.keys():
            odd = min(lr.keys() ^ hr.keys())
            raise UserError(f"{self.path}: {len(lr)} lr and {len(hr)} hr images ({odd} has no partner); prepare it again")
        keys = sorted(lr, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0, key))
        return [(str(hr[key].attrs.get("name", key)), self._span(lr[key]), self._span(hr[key])) for key in keys]

    def _span(self, data) -> tuple[int, tuple[int, ...]]:
        if not isinstance(data, h5py.Dataset) or data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
            kind = f"{data.dtype} {list(data.shape)}" if isinstance(data, h5py.Dataset) else "a group"
            raise UserError(f"{self.path}: {data.name} is {kind}, not uint8 [H, W, 3] RGB; prepare the file from the images again")
        if 0 in data.shape:
            raise UserError(f"{self.path}: {data.name} is empty, {list(data.shape)}; prepare the file from the images again")
        offset = data.id.get_offset()
        if offset is None:
            how = f"compressed ({data.compression})" if data.compression else "chunked" if data.chunks else "not contiguous"
            remedy = f"h5repack -l CONTI -f NONE {self.path} NEW.h5"
            raise UserError(f"{self.path}: {data.name} is {how} and cannot be memory-mapped; repack it with: {remedy}")
        return offset, data.shape

    def _view(self, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        return self._bytes[offset : offset + int(np.prod(shape))].reshape(shape)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
