"""What a benchmark consists of: a file of bench/cases/ compares Contenders, holds Gates, and defines one CASE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from bench.results import Row

if TYPE_CHECKING:
    from bench.measure import Bench

BF16_CPUS = ("cpu+bf16", "cpu+amx")
CPUS = ("cpu", *BF16_CPUS)
EVERY = ("amx", "all")  # commands that measure every implementation
RDN_B_SHAPE = "x2 D16 C8 G64 G0 64"  # rdn-b, as rows' shapes begin
NO_KERNEL = "no kernel of ours in this dtype"  # in a row's note


@dataclass
class Contender:
    """What is timed, as functions: run(*fresh()).

    fresh() makes new random inputs, off the clock. check(), before timing, and verify(), after it, raise AssertionError
    if the results are wrong. `note` goes into the result row. `impl`: which of rdn_fast's computes the blocks, if any.
    """

    run: Callable[..., object]
    fresh: Callable[[], tuple] = tuple
    check: Callable[[], object] = tuple
    verify: Callable[[], object] = tuple
    note: str = ""
    impl: str = ""


class Entry(NamedTuple):
    """A Contender to be built, under the name of its recipe in result rows and the dtype that it computes in."""

    recipe: str
    dtype: torch.dtype
    build: Callable[[], Contender]

    @property
    def ours(self) -> bool:
        """Whether the run fails if it cannot run."""
        return self.recipe.startswith(("rdn_fast", "impl "))

    @property
    def plain(self) -> bool:
        """Whether it computes direct convolutions and nothing else, so that it cannot pass a ceiling."""
        return self.recipe.startswith(("reference", "stock"))


@dataclass
class Comparison:
    """Entries that do the same work, to be timed in turn.

    `images`, `flop`, `moved` (bytes read and written): of one run, where they can be counted. `default`: the dtype of
    rdn_fast's default precision for this work; None: rdn-b's.
    """

    case: str
    batch: int
    shape: str
    entries: list[Entry]
    images: int | None = None
    flop: int | None = None
    moved: int | None = None
    default: torch.dtype | None = None


@dataclass(frozen=True)
class Gate:
    """A floor (with `at_most` a roof) for a figure of the row of `recipe` with this case, dtype, batch and shape.

    `measure` is a column of results.Row. `dtype` None: the device's default precision. `batch` None: whichever was run.
    `own_kernel`: judged only where a kernel of ours can compute the row; PyTorch's operations are as fast as PyTorch.
    `commands`: of bench/run.py, that measure it; empty: all of its case's. `beside`: recipes without which, in the same
    dtype, the row proves nothing.
    """

    what: str
    case: str
    measure: str
    gate: float
    goal: float | None = None
    dtype: str | None = None
    batch: int | None = None
    at_most: bool = False
    places: tuple[str, ...] = ()  # classes of machines (results.place); empty: all
    ranks: int = 1
    shape: str = RDN_B_SHAPE  # beginning of the row's shape
    own_kernel: bool = False
    recipe: str = "rdn_fast"
    commands: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def decides(self, row: Row) -> bool:
        """Return whether this row is the one to judge."""
        same = (row.recipe, row.case, row.ranks, row.kind) == (self.recipe, self.case, self.ranks, "measured")
        dtype = row.dtype == self.dtype if self.dtype else row.precision == "default"
        shape = row.shape.startswith(self.shape) and self.batch in (None, row.batch)
        return same and dtype and shape and getattr(row, self.measure) is not None

    def holds(self, value: float, bound: float) -> bool:
        return value <= bound if self.at_most else value >= bound

    def judge(self, rows: list[Row], place: str, ranks: int = 1) -> Verdict:
        """Return the verdict on the rows of one run."""
        if ranks != self.ranks or place not in (self.places or (place,)):
            return Verdict(self, "not this device")
        row = next(filter(self.decides, rows), None)
        if row is None:
            return Verdict(self, "not measured")
        value = getattr(row, self.measure)
        if self.own_kernel and NO_KERNEL in row.note:
            return Verdict(self, "not this device", row, value, NO_KERNEL)
        if missing := [name for name in self.beside if not any(row.beside(other, name) for other in rows)]:
            return Verdict(self, "not measured", row, value, f"without {', '.join(missing)} in {row.dtype}")
        if row.shaky:
            return Verdict(self, "unsteady", row, value, row.shaky)
        held = "goal" if self.goal is not None and self.holds(value, self.goal) else "held"
        return Verdict(self, held if self.holds(value, self.gate) else "missed", row, value)


class Verdict(NamedTuple):
    gate: Gate
    word: str  # "goal", "held", "missed", "unsteady", "not measured" or "not this device"
    row: Row | None = None
    value: float | None = None
    why: str = ""

    def line(self) -> str:
        """Return the verdict as it is printed."""
        gate, word = self.gate, self.word.upper() if self.word == "missed" else self.word
        value = "" if self.value is None else f"{self.value:.4g}, "
        goal = "" if gate.goal is None else f", goal {gate.goal:.4g}"
        why = f" ({self.why})" if self.why else ""
        return f"{word:<16} {gate.what}: {value}gate {'at most ' if gate.at_most else ''}{gate.gate:.4g}{goal}{why}"


class Column(NamedTuple):
    """A column of a table in docs/: its heading, and a row's cell."""

    heading: str
    cell: Callable[[Row], str]


class Chart(NamedTuple):
    """How rows become bars: a figure for each device, FIGURE_DEVICE.svg, a panel for each group timed in turn."""

    figure: str
    title: str
    block: str  # of the pages, where the figure is shown
    value: str  # a column of results.Row
    unit: str
    shows: Callable[[Row], bool]
    ceilings: bool = False  # whether to draw what the rows' shares of the ceiling are shares of


@dataclass(frozen=True)
class Case:
    """One benchmark. `rows`: the names that its rows have in the column `case`.

    run(bench, command) does the work for a command of bench/run.py, one of `commands` or the name of the case's file.
    Cases run, and stand in tables, in the order of `order`. Measured rows for which shows(row) is true go to the table
    of the block bench:BLOCK, which has the columns of all cases of that block. remarks(rows, earlier) returns lines to
    print about the rows of a run; earlier: of runs before it. quick(device, dtypes) returns what
    `pytest --benchmark-only` times.
    """

    order: int
    rows: tuple[str, ...]
    commands: tuple[str, ...]
    run: Callable[[Bench, str], None]
    gates: tuple[Gate, ...] = ()
    block: str = ""
    columns: tuple[Column, ...] = ()
    shows: Callable[[Row], bool] = lambda row: True
    chart: Chart | None = None
    remarks: Callable[[list[Row], list[list[Row]]], list[str]] = lambda rows, earlier: []
    quick: Callable[[torch.device, list[torch.dtype]], list[Comparison]] = lambda device, dtypes: []
