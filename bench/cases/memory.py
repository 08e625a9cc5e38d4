"""Peak memory of one rdn-b training step, less what was resident before it (weights, optimizer state).

Each is measured in a process of its own. On an accelerator it is what torch has allocated there. On a CPU it is the
kernel's: the peak of the resident set (VmHWM, reset through /proc/self/clear_refs) less the resident set before the
step, with every large block mapped by itself, so that what is freed leaves the resident set at once.

amx is held against naive in bf16. Where the processor has no tiles, that is its build in plain C, which takes the same
memory: the two differ in the tile operations alone.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from bench import baseline, process, tables
from bench.case import BF16_CPUS, EVERY, Case, Column, Gate
from bench.measure import Bench
from bench.models import PATCH, RDN_B, kernel_note, ours, reference_dtype, resolve_impl, words
from bench.results import Row
from rdn_fast import devices
from rdn_fast.precision import dtype_name
from rdn_fast.rdb import amx, in_c, winograd

NAME, BATCH = "memory", 16
AMX = "impl amx"


def run(bench: Bench, command: str) -> None:
    """Compare rdn_fast in its default dtype with the reference's recipe and the stock one that trains fastest.

    In `amx` and `all` also amx with naive, on processors with bf16.
    """
    print(f"\n{NAME} of a training step, batch {BATCH}, rdn-b")
    how, shape = "kernel's VmHWM less VmRSS" if bench.on_cpu else "torch's allocator", words(RDN_B, PATCH, PATCH)
    impl = resolve_impl(bench.impl, RDN_B, (BATCH, 3, PATCH, PATCH), bench.device, bench.default, True)
    stock, stock_dtype, options = bench.strongest_stock()
    chosen = {"impl": impl, "note": f"rdb {impl}{kernel_note(bench.device, bench.default)}; "}
    recipes = [("reference", reference_dtype(bench.device), {}), (stock, stock_dtype, options)]
    recipes.append(("rdn_fast", bench.default, chosen))
    if command in EVERY and bench.on_cpu and torch.bfloat16 in bench.dtypes:
        recipes.append(("impl naive", torch.bfloat16, {"impl": "naive"}))
        recipes.append((AMX, torch.bfloat16, {"impl": "amx", "note": "tiles in plain C; " if amx.missing() else ""}))
    found: dict[tuple, int] = {}
    for recipe, dtype, given in recipes:
        note = given.pop("note", "") + how
        try:
            bytes = found[recipe, dtype] = peak(recipe, dtype, BATCH, bench.device, **given)
        except RuntimeError as error:
            bench.fail(f"{NAME} of {recipe}: {error}")
            return
        figures = {"peak_mb": bytes / 1e6, "peak_share": bytes / next(iter(found.values()))}
        if (naive := found.get(("impl naive", dtype))) and recipe != "impl naive":
            figures["peak_of_naive"] = bytes / naive
        bench.row(NAME, recipe, dtype, BATCH, shape, note=note, **figures)


def peak(recipe: str, dtype: torch.dtype, batch: int, device: torch.device, **options) -> int:
    """Return bytes, measured in a new process. RuntimeError if it fails."""
    apart = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": "0"}
    return process.call(measure, recipe, dtype_name(dtype), batch, str(device), options, **apart)


def measure(recipe: str, dtype: str, batch: int, device: str, options: dict) -> int:
    """Return the peak of a step of rdn_fast, or of a recipe of bench/baseline.py, in this process, in bytes.

    Of "impl NAME": of rdn_fast with that implementation; amx in plain C where there are no tiles.
    """
    device = devices.pick(device)
    if recipe == AMX and amx.missing():
        amx.block.kernels = in_c.Kernels(amx.SOURCE, amx.PLAIN)
    make = ours if recipe.startswith(("rdn_fast", "impl ")) else getattr(baseline, recipe.split(maxsplit=1)[0])
    made = make(RDN_B, device, getattr(torch, dtype), **options)

    def step(batch: int) -> int:
        inputs = made.random((batch, 3, PATCH, PATCH), (batch, 3, 2 * PATCH, 2 * PATCH))
        before = _reset_peak(device)
        made.step(*inputs)
        return _peak(device) - before

    step(1)  # optimizer state, code and first-time allocations are resident before the step that counts
    made.model.zero_grad()
    for block in (winograd.block, amx.block):
        block.scratch.clear()  # scratch that lives on after a step is memory of the step all the same
    gc.collect()
    return step(batch)


def _reset_peak(device: torch.device) -> int:
    """Return the bytes in use now; the peak starts anew from here."""
    if device.type != "cpu":
        devices.synchronize(device)
        torch.accelerator.reset_peak_memory_stats()
        return torch.accelerator.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return process.memory("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type != "cpu":
        devices.synchronize(device)
        return torch.accelerator.max_memory_allocated()
    return process.memory("VmHWM")


def _share(row: Row) -> str:
    if row.peak_mb is None:
        return ""
    share = "" if row.peak_share is None else f", {row.peak_share:.0%} of the reference's"
    return f"{row.peak_mb / 1e3:.2f} GB{share}" + (f", {row.peak_of_naive:.0%} of naive's" if row.peak_of_naive else "")


_CLAIM = "memory of a training step, default precision / reference"
_AMX = "memory of a training step, bf16, amx / naive"
_BF16 = {"recipe": AMX, "dtype": "bfloat16", "batch": BATCH, "places": BF16_CPUS, "commands": EVERY}
CASE = Case(
    order=30,
    rows=(NAME,),
    commands=("1p", "amx", "all"),
    run=run,
    gates=(
        Gate(_CLAIM, NAME, "peak_share", 0.40, 0.25, batch=BATCH, at_most=True, own_kernel=True),
        Gate(_AMX, NAME, "peak_of_naive", 0.40, 0.25, at_most=True, **_BF16),
    ),
    block="speeds",
    columns=(tables.BATCH, tables.RECIPE, tables.DTYPE, Column("peak memory", _share)),
    shows=tables.is_rdn_b,
)
