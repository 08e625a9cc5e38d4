"""`--rdb auto`: time every row that can run a block of this shape here, once, and remember the fastest in the user's cache folder."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rdn_fast import __version__, devices
from rdn_fast.cache import cache_folder
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.files import atomic_write
from rdn_fast.rdb import able, select

ROUNDS = 3
PICTURE = 96  # largest side of what inference is timed on, LR pixels
CPU_PIXELS = 8 * 32 * 32
HOPELESS = 1.5  # rows this many times slower than the fastest are not timed again


@dataclass(frozen=True)
class Case:
    """What the choice depends on: one block of `config` on [batch, G0, height, width] in `dtype`, with or without its backward pass."""

    device: torch.device
    dtype: torch.dtype
    training: bool
    config: ModelConfig
    batch: int
    height: int
    width: int
    mode: str = ""  # of the device (device.mode)

    @classmethod
    def of(cls, config: ModelConfig, shape, device: torch.device, dtype: torch.dtype, training: bool) -> Case:
        """The case to time for a model's input of `shape` [B, 3, H, W]: as it is in training; for pictures, which are all
        of different sizes, one of a moderate size; on a CPU no more patches than the speed depends on."""
        batch, _, height, width = shape
        if not training:
            batch, height, width = 1, *(min(-(-side // 32) * 32, PICTURE) for side in (height, width))
        if devices.is_host(device):
            batch = min(batch, max(1, CPU_PIXELS // (height * width)))
        return cls(device, dtype, training, config, batch, height, width, devices.mode(device))

    def key(self) -> str:
        """Everything that a remembered choice holds for, as text."""
        c = self.config
        shape = f"{self.batch}x{c.num_features}x{self.height}x{self.width} G{c.growth_rate} C{c.num_layers}"
        words = devices.describe(self.device), str(self.dtype), shape, "training" if self.training else "inference"
        mode = (f"mode {self.mode}",) if self.mode else ()
        return ", ".join((*words, *mode, f"torch {torch.__version__}", f"rdn_fast {__version__}"))

    @property
    def flop(self) -> int:
        """Floating-point operations: forward, and in training twice that backward."""
        return 2 * (3 if self.training else 1) * self.config.block_macs * self.batch * self.height * self.width


@dataclass(frozen=True)
class Timing:
    """seconds for each row that could be timed, reasons for the others."""

    seconds: dict[str, float]
    failed: dict[str, str]

    @property
    def fastest(self) -> str:
        return min(self.seconds, key=self.seconds.get)


_winners: dict[Case, str] = {}


def choose(name: str, case: Case) -> str:
    """The row that `name` stands for: itself, checked, or for `auto` the fastest, from the cache or timed now. Raises UserError."""
    if name != "auto":
        return select(name, case.device, case.dtype, case.training).name
    if case not in _winners:
        names = [row.name for row in able(case.device, case.dtype, case.training)]
        known = remembered().get(case.key())
        if known not in names:
            known = names[0] if len(names) == 1 else renew(case).fastest
        _winners[case] = known
    return _winners[case]


def renew(case: Case) -> Timing:
    """Time the rows, and remember the fastest."""
    timing = measure(case)
    _winners[case] = timing.fastest
    remember({case.key(): timing.fastest})
    return timing


def remember(choices: dict[str, str]) -> None:
    """Add choices to those in the user's cache folder."""
    text = json.dumps(remembered() | choices, indent=1)
    try:
        atomic_write(_file(), lambda file: file.write(text.encode()))
    except OSError as error:
        print(
            f"note: {_file()} cannot be written ({error.strerror}); the next run times the block's implementations again"
        )


def mode_key(case: Case) -> str:
    """Under which the mode is remembered in which the case is fastest, whatever the mode in effect."""
    return f"{replace(case, mode='').key()}, fastest mode"


def fastest_mode(case: Case) -> str:
    """The mode of the device in which `rdn-fast tune` found the case fastest; "": its own, or `tune` has not looked."""
    known = devices.modes(case.device)
    name = remembered().get(mode_key(case)) if known else None
    return name if name in known else ""


def measure(case: Case) -> Timing:
    """Best of ROUNDS, the rows in turn; a row that fails or runs out of memory is out, and that is said. UserError when none is left."""
    seconds, failed = {}, {}
    names = [row.name for row in able(case.device, case.dtype, case.training)]
    with torch.inference_mode(False):
        arguments = _arguments(case)
    for turn in range(ROUNDS + 1):  # the first warms up
        for name in names:
            if name in failed or (turn > 1 and seconds[name] > HOPELESS * min(seconds.values())):
                continue
            try:
                taken = _time(name, case, arguments)
            except (
                UserError,
                RuntimeError,
                ImportError,
                OSError,
            ) as error:  # a shape it was not made for, a compiler that fails, ...
                lacks_memory = isinstance(error, RuntimeError) and devices.is_out_of_memory(error)
                failed[name] = (
                    "out of memory" if lacks_memory else f"fails: {(str(error).strip() or repr(error)).splitlines()[0]}"
                )
                print(f"note: --rdb auto leaves out {name}, which {'runs ' if lacks_memory else ''}{failed[name]}")
                seconds.pop(name, None)
                gc.collect()
                continue
            if turn:
                seconds[name] = min(taken, seconds.get(name, taken))
    if not seconds:
        raise UserError(
            f"no implementation of the block can compute {case.key()} (the notes say why); give a smaller --batch-size or --patch-size"
        )
    return Timing(seconds, failed)


def _time(name: str, case: Case, arguments) -> float:
    x, conv_w, conv_b, fuse_w, fuse_b = arguments
    row = select(name, case.device, case.dtype, case.training)
    devices.synchronize(case.device)
    start = time.perf_counter()
    with torch.inference_mode(False), torch.set_grad_enabled(case.training):
        y = row.module.rdb(x, conv_w, conv_b, fuse_w, fuse_b)
        if case.training:
            torch.autograd.grad(y, [x, *conv_w, *conv_b, fuse_w, fuse_b], x.detach())
    devices.synchronize(case.device)
    return time.perf_counter() - start


def _arguments(case: Case):
    """Random inputs and weights of a block, with gradients asked for when training."""
    c, generator = case.config, torch.Generator().manual_seed(0)
    g0, g = c.num_features, c.growth_rate
    layout = devices.memory_format(case.device)

    def normal(*size, std=1.0):
        tensor = torch.randn(size, generator=generator).mul_(std).to(case.device, case.dtype)
        return (tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor).requires_grad_(case.training)

    fan_in = [g0 + j * g for j in range(c.num_layers)]
    conv_w = [normal(g, n, 3, 3, std=(2 / (9 * n)) ** 0.5) for n in fan_in]
    conv_b = [normal(g, std=0.1) for _ in fan_in]
    n = g0 + c.num_layers * g
    return (
        normal(case.batch, g0, case.height, case.width),
        conv_w,
        conv_b,
        normal(g0, n, 1, 1, std=n**-0.5),
        normal(g0, std=0.1),
    )


def _file() -> Path:
    return cache_folder() / "tuning.json"


def remembered() -> dict[str, str]:
    """Winners by key. A file that cannot be read as that is removed, with one line, and made anew by the next choice."""
    try:
        choices = json.loads(_file().read_text())
        if not isinstance(choices, dict) or not all(isinstance(name, str) for name in choices.values()):
            raise ValueError
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        print(f"note: {_file()} holds no tuning results of rdn-fast; it is made anew")
        with contextlib.suppress(OSError):
            _file().unlink()
        return {}
    return choices
