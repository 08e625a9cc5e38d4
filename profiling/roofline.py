"""`python -m profiling.roofline`: the parts of a training step under the ceilings of the machine, as a table, roofline.csv and roofline.svg.

FLOP are those of the model's direct convolutions, backward counted twice forward, whatever the algorithm; the optimizer's are those of
Adam. Bytes are what must cross memory at least: every map that a part takes, gives, or keeps for its backward pass, once in each pass
that needs it, every parameter and gradient once; caches are taken to hold the rest. Seconds are those of each part by itself, timed in
turn. Ceilings are measured in the same run: a plain convolution or a large product, and a large copy. The row `winograd` does a quarter
of a 3x3 convolution's multiplications, so it may stand above the ceiling of direct convolutions, not above four times it.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import nn

from bench import results, timing
from bench.bandwidth import bandwidth
from bench.cases import PATCH, RDN_B, Contender, words
from bench.ours import Ours
from profiling.step import options, training_step
from rdn_fast import __version__
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import _conv
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
    """Parts of a step, the whole step last, and the ceilings in GFLOP/s and GB/s; `conditions` say of what, where and how."""

    conditions: dict[str, str]
    parts: list[Part]
    ceiling: float
    bandwidth: float
    winograd: bool

    def bound(self, part: Part) -> float:
        """GFLOP/s that the part cannot exceed with direct convolutions."""
        return min(self.ceiling, part.intensity * self.bandwidth)


class _Piece(Contender):
    """function(*maps), timed forward, or forward and backward for all parameters and, where `of_maps`, for the maps."""

    def __init__(
        self, ours: Ours, function: Callable, sizes: list, parameters: list, backward: bool, of_maps: bool = True
    ):
        self.ours, self.function, self.sizes, self.parameters, self.backward, self.of_maps = (
            ours,
            function,
            sizes,
            parameters,
            backward,
            of_maps,
        )

    def fresh(self) -> None:
        self.maps = [torch.randn(size, device=self.ours.device, dtype=self.ours.dtype) for size in self.sizes]
        self.maps = [
            map.contiguous(memory_format=self.ours.memory_format).requires_grad_(self.of_maps) for map in self.maps
        ]

    def run(self) -> None:
        y = self.function(*self.maps)
        if self.backward:
            torch.autograd.grad(y, [*self.parameters, *(self.maps if self.of_maps else [])], y.detach())


class _Update(Contender):
    """The optimizer's step on random gradients."""

    def __init__(self, ours: Ours):
        self.ours = ours

    def fresh(self) -> None:
        for parameter in self.ours.model.parameters():
            parameter.grad = torch.randn_like(parameter)

    def run(self) -> None:
        self.ours.update.step()


def measure(config: ModelConfig, batch: int, device: torch.device, rounds: int = ROUNDS) -> Roofline:
    """Time the parts of a step on `batch` patches in turn. AssertionError when the step's results are wrong: then nothing is timed."""
    case, step = training_step(config, batch, device)
    case.check(step, "rdn_fast")
    ours, model = step.recipe, step.recipe.model
    row = select(model.rdb, device, ours.dtype, True)

    def tail(y):
        for layer in model.upscale:
            y = _conv(layer, y) if isinstance(layer, nn.Conv2d) else layer(y)
        return _conv(model.output, y.to(ours.precision.output))

    def fusion(shallow, *local):
        return _conv(model.gff[1], _conv(model.gff[0], torch.cat(local, dim=1))) + shallow

    def parameters(*modules):
        return [parameter for module in modules for parameter in module.parameters()]

    block, wide = model.rdbs[0], (batch, config.num_features, PATCH, PATCH)
    contenders = {
        "head": _Piece(
            ours,
            lambda x: _conv(model.sfe2, _conv(model.sfe1, x)),
            [(batch, 3, PATCH, PATCH)],
            parameters(model.sfe1, model.sfe2),
            True,
            False,
        ),
        "RDB forward": _Piece(ours, lambda x: block(x, row), [wide], parameters(block), False),
        "RDB": _Piece(ours, lambda x: block(x, row), [wide], parameters(block), True),
        "GFF": _Piece(ours, fusion, [wide] * (config.num_blocks + 1), parameters(model.gff), True),
        "tail": _Piece(ours, tail, [wide], parameters(model.upscale, model.output), True),
        "optimizer": _Update(ours),
        "step": step,
    }
    for contender in contenders.values():
        timing.once(contender, device)
    _, _, roof = timing.ceilings(device, [ours.dtype])[ours.dtype]
    _, _, copied = bandwidth(device)
    times = timing.interleave(contenders, device, rounds)
    step.verify()
    seconds = {name: measured.median for name, measured in times.items()}
    seconds["RDB backward"] = seconds["RDB"] - seconds["RDB forward"]
    conditions = {
        "date": date.today().isoformat(),
        "commit": results.commit(),
        "command": results.command_line(),
        "device": results.name(device),
        "torch": torch.__version__,
        "rdn_fast": __version__,
        "model": words(config),
        "batch": str(batch),
        "dtype": str(ours.dtype).removeprefix("torch."),
        "rdb": row.name,
        "kind": "measured",
    }
    counted = work(config, batch, ours.dtype.itemsize)
    parts = [Part(name, times, flop, bytes, seconds[name]) for name, (times, flop, bytes) in counted.items()]
    return Roofline(conditions, parts, roof, copied, row.name == "winograd")


