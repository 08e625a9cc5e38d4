"""MATLAB's imresize: values derived by hand, and a slow oracle in exact fractions, written from its definition."""

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from rdn_fast.data.imresize import imresize

SCALES = pytest.mark.parametrize("scale", [2, 3, 4, 8])
HALVED = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256  # Keys's kernel at odd multiples of 1/4, times 1/2


def kernel(x: Fraction) -> Fraction:
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2 if x <= 2 else Fraction(0)


def taps(length: int, new_length: int) -> list[list[tuple[Fraction, int]]]:
    """Return, for each new pixel, the weights of the old ones and their places, border pixels mirrored."""
    factor = Fraction(new_length, length)
    stretch, found = min(factor, Fraction(1)), []
    for i in range(1, new_length + 1):
        centre = i / factor + (1 - 1 / factor) / 2
        first = math.floor(centre - 2 / stretch)
        weights = [stretch * kernel(stretch * (centre - first - j)) for j in range(math.ceil(4 / stretch) + 2)]
        total, of_pixel = sum(weights), []
        for j, weight in enumerate(weights):
            place = (first + j - 1) % (2 * length)
            if weight:
                of_pixel.append((weight / total, place if place < length else 2 * length - 1 - place))
        found.append(of_pixel)
    return found


def uint8(value: Fraction) -> int:
    return min(255, max(0, math.floor(value + Fraction(1, 2))))


def oracle(image: np.ndarray, height: int, width: int, after_each_pass=uint8) -> np.ndarray:
    """Resize [H, W, 3] as defined, in exact fractions: rows, then columns; rows are stored by after_each_pass()."""
    columns = [image[:, x, c].tolist() for x in range(image.shape[1]) for c in range(3)]
    of_rows, of_columns = taps(image.shape[0], height), taps(image.shape[1], width)
    rows = [[after_each_pass(sum(w * column[i] for w, i in pixel)) for column in columns] for pixel in of_rows]
    result = [
        [[uint8(sum(w * row[3 * i + c] for w, i in pixel)) for c in range(3)] for pixel in of_columns] for row in rows
    ]
    return np.array(result, np.uint8)


def grey(values) -> np.ndarray:
    return np.repeat(np.array(values, np.uint8)[..., None], 3, axis=2)


# ---- by hand ----


def test_weights_of_x2_by_hand():
    """A white row between black ones: each new row holds one of the weights, below 0 cut off."""
    for place in range(8, 16):
        image = np.zeros((24, 2, 3), np.uint8)
        image[place] = 255
        halved = imresize(image, 12, 1)
        expected = np.zeros(12)
        for row in range(12):
            tap = place - (2 * row - 3)
            if 0 <= tap < 8:
                expected[row] = max(0, math.floor(255 * HALVED[tap] + 0.5))
        assert halved[:, 0, 0].tolist() == expected.tolist()


@pytest.mark.parametrize(("pixels", "mean"), [((0, 1), 1), ((2, 3), 3), ((254, 255), 255), ((10, 20), 15)])
def test_mirrored_borders_make_two_pixels_their_mean_and_halves_go_up(pixels, mean):
    # The mirrored row is b b a a b b a a, and the weights are symmetric.
    assert imresize(grey([pixels]).swapaxes(0, 1).repeat(2, 1), 1, 1).tolist() == [[[mean] * 3]]


def test_each_pass_is_rounded_and_rows_come_first():
    # [[0, 0], [1, 0]]: rows make 0.5 -> 1 and 0, columns 0.5 -> 1. One rounding at the end would make 0.25 -> 0.
    assert imresize(grey([[0, 0], [1, 0]]), 1, 1)[0, 0, 0] == 1
    # [[0, 2], [1, 1]]: rows make 0.5 -> 1 and 1.5 -> 2, columns 1.5 -> 2. Columns first make 1 and 1.
    assert imresize(grey([[0, 2], [1, 1]]), 1, 1)[0, 0, 0] == 2


def test_weights_of_enlarging_by_2_by_hand():
    """New pixels lie at quarters: weights are the kernel at 1/4, 3/4, 5/4 and 7/4, which is HALVED times 2."""
    image = np.zeros((24, 5, 3), np.uint8)
    image[10] = 200
    column = imresize(image, 48, 10)[:, 4, 0].astype(int)
    lit = {row: column[row] for row in range(48) if column[row]}
    # Rows 20 and 21 are a quarter above and below the white row, 19 and 22 three quarters, those beyond negative.
    near, far = (math.floor(200 * 2 * weight / 256 + 0.5) for weight in (111, 29))
    assert lit == {19: far, 20: near, 21: near, 22: far}


