"""One run of the benchmarks: contenders are checked, then timed in turn, then the gates judge the rows."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable

import torch

from bench import baseline, cases, ceilings
from bench.case import Comparison, Contender, Entry, Gate, Verdict
from bench.models import default_dtype
from bench.recipe import CannotRun
from bench.results import HERE, STEADY, Results, has_bf16, read_all
from bench.timing import SPAN, Times, interleave, once, steady
from rdn_fast import devices
from rdn_fast.precision import dtype_name

LIKELY = "stock compiled graphed"  # the strongest stock recipe on a GPU as far as is known
WANTED = ("rdn_fast", "reference", LIKELY)  # recipes that are prepared first


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
        self.earlier = read_all(HERE / "results")  # before this run's file is among them
        self.results = Results(f"bench-{command}", device)
        self.default, self.dtypes = default_dtype(device), dtypes_of(device)
        self._ceilings: dict[str, float] = {}  # FLOP or bytes a second, of what was timed last
        self._times: dict[tuple, Times] = {}
        devices.enable_autotuning(device)  # for every recipe, as the reference's train.py does
        if self.on_cpu:
            devices.keep_freed_memory()  # for every recipe, as training does

    def compare(self, comparison: Comparison, rounds: int, span: float = SPAN) -> list[Entry]:
        """Check every contender, time those that are right in turn, and write their rows. Return their entries."""
        print(f"\n{comparison.case}, batch {comparison.batch}, {comparison.shape}")
        ready = self._ready(comparison)
        low = [entry.dtype for entry in ready] if comparison.flop else [torch.uint8] if comparison.moved else []
        plain = [entry for entry in ready if comparison.flop and entry.plain]

        def above(times: dict) -> str:
            """Name a plain recipe that is faster than the ceiling says is possible."""
            rates = ceilings.rates(times)
            shares = {entry: comparison.flop / times[entry].median / rates[entry.dtype][1] for entry in plain}
            fastest = max(shares, key=shares.get, default=None)
            wrong = fastest and shares[fastest] > ceilings.PLAIN_AT_MOST
            return f"{fastest.recipe} at {shares[fastest]:.0%} of its ceiling" if wrong else ""

        def settled(times: dict) -> bool:
            return steady({entry: times[entry] for entry in ready}) and not above(times)

        contenders = ready | ceilings.contenders(self.device, low)
        what = comparison.case, comparison.batch, comparison.shape
        known = {key: self.times(*what, *key[:2], keep=rounds) for key in contenders}
        times = interleave(contenders, self.device, rounds, span, settled, known)
        self.ceilings(times, comparison.batch, f"{comparison.case}, {comparison.shape}")
        group = above(times)
        times = {entry: times[entry] for entry in ready}
        for entry in ready:
            try:
                ready[entry].verify()
            except AssertionError as error:
                del times[entry]
                self._refuse(comparison, entry, f"wrong: {error}")
        for entry, mine in times.items():
            figures = {
                "images_s": comparison.images and comparison.images / mine.median,
                "gflops": comparison.flop and comparison.flop / mine.median / 1e9,
                **ratios(entry, times, group, {one: ready[one].impl for one in times}),
            }
            if comparison.moved:
                figures["ceiling_share"] = comparison.moved / mine.median / self._ceilings["uint8"]
            what = comparison.case, entry.recipe, entry.dtype, comparison.batch, comparison.shape
            self.row(*what, mine, note=ready[entry].note, default=comparison.default, **figures)
        ready.clear()
        gc.collect()
        if not self.on_cpu:
            torch.accelerator.empty_cache()  # the next runs are other processes
        return list(times)

    def times(self, *what: object, keep: int) -> Times:
        """Return the Times of `what`, whose rounds are kept for a second visit to the same case."""
        return self._times.setdefault(what, Times([], keep))

    def revisit(self, command: str) -> None:
        """Run once more the cases of which a gate was missed or not decided; their rounds count together.

        A neighbour on a shared host may slow one recipe more than another, evenly, for minutes.
        """
        for case in cases.of_command(command):
            words = {verdict.word for verdict in self._verdicts(case.gates)}
            if words & {"missed", "unsteady"}:
                print(f"\nonce more, because a gate was {' or '.join(sorted(words & {'missed', 'unsteady'}))}")
                case.run(self, command)

    def _verdicts(self, gates: Iterable[Gate]) -> list[Verdict]:
        rows = self.results.rows
        return [gate.judge(rows, rows[0].place, self.ranks) for gate in gates]

    def ceilings(self, times: dict, batch: int = 0, shape: str = "") -> None:
        """Write a row for the ceiling of each dtype among these Times. Rows that follow state their share of it."""
        for dtype, (ceiling, rate) in ceilings.rates(times).items():
            self._ceilings.pop(dtype_name(dtype), None)  # a ceiling is no share of itself
            copied = dtype == torch.uint8
            figures = {"note": f"{rate / 1e9:.0f} GB/s"} if copied else {"gflops": rate / 1e9}
            self.row("ceiling", ceiling.what, dtype, batch, shape, times[ceiling], **figures)
            self._ceilings[dtype_name(dtype)] = rate

    def row(
        self,
        case: str,
        recipe: str,
        dtype: torch.dtype,
        batch: int,
        shape: str,
        times=None,
        cards: int = 1,
        default: torch.dtype | None = None,
        **values,
    ) -> None:
        """Write and print a result row, of the columns `values` and of what follows from the Times and `gflops`.

        `cards`: how many devices reached `gflops` together; the ceiling is one device's. `default`: the dtype of the
        default precision for this work; None: rdn-b's.
        """
        name, gflops = dtype_name(dtype), values.get("gflops")
        if times is not None:
            values |= {"rounds": len(times.rounds), "rounds_run": len(times.every), "seconds": times.median}
            values |= {"seconds_min": times.rounds[0], "seconds_max": times.rounds[-1]}
        if gflops is not None and name in self._ceilings:
            values["ceiling_share"] = 1e9 * gflops / cards / self._ceilings[name]
        values["precision"] = "default" if (recipe, dtype) == ("rdn_fast", default or self.default) else ""
        row = self.results.add(case=case, recipe=recipe, dtype=name, batch=batch, shape=shape, **values)
        print(f"  {row.line()}", flush=True)

    def strongest_stock(self) -> tuple[str, torch.dtype, dict]:
        """Return name, dtype and options of the stock recipe that trained fastest in this run, whatever its dtype.

        Where none was measured, of the one that is expected to.
        """
        steps = [row for row in self.results.rows if row.case == "training step" and row.kind == "measured"]
        stock = [row for row in steps if row.recipe.startswith("stock")]
        if stock:
            fastest = max(stock, key=lambda row: row.images_s)
            name, dtype = fastest.recipe, getattr(torch, fastest.dtype)
        else:
            name, dtype = ("stock" if self.on_cpu else LIKELY), self.dtypes[-1]
        variants = baseline.stock_variants(self.device, dtype, training=True)
        name = name if name.removeprefix("stock") in variants else "stock"
        return name, dtype, variants[name.removeprefix("stock")]

    def fail(self, what: str) -> None:
        self.failures.append(what)

    def conclude(self, command: str, began: float) -> int:
        """Print remarks on the rows, the verdicts and what failed. Return the exit code."""
        rows = self.results.rows
        seconds = time.monotonic() - began
        print("\nwhole run")
        self.row("minutes", f"bench {command}", self.default, 0, command, Times([seconds]))
        print("\nbaselines")
        for case in cases.of_command(command):
            for line in case.remarks(rows, self.earlier):
                print(f"  {line}")
        print("\ngates")
        verdicts = self._verdicts(cases.gates(command))
        for verdict in verdicts:
            print(f"  {verdict.line()}")
            if verdict.word == "not measured":
                self.fail(f"{verdict.gate.what}: not measured")
        missed = sum(verdict.word == "missed" for verdict in verdicts)
        for failure in self.failures:
            print(f"FAILED  {failure}")
        unsteady = sum(verdict.word == "unsteady" for verdict in verdicts)
        gates = f"{missed} gates missed, {unsteady} not decided by unsteady rounds"
        print(f"\n{len(rows)} rows in {self.results.path}, {seconds:.0f} s, {gates}, {len(self.failures)} failures")
        return 1 if missed or self.failures else 0

    def in_order(self, entries: list[Entry]) -> list[Entry]:
        """Return the entries in the order in which they run first: on an accelerator the most wanted ones before."""
        if self.on_cpu:
            return entries
        return sorted(entries, key=lambda one: WANTED.index(one.recipe) if one.recipe in WANTED else len(WANTED))

    def _ready(self, comparison: Comparison) -> dict[Entry, Contender]:
        """Return the contenders that are right, warmed up.

        On an accelerator, where compilers may take minutes, a first round of each is a row at once: one of all rounds
        replaces it.
        """
        ready = {}
        for entry in self.in_order(comparison.entries):
            try:
                contender = entry.build()
                contender.check()
                once(contender, self.device, warm_ups(self.device))
                if not (self.on_cpu or self._is_measured(comparison, entry)):
                    self._first_row(comparison, entry, once(contender, self.device))
            except AssertionError as error:
                self._refuse(comparison, entry, f"wrong: {error}")
            except CannotRun as error:
                self._refuse(comparison, entry, f"cannot run here: {error}", fails=False)
            except Exception as error:  # whatever a compiler or a driver raises
                words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                why = "out of memory" if devices.is_out_of_memory(error) else words
                self._refuse(comparison, entry, f"cannot run: {why}")
            else:
                ready[entry] = contender
        return {entry: ready[entry] for entry in comparison.entries if entry in ready}

    def _is_measured(self, comparison: Comparison, entry: Entry) -> bool:
        known = self._times.get((comparison.case, comparison.batch, comparison.shape, *entry[:2]))
        return known is not None and bool(known.every)

    def _first_row(self, comparison: Comparison, entry: Entry, seconds: float) -> None:
        figures = {
            "images_s": comparison.images and comparison.images / seconds,
            "gflops": comparison.flop and comparison.flop / seconds / 1e9,
            "unsteady": "one round, not in turn with the others",
        }
        what = comparison.case, entry.recipe, entry.dtype, comparison.batch, comparison.shape
        self.row(*what, Times([seconds]), **figures)

    def _refuse(self, comparison: Comparison, entry: Entry, why: str, fails: bool = True) -> None:
        """Note a contender that is not timed. If it `fails` and is one of ours, or wrong, the run has failed."""
        what = comparison.case, entry.recipe, entry.dtype
        self.row(*what, comparison.batch, comparison.shape, kind="not measured", note=why)
        if fails and (entry.ours or why.startswith("wrong")):
            self.fail(f"{comparison.case}, {entry.recipe} {dtype_name(entry.dtype)}: {why}")


def warm_ups(device: torch.device) -> int:
    """Return how many runs come before the clock: compilation, first allocations, capture of a step's graph."""
    return 1 if device.type == "cpu" else devices.CudaGraphed.EAGER + 1


