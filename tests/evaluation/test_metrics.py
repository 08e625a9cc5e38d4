"""PSNR against arithmetic done here by hand, SSIM against scikit-image."""

import math

import numpy as np
import pytest

from rdn_fast.evaluation import metrics

BOTH = pytest.mark.parametrize("psnr", [metrics.psnr_y, metrics.psnr_y_compat])


def grey(height=9, width=8, value=100) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def noisy(image, seed, spread=20.0) -> np.ndarray:
    """Return the image with Gaussian noise as float32, some values outside 0..255."""
    return (image + np.random.default_rng(seed).normal(0, spread, image.shape)).astype(np.float32)


# R, G, B differ by (10, -20, 5) everywhere. Y then differs by (red * 10 - 129.057 * 20 + 25.064 * 5) / 256.
@pytest.mark.parametrize(("psnr", "red"), [(metrics.psnr_y, 65.738), (metrics.psnr_y_compat, 64.738)])
def test_constant_error_by_hand(psnr, red):
    prediction = (grey() + np.array([10, -20, 5])).astype(np.uint8)
    error = (red * 10 - 129.057 * 20 + 25.064 * 5) / 256
    assert psnr(prediction, grey(), 2) == pytest.approx(10 * math.log10(255**2 / error**2), abs=1e-9)


# Two of the 5 x 4 pixels inside the border are wrong, one by +8 in green, one by -3 in all channels.
@pytest.mark.parametrize(("psnr", "red"), [(metrics.psnr_y, 65.738), (metrics.psnr_y_compat, 64.738)])
def test_error_is_squared_and_averaged_over_pixels_by_hand(psnr, red):
    prediction = grey(9, 8)
    prediction[3, 4, 1] += 8
    prediction[6, 2] -= 3
    squares = (129.057 * 8 / 256) ** 2 + ((red + 129.057 + 25.064) * 3 / 256) ** 2
    assert psnr(prediction, grey(9, 8), 2) == pytest.approx(10 * math.log10(255**2 / (squares / 20)), abs=1e-9)


def test_white_against_black_by_hand():
    # Canonical luma runs from 16 to 16 + 255 * 219.859 / 256 = 235.0003...; 220 levels of 255 are not 0 dB.
    span = 255 * (65.738 + 129.057 + 25.064) / 256
    assert metrics.psnr_y(grey(value=255), grey(value=0), 2) == pytest.approx(20 * math.log10(255 / span), abs=1e-9)


def test_canonical_psnr_rounds_and_the_compatible_one_does_not():
    below, above = grey().astype(np.float32) + 0.4, grey().astype(np.float32) + 0.6
    assert metrics.psnr_y(below, grey(), 2) == math.inf
    assert metrics.psnr_y(above, grey(), 2) == metrics.psnr_y(grey(value=101), grey(), 2)
    error = 0.4 * (64.738 + 129.057 + 25.064) / 256
    expected = 10 * math.log10(255**2 / error**2)
    assert metrics.psnr_y_compat(below, grey(), 2) == pytest.approx(expected, abs=1e-4)  # 0.4 is a float32


@BOTH
@pytest.mark.parametrize(("limit", "beyond"), [(255, 301.5), (0, -40.25)])
def test_values_out_of_range_are_clipped(psnr, limit, beyond):
    prediction = np.full((9, 8, 3), beyond, np.float32)
    assert psnr(prediction, grey(value=limit), 2) == math.inf
    assert psnr(prediction, grey(value=100), 2) == psnr(grey(value=limit), grey(value=100), 2)


@BOTH
def test_whole_numbers_are_the_same_as_float_and_uint8(psnr):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 20, 17, 3), dtype=np.uint8)
    assert psnr(a.astype(np.float32), b, 3) == psnr(a, b, 3)


@BOTH
def test_order_of_images_does_not_matter(psnr):
    a, b = np.random.default_rng(1).integers(0, 256, (2, 20, 17, 3), dtype=np.uint8)
    assert psnr(a, b, 4) == pytest.approx(psnr(b, a, 4), abs=1e-12)


