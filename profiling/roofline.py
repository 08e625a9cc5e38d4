"""`python -m profiling.roofline`: the parts of a training step under the ceilings of the machine.

Prints a table and writes roofline.csv and roofline.svg.

FLOP are those of the model's direct convolutions, backward counted twice forward, whatever the algorithm; the
optimizer's are those of Adam. Bytes are what must cross memory at least: every map that a part takes, gives, or keeps
for its backward pass, once in each pass that needs it, every parameter and gradient once; caches are taken to hold the
rest. Seconds are those of each part by itself, timed in turn. Ceilings are measured in the same run: a plain
convolution or a large product, and a large copy. The implementation `winograd` does a quarter of a 3x3 convolution's
multiplications, so it may stand above the ceiling of direct convolutions, not above four times it.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench import ceilings, plots, results, timing
from bench.case import Contender
from bench.models import PATCH, RDN_B, words
from bench.recipe import Recipe
from profiling.step import options, profiled_step
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import _conv
from rdn_fast.precision import dtype_name
from rdn_fast.rdb import select

PICTURE = Path(__file__).with_name("roofline.svg")
WINOGRAD = 4  # direct multiplications for one of F(4x4, 3x3)'s
COLOURS = ("#9a9a9a", "#5b8db8", "#1f4e79", "#7aa37a", "#ecb593", "#8d6bb0", "#d1622b")
ADAM = 15, 32  # FLOP and bytes for a parameter: its two moments, the step, the gradient's norm, in float32
ROUNDS = 5


@dataclass(frozen=True)
class Part:
    """`times` in a step; FLOP, bytes and seconds are those of one."""

    name: str
    times: int
    flop: float
    bytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flop / self.bytes

    @property
    def gflops(self) -> float:
        return self.flop / self.seconds / 1e9


@dataclass(frozen=True)
class Roofline:
    """Parts of a step, the whole step last, and the ceilings in GFLOP/s and GB/s; `conditions` say what, where, how."""

    conditions: dict[str, str]
    parts: list[Part]
    ceiling: float
    bandwidth: float

    @property
    def winograd(self) -> bool:
        return self.conditions["rdb"] == "winograd"

    def bound(self, part: Part) -> float:
        """GFLOP/s that the part cannot exceed with direct convolutions."""
        return min(self.ceiling, part.intensity * self.bandwidth)


def piece(recipe: Recipe, function: Callable, sizes: list, modules: list, backward=True, of_maps=True) -> Contender:
    """Return function(*maps) as a contender: forward, or forward and backward for all parameters of `modules`.

    `of_maps`: the backward pass computes the gradients of the maps, too.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]

    def fresh() -> tuple[torch.Tensor, ...]:
        maps = (torch.randn(size, device=recipe.device, dtype=recipe.dtype) for size in sizes)
        return tuple(x.contiguous(memory_format=recipe.memory_format).requires_grad_(of_maps) for x in maps)

    def run(*maps: torch.Tensor) -> None:
        y = function(*maps)
        if backward:
            torch.autograd.grad(y, [*parameters, *(maps if of_maps else ())], y.detach())

    return Contender(run, fresh)


def update(recipe: Recipe) -> Contender:
    """Return the optimizer's part of a step, on random gradients."""

    def fresh() -> tuple:
        for parameter in recipe.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        return ()

    return Contender(recipe.update, fresh)


def measure(model_config: ModelConfig, batch: int, device: torch.device, rounds: int = ROUNDS) -> Roofline:
    """Time the parts of a step on `batch` patches in turn. AssertionError if the step's results are wrong."""
    recipe, step = profiled_step(model_config, batch, device)
    step.check()
    model, dtype = recipe.model, recipe.dtype
    impl = select(model.rdb, device, dtype, True)
    block, wide = model.rdbs[0], (batch, model_config.num_features, PATCH, PATCH)

    def head(x):
        return _conv(model.sfe2, _conv(model.sfe1, x))

    def rdb(x):
        return block(x, impl)

    def fusion(shallow, *local):
        return _conv(model.gff[1], _conv(model.gff[0], torch.cat(local, dim=1))) + shallow

    def tail(y):
        for layer in model.upscale:
            y = _conv(layer, y) if isinstance(layer, nn.Conv2d) else layer(y)
        return _conv(model.output, y.to(model.output_dtype or dtype))

    maps = [wide] * (model_config.num_blocks + 1)
    contenders = {
        "head": piece(recipe, head, [(batch, 3, PATCH, PATCH)], [model.sfe1, model.sfe2], of_maps=False),
        "RDB forward": piece(recipe, rdb, [wide], [block], backward=False),
        "RDB": piece(recipe, rdb, [wide], [block]),
        "GFF": piece(recipe, fusion, maps, [model.gff]),
        "tail": piece(recipe, tail, [wide], [model.upscale, model.output]),
        "optimizer": update(recipe),
        "step": step,
    }
    for contender in contenders.values():
        timing.once(contender, device)
    times = timing.interleave(contenders | ceilings.contenders(device, [dtype, torch.uint8]), device, rounds)
    step.verify()
    (_, roof), (_, copied) = (ceilings.rates(times)[kind] for kind in (dtype, torch.uint8))
    seconds = {name: times[name].median for name in contenders}
    seconds["RDB backward"] = seconds["RDB"] - seconds["RDB forward"]
    what = {"model": words(model_config), "batch": str(batch), "dtype": dtype_name(dtype), "rdb": impl.name}
    counted = work(model_config, batch, dtype.itemsize)
    parts = [Part(name, times, flop, bytes, seconds[name]) for name, (times, flop, bytes) in counted.items()]
    return Roofline(results.conditions(device) | what | {"kind": "measured"}, parts, roof / 1e9, copied / 1e9)


