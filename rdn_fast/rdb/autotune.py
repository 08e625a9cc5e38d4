"""`--rdb auto`: time every impl that can run a block here once, and remember the choice in the user's cache folder."""

from __future__ import annotations

from dataclasses import replace

from rdn_fast import devices
from rdn_fast.rdb import able, select
from rdn_fast.rdb.case import Case
from rdn_fast.rdb.measure import Timing, measure, why_not
from rdn_fast.rdb.tuning import remember, remembered
from rdn_fast.terminal import print_line

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
        reason = why_not(known, case) if known in names else None
        if reason:
            print_line(f"note: --rdb auto no longer takes {known}, which {reason}")
        if reason or known not in names:
            known = names[0] if len(names) == 1 else autotune(case).verdict.choice
        winners[case] = known
    return winners[case]


def autotune(case: Case) -> Timing:
    """Time the impls, and remember the choice in this process and in the user's cache folder."""
    timing = measure(case)
    winners[case] = timing.verdict.choice
    remember({case.key(): timing.verdict})
    return timing


def mode_key(case: Case) -> str:
    """Return the key under which the case's fastest mode is remembered. It does not depend on the mode in effect."""
    return f"{replace(case, mode='').key()}, fastest mode"


def fastest_mode(case: Case) -> str:
    """Return the device mode in which `rdn-fast tune` found the case fastest; "" is the default mode."""
    known = devices.modes(case.device)
    name = remembered().get(mode_key(case)) if known else None
    return name if name in known else ""
