"""What is profiled: one training step of rdn-b at its default precision, by the row that `--rdb auto` chooses."""

from __future__ import annotations

import argparse

import torch

from bench import cases
from bench.ours import default_dtype
from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError


def training_step(config: ModelConfig, batch: int, device: torch.device) -> tuple[cases.Case, cases.Checked]:
    """The case, and rdn_fast's contender of it: fresh() makes a batch of random patches, run() is the step."""
    case = cases.training_step(config, batch, device, [default_dtype(device)], "auto")
    return case, next(entry for entry in case.entries if entry.recipe == "rdn_fast").make()


def options(words: str | None, argv: list[str] | None) -> tuple[torch.device, int]:
    """--device and --batch-size from the command line. Raises UserError for a device that is not there or no batch."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or npu[:i]")
    parser.add_argument("--batch-size", type=int, help="patches a step (default: 4 on a CPU, else 64)")
    given = parser.parse_args(argv)
    device = devices.pick(given.device)
    batch = given.batch_size if given.batch_size is not None else 4 if device.type == "cpu" else 64
    if batch < 1:
        raise UserError(f"--batch-size {batch}: give 1 or more")
    return device, batch
