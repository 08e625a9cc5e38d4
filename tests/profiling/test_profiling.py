"""profiling/: what is counted, what is refused, and what the files hold."""

from __future__ import annotations

import csv
import gzip
import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.ceilings import copy
from profiling import flame, loss_scale, loss_scale_edges, roofline, trace
from profiling.loss_scale_edges import Edges, Run
from profiling.roofline import Part, Roofline
from profiling.step import options, profiled_step
from rdn_fast import auto_level, rdb
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.rdb import Impl, naive

CPU = torch.device("cpu")
TINY = ModelConfig(num_features=6, growth_rate=4, num_blocks=2, num_layers=3)
CONFIGS = [TINY, ModelConfig(3, 6, 4, 2, 3, 5), ModelConfig(4, 6, 4, 2, 3)]


@pytest.fixture
def only_impl(monkeypatch):
    """only_impl(function): the RDB table holds nothing else, and the default precision is float32."""
    monkeypatch.setattr(auto_level, "auto_level", lambda *_: "O0")

    def put(function) -> None:
        impl = Impl("only", SimpleNamespace(rdb=function), ("cpu",), (torch.float32,), True, "for tests")
        monkeypatch.setattr(rdb, "IMPLS", {"only": impl})

    return put


@pytest.fixture
def ceilings(monkeypatch):
    """Ceilings that take no time to measure: 100 GFLOP/s and 10 GB/s."""
    rates = {torch.float32: ("stub", 100e9), torch.uint8: ("stub", 10e9)}
    monkeypatch.setattr(roofline, "ceilings", SimpleNamespace(contenders=lambda *_: {}, rates=lambda _: rates))


def some(impl: str = "<&>") -> Roofline:
    parts = [Part(name, times, 2e9, bytes, 0.05) for name, (times, _, bytes) in roofline.work(TINY, 1, 4).items()]
    conditions = dict.fromkeys(
        ("date", "commit", "command", "device", "torch", "rdn_fast", "model", "batch", "dtype", "rdb", "kind"), "<&>"
    )
    return Roofline(conditions | {"rdb": impl}, parts, ceiling=100.0, bandwidth=10.0)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_flop_are_those_that_torch_counts(config):
    model = RDN(config, "naive")
    with FlopCounterMode(display=False) as counted:
        model(torch.rand(3, 3, 32, 32))
    work = roofline.work(config, 3, 4)
    assert work["step"][1] - work["optimizer"][1] == 3 * counted.get_total_flops()
    assert work["optimizer"][1] == roofline.ADAM[0] * sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counted:
        model.rdbs[0](torch.rand(3, 6, 32, 32), rdb.IMPLS["naive"])
    assert work["RDB forward"][:2] == (2, counted.get_total_flops())
    assert work["RDB backward"][:2] == (2, 2 * counted.get_total_flops())


@pytest.mark.parametrize("size", [4, 2])
def test_bytes_of_a_block_are_its_maps_and_parameters_once(size):
    model, pixels = RDN(TINY), 3 * 32 * 32
    parameters = 4 * sum(parameter.numel() for parameter in model.rdbs[0].parameters())
    work = roofline.work(TINY, 3, size)
    assert work["RDB forward"][2] == pixels * size * (6 + 3 * 4 + 6) + parameters  # x, the layers' maps, y
    assert (
        work["RDB backward"][2] == pixels * size * (6 + 3 * 4 + 6 + 6) + 2 * parameters
    )  # those, of y its gradient, and that of x
    assert work["step"][2] == sum(times * bytes for name, (times, _, bytes) in work.items() if name != "step")


def test_bound_is_the_lower_of_both_ceilings():
    low, high = (Part("p", 1, flop, 1e6, 1.0) for flop in (5e6, 50e6))
    assert some().bound(low) == 50
    assert some().bound(high) == 100


@pytest.mark.usefixtures("ceilings")
def test_every_part_is_timed(only_impl):
    only_impl(naive.rdb)
    measured = roofline.measure(TINY, 1, CPU, rounds=1)
    assert [part.name for part in measured.parts] == [
        "head",
        "RDB forward",
        "RDB backward",
        "GFF",
        "tail",
        "optimizer",
        "step",
    ]
    *parts, step = measured.parts
    assert all(part.seconds > 0 for part in measured.parts)
    assert all(part.seconds < step.seconds for part in parts)
    assert (measured.ceiling, measured.bandwidth, measured.winograd) == (100, 10, False)
    assert measured.conditions["rdb"] == "only"
    assert f"{step.flop / step.seconds / 1e9:8.1f}" in roofline.table(measured).splitlines()[-2]


