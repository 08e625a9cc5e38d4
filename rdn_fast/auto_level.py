"""`--opt-level auto`: float32 or low precision, by the time that the whole model takes in each on the device at hand.

That is the time of D blocks, by the better impl of each precision, and of the rest of the model. Block and rest may
disagree: an impl may be far ahead in float32 where the convolutions around the blocks are faster in bf16.
Parts alone find more of their data in the caches than within the model (up to 5% of a small one's step), so where their
sums are close, whole models are timed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from rdn_fast import devices, precision
from rdn_fast.config import ModelConfig
from rdn_fast.errors import what_failed
from rdn_fast.model import describe, meta_model
from rdn_fast.precision import Precision, dtype_name
from rdn_fast.rdb import able
from rdn_fast.rdb.autotune import winners
from rdn_fast.rdb.case import Case
from rdn_fast.rdb.measure import REST, Timed, Timing, budget, measure_in_turn
from rdn_fast.rdb.rounds import LEAST, MORE, Verdict, clearly_faster, is_steady, run_rounds
from rdn_fast.rdb.tuning import remember, remembered
from rdn_fast.terminal import print_line

CLOSE = 1.2  # ratio of the sums below which whole models are timed,
LONGEST = 0.5  # unless one takes more seconds: its blocks alone exceed the caches, and a start should not wait;
LONGEST_PICTURE = 0.1  # the same for inference


class Comparison(NamedTuple):
    """The Timings of float32 and of low precision, taken in the same rounds, and the level to take."""

    cases: tuple[Case, Case]
    timings: list[Timing]
    verdict: Verdict  # "O0" or "O1"
    models: dict[Case, list[float]]  # seconds of the whole model, a value per round; {} where the sums decided


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
        opt_level = auto_level(case, precision.resolve("O1", amp_dtype, device), rdb)
    return precision.resolve(opt_level, amp_dtype, device)


def auto_level(case: Case, low: Precision, rdb: str = "auto") -> str:
    """Return "O0" or "O1", what `--opt-level auto` stands for. `case` is in float32, `low` is O1 of its use.

    Accelerators take O1 by their nature: their tensor cores or cube units compute in 16 bits. A CPU without
    instructions for its dtype takes O0: bf16 emulated is 10 to 100 times slower than float32 (measured, LOG.md).
    Other CPUs take the level in which the model is faster, its blocks computed by `rdb` or by the best impl ("auto"):
    remembered, or timed now. O0 where the difference may be noise.
    """
    return known_level(case, low, rdb) or compare(case, low, rdb).verdict.choice


def known_level(case: Case, low: Precision, rdb: str = "auto") -> str | None:
    """Return auto_level() where nothing must be timed for it, else None."""
    if not needs_timing(case.device, low.compute):
        return "O0" if devices.is_host(case.device) else "O1"
    key = level_key(case, low, rdb)
    level = winners.get(key) or remembered().get(key)
    return level if level in ("O0", "O1") else None


def needs_timing(device: torch.device, low: torch.dtype) -> bool:
    """Return whether timing decides there, not the device's nature."""
    return devices.is_host(device) and devices.has_instructions(device, low)


def compare(case: Case, low: Precision, rdb: str = "auto") -> Comparison:
    """Time impls and the rest of the model in float32 and in low precision, in the same rounds.

    Where their sums are close, or nothing is settled, time whole models. Remember the level, and with "auto" the impls.
    Where `rdb` is an impl that cannot run in both dtypes, nothing is timed.
    """
    cases = case, replace(case, dtype=low.compute)
    if rdb != "auto":
        here = [rdb in (impl.name for impl in able(c.device, c.dtype, c.training)) for c in cases]
        if not all(here):
            return Comparison(cases, [Timing({}, {})] * 2, Verdict("O1" if here[1] else "O0", True), {})

    def judge(timings: list[Timing]) -> Verdict:
        return faster_level(*map(whole, cases, timings))

    def is_clear(timings: list[Timing]) -> bool:
        """Return whether the level is settled, and the impl of that level."""
        level = judge(timings)
        return level.settled and timings[level.choice == "O1"].verdict.settled

    precisions = dict(zip(cases, (precision.resolve("O0", "auto", case.device), low), strict=True))
    rests = {one: timed_model(one, computing) for one, computing in precisions.items()}
    timings = measure_in_turn(list(cases), is_clear, rdb, rests)
    level, models = judge(timings), {}
    if is_close(case.training, level.settled, *map(whole, cases, timings)):
        models = _time_models(precisions, [timing.verdict.choice for timing in timings])
        level = faster_level(*models.values()) if models else level
    verdicts = {level_key(case, low, rdb): level}
    winners[level_key(case, low, rdb)] = level.choice
    for one, timing in zip(cases, timings, strict=True):
        if rdb == "auto" and timing.rounds:
            verdicts[one.key()], winners[one] = timing.verdict, timing.verdict.choice
    remember(verdicts)
    return Comparison(cases, timings, level, models)


