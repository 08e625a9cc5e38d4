"""Which tiles and splits of npu_conv the model finds fastest."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from unittest import mock

from bench.models import RDN_A, RDN_B
from bench.tables import markdown
from profiling.npu_chips import CHIPS, FAST, SLOW, Chip, Scenario
from profiling.npu_operators import Operator, trace
from profiling.npu_step import seconds
from rdn_fast.rdb import npu_conv

TILES = (64, 128, 256)  # pixels, at most; more do not fit L0C
SPLITS = (4, 8, 10, 12)
BATCH = 64
MODELS = {"rdn-b": RDN_B, "rdn-a": RDN_A}
PLACES = tuple((chip, batch) for chip in ("910B2", "910B3") for batch in (16, 64))


@cache
def sums(model: str, batch: int, cores: int, tile: int) -> list[Operator]:
    """Return a block's kernels that work in tiles, if a tile has `tile` pixels at most."""
    with mock.patch("rdn_fast.rdb.npu_conv_planes.TILE", tile):
        step = trace("npu_conv", replace(MODELS[model], num_blocks=1), batch, cores)
    return [operator for operator in step.operators if operator.text and operator.name != "weight_gradient"]


@cache
def weight_gradients(model: str, batch: int, cores: int, splits: int | None) -> list[Operator]:
    """Return the operators of a block's weight gradients with so many splits; None: as many as npu_conv chooses."""
    chosen = (lambda *_: splits) if splits else npu_conv.splits
    with mock.patch.object(npu_conv, "splits", chosen):
        step = trace("npu_conv", replace(MODELS[model], num_blocks=1), batch, cores)
    where = "npu_conv._weight_gradients"
    return [operator for operator in step.operators if operator.name == "weight_gradient" or operator.where == where]


def total(operators: list[Operator], chip: Chip, scenario: Scenario) -> float:
    return sum(seconds(operator, chip, scenario) for operator in operators)


def tiles_text() -> str:
    """Return what the table says of npu_conv's choices."""
    ratios = {}
    for scenario in (SLOW, FAST):
        found = []
        for model in MODELS:
            for chip in (CHIPS[name] for name, batch in PLACES if batch == BATCH):
                half, whole = (total(sums(model, BATCH, chip.cores, tile), chip, scenario) for tile in (128, 256))
                found.append(half / whole - 1)
        ratios[scenario] = f"{min(found):+.0%} to {max(found):+.0%}"
    return (
        f"npu_conv keeps tiles of 256 pixels: at batch {BATCH}, tiles of 128 would change the time by {ratios[FAST]} "
        f"in fast, by {ratios[SLOW]} in slow. It splits the pixels of weight gradients so that the cores end together."
    )


def tiles_table() -> str:
    """Return microseconds of a block for each tile size and number of splits, slow to fast."""
    tables = []
    for heading, function, choices in (
        ("a block's sums, us", sums, {f"{tile} pixels": tile for tile in TILES}),
        ("a block's weight gradients, us", weight_gradients, {f"{n} splits": n for n in SPLITS} | {"chosen": None}),
    ):
        rows = []
        for model in MODELS:
            for name, batch in PLACES:
                chip, cells = CHIPS[name], []
                for choice in choices.values():
                    operators = function(model, batch, chip.cores, choice)
                    cells.append(" to ".join(f"{total(operators, chip, s) * 1e6:.0f}" for s in (SLOW, FAST)))
                rows.append([f"{model}, {name}, batch {batch}", *cells])
        tables.append(markdown([heading, *choices], rows))
    return "\n\n".join(tables)
