"""profiling/kernels.py, as far as a CPU can tell."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import rdb
from bench.measure import Bench
from profiling import kernels
from rdn_fast import auto_level
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.rdb import IMPLS, Impl, naive, triton_planes
from rdn_fast.rdb.triton_configs import KernelConfigs
from rdn_fast.tail import output_conv

CPU = torch.device("cpu")
TINY = ModelConfig(num_features=6, growth_rate=4, num_blocks=2, num_layers=2)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A run in float32 on the CPU whose ceilings cost no time."""
    monkeypatch.setattr(auto_level, "auto_level", lambda *_: "O0")
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(Bench, "ceilings", lambda self, *_: self._ceilings.update(float32=100e9))
    monkeypatch.setattr(kernels.ceilings, "contenders", lambda *_: {})
    return Bench("test", CPU, "naive")


@pytest.mark.parametrize("kind", ["forward", "data gradient", "weight gradient"])
def test_flop_of_a_convolution_are_those_that_torch_counts(kind):
    contender, flop = kernels.convolution(kind, 5, 3, 2, CPU, torch.float32)
    inputs = contender.fresh()
    with FlopCounterMode(display=False) as counted:
        contender.run(*inputs)
    assert counted.get_total_flops() == flop


def test_every_layer_is_measured(bench, monkeypatch):
    kernels.convolutions(bench, TINY, 2, [torch.float32])
    rows = bench.results.rows
    assert [(row.case, row.shape) for row in rows] == [
        (f"convolution {kind}", f"{channels} -> 4, 32x32")
        for channels in (6, 10)
        for kind in ("forward", "data gradient", "weight gradient")
    ]
    assert all(row.gflops > 0 and row.ceiling_share == pytest.approx(row.gflops / 100) for row in rows)
    assert len(bench.results.path.read_text().splitlines()) == 1 + len(bench.results.rows)


def test_kernels_need_a_card(bench, capsys):
    assert kernels.main(["impls", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "kernels: error: triton_planes runs on cuda only; hopper runs on cuda only\n"


@pytest.fixture
def planes(monkeypatch):
    """planes(function): make triton_planes this function on the CPU. Return the configurations that get timed."""

    def put(function) -> list:
        timed = []

        def times(contender, device, names):
            timed.append(triton_planes.configs.candidates)
            return dict.fromkeys(names, 0.5)

        impl = Impl("triton_planes", SimpleNamespace(rdb=function), ("cpu",), (torch.float32,), True, "for tests")
        monkeypatch.setitem(IMPLS, "triton_planes", impl)
        candidates = {"layer": ({"A": 1}, {"A": 2}), "reduce": ({"B": 3},)}
        monkeypatch.setattr(triton_planes, "configs", KernelConfigs(candidates))
        monkeypatch.setattr(kernels, "kernel_times", times)
        return timed

    return put


def test_every_configuration_of_a_kernel_is_timed_once(bench, planes):
    timed = planes(naive.rdb)
    kernels.triton(bench, TINY, 1)
    assert timed == [{"layer": ({"A": 1},), "reduce": ({"B": 3},)}, {"layer": ({"A": 2},), "reduce": ({"B": 3},)}]
    recipes = ["triton_planes layer: A 1", "triton_planes reduce: B 3", "triton_planes layer: A 2"]
    assert [row.recipe for row in bench.results.rows] == recipes
    assert [row.gflops is None for row in bench.results.rows] == [False, True, False]  # `reduce` multiplies nothing


def test_a_wrong_configuration_is_not_timed(bench, planes):
    timed = planes(lambda *arguments: 1.03 * naive.rdb(*arguments))
    kernels.triton(bench, TINY, 1)
    assert timed == bench.results.rows == []
    assert ["configuration 0" in bench.failures[0], "configuration 1" in bench.failures[1]] == [True, True]


def test_a_configuration_that_cannot_be_built_is_named_and_the_next_is_tried(bench, planes):
    def unbuilt(*arguments):
        raise UserError("its kernel layer cannot be built")

    timed = planes(unbuilt)
    kernels.triton(bench, TINY, 1)
    assert timed == bench.results.rows == []
    assert bench.failures == [f"kernels, configuration {i}: its kernel layer cannot be built" for i in range(2)]


@pytest.mark.parametrize("factor", [1.0, 1.03])
def test_the_kernels_of_hopper_are_timed_if_they_are_right(factor, bench, monkeypatch):
    function = SimpleNamespace(rdb=lambda *arguments: factor * naive.rdb(*arguments))
    monkeypatch.setitem(IMPLS, "hopper", Impl("hopper", function, ("cpu",), (torch.float32,), True, "for tests"))
    monkeypatch.setattr(kernels, "kernel_times", lambda contender, device, names: dict.fromkeys(names, 0.5))
    kernels.impls(bench, TINY, 1)  # triton_planes cannot run here
    names = ["layer", "residual", "gradient", "layer_weights", "fusion_weights"]
    assert [row.recipe for row in bench.results.rows] == [f"hopper {name}" for name in names if factor == 1]
    assert len(bench.failures) == (factor != 1)


@pytest.mark.parametrize("factor", [1.0, 1.03])
def test_the_last_convolution_is_timed_against_pytorchs_if_it_is_right(factor, bench, monkeypatch):
    monkeypatch.setattr(output_conv, "missing", lambda device: None)
    monkeypatch.setattr(output_conv, "output_conv", lambda x, w, b: factor * F.conv2d(x.float(), w, b, padding=1))
    kernels.tail(bench, TINY, 1)
    names = [(name, dtype) for dtype in ("float16", "bfloat16") for name in ("stock", "output_conv") if factor == 1]
    assert [(row.recipe, row.dtype) for row in bench.results.rows] == names
    assert all(row.vs_stock > 0 for row in bench.results.rows)
    assert bench.failures == ["output_conv: the output is wrong by 0.03"] * 2 * (factor != 1)


def test_the_last_convolution_needs_a_card_and_triton(bench, monkeypatch):
    monkeypatch.setattr(output_conv, "missing", lambda device: "needs the package triton")
    with pytest.raises(UserError, match="output_conv needs the package triton"):
        kernels.tail(bench, TINY, 1)


def test_times_of_kernels_are_those_of_one_run():
    comparison = rdb.comparison(True, TINY, (1, 8, 8), CPU, torch.float32)
    contender = next(entry for entry in comparison.entries if entry.recipe == "impl naive").build()
    began = time.perf_counter()
    times = kernels.kernel_times(contender, CPU, ["aten::convolution_backward", "aten::cat"])
    assert 0 < sum(times.values()) < (time.perf_counter() - began) / kernels.RUNS
    with pytest.raises(RuntimeError, match="no kernel layer"):
        kernels.kernel_times(contender, CPU, ["layer"])


def test_kernels_of_a_training_run_compute_three_times_the_forward_pass():
    for flop in (kernels.kernel_flop, kernels.hopper_flop):
        assert sum(flop(TINY, 3).values()) == 3 * 2 * 3 * 32 * 32 * TINY.block_macs