def level_key(case: Case, low: Precision, rdb: str) -> str:
    """Return the key under which the level is remembered. The rest depends on the whole model, unlike the block."""
    against = f"{low}, outer {dtype_name(low.outer)}" if low.outer else str(low)
    return f"{case.key()}, {describe(case.model_config)}, level against {against}, rdb {rdb}"


def whole(case: Case, timing: Timing) -> list[float]:
    """Return the seconds of the whole model in each round: its blocks by the impl to take, and the rest.

    [] where no impl, or not the rest, could be timed.
    """
    if not timing.rounds:
        return []
    block = timing.rounds[timing.verdict.choice]
    return [case.model_config.num_blocks * one + rest for one, rest in zip(block, timing.rest, strict=False)]


def faster_level(float32: list[float], low: list[float]) -> Verdict:
    """Return the level of the faster model, by its seconds in the same rounds; O0 where that is not clear.

    Seconds are [] where a model could not be timed. If neither could, nothing is settled.
    """
    if not (float32 and low):
        return Verdict("O1" if low else "O0", bool(float32 or low))
    steady = is_steady(float32) and is_steady(low)
    if clearly_faster(low, float32):
        return Verdict("O1", steady)
    return Verdict("O0", steady and clearly_faster(float32, low))


def is_close(training: bool, settled: bool, float32: list[float], low: list[float]) -> bool:
    """Return whether whole models are to be timed, given whole() in both precisions, and whether that is settled."""
    if not (float32 and low):
        return False
    faster, slower = sorted((min(float32), min(low)))
    short = slower < (LONGEST if training else LONGEST_PICTURE)
    return short and not (settled and slower > CLOSE * faster)


def _time_models(precisions: dict[Case, Precision], impls: list[str]) -> dict[Case, list[float]]:
    """Return the seconds of the whole model in each case, by its impl, a value per round; {} where one fails."""

    def is_clear(rounds: dict) -> bool:
        if len(rounds) < len(precisions):
            return True
        enough = len(rounds[next(iter(precisions))]) >= LEAST + MORE  # close ones need more rounds than impls do
        return enough and faster_level(*rounds.values()).settled

    def leave_out(case: Case, error: Exception) -> None:
        failed = f"the model in {dtype_name(case.dtype)} fails: {what_failed(error)}"
        print_line(f"note: --opt-level auto compares the sums of the model's parts alone, since {failed}")

    models = {
        case: timed_model(case, computing, impl)
        for (case, computing), impl in zip(precisions.items(), impls, strict=True)
    }
    seconds = budget(next(iter(models)))
    rounds = run_rounds(models, is_clear, leave_out, seconds, group=lambda case: case)
    return rounds if len(rounds) == len(models) else {}


def timed_model(case: Case, computing: Precision, impl: str | None = None) -> Timed:
    """Return the model with random weights at this precision, with its blocks by `impl`; None: without them (REST)."""
    with torch.inference_mode(False):
        model, generator = meta_model(case.model_config), torch.Generator().manual_seed(0)
        if impl is None:
            model.rdbs = nn.ModuleList(_NoBlock() for _ in model.rdbs)
        model.rdb = impl or "naive"  # which computes nothing there
        memory_format = devices.memory_format(case.device)
        model.to_empty(device=case.device).to(memory_format=memory_format)
        for tensor in model.state_dict().values():
            std = tensor[0].numel() ** -0.5 if tensor.dim() == 4 else 0.05
            tensor.copy_(torch.randn(tensor.shape, generator=generator).mul_(std))
        if impl and not case.training:
            model = model.frozen()
        x = torch.rand(case.batch, 3, case.height, case.width, generator=generator)
        x = x.to(case.device, memory_format=memory_format)
    computing.apply(model)
    return Timed(partial(model, x), list(model.parameters()), case, "the model" if impl else REST)


class _NoBlock(nn.Module):
    """Stands where a block does, and takes no time."""

    def forward(self, x, impl, packed=None):
        return x
