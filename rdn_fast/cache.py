"""The user's cache folder: compiled kernels and tuning results, which can all be made again."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def cache_folder() -> Path:
    """$XDG_CACHE_HOME/rdn_fast (~/.cache/rdn_fast); where it cannot be written, a folder that goes with this process."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rdn_fast"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # RuntimeError: no home
        folder = Path(tempfile.mkdtemp(prefix="rdn_fast-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
