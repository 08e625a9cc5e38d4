"""The benchmarks themselves: recipes that compute the same, checks that notice faults, clocks, gates, rows and what is rendered from them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import multiprocessing
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from tolerance import assert_same_in_float64

from bench import (
    baseline,
    cases,
    end_to_end,
    figures,
    gates,
    loading,
    loop,
    measure,
    memory,
    report,
    results,
    run,
    timing,
)
from bench.ours import Ours
from bench.parity import Problem, solve_module
from rdn_fast import rdb
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.data.h5 import PairedH5
from rdn_fast.model import RDN
from rdn_fast.rdb import Impl, naive, winograd

CPU = torch.device("cpu")
TINY = ModelConfig(
    num_features=24, growth_rate=16, num_blocks=2, num_layers=2
)  # enough channels for the errors of a gradient to average


@pytest.fixture(autouse=True)
def _fresh_inputs(seed):
    torch.manual_seed(seed)


@pytest.fixture
def out(tmp_path, monkeypatch):
    """Where the rows of a run go."""
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return tmp_path / "out"


# ---- recipes


@pytest.mark.parametrize(
    "config",
    [TINY, dataclasses.replace(TINY, scale=4), dataclasses.replace(TINY, scale=3, upsample_channels=5)],
    ids=str,
)
def test_the_baselines_model_is_rdn_fasts_in_float64(config):
    model = RDN(config, "naive").double()
    plain = baseline.RDN(config).double()
    plain.load_state_dict(model.state_dict())  # strict: the same names and shapes
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    upstream = torch.randn(2, 3, 7 * config.scale, 5 * config.scale, dtype=torch.float64)
    expected = solve_module(model, x, upstream)
    for name, result in solve_module(plain, x, upstream).items():
        assert_same_in_float64(result, expected[name], name)


def test_the_recipes_train_alike():
    recipes = [
        baseline.Reference(TINY, CPU),
        *(
            baseline.Stock(TINY, CPU, torch.float32, **options)
            for _, options in baseline.variants(CPU, torch.float32, True)
        ),
        *(Ours(TINY, CPU, torch.float32, row.name) for row in rdb.able(CPU, torch.float32, True)),
    ]
    state = baseline.RDN(TINY).state_dict()
    batches = [(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)) for _ in range(4)]
    for recipe in recipes:
        recipe.model.load_state_dict(state)
        for batch in batches:
            recipe.step(*(tensor.contiguous(memory_format=recipe.memory_format) for tensor in batch))
    assert {recipe.memory_format for recipe in recipes[1:3]} == {torch.channels_last, torch.contiguous_format}
    first = recipes[0].model.state_dict()
    for recipe in recipes[1:]:
        for name, value in recipe.model.state_dict().items():
            torch.testing.assert_close(
                value, first[name], rtol=0, atol=0.1 * baseline.LR
            )  # four steps moved each weight by up to 4 LR
    assert any((value - state[name]).abs().max() > 2 * baseline.LR for name, value in first.items())


# ---- parity


def test_the_problem_keeps_relus_from_their_kink():
    module = baseline.RDB(6, 4, 3)
    problem = Problem(module, torch.randn(2, 6, 9, 7), torch.bfloat16)
    distances = []
    hooks = [
        layer.conv.register_forward_hook(lambda *arguments: distances.append(arguments[2].abs().min().item()))
        for layer in module.layers
    ]
    module.load_state_dict(problem.state)
    module(problem.x.double())
    for hook in hooks:
        hook.remove()
    assert len(distances) == 3
    assert min(distances) > 1e-3  # among 126 values of each channel, a hundredth of that would be common
    assert problem.x.dtype == problem.state["lff.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("training", [True, False])
def test_what_the_problem_says_of_copies_is_what_the_oracle_computes(training):
    module = baseline.RDB(6, 4, 3)
    problem = Problem(module, torch.randn(2, 6, 9, 7), torch.float32, batch=6, training=training)
    expected = solve_module(module, problem.x.double(), problem.upstream.double())
    assert problem.x.shape == problem.upstream.shape == (6, 6, 9, 7)
    assert len(problem.x.unique(dim=0)) == 2
    assert problem.oracle.keys() == (expected.keys() if training else {"output"})
    for name, value in problem.oracle.items():
        assert_same_in_float64(value, expected[name], name)


def test_the_problem_has_whole_copies_only():
    with pytest.raises(ValueError, match="batch 3 is no multiple of 2 images"):
        Problem(baseline.RDB(6, 4, 3), torch.randn(2, 6, 9, 7), torch.float32, batch=3)


def three_percent_off(x, *rest, out=None):
    return 1.03 * naive.rdb(x, *rest)


def gradient_lost(x, conv_w, conv_b, fuse_w, fuse_b, *, out=None):
    return naive.rdb(x, conv_w, conv_b, fuse_w, fuse_b.detach() + 0 * fuse_b)


def unwritten(x, *rest, out=None):
    y = naive.rdb(x, *rest)
    hole = torch.ones_like(y)
    hole[-1, -1, -1, -1] = float("nan")
    return y * hole


def last_chunk_lost(x, *weights, out=None):
    """Computes in chunks of two images; the parameters' gradients miss those of the last one."""
    *chunks, last = x.split(2)
    if not chunks:
        return naive.rdb(x, *weights)
    detached = [
        [w.detach() for w in group] if isinstance(group, (list, tuple)) else group.detach() for group in weights
    ]
    return torch.cat([*(naive.rdb(chunk, *weights) for chunk in chunks), naive.rdb(last, *detached)])