def test_to_uint8():
    rgb = np.array([-7.0, -0.4, 0.4, 0.6, 127.4, 254.6, 255.4, 1000.0], np.float32)
    assert metrics.to_uint8(rgb).tolist() == [0, 0, 0, 1, 127, 255, 255, 255]
    assert metrics.to_uint8(rgb).dtype == np.uint8
    image = grey()
    np.testing.assert_array_equal(metrics.to_uint8(image), image)


@BOTH
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_errors_in_the_border_do_not_count(psnr, scale):
    hr = grey(15, 14)
    for wrong in (np.s_[:scale], np.s_[-scale:], np.s_[:, :scale], np.s_[:, -scale:]):
        prediction = hr.copy()
        prediction[wrong] = 0
        assert psnr(prediction, hr, scale) == math.inf


@BOTH
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_errors_next_to_the_border_count(psnr, scale):
    hr = grey(15, 14)
    for wrong in (np.s_[scale, 7], np.s_[-scale - 1, 7], np.s_[7, scale], np.s_[7, -scale - 1]):
        prediction = hr.copy()
        prediction[wrong] = 0
        assert psnr(prediction, hr, scale) < 50


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_ssim_ignores_the_border_and_nothing_else(scale):
    hr = np.random.default_rng(2).integers(0, 256, (30, 28, 3), dtype=np.uint8)
    prediction = hr.copy()
    prediction[:scale], prediction[-scale:], prediction[:, :scale], prediction[:, -scale:] = 0, 0, 0, 0
    assert metrics.ssim_y(prediction, hr, scale) == pytest.approx(1, abs=1e-12)
    prediction[scale, scale] = 255 - hr[scale, scale]
    assert metrics.ssim_y(prediction, hr, scale) < 1 - 1e-10  # a corner weighs little in the one window that holds it


def test_equal_images(photograph):
    image = photograph(30, 25)
    for psnr in (metrics.psnr_y, metrics.psnr_y_compat):
        assert psnr(image, image, 2) == math.inf
        assert psnr(image.astype(np.float32), image, 2) == math.inf
    assert metrics.ssim_y(image, image, 2) == pytest.approx(1, abs=1e-12)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_broken_prediction_gets_no_number(photograph):
    hr = photograph(30, 25)
    prediction = hr.astype(np.float32)
    prediction[12, 12, 1] = math.nan
    for measure in (metrics.psnr_y, metrics.psnr_y_compat, metrics.ssim_y):
        assert math.isnan(measure(prediction, hr, 2))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("kind", ["noise", "unrelated", "flat", "float"])
def test_ssim_is_scikit_images(kind, scale, photograph, seed):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    rng = np.random.default_rng(seed)
    hr = photograph(*rng.integers(2 * scale + 11, 60, 2), seed)
    prediction = {
        "noise": lambda: metrics.to_uint8(noisy(hr, seed)),
        "unrelated": lambda: rng.integers(0, 256, hr.shape, dtype=np.uint8),
        "flat": lambda: np.full_like(hr, rng.integers(256)),
        "float": lambda: noisy(hr, seed, 40),
    }[kind]()

    def luma(image):
        rounded = np.clip(np.rint(image), 0, 255).astype(np.float64)
        return 16 + (65.738 * rounded[..., 0] + 129.057 * rounded[..., 1] + 25.064 * rounded[..., 2]) / 256

    a, b = (luma(image)[scale:-scale, scale:-scale] for image in (prediction, hr))
    expected = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert metrics.ssim_y(prediction, hr, scale) == pytest.approx(expected, abs=1e-9), f"seed {seed}"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_smallest_side_is_the_smallest_that_works(scale, photograph):
    side = metrics.smallest_side(scale)
    a, b = photograph(side, side, seed=1), photograph(side, side, seed=2)
    for measure in (metrics.psnr_y, metrics.psnr_y_compat, metrics.ssim_y):
        assert math.isfinite(measure(a, b, scale))
    for smaller in ((slice(1, None),), (slice(None), slice(1, None))):
        with pytest.raises(ValueError, match="window"):
            metrics.ssim_y(a[smaller], b[smaller], scale)
