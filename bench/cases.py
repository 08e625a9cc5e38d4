"""What is timed: a case is a shape and the contenders on it. Add one by writing a function that returns a Case, and calling it in run.py."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bench import baseline
from bench.ours import Ours
from bench.parity import Problem, Results, solve_module
from rdn_fast import devices, rdb
from rdn_fast.config import ModelConfig, make_configs
from rdn_fast.rdb import autotune

PATCH = 32  # LR pixels, the reference's
RDN_A, RDN_B = (make_configs({}, preset)[0] for preset in ("rdn-a", "rdn-b"))


class Contender(ABC):
    """What a clock can be put to."""

    dtype: torch.dtype
    note = ""  # for its result row

    @abstractmethod
    def fresh(self) -> None:
        """Make new random inputs; outside the clock."""

    @abstractmethod
    def run(self) -> None:
        """Do once what is timed."""

    def verify(self) -> None:
        """AssertionError when what was timed has not done its work."""
        return


class Checked(Contender):
    """A contender whose answers are compared with the oracle's before it is timed."""

    @abstractmethod
    def solve(self, state: dict, x: torch.Tensor, upstream: torch.Tensor) -> Results:
        """The answers to a parity.Problem, by the code that run() times."""


@dataclass(frozen=True)
class Entry:
    """A contender to be made: the name of its recipe in result rows, its dtype, and how."""

    recipe: str
    dtype: torch.dtype
    make: Callable[[], Contender]

    @property
    def ours(self) -> bool:
        return not self.recipe.startswith(("reference", "stock", "ONNX", "OpenVINO"))


@dataclass
class Case(ABC):
    """`images` and `flop` are those of one run; None: there are none that count."""

    name: str
    batch: int
    shape: str
    images: int | None
    flop: int | None
    entries: list[Entry]

    @abstractmethod
    def check(self, contender: Contender, what: str) -> None:
        """AssertionError unless what the contender does is right."""


@dataclass
class Computing(Case):
    """Entries answer `problem(dtype)`; `plain(dtype)` is the formulation whose error is the yardstick."""

    problem: Callable[[torch.dtype], Problem]
    plain: Callable[[torch.dtype], Checked]
    _yardsticks: dict = field(default_factory=dict)

    def check(self, contender: Checked, what: str) -> None:
        """AssertionError unless the contender's answers are as good as bench/parity.py asks."""
        dtype = contender.dtype
        problem = self.problem(dtype)
        if dtype not in self._yardsticks:
            self._yardsticks[dtype] = problem.solved(self.plain(dtype).solve)
        problem.check(problem.solved(contender.solve), self._yardsticks[dtype], dtype, what)


class _Model(Checked):
    """A recipe of baseline.py or ours.py at work on random patches or pictures."""

    def __init__(self, recipe, batch: int, height: int, width: int, scale: int, training: bool):
        self.recipe, self.dtype, self.training, self.note = recipe, recipe.dtype, training, recipe.note
        self._sizes = (batch, 3, height, width), (batch, 3, scale * height, scale * width)

    def solve(self, state: dict, x: torch.Tensor, upstream: torch.Tensor) -> Results:
        if self.training:
            results = self.recipe.solve(state, x, upstream)
            self._before = self.recipe.model.output.weight.detach().clone()
            return results
        self.recipe.model.load_state_dict(state)
        x = x.to(self.recipe.device).contiguous(memory_format=self.recipe.memory_format)
        return {"output": self.recipe.infer(x).float()}

    def fresh(self) -> None:
        self._inputs = [
            torch.rand(size, device=self.recipe.device).contiguous(memory_format=self.recipe.memory_format)
            for size in (self._sizes if self.training else self._sizes[:1])
        ]

    def run(self) -> None:
        (self.recipe.step if self.training else self.recipe.infer)(*self._inputs)

    def verify(self) -> None:
        if self.training:
            assert not torch.equal(self._before, self.recipe.model.output.weight), "the steps changed no weight"
            assert all(p.isfinite().all() for p in self.recipe.model.parameters()), (
                "the steps left weights that are not finite"
            )


def _different(batch: int) -> int:
    """How many different images a parity.Problem of this batch is made of; they divide it."""
    return batch if batch < 4 else 2 - batch % 2


