"""Pictures of any size through a model, in tiles.

A picture is cut into windows of one size. Each is computed by itself, and of its result is kept what lies at least `tile_pad` LR
pixels from the edges that cutting made. No window reaches beyond the picture: those at its border lie further inside, so the model
pads with zeros where it does so without tiles, too. Picture and result stay on the host as they are stored; only the windows that are
being computed are on the device, as floats, however large the picture is.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, pairwise
from math import isqrt
from typing import NamedTuple

import numpy as np
import torch

from rdn_fast import devices, precision
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN

SMALLEST = 16  # LR pixels: where less memory than tiles of this edge need is left, nothing helps
_HOST_TILE, _TILE = (
    192,
    1024,
)  # LR pixels: two cores are no faster with others (profiling/tiles.csv); fills any accelerator, with little overlap
_PADS = 4  # a tile is at least this many times its pad, where memory allows: it then computes 2.25 times its own pixels at most


class Upscaler:
    """A model made ready for pictures: upscaler(image) for pixels as they are stored, upscaler.exactly(image) for measuring.

    `model` is computed on the device that it is on; it is not altered.
    `tile`: edge in LR pixels of what a window gives to the result, less where that shares a picture out evenly; 0: the whole picture at
    once (with an exact pad: when it fits in the free memory, since the result is the same); None: what suits the device, its free memory
    and the pad.
    `tile_pad`: LR pixels that a window sees beyond its tile; "exact": as many as the model does (receptive_radius), so that the result is
    that of the whole picture but for rounding. 10 is not exact; with the small x2 model it looks so: at most 1 of 255 levels, like rounding,
    and less than 0.0001 dB of PSNR-Y (Set5, tiles of 32 to 128), where 5 loses up to 0.0015 dB, and 0 has seams and loses up to 0.18 dB.
    `fp32`: compute in float32; else in fp16 with the last convolution in float32, on devices that are faster so, and for pictures of 8 bits
    (fp16 has 11). Where that overflows, float32 takes its place.
    `self_ensemble`: the mean over the picture's eight turns and mirror images, eight times the work (the paper's RDN+).
    `say`: told in one line when memory ran out, and the tiles are smaller from now on, and when fp16 overflowed.
    `progress`, an attribute: called with the share of the present picture that is done, up to 1.
    Raises UserError for other values. Not for several threads at a time.
    """

    progress: Callable[[float], None] | None = None

    def __init__(
        self,
        model: RDN,
        tile: int | None = None,
        tile_pad: int | str = 10,
        fp32: bool = False,
        self_ensemble: bool = False,
        say: Callable[[str], None] = print,
    ):
        if tile is not None and not (isinstance(tile, int) and tile >= 0):
            raise UserError(
                f"tile {tile}: give an edge in LR pixels, 0 for no tiles, or None for what suits the device"
            )
        if tile_pad != "exact" and not (isinstance(tile_pad, int) and tile_pad >= 0):
            raise UserError(f'tile_pad {tile_pad}: give a number of LR pixels, or "exact"')
        self.model, self.scale = (
            copy.copy(model),
            model.config.scale,
        )  # the same parameters; the dtypes that it computes in are its own
        self._device = device = next(model.parameters()).device
        self._pad = receptive_radius(model.config) if tile_pad == "exact" else tile_pad
        # bf16 lies 61 to 64 dB from float32, too near to 0.01 dB of PSNR (profiling/LOG.md) for a speed that is not measured; fp16 78 to 81.
        self._low = not fp32 and devices.low_precision_pays(device) and devices.low_precision(device) == torch.float16
        self._use_precision(self._low)
        self._ensemble, self._say = self_ensemble, say
        host = devices.is_host(device)
        self._fitting = fitting = (
            devices.free_memory(device) // 2 // bytes_per_pixel(model.config, self._precision.compute)
        )  # LR pixels
        wanted = max(_HOST_TILE if host else _TILE, _PADS * self._pad)
        default = max(SMALLEST, min(wanted, isqrt(fitting) - 2 * self._pad))
        self._tile, self._default, self._exact = default if tile is None else tile, default, tile_pad == "exact"
        self._at_once = (
            0 if host else (default + 2 * self._pad) ** 2
        )  # LR pixels that small windows may add up to; one window fills a CPU
        self._lane = devices.side_stream(device)
        self._ahead = (
            1 if self._lane is None else 2
        )  # batches on the device: one is computed while another's result comes back

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """image: uint8 or uint16 [H, W, 3], RGB, H and W at least 1 -> the same dtype, [scale*H, scale*W, 3], rounded and clipped."""
        top = np.iinfo(_checked(image).dtype).max
        dtype = _on_device(image.dtype)
        return self._run(image, image.dtype, lambda y: y.mul_(top).round_().clamp_(0, top).to(dtype))

    def exactly(self, image: np.ndarray) -> np.ndarray:
        """image: as above -> float32 [scale*H, scale*W, 3], 255 being white whatever the image's dtype; neither rounded nor clipped."""
        return self._run(_checked(image), np.float32, lambda y: y.mul_(255))

    @torch.inference_mode()
    def _run(self, image: np.ndarray, dtype: np.dtype | type, finish: Callable) -> np.ndarray:
        height, width = image.shape[:2]
        devices.make_current(self._device)
        self._use_precision(self._low and image.dtype == np.uint8)
        out = np.empty((self.scale * height, self.scale * width, 3), dtype)
        whole = _Window(_Span(0, height, 0, height), _Span(0, width, 0, width))
        todo = deque(self._batches(self._cut([whole], image)))
        flying: deque[_Flight] = deque()
        fewer, done = False, 0
        while todo or flying:
            if not todo or len(flying) == self._ahead:
                landed = flying.popleft()
                if again := self._land(landed, out):
                    todo.appendleft(again)
                elif self.progress:
                    done += sum(window.kept for window in landed.windows)
                    self.progress(done / (height * width))
                continue
            try:
                flying.append(self._launch(image, todo[0], finish))
            except RuntimeError as error:
                if not devices.is_out_of_memory(error) or not self._do_with_less(todo[0]):
                    raise
                left = [window for batch in todo for window in batch]
                todo = deque(self._batches(left if len(todo[0]) > 1 else self._cut(left, image)))
                fewer = True
                continue
            todo.popleft()
            if fewer:
                self._say(
                    f"out of memory: from now on tiles of {self._tile or max(height, width)} LR pixels at most, and fewer at a time"
                )
                fewer = False
        return out

    def _cut(self, windows: Iterable[_Window], image: np.ndarray) -> Iterator[_Window]:
        """Windows of the present tile that give what these do."""
        height, width = image.shape[:2]
        too_large = self._exact and height * width > self._fitting
        tile = self._tile or (self._default if too_large else max(height, width))
        for window in windows:
            columns = spans(window.columns.first, window.columns.last, width, tile, self._pad)
            for rows in spans(window.rows.first, window.rows.last, height, tile, self._pad):
                yield from (_Window(rows, span) for span in columns)

    def _batches(self, windows: Iterable[_Window]) -> Iterator[list[_Window]]:
        """Windows of one size that are computed together, shared out evenly."""
        for (height, width), group in groupby(windows, lambda window: window.shape):
            alike = list(group)
            number = -(-len(alike) // max(1, self._at_once // (height * width)))
            size = -(-len(alike) // number)
            yield from (alike[i : i + size] for i in range(0, len(alike), size))

    def _launch(self, image: np.ndarray, windows: list[_Window], finish: Callable) -> _Flight:
        device, top = self._device, np.iinfo(image.dtype).max
        sent = devices.pinned_empty((len(windows), *windows[0].shape, 3), _on_device(image.dtype), device)
        for slot, window in zip(sent.numpy(), windows, strict=True):
            slot[...] = image[window.rows.start : window.rows.stop, window.columns.start : window.columns.stop]
        low = self._precision.scaled
        x = sent.to(device, non_blocking=True).permute(0, 3, 1, 2)
        x = x.to(torch.float32, memory_format=devices.memory_format(device)).div_(top)  # [B, 3, h, w] in 0..1
        if low:
            devices.clear_overflow(device)
        y = self._computed(x)  # [B, 3, s*h, s*w]
        sound = y.isfinite().all()
        if low and devices.overflowed(device):
            sound.zero_()
        results = finish(y).permute(0, 2, 3, 1).contiguous(), sound
        if self._lane is None:
            return _Flight(windows, low, results)
        received = tuple(devices.pinned_empty(result.shape, result.dtype, device) for result in results)

        def fetch() -> None:
            for host, result in zip(received, results, strict=True):
                host.copy_(result, non_blocking=True)

        return _Flight(windows, low, received, self._lane.run(fetch), (sent, results))

    def _land(self, flight: _Flight, out: np.ndarray) -> list[_Window] | None:
        """Write the result to `out` once it is there; the windows when they must be computed again, in float32."""
        if flight.done is not None:
            flight.done.synchronize()
        pixels, sound = flight.results
        if sound:
            for window, of_window in zip(flight.windows, pixels.numpy(), strict=True):
                window.keep(of_window, out, self.scale)
            return None
        if not flight.low:
            raise UserError(
                "the model's output is not finite, in float32 either: its weights are damaged, or their training diverged; give others"
            )
        if self._precision.scaled:
            self._say("fp16 overflowed: computing in float32 from now on")
            self._low = False
            self._use_precision(False)
        return flight.windows

    def _computed(self, x):
        if not self._ensemble:
            return self.model(x)
        layout, total = devices.memory_format(self._device), 0
        for turns in range(4):
            for mirrored in (False, True):
                turned = torch.rot90(x.flip(3) if mirrored else x, turns, (2, 3))
                y = torch.rot90(self.model(turned.contiguous(memory_format=layout)), -turns, (2, 3))
                total = total + (y.flip(3) if mirrored else y)
        return total / 8

    def _do_with_less(self, windows: list[_Window]) -> bool:
        """After these were too much: half as many at a time, or else tiles of half the edge; False when they would be too small."""
        area = windows[0].shape[0] * windows[0].shape[1]
        self._at_once = len(windows) // 2 * area
        if len(windows) > 1:
            return True
        edge = max(windows[0].shape)
        half = min(self._tile or edge, edge) // 2
        if half >= SMALLEST:
            self._tile = half
        return half >= SMALLEST

    def _use_precision(self, low: bool) -> None:
        self._precision = precision.resolve("O1" if low else "O0", "auto", self._device)
        self._precision.apply(self.model)


def receptive_radius(config: ModelConfig) -> int:
    """How many LR pixels around its own place a pixel of the result depends on.

    Each 3x3 convolution looks one pixel further, at its own resolution: two for shallow features, C in each of D blocks, one of the global
    fusion, and the first of up-sampling at the input's. The last is at the output's, 1/s of an LR pixel, and x4 has one at twice the input's
    before it, 1/2 + 1/4: one LR pixel when rounded up.
    """
    return config.num_blocks * config.num_layers + 5


def bytes_per_pixel(config: ModelConfig, dtype: torch.dtype) -> int:
    """Device memory for each LR pixel that is computed, at most: all blocks' outputs and their concatenation, one block's maps twice, and
    those of the up-sampling twice in `dtype` and once in float32. They are not all there at a time, which leaves room for workspaces."""
    c = config
    trunk = 2 * c.num_blocks * c.num_features + 2 * (c.num_features + c.num_layers * c.growth_rate)
    tail = c.scale**2 * c.tail_channels
    return dtype.itemsize * (trunk + 2 * tail) + 4 * tail


class _Span(NamedTuple):
    """A window along one axis, in LR pixels: from `start` to `stop` is computed, from `first` to `last` is kept."""

    start: int
    stop: int
    first: int
    last: int


class _Window(NamedTuple):
    rows: _Span
    columns: _Span

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def kept(self) -> int:
        """LR pixels."""
        return (self.rows.last - self.rows.first) * (self.columns.last - self.columns.first)

    def keep(self, pixels: np.ndarray, out: np.ndarray, scale: int) -> None:
        """Copy to `out` [s*H, s*W, 3] what is kept of this window's `pixels` [s*h, s*w, 3]."""
        place, part = zip(*((_part(span, 0, scale), _part(span, span.start, scale)) for span in self), strict=True)
        out[place] = pixels[part]


def _part(span: _Span, origin: int, scale: int) -> slice:
    return slice(scale * (span.first - origin), scale * (span.last - origin))


class _Flight(NamedTuple):
    """Windows that are computed, in low precision or not, and (result [B, s*h, s*w, 3], bool []: are all of it numbers) on the host when `done`."""

    windows: list[_Window]
    low: bool
    results: tuple[torch.Tensor, torch.Tensor]
    done: torch.Event | None = None
    used: tuple = ()  # memory that must not be used for anything else until then


def spans(first: int, last: int, side: int, tile: int, pad: int) -> list[_Span]:
    """Windows of one size, tile + 2*pad at most, evenly spaced, that keep first..last of an axis of `side` pixels."""
    low, high = max(0, first - pad), min(side, last + pad)
    inner = high - low - 2 * pad  # what inner tiles would have to make up: the outermost ones need no pad outside
    count = max(1, -(-inner // tile))
    size = -(-inner // count) + 2 * pad
    starts = [low + i * (high - low - size) // max(1, count - 1) for i in range(count)]
    cuts = [
        first,
        *((a + size + b) // 2 for a, b in pairwise(starts)),
        last,
    ]  # in the middle of where two overlap, by 2*pad or more
    return [_Span(start, start + size, a, b) for start, (a, b) in zip(starts, pairwise(cuts), strict=True)]


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(
            f"a picture must be uint8 or uint16 [H, W, 3] and not empty; this array is {image.dtype} {list(image.shape)}"
        )
    return image


def _on_device(dtype: np.dtype) -> torch.dtype:
    """torch can do next to nothing with uint16."""
    return torch.uint8 if dtype == np.uint8 else torch.int32
