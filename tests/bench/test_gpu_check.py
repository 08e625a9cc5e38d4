"""`make gpu-check`, as far as a machine without a GPU can tell: the order of its parts, their limits, and their measurements on a CPU."""

from __future__ import annotations

import functools
import io
import time
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from runs import ROOT
from torch.utils.flop_counter import FlopCounterMode

from bench import cases, gpu_check, gpu_parts, measure
from bench.gpu_check import Part, check
from bench.measure import Bench
from rdn_fast.config import ModelConfig
from rdn_fast.rdb import IMPLS, Impl, able, naive, triton_planes

CPU = torch.device("cpu")
TINY = ModelConfig(num_features=6, growth_rate=4, num_blocks=2, num_layers=2)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A run on the CPU whose ceilings cost no time."""
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(Bench, "ceilings", lambda self: self._ceilings.update(float32=100.0))
    return Bench("gpu-test", CPU, "naive")


def part(name: str, program: str, least: float = 0, most: float = 60) -> Part:
    return Part(name, ("-c", program), least, most)


def test_parts_run_in_turn_after_failures_too():
    log = io.StringIO()
    parts = (
        part("huge", "print('never')", least=1000),
        part("two", "print('first')"),
        part("three", "raise SystemExit(3)"),
        part("four", "print('last')"),
    )
    assert check(parts, 60, log) == 1
    words = log.getvalue()
    assert "\nnever\n" not in words
    found = [
        words.index(word)
        for word in (
            "huge: not measured",
            "\nfirst\n",
            "three: FAILED with 3",
            "\nlast\n",
            "2 of 4 parts done; not: huge, three",
        )
    ]
    assert found == sorted(found)


def test_all_done_is_success():
    assert check((part("one", "pass"),), 60, io.StringIO()) == 0


def test_what_takes_too_long_is_stopped_with_its_children_after_its_last_words():
    log = io.StringIO()
    program = "import subprocess\ntry: subprocess.run(['sleep', '300'])\nexcept KeyboardInterrupt: print('last words')"
    began = time.monotonic()
    assert check((part("slow", program, most=3), part("next", "print('went on')")), 60, log) == 1
    assert time.monotonic() - began < 200  # a child that lived would hold the pipe open
    words = log.getvalue()
    assert words.index("\nlast words\n") < words.index("slow: STOPPED after 3 s") < words.index("\nwent on\n")


@pytest.mark.slow
def test_what_does_not_stop_is_killed(monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 1)
    log = io.StringIO()
    assert (
        check(
            (
                part(
                    "deaf", "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(300)", most=2
                ),
            ),
            60,
            log,
        )
        == 1
    )
    assert "deaf: STOPPED after 2 s" in log.getvalue()


def test_what_later_parts_need_is_kept_for_them():
    log = io.StringIO()
    check((part("greedy", "import time; time.sleep(300)"), part("next", "pass", least=100)), 102, log)
    assert "greedy: STOPPED after 2 s" in log.getvalue()


def test_without_a_gpu_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.devices, "count", lambda kind: 0)
    assert gpu_check.main() == 2
    assert capsys.readouterr().err.startswith("gpu-check: error: no CUDA GPU")


def test_parts_name_what_exists_and_fit_into_the_budget():
    assert sum(part.least for part in gpu_check.PARTS) < gpu_check.BUDGET < 540 - gpu_check.GRACE
    for one in gpu_check.PARTS:
        assert one.least < one.most
        assert one.command[0] == "-m"
        assert find_spec(one.command[1])
        for word in one.command:
            assert not word.startswith("tests/") or (ROOT / word).is_file()


@pytest.mark.parametrize("kind", ["forward", "data gradient", "weight gradient"])
def test_flop_of_a_convolution_are_those_that_torch_counts(kind):
    contender = gpu_parts._Convolution(kind, 5, 3, 2, CPU, torch.float32)
    contender.fresh()
    with FlopCounterMode(display=False) as counted:
        contender.run()
    assert counted.get_total_flops() == contender.flop


def test_every_layer_is_measured(bench, monkeypatch):
    monkeypatch.setattr(gpu_parts, "bandwidth", lambda device: ("copy", gpu_parts.Times([1.0]), 7.0))
    gpu_parts.convolutions(bench, TINY, 2, [torch.float32])
    copy, *rows = bench.results.rows
    assert copy.note == "7 GB/s"
    assert [(row.case, row.shape) for row in rows] == [
        (f"convolution {kind}", f"{channels} -> 4, 32x32")
        for channels in (6, 10)
        for kind in ("forward", "data gradient", "weight gradient")
    ]
    assert all(row.gflops > 0 and row.ceiling_share == pytest.approx(row.gflops / 100) for row in rows)
    assert len(bench.results.path.read_text().splitlines()) == 1 + len(bench.results.rows)


def test_every_row_is_measured_that_can_run(bench, monkeypatch):
    monkeypatch.setattr(measure, "interleave", functools.partial(measure.interleave, span=0.001))
    gpu_parts.rows(bench, TINY, 1)
    assert bench.failures == []
    names = ["reference", "stock", *(f"row {row.name}" for row in able(CPU, torch.float32, True))]
    assert [(row.case, row.recipe) for row in bench.results.rows] == [
        (case, name) for case in ("RDB training", "RDB forward") for name in names
    ]


def test_kernels_need_a_card(bench, capsys):
    assert gpu_parts.main(["kernels", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "gpu_parts: error: row triton_planes runs on cuda only\n"


@pytest.fixture
def planes(monkeypatch):
    """planes(function): the row triton_planes is this function on the CPU; the list that it gives gets the configurations that were timed."""

    def put(function) -> list:
        timed = []

        def times(contender, device, names):
            timed.append(triton_planes.CONFIGS)
            return dict.fromkeys(names, 0.5)

        row = Impl("triton_planes", SimpleNamespace(rdb=function), ("cpu",), (torch.float32,), "any", True, "for tests")
        monkeypatch.setitem(IMPLS, "triton_planes", row)
        monkeypatch.setattr(triton_planes, "CONFIGS", {"layer": ({"A": 1}, {"A": 2}), "fusion": ({"B": 3},)})
        monkeypatch.setattr(gpu_parts, "kernel_times", times)
        return timed

    return put


def test_every_configuration_of_a_kernel_is_timed_once(bench, planes):
    timed = planes(naive.rdb)
    gpu_parts.kernels(bench, TINY, 1)
    assert timed == [{"layer": ({"A": 1},), "fusion": ({"B": 3},)}, {"layer": ({"A": 2},), "fusion": ({"B": 3},)}]
    assert [(row.recipe, row.note) for row in bench.results.rows] == [
        ("triton_planes layer", "A 1"),
        ("triton_planes fusion", "B 3"),
        ("triton_planes layer", "A 2"),
    ]


def test_a_wrong_configuration_is_not_timed(bench, planes):
    timed = planes(lambda *arguments, out=None: 1.03 * naive.rdb(*arguments))
    gpu_parts.kernels(bench, TINY, 1)
    assert timed == bench.results.rows == []
    assert ["configuration 0" in bench.failures[0], "configuration 1" in bench.failures[1]] == [True, True]


def test_times_of_kernels_are_those_of_one_run():
    case = cases.block(True, TINY, (1, 8, 8), CPU, torch.float32)
    contender = next(entry for entry in case.entries if entry.recipe == "row naive").make()
    began = time.perf_counter()
    times = gpu_parts.kernel_times(contender, CPU, ["aten::convolution_backward", "aten::cat"])
    assert 0 < sum(times.values()) < (time.perf_counter() - began) / gpu_parts.RUNS
    with pytest.raises(RuntimeError, match="no kernel layer"):
        gpu_parts.kernel_times(contender, CPU, ["layer"])


def test_kernels_of_a_training_run_compute_three_times_the_forward_pass():
    assert sum(gpu_parts._kernel_flop(TINY, 3).values()) == 3 * 2 * 3 * 32 * 32 * TINY.block_macs


@pytest.mark.slow
def test_training_is_a_real_run(bench):
    gpu_parts.training(bench, "demo", 2, 2)
    (row,) = bench.results.rows
    assert (row.case, row.recipe, row.note) == ("long run", "rdn_fast", "2 steps")
    assert row.seconds == pytest.approx(2 / row.images_s, rel=1e-4)
    assert row.seed_images_s >= row.images_s > 0