def work(c: ModelConfig, batch: int, size: int) -> dict[str, tuple[int, float, float]]:
    """Return {part: (how often in a step, FLOP, bytes that must move)}.

    `size`: bytes of a map's element. Parameters and gradients are float32.
    """
    pixels, s2 = batch * PATCH * PATCH, c.scale**2
    g0, d, u, kept = c.num_features, c.num_blocks, c.tail_channels, c.num_layers * c.growth_rate

    def macs(*convs):  # (kernel's side, channels in, channels out, outputs for each LR pixel)
        return sum(side**2 * inputs * outputs * n for side, inputs, outputs, n in convs)

    head, fusion = ((3, 3, g0, 1), (3, g0, g0, 1)), ((1, d * g0, g0, 1), (3, g0, g0, 1))
    ups = ((3, g0, 4 * u, 1), (3, u, 4 * u, 4)) if c.scale == 4 else ((3, g0, s2 * u, 1),)
    tail = (*ups, (3, u, 3, s2))
    inner = sum(outputs * n for _, _, outputs, n in ups)  # channels of the tail's own maps, for each LR pixel
    stacks = {"head": head, "GFF": fusion, "tail": tail}
    weights = {name: sum(side**2 * i * o + o for side, i, o, _ in convs) for name, convs in stacks.items()}
    weights["RDB"] = c.block_macs + kept + g0  # a weight is used once for each pixel

    def bytes(maps: int, parameters: int, uses: int) -> int:
        return maps * pixels * size + 4 * parameters * uses

    # In maps of one channel, forward + backward: taken, kept and given + taken, kept, upstream and given.
    both = {
        "head": (3 + g0 + g0) + (3 + g0 + g0),
        "GFF": (d * g0 + g0 + g0 + g0) + (d * g0 + g0 + g0 + d * g0),
        "tail": (g0 + inner + 3 * s2) + (g0 + inner + 3 * s2 + g0),
    }
    parts = {
        name: (1, 3 * 2 * pixels * macs(*convs), bytes(both[name], weights[name], 3)) for name, convs in stacks.items()
    }
    total = weights["head"] + d * weights["RDB"] + weights["GFF"] + weights["tail"]
    block = 2 * pixels * c.block_macs
    parts |= {
        "RDB forward": (d, block, bytes(g0 + kept + g0, weights["RDB"], 1)),
        "RDB backward": (d, 2 * block, bytes(g0 + kept + g0 + g0, weights["RDB"], 2)),
        "optimizer": (1, ADAM[0] * total, ADAM[1] * total),
    }
    names = ("head", "RDB forward", "RDB backward", "GFF", "tail", "optimizer")
    whole = (sum(parts[name][0] * parts[name][i] for name in names) for i in (1, 2))
    return {name: parts[name] for name in names} | {"step": (1, *whole)}


def table(r: Roofline) -> str:
    """Return the parts as text."""
    domain = f" (in the Winograd domain {WINOGRAD * r.ceiling:.0f}, counted as direct)" if r.winograd else ""
    lines = [
        ", ".join(f"{name} {value}" for name, value in r.conditions.items()),
        f"ceilings: {r.ceiling:.0f} GFLOP/s{domain}, {r.bandwidth:.1f} GB/s",
        f"{'part':<13} {'times':>5} {'GFLOP':>8} {'MB':>8} {'FLOP/B':>7} {'ms':>9} {'GFLOP/s':>8} {'bound':>7} "
        f"{'share':>6}",
    ]
    lines += [
        f"{p.name:<13} {p.times:5d} {p.flop / 1e9:8.2f} {p.bytes / 1e6:8.1f} {p.intensity:7.1f} {p.seconds * 1e3:9.2f} "
        f"{p.gflops:8.1f} {r.bound(p):7.0f} {p.gflops / r.bound(p):6.0%}"
        for p in r.parts
    ]
    *parts, step = r.parts
    share = sum(part.times * part.seconds for part in parts) / step.seconds
    return "\n".join([*lines, f"the parts by themselves take {share:.0%} of the step's time"])


