"""One run of the benchmarks: every contender is checked, then all are timed in turn, then the gates judge the rows."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from bench import baseline, cases, end_to_end, loading, memory, others, results, upscaling
from bench.end_to_end import Loop, Plan, Speeds
from bench.gates import honesty, judge, unsteady
from bench.ours import default_dtype
from bench.results import Results
from bench.timing import Times, ceilings, interleave, once
from rdn_fast import devices
from rdn_fast.config import make_configs
from rdn_fast.errors import UserError
from rdn_fast.rdb import autotune
from rdn_fast.weights.convert import load_model


class Bench:
    """One run: its device, its result file, and what went wrong so far."""

    def __init__(self, command: str, device: torch.device, rdb: str):
        self.device, self.rdb, self.failures = device, rdb, []
        self.results = Results(command, device)
        self.default = default_dtype(device)
        self.dtypes = (
            [torch.float32, torch.bfloat16][: 1 + results.has_bf16(device)] if device.type == "cpu" else [self.default]
        )
        self._ceilings: dict[str, float] = {}
        devices.enable_autotuning(device)  # for every recipe: the reference's train.py asks cuDNN for it, too

    def ceilings(self) -> None:
        for dtype, (what, times, gflops) in ceilings(self.device, self.dtypes).items():
            self._ceilings[_name(dtype)] = gflops
            self._row(
                case="ceiling", recipe=what, dtype=_name(dtype), batch=0, shape="", gflops=gflops, **_seconds(times)
            )

    def case(self, case: cases.Case, rounds: int, **clock: float) -> None:
        """Check every contender, time those that are right in turn, write their rows. `clock`: options of timing.interleave."""
        print(f"\n{case.name}, batch {case.batch}, {case.shape}")
        ready = {}
        for entry in case.entries:
            what = f"{entry.recipe} {_name(entry.dtype)}"
            try:
                contender = entry.make()
                case.check(contender, what)
                once(contender, self.device, _warm_ups(self.device))
            except AssertionError as error:
                self._refuse(case, entry, f"wrong: {error}")
            except (UserError, RuntimeError, ImportError) as error:
                reason = "out of memory" if devices.is_out_of_memory(error) else " ".join(str(error).split())[:200]
                self._refuse(case, entry, f"cannot run: {reason}")
            else:
                ready[entry] = contender
        times = interleave(ready, self.device, rounds, **clock)
        for entry in list(times):
            try:
                ready[entry].verify()
            except AssertionError as error:
                del times[entry]
                self._refuse(case, entry, f"wrong: {error}")
        stock = _strongest(times)
        references = [measured for entry, measured in times.items() if entry.recipe.startswith("reference")]
        reference = min(references, key=lambda measured: measured.median, default=None)
        for entry, measured in times.items():
            images, gflops = (
                count and count / measured.median for count in (case.images, case.flop and case.flop / 1e9)
            )
            dtype = _name(entry.dtype)
            self._row(
                case=case.name,
                recipe=entry.recipe,
                dtype=dtype,
                batch=case.batch,
                shape=case.shape,
                images_s=images,
                gflops=gflops,
                ceiling_share=gflops and self._share(gflops, dtype),
                vs_reference=reference and measured.over(reference),
                vs_stock=measured.over(times[stock[entry.dtype]]) if entry.dtype in stock else None,
                note=ready[entry].note,
                **_seconds(measured),
            )
        ready.clear()
        gc.collect()
        if self.device.type != "cpu":
            torch.accelerator.empty_cache()  # the next runs are other processes

    def memory(self, batch: int) -> None:
        """Peak memory of a training step of rdn_fast and of the naive row, in the default dtype."""
        print(f"\nmemory of a training step, batch {batch}, rdn-b")
        training = autotune.Case.of(cases.RDN_B, (batch, 3, cases.PATCH, cases.PATCH), self.device, self.default, True)
        rows = {"naive": "naive", "rdn_fast": autotune.choose(self.rdb, training)}
        naive = None
        for recipe, row in rows.items():
            try:
                peak = memory.peak(row, self.default, batch, self.device)
            except RuntimeError as error:
                self._fail(str(error))
                return
            naive = naive or peak
            shape = f"{cases.words(cases.RDN_B)}, {cases.PATCH}x{cases.PATCH}"
            how = "kernel's VmHWM less VmRSS" if self.device.type == "cpu" else "torch's allocator"
            self._row(
                case="memory",
                recipe=recipe,
                dtype=_name(self.default),
                batch=batch,
                shape=shape,
                peak_mb=peak / 1e6,
                vs_naive=peak / naive,
                rounds=1,
                note=f"rdb {row}; {how}",
            )

    def loading(self, rounds: int) -> None:
        """Patches per second on the device, of rdn_fast and of the reference's best loader; how long a steady consumer waits; opening a large file."""
        with tempfile.TemporaryDirectory() as folder:
            with ExitStack() as running:
                case = loading.loading(Path(folder), self.device, running)
                self.case(case, rounds, span=loading.SPAN)
                speeds = {
                    row.recipe: row for row in self.results.rows if row.case == case.name and row.kind == "measured"
                }
                self._best_reference([row for row in speeds.values() if row.recipe.startswith("reference")])
                print(f"\npaced loading, batch {case.batch}, {case.shape}")
                for entry in case.entries:
                    if entry.ours and entry.recipe in speeds:
                        waited, seconds = loading.paced(entry.make())
                        note = f"{loading.STEADY} batches, one every {1e3 * loading.PERIOD:.0f} ms"
                        self._row(
                            case="paced loading",
                            recipe=entry.recipe,
                            dtype=_name(entry.dtype),
                            batch=case.batch,
                            shape=case.shape,
                            images_s=case.batch / seconds,
                            waited=waited,
                            note=note,
                            **_seconds(Times([seconds])),
                        )
            self.case(loading.opening(Path(folder)), rounds)

    def upscaling(self) -> None:
        """`rdn-fast upscale` of a photograph and of many small files: seconds, peak memory, how long the model waited for files."""
        config = load_model(None, self.device).config
        with tempfile.TemporaryDirectory() as name:
            for case, make in (("photograph", upscaling.photograph), ("small files", upscaling.small_files)):
                pictures = make(Path(name) / case)
                shape = f"{cases.words(config)}, {pictures.sizes}"
                print(f"\n{case}, {shape}")
                try:
                    use = upscaling.upscale(pictures.folder, Path(name) / f"{case} larger", self.device)
                except RuntimeError as error:
                    self._fail(str(error))
                    continue
                note = (
                    "peak of the whole process"
                    if devices.is_host(self.device)
                    else f"peak of the device; of the process {use.resident / 1e6:.0f} MB"
                )
                self._row(
                    case=case,
                    recipe="rdn_fast",
                    dtype=_name(self.default),
                    batch=1,
                    shape=shape,
                    images_s=pictures.files / use.seconds,
                    gflops=2 * config.macs(1, 1) * pictures.pixels / use.seconds / 1e9,
                    peak_mb=(use.allocated or use.resident) / 1e6,
                    waited=1 - use.computing / use.seconds,
                    note=note,
                    **_seconds(Times([use.seconds])),
                )

    def end_to_end(self, plans: list[Plan], rounds: int) -> None:
        """Whole training runs in turn: reference, strongest stock and rdn_fast; with several numbers of ranks also how they scale from one."""
        preset, batch = plans[0].preset, plans[0].batch
        config = make_configs({}, preset)[0]
        print(
            f"\nend to end, preset {preset}, batch {batch} a rank, ranks {', '.join(str(plan.ranks) for plan in plans)}"
        )
        plain = _name(torch.float32 if self.device.type == "cpu" else self.default)
        stock, stock_dtype, options = self._strongest_stock()
        loops = [
            Loop("reference", plain, lambda data, plan: end_to_end.run_baseline(data, plan, "reference", plain, {})),
            Loop(
                stock,
                stock_dtype,
                lambda data, plan: end_to_end.run_baseline(data, plan, "stock", stock_dtype, options),
            ),
            Loop("rdn_fast", _name(self.default), lambda data, plan: end_to_end.run_rdn_fast(data, plan, self.rdb)),
        ]
        try:
            speeds = end_to_end.interleave(loops, plans, config.scale, rounds)
        except RuntimeError as error:
            self._fail(f"end to end: {error}")
            return
        note = "" if preset == "rdn-b" else f"not comparable: preset {preset}, {plans[0].threads} CPU threads a rank"
        for (loop, ranks), measured in speeds.items():
            times = Times([batch * ranks / speed.images_s for speed in measured])
            rivals = {
                rival.recipe: Times([batch * ranks / speed.images_s for speed in speeds[rival, ranks]])
                for rival in loops
            }
            images, window = (
                statistics.median(getattr(speed, column) for speed in measured) for column in Speeds._fields
            )
            gflops = images * 3 * 2 * config.macs(cases.PATCH, cases.PATCH) / 1e9
            cards = (
                1 if self.device.type == "cpu" else ranks
            )  # a CPU's ranks share the cores whose ceiling was measured
            alone = Times([batch / speed.images_s for speed in speeds[loop, 1]])
            self._row(
                case="end to end",
                recipe=loop.recipe,
                dtype=loop.dtype,
                batch=batch * ranks,
                shape=f"{cases.words(config)}, {cases.PATCH}x{cases.PATCH}",
                ranks=ranks,
                images_s=images,
                seed_images_s=window,
                gflops=gflops,
                ceiling_share=self._share(gflops / cards, loop.dtype),
                vs_reference=times.over(rivals["reference"]),
                vs_stock=times.over(rivals[stock]),
                efficiency=times.over(alone) if ranks > 1 else None,
                note=note,
                **_seconds(times),
            )

    def others(self, height: int, width: int) -> list[cases.Entry]:
        """Entries of the inference runtimes that are installed; the others are named."""
        entries, missing = others.entries(cases.RDN_B, height, width, self.device)
        for line in missing:
            print(line)
        return entries

    def conclude(self, command: str, ranks: int, began: float) -> int:
        """Print what the baselines are worth, the verdicts and what failed; the exit code."""
        rows = self.results.rows
        print("\nbaselines")
        for line in honesty(rows) + unsteady(rows):
            print(f"  {line}")
        print("\ngates")
        verdicts = judge(rows, command, rows[0].place, ranks)
        for verdict in verdicts:
            print(f"  {verdict.line()}")
            if verdict.word == "not measured":
                self._fail(f"{verdict.gate.what}: not measured")
        missed = sum(verdict.word == "missed" for verdict in verdicts)
        for failure in self.failures:
            print(f"FAILED  {failure}")
        print(
            f"\n{len(rows)} rows in {self.results.path}, {time.monotonic() - began:.0f} s, {missed} gates missed, {len(self.failures)} failures"
        )
        return 1 if missed or self.failures else 0

    def _strongest_stock(self) -> tuple[str, str, dict]:
        """Name, dtype and options of the stock recipe that trained fastest in this run, whatever its dtype."""
        rows = [
            row
            for row in self.results.rows
            if row.case == "training step" and row.recipe.startswith("stock") and row.kind == "measured"
        ]
        fastest = max(rows, key=lambda row: row.images_s, default=None)
        name, dtype = (fastest.recipe, fastest.dtype) if fastest else ("stock", _name(self.dtypes[-1]))
        return (
            name,
            dtype,
            dict(baseline.variants(self.device, getattr(torch, dtype), training=True))[name.removeprefix("stock")],
        )

    def _best_reference(self, rows: list[results.Row]) -> None:
        """A row `reference` that repeats the fastest of these."""
        if rows:
            best = max(rows, key=lambda row: row.images_s)
            same = (
                "case",
                "dtype",
                "batch",
                "shape",
                "rounds",
                "seconds",
                "seconds_min",
                "seconds_max",
                "images_s",
                "vs_reference",
            )
            self._row(
                recipe="reference",
                note=best.recipe.removeprefix("reference "),
                **{column: getattr(best, column) for column in same},
            )

    def _share(self, gflops: float, dtype: str) -> float | None:
        return gflops / self._ceilings[dtype] if dtype in self._ceilings else None

    def _refuse(self, case: cases.Case, entry: cases.Entry, why: str) -> None:
        """A contender that is not timed; when it is one of ours, or wrong, the run has failed."""
        self._row(
            case=case.name,
            recipe=entry.recipe,
            dtype=_name(entry.dtype),
            batch=case.batch,
            shape=case.shape,
            kind="not measured",
            note=why,
        )
        if entry.ours or why.startswith("wrong"):
            self._fail(f"{case.name}, {entry.recipe} {_name(entry.dtype)}: {why}")

    def _fail(self, what: str) -> None:
        self.failures.append(what)

    def _row(self, **values) -> None:
        default = values["recipe"] == "rdn_fast" and values["dtype"] == _name(self.default)
        row = self.results.add(precision="default" if default else "", **values)
        print(f"  {row.line()}", flush=True)


def _warm_ups(device: torch.device) -> int:
    """Runs before the clock: compilation, first allocations, and where a step is replayed as a graph, its capture."""
    return 1 if device.type == "cpu" else devices.CudaGraphed.EAGER + 1


def _strongest(times: dict[cases.Entry, Times]) -> dict[torch.dtype, cases.Entry]:
    """The fastest stock recipe of each dtype."""
    stock = sorted(
        (entry for entry in times if entry.recipe.startswith("stock")), key=lambda entry: -times[entry].median
    )
    return {entry.dtype: entry for entry in stock}


def _seconds(times: Times) -> dict:
    return {
        "rounds": len(times.rounds),
        "seconds": times.median,
        "seconds_min": min(times.rounds),
        "seconds_max": max(times.rounds),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
