"""Fixtures of the tests of pictures: files that Pillow writes, tiny weights, and `rdn-fast upscale` with a stand-in."""

import numpy as np
import pytest
import torch
from by_hand import repeated, twice
from PIL import Image
from stand_in import Nearest

import rdn_fast
from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.pictures import upscale_files
from rdn_fast.pictures.encode import encode, fit
from rdn_fast.pictures.enlarge import enlarge
from rdn_fast.pictures.formats import FORMATS
from rdn_fast.pictures.picture import read_picture


@pytest.fixture
def made(tmp_path):
    """made(source, suffix=None) enlarges a file or image into one with that suffix; returns its path and the notes."""

    def make(source, suffix=None, model=repeated):
        target = tmp_path / f"result{suffix or source.suffix}"
        format = FORMATS[target.suffix]
        picture = read_picture(source)
        picture = fit(picture, twice(picture), format)
        target.write_bytes(encode(enlarge(picture, model), format))
        return target, picture.notes

    return make


@pytest.fixture
def saved(tmp_path):
    """saved(name, image, **options) writes an array or PIL.Image with Pillow; returns the file's path."""

    def save(name, image, **options):
        path = tmp_path / name
        (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
        return path

    return save


@pytest.fixture
def untimed(monkeypatch):
    """Skip autotuning, which takes longer than these tests."""
    monkeypatch.setattr(rdn_fast.model, "resolve_impl", lambda name, case: "sliced")


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return RDN(ModelConfig(2, 6, 4, 2, 2)).eval()


@pytest.fixture(scope="session")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def run(cli, weights, monkeypatch, tmp_path):
    """run(*arguments) runs `rdn-fast upscale` with the stand-in and tiny weights, in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(upscale_files, "Upscaler", Nearest)
    return lambda *arguments: cli("upscale", "-w", weights, *arguments)


@pytest.fixture
def tree(tmp_path):
    """tree(*names) makes pictures of 6 x 5 pixels, each of its own colour, and text files (.txt, .h5)."""

    def make(*names):
        for i, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".txt", ".h5"):
                path.write_text("no picture")
            else:
                Image.new("RGB", (6, 5), (i, 10 * i, 100)).save(path)
        return tmp_path

    return make


@pytest.fixture
def unread(monkeypatch):
    """Fail the test when a picture is read."""
    monkeypatch.setattr(upscale_files, "read_picture", lambda *_: pytest.fail("a picture was read"))
