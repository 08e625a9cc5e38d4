"""The block's impls on the simulated npu: contiguous tensors, in float32, bf16 and fp16."""

import sys

import pytest
import torch
import torch_npu  # noqa: F401
from runs import TINY, make_data
from test_rdb import SHAPES, block, check, in_float64, problem, solve

from bench.parity import assert_as_good_as_naive
from rdn_fast import devices
from rdn_fast.cli import main
from rdn_fast.errors import UserError
from rdn_fast.rdb import FLOATS, IMPLS, NO_BF16, able, naive, select
from rdn_fast.rdb import torchair as torchair_impl

NPU = torch.device("npu", 0)
TORCHAIR = """
from pathlib import Path

class CompilerConfig:
    pass

def get_npu_backend(*, compiler_config):
    assert isinstance(compiler_config, CompilerConfig)

    def run_as_it_is(graph, inputs):
        with Path(__file__).with_name("graphs").open("a") as file:
            print(len(inputs), file=file)
        return graph.forward

    return run_as_it_is
"""


@pytest.fixture
def torchair(tmp_path, monkeypatch):
    """Provide a package torchair that runs graphs as they are. Return the file to which it writes a line for each."""
    (tmp_path / "torchair.py").write_text(TORCHAIR)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "graphs"
    sys.modules.pop("torchair", None)
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _forget_package():
    torchair_impl.package.clear()


def test_the_memory_format_is_contiguous_and_these_impls_can_run():
    assert devices.memory_format(NPU) is torch.contiguous_format
    here = [impl for impl in IMPLS.values() if "npu" in impl.devices]
    assert [impl.name for impl in here] == ["naive", "summed", "sliced", "torchair", "npu_conv"]
    assert all(set(impl.dtypes) >= set(FLOATS) for impl in here if impl.name not in ("summed", "npu_conv"))
    assert IMPLS["summed"].dtypes == NO_BF16
    assert [impl.name for impl in here if impl.trains] == ["naive", "summed", "sliced", "npu_conv"]


def test_npu_conv_is_refused_on_a_card_that_its_compiler_does_not_know():
    reason = "runs on Ascend A2 \\(910B1 to B4\\) and A3 cards only: the compiler has no target for .*simulated"
    with pytest.raises(
        UserError, match=rf"--rdb npu_conv {reason}.*; on npu in float16 can run: naive, summed, sliced"
    ):
        select("npu_conv", NPU, torch.float16, training=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in ("naive", "sliced", "summed") for dtype in FLOATS if dtype in IMPLS[name].dtypes],
    ids=str,
)
def test_output_and_gradients_are_as_good_as_naives(name, dtype, shape):
    """Judge naive on the npu by naive on the CPU."""
    for seed in range(2):
        if name != "naive":
            check(IMPLS[name], torch.contiguous_format, shape, dtype, seed)
            continue
        arguments, upstream = problem(shape, dtype, seed)
        oracle, plain = solve(block, *in_float64(arguments, upstream)), solve(naive.rdb, arguments, upstream)
        for part, result in solve(naive.rdb, arguments, upstream, device=NPU).items():
            assert (result.device, result.dtype) == (NPU, dtype), part
            what = f"naive, {part}, shape {shape}, seed {seed}"
            assert_as_good_as_naive(result, oracle[part], plain[part], dtype, what)


def test_the_graph_gives_naives_numbers_for_pictures_of_all_sizes(torchair):
    impl = select("torchair", NPU, torch.float32, training=False)
    with torch.inference_mode():
        for dtype in FLOATS:
            for size in ((5, 7), (9, 4), (16, 16)):
                arguments, _ = problem((1, 18, 13, 2, *size), dtype, 0)
                y, plain = (
                    solve(function, arguments, None, trains=False, device=NPU)["y"]
                    for function in (impl.module.rdb, naive.rdb)
                )
                assert torch.equal(y, plain), (dtype, size)
    graphs = torchair.read_text().splitlines()
    assert len(graphs) == len(FLOATS), "one graph for each dtype"


def test_the_graph_does_not_train(torchair):
    assert "torchair" in [impl.name for impl in able(NPU, torch.float16, training=False)]
    assert "torchair" not in [impl.name for impl in able(NPU, torch.float16, training=True)]
    with pytest.raises(UserError, match="--rdb torchair has no backward pass"):
        select("torchair", NPU, torch.float16, training=True)


def test_without_the_package_it_is_left_out():
    assert "torchair" not in [impl.name for impl in able(NPU, torch.float32, training=False)]
    reason = "needs the package torchair, whose import fails: No module named 'torchair'"
    with pytest.raises(UserError, match=rf"--rdb torchair {reason}; .*naive, summed, sliced$"):
        select("torchair", NPU, torch.float32, training=False)


def test_a_package_that_breaks_is_left_out(torchair):
    torchair.with_name("torchair.py").write_text("raise AssertionError('protobuf is too old')")
    assert torchair_impl.missing() == "needs the package torchair, whose import fails: protobuf is too old"


def test_naming_it_for_training_is_one_line(capsys, tmp_path):
    paths = ("--data-path", make_data(tmp_path / "data"), "--outputs-dir", tmp_path / "out")
    flags = ("train", *paths, *TINY, "--opt-level", "O1", "--device", "npu", "--rdb", "torchair")
    assert main([str(flag) for flag in flags]) == 2
    err = capsys.readouterr().err
    reason = "--rdb torchair has no backward pass; on npu in float16 can run: naive, summed, sliced"
    assert err.startswith(f"rdn-fast: error: {reason}")
    assert err.count("\n") == 1