_FIELDS = [field.name for field in dataclasses.fields(Part)]


def write(r: Roofline, picture: Path) -> None:
    """Write `picture` (SVG, or what its suffix says), and the table beside it as CSV."""
    with picture.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([*r.conditions, "ceiling_gflops", "ceiling_gbytes", *_FIELDS, "gflops"])
        for p in r.parts:
            numbers = [f"{r.ceiling:.6g}", f"{r.bandwidth:.6g}", p.name, p.times, p.flop, p.bytes]
            rows.writerow([*r.conditions.values(), *numbers, f"{p.seconds:.6g}", f"{p.gflops:.6g}"])
    draw(r, picture)


def read(table: Path) -> Roofline:
    """Parse a CSV file that write() wrote."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first, kinds = rows[0], {"name": str, "times": int}
    parts = [Part(*(kinds.get(name, float)(row[name]) for name in _FIELDS)) for row in rows]
    conditions = {name: value for name, value in first.items() if name not in (*_FIELDS, "gflops")}
    return Roofline(conditions, parts, float(conditions.pop("ceiling_gflops")), float(conditions.pop("ceiling_gbytes")))


def draw(r: Roofline, picture: Path) -> None:
    """Draw the same bytes for the same Roofline."""
    canvas, axes = plots.canvas((8, 5))
    ax = axes[0, 0]
    ax.set_xscale("log")
    ax.set_yscale("log")
    intensities = [part.intensity for part in r.parts]
    left, right = min(intensities) / 2, 4 * max(*intensities, r.ceiling / r.bandwidth)
    roofs = {"direct convolutions": r.ceiling}
    if r.winograd:
        roofs[f"F(4x4, 3x3): {WINOGRAD} times that"] = WINOGRAD * r.ceiling
    for (what, roof), style in zip(roofs.items(), ("-", (0, (4, 3))), strict=False):
        ridge = roof / r.bandwidth
        ax.plot([left, ridge, right], [left * r.bandwidth, roof, roof], color=plots.INK, linewidth=1.1, linestyle=style)
        ax.text(2 * ridge, 1.07 * roof, f"{what}, {roof:,.0f} GFLOP/s", fontsize=8, color=plots.INK)
    slope = (left * r.ceiling / r.bandwidth) ** 0.5  # in the middle of the slope
    ax.text(1.15 * slope, slope * r.bandwidth, f"copy, {r.bandwidth:.3g} GB/s", va="top", fontsize=8, color=plots.INK)
    *parts, step = r.parts
    for part, colour in zip(parts, COLOURS, strict=False):
        share = part.times * part.seconds / step.seconds
        label = f"{part.name}: {part.gflops:.3g} GFLOP/s, {share:.1%} of the step"
        ax.scatter(part.intensity, part.gflops, s=60, color=colour, label=label, zorder=3)
    label = f"{step.name}: {step.gflops:.3g} GFLOP/s"
    ax.scatter(step.intensity, step.gflops, s=130, marker="*", color=COLOURS[-1], label=label, zorder=3)
    ax.legend(loc="lower right")
    c = r.conditions
    title = f"A training step of {c['model']}, batch {c['batch']}, {c['dtype']}, rdb {c['rdb']}"
    ax.set_title(title, fontsize=10.5, weight="bold")
    where = f"{c['kind']} {c['date']} on {c['device']}"
    source = f"torch {c['torch']}, rdn_fast {c['rdn_fast']}, commit {c['commit']}, {c['command']}"
    ax.set_xlabel(f"FLOP per byte that must move\n{where}\n{source}", fontsize=8.5)
    ax.set_ylabel("GFLOP/s, counted as direct convolutions")
    ax.set_xlim(left, right)
    plots.save(canvas, picture)


def main(argv: list[str] | None = None) -> int:
    try:
        device, batch = options(__doc__, argv)
        measured = measure(RDN_B, batch, device)
    except UserError as error:
        print(f"roofline: error: {error}", file=sys.stderr)
        return 2
    except AssertionError as error:
        print(f"roofline: the step is wrong, so it was not timed: {error}", file=sys.stderr)
        return 1
    print(table(measured))
    write(measured, PICTURE)
    print(f"written: profiling/{PICTURE.name} and {PICTURE.stem}.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
