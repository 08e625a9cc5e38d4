"""Sheets of crops: what is written is read again, and nothing else is taken for one."""

import math
from contextlib import suppress

import numpy as np
import pytest

from rdn_fast.evaluation import sheet
from rdn_fast.evaluation.crops import Windows
from rdn_fast.evaluation.sheet import Measured, Sheet


@pytest.fixture
def example(photograph, seed):
    images = [photograph(120, 150, seed=seed + i) for i in range(3)]
    windows = Windows("<b>é\u4e2d</b>", *images, 2)
    worst, best = windows.worst_and_best()
    small = Windows("small", *(photograph(40, 30, seed=i) for i in range(3)), 2).hardest()
    measured = [Measured("a", 30.5, math.nan), Measured("b", 28.0, 31.25)]
    return Sheet(300, 7, measured, {"tracked": [windows.hardest(), small], "best": [best], "worst": [worst]})


def test_a_sheet_is_read_as_it_was_written(example):
    read = sheet.decode(sheet.encode(example))
    assert (read.step, read.pictures) == (300, 7)
    assert repr(read.measured) == repr(example.measured)  # NaN is not equal to itself
    for kind in sheet.KINDS:
        for ours, theirs in zip(read.crops[kind], example.crops[kind], strict=True):
            for name, value in theirs._asdict().items():
                np.testing.assert_array_equal(getattr(ours, name), value)


def test_values_that_are_infinite_are_read_as_unknown(photograph):
    image = photograph(60, 60)
    crop = Windows("equal", image, image, image, 2).hardest()
    read = sheet.decode(sheet.encode(Sheet(1, 1, [], {"tracked": [crop], "best": [], "worst": []})))
    assert math.isnan(read.crops["tracked"][0].rdn_psnr)


def test_damaged_and_foreign_files_are_refused(example, seed):
    whole, rng = sheet.encode(example), np.random.default_rng(seed)
    files = [b"", b"text", whole[: len(whole) // 2], whole.replace(b'"box"', b'"fox"')]
    for content in files:
        with pytest.raises(ValueError, match="is no whole sheet"):
            sheet.decode(content)
    for _ in range(20):  # whatever is damaged: ValueError or a sheet
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 255
        with suppress(ValueError):
            sheet.decode(bytes(content))


@pytest.mark.parametrize("box", [[0, 97, 96], [-5, 96, 96], [0, 96, 97], [0, 0, 0], ["a", 1, 1], None])
def test_crops_outside_of_the_sheet_are_refused(photograph, monkeypatch, box):
    image = photograph(100, 100)
    crop = Windows("a", image, image, image, 2).hardest()
    dumps = sheet.json.dumps

    def moved(about):
        about["crops"][0]["box"] = box
        return dumps(about)

    monkeypatch.setattr(sheet.json, "dumps", moved)
    content = sheet.encode(Sheet(1, 1, [], {"tracked": [crop], "best": [], "worst": []}))
    with pytest.raises(ValueError, match="is no whole sheet"):
        sheet.decode(content)


def test_the_hardest_window_is_the_same_for_any_model(photograph, seed):
    hr, bicubic, one, other = (photograph(200, 260, seed=seed + i) for i in range(4))
    first, second = (Windows("a", hr, bicubic, rdn, 2).hardest() for rdn in (one, other))
    assert (first.left, first.top) == (second.left, second.top)
    worst, best = Windows("a", hr, bicubic, one, 2).worst_and_best()
    assert first.bicubic_psnr <= min(worst.bicubic_psnr, best.bicubic_psnr)