def ratios(
    entry: Entry, times: dict[Entry, Times], why: str = "", impls: dict[Entry, str] | None = None
) -> dict[str, float | str]:
    """Return the columns that hold an entry against the others of its group, and why these decide nothing.

    `why`: of the whole group; else it is that the rounds of the entry, or of what it is held against, differ too much.
    `impls`: which impl computes an entry, if any: one that computes as this entry does is no other of `vs_rest`, a
    column that is left out where none computes.
    """
    impls = impls or {}
    twins = [one for one in times if impls.get(one) and (impls[one], one.dtype) == (impls.get(entry), entry.dtype)]
    others = [other for other in times if not other.ours and not other.recipe.startswith("reference")]
    groups = {
        "vs_reference": [other for other in times if other.recipe.startswith("reference")],
        "vs_stock": [other for other in others if (other.recipe[:5], other.dtype) == ("stock", entry.dtype)],
        "vs_other": others,
        "vs_rest": [other for other in times if any(impls.values()) and other not in [entry, *twins]],
    }
    fastest = {
        name: min((times[other] for other in group), key=lambda t: t.median) for name, group in groups.items() if group
    }
    spread = max(one.spread for one in (times[entry], *fastest.values()))
    unsteady = why or (f"rounds spread {spread:.2f}x" if spread > STEADY else "")
    return {name: times[entry].over(other) for name, other in fastest.items()} | {"unsteady": unsteady}
