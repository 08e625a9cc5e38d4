"""The claims as a table: what must hold, what is hoped for, and where; and what honest baselines reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from bench.results import Row

CPUS = ("cpu", "cpu+bf16")
MODEL = "x2 D16 C8 G64 G0 64"  # rdn-b, as rows' shapes begin
ANY = ""


@dataclass(frozen=True)
class Gate:
    """A floor (or, with `at_most`, a roof) for the row of recipe rdn_fast that case, dtype, batch and the beginning of its shape name.

    `measure` is a column of results.Row. `dtype` None: the device's default precision. `batch` None: whichever was run.
    """

    what: str
    commands: tuple[str, ...]
    places: tuple[str, ...]  # empty: everywhere
    case: str
    measure: str
    gate: float
    goal: float | None = None
    dtype: str | None = None
    batch: int | None = None
    at_most: bool = False
    ranks: int = 1
    shape: str = MODEL

    def row(self, rows: list[Row]) -> Row | None:
        """The row that decides, if it was measured."""

        def decides(row: Row) -> bool:
            mine = (
                row.recipe == "rdn_fast"
                and row.case == self.case
                and row.shape.startswith(self.shape)
                and row.ranks == self.ranks
            )
            dtype = row.dtype == self.dtype if self.dtype else row.precision == "default"
            return (
                mine
                and dtype
                and self.batch in (None, row.batch)
                and row.kind == "measured"
                and getattr(row, self.measure) is not None
            )

        return next(filter(decides, rows), None)

    def holds(self, value: float, bound: float) -> bool:
        return value <= bound if self.at_most else value >= bound

    def applies(self, place: str, ranks: int) -> bool:
        return (not self.places or place in self.places) and ranks == self.ranks


_1P, _8P, _PICTURES = ("1p", "all"), ("8p",), ("upscale", "all")
GATES = (
    Gate(
        "CPU, training step, default precision / reference (fp32)",
        _1P,
        CPUS,
        "training step",
        "vs_reference",
        2.4,
        2.9,
        batch=8,
    ),
    Gate(
        "CPU, training step, bf16 / strongest stock bf16",
        _1P,
        ("cpu+bf16",),
        "training step",
        "vs_stock",
        1.08,
        1.2,
        "bfloat16",
        8,
    ),
    Gate(
        "CPU, training step, fp32 / strongest stock fp32",
        _1P,
        CPUS,
        "training step",
        "vs_stock",
        1.05,
        1.2,
        "float32",
        8,
    ),
    Gate(
        "CPU, inference, default precision / reference (fp32)",
        ("1p", "upscale", "all"),
        CPUS,
        "inference",
        "vs_reference",
        2.1,
        2.5,
        batch=1,
    ),
    Gate("memory of a training step / naive", _1P, (), "memory", "vs_naive", 0.40, 0.25, batch=16, at_most=True),
    Gate(
        "loader, patches/s / reference's best loader",
        _1P,
        (),
        "loading",
        "vs_reference",
        30,
        60,
        "float32",
        64,
        shape=ANY,
    ),
    Gate(
        "loader at one batch of 64 every 15 ms: share of time waited",
        _1P,
        (),
        "paced loading",
        "waited",
        0.01,
        None,
        "float32",
        64,
        at_most=True,
        shape=ANY,
    ),
    Gate(
        "opening a training file of 4,000 pairs, seconds",
        _1P,
        (),
        "opening",
        "seconds",
        1,
        None,
        "uint8",
        at_most=True,
        shape=ANY,
    ),
    Gate(
        "photograph of 12 megapixels, peak memory, MB",
        _PICTURES,
        (),
        "photograph",
        "peak_mb",
        3 * 1.024**3 * 1e3,
        at_most=True,
        shape=ANY,
    ),
    Gate(
        "1,000 small files: share of time without work for the model",
        _PICTURES,
        (),
        "small files",
        "waited",
        0.1,
        at_most=True,
        shape=ANY,
    ),
    Gate(
        "H100, end to end, fp16 O1 / reference under AMP",
        _1P,
        ("h100",),
        "end to end",
        "vs_reference",
        2.0,
        None,
        "float16",
        64,
    ),
    Gate("H100, end to end, fp16 O1, images/s", _1P, ("h100",), "end to end", "images_s", 3200, 4337, "float16", 64),
    Gate(
        "H100, training step, fp16 O1 / strongest stock",
        _1P,
        ("h100",),
        "training step",
        "vs_stock",
        1.25,
        2.0,
        "float16",
        64,
    ),
    Gate(
        "one Ascend card, images/s in the seed window",
        _1P,
        ("npu",),
        "end to end",
        "seed_images_s",
        544,
        None,
        "float16",
        64,
    ),
    Gate(
        "eight Ascend cards, images/s in the seed window",
        _8P,
        ("npu",),
        "end to end",
        "seed_images_s",
        4337,
        None,
        "float16",
        512,
        ranks=8,
    ),
    Gate(
        "eight Ascend cards, scaling efficiency",
        _8P,
        ("npu",),
        "end to end",
        "efficiency",
        4337 / (8 * 544),
        None,
        "float16",
        512,
        ranks=8,
    ),
)


class Verdict(NamedTuple):
    gate: Gate
    word: str  # "goal", "held", "missed", "not measured" or "not this device"
    row: Row | None

    @property
    def value(self) -> float | None:
        return None if self.row is None else getattr(self.row, self.gate.measure)

    def line(self) -> str:
        """The verdict as it is printed."""
        gate = self.gate
        target = f"gate {'at most ' if gate.at_most else ''}{gate.gate:.4g}" + (
            f", goal {gate.goal:.4g}" if gate.goal is not None else ""
        )
        value = "" if self.value is None else f"{self.value:.4g}, "
        return f"{self.word.upper() if self.word == 'missed' else self.word:<16} {gate.what}: {value}{target}"


def judge(rows: list[Row], command: str, place: str, ranks: int = 1) -> list[Verdict]:
    """The verdict of every gate of a command on the rows of one run."""
    return [_verdict(gate, rows, gate.applies(place, ranks)) for gate in GATES if command in gate.commands]


def _verdict(gate: Gate, rows: list[Row], applies: bool) -> Verdict:
    row = gate.row(rows) if applies else None
    if row is None:
        return Verdict(gate, "not measured" if applies else "not this device", None)
    value = getattr(row, gate.measure)
    if not gate.holds(value, gate.gate):
        return Verdict(gate, "missed", row)
    return Verdict(gate, "goal" if gate.goal is not None and gate.holds(value, gate.goal) else "held", row)


# GFLOP/s of rdn-b training steps that were seen on quiet machines: (what the device is, recipe, dtype, least, most).
_SEEN = (
    (("2 threads", "AVX512", "bf16"), "reference", "float32", 138, 149),
    (("2 threads", "AVX512", "bf16"), "stock", "float32", 177, 179),
    (("2 threads", "AVX512", "bf16"), "stock", "bfloat16", 301, 340),
    (("AMD", "family 25", "2 threads", "AVX2"), "reference", "float32", 115, 144),
)
SHORT = 0.85


def honesty(rows: list[Row]) -> list[str]:
    """A line for every baseline of the training step: whether it reaches what is known of its class of machine, and whether stock is worth its name."""
    lines, stock = [], {}
    for row in rows:
        if (
            row.case != "training step"
            or not row.shape.startswith(MODEL)
            or not row.recipe.startswith(("reference", "stock"))
            or row.gflops is None
        ):
            continue
        if row.recipe.startswith("stock") and row.vs_reference is not None:
            stock.setdefault((row.dtype, row.batch), []).append(row)
        seen = [
            (least, most)
            for words, recipe, dtype, least, most in _SEEN
            if all(word in row.device for word in words) and (row.recipe, row.dtype) == (recipe, dtype)
        ]
        head = f"{row.recipe} {row.dtype} trains at {row.gflops:.0f} GFLOP/s"
        if not seen:
            lines.append(f"{head}; no figure of such a machine is there to compare with")
        elif row.gflops < SHORT * seen[0][0]:
            lines.append(
                f"{head}: MORE THAN 15% SHORT of the {seen[0][0]} to {seen[0][1]} seen on such a machine; ratios against it flatter, find out why"
            )
        else:
            lines.append(f"{head}; {seen[0][0]} to {seen[0][1]} were seen on such a machine")
    for (dtype, batch), variants in stock.items():
        best = max(variants, key=lambda row: row.vs_reference)
        if best.vs_reference < 1:
            lines.append(
                f"the strongest stock in {dtype}, {best.recipe}, is SLOWER than the reference at batch {batch}: {best.vs_reference:.2f}x of its speed"
            )
    return lines


def unsteady(rows: list[Row]) -> list[str]:
    """A line for every row whose rounds differ so much that something else must have been running."""
    return [
        f"{row.case}, {row.recipe} {row.dtype}: rounds from {row.seconds_min:.3g} to {row.seconds_max:.3g} s; was something else running?"
        for row in rows
        if row.seconds is not None and row.seconds_max > 1.3 * row.seconds_min
    ]