def work(c: ModelConfig, batch: int, size: int) -> dict[str, tuple[int, float, float]]:
    """{part: (how often in a step, FLOP, bytes that must move)}; `size`: bytes of a map's element. Parameters and gradients are float32."""
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
    """The parts in words."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in r.conditions.items()),
        f"ceilings: {r.ceiling:.0f} GFLOP/s"
        + (f" (in the Winograd domain {WINOGRAD * r.ceiling:.0f}, counted as direct)" if r.winograd else "")
        + f", {r.bandwidth:.1f} GB/s",
        f"{'part':<13} {'times':>5} {'GFLOP':>8} {'MB':>8} {'FLOP/B':>7} {'ms':>9} {'GFLOP/s':>8} {'bound':>7} {'share':>6}",
    ]
    lines += [
        f"{p.name:<13} {p.times:5d} {p.flop / 1e9:8.2f} {p.bytes / 1e6:8.1f} {p.intensity:7.1f} {p.seconds * 1e3:9.2f} {p.gflops:8.1f} {r.bound(p):7.0f} "
        f"{p.gflops / r.bound(p):6.0%}"
        for p in r.parts
    ]
    *parts, step = r.parts
    return "\n".join(
        [
            *lines,
            f"the parts by themselves take {sum(p.times * p.seconds for p in parts) / step.seconds:.0%} of the step's time",
        ]
    )


def write(r: Roofline, picture: Path) -> None:
    """`picture` (SVG, or what its suffix says), and the table beside it as CSV."""
    with picture.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(
            [
                *r.conditions,
                "ceiling_gflops",
                "ceiling_gbytes",
                *(field.name for field in dataclasses.fields(Part)),
                "gflops",
            ]
        )
        numbers = [f"{r.ceiling:.6g}", f"{r.bandwidth:.6g}"]
        rows.writerows(
            [*r.conditions.values(), *numbers, p.name, p.times, p.flop, p.bytes, f"{p.seconds:.6g}", f"{p.gflops:.6g}"]
            for p in r.parts
        )
    draw(r, picture)


def draw(r: Roofline, picture: Path) -> None:
    """The same bytes for the same Roofline."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "rdn_fast", "font.family": "DejaVu Sans", "font.size": 9})
    canvas, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    ax.set_xscale("log")
    ax.set_yscale("log")
    intensities = [p.intensity for p in r.parts]
    left, right = min(intensities) / 2, 4 * max(*intensities, r.ceiling / r.bandwidth)
    roofs = {"direct convolutions": r.ceiling} | (
        {f"F(4x4, 3x3): {WINOGRAD} times that": WINOGRAD * r.ceiling} if r.winograd else {}
    )
    for (what, roof), style in zip(roofs.items(), ("-", (0, (4, 3))), strict=False):
        ridge = roof / r.bandwidth
        ax.plot([left, ridge, right], [left * r.bandwidth, roof, roof], color="#333333", linewidth=1.1, linestyle=style)
        ax.text(2 * ridge, 1.07 * roof, f"{what}, {roof:,.0f} GFLOP/s", fontsize=8, color="#333333")
    slope = (left * r.ceiling / r.bandwidth) ** 0.5  # in the middle of the slope
    ax.text(1.15 * slope, slope * r.bandwidth, f"copy, {r.bandwidth:.3g} GB/s", va="top", fontsize=8, color="#333333")
    for p, colour in zip(r.parts, COLOURS, strict=True):
        whole = p is r.parts[-1]
        share = "" if whole else f", {p.times * p.seconds / r.parts[-1].seconds:.1%} of the step"
        label = f"{p.name}: {p.gflops:.3g} GFLOP/s{share}"
        ax.scatter(
            p.intensity,
            p.gflops,
            s=130 if whole else 60,
            marker="*" if whole else "o",
            color=colour,
            label=label,
            zorder=3,
        )
    ax.legend(loc="lower right", frameon=False, fontsize=8.5)
    c = r.conditions
    ax.set_title(
        f"A training step of {c['model']}, batch {c['batch']}, {c['dtype']}, rdb {c['rdb']}",
        fontsize=10.5,
        loc="left",
        weight="bold",
    )
    source = f"{c['kind']} {c['date']} on {c['device']}\ntorch {c['torch']}, rdn_fast {c['rdn_fast']}, commit {c['commit']}, {c['command']}"
    ax.set_xlabel(f"FLOP per byte that must move\n{source}", fontsize=8.5)
    ax.set_ylabel("GFLOP/s, counted as direct convolutions")
    ax.set_xlim(left, right)
    ax.spines[["top", "right"]].set_visible(False)
    canvas.savefig(picture, metadata={"Date": None} if picture.suffix == ".svg" else None, dpi=130)
    plt.close(canvas)


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
