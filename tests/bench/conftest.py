"""Fixtures of the benchmarks' tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_inputs(seed):
    torch.manual_seed(seed)


@pytest.fixture
def out(tmp_path, monkeypatch):
    """Where the rows of a run go."""
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return tmp_path / "out"
