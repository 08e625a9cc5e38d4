"""A training step of rdn-b on random patches: reference, strongest stock and rdn_fast."""

from __future__ import annotations

import torch

from bench import tables
from bench.case import CPUS, EVERY, RDN_B_SHAPE, Case, Comparison, Gate
from bench.measure import Bench
from bench.models import PATCH, RDN_A, RDN_B, compare, makers
from bench.results import Row
from rdn_fast.config import ModelConfig

NAME = "training step"

SHORT = 0.85  # of the newest earlier row: below that a baseline is in doubt


def comparison(
    model_config: ModelConfig, batch: int, device: torch.device, dtypes: list, impl: str, every: bool = False
) -> Comparison:
    """Return the recipes on `batch` patches; with `every` also every RDB implementation that can train here."""
    lr = batch, 3, PATCH, PATCH
    recipes = makers(model_config, lr, device, True, dtypes, impl, every)
    return compare(NAME, model_config, lr, device, True, recipes)


def run(bench: Bench, command: str) -> None:
    batch, every = 8 if bench.on_cpu else 64, command in EVERY
    bench.compare(comparison(RDN_B, batch, bench.device, bench.dtypes, bench.impl, every), bench.rounds)
    for config, size in ((RDN_A, batch), (RDN_B, 1)) if command == "all" else ():
        bench.compare(comparison(config, size, bench.device, bench.dtypes, bench.impl, every), rounds=3)


def remarks(rows: list[Row], earlier: list[list[Row]]) -> list[str]:
    """Return a line for every baseline: whether it reaches the newest earlier row of the same device.

    Also one for every dtype whose strongest stock recipe is slower than the reference.
    """
    rows = [row for row in rows if row.case == NAME and row.shape.startswith(RDN_B_SHAPE) and row.gflops is not None]
    baselines = [row for row in rows if row.recipe.startswith(("reference", "stock"))]
    lines = [f"{row.recipe} {row.dtype} trains at {row.gflops:.0f} GFLOP/s{_beside(row, earlier)}" for row in baselines]
    stock = {}
    for row in baselines:
        if row.recipe.startswith("stock") and row.vs_reference is not None:
            stock.setdefault((row.dtype, row.batch), []).append(row)
    for (dtype, batch), variants in stock.items():
        best = max(variants, key=lambda row: row.vs_reference)
        if best.vs_reference < 1:
            ratio = f"SLOWER than the reference at batch {batch}: {best.vs_reference:.2f}x of its speed"
            lines.append(f"the strongest stock in {dtype}, {best.recipe}, is {ratio}")
    return lines


def _beside(row: Row, earlier: list[list[Row]]) -> str:
    """Return what the newest earlier row of this work on the same device says of it."""
    same = ("device", "case", "recipe", "dtype", "batch", "shape")
    found = [
        old
        for rows in earlier
        for old in rows
        if old.gflops is not None and all(getattr(old, name) == getattr(row, name) for name in same)
    ]
    if not found:
        return "; no earlier row of such a machine is there to compare with"
    old = found[-1]
    words = f"the newest earlier row of such a machine says {old.gflops:.0f} ({old.date[:10]}, {old.commit})"
    if row.gflops >= SHORT * old.gflops:
        return f"; {words}"
    return f": MORE THAN 15% SHORT, {words}; ratios against it flatter, find out why"


_DEFAULT = "CPU, training step, default precision / reference (fp32)"
_ANY = "CPU, training step, default precision / strongest stock in any precision"
_BF16, _FP32 = (f"CPU, training step, {dtype} / strongest stock {dtype}" for dtype in ("bf16", "fp32"))
_AMX = "CPU with AMX, training step, bf16 / strongest stock bf16"
_AMX_REST = "CPU with AMX, training step, bf16 / strongest of all others"
_TILES = {"dtype": "bfloat16", "batch": 8, "places": ("cpu+amx",), "own_kernel": True}
_H100 = "H100, training step, fp16 O1 / strongest stock"
CASE = Case(
    order=10,
    rows=(NAME,),
    commands=("1p", "amx", "all"),
    run=run,
    gates=(
        Gate(_DEFAULT, NAME, "vs_reference", 2.4, 2.9, batch=8, places=CPUS),
        Gate(_ANY, NAME, "vs_other", 0.95, 1.2, batch=8, places=CPUS),
        Gate(_BF16, NAME, "vs_stock", 1.08, 1.2, dtype="bfloat16", batch=8, places=("cpu+bf16",), own_kernel=True),
        Gate(_AMX, NAME, "vs_stock", 2.0, 3.0, **_TILES),
        Gate(_AMX_REST, NAME, "vs_rest", 2.0, 3.0, **_TILES, commands=EVERY),
        Gate(_FP32, NAME, "vs_stock", 1.05, 1.2, dtype="float32", batch=8, places=CPUS),
        Gate(_H100, NAME, "vs_stock", 1.25, 2.0, dtype="float16", batch=64, places=("h100",)),
    ),
    remarks=remarks,
    quick=lambda device, dtypes: [comparison(RDN_B, 1, device, dtypes, "auto", every=True)],
    **tables.MODEL_SPEEDS,
)
