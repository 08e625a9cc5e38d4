"""Open an HDF5 file for reading. One that another program holds is whole, and is told from a damaged one."""

from __future__ import annotations

import errno
from pathlib import Path

import h5py

from rdn_fast.errors import UserError


def open_h5(path: str | Path) -> h5py.File:
    """Open the file. Raises UserError when another program holds it, and what h5py raises for a damaged one."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if (held := _held(error)) is None:
            raise
        raise UserError(f"{path}: {held}") from None


def _held(error: OSError) -> str | None:
    """Return that a file is held, as a predicate with the remedy, when that is what the error means; else None."""
    text = str(error)
    if "unable to lock file" in text and error.errno in (errno.EAGAIN, errno.EACCES):
        remedy = "end that one (`lsof FILE` or `fuser FILE` names it), or read a copy"
        return f"is locked by another program that has it open for writing; {remedy}"
    if "unable to lock file" in text:
        return "cannot be locked, as HDF5 does, on its file system; set HDF5_USE_FILE_LOCKING=FALSE, or read a copy"
    if "already open for write" in text:  # a mark in the file, which a killed program leaves
        remedy = "end that one or, when there is none, run `h5clear -s` on a copy"
        return f"is marked as open for writing by another program; {remedy}"
    return None
