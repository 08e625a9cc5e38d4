"""One run of the benchmarks: contenders are checked, then timed in turn, then the gates judge the rows."""

from __future__ import annotations

import gc
import time

import torch

from bench import cases
from bench.case import Comparison, Entry
from bench.models import default_dtype
from bench.results import Results, Row, has_bf16
from bench.timing import Times, ceilings, interleave, once
from rdn_fast import devices
from rdn_fast.precision import dtype_name


def dtypes_of(device: torch.device) -> list[torch.dtype]:
    """Return what recipes are timed in: on CPUs float32, and bf16 where there are instructions for it."""
    if device.type != "cpu":
        return [default_dtype(device)]
    return [torch.float32, torch.bfloat16][: 1 + has_bf16(device)]


class Bench:
    """One run: its device, its result file, and what went wrong so far. `impl`: what rdn_fast gets as --rdb."""

    def __init__(self, command: str, device: torch.device, impl: str, ranks: int = 1):
        self.device, self.impl, self.ranks, self.failures = device, impl, ranks, []
        self.on_cpu = device.type == "cpu"
        self.rounds = 3 if self.on_cpu else 10
        self.results = Results(f"bench-{command}", device)
        self.default, self.dtypes = default_dtype(device), dtypes_of(device)
        self._ceilings: dict[str, float] = {}
        devices.enable_autotuning(device)  # for every recipe, as the reference's train.py does

    def ceilings(self) -> None:
        for dtype, (what, times, gflops) in ceilings(self.device, self.dtypes).items():
            self.row("ceiling", what, dtype, 0, "", times, gflops=gflops)
            self._ceilings[dtype_name(dtype)] = gflops

    def compare(self, comparison: Comparison, rounds: int, **clock: float) -> list[Entry]:
        """Check every contender, time those that are right in turn, and write their rows. Return their entries.

        `clock`: options of timing.interleave.
        """
        print(f"\n{comparison.case}, batch {comparison.batch}, {comparison.shape}")
        ready = {}
        for entry in comparison.entries:
            try:
                contender = entry.build()
                contender.check()
                once(contender, self.device, warm_ups(self.device))
            except AssertionError as error:
                self._refuse(comparison, entry, f"wrong: {error}")
            except Exception as error:  # whatever a compiler or a driver raises
                words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                why = "out of memory" if devices.is_out_of_memory(error) else words
                self._refuse(comparison, entry, f"cannot run: {why}")
            else:
                ready[entry] = contender
        times = interleave(ready, self.device, rounds, **clock)
        for entry in list(times):
            try:
                ready[entry].verify()
            except AssertionError as error:
                del times[entry]
                self._refuse(comparison, entry, f"wrong: {error}")
        stock, reference = _fastest(times, "stock"), next(iter(_fastest(times, "reference").values()), None)
        for entry, mine in times.items():
            figures = {
                "images_s": comparison.images and comparison.images / mine.median,
                "gflops": comparison.flop and comparison.flop / mine.median / 1e9,
                "vs_reference": reference and mine.over(reference),
                "vs_stock": mine.over(stock[entry.dtype]) if entry.dtype in stock else None,
            }
            what = comparison.case, entry.recipe, entry.dtype, comparison.batch, comparison.shape
            self.row(*what, mine, note=ready[entry].note, **figures)
        ready.clear()
        gc.collect()
        if not self.on_cpu:
            torch.accelerator.empty_cache()  # the next runs are other processes
        return list(times)

    def row(
        self, case: str, recipe: str, dtype: torch.dtype, batch: int, shape: str, times=None, cards: int = 1, **values
    ) -> None:
        """Write and print a result row, of the columns `values` and of what follows from the Times and `gflops`.

        `cards`: how many devices reached `gflops` together; the ceiling is one device's.
        """
        name, gflops = dtype_name(dtype), values.get("gflops")
        if times is not None:
            values |= {"rounds": len(times.rounds), "seconds": times.median}
            values |= {"seconds_min": min(times.rounds), "seconds_max": max(times.rounds)}
        if gflops is not None and name in self._ceilings:
            values["ceiling_share"] = gflops / cards / self._ceilings[name]
        values["precision"] = "default" if (recipe, dtype) == ("rdn_fast", self.default) else ""
        row = self.results.add(case=case, recipe=recipe, dtype=name, batch=batch, shape=shape, **values)
        print(f"  {row.line()}", flush=True)

    def fail(self, what: str) -> None:
        self.failures.append(what)

    def conclude(self, command: str, began: float) -> int:
        """Print remarks on the rows, the verdicts and what failed. Return the exit code."""
        rows = self.results.rows
        print("\nbaselines")
        for line in [*(line for case in cases.of_command(command) for line in case.remarks(rows)), *unsteady(rows)]:
            print(f"  {line}")
        print("\ngates")
        verdicts = [gate.judge(rows, rows[0].place, self.ranks) for gate in cases.gates(command)]
        for verdict in verdicts:
            print(f"  {verdict.line()}")
            if verdict.word == "not measured":
                self.fail(f"{verdict.gate.what}: not measured")
        missed = sum(verdict.word == "missed" for verdict in verdicts)
        for failure in self.failures:
            print(f"FAILED  {failure}")
        seconds, failed = time.monotonic() - began, len(self.failures)
        print(f"\n{len(rows)} rows in {self.results.path}, {seconds:.0f} s, {missed} gates missed, {failed} failures")
        return 1 if missed or self.failures else 0

    def _refuse(self, comparison: Comparison, entry: Entry, why: str) -> None:
        """Note a contender that is not timed. If it is one of ours, or wrong, the run has failed."""
        what = comparison.case, entry.recipe, entry.dtype
        self.row(*what, comparison.batch, comparison.shape, kind="not measured", note=why)
        if entry.ours or why.startswith("wrong"):
            self.fail(f"{comparison.case}, {entry.recipe} {dtype_name(entry.dtype)}: {why}")


def warm_ups(device: torch.device) -> int:
    """Return how many runs come before the clock: compilation, first allocations, capture of a step's graph."""
    return 1 if device.type == "cpu" else devices.CudaGraphed.EAGER + 1


def _fastest(times: dict[Entry, Times], recipe: str) -> dict[torch.dtype, Times]:
    """Return the Times of the fastest recipe of this kind in each dtype."""
    kind = [entry for entry in times if entry.recipe.startswith(recipe)]
    return {entry.dtype: times[entry] for entry in sorted(kind, key=lambda entry: -times[entry].median)}


def unsteady(rows: list[Row]) -> list[str]:
    """Return a line for every row whose rounds differ so much that something else must have been running."""
    wild = [row for row in rows if row.seconds is not None and row.seconds_max > 1.3 * row.seconds_min]
    return [
        f"{row.case}, {row.recipe} {row.dtype}: rounds from {row.seconds_min:.3g} to {row.seconds_max:.3g} s; "
        "was something else running?"
        for row in wild
    ]
