"""Translate other projects' checkpoints and parameter names of an RDN to the reference's names, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch

from rdn_fast.errors import UserError

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

# Pairs of patterns: the reference's module name, theirs. The first match counts.
_LORNATANG = (
    ("output", "conv3"),
    ("sfe{}", "conv{}"),
    ("rdbs.{}.layers.{}.conv", "trunk.{}.rdb.{}.rb.0"),
    ("rdbs.{}.lff", "trunk.{}.local_feature_fusion"),
    ("gff.{}", "global_feature_fusion.{}"),
    ("upscale.0", "upsampling.0.upsample_block.0"),
    ("upscale.2", "upsampling.1.upsample_block.0"),
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


def to_reference(saved, name: str) -> tuple[dict[str, torch.Tensor], str, list[str]]:
    """Find the network's parameters in what a file holds.

    Returns
    - the state dict under the reference's names; keys that are not known keep theirs
    - the names it had: "reference", "edsr" or "lornatang"
    - the keys and prefixes of the checkpoint that led to it.
    Raises UserError, naming `name`, for what is no state dict of plain tensors.
    """
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
    if any(key.startswith("RDBs.") for key in state):
        layout, pairs = "edsr", _edsr(4 if "UPNet.4.weight" in state else 2)
    elif any(key.startswith("trunk.") for key in state):
        layout, pairs = "lornatang", _LORNATANG
    else:
        return state, "reference", inside
    back = [(theirs, reference) for reference, theirs in pairs]
    return _rename(state, lambda key: _translate(key, back), name), layout, inside


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
            return other.format(*match.groups()) + dot + kind
    return key
