"""LR/HR pairs of an h5 file as views of one memory map: no h5py read, no lock and no copy once the file is open.

Layout (the reference's): groups `lr` and `hr`, datasets "0", "1", ... each uint8 [H, W, 3] RGB, contiguous. Chunked or compressed
datasets cannot be mapped; their pixels are read through h5py.
"""

from __future__ import annotations

import mmap
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import torch

from rdn_fast.errors import Failure, UserError, one_line

LR, HR = range(2)
_GROUPS = ("lr", "hr")
_OPEN = 2048  # datasets kept open at most: opening takes longer than reading a patch, and each holds up to 30 KB


class PairedH5:
    """All pairs of a file: `lr[i]` uint8 [h, w, 3] and `hr[i]` uint8 [scale*h, scale*w, 3]; Failure when the file has changed since.

    `sizes`: int64 [N, 2], height and width of the LR images; `attributes`: those of the file's root.
    `bytes` is the whole file, uint8, read-only, and `offset[LR][i]`, `offset[HR][i]` is where an image begins in it; `unmappable`
    says why there is no such map, else it is None.
    """

    def __init__(self, path: str | Path, scale: int):
        """Open and check `path`; raises UserError naming the file, the dataset and the remedy."""
        self.path, self.scale = Path(path), scale
        if not self.path.is_file():
            raise UserError(
                f"{path}: no such file; make it with: rdn-fast prepare --images-dir FOLDER --output-path {path} --scale {scale}"
            )
        try:
            self._file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            self._opened = self._state()
            with h5py.File(self.path, "r") as file:
                self.attributes = dict(file.attrs)
                self._keys = self._partners(file)
                spans = [self._scan(file[group], group) for group in _GROUPS]
            self._check_name()
        except UserError:
            raise
        except Exception as error:  # a damaged file can raise nearly anything
            raise UserError(f"{path}: not a readable HDF5 file ({one_line(error)}); prepare it again") from None
        shapes, offsets = zip(*spans, strict=True)
        self._shapes = [np.array(shape) for shape in shapes]  # [N, 3]
        self._reader: tuple[int, Callable[[int, int], h5py.h5d.DatasetID]] | None = None
        self._check_scale()
        self.sizes = self._shapes[LR][:, :2]
        self.unmappable = next(
            (self._why_not(group, offset.index(None)) for group, offset in enumerate(offsets) if None in offset), None
        )
        if self.unmappable is not None:
            self.read_by_name()
        else:
            self.offset = np.array(offsets)  # [2, N]
            self._check_ends()
            self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
            self._pixels = self.bytes.numpy()
            self._pixels.flags.writeable = False

    def __len__(self) -> int:
        return len(self._keys)

    def __reduce__(self):
        return PairedH5, (self.path, self.scale)  # another process opens the file for itself

    @property
    def lr(self) -> Sequence[np.ndarray]:
        return _Images(self, LR)

    @property
    def hr(self) -> Sequence[np.ndarray]:
        return _Images(self, HR)

    def names(self, images: Iterable[int] | None = None) -> list[str]:
        """What these images (None: all) were called, as far as the file says; else their numbers."""
        keys = self._keys if images is None else [self._keys[i] for i in images]
        with h5py.File(self.path, "r") as file:
            return [str(file["hr"][key].attrs.get("name", key)) for key in keys]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._opened[0]

    def expect_crops(self) -> None:
        """Tell the kernel that small parts will be read, here and there: it need not read on beyond them."""
        self._map.madvise(mmap.MADV_RANDOM)

    def check(self) -> None:
        """Raise Failure when the opened file is no longer what it was: pixels of two states would be mixed, or be missing."""
        if self._state() != self._opened:
            raise Failure(
                f"{self.path}: was changed while it was in use; restore it and start again (a training run with --resume auto)"
            )

    def cut_short(self) -> Failure:
        """What to raise when bytes of the file could not be read."""
        what = "was cut short while it was in use, or the disk failed"
        return Failure(f"{self.path}: {what}; restore it and start again (a training run with --resume auto)")

    def read_part(self, group: int, i: int, top: int, left: int, out: np.ndarray) -> None:
        """Fill out, uint8 [size, size, 3], with a part of image i, read through h5py (for what cannot be mapped); group: LR or HR."""
        try:
            data = self._datasets()(group, i)
            part = data.get_space()
            part.select_hyperslab((int(top), int(left), 0), out.shape)
            data.read(
                h5py.h5s.create_simple(out.shape), part, out, h5py.h5t.NATIVE_UINT8
            )  # h5py's objects take four times as long
        except OSError:
            raise self.cut_short() from None

    def read_into(self, buffer: np.ndarray, start: int) -> None:
        """Fill buffer uint8 [n] with the file's bytes from `start`; raises Failure when they are not all there."""
        done = 0
        while done < len(buffer):
            try:
                read = os.preadv(self._file, [buffer[done:]], start + done)
            except OSError:
                read = 0
            if not read:
                raise self.cut_short()
            done += read

    def read_by_name(self) -> None:
        """Open the file for reading through h5py now, while it has its name: later it is done by its descriptor, and slower."""
        self._keep(h5py.File(self.path, "r"))
        self._check_name()

    def image(self, group: int, i: int) -> np.ndarray:
        """lr[i] or hr[i]; group: LR or HR."""
        self.check()
        if self.unmappable is not None:
            try:
                return h5py.Dataset(self._datasets()(group, i))[()]
            except OSError:
                raise self.cut_short() from None
        offset, shape = self.offset[group, i], self._shapes[group][i]
        return self._pixels[offset : offset + int(np.prod(shape))].reshape(shape)

    def _datasets(self) -> Callable[[int, int], h5py.h5d.DatasetID]:
        """The function of a group and an image's number that opens its dataset, or has it open."""
        if self._reader is None or self._reader[0] != os.getpid():  # a forked child must not share a handle
            opened = Path(f"/proc/self/fd/{self._file}")  # another file may have its name now
            self._keep(h5py.File((opened if opened.exists() else self.path).open("rb"), "r"))
        return self._reader[1]

    def _keep(self, file: h5py.File) -> None:
        groups, keys = [file[group].id for group in _GROUPS], self._keys
        once = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        once.set_chunk_cache(0, 0, 1.0)  # no chunk is read twice in an epoch

        @lru_cache(_OPEN)
        def dataset(group: int, i: int) -> h5py.h5d.DatasetID:
            return h5py.h5d.open(groups[group], keys[i].encode(), once)

        self._reader = os.getpid(), dataset

    def _check_name(self) -> None:
        if not os.path.samestat(os.stat(self.path), os.fstat(self._file)):
            raise UserError(f"{self.path}: was replaced while it was being opened; start again")

    def _state(self) -> tuple[int, int]:
        state = os.fstat(self._file)
        return state.st_size, state.st_mtime_ns

    def _partners(self, file: h5py.File) -> list[str]:
        """The names that both groups hold, in the order of their numbers."""
        for group in _GROUPS:
            if not isinstance(file.get(group), h5py.Group):
                raise UserError(
                    f"{self.path}: no group `{group}`; a training file has groups lr and hr, as `rdn-fast prepare` writes them"
                )
        lr, hr = (set(file[group]) for group in _GROUPS)
        if not lr and not hr:
            raise UserError(f"{self.path}: its groups lr and hr are empty; prepare it again")
        if lr != hr:
            raise UserError(
                f"{self.path}: {len(lr)} lr and {len(hr)} hr images ({min(lr ^ hr)} has no partner); prepare it again"
            )
        return sorted(lr, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0, key))

    def _scan(self, group: h5py.Group, name: str) -> tuple[list, list]:
        """Shapes and offsets of all images, by HDF5's own calls: a fifth of the time that h5py's objects take."""
        shapes, offsets = [], []
        links: dict[bytes, int] = {}
        group.id.links.iterate(lambda key, info: links.__setitem__(key, info.type), info=True)
        for key in self._keys:
            data = h5py.h5o.open(group.id, key.encode())
            shape = data.shape if isinstance(data, h5py.h5d.DatasetID) else None
            if (
                shape is None
                or len(shape) != 3
                or shape[2] != 3
                or not (data.get_type().equal(h5py.h5t.STD_U8LE) or data.dtype == np.uint8)
            ):
                kind = "a group" if shape is None else f"{data.dtype} {list(shape)}"
                remedy = f"`rdn-fast prepare --repack {self.path} NEW.h5` takes floats and wider integers; else prepare the file from the images again"
                raise UserError(f"{self.path}: /{name}/{key} is {kind}, not uint8 [H, W, 3] RGB; {remedy}")
            if 0 in shape:
                raise UserError(
                    f"{self.path}: /{name}/{key} is empty, {list(shape)}; prepare the file from the images again"
                )
            shapes.append(shape)
            here = links[key.encode()] == h5py.h5l.TYPE_HARD  # a link may lead to another file
            offsets.append(data.get_offset() if here else None)
            if (
                offsets[-1] is None and data.get_space_status() == h5py.h5d.SPACE_STATUS_NOT_ALLOCATED
            ):  # would be read as black
                raise UserError(f"{self.path}: /{name}/{key} was never written; prepare the file from the images again")
        return shapes, offsets

    def _check_scale(self) -> None:
        lr, hr = (shape[:, :2] for shape in self._shapes)
        odd = np.flatnonzero((hr != self.scale * lr).any(axis=1))
        if len(odd):
            i = odd[0]
            sizes = f"hr {hr[i, 1]}x{hr[i, 0]} is not {self.scale} times lr {lr[i, 1]}x{lr[i, 0]}"
            raise UserError(
                f"{self.path}: pair {self.names([i])[0]}: {sizes}; give the --scale it was made for, or prepare it again"
            )

    def _check_ends(self) -> None:
        for group, shapes in enumerate(self._shapes):
            ends = self.offset[group] + shapes.prod(axis=1)
            if ends.max() > self.size:
                name = f"/{_GROUPS[group]}/{self._keys[ends.argmax()]}"
                remedy = f"{self.size} of at least {ends.max()} bytes are there; copy or prepare it again"
                raise UserError(f"{self.path}: truncated in {name}, {remedy}")

    def _why_not(self, group: int, i: int) -> str:
        with h5py.File(self.path, "r") as file:
            data = file[_GROUPS[group]][self._keys[i]]
            how = (
                f"compressed ({data.compression})"
                if data.compression
                else "chunked"
                if data.chunks
                else "a link or not contiguous"
            )
            return f"/{_GROUPS[group]}/{self._keys[i]} is {how}"


class _Images(Sequence):
    """A group's images, each read or viewed when it is asked for."""

    def __init__(self, pairs: PairedH5, group: int):
        self._pairs, self._group = pairs, group

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self._pairs.image(self._group, i)
