"""The figure of worst and best crops: which windows it shows, and where."""

import numpy as np
import pytest

from rdn_fast.evaluation import metrics
from rdn_fast.evaluation.crops import draw_figure, worst_and_best


def flat(height: int, width: int, value: int = 120) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def with_error(hr: np.ndarray, top: int, left: int, size: int, error: int) -> np.ndarray:
    image = hr.copy()
    image[top : top + size, left : left + size] += np.uint8(error)
    return image


def test_windows_are_where_the_gain_is_least_and_most():
    hr = flat(300, 400)
    bicubic = with_error(hr, 150, 200, 80, 60)  # RDN mends this
    rdn = with_error(hr, 10, 300, 80, 60)  # and is wrong here
    worst, best = worst_and_best("a", hr, bicubic, rdn, 2)
    assert 280 - 96 <= best.left <= 200
    assert 230 - 96 <= best.top <= 150
    assert 380 - 96 <= worst.left <= 300
    assert worst.top <= 10
    assert best.gain == -worst.gain > 20
    assert best.rdn_psnr == worst.bicubic_psnr == np.inf
    for crop in (worst, best):
        part = np.s_[crop.top : crop.top + 96, crop.left : crop.left + 96]
        for shown, image in ((crop.hr, hr), (crop.bicubic, bicubic), (crop.rdn, rdn)):
            np.testing.assert_array_equal(shown, image[part])
            assert shown.base is None  # a view would keep the whole image in memory


@pytest.mark.parametrize("scale", [2, 3])
def test_decibels_are_those_of_the_window_alone(photograph, scale):
    hr, bicubic, rdn = (photograph(150, 200, seed=i) for i in range(3))
    for crop in worst_and_best("a", hr, bicubic, rdn, scale):
        rows, columns = (slice(start - scale, start + 96 + scale) for start in (crop.top, crop.left))
        around = rows, columns  # psnr_y() crops them
        assert crop.bicubic_psnr == pytest.approx(metrics.psnr_y(bicubic[around], hr[around], scale), abs=1e-9)
        assert crop.rdn_psnr == pytest.approx(metrics.psnr_y(rdn[around], hr[around], scale), abs=1e-9)


def test_borders_that_are_not_measured_are_not_shown():
    hr = flat(200, 200)
    rdn = hr.copy()
    rdn[:2], rdn[-2:], rdn[:, :2], rdn[:, -2:] = 255, 255, 255, 255
    worst, best = worst_and_best("a", hr, hr, rdn, 2)
    assert (worst.gain, best.gain) == (0, 0)
    (corner, _) = worst_and_best("a", hr, hr, with_error(hr, 196, 196, 2, 90), 2)  # the last pixels that are
    assert (corner.top, corner.left) == (102, 102)
    assert corner.gain < 0


def test_errors_that_nobody_sees_do_not_decide():
    hr = flat(200, 400)
    rdn = with_error(hr, 20, 20, 60, 1)  # infinitely worse than bicubic, by a level
    rdn = with_error(rdn, 120, 320, 60, 40)
    worst, _ = worst_and_best("a", hr, with_error(hr, 120, 320, 60, 20), rdn, 2)
    assert worst.left > 200


def test_a_window_with_hardly_any_error_is_the_worst_of_none_other():
    hr = flat(300, 400)
    bicubic, rdn = (with_error(with_error(hr, 0, 0, 300, 2), 110, 210, 80, error) for error in (40, 30))
    worst, _ = worst_and_best("a", hr, bicubic, rdn, 2)  # elsewhere both are wrong by two levels, and nothing is gained
    assert worst.gain > 2
    (alone, _) = worst_and_best("a", hr, with_error(hr, 0, 0, 300, 2), hr, 2)
    assert alone.gain == 0


def test_image_smaller_than_a_window_is_shown_whole():
    hr = flat(50, 40)
    worst, best = worst_and_best("a", hr, hr, hr, 2)
    assert worst.hr.shape == best.hr.shape == (46, 36, 3)
    assert (worst.left, worst.top) == (2, 2)


def crops(gains: list[int]) -> list:
    """Return worst_and_best() of grey images, one level of grey apart.

    A positive gain is the error of bicubic, in levels; a negative one is the error of RDN.
    """
    made = []
    for i, gain in enumerate(gains):
        hr = flat(130, 130, 100 + i)
        wrong = with_error(hr, 2, 2, 126, abs(gain))
        made.append(worst_and_best(f"image {i}", hr, *((wrong, hr) if gain > 0 else (hr, wrong)), 2))
    return made


@pytest.mark.parametrize(
    ("gains", "shown"),
    [
        ([5, 30, -9, 12, -20, 40], [5, 1, 4, 2]),  # the best two, then the worst two
        ([5, 30, -9], [1, 2, 0]),  # no image twice
        ([5, 30], [1, 0]),
        ([5], [0, 0]),  # but one alone
    ],
)
def test_rows_are_the_best_and_the_worst_images(gains, shown):
    sheet = np.asarray(draw_figure(crops(gains)))
    height = 8 + len(shown) * (3 * 96 + 44 + 8)
    assert sheet.shape == (height, 1192, 3)
    middles = [8 + row * (3 * 96 + 44 + 8) + 144 for row in range(len(shown))]
    assert [sheet[middle, 150, 0] - 100 for middle in middles] == shown


def test_columns_are_hr_bicubic_rdn_and_the_error_amplified():
    hr = flat(100, 100, 100)
    sheet = np.asarray(draw_figure([worst_and_best("a", hr, hr + np.uint8(7), hr - np.uint8(5), 2)]))
    assert [sheet[150, x, 0] for x in (150, 450, 740, 1040)] == [100, 107, 95, 40]


def test_long_names_do_not_run_into_the_next_column():
    hr = flat(130, 130)
    sheet = np.asarray(draw_figure([worst_and_best("long" * 50, hr, hr, hr, 2)]))
    captions = sheet[8 + 288 :]
    assert (captions[:, :296] < 128).any()
    assert (captions[:, 296:304] == 255).all()
