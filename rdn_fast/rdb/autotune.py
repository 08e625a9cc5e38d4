"""`--rdb auto`: time every impl that can run a block here once, and remember the choice in the user's cache folder."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path

from rdn_fast import devices
from rdn_fast.cache import cache_folder
from rdn_fast.files import atomic_write
from rdn_fast.rdb import able, select
from rdn_fast.rdb.case import Case
from rdn_fast.rdb.measure import Timing, measure
from rdn_fast.rdb.rounds import Verdict
from rdn_fast.terminal import print_line

TRUSTED = 24 * 3600.0  # seconds for which a choice is remembered that may be noise

winners: dict[Case | str, str] = {}  # choices of this process, by case or by key; winners.clear() forgets them


def resolve_impl(name: str, case: Case) -> str:
    """Return the impl's name that `name` stands for: itself, or for "auto" the fastest, remembered or timed now.

    Raise UserError when the named impl cannot run the case, or for "auto" when none can.
    """
    if name != "auto":
        return select(name, case.device, case.dtype, case.training).name
    if case not in winners:
        names = [impl.name for impl in able(case.device, case.dtype, case.training)]
        known = remembered().get(case.key())
        if known not in names:
            known = names[0] if len(names) == 1 else autotune(case).verdict.choice
        winners[case] = known
    return winners[case]


def autotune(case: Case) -> Timing:
    """Time the impls, and remember the choice in this process and in the user's cache folder."""
    timing = measure(case)
    winners[case] = timing.verdict.choice
    remember({case.key(): timing.verdict})
    return timing


def remember(verdicts: dict[str, Verdict]) -> None:
    """Add choices to those in the user's cache folder; one that is not settled is trusted for TRUSTED seconds."""
    until = time.time() + TRUSTED
    new = {key: v.choice if v.settled else {"choice": v.choice, "until": until} for key, v in verdicts.items()}
    text = json.dumps(_read() | new, indent=1)
    try:
        atomic_write(_file(), lambda file: file.write(text.encode()))
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        print_line(f"note: {_file()} {reason}; the next run times the block's implementations again")


def mode_key(case: Case) -> str:
    """Return the key under which the case's fastest mode is remembered. It does not depend on the mode in effect."""
    return f"{replace(case, mode='').key()}, fastest mode"


def fastest_mode(case: Case) -> str:
    """Return the device mode in which `rdn-fast tune` found the case fastest; "" is the default mode."""
    known = devices.modes(case.device)
    name = remembered().get(mode_key(case)) if known else None
    return name if name in known else ""


def _file() -> Path:
    return cache_folder() / "tuning.json"


def remembered() -> dict[str, str]:
    """Return {key: choice} from the user's cache folder. A damaged file is removed with a note."""
    return {key: entry if isinstance(entry, str) else entry["choice"] for key, entry in _read().items()}


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
