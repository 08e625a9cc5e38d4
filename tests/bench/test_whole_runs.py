"""End-to-end runs, and the memory of a step, in processes of their own."""

from __future__ import annotations

import json
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from bench import cases, loop
from bench.case import Contender, Entry
from bench.cases import end_to_end, memory, minutes
from bench.measure import Bench
from bench.models import PATCH, words
from bench.results import read
from rdn_fast.config import ModelConfig, make_configs
from rdn_fast.data.h5 import PairedH5
from rdn_fast.rdb import amx, winograd

CPU = torch.device("cpu")
TINY = ModelConfig(num_features=24, growth_rate=16, num_blocks=2, num_layers=2)


def test_the_made_up_data_is_what_both_loops_read(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LR_SIZE", (34, 37))
    path = tmp_path / "data.h5"
    loop.write_h5(path, loop.DIFFERENT + 3, 2)
    pairs = PairedH5(path, 2)
    assert len(pairs) == loop.DIFFERENT + 3
    assert not np.array_equal(pairs[0].lr, pairs[1].lr)
    assert np.array_equal(pairs[1].lr, pairs[loop.DIFFERENT + 1].lr)
    # HR whose every pixel is its LR pixel, so that a patch tells where it came from.
    with h5py.File(path, "r+") as file:
        file["hr/0"][:] = file["lr/0"][:].repeat(2, axis=0).repeat(2, axis=1)
    dataset = loop.TrainDataset(str(path), 2)
    assert len(dataset) == len(pairs)
    for _ in range(20):
        lr, hr = dataset[0]
        assert lr.shape == (3, PATCH, PATCH)
        assert lr.dtype == hr.dtype == np.float32
        assert 0 <= lr.min() < lr.max() <= 1
        assert np.array_equal(lr.repeat(2, axis=1).repeat(2, axis=2), hr)


@pytest.mark.slow
def test_end_to_end_on_one_rank_and_two(out, monkeypatch):
    monkeypatch.setattr(loop, "LR_SIZE", (40, 40))
    bench = Bench("test", CPU, "naive")
    end_to_end.compare(bench, [end_to_end.Plan("demo", 2, 2, ranks, "cpu", 1) for ranks in (1, 2)], rounds=1)
    roofs = [row for row in bench.results.rows if row.case == "ceiling"]
    rows = {(row.recipe, row.ranks): row for row in bench.results.rows if row not in roofs}
    assert not bench.failures
    assert {row.dtype for row in roofs} == {row.dtype for row in rows.values()}
    assert rows.keys() == {(recipe, ranks) for recipe in ("reference", "stock", "rdn_fast") for ranks in (1, 2)}
    for (recipe, ranks), row in rows.items():
        assert 0 < row.images_s <= 1.1 * row.seed_images_s, recipe  # its window leaves out the waiting for data
        assert row.batch == 2 * ranks
        assert row.ceiling_share > 0
        assert (row.efficiency is None) == (ranks == 1)
        assert "not comparable" in row.note
    assert rows["reference", 1].vs_reference == 1


@pytest.mark.skipif(winograd.missing() is not None, reason="no C compiler")
def test_memory_that_an_implementation_keeps_is_counted(monkeypatch):
    kept = []
    monkeypatch.setattr(memory, "RDN_B", TINY)
    monkeypatch.setattr(memory, "_reset_peak", lambda _: kept.append({*winograd.block.scratch.buffers}) or 0)
    monkeypatch.setattr(memory, "_peak", lambda _: len(winograd.block.scratch.buffers))
    assert memory.measure("rdn_fast", "float32", 2, "cpu", {"impl": "winograd"}) > 0  # it does keep some
    assert kept[-1] == set()  # and has none before the step that counts


@pytest.mark.slow
def test_memory_grows_with_the_batch_and_the_reference_takes_most():
    one, three = (memory.peak("reference", torch.float32, batch, CPU) for batch in (1, 3))
    per_patch = 4 * PATCH**2 * 16 * (2816 + 512)  # every concatenation and every ReLU of 16 blocks, float32
    assert three - one == pytest.approx(2 * per_patch, rel=0.2)
    assert memory.peak("rdn_fast", torch.float32, 3, CPU, impl="sliced") < 0.6 * three
    assert memory.peak("stock NCHW", torch.float32, 3, CPU, contiguous=True) < 1.3 * three


def test_memory_is_held_against_the_reference_recipe(out, monkeypatch):
    peaks = {"reference": 4e9, "stock": 3e9, "rdn_fast": 1e9}
    monkeypatch.setattr(memory, "peak", lambda recipe, *_, **__: peaks[recipe])
    bench = Bench("test", CPU, "naive")
    memory.run(bench, "1p")
    assert {row.recipe: (row.peak_mb, row.peak_share) for row in bench.results.rows} == {
        "reference": (4000, 1),
        "stock": (3000, 0.75),
        "rdn_fast": (1000, 0.25),
    }
    assert bench.results.rows[0].dtype == "float32"
    assert bench.results.rows[-1].note.startswith("rdb naive")


def test_amx_is_held_against_naive_in_bf16_where_every_implementation_is_measured(out, monkeypatch):
    peaks = {"reference": 4e9, "stock": 2.5e9, "rdn_fast": 1e9, "impl naive": 2e9, "impl amx": 0.5e9}
    monkeypatch.setattr(memory, "peak", lambda recipe, *_, **__: peaks[recipe])
    bench = Bench("test", CPU, "naive")
    bench.dtypes = [torch.float32, torch.bfloat16]
    memory.run(bench, "amx")
    rows = {row.recipe: row for row in bench.results.rows}
    assert {name: row.peak_of_naive for name, row in rows.items() if row.peak_of_naive} == {"impl amx": 0.25}
    assert rows["impl naive"].dtype == rows["impl amx"].dtype == "bfloat16"
    (gate,) = (gate for gate in cases.gates("amx") if gate.measure == "peak_of_naive")
    assert [gate.judge(bench.results.rows, place).word for place in ("cpu+bf16", "cpu+amx")] == ["goal", "goal"]
    assert gate not in cases.gates("1p")


@pytest.mark.skipif(winograd.missing() is not None, reason="no C compiler")
def test_memory_of_amx_is_measured_without_tiles_too(monkeypatch):
    monkeypatch.setattr(memory, "RDN_B", TINY)
    monkeypatch.setattr(amx.block, "kernels", amx.TileKernels(amx.SOURCE, *amx.TILES))
    assert memory.measure("impl amx", "bfloat16", 2, "cpu", {"impl": "amx"}) > 0
    assert amx.missing() is None


def test_speeds_of_rdn_fast_are_read_from_its_metrics(monkeypatch, tmp_path):
    def train(_, module, **environment):
        (folder,) = (Path(word.partition("=")[2]) for word in module if str(word).startswith("--outputs-dir="))
        records = [{"event": "start"}, {"event": "epoch", "fps_end_to_end": 3.0, "fps_seed_window": 4.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        assert module[:2] == ["rdn_fast", "train"]
        assert "--nproc=2" in module
        assert environment == {"OMP_NUM_THREADS": "1"}

    monkeypatch.setattr(end_to_end.process, "run_module", train)
    plan = end_to_end.Plan("demo", 2, 2, 2, "cpu", 1)
    assert plan.images == 2 * 2 * (2 + 3)
    assert end_to_end.run_rdn_fast(tmp_path / "data.h5", plan, "auto") == (3.0, 4.0)


@pytest.mark.slow
def test_a_long_run_is_a_real_run(out):
    bench = Bench("test", CPU, "naive")
    end_to_end.long_run(bench, "demo", 2, 2)
    (row,) = bench.results.rows
    assert (row.case, row.recipe, row.note) == ("long run", "rdn_fast", "2 steps")
    assert row.seconds == pytest.approx(2 / row.images_s, rel=1e-4)
    assert row.seed_images_s >= row.images_s > 0


def test_end_to_end_counts_as_many_steps_as_fill_its_span(out):
    bench = Bench("test", CPU, "naive")
    ours, stock = (Entry(recipe, torch.float32, None) for recipe in ("rdn_fast", "stock"))
    alone = end_to_end.Plan("rdn-b", 2, 12, 1, "cpu", 1)
    assert end_to_end.counted_steps(bench, ours, alone) == 12  # nothing is known
    step = {"case": "training step", "dtype": "float32", "precision": "", "batch": 8}
    shape = words(make_configs({}, "rdn-b")[0], PATCH, PATCH)
    for recipe, speed in (("rdn_fast", 6.0), ("stock", 0.1)):
        bench.results.add(**step, recipe=recipe, shape=shape, images_s=speed)
    assert end_to_end.counted_steps(bench, ours, alone) == end_to_end.SPAN * 6 / 2
    assert end_to_end.counted_steps(bench, stock, alone) == end_to_end.LEAST
    assert end_to_end.counted_steps(bench, ours, alone._replace(ranks=2)) == 12


RDN_B = make_configs({}, "rdn-b")[0]


@pytest.fixture
def loops(monkeypatch):
    """Return loops(name=[speeds...], ...): entries that take those speeds in turn. An exception is raised instead.

    `loops.log` holds the names of those that ran.
    """

    def entries(**speeds) -> tuple[Entry, ...]:
        def entry(name: str, left: list) -> Entry:
            def loop(_, plan) -> tuple[float, float]:
                entries.log.append(name)
                speed = left.pop(0)
                if isinstance(speed, BaseException):
                    raise speed
                return speed, 2 * speed

            return Entry(name, torch.float32, loop)

        return tuple(entry(name, [*left]) for name, left in speeds.items())

    entries.log = []
    monkeypatch.setattr(end_to_end, "write_h5", lambda *_: None)
    monkeypatch.setattr(end_to_end.ceilings, "contenders", lambda *_: {"roof": Contender(lambda: time.sleep(0.01))})
    return entries


def test_unsteady_loops_run_again_in_turn(out, loops):
    given, plan = loops(a=[1.0, 2.0, 2.0, 2.0], b=[4.0] * 4), end_to_end.Plan("demo", 8, 2, 1, "cpu", 1)
    measured, roofs = end_to_end.in_turn(Bench("test", CPU, "naive"), given, [plan], RDN_B, rounds=3)
    assert loops.log == ["a", "b"] * 4
    times, window = measured[1][given[0]]
    assert (times.rounds, window.rounds) == ([4, 4, 4], [2, 2, 2])
    assert len(roofs["roof"].every) == 4


def test_each_loop_has_a_row_as_soon_as_it_has_run(out, loops):
    """A card may be there for minutes only. With each further round a row holds one more."""
    given = loops(rdn_fast=[8.0, 8.0], reference=[4.0, KeyboardInterrupt()], stock=[2.0])
    bench, plan = Bench("test", CPU, "naive"), end_to_end.Plan("rdn-b", 8, 2, 1, "cpu", 1)
    with pytest.raises(KeyboardInterrupt):
        end_to_end.in_turn(bench, given, [plan], RDN_B, rounds=3)
    assert loops.log == ["rdn_fast", "reference", "stock", "rdn_fast", "reference"]
    rows = {row.recipe: row for row in read(bench.results.path)}  # as they are on disk
    assert {name: (row.images_s, row.rounds, row.vs_reference, row.vs_stock) for name, row in rows.items()} == {
        "rdn_fast": (8, 2, 2, 4),
        "reference": (4, 1, 1, 2),
        "stock": (2, 1, 0.5, 1),
    }


def test_a_loop_that_fails_is_left_out_and_the_others_are_measured(out, loops):
    given = loops(rdn_fast=[8.0] * 3, reference=[4.0] * 3, stock=[RuntimeError("stock ended with 1: no gcc")])
    bench, plan = Bench("test", CPU, "naive"), end_to_end.Plan("rdn-b", 8, 2, 1, "cpu", 1)
    end_to_end.in_turn(bench, given, [plan], RDN_B, rounds=3)
    assert loops.log == ["rdn_fast", "reference", "stock", *["rdn_fast", "reference"] * 2]
    assert [(row.recipe, row.rounds, row.vs_reference) for row in bench.results.rows] == [
        ("rdn_fast", 3, 2),
        ("reference", 3, 1),
    ]
    assert bench.failures == ["end to end, stock: stock ended with 1: no gcc"]


def test_on_a_gpu_ours_runs_first_end_to_end(out, monkeypatch):
    seen = []
    monkeypatch.setattr(end_to_end, "in_turn", lambda bench, loops, *_: seen.append([one.recipe for one in loops]))
    bench, plan = Bench("test", CPU, "naive"), end_to_end.Plan("rdn-b", 8, 2, 1, "cpu", 1)
    end_to_end.compare(bench, [plan], rounds=3)
    bench.on_cpu = False
    monkeypatch.setattr(bench, "strongest_stock", lambda: ("stock compiled graphed", torch.float16, {}))
    end_to_end.compare(bench, [plan], rounds=3)
    assert seen == [["reference", "stock", "rdn_fast"], ["rdn_fast", "reference", "stock compiled graphed"]]


def test_without_a_measured_step_a_gpu_takes_the_recipe_that_is_compiled_and_captured(out):
    bench = Bench("test", CPU, "naive")
    bench.device, bench.on_cpu, bench.dtypes = torch.device("cuda"), False, [torch.float16]
    assert bench.strongest_stock() == (
        "stock compiled graphed",
        torch.float16,
        {"compiled": True, "graphed": True},
    )


def test_the_demos_minutes_and_gain_are_a_row_with_gates(out, monkeypatch):
    def demo(what, module, **_):
        assert (what, module[:2]) == ("rdn-fast demo", ["rdn_fast", "demo"])
        return "...\n\nRDN is +1.80 dB from bicubic on photographs that it has never seen.\n"

    monkeypatch.setattr(minutes.process, "run_module", demo)
    bench = Bench("test", CPU, "naive")
    minutes.run(bench, "minutes")
    (row,) = bench.results.rows
    assert (row.case, row.recipe, row.gain_db) == ("demo", "rdn_fast", 1.8)
    assert [gate.judge([row], "cpu").word for gate in minutes.CASE.gates] == ["goal", "held"]
    assert bench.conclude("minutes", 0.0) == 0
    assert (bench.results.rows[-1].case, bench.results.rows[-1].recipe) == ("minutes", "bench minutes")
