"""tools/small_model.py: which pictures the shipped models learn from."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from rdn_fast.config import make_configs
from rdn_fast.data.h5 import PairedH5
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from tools import small_model


@pytest.fixture
def write(tmp_path, seed):
    """write(folder, name, edge): a random square picture in a folder of tmp_path; returns its path."""
    rng = np.random.default_rng(seed)

    def picture(folder, name, edge=20):
        path = tmp_path / folder / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (edge, edge, 3), np.uint8)).save(path)
        return path

    return picture


def test_diagrams_and_what_is_held_out_are_not_learnt_from(write, tmp_path):
    pytest.importorskip("skimage")
    for folder in small_model.FOLDERS:
        write(folder, "zz")
    for name in ("Boxplot", *(f"photo {k:02}" for k in range(30))):
        write("CID22", name)
    paths, held_out = small_model.collect(tmp_path)
    assert [path.stem for path in held_out] == ["photo 00", "photo 25"]
    names = {path.stem for path in paths}
    assert len(names) == 28 + 1 + 4  # "zz" is in every folder
    assert {"photo 01", "zz", "astronaut"} <= names
    assert not {"Boxplot", "photo 00", "photo 25"} & names


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="CID22"):
        small_model.collect(tmp_path)


def test_every_photograph_gives_tiles_of_several_sizes(write, tmp_path):
    paths = [write("CID22", "small", 290), write("CLIC2025", "large", 500)]
    small_model.write_tiles(paths, 2, tmp_path / "tiles.h5")
    names = [name.rsplit(" ", 1)[0] for name in PairedH5(tmp_path / "tiles.h5", 2).names()]
    assert Counter(names) == {
        **{"small 290x290": 4, "small 203x203": 4},
        **{"large 500x500": 16, "large 350x350": 9, "large 250x250": 4},
    }


def test_tiles_of_other_photographs_are_not_taken(write, tmp_path, monkeypatch):
    paths, tiles = [write("CID22", name, 100) for name in "ab"], tmp_path / "tiles.h5"
    small_model.write_tiles(paths, 2, tiles)
    small_model.check_tiles(tiles, paths)
    with pytest.raises(UserError, match="holds tiles of other photographs or sizes; give another --outputs-dir"):
        small_model.check_tiles(tiles, paths[:1])
    monkeypatch.setattr(small_model, "SIZES", (1.0,))
    with pytest.raises(UserError, match="holds tiles of other photographs or sizes"):
        small_model.check_tiles(tiles, paths)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_file_has_less_than_3_mb(scale):
    flags = dict(zip(*[iter(small_model.FLAGS[scale])] * 2, strict=True))
    channels = flags.get("--upsample-channels")
    given = {"scale": scale, "upsample_channels": channels and int(channels)}
    model = RDN(model_config=make_configs(given, "small")[0])
    assert sum(2 * parameter.numel() for parameter in model.parameters()) < 2_980_000  # float16, without names
