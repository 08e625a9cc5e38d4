"""LR/HR pairs of an h5 file as views of one memory map: no h5py call, no lock and no copy once the file is open.

File format (the reference's): groups `lr` and `hr` of datasets "0", "1", ..., each uint8 [H, W, 3] RGB, contiguous.
Chunked or compressed datasets cannot be mapped; their pixels are read through h5py.
"""

from __future__ import annotations

import mmap
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import torch

from rdn_fast.data.degradation import LR_MADE_BY
from rdn_fast.data.h5_open import open_h5
from rdn_fast.data.heaps import read_heaps
from rdn_fast.data.pairs import Pair
from rdn_fast.errors import Failure, UserError, one_line, why_no_file
from rdn_fast.terminal import printable

LR, HR = range(2)
_GROUPS = ("lr", "hr")
_RESTORE = "restore it and start again (a training run with --resume auto)"
_OPEN = 2048  # datasets kept open: opening one takes longer than reading a patch, and each holds up to 30 KB


class PairedH5(Sequence[Pair]):
    """The pairs of a file, read when they are indexed. Raises Failure when the file has changed since it was opened.

    `sizes`: int64 [N, 2], height and width of the LR images.
    `bytes`: the whole file, uint8, read-only. `offset`: int64 [2, N], where LR and HR images begin in it.
    `unmappable`: why the two do not exist, else None.
    `lr_made_by`: how the file says that its LR images were made; None where it says nothing.
    """

    def __init__(self, path: str | Path, scale: int | None):
        """Open and check `path`. scale: None for that of the first pair. Raises UserError: file, dataset and remedy."""
        self.path, self.scale = Path(path), scale
        if (flaw := why_no_file(path)) is not None:
            is_folder = os.path.isdir(path)
            images, file = (path, "FILE.h5") if is_folder else ("FOLDER", path)
            remedy = "give it to --train-dir, or make an h5 file of it" if is_folder else "make it"
            command = f"rdn-fast prepare --images-dir {images} --output-path {file} --scale {scale}"
            raise UserError(f"{path}: {flaw}; {remedy} with: {command}")
        try:
            self._file = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or give another") from None
        try:
            weakref.finalize(self, os.close, self._file)
            self._state_at_open = self._state()
            with open_h5(self.path) as file:
                read_heaps(file, _GROUPS)
                self._keys = self._read_keys(file)
                spans = [self._scan(file[group], group) for group in _GROUPS]
                made_by = _attribute(file, LR_MADE_BY)
                self.lr_made_by = None if made_by is None else printable(made_by)
            self._check_not_replaced()
        except UserError:
            raise
        except Exception as error:  # a damaged file can raise nearly anything
            raise UserError(f"{path}: not a readable HDF5 file ({one_line(error)}); prepare it again") from None
        shapes, offsets = zip(*spans, strict=True)
        self._shapes = [np.array(shape) for shape in shapes]  # [N, 3]
        self._names: list[str] | None = None
        self._reader: tuple[int, Callable[[int, int], h5py.h5d.DatasetID]] | None = None  # and the process it is of
        self._check_scale()
        self.sizes = self._shapes[LR][:, :2]
        self.unmappable = next(
            (self._why_unmappable(group, offset.index(None)) for group, offset in enumerate(offsets) if None in offset),
            None,
        )
        if self.unmappable is not None:
            self.read_by_name()
        else:
            self.offset = np.array(offsets)  # [2, N]
            self._check_complete()
            self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
            self._pixels = self.bytes.numpy()
            self._pixels.flags.writeable = False

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, i: int) -> Pair:
        i = range(len(self))[i]  # raises IndexError, as iteration needs it
        return Pair((self._names or self.names())[i], self.image(LR, i), self.image(HR, i))

    def __reduce__(self):
        return PairedH5, (self.path, self.scale)  # another process opens the file for itself

    def names(self, images: Iterable[int] | None = None) -> list[str]:
        """Return the printable() names of these images (None: all): their numbers where the file has no names.

        Reads the file that has the path now. Names of all images are kept for indexing. Raises UserError.
        """
        keys = self._keys if images is None else [self._keys[i] for i in images]
        with self._reading("names") as file:
            names = [printable(attribute_text(file["hr"][key].attrs.get("name", key))) for key in keys]
        if images is None:
            self._names = names
        return names

    def attribute(self, name: str) -> str | None:
        """Return an attribute of the root of the file that has the path now. Raises UserError."""
        with self._reading("attributes") as file:
            return _attribute(file, name)

    @contextmanager
    def _reading(self, what: str) -> Iterator[h5py.File]:
        try:
            with open_h5(self.path) as file:
                yield file
        except UserError:
            raise
        except Exception as error:  # a damaged file can raise nearly anything
            raise UserError(f"{self.path}: {what} cannot be read ({one_line(error)}); prepare it again") from None

    def image(self, group: int, i: int) -> np.ndarray:
        """Return an image, uint8 [H, W, 3], as a read-only view of the file where it can be mapped. group: LR or HR."""
        self.check()
        if self.unmappable is not None:
            try:
                return h5py.Dataset(self._datasets()(group, i))[()]
            except OSError:
                raise self.truncation() from None
        offset, shape = self.offset[group, i], self._shapes[group][i]
        return self._pixels[offset : offset + int(np.prod(shape))].reshape(shape)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._state_at_open[0]

    def expect_random_access(self) -> None:
        """Tell the kernel not to read ahead: small parts will be read in random order."""
        if hasattr(mmap, "MADV_RANDOM"):  # Linux and macOS
            self._map.madvise(mmap.MADV_RANDOM)

    def check(self) -> None:
        """Raise Failure when the opened file has changed, which would mix pixels of two states."""
        if self._state() != self._state_at_open:
            raise Failure(f"{self.path}: was changed while it was in use; {_RESTORE}")

    def truncation(self) -> Failure:
        """Return the error to raise when bytes of the file could not be read."""
        return Failure(f"{self.path}: was cut short while it was in use, or the disk failed; {_RESTORE}")

    def read_part(self, group: int, i: int, top: int, left: int, out: np.ndarray) -> None:
        """Read a part of image i through h5py into out, uint8 [size, size, 3]. group: LR or HR."""
        try:
            data = self._datasets()(group, i)
            part = data.get_space()
            part.select_hyperslab((int(top), int(left), 0), out.shape)
            # HDF5's own calls: h5py's objects take four times as long.
            data.read(h5py.h5s.create_simple(out.shape), part, out, h5py.h5t.NATIVE_UINT8)
        except OSError:
            raise self.truncation() from None

    def read_into(self, buffer: np.ndarray, start: int) -> None:
        """Read the file's bytes from `start` into buffer, uint8 [n]. Raises Failure when they are not all there."""
        if not hasattr(os, "preadv"):
            buffer[:] = self._pixels[start : start + len(buffer)]
            return
        done = 0
        while done < len(buffer):
            try:
                read = os.preadv(self._file, [buffer[done:]], start + done)
            except OSError:
                read = 0
            if not read:
                raise self.truncation()
            done += read

    def read_by_name(self) -> None:
        """Open the file for h5py by its path, which is faster to read than the descriptor used otherwise."""
        self._set_reader(open_h5(self.path))
        self._check_not_replaced()

    def _datasets(self) -> Callable[[int, int], h5py.h5d.DatasetID]:
        """Return the function (group, i) -> dataset, which keeps datasets open."""
        if self._reader is None or self._reader[0] != os.getpid():  # a forked child must not share a handle
            opened = Path(f"/proc/self/fd/{self._file}")  # the path may belong to another file by now
            self._set_reader(h5py.File((opened if opened.exists() else self.path).open("rb"), "r"))
        return self._reader[1]

    def _set_reader(self, file: h5py.File) -> None:
        groups, keys = [file[group].id for group in _GROUPS], self._keys
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        access.set_chunk_cache(0, 0, 1.0)  # no chunk is read twice in an epoch

        @lru_cache(_OPEN)
        def dataset(group: int, i: int) -> h5py.h5d.DatasetID:
            return h5py.h5d.open(groups[group], keys[i].encode(), access)

        self._reader = os.getpid(), dataset

    def _check_not_replaced(self) -> None:
        if not os.path.samestat(os.stat(self.path), os.fstat(self._file)):
            raise UserError(f"{self.path}: was replaced while it was being opened; start again")

    def _state(self) -> tuple[int, int]:
        state = os.fstat(self._file)
        return state.st_size, state.st_mtime_ns

    def _read_keys(self, file: h5py.File) -> list[str]:
        """Return the datasets' names, which both groups must have, in the order of their numbers."""
        for group in _GROUPS:
            if not isinstance(file.get(group), h5py.Group):
                expected = "a training file has groups lr and hr, as `rdn-fast prepare` writes them"
                raise UserError(f"{self.path}: no group `{group}`; {expected}")
        lr, hr = (set(file[group]) for group in _GROUPS)
        if not lr and not hr:
            raise UserError(f"{self.path}: its groups lr and hr are empty; prepare it again")
        if lr != hr:
            raise UserError(
                f"{self.path}: {len(lr)} lr and {len(hr)} hr images ({min(lr ^ hr)} has no partner); prepare it again"
            )
        return sorted(lr, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0, key))

    def _scan(self, group: h5py.Group, name: str) -> tuple[list, list]:
        """Return shapes and offsets (None: not mappable) of all images. HDF5's own calls take a fifth of the time."""
        shapes, offsets = [], []
        links: dict[bytes, int] = {}
        group.id.links.iterate(lambda key, info: links.__setitem__(key, info.type), info=True)
        for key in self._keys:
            data = h5py.h5o.open(group.id, key.encode())
            self._check_dataset(data, f"/{name}/{key}")
            shapes.append(data.shape)
            here = links[key.encode()] == h5py.h5l.TYPE_HARD  # a link may lead to another file
            offsets.append(data.get_offset() if here else None)
            # Unwritten pixels would be read as black.
            if offsets[-1] is None and data.get_space_status() == h5py.h5d.SPACE_STATUS_NOT_ALLOCATED:
                raise UserError(f"{self.path}: /{name}/{key} was never written; prepare the file from the images again")
        return shapes, offsets

    def _check_dataset(self, data: h5py.h5d.DatasetID | h5py.h5g.GroupID, name: str) -> None:
        shape = data.shape if isinstance(data, h5py.h5d.DatasetID) else None
        is_rgb = shape is not None and len(shape) == 3 and shape[2] == 3
        if not (is_rgb and (data.get_type().equal(h5py.h5t.STD_U8LE) or data.dtype == np.uint8)):
            kind = "a group" if shape is None else f"{data.dtype} {list(shape)}"
            repack = f"`rdn-fast prepare --repack {self.path} NEW.h5` takes floats and wider integers"
            raise UserError(
                f"{self.path}: {name} is {kind}, not uint8 [H, W, 3] RGB; {repack}; "
                "else prepare the file from the images again"
            )
        if 0 in shape:
            raise UserError(f"{self.path}: {name} is empty, {list(shape)}; prepare the file from the images again")

    def _check_scale(self) -> None:
        lr, hr = (shape[:, :2] for shape in self._shapes)
        self.scale = int(hr[0, 0] // lr[0, 0]) if self.scale is None else self.scale
        odd = np.flatnonzero((hr != self.scale * lr).any(axis=1))
        if len(odd):
            i = odd[0]
            sizes = f"hr {hr[i, 1]}x{hr[i, 0]} is not {self.scale} times lr {lr[i, 1]}x{lr[i, 0]}"
            remedy = "give the --scale it was made for, or prepare it again"
            raise UserError(f"{self.path}: pair {self.names([i])[0]}: {sizes}; {remedy}")

    def _check_complete(self) -> None:
        for group, shapes in enumerate(self._shapes):
            ends = self.offset[group] + shapes.prod(axis=1)
            if ends.max() > self.size:
                name = f"/{_GROUPS[group]}/{self._keys[ends.argmax()]}"
                remedy = f"{self.size} of at least {ends.max()} bytes are there; copy or prepare it again"
                raise UserError(f"{self.path}: truncated in {name}, {remedy}")

    def _why_unmappable(self, group: int, i: int) -> str:
        with open_h5(self.path) as file:
            data = file[_GROUPS[group]][self._keys[i]]
            how = "chunked" if data.chunks else "a link or not contiguous"
            if data.compression:
                how = f"compressed ({data.compression})"
            return f"/{_GROUPS[group]}/{self._keys[i]} is {how}"


def attribute_text(value: object) -> str:
    """Return an attribute's text. h5py gives fixed-length strings, as we write them, as bytes."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _attribute(file: h5py.File, name: str) -> str | None:
    return attribute_text(file.attrs[name]) if name in file.attrs else None
