"""Borders, grey and transparency through the shipped model and through a stand-in that spreads colours."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.pictures.enlarge import enlarge
from rdn_fast.pictures.picture import Picture, read_picture
from rdn_fast.pictures.tiled import Upscaler
from rdn_fast.weights.convert import load_model


@pytest.fixture(scope="module")
def shipped():
    patch = pytest.MonkeyPatch()
    patch.setattr("rdn_fast.model.resolve_impl", lambda name, case: "sliced")
    yield Upscaler(load_model(None, "cpu"), fp32=True)
    patch.undo()


def through(upscaler, pixels: np.ndarray) -> np.ndarray:
    return enlarge(Picture(pixels, Image.Exif(), None, None), upscaler).pixels


def spreading(image: np.ndarray) -> np.ndarray:
    """A stand-in for a model: twice as large, each pixel the mean of 3 x 3 pixels; red is 9 levels above the others."""
    padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)), "edge")
    h, w = image.shape[:2]
    mean = sum(padded[y : y + h, x : x + w] for y in range(3) for x in range(3)) / 9
    return np.clip(np.rint(mean + np.array([9, 0, 0])), 0, 255).astype(image.dtype).repeat(2, 0).repeat(2, 1)


def disc(colour: tuple[int, ...], outside: tuple[int, ...]) -> Image.Image:
    image = Image.new("RGBA", (40, 40), outside)
    ImageDraw.Draw(image).ellipse((10, 10, 29, 29), fill=colour)
    return image


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)])
def test_flat_colours_are_flat_up_to_the_border(shipped, colour):
    large = through(shipped, np.full((32, 32, 3), colour, np.uint8))
    assert np.abs(large.astype(int) - colour).max() <= 2


def test_a_continued_picture_of_256_pixels_is_one_window(monkeypatch):
    """Cut into four, the continuation costs 6% more at this size."""
    monkeypatch.setattr("rdn_fast.devices.free_memory", lambda device: 8 * 10**9)
    upscaler = Upscaler(RDN(ModelConfig(num_blocks=1)), fp32=True)
    shapes = []
    through(lambda image: shapes.append(image.shape[:2]) or spreading(image), np.zeros((256, 256, 3), np.uint8))
    assert [len(upscaler.grid.windows(*shape)) for shape in shapes] == [1]
    assert max(max(window.shape) for window in upscaler.grid.windows(265, 264)) <= 192 + 2 * 10
    monkeypatch.setattr("rdn_fast.devices.free_memory", lambda device: 10**8)
    assert len(Upscaler(RDN(ModelConfig(num_blocks=1)), fp32=True).grid.windows(264, 264)) > 9


@pytest.mark.parametrize("grey", ["text", "dither", "text beside a colour"])
def test_grey_stays_grey(shipped, grey):
    if grey == "dither":
        ramp = np.tile(np.linspace(0, 255, 64), (32, 1))
        plane = np.where(ramp > np.random.default_rng(0).integers(0, 256, ramp.shape), 255, 0).astype(np.uint8)
    else:
        image = Image.new("L", (64, 32), 255)
        ImageDraw.Draw(image).text((4, 8), "Ilmwx 08", fill=0)
        plane = np.asarray(image)
    pixels = np.dstack([plane] * 3)
    if grey == "text beside a colour":
        pixels[:, 50:] = 200, 30, 40
        large = through(shipped, pixels)
        assert (large[..., :].max(axis=2) == large.min(axis=2))[:, : 2 * (50 - 3)].all()
        assert (large.max(axis=2) - large.min(axis=2))[:, 102:].min() > 100
        pixels = pixels[:, :40]
    large = through(shipped, pixels)
    assert (large == large[..., :1]).all()
    assert large.shape[2] == 3
    np.testing.assert_array_equal(large[..., :1], through(shipped, pixels[..., :1]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_invisible_pixels_bleed_no_colour(dtype):
    pixels = np.asarray(disc((246, 0, 0, 255), (0, 0, 255, 0))).astype(dtype)
    pixels[..., 3] *= np.iinfo(dtype).max // 255
    large = through(spreading, pixels)
    visible = large[..., 3] > 0
    assert set(map(tuple, large[visible][:, :3])) == {(255, 0, 0)} if dtype == np.uint8 else True
    assert large[..., 2].max() == 0  # no blue
    grey = through(spreading, np.dstack([np.where(pixels[..., 3] > 0, 200, 0).astype(dtype), pixels[..., 3]]))
    assert set(grey[..., 0].flat) == {203}  # 200 and a third of 9


def test_invisible_pixels_of_a_gif_bleed_no_colour(tmp_path, shipped):
    index = np.where(np.asarray(disc((0,) * 4, (1,) * 4))[..., 0] > 0, 1, 0).astype(np.uint8)
    image = Image.frombytes("P", (40, 40), index.tobytes())
    image.putpalette([200, 160, 30, 255, 0, 255])
    image.save(tmp_path / "a.gif", transparency=1)
    large = enlarge(read_picture(tmp_path / "a.gif"), shipped).pixels.astype(int)
    shown = large[large[..., 3] > 0][:, :3]
    assert np.abs(shown - [200, 160, 30]).max() <= 2


def test_alpha_is_full_inside_and_none_outside(shipped):
    pixels = np.asarray(disc((200, 30, 40, 255), (0, 0, 0, 0)))
    alpha = through(shipped, pixels)[..., 3]
    y, x = np.mgrid[:80, :80] - 39.5
    radius = np.hypot(y, x)
    assert set(alpha[radius < 2 * 10 - 10]) == {255}
    assert set(alpha[radius > 2 * 10 + 10]) == {0}
    assert 200 < alpha[(radius > 17) & (radius < 19)].mean() <= 255


def test_colours_below_partial_alpha_are_kept():
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (20, 30, 4), dtype=np.uint8)
    large = through(lambda image: image.repeat(2, 0).repeat(2, 1), pixels)
    np.testing.assert_array_equal(large, pixels.repeat(2, 0).repeat(2, 1))
    pixels[5:9, 7:20, 3] = 0
    large = through(lambda image: image.repeat(2, 0).repeat(2, 1), pixels)
    seen = pixels[..., 3].repeat(2, 0).repeat(2, 1) > 0
    np.testing.assert_array_equal(large[seen], pixels.repeat(2, 0).repeat(2, 1)[seen])
    np.testing.assert_array_equal(large[..., 3] > 0, seen)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3), (5, 64)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_smaller_than_their_continuation(size, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    large = through(lambda image: image.repeat(2, 0).repeat(2, 1), pixels)
    assert large.shape == (2 * size[0], 2 * size[1], channels)