@pytest.mark.usefixtures("ceilings")
def test_a_wrong_step_is_not_timed(only_impl, monkeypatch, capsys):
    only_impl(lambda *arguments: 1.03 * naive.rdb(*arguments))
    monkeypatch.setattr(roofline, "RDN_B", TINY)
    assert roofline.main(["--device", "cpu", "--batch-size", "1"]) == 1
    assert "relative error" in capsys.readouterr().err


def test_picture_and_table_hold_what_was_measured(tmp_path):
    measured = some("winograd")
    for name in ("a.svg", "b.svg"):
        roofline.write(measured, tmp_path / name)
    picture = (tmp_path / "a.svg").read_bytes()
    assert picture == (tmp_path / "b.svg").read_bytes()
    assert b"F(4x4, 3x3): 4 times that, 400 GFLOP/s" in picture
    assert b"GFF: 40 GFLOP/s" in picture
    assert b"F(4x4" not in _drawn(some(), tmp_path)
    rows = list(csv.DictReader((tmp_path / "a.csv").open(encoding="utf-8")))
    assert [row["name"] for row in rows] == [part.name for part in measured.parts]
    assert {(row["device"], row["gflops"], row["ceiling_gflops"]) for row in rows} == {("<&>", "40", "100")}
    assert roofline.read(tmp_path / "a.csv") == measured


def _drawn(measured, folder) -> bytes:
    roofline.draw(measured, folder / "c.svg")
    return (folder / "c.svg").read_bytes()


def test_copy_copies_all_bytes():
    ceiling, contender = copy(CPU, 4096)
    (source,) = contender.fresh()
    assert torch.equal(contender.run(source), source)
    assert ceiling.work == 8192


