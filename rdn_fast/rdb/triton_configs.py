"""Which configuration of its tiles, warps and pipeline stages each Triton kernel of triton_planes runs with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import torch

from rdn_fast import __version__
from rdn_fast.devices import CudaGraphed, DeviceTimer, hardware, is_host, is_out_of_memory
from rdn_fast.errors import UserError, what_failed
from rdn_fast.rdb.rounds import Verdict
from rdn_fast.rdb.tuning import remember, remembered

ROUNDS, REPEATS = 3, 10  # in turn; launches between two events

# The candidates of each kernel, best guess first. None spills registers or exceeds Hopper's shared memory
# (tests/rdb/test_triton.py).
# Tiles of pixels are 8 columns wide: then a thread holds all rows of a column (triton_kernels._shift_rows).
_PIXELS = (
    {"ROWS": 32, "COLS": 8, "num_warps": 8, "num_stages": 4},
    {"ROWS": 32, "COLS": 8, "num_warps": 8, "num_stages": 3},
    {"ROWS": 16, "COLS": 8, "num_warps": 4, "num_stages": 2},
)
CANDIDATES = {
    "to_planes": ({"P": 128, "num_warps": 8},),
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
    "reduce": ({"P": 1024, "TERMS": 64, "num_warps": 4},),
}


class KernelConfigs:
    """The fastest configuration of each kernel for each shape: timed once, then remembered as rdb/tuning.py does."""

    def __init__(self, candidates: Mapping[str, Sequence[dict]]):
        self.candidates = self._all = dict(candidates)
        self._fastest: dict[tuple, dict] = {}

    def restrict(self, number: int) -> None:
        """Offer only candidate `number` of each kernel, or the last of those that have fewer; forget what was timed."""
        self.clear()
        self.candidates = {name: (configs[min(number, len(configs) - 1)],) for name, configs in self._all.items()}

    def clear(self) -> None:
        """Offer all candidates again; forget what was timed by this process."""
        self.candidates = self._all
        self._fastest.clear()

    def run(self, name: str, function: Callable[[dict], object], planes: torch.Tensor, *more):
        """Return function(config) with the fastest configuration of kernel `name` for `planes` and `more`.

        One that cannot be built or launched is left out. Raise UserError when none is left.
        planes: [S, N, H, W, K]; H and W count in classes of 32 pixels. To be timed, the function runs several times.
        """
        s, batch, height, width, k = planes.shape
        shape = s, batch, -(-height // 32), -(-width // 32), k, *more
        key = name, planes.device, planes.dtype, *shape
        if key not in self._fastest:
            self._fastest[key] = self._choose(name, shape, function, planes)
        return function(self._fastest[key])

    def _choose(self, name: str, shape: tuple, function: Callable, planes: torch.Tensor) -> dict:
        """Return the configuration that is remembered and can still be launched, else the fastest, which is remembered.

        Of several processes that time at once, the first one chooses for all.
        """
        candidates, device = self.candidates[name], planes.device
        if is_host(device):  # Triton's interpreter
            return candidates[0]
        key = _key(name, shape, planes)
        known = _known(key, candidates)
        if known and _launch(function, known) is None:
            return known
        fastest = _time(name, candidates, function, device)
        if known or not (known := _known(key, candidates)):
            if len(candidates) > 1:  # of one nothing is chosen
                remember({key: Verdict(json.dumps(fastest), True)})
            return fastest
        return known


def _key(name: str, shape: tuple, planes: torch.Tensor) -> str:
    import triton

    sizes = "x".join(map(str, shape))
    words = f"kernel {name}", hardware(planes.device), str(planes.dtype), sizes
    return ", ".join((*words, f"triton {triton.__version__}", f"rdn_fast {__version__}"))


def _known(key: str, candidates: Sequence[dict]) -> dict | None:
    choice = remembered().get(key)
    return next((config for config in candidates if json.dumps(config) == choice), None)


def _launch(function: Callable, config: dict) -> str | None:
    """Compile and launch a configuration. Return what failed, or None. Running out of memory is raised."""
    try:
        function(config)
    # Too little shared memory; ptxas; the C compiler of Triton's launcher is missing, or it finds no Python.h; a cache
    # that cannot be written; a triton with other operations.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {what_failed(error)}"
    return None


def _time(name: str, candidates: Sequence[dict], function: Callable, device: torch.device) -> dict:
    """Return the fastest candidate, each captured as a graph, as a training step is, and timed in turn.

    Raise UserError when none can be launched.
    """
    calls, timer, problem = [], DeviceTimer(device), None
    for config in candidates:
        if failed := _launch(function, config):
            problem = failed
        else:
            calls.append((config, CudaGraphed(lambda config=config: function(config), device, f"kernel {name}")))
    if not calls:
        raise UserError(
            f"--rdb triton_planes: its kernel {name} cannot be built or run here ({problem}); choose another --rdb"
        )
    if len(calls) == 1:
        return calls[0][0]
    seconds = [[] for _ in calls]
    for _ in range(ROUNDS):
        for (_, call), own in zip(calls, seconds, strict=True):
            call.prepare()
            timer.read()
            timer.start()
            for _ in range(REPEATS):
                call()
            timer.stop()
            own.append(timer.read())
    best = [min(own) for own in seconds]
    return calls[best.index(min(best))][0]
