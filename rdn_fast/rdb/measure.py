"""Time the impls that can run a block, in turn (rounds.py)."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial

import torch

from rdn_fast import devices
from rdn_fast.errors import UserError, what_failed
from rdn_fast.precision import dtype_name
from rdn_fast.rdb import able, select
from rdn_fast.rdb.blocks import RDB, FrozenRDB
from rdn_fast.rdb.case import Case
from rdn_fast.rdb.rounds import Rounds, Verdict, judge, run_rounds
from rdn_fast.terminal import print_line

BUDGET = 1.5  # seconds for more rounds while the fastest impl is not clear
PICTURE_BUDGET = 0.3  # the same for inference: a picture may take less than that
REST = "the model without its blocks"


@dataclass(frozen=True)
class Timing:
    """Seconds of each impl that could be timed, a value per round, and the reasons of those that failed."""

    rounds: dict[str, list[float]]  # in the table's order
    failed: dict[str, str]
    rest: list[float] = field(default_factory=list)  # seconds of REST in the same rounds; [] where it was not timed

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


def measure_in_turn(
    cases: list[Case],
    is_clear: Callable[[list[Timing]], bool],
    rdb: str = "auto",
    rests: dict[Case, Callable[[int], float]] | None = None,
) -> list[Timing]:
    """Time the impls of all cases in the same rounds, or the one called `rdb`; return a Timing per case.

    rests: REST of each case, a contender of run_rounds() that is timed in the same rounds.

    Rounds go on for a while until is_clear(timings so far), which is asked where every case has an impl. An impl that
    raises or runs out of memory is left out with a note. Raise UserError when none is left in any case, or when `rdb`
    cannot run one.
    """
    failed: dict[Case, dict[str, str]] = {case: {} for case in cases}
    contenders = {(case, REST): rest for case, rest in (rests or {}).items()}
    for case in cases:
        block, x = _example(case)
        names = [impl.name for impl in able(case.device, case.dtype, case.training)] if rdb == "auto" else [rdb]
        for name in names:
            contenders[case, name] = timed_block(name, case, block, x)

    def leave_out(key: tuple[Case, str], error: Exception) -> None:
        case, name = key
        reason = _failure(error)
        failed[case][name] = reason.removeprefix("runs ")
        of_level = f"--opt-level auto leaves out {dtype_name(case.dtype)}, in which {REST}"
        print_line(f"note: {of_level if name == REST else f'--rdb auto leaves out {name}, which'} {reason}")
        gc.collect()

    def timings(rounds: Rounds) -> list[Timing]:
        found = []
        for case in cases:
            own = {name: seconds for (of, name), seconds in rounds.items() if of == case}
            rest = own.pop(REST, [])
            found.append(Timing(own, failed[case], rest))
        return found

    def clear(rounds: Rounds) -> bool:
        so_far = timings(rounds)
        return all(timing.rounds for timing in so_far) and is_clear(so_far)

    def group(key: tuple[Case, str]) -> Hashable:
        return key if key[1] == REST else key[0]

    found = timings(run_rounds(contenders, clear, leave_out, budget(cases[0]), group))
    if not any(timing.rounds for timing in found):
        raise UserError(
            f"no implementation of the block can compute {cases[0].key()} (the notes say why); "
            "give a smaller --batch-size or --patch-size"
        )
    return found


def budget(case: Case) -> float:
    """Return the seconds for rounds beyond the usual ones (rounds.py)."""
    return BUDGET if case.training else PICTURE_BUDGET


def why_not(name: str, case: Case) -> str | None:
    """Run the case once by an impl that was not timed now. Return what goes wrong, else None.

    It may have been chosen when compiler, driver or free memory were others. On a host, where none of them decides,
    nothing is run.
    """
    if devices.is_host(case.device):
        return None
    try:
        timed_block(name, case, *_example(case))(1)
    except Exception as error:  # what run_rounds() leaves out
        return _failure(error)
    return None


def _failure(error: Exception) -> str:
    if isinstance(error, RuntimeError) and devices.is_out_of_memory(error):
        return "runs out of memory"
    return f"fails: {what_failed(error)}"


class Timed:
    """forward(), and in training backward to `inputs`, launched the way a training step is."""

    def __init__(self, forward: Callable[[], torch.Tensor], inputs: list[torch.Tensor], case: Case, what: str):
        self._forward, self._inputs, self._case = forward, inputs, case
        self._step = devices.CudaGraphed(self._train, case.device, what) if case.training else None

    def __call__(self, repeats: int) -> float:
        """Return the mean seconds of `repeats` calls. What a step captures is captured before the clock."""
        with torch.inference_mode(False), torch.set_grad_enabled(self._case.training):
            if self._step:
                self._step.prepare()
            devices.synchronize(self._case.device)
            start = time.perf_counter()
            for _ in range(repeats):
                (self._step or self._forward)()
            devices.synchronize(self._case.device)
            return (time.perf_counter() - start) / repeats

    def _train(self) -> None:
        y = self._forward()
        torch.autograd.grad(y, self._inputs, y.detach())


@torch.inference_mode(False)  # whose tensors a compiler may not take
def timed_block(name: str, case: Case, block: RDB, x: torch.Tensor) -> Timed:
    """Return the impl called `name` on a block, whose float32 weights it casts or packs: a step at each call, a frozen
    model once.
    """
    impl, what = select(name, case.device, case.dtype, case.training), f"a block by {name}"
    if not case.training:
        return Timed(partial(FrozenRDB(block), x, impl), [], case, what)

    def forward() -> torch.Tensor:
        return block(x, impl, *impl.pack([block.weights], case.dtype))

    return Timed(forward, [x, *block.tensors], case, what)


@torch.inference_mode(False)
@torch.no_grad()
def _example(case: Case) -> tuple[RDB, torch.Tensor]:
    """Return a block with random weights, and random x, which requires gradients when training."""
    c, generator = case.model_config, torch.Generator().manual_seed(0)
    memory_format = devices.memory_format(case.device)
    with torch.device("meta"):
        block = RDB(c.num_features, c.growth_rate, c.num_layers)
    block.to_empty(device=case.device).to(memory_format=memory_format)
    for tensor in block.tensors:
        std = (2 / tensor[0].numel()) ** 0.5 if tensor.dim() == 4 else 0.1
        tensor.copy_(torch.randn(tensor.shape, generator=generator).mul_(std))
    x = torch.randn(case.batch, c.num_features, case.height, case.width, generator=generator)
    x = x.to(case.device, case.dtype, memory_format=memory_format)
    return block, x.requires_grad_(case.training)
