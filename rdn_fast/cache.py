"""The user's cache folder, for compiled kernels and tuning results. All of it can be made again."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/rdn_fast, by default ~/.cache/rdn_fast.

    Where that cannot be written: a temporary folder that is deleted when this process exits.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rdn_fast"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # RuntimeError: no home
        folder = Path(tempfile.mkdtemp(prefix="rdn_fast-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