@SCALES
def test_flat_images_stay(scale):
    for value in (0, 1, 127, 254, 255):
        image = np.full((4 * scale, 5 * scale, 3), value, np.uint8)
        assert (imresize(image, 4, 5) == value).all()
        assert (imresize(image[:4, :5], 4 * scale, 5 * scale) == value).all()


# ---- the oracle ----


@SCALES
@pytest.mark.parametrize("kind", ["noise", "photograph", "black and white"])
def test_it_is_the_oracle_to_the_last_level(scale, kind, photograph, seed):
    rng = np.random.default_rng(seed)
    h, w = rng.integers(1, 12, 2)
    size = int(h) * scale, int(w) * scale
    image = {
        "noise": lambda: rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "photograph": lambda: photograph(*size, seed),
        "black and white": lambda: (255 * rng.integers(0, 2, (*size, 3))).astype(np.uint8),
    }[kind]()
    np.testing.assert_array_equal(imresize(image, int(h), int(w)), oracle(image, int(h), int(w)), f"seed {seed}")
    small = image[: int(h), : int(w)]
    np.testing.assert_array_equal(imresize(small, *size), oracle(small, *size), f"seed {seed}")


@pytest.mark.parametrize(("factor", "unit"), [(Fraction(1, 3), 81), (Fraction(3), 27)])
def test_no_sum_of_x3_is_a_half(factor, unit):
    """Weights are multiples of a fraction with an odd denominator: rounding of floats decides nothing."""
    for pixel in taps(30, int(30 * factor)):
        assert all((weight * unit).denominator == 1 for weight, _ in pixel)


@SCALES
def test_pictures_of_many_bands_are_the_oracle(scale):
    rng = np.random.default_rng(scale)
    image = rng.integers(0, 256, (2 * scale, 40_000 * scale // 8 // scale * scale, 3), dtype=np.uint8)
    height, width = 2, image.shape[1] // scale
    rows = imresize(image, height, width)
    left = imresize(np.ascontiguousarray(image[:, : 40 * scale]), height, 40)
    np.testing.assert_array_equal(rows[:, :30], left[:, :30])
    tall = imresize(np.ascontiguousarray(image.swapaxes(0, 1)), width, height)
    np.testing.assert_array_equal(
        tall[:30], oracle(np.ascontiguousarray(image[:, : 40 * scale].swapaxes(0, 1)), 40, height)[:30]
    )


def test_a_view_is_taken_as_it_is(photograph):
    image = photograph(40, 36)
    np.testing.assert_array_equal(imresize(image[::2, ::-3], 10, 6), imresize(image[::2, ::-3].copy(), 10, 6))


def test_edges_must_change_by_one_factor():
    with pytest.raises(ValueError, match="9x8 to 3x4 changes the shape"):
        imresize(np.zeros((8, 9, 3), np.uint8), 4, 3)


# ---- beside Pillow ----


def by_pillow(image: np.ndarray, scale: int) -> np.ndarray:
    """The customary recipe: symmetric padding by 4 * scale, Pillow's float bicubic per channel, crop, one rounding."""
    padded = np.pad(image, ((4 * scale,) * 2, (4 * scale,) * 2, (0, 0)), "symmetric").astype(np.float32)
    size = padded.shape[1] // scale, padded.shape[0] // scale
    channels = [
        np.asarray(Image.fromarray(np.ascontiguousarray(padded[..., c])).resize(size, Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.floor(np.clip(np.stack(channels, 2)[4:-4, 4:-4], 0, 255) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_pillows_float_recipe_rounds_once_and_so_is_another_image(scale, photograph):
    """It is imresize(im2double(image)) but for halves. Of a uint8 image one value in about seven differs."""
    image = photograph(48, 60)
    ours, once = imresize(image, 48 // scale, 60 // scale), by_pillow(image, scale)
    by_definition = oracle(image, 48 // scale, 60 // scale, after_each_pass=Fraction)
    assert (once != by_definition).sum() <= 1
    apart = np.abs(ours.astype(int) - once)
    assert apart.max() == 1
    assert 0.03 < apart.mean() < 0.3


def test_memory_is_the_image_and_what_is_made_of_it(photograph):
    image = np.tile(photograph(100, 100), (20, 24, 1))
    tracemalloc.start()
    imresize(image, 1000, 1200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * image.nbytes
