"""Curves: thinned without losing extremes, means, axes with round labels, and what becomes of odd values."""

import re
from itertools import pairwise

import numpy as np
import pytest

from rdn_fast.report.curves import Axis, Line, Mark, draw, running_mean, thin, value_axis


def test_thinning_keeps_order_extremes_and_ends(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1500, 50_000))
    x, y = np.arange(count) * 3.0, rng.normal(size=count)
    y[rng.integers(count)], y[rng.integers(count)] = 50, -50
    thin_x, thin_y = thin(x, y, 100)
    assert len(thin_x) <= 200
    assert (np.diff(thin_x) > 0).all()
    assert (thin_y == y[(thin_x / 3).astype(int)]).all()
    assert (thin_y.min(), thin_y.max()) == (y.min(), y.max())
    bounds = np.linspace(0, count, 11).astype(int)  # of each tenth, too
    for begin, end in pairwise(bounds):
        inside = (thin_x >= 3 * (begin - count / 100)) & (thin_x < 3 * (end + count / 100))
        assert thin_y[inside].max() >= y[begin:end].max()


def test_thinning_keeps_gaps_and_short_curves():
    x, y = np.arange(1000.0), np.arange(1000.0)
    y[300:500] = np.nan
    thin_x, thin_y = thin(x, y, 50)
    assert np.isnan(thin_y).sum() == 10  # one a bucket that has no value
    assert not np.isnan(thin_y[(thin_x < 300) | (thin_x >= 500)]).any()
    assert thin(x[:100], y[:100], 50)[1] is not None
    np.testing.assert_array_equal(thin(x[:100], y[:100], 50)[1], y[:100])


def test_running_mean(seed):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=200)
    y[rng.random(200) < 0.1] = np.nan
    for width in (1, 2, 7, 500):
        found = running_mean(y, width)
        for i, value in enumerate(found):
            around = y[max(0, i - width // 2) : i - width // 2 + width]
            assert np.isnan(value) if np.isnan(y[i]) else value == pytest.approx(np.nanmean(around))
    assert np.isnan(running_mean(np.full(5, np.nan), 3)).all()
    assert running_mean(np.empty(0), 5).shape == (0,)


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 1, False), (29.7, 33.9, False), (0, 1e-5, False), (-5, 123456, False), (0.01, 0.3, True), (1e-6, 1e3, True)],
)
def test_ticks_are_round_and_few(low, high, log):
    ticks = Axis(low, high, log).ticks(6)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    for tick in ticks:
        assert float(f"{tick:.2g}") == pytest.approx(tick)


def test_axes_of_any_numbers_have_labels(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        values = rng.choice([-1, 1, 1], 2) * 10.0 ** rng.uniform(-120, 100, 2)
        if rng.integers(2):
            values[1] = values[0] * (1 + 10.0 ** rng.uniform(-20, 0))
        lines = [Line(0, "", np.arange(2.0), values)]
        axis = value_axis(lines, *map(bool, rng.integers(2, size=3)))
        assert len(axis.ticks(6)) <= 6
        assert np.isfinite(axis.place(values)).all()
        assert "nan" not in draw("", "", lines, [], "step", axis, 1.0)


def test_one_value_and_none():
    for values in (np.full(1, 30.0), np.array([30, np.nextafter(30, 31)])):
        axis = value_axis([Line(0, "", np.arange(float(len(values))), values)])
        assert axis.low < 29
        assert axis.high > 31
    assert value_axis([Line(0, "", np.zeros(1), np.full(1, np.nan))]) is None
    assert value_axis([]) is None
    assert "no finite value" in draw("Loss", "", [], [], "step", None, 1.0)


def test_first_values_far_below_the_others_are_cut_off():
    first, late = np.array([8.0, 31, 32, 33, 33.5, 33.6]), np.array([32.0, 31, 32, 8, 33.5, 33.6])
    bicubic = Line(0, "", np.zeros(2), np.full(2, 33.0), "dashed")
    near = np.array([30.0, 31, 32, 33, 33.5, 33.6])  # cutting would gain little
    for y, cut in ((first, True), (first, False), (late, True), (near, True)):
        axis = value_axis([Line(0, "", np.arange(6.0), y), bicubic], cut=cut)
        lowest = 31 if y is first and cut else y.min()
        assert lowest - 0.1 * (33.6 - lowest) < axis.low < lowest


def test_what_is_drawn():
    x = np.arange(5.0)
    lines = [Line(0, "a", x, np.array([1, 2, np.nan, 4, 5.0])), Line(9, "<b>", x, np.full(5, np.nan), "raw")]
    html = draw("Loss", "u", lines, [Mark(0, "resume", np.array([2.0]))], "step", value_axis(lines), 4.0)
    path = re.search(r'<path class="line r0" data-label="a" d="([^"]*)"', html)[1]
    assert path.count("M") == 2  # a gap
    assert len(re.findall(r"[ML]", path)) == 4
    assert 'class="raw r1" data-label="&lt;b&gt;" d=""' in html
    assert 'class="resume r0" d="M500.0 0V1000"' in html
    assert "a: from 1 at 0 to 5 at 4. &lt;b&gt;: no value." in html
    assert "nan" not in html.lower()
