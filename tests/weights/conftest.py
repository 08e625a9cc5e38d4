"""Fixtures of the tests of weights."""

import sys
import types

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


def _without_torchvision() -> None:
    """Put an empty torchvision where two architectures of spandrel's look for functions."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "spandrel")]:
        del sys.modules[name]
    modules = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    sys.modules.update({name: types.ModuleType(name) for name in modules})
    functional = sys.modules[modules[-1]]
    functional.InterpolationMode = functional.rotate = functional.normalize = None


@pytest.fixture(scope="session")
def spandrel():
    """The package, with RDN installed into its registry. Its torchvision may be missing, or not fit this torch."""
    pytest.importorskip("einops")  # spandrel's dependency
    try:
        import spandrel as module
    except (ImportError, RuntimeError):
        _without_torchvision()
        module = pytest.importorskip("spandrel")
    from rdn_fast.spandrel import install

    install()
    return module
