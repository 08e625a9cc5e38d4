"""`--rdb auto`: time every impl that can run a block here once, and remember the fastest in the user's cache folder."""

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
PICTURE = 96  # LR pixels: largest side of the input on which inference is timed
CPU_PIXELS = 8 * 32 * 32  # LR pixels of a batch: more do not change the ranking on a CPU
NO_MEMORY = "out of memory"
HOPELESS = 1.5  # impls this many times slower than the fastest are not timed again


@dataclass(frozen=True)
class Case:
    """What the choice depends on: one block on [batch, G0, height, width], with its backward pass if `training`."""

    device: torch.device
    dtype: torch.dtype
    training: bool
    model_config: ModelConfig
    batch: int
    height: int
    width: int
    mode: str = ""  # of the device, devices.mode()

    @classmethod
    def of(cls, model_config: ModelConfig, shape, device: torch.device, dtype: torch.dtype, training: bool) -> Case:
        """Return the case to time for a model's input of `shape` [B, 3, H, W].

        Training is timed at its own shape. Inference sees many sizes: sides are rounded up to multiples of 32, PICTURE
        at most, and the batch is 1. On a CPU the batch is cut to CPU_PIXELS.
        """
        batch, _, height, width = shape
        if not training:
            batch, height, width = 1, *(min(-(-side // 32) * 32, PICTURE) for side in (height, width))
        if devices.is_host(device):
            batch = min(batch, max(1, CPU_PIXELS // (height * width)))
        return cls(device, dtype, training, model_config, batch, height, width, devices.mode(device))

    def key(self) -> str:
        """Return the text under which a choice is remembered: everything that it depends on, versions included."""
        c = self.model_config
        shape = f"{self.batch}x{c.num_features}x{self.height}x{self.width} G{c.growth_rate} C{c.num_layers}"
        words = devices.describe(self.device), str(self.dtype), shape, "training" if self.training else "inference"
        mode = (f"mode {self.mode}",) if self.mode else ()
        return ", ".join((*words, *mode, f"torch {torch.__version__}", f"rdn_fast {__version__}"))

    @property
    def flop(self) -> int:
        """Floating-point operations: those of the forward pass, three times as many in training."""
        return 2 * (3 if self.training else 1) * self.model_config.block_macs * self.batch * self.height * self.width


@dataclass(frozen=True)
class Timing:
    """Seconds of each impl that could be timed, and the reasons of those that failed."""

    seconds: dict[str, float]
    failed: dict[str, str]

    @property
    def fastest(self) -> str:
        return min(self.seconds, key=self.seconds.get)


winners: dict[Case, str] = {}  # the fastest impls known to this process; winners.clear() forgets them


def resolve_impl(name: str, case: Case) -> str:
    """Return the impl's name that `name` stands for: itself, or for "auto" the fastest, remembered or timed now.

    Raise UserError when the named impl cannot run the case, or for "auto" when none can.
    """
    if name != "auto":
        return select(name, case.device, case.dtype, case.training).name
    if case not in winners:
        names = [impl.name for impl in able(case.device, case.dtype, case.training)]
        known = remembered().get(case.key())
        if known not in names:
            known = names[0] if len(names) == 1 else autotune(case).fastest
        winners[case] = known
    return winners[case]


def autotune(case: Case) -> Timing:
    """Time the impls, and remember the fastest in this process and in the user's cache folder."""
    timing = measure(case)
    winners[case] = timing.fastest
    remember({case.key(): timing.fastest})
    return timing


def remember(choices: dict[str, str]) -> None:
    """Add choices to those in the user's cache folder."""
    text = json.dumps(remembered() | choices, indent=1)
    try:
        atomic_write(_file(), lambda file: file.write(text.encode()))
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        print(f"note: {_file()} {reason}; the next run times the block's implementations again")


def mode_key(case: Case) -> str:
    """Return the key under which the case's fastest mode is remembered. It does not depend on the mode in effect."""
    return f"{replace(case, mode='').key()}, fastest mode"


def fastest_mode(case: Case) -> str:
    """Return the device mode in which `rdn-fast tune` found the case fastest; "" is the default mode."""
    known = devices.modes(case.device)
    name = remembered().get(mode_key(case)) if known else None
    return name if name in known else ""


def measure(case: Case) -> Timing:
    """Time the impls in turn, ROUNDS times after a warm-up; keep each one's best time.

    An impl that raises or runs out of memory is left out with a note. Raise UserError when none is left.
    """
    seconds, failed = {}, {}
    names = [impl.name for impl in able(case.device, case.dtype, case.training)]
    with torch.inference_mode(False):
        arguments = _arguments(case)
    for turn in range(ROUNDS + 1):  # the first warms up
        for name in names:
            if name in failed or (turn > 1 and seconds[name] > HOPELESS * min(seconds.values())):
                continue
            try:
                taken = _time(name, case, arguments)
            except (UserError, RuntimeError, ImportError, OSError) as error:  # a shape, a compiler, memory, ...
                failed[name] = _failure(error)
                runs = "runs " if failed[name] == NO_MEMORY else ""
                print(f"note: --rdb auto leaves out {name}, which {runs}{failed[name]}")
                seconds.pop(name, None)
                gc.collect()
                continue
            if turn:
                seconds[name] = min(taken, seconds.get(name, taken))
    if not seconds:
        raise UserError(
            f"no implementation of the block can compute {case.key()} (the notes say why); "
            "give a smaller --batch-size or --patch-size"
        )
    return Timing(seconds, failed)


def _failure(error: Exception) -> str:
    if isinstance(error, RuntimeError) and devices.is_out_of_memory(error):
        return NO_MEMORY
    return f"fails: {(str(error).strip() or repr(error)).splitlines()[0]}"


def _time(name: str, case: Case, arguments) -> float:
    x, conv_w, conv_b, fuse_w, fuse_b = arguments
    impl = select(name, case.device, case.dtype, case.training)
    devices.synchronize(case.device)
    start = time.perf_counter()
    with torch.inference_mode(False), torch.set_grad_enabled(case.training):
        y = impl.module.rdb(x, conv_w, conv_b, fuse_w, fuse_b)
        if case.training:
            torch.autograd.grad(y, [x, *conv_w, *conv_b, fuse_w, fuse_b], x.detach())
    devices.synchronize(case.device)
    return time.perf_counter() - start


def _arguments(case: Case):
    """Return random inputs and weights of a block, which require gradients when training."""
    c, generator = case.model_config, torch.Generator().manual_seed(0)
    g0, g = c.num_features, c.growth_rate
    memory_format = devices.memory_format(case.device)

    def normal(*size, std=1.0):
        tensor = torch.randn(size, generator=generator).mul_(std).to(case.device, case.dtype)
        if tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=memory_format)
        return tensor.requires_grad_(case.training)

    channels = [g0 + j * g for j in range(c.num_layers)]
    conv_w = [normal(g, n, 3, 3, std=(2 / (9 * n)) ** 0.5) for n in channels]
    conv_b = [normal(g, std=0.1) for _ in channels]
    n = g0 + c.num_layers * g
    x = normal(case.batch, g0, case.height, case.width)
    return x, conv_w, conv_b, normal(g0, n, 1, 1, std=n**-0.5), normal(g0, std=0.1)


def _file() -> Path:
    return cache_folder() / "tuning.json"


def remembered() -> dict[str, str]:
    """Return {key: impl's name} from the user's cache folder. A damaged file is removed with a note."""
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
