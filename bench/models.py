"""Recipes of whole models: rdn_fast, the very step of `rdn-fast train`, beside the baselines."""

from __future__ import annotations

from functools import cache, partial

import torch

from bench import baseline
from bench.case import NO_KERNEL, Comparison
from bench.parity import Parity, Problem, distinct_images
from bench.recipe import CannotRun, Maker, Recipe, comparison
from rdn_fast import devices, precision, rdb
from rdn_fast.auto_level import resolve_precision
from rdn_fast.config import ModelConfig, make_configs
from rdn_fast.model import RDN
from rdn_fast.rdb import autotune
from rdn_fast.training.optimizer_step import make_optimizer_step
from rdn_fast.training.step import TrainStep

PATCH = 32  # LR pixels, the reference's
RDN_A, RDN_B = (make_configs({}, preset)[0] for preset in ("rdn-a", "rdn-b"))
OPERATIONS = ("naive", "sliced", "summed", "compiled", "torchair")  # impls of PyTorch's operations, no kernels of ours
LEVELS = {torch.float32: ("O0", "auto"), torch.float16: ("O1", "fp16"), torch.bfloat16: ("O1", "bf16")}


def words(c: ModelConfig, height: int | None = None, width: int | None = None) -> str:
    """Return the shape of a model, and of its input, as rows have it."""
    model = f"x{c.scale} D{c.num_blocks} C{c.num_layers} G{c.growth_rate} G0 {c.num_features}"
    return model if height is None else f"{model}, {height}x{width}"


def reference_dtype(device: torch.device) -> torch.dtype:
    """Return what the reference's recipe computes in: float32 on a CPU, elsewhere the usual low precision (AMP)."""
    return torch.float32 if device.type == "cpu" else devices.low_precision(device)


def default_dtype(
    device: torch.device, model_config: ModelConfig = RDN_B, lr: tuple = (16, 3, PATCH, PATCH)
) -> torch.dtype:
    """Return what `--opt-level auto` trains in, on inputs of the size `lr`, [B, 3, H, W]."""
    return resolve_precision("auto", "auto", device, model_config, lr).compute


def resolve_impl(impl: str, model_config: ModelConfig, lr: tuple, device, dtype: torch.dtype, training: bool) -> str:
    """Return the RDB implementation that `--rdb impl` stands for, on inputs of the size `lr`, [B, 3, H, W]."""
    return autotune.resolve_impl(impl, autotune.Case.of(model_config, lr, device, dtype, training))


def ours(model_config: ModelConfig, device: torch.device, dtype: torch.dtype, impl: str) -> Recipe:
    """The model with an RDB implementation, channels-last if the device takes it, fused Adam with its skip flag."""
    memory_format, chosen = devices.memory_format(device), precision.resolve(*LEVELS[dtype], device)
    model = RDN(model_config, impl).to(device, memory_format=memory_format)
    chosen.apply(model)
    optimizer = devices.adam(model.parameters(), device, baseline.LR, weight_decay=0.0, captured=True)
    update = make_optimizer_step(optimizer, device, 1.0 if dtype == torch.float32 else baseline.LOSS_SCALE)
    train_step = TrainStep(model, optimizer, update, device)

    @torch.inference_mode()
    def infer(lr: torch.Tensor) -> torch.Tensor:
        model.eval()
        return model(lr)

    def step(lr: torch.Tensor, hr: torch.Tensor) -> None:
        train_step(lr, hr, torch.full((), 1 / hr.numel(), device=device))

    note = f"rdb {impl}{kernel_note(device, dtype)}"
    return Recipe(model, device, dtype, memory_format, infer, step, model, update.step, note, impl)


def kernel_note(device: torch.device, dtype: torch.dtype) -> str:
    """Return what a row says where rdn_fast can only combine PyTorch's operations; else ""."""
    return "" if {impl.name for impl in rdb.able(device, dtype, False)} - {*OPERATIONS} else f"; {NO_KERNEL}"


def makers(
    model_config: ModelConfig, lr: tuple, device: torch.device, training: bool, dtypes: list, impl: str, every: bool
) -> list[Maker]:
    """Return reference, stock, rdn_fast with `impl` (auto: the fastest), and with `every` all RDB implementations.

    One that this machine cannot compute is among these: its row says why.
    """
    low = reference_dtype(device)
    found = [("reference", low, partial(baseline.reference, model_config, device, low))]
    for dtype in dtypes:
        where = model_config, device, dtype
        for suffix, options in baseline.stock_variants(device, dtype, training).items():
            found.append((f"stock{suffix}", dtype, partial(baseline.stock, *where, **options)))
        resolve = partial(resolve_impl, impl, model_config, lr, device, dtype, training)
        found.append(("rdn_fast", dtype, lambda where=where, resolve=resolve: ours(*where, resolve())))
        for one in rdb.IMPLS.values() if every else ():
            if device.type in one.devices and dtype in one.dtypes:
                found.append((f"impl {one.name}", dtype, partial(_ours_if_able, one, training, *where)))
    return found


def _ours_if_able(impl: rdb.Impl, training: bool, model_config: ModelConfig, device, dtype: torch.dtype) -> Recipe:
    """As ours(). Raise CannotRun with the reason why the impl cannot run here."""
    if reason := rdb.refusal(impl, device, dtype, training):
        raise CannotRun(reason)
    return ours(model_config, device, dtype, impl.name)


def compare(
    case: str, model_config: ModelConfig, lr: tuple, device: torch.device, training: bool, makers: list[Maker]
) -> Comparison:
    """Return recipes on random inputs of the size `lr`, [B, 3, H, W], checked on float32 parameters and inputs."""
    batch, channels, height, width = lr
    hr = batch, channels, model_config.scale * height, model_config.scale * width

    @cache  # for all dtypes
    def problem(which: int) -> Problem:
        x = torch.rand(distinct_images(batch), *lr[1:])
        return Problem(baseline.RDN(model_config), x, torch.float32, batch, training)

    def plain(dtype: torch.dtype) -> list:
        return [partial(recipe.solve, training) for recipe in baseline.plain(model_config, device, dtype)]

    flop = 2 * batch * model_config.macs(height, width) * (3 if training else 1)
    shape, sizes = words(model_config, height, width), [lr, hr] if training else [lr]
    return comparison(case, shape, sizes, flop, training, Parity(lambda _, which: problem(which), plain), makers)
