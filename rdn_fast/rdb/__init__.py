"""Implementations of the residual dense block. Read naive, summed, sliced, winograd, amx, compiled, triton_planes,
hopper, npu_conv, then how one is chosen: case, rounds, tuning, measure, autotune.

Contract: the module of every impl exports `rdb(x, conv_w, conv_b, fuse_w, fuse_b) -> y` with C = len(conv_w) and
    x, y:      [B, G0, H, W]
    conv_w[j]: [G, G0 + j*G, 3, 3]    conv_b[j]: [G]
    fuse_w:    [G0, G0 + C*G, 1, 1]   fuse_b:    [G0]
All tensors have one dtype and one device; any memory format is accepted. Low-precision impls accumulate in float32.
B may be 0, H and W not. Call it as `IMPLS[name].rdb(...)`, which raises an error for other shapes, and for a dtype or
device that the impl was not made for. The impls themselves check neither.

An impl whose kernels read weights in an order of their own also exports `pack(blocks, dtype) -> [packed, ...]` for all
blocks (conv_w, fuse_w) of a model at once, and its rdb() takes `packed`. Weights and biases may then have another dtype
than x, the parameters' own; so have their gradients.
An impl in C exports `frozen(conv_w, conv_b, fuse_w, fuse_b) -> f` instead: f(x) = y without gradients, packed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch

from rdn_fast.errors import UserError
from rdn_fast.precision import dtype_name
from rdn_fast.rdb import amx, compiled, hopper, naive, npu_conv, sliced, summed, torchair, triton_planes, winograd

LOW = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, *LOW)
NO_BF16 = (torch.float32, torch.float16)


@dataclass(frozen=True)
class Impl:
    """One row of the table: where an impl runs, in which dtypes, whether it has a backward pass, and why it exists.

    A module that needs more than torch also exports `missing() -> str | None`, which says what is not installed, or why
    its kernels do not work on the card at hand. One whose kernels can be compiled ahead exports `compilations`.
    """

    name: str
    module: ModuleType
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    trains: bool
    why: str

    def pack(self, blocks: Sequence[tuple], dtype: torch.dtype) -> Sequence:
        """Return what rdb() takes as `packed` of each block (conv_w, fuse_w), in `dtype`; None if the impl has none."""
        return self.module.pack(blocks, dtype) if hasattr(self.module, "pack") else [None] * len(blocks)

    def frozen(self, *weights) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the block as a function of x, without gradients. It raises what rdb() does.

        weights: rdb()'s arguments after x. They must not change: they are packed once.
        """
        if hasattr(self.module, "frozen"):
            kept = self.module.frozen(*weights)
            return lambda x: self._check(x, *weights) or kept(x)
        (packed,) = self.pack([(weights[0], weights[2])], weights[2].dtype)
        return lambda x: self.rdb(x, *weights, packed)

    def rdb(self, x, conv_w, conv_b, fuse_w, fuse_b, packed=None) -> torch.Tensor:
        """Compute a block. Raise UserError unless all tensors have one dtype and one device, and the impl has both.

        Raise ValueError for tensors that make no dense block (see the contract), an empty picture among them.
        packed: pack() of this block's weights. Weights and biases may then have another dtype than x.
        """
        self._check(x, conv_w, conv_b, fuse_w, fuse_b, packed)
        return self.module.rdb(x, conv_w, conv_b, fuse_w, fuse_b, *(() if packed is None else (packed,)))

    def _check(self, x, conv_w, conv_b, fuse_w, fuse_b, packed=None) -> None:
        tensors = (x, fuse_w, fuse_b, *conv_w, *conv_b)
        same = all(tensor.device == x.device and (packed is not None or tensor.dtype == x.dtype) for tensor in tensors)
        if not (same and x.dtype in self.dtypes and x.device.type in self.devices):
            found = " and ".join(sorted({f"{dtype_name(tensor.dtype)} on {tensor.device}" for tensor in tensors}))
            made_for = f"{', '.join(map(dtype_name, self.dtypes))} on {', '.join(self.devices)}"
            raise UserError(f"--rdb {self.name}: computes in one of {made_for}, not in {found}; choose another --rdb")
        _check_shapes(x, conv_w, conv_b, fuse_w, fuse_b)


