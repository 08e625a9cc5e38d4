"""What a run is given: flags that are the same on all ranks, files that are opened and checked, initial weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch

from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.data.degradation import PLAIN, Degradation
from rdn_fast.data.from_folder import training_pairs
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.pairs import Pair
from rdn_fast.data.prefetch import check_mode
from rdn_fast.data.sampler import PatchSampler
from rdn_fast.errors import UserError, naming_flag
from rdn_fast.evaluation.datasets import load_pairs, made_otherwise
from rdn_fast.model import RDN, check_state, describe, infer_config, meta_model
from rdn_fast.terminal import print_line
from rdn_fast.weights.convert import read_weights


class Inputs(NamedTuple):
    """The opened files of a run."""

    sampler: PatchSampler
    validation: Sequence[Pair]  # empty: nothing is validated
    weights: dict[str, torch.Tensor]  # to start from; a parameter that is not among them is random
    about_weights: str  # in what the file differs from the model; "" if in nothing

    @property
    def lr_in_words(self) -> str:
        """Return where the LR images of training and validation come from."""
        sources = [self.sampler.pairs.lr_made_by, *([self.validation.lr_made_by] if self.validation else [])]
        told = [made_by or "as the file has them" for made_by in sources]
        return told[0] if len({*told}) == 1 else f"{told[0]}; of validation: {told[1]}"


def open_inputs(
    model_config: ModelConfig,
    train_config: TrainConfig,
    rank: int = 0,
    world: int = 1,
    device: torch.device | None = None,
) -> Inputs:
    """Open and check every file of a run before anything is written or started. Raises UserError.

    device: None if it is not known yet; then the checks that depend on it are left out.
    """
    c, scale = train_config, model_config.scale
    train_file, eval_file = c.files(scale)
    degradation = Degradation.of_flags(c.bicubic, c.degradation)
    degradation.check_scale(scale)
    if c.train_lr_dir:
        with naming_flag("--train-dir", train_file), naming_flag("--train-lr-dir", c.train_lr_dir):
            pairs = training_pairs(train_file, scale, lr_dir=c.train_lr_dir)
    elif c.train_dir:
        with naming_flag("--train-dir"):
            pairs = training_pairs(train_file, scale, degradation)
    else:
        pairs = PairedH5(train_file, scale)
    if c.data_mode == "h5py":
        pairs.read_by_name()
    sampler = PatchSampler(pairs, c.patch_size, c.batch_size * c.accumulate, c.seed, rank, world, c.drop_last)
    check_mode(c.data_mode, sampler, device)
    say = print_line if rank == 0 else lambda _: None
    validation = []
    if eval_file is not None:
        made = None if c.bicubic is None and c.degradation is None else degradation
        validation = load_pairs(eval_file, scale, say, degradation=made, lr_dir=c.eval_lr_dir)
    if c.early_stop and not validation:
        raise UserError(f"--early-stop {c.early_stop}: a run without validation has no PSNR; give --eval-file, too")
    asked = degradation.in_words if degradation != PLAIN else pairs.lr_made_by
    for path, made_by in ((pairs.path, pairs.lr_made_by), (eval_file, validation.lr_made_by if validation else None)):
        if asked and (otherwise := made_otherwise(path, made_by, asked)) is not None:
            say(otherwise)
    weights, about_weights = ({}, "") if c.weights_file is None else _fitting(model_config, c.weights_file)
    return Inputs(sampler, validation, weights, about_weights)


def _fitting(model_config: ModelConfig, file: str) -> tuple[dict[str, torch.Tensor], str]:
    """Return the weights of `file` that fit the model, and what is said of the rest, "" if there is none.

    Everything before up-sampling must fit; of a model of another scale or tail the rest may be left out, as the paper
    starts x3 and x4 from x2. Raises UserError.
    """
    state, config = read_weights(file).state, model_config
    expected = meta_model(config).state_dict()
    keys = expected.keys() | state.keys()
    other = {key for key in keys if key not in expected or key not in state or state[key].shape != expected[key].shape}
    if not all(key.startswith(("upscale.", "output.")) for key in other):
        check_state(config, state, file)
    parts = {_part(key) for key in other}  # a convolution is taken whole or not at all
    fitting = {key: value for key, value in state.items() if _part(key) not in parts}
    if not parts:
        return fitting, ""
    new = {_part(key) for key in expected.keys() - fitting.keys()}
    groups = ("random at the start are", new), ("left out are", parts - new)
    told = "; ".join(f"{what} {', '.join(sorted(names))}" for what, names in groups if names)
    return fitting, f"{file} is of {describe(infer_config(state, file))}: {told}; everything else is taken"


def _part(key: str) -> str:
    return key.rpartition(".")[0]


def initial_model(model_config: ModelConfig, seed: int, weights: dict[str, torch.Tensor]) -> RDN:
    """Return the model on the host with these weights, and else with random ones that depend on the seed alone."""
    torch.manual_seed(seed)
    model = RDN(model_config)
    model.load_state_dict(model.state_dict() | weights)
    return model


def shared_flags(model_config: ModelConfig, train_config: TrainConfig, inputs: Inputs) -> dict:
    """Return what must be the same on all ranks. Paths may differ from node to node."""
    flags = dataclasses.asdict(model_config) | dataclasses.asdict(train_config)
    flags = {name: value for name, value in flags.items() if not name.endswith(("_path", "_file", "_dir"))}
    return flags | {"images": len(inputs.sampler)}


def check_same(of_ranks: list[dict]) -> None:
    """Raise UserError if the shared_flags of a rank are not those of rank 0."""
    for rank, theirs in enumerate(of_ranks):
        for name, value in of_ranks[0].items():
            if theirs[name] != value:
                flag = name.replace("_", "-")
                raise UserError(
                    f"{flag} is {value} for rank 0 and {theirs[name]} for rank {rank}; "
                    "give every node the same flags and data"
                )