def test_trace_holds_the_step(tmp_path, only_impl):
    only_impl(naive.rdb)
    kernels = trace.trace(TINY, 1, CPU, tmp_path / "new")
    calls = {kernel.name: kernel.calls for kernel in kernels}
    assert calls["aten::convolution_backward"] == 2 * (3 + 1) + 6  # of blocks; of sfe1, sfe2, gff, upscale and output
    assert [kernel.ms for kernel in kernels] == sorted((kernel.ms for kernel in kernels), reverse=True)
    with gzip.open(tmp_path / "new/trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert calls.keys() <= names
    rows = list(csv.DictReader((tmp_path / "new/kernels.csv").open(encoding="utf-8")))
    assert {row["name"]: int(row["calls"]) for row in rows} == calls
    shares = [float(share) for share in re.findall(r"([\d.]+)%", trace.table(kernels))]
    assert len(shares) == trace.TOP
    assert sum(shares) <= 100.5


@pytest.mark.parametrize(("level", "dtype"), [("O0", torch.float32), ("O1", torch.bfloat16)])
def test_the_profiled_step_is_that_of_training_at_its_default_precision(monkeypatch, level, dtype):
    monkeypatch.setattr(auto_level, "auto_level", lambda *_: level)
    recipe, step = profiled_step(TINY, 2, CPU)
    assert (step.run, recipe.dtype) == (recipe.step, dtype)
    assert [x.shape for x in step.fresh()] == [(2, 3, 32, 32), (2, 3, 64, 64)]


def test_what_cannot_be_is_a_users_error(capsys):
    with pytest.raises(UserError, match="--batch-size 0"):
        options(None, ["--batch-size", "0"])
    for tool in (trace, roofline, flame, loss_scale):
        assert tool.main(["--device", "abacus"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_flame_graph_shows_the_training_loop(tmp_path):
    try:
        flame.flame("demo", 2, CPU, tmp_path / "new" / "flame.svg")
    except flame.CannotSample as reason:
        if "ermission" not in str(reason):
            raise
        pytest.skip(str(reason))
    assert "_step (rdn_fast/training/run.py" in (tmp_path / "new" / "flame.svg").read_text()


def test_without_py_spy_flame_says_so(monkeypatch, capsys):
    monkeypatch.setattr(flame.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(flame, "resolve_impl", lambda *_, **__: "naive")
    assert flame.main(["--device", "cpu"]) == 1
    assert re.fullmatch("flame: error: needs py-spy: .*\n", capsys.readouterr().err)


def test_a_run_that_fails_leaves_no_flame_graph(tmp_path, monkeypatch):
    spy = tmp_path / "py-spy"
    spy.write_text("#!/bin/sh\necho some >&2\necho Permission denied >&2\nexit 7\n")
    spy.chmod(0o755)
    monkeypatch.setattr(flame.shutil, "which", lambda *_, **__: str(spy))
    with pytest.raises(flame.CannotSample, match=r"^py-spy ended with 7: Permission denied$"):
        flame.flame("demo", 2, CPU, tmp_path / "flame.svg")
    assert not (tmp_path / "flame.svg").exists()


def of_float32(loss: float, seed: int = 1, **more) -> Run:
    return Run("O0", "float32", None, False, seed, 300, loss=loss, psnr_y=30.0, curve="0.2 0.1", **more)


def of_fp16(exponent: int, loss: float, skipped: int = 0, tuned: bool = False) -> Run:
    return Run(
        "O1",
        "float16",
        exponent,
        tuned,
        1,
        300,
        lost=0.5,
        loss=loss,
        deviation=0.01,
        psnr_y=30.0,
        skipped=skipped,
        last_exponent=exponent,
        curve="0.3 nan",
    )


FLOAT32 = [of_float32(0.10), of_float32(0.13, 2), of_float32(0.11, 3)]  # 0.13 is the highest that does not hurt
GRADIENTS = [of_float32(0.5, schedule="step", largest_o1=value, largest_o2=1.0) for value in (2.0, 5.0, 1.0)]


@pytest.mark.parametrize(
    ("runs", "found", "next_ones"),
    [
        ([of_fp16(0, 0.12), of_fp16(8, 0.13)], Edges(None, None), []),
        ([of_fp16(-8, 0.14), of_fp16(0, 0.12), of_fp16(8, 0.1), of_fp16(16, 0.5, skipped=9)], Edges(-8, 16), [-4, 12]),
        (
            [
                of_fp16(-8, 0.9),
                of_fp16(-4, float("nan")),
                of_fp16(-3, 0.1),
                of_fp16(15, 0.1),
                of_fp16(16, 0.1, skipped=1),
            ],
            Edges(-4, 16),
            [],
        ),
        ([of_fp16(16, 0.1, skipped=1), of_fp16(0, 0.9)], Edges(0, 16), []),
    ],
)
def test_edges_of_the_loss_scale_and_where_to_look_next(runs, found, next_ones):
    assert loss_scale_edges.edges(FLOAT32 + GRADIENTS + runs, "O1") == found
    assert loss_scale_edges.between(FLOAT32 + GRADIENTS + runs, "O1") == next_ones


def test_growth_is_that_of_the_largest_gradient():
    assert loss_scale_edges.growth(FLOAT32 + GRADIENTS, "O1") == 2.5
    assert loss_scale_edges.growth(FLOAT32 + GRADIENTS, "O2") == 1.0


def test_picture_and_table_hold_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale_edges, "LEVELS", ("O1",))
    low = [of_fp16(-8, 0.14), of_fp16(0, 0.12, tuned=True), of_fp16(16, 0.5, skipped=9)]
    runs = FLOAT32 + GRADIENTS + low
    conditions = dict.fromkeys(
        ("date", "commit", "command", "device", "torch", "rdn_fast", "model", "patch", "batch", "kind"), "<&>"
    )
    for name in ("a.svg", "b.svg"):
        loss_scale_edges.write(runs, conditions, tmp_path / name)
    picture = (tmp_path / "a.svg").read_bytes()
    assert picture == (tmp_path / "b.svg").read_bytes()
    assert b"O1 at" in picture
    rows = list(csv.DictReader((tmp_path / "a.csv").open(encoding="utf-8")))
    assert [row["exponent"] for row in rows] == [""] * 6 + ["-8", "0", "16"]
    assert {row["device"] for row in rows} == {"<&>"}
    assert loss_scale_edges.read(tmp_path / "a.csv") == (runs, conditions)
    words = loss_scale_edges.table(runs)
    lost = "(50.0% of the first batches' gradients are lost)"
    assert f"underflow hurts at 2^-8 and below {lost}, overflow begins at 2^16" in words
    assert "grew 2.50 times" in words
    assert "tuned 2^0: loss 0.12000" in words


@pytest.mark.slow
def test_scales_are_trained_at_until_the_edges_are_found(tmp_path, monkeypatch, capsys):
    pytest.importorskip("skimage")
    changes = {
        "STEPS": 6,
        "LAST": 3,
        "POINT": 2,
        "SEEDS": (123, 1),
        "COARSE": (22,),
        "ALONG": (0, 2),
        "LEVELS": ("O2",),
    }
    for name, value in (changes | {"SHOWN": "O2", "PICTURE": tmp_path / "loss_scale.svg"}).items():
        for module in (loss_scale, loss_scale_edges):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    assert loss_scale.main(["--device", "cpu"]) == 0
    rows = list(csv.DictReader((tmp_path / "loss_scale.csv").open(encoding="utf-8")))
    skipped = {int(row["exponent"]): int(row["skipped"]) for row in rows if row["level"] == "O2"}
    over = min(exponent for exponent, count in skipped.items() if count)
    assert skipped[over - 1] == 0
    (tuned,) = (row for row in rows if row["tuned"] == "True")
    assert int(tuned["exponent"]) < over
    assert float(tuned["deviation"]) < 0.05
    assert f"overflow begins at 2^{over}" in capsys.readouterr().out
    assert [row["steps"] for row in rows if row["largest_o2"]] == ["0", "2"]
