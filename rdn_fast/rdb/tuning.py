"""What timing has chosen, in the user's cache folder: later processes and a resumed run take the same."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from rdn_fast.cache import cache_folder
from rdn_fast.files import atomic_write, has_locks, lock
from rdn_fast.rdb.rounds import Verdict
from rdn_fast.terminal import print_line

TRUSTED = 24 * 3600.0  # seconds for which a choice is remembered that may be noise


def remember(verdicts: dict[str, Verdict]) -> None:
    """Add choices to those in the user's cache folder; one that is not settled is trusted for TRUSTED seconds."""
    until = time.time() + TRUSTED
    new = {key: v.choice if v.settled else {"choice": v.choice, "until": until} for key, v in verdicts.items()}
    try:
        # Ranks that time at once all add theirs.
        with lock(_file().with_suffix(".lock")) if has_locks() else contextlib.nullcontext():
            text = json.dumps(_read() | new, indent=1)
            atomic_write(_file(), lambda file: file.write(text.encode()))
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        print_line(f"note: {_file()} {reason}; the next run times the block's implementations again")


def remembered() -> dict[str, str]:
    """Return {key: choice} from the user's cache folder. A damaged file is removed with a note."""
    return {key: entry if isinstance(entry, str) else entry["choice"] for key, entry in _read().items()}


def _file() -> Path:
    return cache_folder() / "tuning.json"


def _read() -> dict[str, str | dict]:
    """Return the file's entries that are still trusted, as they are stored: a choice, or with "until" (Unix time)."""
    now = time.time()
    try:
        entries = json.loads(_file().read_text())
        return {
            key: entry
            for key, entry in entries.items()
            if isinstance(entry, str) or (isinstance(entry["choice"], str) and 0 < entry["until"] - now <= TRUSTED)
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        print_line(f"note: {_file()} holds no tuning results of rdn-fast; it is made anew")
        with contextlib.suppress(OSError):
            _file().unlink()
        return {}
