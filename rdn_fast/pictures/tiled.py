"""Pictures of any size through a model: in tiles (tile_grid.py), with fallbacks for too little memory and for overflow.

Picture and result stay on the host in their own dtype. Only the windows being computed are on the device, as floats,
so device memory does not grow with the picture. On an accelerator a batch's result is copied back on a side stream
while the next batch, perhaps of the next picture, is computed.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch

from rdn_fast import devices
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.pictures.precisions import FLOAT32, FP16, fastest
from rdn_fast.pictures.tile_grid import SMALLEST, TileGrid, Window
from rdn_fast.terminal import print_line
from rdn_fast.weights.onnx_model import OnnxModel

_HOST_TILE = 192  # LR pixels: two cores are no faster with other sizes (profiling/tiles.csv)
_HOST_WHOLE = 264**2  # LR pixels: a picture of 256x256, continued by enlarge.py, is computed whole, not in four tiles
_TILE = 1024  # LR pixels: fills any accelerator, with little overlap
_PADS = 4  # a default tile is at least so many times its pad: it then computes at most 2.25 times its own pixels
_computing = threading.Lock()  # a model's precision, and a device's overflow flag, are those of all threads


class NotFinite(UserError):
    """A model's output holds inf or NaN, even in float32."""


class Upscaler:
    """A model made ready for pictures: upscaler(image) for stored pixels, upscaler.exactly(image) for measuring.

    model: computed on the device that it is on. Tiles of an OnnxModel for one LR size have this size, and are padded by
        a quarter of it at most. Its precision is set while a picture is computed, and restored.
    tile: edge in LR pixels of what a window adds to the result; less where that divides a picture evenly. 0: the whole
        picture at once; with tile_pad "exact" only when it fits in the free memory, since tiles give the same result.
        None: by the device, its free memory and the pad.
    tile_pad: LR pixels that a window sees beyond its tile. "exact": the receptive radius, so that the result is that
        of the whole picture but for rounding. 10 is not exact. With the small x2 model it differs by at most 1 of 255
        levels, like rounding, and by less than 0.0001 dB of PSNR-Y (Set5, tiles of 32 to 128). 5 loses up to 0.0015
        dB. 0 has seams and loses up to 0.18 dB.
    fp32: compute in float32. Otherwise compute 8-bit pictures in low precision where that is faster, until it
        overflows: in fp16 with the last convolution in float32, and on CPUs in bf16 with the first, all of up-sampling
        and the sum between in float32. 16-bit pictures are computed in float32: fp16 has 11 bits, bf16 8.
    self_ensemble: take the mean over the picture's eight rotations and reflections, at eight times the cost (RDN+ in
        the paper).
    say: called with one line when memory ran out and tiles are smaller from then on, and when low precision overflowed.
    progress: an attribute; called with the share of the present picture that is done, up to 1.

    Raises UserError for other values. An Upscaler is not for several threads at a time; those of one model may be used
    by a thread each, and compute their batches in turn.
    """

    progress: Callable[[float], None] | None = None

    def __init__(
        self,
        model: RDN | OnnxModel,
        tile: int | None = None,
        tile_pad: int | str = 10,
        fp32: bool = False,
        self_ensemble: bool = False,
        say: Callable[[str], None] = print_line,
    ):
        if tile is not None and not (isinstance(tile, Integral) and tile >= 0):
            raise UserError(
                f"tile {tile}: give an edge in LR pixels, 0 for no tiles, or None for what suits the device"
            )
        if tile_pad != "exact" and not (isinstance(tile_pad, Integral) and tile_pad >= 0):
            raise UserError(f'tile_pad {tile_pad}: give a number of LR pixels, or "exact"')
        self.model, self.scale = model, model.config.scale
        self._self_ensemble, self._say = self_ensemble, say
        self._device = device = model.device
        self._precision_of_8_bits = FLOAT32 if fp32 else fastest(model, _HOST_TILE)
        self.precision = self._precision_of_8_bits  # of the latest picture
        self.grid = _grid(model, self.precision.outer or self.precision.compute, tile, tile_pad)
        wanted = model.receptive_radius if tile_pad == "exact" else tile_pad
        if (pad := self.grid.pad) < wanted:
            size = "{} x {}".format(*model.window)
            say(f"tiles of {size} LR pixels see {pad} beyond their edge, not {wanted}: results differ a little there")
        self._side_stream = devices.side_stream(device)
        self._max_in_flight = 1 if self._side_stream is None else 2  # batches: one computed, one copied back

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """image: uint8 or uint16 [H, W, 3], RGB, not empty -> the same dtype, [s*H, s*W, 3], rounded and clipped.

        Raises UserError for other arrays, and where the model's output is not finite in float32. Raises the device's
        RuntimeError where there is not memory enough for the smallest tiles.
        """
        white = np.iinfo(_checked(image).dtype).max
        dtype = _device_dtype(image.dtype)
        return next(self._run([image], image.dtype, lambda y: y.mul_(white).round_().clamp_(0, white).to(dtype)))

    def exactly(self, image: np.ndarray) -> np.ndarray:
        """As __call__, but float32 [s*H, s*W, 3], neither rounded nor clipped; 255 is white for 16 bits, too."""
        return next(self.exactly_each([image]))

    def exactly_each(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield exactly(image) of each, in order. An accelerator computes one while the next is read and queued."""
        return self._run(map(_checked, images), np.float32, lambda y: y.mul_(255))

    @torch.inference_mode()
    def _run(self, images: Iterable[np.ndarray], dtype: np.dtype | type, finish: Callable) -> Iterator[np.ndarray]:
        """Compute all windows of the pictures; finish(y) turns their results, y in 0..1, into what is stored."""
        images, more, shrunk = iter(images), True, False
        begun: deque[_Picture] = deque()  # not finished yet
        in_flight: deque[tuple[_Picture, _InFlight]] = deque()
        devices.make_current(self._device)
        while more or begun:
            picture = next((each for each in begun if each.waiting), None)
            if len(in_flight) == self._max_in_flight or not (picture or more):
                picture, batch = in_flight.popleft()
                self._take(picture, batch)
                while begun and not begun[0].left:  # several, where the first was computed again
                    yield begun.popleft().out
            elif picture is None:
                image = next(images, None)
                more = image is not None
                if more:
                    begun.append(self._begin(image, dtype))
            else:
                try:
                    in_flight.append((picture, self._enqueue(picture.image, picture.waiting[0], finish)))
                except RuntimeError as error:
                    self._shrink(picture, error)
                    shrunk = True
                    continue
                picture.waiting.popleft()
                if shrunk:
                    most = self.grid.tile or max(picture.image.shape[:2])
                    self._say(f"out of memory: from now on tiles of {most} LR pixels at most, and fewer at a time")
                    shrunk = False

    def _begin(self, image: np.ndarray, dtype: np.dtype | type) -> _Picture:
        height, width = image.shape[:2]
        out = np.empty((self.scale * height, self.scale * width, 3), dtype)
        return _Picture(image, out, deque(self.grid.batches(self.grid.windows(height, width))), height * width)

    def _take(self, picture: _Picture, batch: _InFlight) -> None:
        """Wait for a batch of the picture and store it, or let it wait to be computed again."""
        if not self._store(batch, picture.out):
            picture.waiting.appendleft(batch.windows)
            return
        picture.left -= sum(window.kept_pixels for window in batch.windows)
        if self.progress:
            pixels = picture.image.shape[0] * picture.image.shape[1]
            self.progress((pixels - picture.left) / pixels)

    def _shrink(self, picture: _Picture, error: RuntimeError) -> None:
        """Cut what waits of the picture into batches for less memory; self.grid needs less from now on, for all.

        Raises the error when it is not for lack of memory, or when the tiles would be too small.
        """
        if not devices.is_out_of_memory(error):
            raise error
        waiting = picture.waiting
        windows = [window for batch in waiting for window in batch]
        self.grid = self.grid.halve_batch(waiting[0])
        if len(waiting[0]) == 1:
            smaller = self.grid.halve_tile(waiting[0][0])
            if smaller is None:
                raise error
            self.grid, windows = smaller, smaller.recut(windows, *picture.image.shape[:2])
        picture.waiting = deque(self.grid.batches(windows))

    def _enqueue(self, image: np.ndarray, windows: list[Window], finish: Callable) -> _InFlight:
        """Queue a batch: copy it to the device, compute it, copy the result back. The host does not wait."""
        device = self._device
        self.precision = self._precision_of_8_bits if image.dtype == np.uint8 else FLOAT32
        sent = devices.pinned_empty((len(windows), *windows[0].shape, 3), _device_dtype(image.dtype), device)
        for slot, window in zip(sent.numpy(), windows, strict=True):
            slot[...] = image[window.inputs]
        x = sent.to(device, non_blocking=True).permute(0, 3, 1, 2)
        x = x.to(torch.float32, memory_format=devices.memory_format(device))
        x.div_(np.iinfo(image.dtype).max)  # [B, 3, h, w] in 0..1
        low = self.precision.scaled
        with _computing:
            if low:
                devices.clear_overflow(device)
            with self.model.computing(self.precision):
                y = _mean_of_eight(self.model, x) if self._self_ensemble else self.model(x)  # [B, 3, s*h, s*w]
            finite = y.isfinite().all()
            if low and devices.overflowed(device):
                finite.zero_()
        results = finish(y).permute(0, 2, 3, 1).contiguous(), finite
        if self._side_stream is None:
            return _InFlight(windows, low, results)
        received = tuple(devices.pinned_empty(result.shape, result.dtype, device) for result in results)

        def copy_back() -> None:
            for host, result in zip(received, results, strict=True):
                host.copy_(result, non_blocking=True)

        return _InFlight(windows, low, received, self._side_stream.run(copy_back), (sent, results))

    def _store(self, batch: _InFlight, out: np.ndarray) -> bool:
        """Wait for the batch and copy what its windows keep to `out` [s*H, s*W, 3].

        False when low precision overflowed: the batch must be computed again, and everything is in float32 from now on.
        """
        if batch.done is not None:
            batch.done.synchronize()
        pixels, finite = batch.results
        if finite:
            for window, of_window in zip(batch.windows, pixels.numpy(), strict=True):
                out[window.kept_of_picture(self.scale)] = of_window[window.kept_of_window(self.scale)]
            return True
        if not batch.low:
            remedy = "its weights are damaged, or their training diverged; give others"
            raise NotFinite(f"the model's output is not finite, in float32 either: {remedy}")
        low = self._precision_of_8_bits
        if low.scaled:
            self._say(f"{'fp16' if low == FP16 else 'bf16'} overflowed: computing in float32 from now on")
            self.precision = self._precision_of_8_bits = FLOAT32
        return False


@dataclass
class _Picture:
    """A picture that is being computed."""

    image: np.ndarray
    out: np.ndarray
    waiting: deque[list[Window]]  # batches that are not queued
    left: int  # LR pixels whose results are not stored


class _InFlight(NamedTuple):
    """A batch that is queued. Its results are on the host, and valid, when `done` is over."""

    windows: list[Window]
    low: bool  # computed in low precision
    results: tuple[torch.Tensor, torch.Tensor]  # [B, s*h, s*w, 3]; bool []: whether they are finite
    done: torch.Event | None = None
    held: tuple = ()  # tensors whose memory must not be reused until then


def _grid(model: RDN | OnnxModel, dtype: torch.dtype, tile: int | None, tile_pad: int | str) -> TileGrid:
    """Return the TileGrid for the Upscaler's parameters; half of the device's free memory is counted on."""
    exact, host, window = tile_pad == "exact", devices.is_host(model.device), model.window
    pad = model.receptive_radius if exact else tile_pad
    if window:
        if tile:
            raise UserError(f"tile {tile}: this file takes {window[0]} x {window[1]} LR pixels alone; leave it out")
        pad = min(pad, min(window) // 4)
    fitting = devices.free_memory(model.device) // 2 // model.bytes_per_pixel(dtype)  # LR pixels
    wanted = max(_HOST_TILE if host else _TILE, _PADS * pad)
    default = max(SMALLEST, min(wanted, math.isqrt(fitting) - 2 * pad))
    whole_pixels = fitting if exact else math.inf
    if tile is None and host:
        tile, whole_pixels = 0, min(fitting, _HOST_WHOLE)
    return TileGrid(
        tile=default if tile is None else tile,
        pad=pad,
        batch_pixels=0 if host else (default + 2 * pad) ** 2,  # one window is enough for a CPU
        whole_pixels=whole_pixels,
        tile_of_larger=default,
        window=window,
    )


def _mean_of_eight(model: RDN | OnnxModel, x: torch.Tensor) -> torch.Tensor:
    """Return the mean of the model's results over the eight rotations and reflections of x [B, 3, h, w]."""
    memory_format, total = devices.memory_format(x.device), 0
    for quarter_turns in range(4):
        for mirrored in (False, True):
            turned = torch.rot90(x.flip(3) if mirrored else x, quarter_turns, (2, 3))
            y = torch.rot90(model(turned.contiguous(memory_format=memory_format)), -quarter_turns, (2, 3))
            total = total + (y.flip(3) if mirrored else y)
    return total / 8


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        given = f"this array is {image.dtype} {list(image.shape)}"
        raise UserError(f"a picture must be uint8 or uint16 [H, W, 3] and not empty; {given}")
    return image


def _device_dtype(dtype: np.dtype) -> torch.dtype:
    """Return what pixels of `dtype` are on the device: torch has hardly any operation for uint16."""
    return torch.uint8 if dtype == np.uint8 else torch.int32
