"""Fixtures of the tests of weights."""

import other_projects as others
import pytest
import torch
from weight_files import saved


@pytest.fixture(autouse=True)
def _same_weights_in_every_run():
    """Seed torch before each test, and restore its generator after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        yield


@pytest.fixture
def reference(tmp_path):
    """A file of a tiny x2 model as the reference saves it."""
    return saved(tmp_path / "reference.pth", others.Reference(2).state_dict())
