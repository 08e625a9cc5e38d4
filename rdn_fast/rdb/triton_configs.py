"""Which configuration of its tiles, warps and pipeline stages each Triton kernel of triton_planes runs with."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence

import torch

from rdn_fast.devices import DeviceTimer, is_host, is_out_of_memory
from rdn_fast.errors import UserError, what_failed

# The candidates of each kernel, best guess first. None spills registers or exceeds Hopper's shared memory
# (tests/rdb/test_triton.py).
_PIXELS = (
    {"ROWS": 32, "COLS": 8, "num_warps": 8, "num_stages": 4},
    {"ROWS": 32, "COLS": 8, "num_warps": 8, "num_stages": 3},
    {"ROWS": 32, "COLS": 4, "num_warps": 4, "num_stages": 2},
)
CANDIDATES = {
    "layer": _PIXELS,
    "data_gradient": _PIXELS,
    "weight_gradient": (
        {"M": 128, "N": 256, "DEPTH": 64, "CACHE": ".ca", "num_warps": 8, "num_stages": 3},
        {"M": 128, "N": 256, "DEPTH": 64, "CACHE": ".cg", "num_warps": 8, "num_stages": 3},
        {"M": 128, "N": 256, "DEPTH": 64, "CACHE": ".cg", "num_warps": 8, "num_stages": 4},
        {"M": 64, "N": 256, "DEPTH": 64, "CACHE": ".ca", "num_warps": 4, "num_stages": 2},
    ),
    "fusion": (
        {"P": 128, "num_warps": 8, "num_stages": 4},
        {"P": 64, "num_warps": 4, "num_stages": 4},
    ),
}


class KernelConfigs:
    """The fastest configuration of each kernel for each shape, timed at first use and remembered by this process."""

    def __init__(self, candidates: Mapping[str, Sequence[dict]]):
        self.candidates = self._all = dict(candidates)
        self._fastest: dict[tuple, dict] = {}

    def restrict(self, number: int) -> None:
        """Offer only candidate `number` of each kernel, or the last of those that have fewer; forget what was timed."""
        self.clear()
        self.candidates = {name: (configs[min(number, len(configs) - 1)],) for name, configs in self._all.items()}

    def clear(self) -> None:
        """Offer all candidates again; forget what was timed."""
        self.candidates = self._all
        self._fastest.clear()

    def run(self, name: str, function: Callable[[dict], object], planes: torch.Tensor, *more):
        """Return function(config) with the fastest configuration of kernel `name` for `planes` and `more`.

        One that cannot be built or launched is left out. Raise UserError when none is left.
        planes: [S, N, H, W, K]; H and W count in classes of 32 pixels. To be timed, the function runs several times.
        """
        s, batch, height, width, k = planes.shape
        key = name, planes.device, planes.dtype, s, batch, -(-height // 32), -(-width // 32), k, *more
        if key not in self._fastest:
            self._fastest[key] = _time(name, self.candidates[name], function, planes.device)
        return function(self._fastest[key])


def _time(name: str, candidates: Sequence[dict], function: Callable, device: torch.device) -> dict:
    if is_host(device):  # Triton's interpreter
        return candidates[0]
    from triton.errors import TritonError

    seconds, timer, problem = [], DeviceTimer(device), None
    for number, config in enumerate(candidates):
        try:
            function(config)  # compiles
        # Too little shared memory; ptxas; the C compiler of Triton's launcher is missing, or it finds no Python.h.
        except (TritonError, subprocess.CalledProcessError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            problem = f"{type(error).__name__}: {what_failed(error)}"
            continue
        timer.read()
        for _ in range(10):
            timer.start()
            function(config)
            timer.stop()
        seconds.append((timer.read(), number))
    if not seconds:
        raise UserError(
            f"--rdb triton_planes: its kernel {name} cannot be built or run here ({problem}); choose another --rdb"
        )
    return candidates[min(seconds)[1]]
