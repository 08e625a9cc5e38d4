"""Translate other projects' checkpoints and parameter names of an RDN to the reference's names, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from rdn_fast.errors import UserError
from rdn_fast.weights import equivalent, torch7

# Keys under which checkpoints keep the weights. The first that is there counts: averages before the weights themselves.
_WRAPPERS = (
    "params_ema",
    "params",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "average",
    "model",
    "net",
    "generator",
    "weights",
)
_NETWORKS = ("generator_ema.", "generator.", "model.", "net.")
_ADDED = {"module", "_orig_mod"}  # parts of names, by DataParallel and torch.compile
_COUNTERS = {"step_counter", "n_averaged", "steps"}  # no weights: of mmagic, and of torch's and mmengine's averages

# Pairs of patterns: the reference's module name, theirs. The first match counts. {-1}: theirs counts from 1.
_LORNATANG = (
    ("output", "conv3"),
    ("sfe{}", "conv{}"),
    ("rdbs.{}.layers.{}.conv", "trunk.{}.rdb.{}.rb.0"),
    ("rdbs.{}.lff", "trunk.{}.local_feature_fusion"),
    ("gff.{}", "global_feature_fusion.{}"),
    ("upscale.0", "upsampling.0.upsample_block.0"),
    ("upscale.2", "upsampling.1.upsample_block.0"),
    ("upscale.4", "upsampling.2.upsample_block.0"),
)
_LIZHENGWEI = (
    ("output", "conv3"),
    ("sfe{}", "conv{}"),
    ("rdbs.{-1}.layers.{}.conv", "RDB{}.dense_layers.{}.conv"),
    ("rdbs.{-1}.lff", "RDB{}.conv_1x1"),
    ("gff.0", "GFF_1x1"),
    ("gff.1", "GFF_3x3"),
    ("upscale.0", "conv_up"),
)
_IDEALO = (
    ("sfe1", "F_m1"),
    ("sfe2", "F_0"),
    ("rdbs.{-1}.layers.{-1}.conv", "F_{}_{}"),
    ("rdbs.{-1}.lff", "LFF_{}"),
    ("gff.{-1}", "GFF_{}"),
    ("upscale.0", "UPN1"),
    ("upscale.2", "UPN2"),
    ("upscale.4", "UPN3"),
    ("output", "SR"),
)


def _edsr(output: int) -> tuple[tuple[str, str], ...]:
    """Return the pairs for EDSR-PyTorch. output: the index of the last convolution in UPNet, 4 for x4, else 2."""
    return (
        ("sfe{}", "SFENet{}"),
        ("rdbs.{}.layers.{}.conv", "RDBs.{}.convs.{}.conv.0"),
        ("rdbs.{}.lff", "RDBs.{}.LFF"),
        ("gff.{}", "GFF.{}"),
        ("output", f"UPNet.{output}"),
        ("upscale.{}", "UPNet.{}"),
    )


class Found(NamedTuple):
    """An RDN's parameters in what a file holds.

    state: under the reference's names; keys that are not known keep theirs.
    layout: whose names they had, "reference", "edsr", "lornatang", "lizhengwei1992" or "idealo"; or "torch7".
    inside: the keys and prefixes of the checkpoint that led to them.
    value_range: of the RGB values that they are for.
    """

    state: dict[str, torch.Tensor]
    layout: str
    inside: list[str]
    value_range: str = "0..1"


def to_reference(saved, name: str) -> Found:
    """Find the network's parameters. Raises UserError, naming `name`, for what is no state dict of plain tensors."""
    inside = []
    for _ in range(3):  # wrappers in wrappers
        keys = [key for key in _WRAPPERS if isinstance(saved, dict) and isinstance(saved.get(key), dict)]
        if keys:
            inside.append(keys[0])
            saved = saved[keys[0]]
    if not isinstance(saved, dict) or not saved or not all(_is_plain(key, value) for key, value in saved.items()):
        raise UserError(f"{name}: holds no state dict of plain tensors; give weights or a checkpoint of an RDN")
    state = _rename(saved, lambda key: ".".join(part for part in key.split(".") if part not in _ADDED), name)
    for network in _NETWORKS:
        if of_network := {key.removeprefix(network): value for key, value in state.items() if key.startswith(network)}:
            inside.append(network.rstrip("."))
            state = of_network
            break
    state = {key: value for key, value in state.items() if key not in _COUNTERS}

    def renamed(pairs: Iterable[tuple[str, str]]) -> dict[str, torch.Tensor]:
        back = [(theirs, reference) for reference, theirs in pairs]
        return _rename(state, lambda key: _translate(key, back), name)

    if any(key.startswith("RDBs.") for key in state):
        pairs = _edsr(4 if "UPNet.4.weight" in state else 2)
        return Found(renamed(pairs), "edsr", inside, "0..255")
    if any(key.startswith("trunk.") for key in state):
        return Found(renamed(_LORNATANG), "lornatang", inside)
    if any(key.startswith("RDB1.") for key in state):
        whole = equivalent.from_bgr(equivalent.with_biases(renamed(_LIZHENGWEI)))
        return Found(whole, "lizhengwei1992", inside, "0..255")
    if any(key.startswith(torch7.PREFIX) for key in state):
        return Found({key.removeprefix(torch7.PREFIX): value for key, value in state.items()}, "torch7", [], "0..255")
    if "F_m1.weight" in state:
        return Found(equivalent.merge_idealo(renamed(_IDEALO)), "idealo", inside)
    return Found(state, "reference", inside)


def _is_plain(key, value) -> bool:
    named = isinstance(key, str) and key.isprintable()  # errors show names
    return named and isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta


def to_edsr(state: dict) -> dict:
    """Return the state dict with EDSR-PyTorch's names instead of the reference's."""
    pairs = _edsr(4 if "upscale.2.weight" in state else 2)
    return {_translate(key, pairs): value for key, value in state.items()}


def _rename(state: dict, rename: Callable[[str], str], name: str) -> dict:
    renamed = {rename(key): value for key, value in state.items()}
    if len(renamed) < len(state):
        raise UserError(f"{name}: holds the same parameter under two names; save the state dict of one model alone")
    return renamed


def _translate(key: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Return a parameter's name by the first pair (pattern, replacement) whose pattern its module's name matches."""
    stem, dot, kind = key.rpartition(".")
    for pattern, other in pairs:
        if match := re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), stem):
            shifts = [int(shift or 0) for shift in re.findall(r"\{(-1)?\}", other)]
            numbers = (int(number) + shift for number, shift in zip(match.groups(), shifts, strict=True))
            return other.replace("{-1}", "{}").format(*numbers) + dot + kind
    return key
