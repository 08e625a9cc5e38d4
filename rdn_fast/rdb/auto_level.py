"""`--opt-level auto`: float32 or low precision, by the better impl of each on the device and shape at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from rdn_fast import devices, precision
from rdn_fast.config import ModelConfig
from rdn_fast.precision import Precision, dtype_name
from rdn_fast.rdb import able
from rdn_fast.rdb.autotune import winners
from rdn_fast.rdb.case import Case
from rdn_fast.rdb.measure import Timing, measure_in_turn
from rdn_fast.rdb.rounds import Verdict, clearly_faster, is_steady
from rdn_fast.rdb.tuning import remember, remembered


class Comparison(NamedTuple):
    """The Timings of float32 and of low precision, taken in the same rounds, and the level to take."""

    cases: tuple[Case, Case]
    timings: list[Timing]
    verdict: Verdict  # "O0" or "O1"


def resolve_precision(
    opt_level: str,
    amp_dtype: str,
    device: torch.device,
    model_config: ModelConfig,
    shape: tuple[int, int, int, int],
    rdb: str = "auto",
) -> Precision:
    """Return the Precision of these settings for training on patches of `shape` [B, 3, H, W].

    `opt_level` "auto" is auto_level()'s. `rdb`: the impl that computes in either dtype, or "auto".
    """
    if opt_level == "auto":
        case = Case.of(model_config, shape, device, torch.float32, True)
        opt_level = auto_level(case, precision.low_dtype(amp_dtype, device), rdb)
    return precision.resolve(opt_level, amp_dtype, device)


def auto_level(case: Case, low: torch.dtype, rdb: str = "auto") -> str:
    """Return "O0" or "O1", what `--opt-level auto` stands for. `case` is in float32, `low` is O1's dtype.

    Accelerators take O1 by their nature: their tensor cores or cube units compute in 16 bits. A CPU without
    instructions for `low` takes O0: emulated bf16 is 10 to 100 times slower than float32 (measured, profiling/LOG.md).
    Other CPUs take the level whose impl, `rdb` or "auto", is faster: remembered, or timed now. O0 where that is noise.
    """
    return known_level(case, low, rdb) or compare(case, low, rdb).verdict.choice


def known_level(case: Case, low: torch.dtype, rdb: str = "auto") -> str | None:
    """Return auto_level() where nothing must be timed for it, else None."""
    if not needs_timing(case.device, low):
        return "O0" if devices.is_host(case.device) else "O1"
    key = level_key(case, low, rdb)
    level = winners.get(key) or remembered().get(key)
    return level if level in ("O0", "O1") else None


def needs_timing(device: torch.device, low: torch.dtype) -> bool:
    """Return whether timing decides there, not the device's nature."""
    return devices.is_host(device) and devices.has_instructions(device, low)


def compare(case: Case, low: torch.dtype, rdb: str = "auto") -> Comparison:
    """Time the impls in float32 and in low precision, in turn, and remember the level, and with "auto" the impls.

    Where `rdb` is an impl that cannot run in both dtypes, nothing is timed.
    """
    cases = case, replace(case, dtype=low)
    if rdb != "auto":
        here = [rdb in (impl.name for impl in able(c.device, c.dtype, c.training)) for c in cases]
        if not all(here):
            return Comparison(cases, [Timing({}, {})] * 2, Verdict("O1" if here[1] else "O0", True))
    timings = measure_in_turn(list(cases), _is_clear, rdb)
    level = _judge(timings)
    verdicts = {level_key(case, low, rdb): level}
    winners[level_key(case, low, rdb)] = level.choice
    for one, timing in zip(cases, timings, strict=True):
        if rdb == "auto" and timing.rounds:
            verdicts[one.key()], winners[one] = timing.verdict, timing.verdict.choice
    remember(verdicts)
    return Comparison(cases, timings, level)


def level_key(case: Case, low: torch.dtype, rdb: str) -> str:
    return f"{case.key()}, level against {dtype_name(low)}, rdb {rdb}"


def _judge(timings: list[Timing]) -> Verdict:
    """Return the level whose chosen impl is faster; O0 where that is not clear."""
    if not all(timing.rounds for timing in timings):
        return Verdict("O1" if timings[1].rounds else "O0", True)
    float32, low = (timing.rounds[timing.verdict.choice] for timing in timings)
    steady = is_steady(float32) and is_steady(low)
    if clearly_faster(low, float32):
        return Verdict("O1", steady)
    return Verdict("O0", steady and clearly_faster(float32, low))


def _is_clear(timings: list[Timing]) -> bool:
    """Return whether the level is settled, and the impl of that level."""
    level = _judge(timings)
    return level.settled and timings[level.choice == "O1"].verdict.settled
