"""The table of what auto takes against all others."""

import re

import pytest
import torch

from profiling import choices
from rdn_fast import devices
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.rdb import able

CPU = torch.device("cpu")
TINY = ModelConfig(num_features=6, growth_rate=4, num_blocks=2, num_layers=2)
SHAPE = 2, 3, 8, 8
pytestmark = pytest.mark.usefixtures("no_choices")


@pytest.mark.parametrize("bf16", [False, True])
def test_every_implementation_is_timed_and_the_choice_is_among_them(monkeypatch, bf16):
    monkeypatch.setattr(devices, "has_instructions", lambda *_: bf16)
    monkeypatch.setattr(choices, "BUDGET", 0.0)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    expected = {
        (name, impl.name) for name, dtype in list(dtypes.items())[: 1 + bf16] for impl in able(CPU, dtype, True)
    }
    rounds = choices.steps(TINY, SHAPE, CPU)
    assert set(rounds) == expected
    assert all(len(seconds) >= 3 and min(seconds) > 0 for seconds in rounds.values())
    assert choices.choose(TINY, SHAPE, CPU) in expected


def test_the_table_says_how_far_the_choice_is_from_the_best():
    rounds = {("float32", "naive"): [0.3, 0.2], ("float32", "winograd"): [0.105, 0.4], ("bfloat16", "naive"): [0.1]}
    *lines, last = choices.table("demo", rounds, ("float32", "winograd"))
    assert [re.split(r" ?\| ?", line)[2:7] for line in lines[2:]] == [
        ["bfloat16", "naive", "100", "1.00", "1"],
        ["float32", "winograd", "105", "1.05", "2"],
        ["float32", "naive", "200", "2.00", "2"],
    ]
    assert [line.endswith("| auto |") for line in lines[2:]] == [False, True, False]
    assert last == "\ndemo: auto takes float32 winograd, 5.0% slower than the best"


def test_on_a_cpu_steps_are_cut():
    assert choices.cut(TINY, TrainConfig(batch_size=16, patch_size=32), CPU) == (8, 3, 32, 32)
    assert choices.cut(TINY, TrainConfig(batch_size=2, patch_size=100), CPU) == (1, 3, 100, 100)


def test_a_device_that_is_none_is_a_users_error(capsys):
    assert choices.main(["--device", "abacus"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
