"""Conventions of PSNR and SSIM against scikit-image and torchmetrics, and which of them gives a claimed number."""

import math

import numpy as np
import pytest
import torch

from rdn_fast.errors import UserError
from rdn_fast.evaluation import metrics
from rdn_fast.evaluation.conventions import CHANNELS, Claim, Convention, measure, values

CROPS = (0, 2, 8)


@pytest.fixture
def pictures(photograph, seed):
    """Return three (sr, hr) of different sizes, whose errors differ by far."""
    found = []
    for i, (size, spread) in enumerate([((48, 40), 2), ((40, 52), 12), ((31, 33), 40)]):
        hr = photograph(*size, seed + i)
        noise = np.random.default_rng(seed + i).normal(0, spread, hr.shape)
        found.append((metrics.to_uint8(hr + noise), hr))
    return found


def of(pictures, crops=CROPS) -> dict[Convention, float]:
    return values([measure(sr, hr, crops) for sr, hr in pictures], crops)


def cropped(image: np.ndarray, crop: int) -> np.ndarray:
    return image[crop : image.shape[0] - crop, crop : image.shape[1] - crop]


@pytest.mark.parametrize("crop", CROPS[1:])
def test_evals_conventions_are_among_them(pictures, crop):
    found = of(pictures)
    for channels, psnr in (("Y", metrics.psnr_y), ("Y ref.", metrics.psnr_y_compat), ("RGB", metrics.psnr_rgb)):
        expected = np.mean([psnr(sr, hr, crop) for sr, hr in pictures])
        assert found[Convention("PSNR", channels, "images", crop)] == pytest.approx(expected, abs=1e-9)
    expected = np.mean([metrics.ssim_y(sr, hr, crop) for sr, hr in pictures])
    assert found[Convention("SSIM", "Y", "images", crop)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("crop", CROPS)
def test_rgb_and_y_are_scikit_images(pictures, crop):
    skimage = pytest.importorskip("skimage")
    psnr, ssim = skimage.metrics.peak_signal_noise_ratio, skimage.metrics.structural_similarity
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = {
        key: [] for key in (("PSNR", "RGB"), ("SSIM", "RGB"), ("PSNR", "Y"), ("SSIM", "Y"), ("PSNR", "Y uint8"))
    }
    for sr, hr in pictures:
        a, b = cropped(sr, crop), cropped(hr, crop)
        expected["PSNR", "RGB"].append(psnr(b, a, data_range=255))
        expected["SSIM", "RGB"].append(ssim(b, a, channel_axis=2, **gaussian))
        a, b = (skimage.color.rgb2ycbcr(image)[..., 0] for image in (a, b))
        expected["PSNR", "Y"].append(psnr(b, a, data_range=255))
        expected["SSIM", "Y"].append(ssim(b, a, **gaussian))
        expected["PSNR", "Y uint8"].append(psnr(np.rint(b), np.rint(a), data_range=255))
    found = of(pictures)
    for (name, channels), of_images in expected.items():
        # scikit-image's weights of Y have fewer digits.
        # In Y uint8, so a value beside a half may be rounded otherwise: of 255 pixels, one moves PSNR by 0.006 dB.
        tolerance = {"RGB": 1e-9, "Y": 2e-3, "Y uint8": 2e-2}[channels]
        assert found[Convention(name, channels, "images", crop)] == pytest.approx(np.mean(of_images), abs=tolerance)


@pytest.mark.parametrize("crop", CROPS)
def test_rgb_is_torchmetrics(pictures, crop):
    image = pytest.importorskip("torchmetrics").image
    pooled, ssims, psnrs = image.PeakSignalNoiseRatio(data_range=255.0), [], []
    ssim = image.StructuralSimilarityIndexMeasure(data_range=255.0, return_full_image=True)
    for sr, hr in pictures:
        a, b = (torch.tensor(cropped(each, crop).copy()).permute(2, 0, 1)[None].double() for each in (sr, hr))
        pooled.update(a, b)
        psnrs.append(image.PeakSignalNoiseRatio(data_range=255.0)(a, b).item())
        _, of_windows = ssim(a, b)
        ssims.append(
            of_windows[..., 5:-5, 5:-5].mean().item()
        )  # torchmetrics counts windows over mirrored borders, too
    found = of(pictures)
    assert found[Convention("PSNR", "RGB", "pixels", crop)] == pytest.approx(pooled.compute().item(), abs=1e-3)
    assert found[Convention("PSNR", "RGB", "images", crop)] == pytest.approx(np.mean(psnrs), abs=1e-3)
    assert found[Convention("SSIM", "RGB", "images", crop)] == pytest.approx(np.mean(ssims), abs=1e-5)
    assert found[Convention("PSNR", "RGB", "pixels", crop)] < np.mean(psnrs) - 1  # they are far apart here


def test_constant_errors_by_hand():
    hr, sr = np.full((30, 30, 3), 100, np.uint8), np.full((30, 30, 3), 100, np.uint8)
    sr[...] += np.array([10, 20, 5], np.uint8)
    error = {
        "Y": (65.738 * 10 + 129.057 * 20 + 25.064 * 5) / 256,
        "Y ref.": (64.738 * 10 + 129.057 * 20 + 25.064 * 5) / 256,
        "luma": 0.299 * 10 + 0.587 * 20 + 0.114 * 5,
        "RGB": math.sqrt((100 + 400 + 25) / 3),
        # 16 + 100 * 219.859 / 256 = 101.88 -> 102; 13.14 more is 115.02 -> 115.
        "Y uint8": 13,
    }
    found = of([(sr, hr)])
    for channels in CHANNELS:
        expected = 20 * math.log10(255 / error[channels])
        assert found[Convention("PSNR", channels, "images", 2)] == pytest.approx(expected, abs=1e-9), channels


def test_one_picture_has_no_mean_over_pixels_and_a_small_one_no_ssim(photograph):
    one = of([(photograph(40, 40, 1), photograph(40, 40, 2))])
    assert {each.over for each in one} == {"images"}
    small = of([(photograph(20, 40, 1), photograph(20, 40, 2))])
    assert {each.crop for each in small if each.measure == "SSIM"} == {0, 2}
    assert {each.crop for each in small if each.measure == "PSNR"} == {0, 2, 8}
    with pytest.raises(ValueError, match="40x16 pixels are too small for a crop of 8"):
        measure(photograph(16, 40), photograph(16, 40), CROPS)


def test_equal_pictures(photograph):
    found = of([(photograph(40, 40), photograph(40, 40))])
    assert {value for each, value in found.items() if each.measure == "PSNR"} == {math.inf}
    assert [value for each, value in found.items() if each.measure == "SSIM"] == pytest.approx([1] * 15)


# ---- claims ----


@pytest.mark.parametrize("decimals", [1, 2, 3])
def test_every_convention_is_found_by_its_own_number(pictures, decimals):
    found = of(pictures)
    for convention, value in found.items():
        giving, nearest = Claim.parse(f"{value:.{decimals}f}").answer(found)
        assert convention in giving
        assert nearest == []
        for other in giving:
            assert abs(found[other] - value) <= 10.0**-decimals + 1e-9
            assert other.measure == convention.measure


def test_a_number_that_no_convention_gives(pictures):
    found = of(pictures)
    giving, nearest = Claim.parse("55.55").answer(found)
    assert giving == []
    best = sorted((value for each, value in found.items() if each.measure == "PSNR"), reverse=True)
    assert [found[each] for each in nearest] == best[:3]
    lines = Claim.parse("55.55").in_lines(found)
    assert lines[0] == "55.55: no convention gives it; the nearest:"
    assert len(lines) == 4


@pytest.mark.parametrize(("text", "name"), [("38.24", "PSNR"), ("38", "PSNR"), (".9614", "SSIM"), ("0.96", "SSIM")])
def test_numbers(text, name):
    claim = Claim.parse(text)
    assert (claim.value, claim.measure) == (float(text), name)
    assert claim.tolerance == pytest.approx(0.5 * 10.0 ** -len(text.partition(".")[2]), abs=1e-8)


@pytest.mark.parametrize("text", ["", "best", "nan", "inf", "-3", "0", "38,24"])
def test_what_is_no_number(text):
    with pytest.raises(UserError, match=f"--claim {text}: give a PSNR, as 38.24, or an SSIM, as 0.9614"):
        Claim.parse(text)
