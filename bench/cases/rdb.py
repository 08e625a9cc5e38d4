"""One residual dense block, forward and training: the plain module and every RDB implementation that runs here."""

from __future__ import annotations

from functools import partial

import torch

from bench import baseline, tables
from bench.case import RDN_B_SHAPE, Case, Comparison
from bench.measure import Bench
from bench.models import RDN_A, RDN_B, words
from bench.parity import Parity, Problem, distinct_images
from bench.recipe import Recipe
from bench.recipe import comparison as compare
from rdn_fast import devices, rdb
from rdn_fast.config import ModelConfig
from rdn_fast.rdb import Impl

FORWARD, TRAINING = "RDB forward", "RDB training"


def block(
    model_config: ModelConfig, device: torch.device, dtype: torch.dtype, memory_format, impl: Impl | None = None
) -> Recipe:
    """Return the plain module, or `impl` with its parameters; a step is forward and backward, without an optimizer."""
    module = _module(model_config).to(device, dtype, memory_format=memory_format)
    convs, lff = [layer.conv for layer in module.layers], module.lff

    def forward(x: torch.Tensor) -> torch.Tensor:
        if impl is None:
            return module(x)
        weights, biases = [conv.weight for conv in convs], [conv.bias for conv in convs]
        return impl.rdb(x, weights, biases, lff.weight, lff.bias)

    def step(x: torch.Tensor, upstream: torch.Tensor) -> None:
        module.zero_grad()
        forward(x.detach().requires_grad_()).backward(upstream)

    return Recipe(module, device, dtype, memory_format, torch.inference_mode()(forward), step, forward)


def _module(c: ModelConfig) -> baseline.RDB:
    return baseline.RDB(c.num_features, c.growth_rate, c.num_layers)


def comparison(
    training: bool, model_config: ModelConfig, shape: tuple, device: torch.device, dtype: torch.dtype
) -> Comparison:
    """Return one RDB on [batch, height, width] = `shape`: the module in both memory formats, all implementations."""
    batch, height, width = shape
    size, fast = (batch, model_config.num_features, height, width), devices.memory_format(device)
    make = partial(block, model_config, device, dtype)
    plain = [partial(make, torch.contiguous_format), partial(make, fast)]
    makers = [("reference", dtype, plain[0]), ("stock", dtype, plain[1])]
    makers += [(f"impl {impl.name}", dtype, partial(make, fast, impl)) for impl in rdb.able(device, dtype, training)]

    def problem(dtype: torch.dtype, _: int) -> Problem:
        x = torch.randn(distinct_images(batch), *size[1:])
        return Problem(_module(model_config), x, dtype, batch, training)

    parity = Parity(problem, lambda _: [partial(recipe().solve, training) for recipe in plain])
    flop = 2 * batch * height * width * model_config.block_macs * (3 if training else 1)
    shape = words(model_config, height, width)
    return compare(
        TRAINING if training else FORWARD, shape, [size, size][: 1 + training], flop, training, parity, makers
    )


def run(bench: Bench, command: str) -> None:
    """Alone: rdn-b at the training batch, in the default dtype. In `all`: other shapes and dtypes, too."""
    batch = 8 if bench.on_cpu else 64
    shapes, dtypes = [(RDN_B, (batch, 32, 32))], [bench.default]
    if command == "all":
        shapes += [(RDN_A, (batch, 32, 32)), (RDN_B, (1, 96, 96)), (RDN_B, (3, 37, 41))]
        dtypes = bench.dtypes
    for training in (False, True):
        for model_config, shape in shapes:
            for dtype in dtypes:
                bench.compare(comparison(training, model_config, shape, bench.device, dtype), rounds=5)


_CHARTED = f"{RDN_B_SHAPE}, 32x32"
CASE = Case(
    order=70,
    rows=(FORWARD, TRAINING),
    commands=("all",),
    run=run,
    chart=tables.direct_chart("rdb", "one residual dense block of rdn-b", lambda row: row.shape == _CHARTED),
    quick=lambda device, dtypes: [
        comparison(training, RDN_B, (2, 32, 32), device, dtype) for dtype in dtypes for training in (False, True)
    ],
)
