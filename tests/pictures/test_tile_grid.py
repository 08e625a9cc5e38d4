"""The geometry of tiles: every pixel is kept once, with its pad around it, and batches shrink as memory does."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import model

from rdn_fast.pictures.tile_grid import SMALLEST, TileGrid, Window, spans


@st.composite
def axes(draw):
    side = draw(st.integers(1, 300))
    first = draw(st.integers(0, side - 1))
    return first, draw(st.integers(first + 1, side)), side, draw(st.integers(1, 100)), draw(st.integers(0, 40))


@given(axes())
@settings(max_examples=500, deadline=None)
def test_spans_of_an_axis(axis):
    first, last, side, tile, pad = axis
    found = spans(*axis)
    assert len({span.stop - span.start for span in found}) == 1
    assert found[0].stop - found[0].start <= tile + 2 * pad
    edges = [first, *(span.keep_stop for span in found)]
    assert [span.keep_start for span in found] == edges[:-1]
    assert edges[-1] == last
    for span in found:
        assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop <= side
        assert span.start == 0 or span.keep_start - span.start >= pad
        assert span.stop == side or span.stop - span.keep_stop >= pad
    needed = min(side, last + pad) - max(0, first - pad)
    computed = sum(span.stop - span.start for span in found)
    assert computed <= needed + (len(found) - 1) * 2 * pad + len(found) - 1  # no more overlap than the pads need


@pytest.mark.parametrize(
    ("side", "count", "size"), [(212, 1, 212), (213, 2, 117), (300, 2, 160), (404, 2, 212), (405, 3, 149)]
)
def test_no_thin_last_tile(side, count, size):
    assert [span.stop - span.start for span in spans(0, side, side, 192, 10)] == [size] * count


@pytest.mark.parametrize(("blocks", "layers"), [(1, 1), (3, 2), (2, 5)])
@pytest.mark.parametrize(("scale", "tail"), [*((s, "shuffle") for s in (2, 3, 4, 8)), (4, "single"), (2, "espcn")])
def test_receptive_radius_is_how_far_the_model_sees(scale, tail, blocks, layers):
    made = model(scale, "naive", num_features=2, growth_rate=2, num_blocks=blocks, num_layers=layers, tail=tail)
    made = made.double()
    for parameter in made.parameters():
        parameter.data.abs_()  # nothing cancels out, and no ReLU hides anything
    radius = made.receptive_radius
    side = 2 * radius + 5
    middle = side // 2
    black = torch.zeros(1, 3, side, side, dtype=torch.float64)
    dot = black.clone()
    dot[..., middle, middle] = 1
    with torch.no_grad():
        seen = (made(dot) != made(black)).any(1)[0]  # [s*H, s*W]
    for axis in (0, 1):
        places = seen.any(axis).nonzero()[:, 0] // scale
        assert (places.min(), places.max()) == (middle - radius, middle + radius)


# ---- a grid ----


@st.composite
def grids(draw):
    return TileGrid(
        tile=draw(st.integers(0, 60)),
        pad=draw(st.integers(0, 20)),
        batch_pixels=draw(st.sampled_from([0, 1000, 10_000])),
        whole_pixels=draw(st.sampled_from([500, math.inf])),
        tile_of_larger=draw(st.integers(SMALLEST, 60)),
    )


edges = st.integers(1, 120)


def times_kept(windows: list[Window], height: int, width: int) -> np.ndarray:
    kept = np.zeros((height, width), int)
    for window in windows:
        kept[window.kept_of_picture(1)] += 1
    return kept


@given(grids(), edges, edges)
@settings(max_examples=200, deadline=None)
def test_windows_keep_every_pixel_once(grid, height, width):
    windows = grid.windows(height, width)
    assert (times_kept(windows, height, width) == 1).all()
    assert len({window.shape for window in windows}) == 1
    assert sum(window.kept_pixels for window in windows) == height * width
    tile = grid.tile or (grid.tile_of_larger if height * width > grid.whole_pixels else max(height, width))
    assert max(windows[0].shape) <= tile + 2 * grid.pad


@given(grids(), edges, edges)
@settings(max_examples=100, deadline=None)
def test_what_windows_keep_is_where_the_result_has_it(grid, height, width):
    image = np.arange(height * width).reshape(height, width)
    out = np.zeros((2 * height, 2 * width), int)
    for window in grid.windows(height, width):
        own = image[window.inputs]
        assert own.shape == window.shape
        out[window.kept_of_picture(2)] = own.repeat(2, 0).repeat(2, 1)[window.kept_of_window(2)]
    np.testing.assert_array_equal(out, image.repeat(2, 0).repeat(2, 1))


@given(grids(), edges, edges, st.data())
@settings(max_examples=100, deadline=None)
def test_recut_windows_keep_what_the_larger_ones_did(grid, height, width, data):
    windows = grid.windows(height, width)
    left = windows[data.draw(st.integers(0, len(windows) - 1)) :]
    smaller = replace(grid, tile=data.draw(st.integers(1, max(windows[0].shape))))
    again = times_kept(smaller.recut(left, height, width), height, width)
    np.testing.assert_array_equal(again, times_kept(left, height, width))


@given(grids(), edges, edges)
@settings(max_examples=100, deadline=None)
def test_batches_are_even_and_within_their_limit(grid, height, width):
    windows = grid.windows(height, width)
    batches = grid.batches(windows)
    assert [window for batch in batches for window in batch] == windows
    lengths = [len(batch) for batch in batches]
    limit = max(1, grid.batch_pixels // (windows[0].shape[0] * windows[0].shape[1]))
    assert max(lengths) <= limit
    assert len(batches) == -(-len(windows) // limit)
    assert len(set(lengths[:-1])) <= 1


def test_halving_the_batch_and_the_tile():
    grid = TileGrid(tile=80, pad=4, batch_pixels=5 * 88 * 88, whole_pixels=math.inf, tile_of_larger=80)
    lengths = []
    while not lengths or lengths[-1] > 1:
        batch = grid.batches(grid.windows(800, 800))[0]
        lengths.append(len(batch))
        grid = grid.halve_batch(batch)
    assert lengths == [5, 2, 1]
    tiles = []
    while grid is not None:
        tiles.append(grid.tile)
        grid = grid.halve_tile(grid.windows(800, 800)[0])
    assert tiles == [80, 40, 20]