def _check_shapes(x, conv_w, conv_b, fuse_w, fuse_b) -> None:
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f"a block computes x [B, G0, H, W] with pixels, not {list(x.shape)}")
    g0, g, layers = x.shape[1], len(conv_b[0]), len(conv_w)
    found = [*(w.shape for w in conv_w), *(b.shape for b in conv_b), fuse_w.shape, fuse_b.shape]
    convs = [(g, g0 + j * g, 3, 3) for j in range(layers)]
    expected = [*convs, *[(g,)] * layers, (g0, g0 + layers * g, 1, 1), (g0,)]
    if found != expected:
        raise ValueError(f"the weights' shapes are {[*map(tuple, found)]}, a dense block's would be {expected}")


# In the order in which `--rdb auto` prefers them, the last one most, where timing cannot tell them apart.
_TABLE = (
    Impl("naive", naive, ("cpu", "cuda", "npu"), (*FLOATS, torch.float64), True, "the oracle: concat, as in the paper"),
    # Not in bf16: the sums of rounded parts flip too many ReLUs (summed.py).
    Impl("summed", summed, ("cpu", "cuda", "npu"), NO_BF16, True, "a convolution for each map, summed: no concat"),
    Impl("sliced", sliced, ("cpu", "cuda", "npu"), FLOATS, True, "one buffer, no concat: a sixth of the memory"),
    Impl("winograd", winograd, ("cpu",), (torch.float32,), True, "Winograd in C: a quarter of the multiplications"),
    Impl("amx", amx, ("cpu",), (torch.bfloat16,), True, "C on matrix tiles (Intel): no concat, one rounding"),
    Impl("compiled", compiled, ("cuda",), FLOATS, True, "torch.compile of naive"),
    Impl("torchair", torchair, ("npu",), FLOATS, False, "torch.compile of naive by the vendor's graph mode"),
    Impl("npu_conv", npu_conv, ("npu",), LOW, True, "convolutions of A2's and A3's matrix unit: no concat"),
    Impl("hopper", hopper, ("cuda",), LOW, True, "CUDA C++ for Hopper: nine taps out of one copy of the pixels"),
    Impl("triton_planes", triton_planes, ("cuda",), LOW, True, "fused Triton kernels, one per layer and gradient"),
)
IMPLS = {impl.name: impl for impl in _TABLE}


def refusal(impl: Impl, device: torch.device, dtype: torch.dtype, training: bool) -> str | None:
    """Return why the impl cannot run there, or None when it can."""
    if device.type not in impl.devices:
        return f"runs on {', '.join(impl.devices)} only"
    if dtype not in impl.dtypes:
        return f"computes in {', '.join(map(dtype_name, impl.dtypes))} only, not in {dtype_name(dtype)}"
    if training and not impl.trains:
        return "has no backward pass"
    return impl.module.missing() if hasattr(impl.module, "missing") else None


def able(device: torch.device, dtype: torch.dtype, training: bool) -> list[Impl]:
    """Return the impls that can run there, in the table's order."""
    return [impl for impl in IMPLS.values() if refusal(impl, device, dtype, training) is None]


def select(name: str, device: torch.device, dtype: torch.dtype, training: bool) -> Impl:
    """Return the impl called `name`. Raise UserError with the reason when it cannot run; never fall back silently."""
    reason = refusal(IMPLS[name], device, dtype, training) if name in IMPLS else "is no implementation"
    if reason is not None:
        names = ", ".join(impl.name for impl in able(device, dtype, training)) or "none"
        raise UserError(f"--rdb {name} {reason}; on {device.type} in {dtype_name(dtype)} can run: {names}")
    return IMPLS[name]
