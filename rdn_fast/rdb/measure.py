"""Time the impls that can run a block, in turn (rounds.py)."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rdn_fast import devices
from rdn_fast.errors import UserError, what_failed
from rdn_fast.rdb import able, select
from rdn_fast.rdb.case import Case
from rdn_fast.rdb.rounds import Rounds, Verdict, judge, run_rounds
from rdn_fast.terminal import print_line

BUDGET = 1.5  # seconds for more rounds while the fastest impl is not clear
PICTURE_BUDGET = 0.3  # the same for inference: a picture may take less than that


@dataclass(frozen=True)
class Timing:
    """Seconds of each impl that could be timed, a value per round, and the reasons of those that failed."""

    rounds: dict[str, list[float]]  # in the table's order
    failed: dict[str, str]

    @property
    def seconds(self) -> dict[str, float]:
        """Of each impl's best round."""
        return {name: min(seconds) for name, seconds in self.rounds.items()}

    @property
    def verdict(self) -> Verdict:
        """The impl to take: the fastest, or the last in the table of those that are as fast within noise."""
        return judge(self.rounds)


def measure(case: Case) -> Timing:
    """Time the impls of a case. Raise UserError when none can compute it."""
    (timing,) = measure_in_turn([case], lambda timings: timings[0].verdict.settled)
    return timing


def measure_in_turn(cases: list[Case], is_clear: Callable[[list[Timing]], bool], rdb: str = "auto") -> list[Timing]:
    """Time the impls of all cases in the same rounds, or the one called `rdb`; return a Timing per case.

    Rounds go on for a while until is_clear(timings so far), which is asked where every case has an impl. An impl that
    raises or runs out of memory is left out with a note. Raise UserError when none is left in any case, or when `rdb`
    cannot run one.
    """
    failed: dict[Case, dict[str, str]] = {case: {} for case in cases}
    contenders = {}
    for case in cases:
        with torch.inference_mode(False):
            arguments = _arguments(case)
        names = [impl.name for impl in able(case.device, case.dtype, case.training)] if rdb == "auto" else [rdb]
        for name in names:
            contenders[case, name] = _Call(name, case, arguments)

    def leave_out(key: tuple[Case, str], error: Exception) -> None:
        case, name = key
        reason = _failure(error)
        failed[case][name] = reason.removeprefix("runs ")
        print_line(f"note: --rdb auto leaves out {name}, which {reason}")
        gc.collect()

    def timings(rounds: Rounds) -> list[Timing]:
        return [Timing({n: own for (of, n), own in rounds.items() if of == case}, failed[case]) for case in cases]

    def clear(rounds: Rounds) -> bool:
        so_far = timings(rounds)
        return all(timing.rounds for timing in so_far) and is_clear(so_far)

    found = timings(run_rounds(contenders, clear, leave_out, BUDGET if cases[0].training else PICTURE_BUDGET))
    if not any(timing.rounds for timing in found):
        raise UserError(
            f"no implementation of the block can compute {cases[0].key()} (the notes say why); "
            "give a smaller --batch-size or --patch-size"
        )
    return found


def why_not(name: str, case: Case) -> str | None:
    """Run the case once by an impl that was not timed now. Return what goes wrong, else None.

    It may have been chosen when compiler, driver or free memory were others. On a host, where none of them decides,
    nothing is run.
    """
    if devices.is_host(case.device):
        return None
    try:
        with torch.inference_mode(False):
            arguments = _arguments(case)
        _Call(name, case, arguments)(1)
    except Exception as error:  # what run_rounds() leaves out
        return _failure(error)
    return None


def _failure(error: Exception) -> str:
    if isinstance(error, RuntimeError) and devices.is_out_of_memory(error):
        return "runs out of memory"
    return f"fails: {what_failed(error)}"


class _Call:
    """An impl on a case's arguments: forward, and in training backward, launched the way a training step is."""

    def __init__(self, name: str, case: Case, arguments: tuple):
        self._rdb = select(name, case.device, case.dtype, case.training).rdb
        self._case, self._arguments = case, arguments
        self._step = devices.CudaGraphed(self._train, case.device, f"a block by {name}") if case.training else None

    def __call__(self, repeats: int) -> float:
        """Return the mean seconds of `repeats` calls. What a step captures is captured before the clock."""
        with torch.inference_mode(False), torch.set_grad_enabled(self._case.training):
            if self._step:
                self._step.prepare()
            devices.synchronize(self._case.device)
            start = time.perf_counter()
            for _ in range(repeats):
                (self._step or self._infer)()
            devices.synchronize(self._case.device)
            return (time.perf_counter() - start) / repeats

    def _infer(self) -> torch.Tensor:
        x, conv_w, conv_b, fuse_w, fuse_b = self._arguments
        return self._rdb(x, conv_w, conv_b, fuse_w, fuse_b)

    def _train(self) -> None:
        x, conv_w, conv_b, fuse_w, fuse_b = self._arguments
        torch.autograd.grad(self._infer(), [x, *conv_w, *conv_b, fuse_w, fuse_b], x.detach())


def _arguments(case: Case):
    """Return random inputs and weights of a block, which require gradients when training."""
    c, generator = case.model_config, torch.Generator().manual_seed(0)
    g0, g = c.num_features, c.growth_rate
    memory_format = devices.memory_format(case.device)

    def normal(*size, std=1.0):
        tensor = torch.randn(size, generator=generator).mul_(std).to(case.device, case.dtype)
        if tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=memory_format)
        return tensor.requires_grad_(case.training)

    channels = [g0 + j * g for j in range(c.num_layers)]
    conv_w = [normal(g, n, 3, 3, std=(2 / (9 * n)) ** 0.5) for n in channels]
    conv_b = [normal(g, std=0.1) for _ in channels]
    n = g0 + c.num_layers * g
    x = normal(case.batch, g0, case.height, case.width)
    return x, conv_w, conv_b, normal(g0, n, 1, 1, std=n**-0.5), normal(g0, std=0.1)