def add_row(monkeypatch, function):
    """A row that any use of the table finds."""

    class Module:
        rdb = staticmethod(function)

    monkeypatch.setitem(
        rdb.IMPLS, "faulty", Impl("faulty", Module, ("cpu",), (torch.float32, torch.bfloat16), "any", True, "for tests")
    )


@pytest.fixture(params=[three_percent_off, gradient_lost, unwritten], ids=lambda fault: fault.__name__)
def faulty_row(request, monkeypatch):
    add_row(monkeypatch, request.param)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(cases.block, True, TINY, (2, 7, 5), CPU, torch.float32),
        functools.partial(cases.block, True, TINY, (2, 7, 5), CPU, torch.bfloat16),
        functools.partial(cases.training_step, TINY, 1, CPU, [torch.float32], "naive", True),
    ],
    ids=["block float32", "block bfloat16", "training step"],
)
def test_a_wrong_row_is_refused_and_the_right_ones_are_not(faulty_row, make):
    case = make()
    verdicts = {}
    for entry in case.entries:
        try:
            case.check(entry.make(), entry.recipe)
            verdicts[entry.recipe] = "right"
        except AssertionError as error:
            verdicts[entry.recipe] = str(error)
    assert "relative error" in verdicts.pop("row faulty")
    assert {"reference", "stock", "row naive"} <= verdicts.keys()
    assert set(verdicts.values()) == {"right"}


@pytest.mark.parametrize(
    "make",
    [
        lambda batch: cases.block(True, TINY, (batch, 7, 5), CPU, torch.float32),
        lambda batch: cases.training_step(TINY, batch, CPU, [torch.float32], "naive", rows=True),
    ],
    ids=["block", "training step"],
)
def test_the_timed_batch_is_what_is_checked(make, monkeypatch):
    add_row(monkeypatch, last_chunk_lost)
    for batch in (2, 8):
        case = make(batch)
        entry = next(entry for entry in case.entries if entry.recipe == "row faulty")
        if batch == 2:  # one chunk: right
            case.check(entry.make(), entry.recipe)
        else:
            with pytest.raises(AssertionError, match=r"row faulty, gradient of .*weight: relative error"):
                case.check(entry.make(), entry.recipe)


def test_what_is_wrong_gets_no_speed_and_fails_the_run(faulty_row, out, capsys):
    bench = measure.Bench("bench-test", CPU, "naive")
    bench.case(cases.block(True, TINY, (2, 7, 5), CPU, torch.float32), rounds=2)
    rows = {row.recipe: row for row in bench.results.rows}
    assert rows["row faulty"].kind == "not measured"
    assert rows["row faulty"].seconds is None
    assert "wrong" in rows["row faulty"].note
    assert rows["row naive"].gflops > 0
    assert rows["row naive"].rounds == 2
    assert rows["reference"].vs_reference == 1
    assert bench.conclude("1p", 1, 0.0) == 1
    assert "FAILED  RDB training, row faulty float32: wrong" in capsys.readouterr().out


def test_a_step_that_does_nothing_is_noticed(out):
    class Idle(Ours):
        def step(self, lr, hr):
            pass

    case = cases.training_step(TINY, 1, CPU, [torch.float32], "naive")
    make = lambda: cases._Model(Idle(TINY, CPU, torch.float32, "naive"), 1, 8, 8, 2, True)  # noqa: E731
    case.entries = [
        cases.Entry("reference", torch.float32, case.entries[0].make),
        cases.Entry("rdn_fast", torch.float32, make),
    ]
    bench = measure.Bench("bench-test", CPU, "naive")
    bench.case(case, rounds=1)
    assert bench.failures == ["training step, rdn_fast float32: wrong: the steps changed no weight"]
    assert [row.recipe for row in bench.results.rows if row.kind == "measured"] == ["reference"]


# ---- clocks


class Clock:
    """A contender whose runs take the seconds that it is told; the log says who did what."""

    def __init__(self, name, seconds, log, now):
        self.name, self.seconds, self.log, self.now = name, iter(seconds), log, now

    def fresh(self):
        self.log.append(f"fresh {self.name}")
        self.now[0] += 100  # is not on the clock

    def run(self):
        self.log.append(self.name)
        self.now[0] += next(self.seconds)


