"""A chunked, compressed, float or wider h5 file in the reference's format -> contiguous uint8, which h5.py can map."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from rdn_fast.config import SCALES
from rdn_fast.data.degradation import LR_MADE_BY
from rdn_fast.data.h5 import attribute_text
from rdn_fast.data.h5_open import open_h5
from rdn_fast.data.h5_writer import new_file, set_text
from rdn_fast.data.heaps import read_heaps
from rdn_fast.errors import UserError, one_line, why_no_file
from rdn_fast.terminal import Bar, print_line

_MEND = "make it again from its source, or from the images with `rdn-fast prepare`"


def repack(old: str | Path, new: str | Path) -> None:
    """Write the pairs of file `old` to `new`: the same names in the same order, contiguous uint8 [H, W, 3].

    Integers must be in 0..255. Floats are taken as 0..1 where no float of the file is above 1, else as 0..255, and are
    rounded to nearest. One image is in memory at a time.
    Raises UserError naming the file, the dataset and the remedy. Then nothing is written.
    """
    old, new = Path(old), Path(new)
    if (flaw := why_no_file(old)) is not None:
        raise UserError(f"{old}: {flaw}; give the h5 file to rewrite, and then the one to write")
    if os.path.exists(new) and new.samefile(old):
        raise UserError(f"{old} {new}: both are one file; give NEW.h5 another name, and rename it when it is done")
    with _readable(f"{old}: not a readable HDF5 file"):
        file = open_h5(old)
    with file:
        with _readable(f"{old}: damaged"):
            read_heaps(file, ("lr", "hr"))
            keys, scale = _read_structure(file)
        factor = _float_factor(file, keys)
        with _readable(f"{old}: its attributes cannot be read"):
            made_by = file.attrs.get(LR_MADE_BY)
        with new_file(new) as (copy, check), Bar("pairs", len(keys)) as bar:
            if made_by is not None:
                set_text(copy, LR_MADE_BY, attribute_text(made_by))
            for group in ("lr", "hr"):
                copy.create_group(group, track_order=True)
            for key in keys:
                for group in ("lr", "hr"):
                    copy[group].create_dataset(key, data=_pixels(file[group][key], factor))
                with _readable(f"{old}: /hr/{key}: its name cannot be read"):
                    name = file["hr"][key].attrs.get("name")
                if name is not None:
                    set_text(copy["hr"][key], "name", attribute_text(name))
                check()
                bar.advance()
    floats = {None: "", 1: ", float values taken as 0..255", 255: ", float values taken as 0..1"}[factor]
    before, after = (path.stat().st_size / 1e6 for path in (old, new))
    print_line(f"{new}: {len(keys)} pairs at x{scale}{floats}; {before:,.1f} MB before, {after:,.1f} MB now")


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn any error of h5py into a UserError that begins with `what`. A damaged file can raise nearly anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} ({one_line(error)}); copy it again, or {_MEND}") from None


def _read_structure(file: h5py.File) -> tuple[list[str], int]:
    """Return the names of the pairs in the file's order, and the scale, which follows from the sizes.

    Raises UserError when the file is not in the reference's format.
    """
    path = file.filename
    for group in ("lr", "hr"):
        if not isinstance(file.get(group), h5py.Group):
            raise UserError(f"{path}: no group `{group}`; only files with groups lr and hr can be repacked")
    lr, hr = file["lr"], file["hr"]
    keys = list(lr)
    odd = [f"{group.name}/{key}" for group, other in ((lr, hr), (hr, lr)) for key in group if key not in other]
    if odd:
        raise UserError(f"{path}: {odd[0]} has no partner; {_MEND}")
    if not keys:
        raise UserError(f"{path}: its groups lr and hr are empty; {_MEND}")
    scale = None
    for key in keys:
        with _readable(f"{path}: pair {key} cannot be read"):
            (h, w), (height, width) = (_size(group[key], path) for group in (lr, hr))
        multiple = height // h
        sizes = f"{path}: /hr/{key} is {width}x{height}, /lr/{key} {w}x{h}"
        if (height, width) != (multiple * h, multiple * w) or multiple not in SCALES:
            raise UserError(f"{sizes}: not 2, 3, 4 or 8 times as large; {_MEND}")
        if scale not in (None, multiple):
            raise UserError(f"{sizes}: x{multiple}, but the pairs before are x{scale}; {_MEND} at one scale")
        scale = multiple
    return keys, scale


def _size(data, path: str) -> tuple[int, int]:
    """Return height and width of a dataset. Raises UserError when it cannot be an RGB image."""
    if not isinstance(data, h5py.Dataset):
        raise UserError(f"{path}: {data.name} is a group, not an image [H, W, 3]; {_MEND}")
    if data.ndim != 3 or data.shape[2] != 3 or 0 in data.shape or data.dtype.kind not in "iuf":
        raise UserError(
            f"{path}: {data.name} is {data.dtype} {list(data.shape or ())}, not an image of numbers [H, W, 3]; {_MEND}"
        )
    if data.id.get_space_status() == h5py.h5d.SPACE_STATUS_NOT_ALLOCATED:  # would read as black
        raise UserError(f"{path}: {data.name} was never written; {_MEND}")
    return data.shape[:2]


def _float_factor(file: h5py.File, keys: list[str]) -> int | None:
    """Return the factor that scales the file's floats to 0..255: 255 or 1, by their maximum. None without floats."""
    names = [f"/{group}/{key}" for key in keys for group in ("lr", "hr") if file[group][key].dtype.kind == "f"]
    if not names:
        return None
    largest, where = 0.0, names[0]
    with Bar("images checked", len(names)) as bar:
        for name in names:
            largest, where = max((largest, where), (float(_values(file[name]).max()), name))
            bar.advance()
    if 1 < largest < 2:  # surely 0..1 with overshoot, which would be black if taken as 0..255
        raise UserError(
            f"{file.filename}: {where} holds {largest:g}, the file's largest float: neither 0..1 nor 0..255; "
            "clip its values to 0..1"
        )
    return 255 if largest <= 1 else 1


def _pixels(data: h5py.Dataset, factor: int | None) -> np.ndarray:
    """Return the dataset's image, uint8 [H, W, 3]."""
    values = _values(data)
    if values.dtype.kind == "f":
        values = np.rint(np.multiply(values, factor, dtype=np.float64))
    return values.astype(np.uint8)


def _values(data: h5py.Dataset) -> np.ndarray:
    """Return the dataset's values as they are stored. Raises UserError when one is outside 0..255."""
    with _readable(f"{data.file.filename}: {data.name} cannot be read"):
        values = data[()]
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # NaN fails too
        raise UserError(
            f"{data.file.filename}: {data.name} holds values from {low:g} to {high:g}, not 0..1 or 0..255; {_MEND}"
        )
    return values
