"""What is profiled: one training step at its default precision, by the implementation that `--rdb auto` chooses."""

from __future__ import annotations

import argparse

import torch

from bench.case import Contender
from bench.cases import training_step
from bench.models import PATCH, compare, default_dtype, ours, resolve_impl
from bench.recipe import Recipe
from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError


def profiled_step(model_config: ModelConfig, batch: int, device: torch.device) -> tuple[Recipe, Contender]:
    """Return rdn_fast's recipe, and it as a contender: fresh() makes a batch of random patches, run() is the step."""
    lr, dtype = (batch, 3, PATCH, PATCH), default_dtype(device, model_config, (batch, 3, PATCH, PATCH))
    recipe = ours(model_config, device, dtype, resolve_impl("auto", model_config, lr, device, dtype, training=True))
    maker = "rdn_fast", dtype, lambda: recipe
    (entry,) = compare(training_step.NAME, model_config, lr, device, True, [maker]).entries
    return recipe, entry.build()


def options(description: str | None, argv: list[str] | None) -> tuple[torch.device, int]:
    """Return --device and --batch-size. UserError for a device that is not there or no batch."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=kind)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or npu[:i]")
    parser.add_argument("--batch-size", type=int, help="patches a step (default: 4 on a CPU, else 64)")
    given = parser.parse_args(argv)
    device = devices.pick(given.device)
    batch = given.batch_size if given.batch_size is not None else 4 if device.type == "cpu" else 64
    if batch < 1:
        raise UserError(f"--batch-size {batch}: give 1 or more")
    return device, batch
