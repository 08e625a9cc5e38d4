"""The dense block in the Winograd domain (winograd.c), for float32 on CPUs: a quarter of the multiplications.

Every map is transformed once, however many layers read it, and maps stay in one channels-last buffer per block: the forward
pass keeps [f_0, ..., f_C] alone, G0 + C*G channels. The 1x1 local feature fusion, with the residual as an identity added to
its weights, is one matrix product.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from pathlib import Path

import torch
from torch.autograd.function import once_differentiable

from rdn_fast import native

SOURCE = Path(__file__).with_name("winograd.c")

# 4x4 tiles computed at a time, for each thread: few enough for their transforms to stay in the cache, and in the backward pass
# enough to pay for reading and writing the weights' gradients.
_TILES, _TILES_BACKWARD = 64, 128
_PART = 192  # pixels: pictures that are higher or wider are computed in parts, unless gradients are wanted


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("batch", "h", "w", "g0", "g", "layers")]


@cache
def _library() -> ctypes.CDLL:
    library = native.library(SOURCE)
    library.rdn_packed.restype = library.rdn_gradients.restype = library.rdn_workspace.restype = ctypes.c_long
    return library


@cache
def missing() -> str | None:
    """Why this row cannot run here."""
    try:
        _library()
    except native.CannotBuild as reason:
        return str(reason)
    return None


def rdb(x, conv_w, conv_b, fuse_w, fuse_b, *, out=None):
    """x: [B, G0, H, W] float32 on a CPU -> y, channels-last; `out` is ignored. Without gradients, pictures are computed in parts:
    memory does not grow with them."""
    w = [w.contiguous(memory_format=torch.channels_last) for w in conv_w]
    b = [b.contiguous() for b in conv_b]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, fuse_w, fuse_b, *w, *b)):
        return _Block.apply(x, fuse_w, fuse_b, *w, *b)
    u = _packed(_shape(x, w), w, backward=False)
    height, width = x.shape[2:]
    if max(height, width) <= _PART:
        return _forward(x, w, b, fuse_w, fuse_b, u)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    for top in range(0, height, _PART):
        for left in range(0, width, _PART):
            above, before = min(top, len(w)), min(left, len(w))  # each layer sees one pixel further
            part = x[:, :, top - above : top + _PART + len(w), left - before : left + _PART + len(w)]
            inner = _forward(part, w, b, fuse_w, fuse_b, u)[:, :, above : above + _PART, before : before + _PART]
            y[:, :, top : top + _PART, left : left + _PART] = inner
    return y


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fuse_w, fuse_b, *wb):
        w, b = wb[: len(wb) // 2], wb[len(wb) // 2 :]
        f = x.new_empty(x.shape[0], *x.shape[2:], fuse_w.shape[1])
        y = _forward(x, w, b, fuse_w, fuse_b, _packed(_shape(x, w), w, backward=False), f)
        ctx.save_for_backward(f, fuse_w, *w)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        f, fuse_w, *w = ctx.saved_tensors
        g0, (batch, height, width, channels) = fuse_w.shape[0], f.shape
        gy = gy.permute(0, 2, 3, 1).contiguous()  # [B, H, W, G0]
        shape = _Shape(batch, height, width, g0, w[0].shape[0], len(w))
        u = _packed(shape, w, backward=True)
        du = _scratch("du", _library().rdn_gradients(ctypes.byref(shape)))
        dx = torch.empty_like(gy)
        db = torch.empty(len(w), shape.g, dtype=torch.float32)
        fuse = _with_residual(fuse_w)
        for images in _chunks(shape, _TILES_BACKWARD):
            part = _part(shape, images)
            e = torch.mm(gy[images].view(-1, g0), fuse, out=_scratch("e", part.batch * height * width, channels))
            work = _scratch("work", _library().rdn_workspace(ctypes.byref(part), 1))
            _call("rdn_backward", part, f[images], e, u, dx[images], du, db, images.start > 0, work)
        if not batch:
            du.zero_()
            db.zero_()
        dw = [torch.empty_like(layer) for layer in w]
        _call("rdn_unpack", shape, du, _pointers(dw))
        gy = gy.view(-1, g0)
        dfuse_w = torch.empty_like(fuse_w)
        torch.mm(gy.t(), f.view(-1, channels), out=dfuse_w.flatten(1))
        return dx.permute(0, 3, 1, 2), dfuse_w, gy.sum(0), *dw, *db


def _forward(x, w, b, fuse_w, fuse_b, u, kept=None):
    """y; all maps go to `kept` [B, H, W, G0 + C*G] if it is given."""
    shape = _shape(x, w)
    channels = fuse_w.shape[1]
    x = x.permute(0, 2, 3, 1)  # [B, H, W, G0]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    fuse = _with_residual(fuse_w).t()
    for images in _chunks(shape, _TILES):
        part = _part(shape, images)
        f = _scratch("f", part.batch, shape.h, shape.w, channels) if kept is None else kept[images]
        f[..., : shape.g0] = x[images]
        work = _scratch("work", _library().rdn_workspace(ctypes.byref(part), 0))
        _call("rdn_forward", part, f, u, _pointers(b), work)
        torch.addmm(fuse_b, f.view(-1, channels), fuse, out=y[images].view(-1, shape.g0))
    return y.permute(0, 3, 1, 2)


def _shape(x, w):
    batch, g0, height, width = x.shape
    return _Shape(batch, height, width, g0, w[0].shape[0], len(w))


def _chunks(shape: _Shape, tiles: int):
    of_one = -(-shape.h // 4) * -(-shape.w // 4)
    step = max(1, tiles * torch.get_num_threads() // of_one)
    return [slice(start, min(start + step, shape.batch)) for start in range(0, shape.batch, step)]


def _part(shape: _Shape, images: slice) -> _Shape:
    return _Shape(images.stop - images.start, shape.h, shape.w, shape.g0, shape.g, shape.layers)


def _with_residual(fuse_w):
    """fuse_w: [G0, G0 + C*G, 1, 1] -> [G0, G0 + C*G], the identity added where it reads the block's input."""
    fuse = fuse_w.flatten(1).clone()
    fuse.diagonal().add_(1)
    return fuse


def _packed(shape: _Shape, w, backward: bool):
    u = _scratch("u", _library().rdn_packed(ctypes.byref(shape), backward))
    _call("rdn_pack_backward" if backward else "rdn_pack_forward", shape, _pointers(w), u)
    return u


_kept = threading.local()


def _scratch(name: str, *size: int):
    """Uninitialised float32 memory that is kept from call to call: fresh pages would cost as much as the work in them."""
    count = 1
    for n in size:
        count *= n
    memory = getattr(_kept, name, None)
    if memory is None or memory.numel() < count:
        with torch.inference_mode(False):  # memory made in that mode could not be used outside it
            memory = torch.empty(count, dtype=torch.float32)
        setattr(_kept, name, memory)
    return memory[:count].view(size)


def _pointers(tensors):
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def _call(name: str, shape: _Shape, *arguments) -> None:
    converted = [
        ctypes.c_void_p(a.data_ptr())
        if isinstance(a, torch.Tensor)
        else ctypes.c_int(a)
        if isinstance(a, (bool, int))
        else a
        for a in arguments
    ]
    getattr(_library(), name)(ctypes.byref(shape), *converted)
