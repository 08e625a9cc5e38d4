"""How a picture is cut into overlapping windows: arithmetic on sizes, without pixels or devices.

All lengths are LR pixels. The windows of a picture have one size, so that they can be computed in batches. No window
reaches beyond the picture: those at its border lie further inside, so the model's zero padding applies where it does
for the whole picture. Each window keeps the part of its result that lies at least `pad` pixels from the edges that
cutting made; the kept parts tile the picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import NamedTuple

SMALLEST = 16  # tile edge. Where there is not memory enough for this one, smaller ones would not help.


class Span(NamedTuple):
    """A window along one axis: start..stop is computed, keep_start..keep_stop is kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int

    def kept_slice(self, origin: int, scale: int) -> slice:
        """Return what is kept as a slice of the result's pixels, counted from LR pixel `origin`."""
        return slice(scale * (self.keep_start - origin), scale * (self.keep_stop - origin))


class Window(NamedTuple):
    rows: Span
    columns: Span

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what is computed."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def kept_pixels(self) -> int:
        return (self.rows.keep_stop - self.rows.keep_start) * (self.columns.keep_stop - self.columns.keep_start)

    @property
    def inputs(self) -> tuple[slice, slice]:
        """Where the window lies in the LR picture [H, W, ...]."""
        return slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)

    def kept_of_picture(self, scale: int) -> tuple[slice, slice]:
        """Return where the kept part lies in the whole result [s*H, s*W, ...]."""
        return self.rows.kept_slice(0, scale), self.columns.kept_slice(0, scale)

    def kept_of_window(self, scale: int) -> tuple[slice, slice]:
        """Return where the kept part lies in the window's own result [s*h, s*w, ...]."""
        return self.rows.kept_slice(self.rows.start, scale), self.columns.kept_slice(self.columns.start, scale)


@dataclass(frozen=True)
class TileGrid:
    """Cuts pictures into windows, and groups windows into batches.

    A window is at most tile + 2*pad on a side. With tile 0 a picture of at most `whole_pixels` is one window, and a
    larger one is cut with `tile_of_larger`. The windows of a batch have at most `batch_pixels` together, but a batch
    has at least one window.
    window: height and width that all windows have, where the picture has as many; their tile is what the pad leaves.
    """

    tile: int
    pad: int
    batch_pixels: int
    whole_pixels: float
    tile_of_larger: int
    window: tuple[int, int] | None = None

    def windows(self, height: int, width: int) -> list[Window]:
        """Return the windows of a picture, row by row."""
        whole = Window(Span(0, height, 0, height), Span(0, width, 0, width))
        return self.recut([whole], height, width)

    def recut(self, windows: Iterable[Window], height: int, width: int) -> list[Window]:
        """Return windows of this grid that together keep what `windows`, of a picture of this size, keep."""
        tile = self.tile
        if not tile:
            tile = max(height, width) if height * width <= self.whole_pixels else self.tile_of_larger
        down, across = self.window or (None, None)
        cut = []
        for rows, columns in windows:
            column_spans = spans(columns.keep_start, columns.keep_stop, width, tile, self.pad, across)
            for row_span in spans(rows.keep_start, rows.keep_stop, height, tile, self.pad, down):
                cut += [Window(row_span, column_span) for column_span in column_spans]
        return cut

    def batches(self, windows: Iterable[Window]) -> list[list[Window]]:
        """Split runs of windows of one shape into as few batches as allowed, of nearly equal length."""
        batches = []
        for (height, width), group in groupby(windows, lambda window: window.shape):
            equal = list(group)
            count = _ceil_div(len(equal), max(1, self.batch_pixels // (height * width)))
            length = _ceil_div(len(equal), count)
            batches += [equal[i : i + length] for i in range(0, len(equal), length)]
        return batches

    def halve_batch(self, batch: list[Window]) -> TileGrid:
        """Return the grid whose batches have half as many windows as `batch`, and at least one."""
        height, width = batch[0].shape
        return replace(self, batch_pixels=len(batch) // 2 * height * width)

    def halve_tile(self, window: Window) -> TileGrid | None:
        """Return the grid with half the tile that `window` has; None when that would be smaller than SMALLEST.

        None too where windows have one size only.
        """
        edge = max(window.shape)
        half = min(self.tile or edge, edge) // 2
        return replace(self, tile=half) if half >= SMALLEST and self.window is None else None


def spans(keep_start: int, keep_stop: int, side: int, tile: int, pad: int, window: int | None = None) -> list[Span]:
    """Return the spans that together keep keep_start..keep_stop of an axis of `side` pixels.

    They are evenly spaced and of one length, at most tile + 2*pad. Neighbours overlap by 2*pad or more. The cut
    between what they keep lies in the middle of the overlap.
    window: the only length that there can be, but for axes that are shorter; it replaces `tile`.
    """
    tile = tile if window is None else window - 2 * pad
    low, high = max(0, keep_start - pad), min(side, keep_stop + pad)
    inner = high - low - 2 * pad  # what tiles inside the picture make up: the outermost need no pad on the outside
    count = max(1, _ceil_div(inner, tile))
    length = _ceil_div(inner, count) + 2 * pad if window is None else min(window, high - low)
    starts = [low + i * (high - low - length) // max(1, count - 1) for i in range(count)]
    cuts = [keep_start, *((a + length + b) // 2 for a, b in pairwise(starts)), keep_stop]
    return [Span(start, start + length, a, b) for start, (a, b) in zip(starts, pairwise(cuts), strict=True)]


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
