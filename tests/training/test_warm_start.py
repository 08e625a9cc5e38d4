"""A run that starts from weights of another scale or tail."""

import dataclasses

import pytest
import torch

from rdn_fast import RDN, ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.training.inputs import _fitting, initial_model

X2 = ModelConfig(2, 6, 4, 2, 2)
SHUFFLE_X4 = ["upscale.2"]  # upscale.0 doubles the size in both, output makes RGB of as many channels


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ({}, []),
        ({"scale": 3}, ["upscale.0"]),
        ({"scale": 4}, SHUFFLE_X4),
        ({"scale": 4, "tail": "single"}, ["upscale.0"]),
        ({"tail": "espcn"}, ["output", "upscale.0", "upscale.2", "upscale.4"]),
        ({"upsample_channels": 3}, ["output", "upscale.0"]),
    ],
    ids=str,
)
def test_everything_that_fits_is_taken_and_the_rest_is_named(tmp_path, seed, change, new):
    torch.manual_seed(seed)
    theirs, config = RDN(X2).state_dict(), dataclasses.replace(X2, **change)
    torch.save(theirs, tmp_path / "x2.pth")
    weights, about = _fitting(config, str(tmp_path / "x2.pth"))
    started, unaided = (initial_model(config, 5, given).state_dict() for given in (weights, {}))
    for key, value in started.items():
        is_new = key.rpartition(".")[0] in new
        assert torch.equal(value, unaided[key] if is_new else theirs[key]), key
    assert (f"random at the start are {', '.join(new)};" in about) if new else about == ""


@pytest.mark.parametrize(
    "change", [{"num_features": 8}, {"num_blocks": 3}, {"num_layers": 1}, {"mean_shift": True}], ids=str
)
def test_another_trunk_is_refused(tmp_path, change):
    torch.save(RDN(X2).state_dict(), tmp_path / "x2.pth")
    with pytest.raises(UserError, match=r"x2\.pth does not fit this model"):
        _fitting(dataclasses.replace(X2, scale=4, **change), str(tmp_path / "x2.pth"))


def test_what_is_left_out_is_named(tmp_path):
    torch.save(RDN(dataclasses.replace(X2, scale=4)).state_dict(), tmp_path / "x4.pth")
    weights, about = _fitting(X2, str(tmp_path / "x4.pth"))
    assert weights.keys() == RDN(X2).state_dict().keys()
    assert about.endswith("x4 D2 C2 G4 G0 6: left out are upscale.2; everything else is taken")