def test_contenders_are_timed_in_turn(monkeypatch):
    log, now = [], [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    a, b = Clock("a", [4.0, 2.0, 3.0], log, now), Clock("b", [1.0, 1.0, 3.0], log, now)
    times = timing.interleave({"a": a, "b": b}, CPU, rounds=3)
    assert log == ["fresh a", "a", "fresh b", "b"] * 3
    assert times["a"].rounds == [4, 2, 3]
    assert times["a"].median == 3
    assert times["b"].over(times["a"]) == 2  # of 4, 2 and 1 times; the ratio of the medians would be 3


def test_short_runs_are_repeated_within_one_reading(monkeypatch):
    log, now = [], [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    times = timing.interleave({"a": Clock("a", [0.25] + [0.125, 0.375] * 4, log, now)}, CPU, rounds=2, span=1.0)
    assert log.count("a") == 1 + 2 * 4
    assert log.count("fresh a") == 3
    assert times["a"].rounds == [0.25, 0.25]


# ---- rows, gates


def make_row(**values) -> results.Row:
    given = {
        "date": "2026-01-02T03:04:05",
        "commit": "abc",
        "command": "python -m bench.run 1p",
        "place": "cpu",
        "device": "Some CPU, 2 threads, AVX2",
        "threads": 2,
        "torch": "2.13.0",
        "rdn_fast": "0.1.0",
        "case": "training step",
        "recipe": "rdn_fast",
        "dtype": "float32",
        "precision": "default",
        "batch": 8,
        "shape": f"{gates.MODEL}, 32x32",
        "rounds": 3,
        "seconds": 2.0,
        "seconds_min": 1.5,
        "seconds_max": 4.0,
        "images_s": 4.0,
        "gflops": 300.0,
        "vs_reference": 2.5,
        "vs_stock": 1.5,
    }
    return results.Row(**given | values)


def test_rows_survive_the_file(out):
    file = results.Results("bench-test", CPU)
    given = {
        "case": "memory",
        "recipe": "rdn_fast",
        "dtype": "float32",
        "precision": "default",
        "batch": 16,
        "shape": 'a "quoted", shape',
    }
    row = file.add(**given, peak_mb=12.5, vs_naive=1 / 3, note="one\ntwo")
    assert results.read(file.path) == [row]  # flushed: the file is still open
    assert row.vs_naive == pytest.approx(1 / 3, rel=1e-5)
    assert row.seconds is None
    assert file.path.parent == out
    assert file.path.name.startswith("bench-test_")
    assert file.path.name.endswith(".csv")
    assert f"torch-{torch.__version__.replace('+', '-')}" in file.path.name
    file.path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"bench-test_.*other columns"):
        results.read(file.path)


def verdict(what: str, rows, place="cpu", command="1p", ranks=1) -> gates.Verdict:
    return next(v for v in gates.judge(rows, command, place, ranks) if v.gate.what.startswith(what))


@pytest.mark.parametrize(("ratio", "word"), [(2.39, "missed"), (2.4, "held"), (2.89, "held"), (2.9, "goal")])
def test_ratio_gates(ratio, word):
    assert verdict("CPU, training step, default", [make_row(vs_reference=ratio)]).word == word


@pytest.mark.parametrize(("share", "word"), [(0.41, "missed"), (0.40, "held"), (0.25, "goal")])
def test_memory_is_gated_from_above(share, word):
    assert verdict("memory", [make_row(case="memory", batch=16, vs_naive=share)]).word == word


def test_gates_look_at_their_own_rows():
    others = [
        make_row(recipe="row winograd"),
        make_row(case="inference"),
        make_row(batch=1),
        make_row(kind="not measured"),
        make_row(precision=""),
        make_row(shape="x2 D20 C6 G32 G0 64, 32x32"),
        make_row(vs_reference=None),
    ]
    assert verdict("CPU, training step, default", others).word == "not measured"
    assert verdict("CPU, training step, default", [*others, make_row()]).value == 2.5
    bf16 = make_row(dtype="bfloat16", precision="", vs_stock=1.09)
    assert verdict("CPU, training step, bf16", [make_row(), bf16], "cpu+bf16").value == 1.09
    assert verdict("CPU, training step, bf16", [make_row()], "cpu").word == "not this device"


@pytest.mark.parametrize(
    ("what", "row", "words"),
    [
        (
            "loader, patches/s",
            {"case": "loading", "batch": 64},
            {("vs_reference", 29.9): "missed", ("vs_reference", 30.0): "held", ("vs_reference", 60.0): "goal"},
        ),
        (
            "loader at one batch",
            {"case": "paced loading", "batch": 64},
            {("waited", 0.0101): "missed", ("waited", 0.01): "held"},
        ),
        (
            "opening",
            {"case": "opening", "batch": 0, "dtype": "uint8"},
            {("seconds", 1.01): "missed", ("seconds", 1.0): "held"},
        ),
    ],
)
def test_loaders_are_judged_on_every_device(what, row, words):
    rows = make_row(**row, precision="", shape="DIV2K-sized, 32x32")
    for (column, value), word in words.items():
        for place in ("cpu", "h100", "npu"):
            assert verdict(what, [dataclasses.replace(rows, **{column: value})], place).word == word
    assert (
        verdict(
            what, [dataclasses.replace(rows, recipe="rdn_fast resident", vs_reference=99.0, waited=0.0, seconds=0.1)]
        ).word
        == "not measured"
    )


def test_ascends_targets():
    card = make_row(case="end to end", batch=64, dtype="float16", place="npu", seed_images_s=543.0)
    assert verdict("one Ascend", [card], "npu").word == "missed"
    assert verdict("one Ascend", [dataclasses.replace(card, seed_images_s=544.0)], "npu").word == "held"
    assert verdict("one Ascend", [card], "cpu").word == "not this device"
    eight = make_row(
        case="end to end", batch=512, ranks=8, dtype="float16", place="npu", seed_images_s=4337.0, efficiency=0.996
    )
    alone = dataclasses.replace(eight, batch=64, ranks=1, efficiency=None, seed_images_s=544.0)
    assert verdict("eight Ascend cards, images", [alone, eight], "npu", "8p", 8).word == "held"
    assert verdict("eight Ascend cards, scaling", [alone, eight], "npu", "8p", 8).word == "missed"
    assert verdict("eight Ascend cards, scaling", [alone, eight], "npu", "8p", 2).word == "not this device"


@pytest.mark.parametrize(
    ("gflops", "device", "words"),
    [
        (116.0, "AMD EPYC, 2 threads, AVX2, family 25", "115 to 144 were seen"),
        (90.0, "AMD EPYC, 2 threads, AVX2, family 25", "MORE THAN 15% SHORT"),
        (116.0, "Some Xeon, 2 threads, AVX512, bf16, family 6", "MORE THAN 15% SHORT"),
        (116.0, "Some Xeon, 64 threads, AVX512, bf16, family 6", "no figure of such a machine"),
    ],
)
def test_baselines_are_held_against_what_was_seen(gflops, device, words):
    (line,) = gates.honesty([make_row(), make_row(recipe="reference", gflops=gflops, device=device)])
    assert words in line


def test_a_stock_slower_than_the_reference_is_named():
    def lines(*ratios):
        rows = [
            make_row(recipe=recipe, vs_reference=ratio)
            for recipe, ratio in zip(("stock", "stock NCHW"), ratios, strict=True)
        ]
        return [line for line in gates.honesty(rows) if "SLOWER" in line]

    (line,) = lines(0.97, 0.984)
    assert line.startswith("the strongest stock in float32, stock NCHW, is SLOWER than the reference at batch 8: 0.98x")
    assert not lines(0.97, 1.01)


def test_the_strongest_stock_of_a_run_goes_end_to_end(out):
    bench = measure.Bench("bench-test", CPU, "naive")
    step = {"case": "training step", "dtype": "float32", "precision": "", "batch": 8, "shape": f"{gates.MODEL}, 32x32"}
    bench.results.add(**step, recipe="stock", images_s=1.0)
    bench.results.add(**step, recipe="stock NCHW", images_s=1.02)
    assert bench._strongest_stock() == ("stock NCHW", "float32", {"contiguous": True})


def test_an_older_torch_cannot_tell_of_bf16(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not results.has_bf16(CPU)


def test_unsteady_rounds_are_named():
    (line,) = gates.unsteady(
        [
            make_row(seconds_min=1.0, seconds_max=1.29),
            make_row(recipe="stock", seconds_min=1.0, seconds_max=1.31),
            make_row(seconds=None),
        ]
    )
    assert line.startswith("training step, stock float32: rounds from 1 to 1.31 s")


def test_a_gate_that_is_missed_or_not_measured_fails_the_run(out, capsys):
    bench = measure.Bench("bench-test", CPU, "naive")
    shape = {
        "case": "end to end",
        "recipe": "rdn_fast",
        "dtype": "float32",
        "precision": "default",
        "batch": 2,
        "shape": f"{gates.MODEL}, 32x32",
    }
    bench.results.add(**shape, vs_reference=9.0)
    assert bench.conclude("8p", 2, 0.0) == 0  # no gate of this command is for a CPU
    assert "not this device  eight Ascend cards, images/s in the seed window: gate 4337" in capsys.readouterr().out
    bench.results.add(**shape | {"case": "training step", "batch": 8}, vs_reference=2.3, vs_stock=1.06)
    assert bench.conclude("1p", 1, 0.0) == 1
    printed = capsys.readouterr().out
    assert "MISSED           CPU, training step, default precision / reference (fp32): 2.3, gate 2.4" in printed
    assert "FAILED  memory of a training step / naive: not measured" in printed


def test_too_many_ranks_are_the_users_mistake(out, capsys):
    assert run.main(["8p", "--nproc", "9999", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench: error: --nproc 9999: ")
    assert error.count("\n") == 1


# ---- report

MARKED = (
    "before\n<!-- bench:gates -->\nold\n<!-- /bench -->\nbetween <!-- bench:speeds --><!-- /bench -->\n<!-- bench:figures --><!-- /bench -->\n"
    "<!-- bench:loading --><!-- /bench -->\nafter\n"
)


@pytest.mark.parametrize(("language", "words"), [("en", "not measured"), ("zh", "未测")])
def test_without_rows_everything_is_not_measured(language, words):
    text = report.render(MARKED, [], language, "bench/figures", {})
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count(words) == len(gates.GATES) + 3
    assert report.render(text, [], language, "bench/figures", {}) == text


def sample_run(**changes) -> list[results.Row]:
    return [
        make_row(case="ceiling", recipe="conv", batch=0, shape="", gflops=200.0, **changes),
        make_row(recipe="reference", precision="", gflops=120.0, **changes),
        make_row(**changes),
        make_row(recipe="row naive", precision="", gflops=121.0, **changes),
    ]


def test_tables_and_figures_show_the_newest_run_of_a_device():
    old, new = sample_run(), sample_run(date="2026-02-02T00:00:00")
    new[2] = dataclasses.replace(new[2], vs_reference=2.71, gflops=333.0)
    text = report.render(MARKED, [old, new], "en", "bench/figures", {})
    assert (
        "| CPU, training step, default precision / reference (fp32) | 2.4 | 2.9 | **2.71** | Some CPU, 2 threads, AVX2 |"
        in text
    )
    assert "| training step | 8 | **rdn_fast** | float32 | 4 | 333 |  | 2.71x | 1.50x |  |" in text
    assert text.count("**rdn_fast**") == 1
    assert "row naive" not in text  # that is for the figure
    ((name, figure),) = report.charts([old, new]).items()
    assert f"![GFLOP/s of the recipes](bench/figures/{name})" in text
    assert [bar.value for bar in figure.panels[0].bars] == [120, 333, 121]
    assert figure.panels[0].bars[1].least == pytest.approx(333 / 2)
    assert figure.panels[0].ceilings == {"float32": 200.0}
    assert figure.title == "rdn-b on Some CPU, 2 threads, AVX2"
    assert figure.panels[0].title == "training step, float32, batch 8, 32x32"


def loading_run() -> list[results.Row]:
    given = {
        "case": "loading",
        "precision": "",
        "batch": 64,
        "shape": "DIV2K-sized, 32x32",
        "gflops": None,
        "vs_stock": None,
    }
    slow = make_row(**given, recipe="reference 2 workers", images_s=1000.4, vs_reference=1.0)
    fast = make_row(**given, recipe="rdn_fast resident", images_s=61234.0, vs_reference=61.2)
    paced = make_row(**given | {"case": "paced loading"}, images_s=4266.0, vs_reference=None, waited=0.00123)
    return [slow, dataclasses.replace(slow, recipe="reference", note="2 workers"), fast, paced]


def test_loaders_have_a_table_and_a_figure_of_their_own():
    text = report.render(MARKED, [sample_run(), loading_run()], "en", "bench/figures", {})
    alone = report.render(MARKED, [sample_run()], "en", "bench/figures", {})
    assert text.split("<!-- bench:loading -->")[1].split("\n\n")[2:4] == [
        "\n".join(
            [
                "| case | recipe | patches/s | vs reference | time waited |",
                "| --- | --- | --- | --- | --- |",
                "| loading | reference (2 workers) | 1,000 | 1.00x |  |",
                "| loading | **rdn_fast resident** | 61,234 | 61.20x |  |",
                "| paced loading | **rdn_fast** | 4,266 |  | 0.12% |",
            ]
        ),
        "![patches/s of the loaders](bench/figures/loading_Some-CPU-2-threads-AVX2.svg)",
    ]
    for name in ("speeds", "figures"):
        block = f"<!-- bench:{name} -->.*?<!-- /bench -->"
        assert report.re.findall(block, text, report.re.DOTALL) == report.re.findall(block, alone, report.re.DOTALL)
    figure = report.charts([sample_run(), loading_run()])["loading_Some-CPU-2-threads-AVX2.svg"]
    assert [(bar.recipe, bar.value) for bar in figure.panels[0].bars] == [
        ("reference 2 workers", 1000.4),
        ("rdn_fast resident", 61234.0),
    ]
    assert figure.panels[0].unit.startswith("patches/s")
    assert "| 定速加载 | **rdn_fast** | 4,266 |  | 0.12% |" in report.render(
        MARKED, [loading_run()], "zh", "bench/figures", {}
    )


def test_a_missed_gate_is_shown_as_missed():
    rows = sample_run()
    rows[2] = dataclasses.replace(rows[2], vs_reference=1.2)
    assert "**1.2** (missed)" in report.gates_table([rows], "en")
    assert "**1.2** (未达到)" in report.gates_table([rows], "zh")


def test_unknown_markers_are_named():
    with pytest.raises(ValueError, match="bench:speed -->"):
        report.render("<!-- bench:speed --><!-- /bench -->", [], "en", "bench/figures", {})


def test_the_real_readmes_have_the_same_markers():
    found = {
        path.name: report.re.findall(r"<!-- (/?bench\S*) -->", path.read_text(encoding="utf-8"))
        for path in report.pages()
    }
    assert found["README.md"] == found["README.zh-CN.md"]
    assert {"bench:gates", "bench:speeds", "bench:figures", "bench:loading"} <= {
        name for names in found.values() for name in names
    }


def test_the_summary_names_the_reference_and_the_strongest_other():
    given = {"place": "cpu", "case": "inference", "batch": 1, "shape": f"{gates.MODEL}, 128x128"}
    slow = make_row(**given, recipe="reference", images_s=0.2, vs_reference=1.0)
    stock = make_row(**given, recipe="stock", images_s=0.22, vs_reference=1.1)
    other = make_row(**given, recipe="ONNX Runtime", images_s=0.24, vs_reference=1.2)
    ours = make_row(**given, images_s=0.53, vs_reference=2.64)
    naive = make_row(
        place="cpu", case="memory", recipe="naive", batch=16, seconds=None, images_s=None, peak_mb=4000.0, vs_naive=1.0
    )
    lean = dataclasses.replace(naive, recipe="rdn_fast", peak_mb=900.0, vs_naive=0.225)
    table = report.summary_table([[slow, stock, other, ours, naive, lean]], "en").splitlines()
    assert len(table) == 2 + 6
    line = "| inference, 128x128 | 1 | **0.53 /s** | 0.2 /s (2.64x) | ONNX Runtime: 0.24 /s (2.20x) | float32 | Some CPU, 2 threads, AVX2 |"
    assert line in table
    assert (
        "| memory of a training step | 16 | **900 MB** | naive: 4,000 MB (22%) |  | float32 | Some CPU, 2 threads, AVX2 |"
        in table
    )
    assert "| training step | 8 | not measured |  |  |  |  |" in table
    assert "| 训练步 | 8 | 未测 |  |  |  |  |" in report.summary_table([], "zh")


def test_figures_are_the_same_bytes_every_time(tmp_path):
    (figure,) = report.charts([sample_run()]).values()
    for name in ("a.svg", "b.svg"):
        figures.draw(tmp_path / name, figure)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert figures.is_current(tmp_path / "a.svg", figure)
    assert not figures.is_current(tmp_path / "a.svg", figure._replace(title="another"))
    assert not figures.is_current(tmp_path / "missing.svg", figure)


def test_report_check_fails_until_the_report_is_made(tmp_path, monkeypatch, capsys):
    bench = tmp_path / "bench"
    for name, path in {"HERE": bench, "RESULTS": bench / "results", "FIGURES": bench / "figures"}.items():
        monkeypatch.setattr(report, name, path)
    monkeypatch.setattr(report.trained, "FOLDER", tmp_path / "bench" / "trained")
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "README.zh-CN.md", "docs/benchmarks.md"):
        (tmp_path / name).write_text(MARKED, encoding="utf-8")
    report.RESULTS.mkdir(parents=True)
    monkeypatch.setenv("OUT", str(report.RESULTS))
    file = results.Results("bench-test", CPU)
    for row in sample_run():
        file.add(**{name: value for name, value in dataclasses.asdict(row).items() if name not in file._run})
    assert report.main(["--check"]) == 1
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0
    (svg,) = report.FIGURES.glob("*.svg")
    assert f"](bench/figures/{svg.name})" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"](../bench/figures/{svg.name})" in (tmp_path / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert "训练步" in (tmp_path / "README.zh-CN.md").read_text(encoding="utf-8")
    file.add(
        case="training step",
        recipe="stock",
        dtype="float32",
        precision="",
        batch=8,
        shape=f"{gates.MODEL}, 32x32",
        gflops=1.0,
        images_s=1.0,
        seconds=1.0,
        seconds_min=1.0,
        seconds_max=1.0,
    )
    capsys.readouterr()
    assert report.main(["--check"]) == 1
    assert {line.split(";")[0] for line in capsys.readouterr().out.splitlines()} == {
        "stale: README.md",
        "stale: README.zh-CN.md",
        "stale: docs/benchmarks.md",
        f"stale: bench/figures/{svg.name}",
    }


# ---- loading


@pytest.fixture
def small(monkeypatch):
    """The loaders' cases on small files, each in a moment."""
    monkeypatch.setattr(end_to_end, "LR_SIZE", (34, 37))
    for name, value in {
        "IMAGES": 130,
        "BATCH": 16,
        "BATCHES": 2,
        "WORKERS": (0, 2),
        "SPAN": 0.02,
        "STEADY": 10,
        "OPENED": 120,
    }.items():
        monkeypatch.setattr(loading, name, value)


@pytest.fixture
def contenders(small, tmp_path):
    """{recipe: contender}."""
    with ExitStack() as running:
        yield {entry.recipe: entry.make() for entry in loading.loading(tmp_path, CPU, running).entries}


def at_work() -> tuple[int, int]:
    """How many worker processes and fill threads there are."""
    return len(multiprocessing.active_children()), sum(
        "rdn-fast fill" in thread.name for thread in threading.enumerate()
    )


@pytest.mark.slow
def test_loaders_are_checked_and_timed(small, out):
    bench = measure.Bench("bench-test", CPU, "naive")
    bench.loading(rounds=2)
    rows = {(row.case, row.recipe): row for row in bench.results.rows}
    assert bench.failures == []
    assert list(rows) == [
        *(
            ("loading", recipe)
            for recipe in ("reference 0 workers", "reference 2 workers", "rdn_fast", "rdn_fast resident", "reference")
        ),
        ("paced loading", "rdn_fast"),
        ("paced loading", "rdn_fast resident"),
        ("opening", "rdn_fast"),
    ]
    best = max((rows["loading", f"reference {n} workers"] for n in (0, 2)), key=lambda row: row.images_s)
    assert rows["loading", "reference"] == dataclasses.replace(
        best, recipe="reference", note=best.recipe.removeprefix("reference ")
    )
    assert best.vs_reference == 1
    for (case, _), row in rows.items():
        assert 0 < row.seconds_min <= row.seconds <= row.seconds_max
        if case == "loading":
            assert row.images_s == pytest.approx(loading.BATCHES * loading.BATCH / row.seconds, rel=1e-4)
            assert (
                best.seconds_min / row.seconds_max * 0.999
                <= row.vs_reference
                <= best.seconds_max / row.seconds_min * 1.001
            )
        elif case == "paced loading":
            assert 0 <= row.waited < 1
            assert 0 < row.images_s < loading.BATCH / loading.PERIOD
    assert "mmap" in rows["loading", "rdn_fast"].note
    assert "resident" in rows["loading", "rdn_fast resident"].note
    assert results.read(bench.results.path) == bench.results.rows
    assert at_work() == (0, 0)


def test_only_one_loader_is_at_work(contenders):
    contenders["rdn_fast"].fresh()
    assert at_work() == (0, TrainConfig().num_workers)
    contenders["reference 2 workers"].fresh()
    assert at_work() == (2, 0)
    contenders["reference 0 workers"].fresh()
    assert at_work() == (0, 0)


def shifted(lr, hr):
    return lr, hr.roll(1, dims=3)


def hr_not_mirrored(lr, hr):
    return lr.flip(2), hr


def hr_of_the_next(lr, hr):
    return lr, hr.roll(1, dims=0)


def repeated(lr, hr):
    return tuple(torch.cat([part[:1], part[:-1]]) for part in (lr, hr))


def invented(lr, hr):
    return torch.cat([torch.randint(256, lr[:1].shape) / 255, lr[1:]]), hr


def rounded(lr, hr):
    return lr.bfloat16().float(), hr


def not_scaled(lr, hr):
    return lr * 255, hr * 255


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (shifted, "HR patch is not that"),
        (hr_not_mirrored, "HR patch is not that"),
        (hr_of_the_next, "HR patch is not that"),
        (repeated, "the first epoch's 128 patches come from 120 images"),
        (invented, "16 of 256 LR patches are not in the file"),
        (rounded, "off k/255"),
        (not_scaled, "values are"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_feed_is_noticed(contenders, fault, words):
    ours = contenders["rdn_fast"]
    with pytest.raises(AssertionError, match=words):
        loading.check((fault(lr, hr) for lr, hr in ours.start()), ours.path, CPU)


def test_a_feed_that_comes_again_is_noticed(contenders):
    ours = contenders["rdn_fast"]
    first = [(lr.clone(), hr.clone()) for lr, hr in itertools.islice(ours.start(), 8)]
    with pytest.raises(AssertionError, match="128 of 256 patches had come before"):
        loading.check(itertools.cycle(first), ours.path, CPU)


def test_a_feed_that_turns_nothing_is_noticed(contenders):
    path = contenders["rdn_fast"].path
    pairs = PairedH5(path, 2)

    def upright(step):
        images = range(16 * step % 128, 16 * step % 128 + 16)
        places = {i: np.random.randint(3, size=2) for i in images}
        cut = lambda image, y, x, size: (
            torch.from_numpy(image[y : y + size, x : x + size].copy()).permute(2, 0, 1) / 255
        )  # noqa: E731
        return (
            torch.stack([cut(part[i], *(factor * places[i]), factor * 32) for i in images])
            for part, factor in ((pairs.lr, 1), (pairs.hr, 2))
        )

    with pytest.raises(AssertionError, match="turned in 1 of 8 ways"):
        loading.check(map(upright, itertools.count()), path, CPU)


def test_a_wrong_feed_gets_no_speed(small, out, monkeypatch):
    class Shifted(loading.PrefetchLoader):
        def __next__(self):
            batch = super().__next__()
            return batch._replace(hr=batch.hr.roll(1, dims=2))

    monkeypatch.setattr(loading, "PrefetchLoader", Shifted)
    monkeypatch.setattr(loading, "WORKERS", (0,))
    bench = measure.Bench("bench-test", CPU, "naive")
    bench.loading(rounds=1)
    kinds = {(row.case, row.recipe): row.kind for row in bench.results.rows}
    assert kinds["loading", "rdn_fast"] == kinds["loading", "rdn_fast resident"] == "not measured"
    assert kinds["loading", "reference"] == kinds["opening", "rdn_fast"] == "measured"
    assert not any(case == "paced loading" for case, _ in kinds)
    assert all("wrong: the HR patch is not that of its LR patch" in failure for failure in bench.failures)
    assert len(bench.failures) == 2


@pytest.mark.parametrize(("known", "share"), [(0.0, 0.25), (0.01, 0.5)])
def test_the_steady_consumers_wait_is_the_larger_of_two_clocks(monkeypatch, known, share):
    now = [0.0]

    class Feeding:
        device, feed = CPU, SimpleNamespace(waited=7.0)

        def fresh(self):
            now[0] += 100  # is not on the clock

        def take(self):
            now[0] += 0.005
            self.feed.waited += known

    monkeypatch.setattr(
        loading,
        "time",
        SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)),
    )
    waited, seconds = loading.paced(Feeding())
    assert seconds == pytest.approx(0.005 + loading.PERIOD)
    assert waited == pytest.approx(share)


def test_a_file_opened_wrongly_is_noticed(small, tmp_path, monkeypatch):
    case = loading.opening(tmp_path)
    contender = case.entries[0].make()
    case.check(contender, "right")

    class Swapped(PairedH5):
        hr = property(lambda self: list(super().hr)[::-1])

    monkeypatch.setattr(loading, "PairedH5", Swapped)
    with pytest.raises(AssertionError, match="hr 0 has other pixels"):
        case.check(contender, "wrong")


# ---- end to end, memory


def test_the_made_up_data_is_what_both_loops_read(tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "LR_SIZE", (34, 37))
    path = tmp_path / "data.h5"
    end_to_end.write_data(path, end_to_end.DIFFERENT + 3, 2)
    pairs = PairedH5(path, 2)
    assert len(pairs) == end_to_end.DIFFERENT + 3
    assert not np.array_equal(pairs.lr[0], pairs.lr[1])
    assert np.array_equal(pairs.lr[1], pairs.lr[end_to_end.DIFFERENT + 1])
    with h5py.File(
        path, "r+"
    ) as file:  # HR whose every pixel is its LR pixel, so that a patch tells where it came from
        file["hr/0"][:] = file["lr/0"][:].repeat(2, axis=0).repeat(2, axis=1)
    dataset = loop.TrainDataset(str(path), 2)
    assert len(dataset) == len(pairs)
    for _ in range(20):
        lr, hr = dataset[0]
        assert lr.shape == (3, cases.PATCH, cases.PATCH)
        assert lr.dtype == hr.dtype == np.float32
        assert 0 <= lr.min() < lr.max() <= 1
        assert np.array_equal(lr.repeat(2, axis=1).repeat(2, axis=2), hr)


@pytest.mark.slow
def test_end_to_end_on_one_rank_and_two(out, monkeypatch):
    monkeypatch.setattr(end_to_end, "LR_SIZE", (40, 40))
    bench = measure.Bench("bench-test", CPU, "naive")
    bench.end_to_end([end_to_end.Plan("demo", 2, 2, ranks, "cpu", 1) for ranks in (1, 2)], rounds=1)
    rows = {(row.recipe, row.ranks): row for row in bench.results.rows}
    assert not bench.failures
    assert rows.keys() == {(recipe, ranks) for recipe in ("reference", "stock", "rdn_fast") for ranks in (1, 2)}
    for (recipe, ranks), row in rows.items():
        assert 0 < row.images_s <= 1.1 * row.seed_images_s, recipe  # its window leaves out the waiting for data
        assert row.batch == 2 * ranks
        assert (row.efficiency is None) == (ranks == 1)
        assert "not comparable" in row.note
    assert rows["reference", 1].vs_reference == 1


@pytest.mark.skipif(winograd.missing() is not None, reason="no C compiler")
def test_memory_that_a_row_keeps_is_counted(monkeypatch):
    kept = []
    monkeypatch.setattr(memory, "RDN_B", TINY)
    monkeypatch.setattr(memory, "_resident", lambda _: kept.append(set(vars(winograd._kept))) or 0)
    monkeypatch.setattr(memory, "_peak", lambda _: len(vars(winograd._kept)))
    assert memory._measure("winograd", torch.float32, 2, CPU) > 0  # it does keep some
    assert kept[-1] == set()  # and has none before the step that counts


@pytest.mark.slow
def test_memory_grows_with_the_batch_and_naive_takes_most():
    naive_1, naive_3 = (memory.peak("naive", torch.float32, batch, CPU) for batch in (1, 3))
    per_patch = 4 * cases.PATCH**2 * 16 * (2816 + 512)  # every concatenation and every ReLU of 16 blocks, float32
    assert naive_3 - naive_1 == pytest.approx(2 * per_patch, rel=0.2)
    assert memory.peak("sliced", torch.float32, 3, CPU) < 0.6 * naive_3


def test_speeds_of_rdn_fast_are_read_from_its_metrics(monkeypatch, tmp_path):
    def train(module, plan):
        folder = tmp_path.__class__(module[module.index("--outputs-dir") + 1])
        records = [{"event": "start"}, {"event": "epoch", "fps_end_to_end": 3.0, "fps_seed_window": 4.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        assert module[:4] == ["rdn_fast", "train", "--nproc", "2"]
        return ""

    monkeypatch.setattr(end_to_end, "_run", train)
    plan = end_to_end.Plan("demo", 2, 2, 2, "cpu", 1)
    assert plan.images == 2 * 2 * (2 + 3)
    assert end_to_end.run_rdn_fast(tmp_path / "data.h5", plan, "auto") == (3.0, 4.0)


def test_work_is_counted_as_the_configuration_counts_it():
    config = cases.RDN_B
    step = cases.training_step(config, 2, CPU, [torch.float32], "naive")
    assert step.flop == pytest.approx(2 * 136e9, rel=0.01)
    forward, training = (cases.block(training, config, (2, 32, 32), CPU, torch.float32) for training in (False, True))
    assert training.flop == 3 * forward.flop
    assert forward.flop == 2 * 2 * 32 * 32 * (9 * 64 * 64 * 36 + 576 * 64)
