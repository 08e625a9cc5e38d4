"""The names that other projects give to an RDN's parameters, what they wrap them in, and the reference's names for them."""

from __future__ import annotations

import re

import torch

from rdn_fast.errors import UserError

# Where checkpoints keep the weights, the first that is there: of weights and their running average the average is the better one.
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
_ADDED = {"module", "_orig_mod"}  # by DataParallel and torch.compile
_COUNTERS = {"step_counter", "n_averaged", "steps"}  # of mmagic, of torch's and of mmengine's averages

_LORNATANG = (  # the first that fits counts
    ("output", "conv3"),
    ("sfe{}", "conv{}"),
    ("rdbs.{}.layers.{}.conv", "trunk.{}.rdb.{}.rb.0"),
    ("rdbs.{}.lff", "trunk.{}.local_feature_fusion"),
    ("gff.{}", "global_feature_fusion.{}"),
    ("upscale.0", "upsampling.0.upsample_block.0"),
    ("upscale.2", "upsampling.1.upsample_block.0"),
)


def _edsr(output: int) -> tuple[tuple[str, str], ...]:
    return (
        ("sfe{}", "SFENet{}"),
        ("rdbs.{}.layers.{}.conv", "RDBs.{}.convs.{}.conv.0"),
        ("rdbs.{}.lff", "RDBs.{}.LFF"),
        ("gff.{}", "GFF.{}"),
        ("output", f"UPNet.{output}"),
        ("upscale.{}", "UPNet.{}"),
    )


def to_reference(saved, name: str) -> tuple[dict[str, torch.Tensor], str, list[str]]:
    """What a file holds -> the network's tensors under the reference's names (those not known keep their own), whose names they had
    ("reference", "edsr" or "lornatang"), and the keys of the checkpoint that led there. UserError, naming `name`, for what is no state dict."""
    inside = []
    for _ in range(3):  # wrappers in wrappers
        keys = [key for key in _WRAPPERS if isinstance(saved, dict) and isinstance(saved.get(key), dict)]
        if keys:
            inside.append(keys[0])
            saved = saved[keys[0]]
    if not isinstance(saved, dict) or not saved or not all(_plain(key, value) for key, value in saved.items()):
        raise UserError(f"{name}: holds no state dict of plain tensors; give weights or a checkpoint of an RDN")
    state = _renamed(saved, lambda key: ".".join(part for part in key.split(".") if part not in _ADDED), name)
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
    return _renamed(state, lambda key: _translated(key, back), name), layout, inside


def _plain(key, value) -> bool:
    named = isinstance(key, str) and key.isprintable()  # names are shown in errors
    return named and isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta


def to_edsr(state: dict) -> dict:
    """The reference's names -> EDSR-PyTorch's."""
    pairs = _edsr(4 if "upscale.2.weight" in state else 2)
    return {_translated(key, pairs): value for key, value in state.items()}


def _renamed(state: dict, rename, name: str) -> dict:
    renamed = {rename(key): value for key, value in state.items()}
    if len(renamed) < len(state):
        raise UserError(f"{name}: holds the same parameter under two names; save the state dict of one model alone")
    return renamed


def _translated(key: str, pairs) -> str:
    stem, dot, kind = key.rpartition(".")
    for pattern, other in pairs:
        if match := re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), stem):
            return other.format(*match.groups()) + dot + kind
    return key
