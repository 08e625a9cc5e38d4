"""profiling.all_reduce: errors of a mean in low precision."""

import numpy as np
import pytest
import torch
from PIL import Image

from profiling import all_reduce


def test_a_mean_that_the_dtype_holds_has_no_error(monkeypatch):
    monkeypatch.setattr(all_reduce, "RANKS", 4)
    ranks = [[torch.tensor([1.0, 2.0]), torch.full((3,), float(rank + 1))] for rank in range(4)]
    assert [gradient.tolist() for gradient in all_reduce.mean(ranks, torch.float16)] == [[1, 2], [2.5] * 3]
    assert all_reduce.errors(ranks, torch.bfloat16) == (0, 0)


def test_errors_are_a_few_roundings_and_the_worst_tensors_is_told(seed):
    generator = torch.Generator().manual_seed(seed)
    ranks = [[torch.randn(500, generator=generator), torch.ones(1)] for _ in range(all_reduce.RANKS)]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        half = torch.finfo(dtype).eps / 2
        whole, worst = all_reduce.errors(ranks, dtype)
        assert 0.1 * half < whole <= worst < 20 * half
    small = [[tensor * 1e-7 for tensor in tensors] for tensors in ranks]  # below what float16 resolves
    assert all_reduce.errors(small, torch.float16)[0] > 0.05


def test_the_table_has_a_row_for_each_case(monkeypatch, tmp_path, capsys, seed):
    monkeypatch.setattr(all_reduce, "RANKS", 2)
    monkeypatch.setattr(all_reduce, "PATCHES", 1)
    pixels = np.random.default_rng(seed).integers(0, 256, (70, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    all_reduce.main([str(tmp_path)])
    _, *rows = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| "))
    assert len(rows) == 2 * 2 * 3
    errors = [[float(cell) for cell in row.strip("| ").split("|")[-2:]] for row in rows]
    assert all(0 < whole <= worst for whole, worst in errors)
    single, half, brain = errors[:3]  # of the shipped weights at loss scale 1024
    assert single[0] < half[0] < brain[0]


def test_a_folder_without_pictures_is_told(tmp_path):
    with pytest.raises(SystemExit, match=r"no \.png or \.jpg pictures there"):
        all_reduce.main([str(tmp_path)])
