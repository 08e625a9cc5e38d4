"""A training step of the presets demo and small by every implementation in every dtype: does auto take the best?

What is best for rdn-b need not be for them: an implementation must win here too, or not be taken here.
"""

from __future__ import annotations

import dataclasses

import torch

from bench import tables
from bench.case import CPUS, EVERY, Case, Column, Comparison, Gate
from bench.measure import Bench
from bench.models import compare, default_dtype, makers, words
from rdn_fast.config import make_configs

NAME, PRESETS = "small models", ("demo", "small")


def comparison(preset: str, device: torch.device, dtypes: list, impl: str) -> Comparison:
    """Return the recipes on a batch of the preset's own patches."""
    model_config, train_config = make_configs({}, preset)
    side = train_config.patch_size
    lr = train_config.batch_size, 3, side, side
    recipes = makers(model_config, lr, device, True, dtypes, impl, every=True)
    default = default_dtype(device, model_config, lr)
    return dataclasses.replace(compare(NAME, model_config, lr, device, True, recipes), default=default)


def run(bench: Bench, command: str) -> None:
    for preset in PRESETS if bench.on_cpu else ():
        bench.compare(comparison(preset, bench.device, bench.dtypes, bench.impl), bench.rounds)


def _gate(preset: str) -> Gate:
    what = f"CPU, training step of preset {preset}, default precision / strongest of all others"
    return Gate(what, NAME, "vs_rest", 0.95, 1.0, places=CPUS, shape=words(make_configs({}, preset)[0]))


CASE = Case(
    order=15,
    rows=(NAME,),
    commands=EVERY,
    run=run,
    gates=tuple(map(_gate, PRESETS)),
    block="small",
    columns=(
        Column("preset", lambda row: next(one for one in PRESETS if row.shape.startswith(_gate(one).shape))),
        *tables.SPEEDS,
        tables.column("vs all others", "vs_rest", "{:.2f}x"),
    ),
)
