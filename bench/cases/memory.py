"""Peak memory of one rdn-b training step, less what was resident before it (weights, optimizer state).

Each is measured in a process of its own. On an accelerator it is what torch has allocated there. On a CPU it is the
kernel's: the peak of the resident set (VmHWM, reset through /proc/self/clear_refs) less the resident set before the
step, with every large block mapped by itself, so that what is freed leaves the resident set at once.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from bench import baseline, process, tables
from bench.case import Case, Column, Gate
from bench.measure import Bench
from bench.models import PATCH, RDN_B, kernel_note, ours, reference_dtype, resolve_impl, words
from bench.results import Row
from rdn_fast import devices
from rdn_fast.precision import dtype_name
from rdn_fast.rdb import amx, winograd

NAME, BATCH = "memory", 16


def run(bench: Bench, command: str) -> None:
    """Compare rdn_fast in its default dtype with the reference's recipe and the stock one that trains fastest."""
    print(f"\n{NAME} of a training step, batch {BATCH}, rdn-b")
    how, shape = "kernel's VmHWM less VmRSS" if bench.on_cpu else "torch's allocator", words(RDN_B, PATCH, PATCH)
    impl = resolve_impl(bench.impl, RDN_B, (BATCH, 3, PATCH, PATCH), bench.device, bench.default, True)
    stock, stock_dtype, options = bench.strongest_stock()
    recipes = [("reference", reference_dtype(bench.device), {}), (stock, stock_dtype, options)]
    first = None
    for recipe, dtype, given in [*recipes, ("rdn_fast", bench.default, {"impl": impl})]:
        try:
            bytes = peak(recipe, dtype, BATCH, bench.device, **given)
        except RuntimeError as error:
            bench.fail(f"{NAME} of {recipe}: {error}")
            return
        first = first or bytes
        note = f"rdb {impl}{kernel_note(bench.device, dtype)}; {how}" if recipe == "rdn_fast" else how
        bench.row(NAME, recipe, dtype, BATCH, shape, peak_mb=bytes / 1e6, peak_share=bytes / first, note=note)


def peak(recipe: str, dtype: torch.dtype, batch: int, device: torch.device, **options) -> int:
    """Return bytes, measured in a new process. RuntimeError if it fails."""
    apart = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": "0"}
    return process.call(measure, recipe, dtype_name(dtype), batch, str(device), options, **apart)


def measure(recipe: str, dtype: str, batch: int, device: str, options: dict) -> int:
    """Return the peak of a step of rdn_fast, or of a recipe of bench/baseline.py, in this process, in bytes."""
    device = devices.pick(device)
    make = ours if recipe == "rdn_fast" else getattr(baseline, recipe.split(maxsplit=1)[0])
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
    share = "" if row.peak_share is None else f", {row.peak_share:.0%} of the reference's"
    return "" if row.peak_mb is None else f"{row.peak_mb / 1e3:.2f} GB{share}"


_CLAIM = "memory of a training step, default precision / reference"


CASE = Case(
    order=30,
    rows=(NAME,),
    commands=("1p", "amx", "all"),
    run=run,
    gates=(Gate(_CLAIM, NAME, "peak_share", 0.40, 0.25, batch=BATCH, at_most=True, own_kernel=True),),
    block="speeds",
    columns=(tables.BATCH, tables.RECIPE, tables.DTYPE, Column("peak memory", _share)),
    shows=tables.is_rdn_b,
)
