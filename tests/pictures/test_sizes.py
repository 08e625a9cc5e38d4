"""Which size a result gets, how often the model is needed for it, and the words for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdn_fast.errors import UserError
from rdn_fast.pictures.sizes import OutputSize, Steps

EDGE = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("wanted", "scale", "size", "passes"),
    [
        ({}, 2, (200, 120), 1),
        ({}, 4, (400, 240), 1),
        ({"outscale": 2}, 2, (200, 120), 1),
        ({"outscale": 3.5}, 2, (350, 210), 2),
        ({"outscale": 3.5}, 4, (350, 210), 1),
        ({"outscale": 4}, 2, (400, 240), 2),
        ({"outscale": 1.3}, 2, (130, 78), 1),
        ({"outscale": 1}, 2, (100, 60), 0),
        ({"outscale": 0.5}, 2, (50, 30), 0),
        ({"outscale": 0.001}, 2, (1, 1), 0),
        ({"width": 201}, 2, (201, 121), 2),
        ({"height": 60}, 2, (100, 60), 0),
        ({"height": 90}, 3, (150, 90), 1),
        ({"longest": 250}, 2, (250, 150), 2),
        ({"longest": np.int64(70)}, 2, (70, 42), 0),
        ({"width": 300, "height": 10}, 2, (300, 10), 2),
        ({"width": 50, "height": 61}, 2, (50, 61), 1),
    ],
)
def test_sizes(wanted, scale, size, passes):
    steps = OutputSize(**wanted).steps(100, 60, scale)
    assert (steps.size, steps.passes) == (size, passes)


def test_the_longest_edge_of_an_upright_picture():
    assert OutputSize(longest=250).steps(60, 100, 2).size == (150, 250)


@given(EDGE, EDGE, st.sampled_from(["outscale", "width", "height", "longest"]), EDGE, st.sampled_from([2, 3, 4, 8]))
def test_the_model_runs_as_often_as_needed_and_no_more(width, height, what, number, scale):
    steps = OutputSize(**{what: number / 100 if what == "outscale" else number}).steps(width, height, scale)
    factor = scale**steps.passes
    assert steps.size[0] <= factor * width
    assert steps.size[1] <= factor * height
    assert steps.passes == 0 or steps.size[0] > factor / scale * width or steps.size[1] > factor / scale * height
    if what in ("width", "height"):
        assert steps.size[what == "height"] == number
    elif what == "longest":
        assert max(steps.size) == number
    assert not steps.stretched


@pytest.mark.parametrize(
    ("wanted", "scale"),
    [
        ({}, 2),
        ({"outscale": 0.5}, 2),
        ({"outscale": 2}, 2),
        ({"outscale": 2.004}, 3),
        ({"outscale": 4}, 4),
        ({"outscale": 5}, 3),
        ({"outscale": 9}, 3),
        ({"outscale": 9.5}, 4),
        ({"width": 300}, 3),
        ({"height": 61}, 2),
        ({"longest": 301}, 4),
        ({"width": 10, "height": 180}, 3),
        ({"width": 300, "height": 1}, 3),
    ],
)
def test_the_best_scale(wanted, scale):
    assert OutputSize(**wanted).best_scale(100, 60, [4, 2, 3]) == scale
    assert OutputSize(**wanted).best_scale(100, 60, [8]) == 8


SCALES = st.lists(st.sampled_from([2, 3, 4, 8]), min_size=1, unique=True)


@given(EDGE, EDGE, SCALES)
def test_no_scale_needs_fewer_passes_than_the_best(edge, longest, scales):
    wanted = OutputSize(longest=longest)
    passes = {scale: wanted.steps(edge, edge, scale).passes for scale in scales}
    assert wanted.possible_scales(scales) == sorted(scales)
    assert wanted.best_scale(edge, edge, scales) == min(scales, key=lambda scale: (passes[scale], scale))


@given(EDGE, EDGE, st.none() | EDGE, SCALES)
def test_a_factor_needs_one_scale_for_all_pictures(width, height, percent, scales):
    wanted = OutputSize(percent and percent / 100)
    assert wanted.possible_scales(scales) == [wanted.best_scale(width, height, scales)]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({}, None),
        ({"outscale": 2}, None),
        ({"width": 200, "height": 120}, None),
        ({"outscale": 4}, "400x240 pixels (x4): through the x2 model twice"),
        ({"outscale": 8}, "800x480 pixels (x8): through the x2 model 3 times"),
        ({"outscale": 3.5}, "350x210 pixels (x3.5): through the x2 model twice, then resampled"),
        ({"width": 133}, "133x80 pixels (x1.33): through the x2 model once, then resampled"),
        ({"longest": 50}, "50x30 pixels (x0.5): resampled without the model"),
        ({"outscale": 1}, "100x60 pixels (x1): its own size, not through the model"),
        (
            {"width": 150, "height": 150},
            "150x150 pixels (stretched x1.5 by x2.5): through the x2 model twice, then resampled",
        ),
        ({"width": 150, "height": 90}, "150x90 pixels (x1.5): through the x2 model once, then resampled"),
    ],
)
def test_words(wanted, words):
    steps = OutputSize(**wanted).steps(100, 60, 2)
    assert steps.describe() == words
    assert steps.describe(always=True) == (words or "200x120 pixels (x2): through the x2 model once")


@given(EDGE, EDGE, EDGE)
def test_a_width_with_its_own_height_is_not_stretched(width, height, wanted):
    size = OutputSize(width=wanted).steps(width, height, 2).size
    if size[1] > 1:  # thinner than a pixel is not possible
        assert not OutputSize(width=size[0], height=size[1]).steps(width, height, 2).stretched


def test_limit_on_what_enters_the_model():
    twice = Steps((100, 60), (350, 210), 2, 2)
    twice.check(200 * 120, "--max-pixels")
    twice.check(0, "--max-pixels")
    words = r"^200x120 pixels before pass 2 of the x2 model are more than --max-pixels 23999; give a smaller size$"
    with pytest.raises(ValueError, match=words):
        twice.check(200 * 120 - 1, "--max-pixels")
    Steps((100, 60), (200, 120), 2, 1).check(1, "--max-pixels")  # its own pixels are read_picture's matter


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"outscale": 0}, "--outscale 0: give a factor above 0"),
        ({"outscale": -1.5}, "--outscale -1.5: give a factor above 0"),
        ({"outscale": float("nan")}, "--outscale nan: give a factor above 0"),
        ({"outscale": float("inf")}, "--outscale inf: give a factor above 0"),
        ({"outscale": "3"}, "--outscale 3: give a factor above 0"),
        ({"width": 0}, "--width 0: give a number of pixels, 1 or more"),
        ({"height": -3}, "--height -3: give a number of pixels, 1 or more"),
        ({"longest": 10**400}, f"--longest {10**400}: give a number of pixels, 1 or more"),
        ({"width": 12.5}, "--width 12.5: give a number of pixels, 1 or more"),
        ({"outscale": 2, "width": 3}, "--outscale and --width each say the result's size; give one of them"),
        ({"height": 2, "longest": 3}, "--height and --longest each say the result's size; give one of them"),
        ({"width": 2, "height": 2, "longest": 3}, "--width and --longest each say the result's size; give one of them"),
    ],
)
def test_mistakes(wanted, words):
    with pytest.raises(UserError) as error:
        OutputSize(**wanted).check("--")
    assert str(error.value) == words
