"""Training by each precision and implementation on a CPU, held against float32."""

import math

import pytest

from profiling import learning
from profiling.learning import RECIPES, SEEDS, Learnt
from rdn_fast.rdb import amx


@pytest.fixture(autouse=True)
def own_kernels(monkeypatch):
    """Give back amx's kernels after the test."""
    monkeypatch.setattr(amx.block, "kernels", amx.block.kernels)


@pytest.mark.slow
def test_each_recipe_learns_from_each_seed(capsys):
    pytest.importorskip("skimage")
    learning.any_build()
    if reason := amx.missing():
        pytest.skip(f"amx {reason}")
    found = learning.measure(2, (5, 6))
    assert list(found) == list(RECIPES)
    for runs in found.values():
        assert len({run.loss for run in runs}) == 2  # of two seeds
        assert all(math.isfinite(run.psnr) and 0 < run.loss < 1 for run in runs)
    for i in range(2):  # the same weights and patches
        float32, *others = (runs[i].loss for runs in found.values())
        assert others == pytest.approx([float32] * 2, rel=0.01)
    text = capsys.readouterr().out
    assert all(text.count(f", rdb {impl}, torch") == 2 for _, impl in RECIPES)


def test_the_table_says_how_far_each_is_from_float32():
    results = [30.0, 31.0, 32.0], [30.0, 31.0, 32.3], [29.5, 31.0, 32.2]
    found = {recipe: [Learnt(psnr, 0.01) for psnr in runs] for recipe, runs in zip(RECIPES, results, strict=True)}
    head, _, *lines = learning.table(found, SEEDS, " (plain build)")
    assert head == "| dtype | rdb | seed 123 | seed 1 | seed 2 | mean, dB | less float32 | loss |"
    assert lines == [
        "| float32 | winograd | 30.000 | 31.000 | 32.000 | 31.000 | +0.000 | 0.01000 |",
        "| bf16 | naive | 30.000 | 31.000 | 32.300 | 31.100 | +0.100 | 0.01000 |",
        "| bf16 | amx (plain build) | 29.500 | 31.000 | 32.200 | 30.900 | -0.100 | 0.01000 |",
    ]


def test_without_the_photographs_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(learning.prepare.__globals__["importlib"].util, "find_spec", lambda _: None)
    assert learning.main(["--steps", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("learning: error: ")
    assert error.count("\n") == 1