def _model_case(
    name: str,
    config: ModelConfig,
    batch: int,
    height: int,
    width: int,
    device: torch.device,
    dtypes: list,
    rdb_name: str,
    rows: bool,
) -> Case:
    training = name == "training step"

    def entry(recipe: str, dtype: torch.dtype, make: Callable) -> Entry:
        return Entry(recipe, dtype, lambda: _Model(make(), batch, height, width, config.scale, training))

    def chosen(dtype: torch.dtype) -> Ours:
        return Ours(
            config,
            device,
            dtype,
            autotune.choose(rdb_name, autotune.Case.of(config, (batch, 3, height, width), device, dtype, training)),
        )

    reference = (
        torch.float32 if device.type == "cpu" else devices.low_precision(device)
    )  # elsewhere: the reference under AMP
    entries = [entry("reference", reference, functools.partial(baseline.Reference, config, device, reference))]
    for dtype in dtypes:
        for suffix, options in baseline.variants(device, dtype, training):
            entries.append(
                entry("stock" + suffix, dtype, functools.partial(baseline.Stock, config, device, dtype, **options))
            )
        entries.append(entry("rdn_fast", dtype, functools.partial(chosen, dtype)))
        for row in rdb.able(device, dtype, training) if rows else ():
            entries.append(entry(f"row {row.name}", dtype, functools.partial(Ours, config, device, dtype, row.name)))

    @functools.cache
    def problem() -> Problem:  # parameters and input in float32, whatever the recipe computes in
        return Problem(
            baseline.RDN(config), torch.rand(_different(batch), 3, height, width), torch.float32, batch, training
        )

    def plain(dtype: torch.dtype) -> Checked:
        return _Model(baseline.Reference(config, device, dtype), batch, height, width, config.scale, training)

    return Computing(
        name,
        batch,
        f"{words(config)}, {height}x{width}",
        batch,
        batch * 2 * config.macs(height, width) * (3 if training else 1),
        entries,
        lambda _: problem(),
        plain,
    )


def training_step(
    config: ModelConfig, batch: int, device: torch.device, dtypes: list, rdb_name: str, rows: bool = False
) -> Case:
    """A training step on random patches: reference, strongest stock and rdn_fast; with `rows` also every row of the RDB table that can train here."""
    return _model_case("training step", config, batch, PATCH, PATCH, device, dtypes, rdb_name, rows)


def inference(
    config: ModelConfig, height: int, width: int, device: torch.device, dtypes: list, rdb_name: str, rows: bool = False
) -> Case:
    """One LR picture: reference, stock and rdn_fast; with `rows` also every row of the RDB table that runs here."""
    return _model_case("inference", config, 1, height, width, device, dtypes, rdb_name, rows)


class _Block(Checked):
    """One RDB: the plain module, or a row of the table on the module's parameters."""

    def __init__(
        self,
        config: ModelConfig,
        shape: tuple,
        device: torch.device,
        dtype: torch.dtype,
        training: bool,
        layout: torch.memory_format,
        row=None,
    ):
        g0 = config.num_features
        self.module = baseline.RDB(g0, config.growth_rate, config.num_layers).to(device, dtype, memory_format=layout)
        self.device, self.dtype, self.training, self.layout = device, dtype, training, layout
        self._size = (shape[0], g0, *shape[1:])
        self._forward = self.module if row is None else functools.partial(self._row, row.module.rdb)

    def _row(self, function: Callable, x: torch.Tensor) -> torch.Tensor:
        convs = [layer.conv for layer in self.module.layers]
        return function(
            x,
            [conv.weight for conv in convs],
            [conv.bias for conv in convs],
            self.module.lff.weight,
            self.module.lff.bias,
        )

    def solve(self, state: dict, x: torch.Tensor, upstream: torch.Tensor) -> Results:
        self.module.load_state_dict(state)
        x = self._here(x)
        if self.training:
            return solve_module(self.module, x, self._here(upstream), self._forward)
        with torch.inference_mode():
            return {"output": self._forward(x)}

    def fresh(self) -> None:
        self._x, self._upstream = (self._here(torch.randn(self._size, device=self.device)) for _ in range(2))
        self._x.requires_grad_(self.training)

    def run(self) -> None:
        if not self.training:
            with torch.inference_mode():
                self._forward(self._x)
            return
        self.module.zero_grad()
        self._x.grad = None
        self._forward(self._x).backward(self._upstream)

    def _here(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.device, self.dtype).contiguous(memory_format=self.layout)


def block(training: bool, config: ModelConfig, shape: tuple, device: torch.device, dtype: torch.dtype) -> Case:
    """One RDB on [batch, height, width] = `shape`, in one dtype: the plain module in both layouts, and every row that can run here."""
    batch, height, width = shape
    fast = devices.memory_format(device)

    def entry(recipe: str, layout: torch.memory_format, row=None) -> Entry:
        return Entry(recipe, dtype, lambda: _Block(config, shape, device, dtype, training, layout, row))

    layouts = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format, "any": fast}
    entries = [entry("reference", torch.contiguous_format), entry("stock", fast)]
    entries += [entry(f"row {row.name}", layouts[row.layout], row) for row in rdb.able(device, dtype, training)]

    @functools.cache
    def problem(dtype: torch.dtype) -> Problem:
        module = baseline.RDB(config.num_features, config.growth_rate, config.num_layers)
        return Problem(
            module, torch.randn(_different(batch), config.num_features, height, width), dtype, batch, training
        )

    def plain(dtype: torch.dtype) -> Checked:
        return _Block(config, shape, device, dtype, training, torch.contiguous_format)

    name, factor = ("RDB training", 3) if training else ("RDB forward", 1)
    flop = batch * 2 * height * width * config.block_macs * factor
    return Computing(name, batch, f"{words(config)}, {height}x{width}", batch, flop, entries, problem, plain)


def words(c: ModelConfig) -> str:
    """A model's shape in a row."""
    return f"x{c.scale} D{c.num_blocks} C{c.num_layers} G{c.growth_rate} G0 {c.num_features}"
