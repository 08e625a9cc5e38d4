"""Fixtures of the benchmarks' tests."""

import time

import pytest
import torch

from bench import ceilings
from bench.case import Contender


@pytest.fixture(autouse=True)
def _fresh_inputs(seed):
    torch.manual_seed(seed)


@pytest.fixture
def out(tmp_path, monkeypatch):
    """Where the rows of a run go."""
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return tmp_path / "out"


@pytest.fixture
def high_ceilings(monkeypatch):
    """Ceilings that take a moment, and that nothing reaches."""

    def contenders(device, dtypes):
        return {ceilings.Ceiling("product", dtype, 10**15): Contender(lambda: time.sleep(1e-3)) for dtype in dtypes}

    monkeypatch.setattr(ceilings, "contenders", contenders)
