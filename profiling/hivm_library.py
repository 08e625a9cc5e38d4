"""What the library functions do that compiled kernels call, and which pipe of a core does it.

Modelled from their names and arguments, and from what of them can be read in the package's bitcode. The macros' inside
(L0A, L0B, their flags) is not modelled. Sums are float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from profiling.hivm import DTYPES


@dataclass(frozen=True)
class View:
    """Elements of a buffer of bytes. Offset and strides are in elements; of "i1" in bits, which lie in bytes."""

    buffer: torch.Tensor  # [bytes], uint8
    space: str | None  # None: global memory
    kind: str
    offset: int
    sizes: list[int]
    strides: list[int]

    def read(self) -> torch.Tensor:
        """Return the elements. Raise IndexError outside of the buffer."""
        low, high = self.span()
        if self.kind == "i1":
            bits = self.buffer[low:high, None] >> torch.arange(8) & 1
            return bits.flatten()[: math.prod(self.sizes)].bool()
        return self._elements().clone()

    def write(self, value: torch.Tensor) -> None:
        low, high = self.span()
        if self.kind == "i1":
            bits = F.pad(value.flatten(), (0, -value.numel() % 8)).view(-1, 8)
            self.buffer[low:high] = (bits.int() << torch.arange(8)).sum(1).to(torch.uint8)
        else:
            self._elements().copy_(value)

    def _elements(self) -> torch.Tensor:
        dtype = DTYPES[self.kind]
        whole = self.buffer[: len(self.buffer) // dtype.itemsize * dtype.itemsize].view(dtype)
        return whole.as_strided(self.sizes, self.strides, whole.storage_offset() + self.offset)

    def span(self) -> tuple[int, int]:
        """Return the first byte and the one after the last. Raise IndexError outside of the buffer."""
        bits = 1 if self.kind == "i1" else 8 * DTYPES[self.kind].itemsize
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides, strict=True))
        low, high = self.offset * bits // 8, -(-(last + 1) * bits // 8)
        if not 0 <= low <= high <= len(self.buffer):
            raise IndexError(f"bytes {low} to {high} of {len(self.buffer)} in {self.space or 'global memory'}")
        return low, high

    def reshaped(self, sizes: list[int], strides: list[int], offset: int | None = None) -> View:
        return replace(self, sizes=sizes, strides=strides, offset=self.offset if offset is None else offset)


def _blocks(matrix: torch.Tensor, out: View) -> torch.Tensor:
    """Return [rows, columns] in the order of the cube's blocks, as `out` has them: [columns/16, rows/16, 16, 16]."""
    columns, rows = out.sizes[:2]
    matrix = F.pad(matrix, (0, columns * 16 - matrix.shape[1], 0, rows * 16 - matrix.shape[0]))
    return matrix.reshape(rows, 16, columns, 16).permute(2, 0, 1, 3)


def _matrix(blocks: torch.Tensor) -> torch.Tensor:
    """Return blocks [columns/16, rows/16, 16, 16] as [rows, columns]."""
    return blocks.permute(1, 2, 0, 3).reshape(blocks.shape[1] * 16, -1)


def _nd2nz(_name, source, out):
    out.write(_blocks(source.read(), out))


def _convolution(_name, x, w, begin, out, groups, top, bottom, left, right, *steps_and_events):
    assert groups == 1, "one group"
    assert steps_and_events[:4] == (1, 1, 1, 1), "neither stride nor dilation"
    image = x.read().float().permute(0, 1, 4, 2, 3).flatten(1, 2)  # [1, C, H, W] of [1, C/16, H, W, 16]
    weights = w.read().float().permute(3, 0, 4, 1, 2).flatten(1, 2)  # [O, C, 3, 3] of [C/16, 3, 3, O, 16]
    sums = F.conv2d(F.pad(image, (left, right, top, bottom)), weights)[0].flatten(1).T
    _accumulate(out, sums, begin)


def _product(name, a, b, begin, m, k, n, out, *_events):
    left, right = (_matrix(_packed(view).read()).float() for view in (a, b))
    left, right = left.T if "_ta" in name else left, right.T if "_tb" in name else right
    _accumulate(out, left[:m, :k] @ right[:k, :n], begin)


def _packed(view: View) -> View:
    """Return blocks as the macro reads them: it takes the distances from the sizes and ignores the strides."""
    sizes = view.sizes
    return view.reshaped(sizes, [math.prod(sizes[i + 1 :]) for i in range(len(sizes))])


def _accumulate(out: View, sums: torch.Tensor, begin: int) -> None:
    blocks = _blocks(sums, out)
    out.write(blocks if begin else out.read() + blocks)


def _fixpipe(_name, source, out, _unit_flag, _channels, relu, *_rest):
    rows, columns = out.sizes
    sums = _matrix(source.read())[:rows, :columns]
    out.write(sums.relu() if relu else sums)


def _copy(_name, source, out, *_rest):
    out.write(source.read())


def _fill(_name, value, out, *_rest):
    out.write(torch.full(out.sizes, value))


def _unary(compute: Callable) -> Callable:
    def run(_name, source, out, *_rest):
        out.write(compute(source.read()))

    return run


def _binary(compute: Callable) -> Callable:
    def run(_name, a, b, out, *_rest):
        out.write(compute(a.read(), b.read()))

    return run


def _select(_name, mask, a, otherwise, out, *_rest):
    out.write(torch.where(mask.read(), a.read(), otherwise))


@dataclass(frozen=True)
class Function:
    """A function's pipe, the number of the operand that it writes, and what it does."""

    pipe: str
    writes: int
    run: Callable
    events: int | None = None  # macros: the first of the events to wait for (two), and to set at the end (two)


_FUNCTIONS = {
    r"nd2nz_": Function("MTE2", 1, _nd2nz),
    r"load_gm_to_ubuf_": Function("MTE2", 1, _copy),
    r"store_ubuf_to_gm_": Function("MTE3", 1, _copy),
    r"conv2d_group_": Function("M", 3, _convolution, 13),
    r"mma_tile_": Function("M", 6, _product, 7),
    r"fixpipe_nz2nd_": Function("FIX", 1, _fixpipe),
    r"broadcast_scalar_": Function("V", 1, _fill),
    r"vcast_": Function("V", 1, _unary(lambda x: x)),  # written in the type of the output
    r"vrelu_": Function("V", 1, _unary(torch.relu)),
    r"vadd_": Function("V", 2, _binary(torch.add)),
    r"vcmp_gt_": Function("V", 2, _binary(torch.gt)),
    r"vsel_vs_": Function("V", 3, _select),
}


def function(name: str) -> Function:
    """Return the model of a library function. Raise LookupError where there is none."""
    for pattern, found in _FUNCTIONS.items():
        if re.match(pattern, name):
            return found
    raise LookupError(f"no model of the library function {name}")
