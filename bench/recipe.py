"""Recipes: a module with a way to train and to run it. Several become a Comparison, checked before they are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from bench.case import Comparison, Contender, Entry
from bench.parity import Parity, Results, solve_module
from rdn_fast.precision import dtype_name

Maker = tuple[str, torch.dtype, Callable[[], "Recipe"]]  # a recipe to be made: its name, its dtype, and how


class CannotRun(Exception):
    """This machine lacks what a recipe needs, which is no failure of the benchmark."""


@dataclass
class Recipe:
    """Functions that take tensors on `device`, in `memory_format` and the dtype of the parameters.

    infer(x) -> y, without gradients. step(x, target): one training step. forward(x): the output that step()
    differentiates. update(), if step() has one: the optimizer's part of it. `impl`: of rdn_fast, if it is one's.
    """

    model: nn.Module
    device: torch.device
    dtype: torch.dtype  # of the convolutions
    memory_format: torch.memory_format
    infer: Callable[[torch.Tensor], torch.Tensor]
    step: Callable[[torch.Tensor, torch.Tensor], None]
    forward: Callable[[torch.Tensor], torch.Tensor]
    update: Callable[[], object] | None = None
    note: str = ""
    impl: str = ""

    def put(self, x: torch.Tensor) -> torch.Tensor:
        dtype = next(self.model.parameters()).dtype
        return x.to(self.device, dtype).contiguous(memory_format=self.memory_format)

    def random(self, *sizes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        """Return an input in 0..1 of each size."""
        return tuple(self.put(torch.rand(size, device=self.device)) for size in sizes)

    def solve(self, training: bool, state: dict, x: torch.Tensor, upstream: torch.Tensor) -> Results:
        """Load `state`. Return the output, and in training the gradients, as parity.Problem asks."""
        self.model.load_state_dict(state)
        if not training:
            return {"output": self.infer(self.put(x)).float()}
        forward = lambda x: self.forward(x).float()  # noqa: E731
        return solve_module(self.model, self.put(x), upstream.to(self.device).float(), forward)

    def contender(self, training: bool, sizes: list[tuple[int, ...]], parity: Parity, what: str) -> Contender:
        """Return steps, or passes without gradients, on random inputs. `what` opens the message of its check."""
        *_, last = self.model.parameters()
        before: list[torch.Tensor] = []

        def check() -> None:
            parity.check(partial(self.solve, training), self.dtype, what)
            before[:] = [last.detach().clone()]

        def verify() -> None:
            assert not torch.equal(before[0], last), "the steps changed no weight"
            finite = all(parameter.isfinite().all() for parameter in self.model.parameters())
            assert finite, "the steps left weights that are not finite"

        run = self.step if training else self.infer
        contender = Contender(run, lambda: self.random(*sizes), check, note=self.note, impl=self.impl)
        if training and self.update:
            contender.verify = verify
        return contender


def comparison(
    case: str, shape: str, sizes: list[tuple], flop: int, training: bool, parity: Parity, makers: list[Maker]
) -> Comparison:
    """Return the recipes on random inputs of `sizes`: x, and in training the target as well."""

    def entry(name: str, dtype: torch.dtype, make: Callable[[], Recipe]) -> Entry:
        what = f"{name} {dtype_name(dtype)}"
        return Entry(name, dtype, lambda: make().contender(training, sizes, parity, what))

    return Comparison(case, sizes[0][0], shape, [entry(*maker) for maker in makers], sizes[0][0], flop)
