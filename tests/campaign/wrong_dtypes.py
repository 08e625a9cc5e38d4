"""Every impl called directly with dtypes and devices that it was not made for: it raises; nothing aborts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from rdn_fast.rdb import IMPLS, Impl
from tests.campaign.trial import Kind, require

RAISED = "raised"
_G0, _G, _C = 6, 4, 2
_SIZES = {
    "x": (1, _G0, 8, 8),
    "conv_w[0]": (_G, _G0, 3, 3),
    "conv_b[0]": (_G,),
    "conv_w[1]": (_G, _G0 + _G, 3, 3),
    "conv_b[1]": (_G,),
    "fuse_w": (_G0, _G0 + _C * _G, 1, 1),
    "fuse_b": (_G0,),
}
_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.complex64),
    *(torch.uint8, torch.int32, torch.int64, torch.bool),
)


def _arguments(dtypes: dict[str, torch.dtype], devices: dict[str, str], trains: bool) -> list[torch.Tensor]:
    made = []
    for name, size in _SIZES.items():
        tensor = torch.rand(size).to(dtypes[name]).to(devices[name])
        made.append(tensor.requires_grad_(trains and tensor.is_floating_point()))
    return made


def cases() -> Iterator[tuple[Impl, dict[str, torch.dtype], dict[str, str]]]:
    """Yield what an impl must refuse: dtypes and devices, by the names of its arguments."""
    cpu, meta = (dict.fromkeys(_SIZES, device) for device in ("cpu", "meta"))
    for impl in IMPLS.values():
        runs_here = "cpu" in impl.devices
        for dtype in _DTYPES:
            if not (runs_here and dtype in impl.dtypes):
                yield impl, dict.fromkeys(_SIZES, dtype), cpu
        own = dict.fromkeys(_SIZES, impl.dtypes[0])
        yield impl, own, meta
        for name in _SIZES:
            for dtype in _DTYPES:
                if dtype != impl.dtypes[0]:
                    yield impl, own | {name: dtype}, cpu
            yield impl, own, cpu | {name: "meta"}


CASES = [(*case, trains) for case in cases() for trains in (False, True)]


def _run(made: None, seed: int, folder: Path) -> str:
    impl, dtypes, devices, trains = CASES[seed]
    x, w0, b0, w1, b1, fuse_w, fuse_b = _arguments(dtypes, devices, trains)
    try:
        y = impl.rdb(x, [w0, w1], [b0, b1], fuse_w, fuse_b)
    except Exception:
        return RAISED
    differing = {name: f"{dtypes[name]} on {devices[name]}" for name in _SIZES}
    require(False, f"{impl.name} took {differing}, trains {trains}, and gave {y.dtype} on {y.device}")


KINDS = (
    Kind(
        "dtypes",
        "An implementation of the block that is called with a dtype or a device that it was not made for raises",
        len(CASES),
        _run,
        batch=len(CASES),
        drawn=False,
    ),
)
