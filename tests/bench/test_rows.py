"""Rows, gates, and what a run concludes from them."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from bench_rows import make_row

from bench import cases, measure, models, results, run
from bench.case import NO_KERNEL, RDN_B_SHAPE, Comparison, Contender, Entry, Gate, Verdict
from bench.cases import training_step
from bench.measure import Bench
from bench.timing import Times
from rdn_fast import rdb

CPU = torch.device("cpu")


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
    row = file.add(**given, peak_mb=12.5, peak_share=1 / 3, note="one\ntwo")
    assert results.read(file.path) == [row]  # flushed: the file is still open
    assert row.peak_share == pytest.approx(1 / 3, rel=1e-5)
    assert row.seconds is None
    assert file.path.parent == out
    assert file.path.name.startswith("bench-test_")
    assert file.path.name.endswith(".csv")
    assert f"torch-{torch.__version__.replace('+', '-')}" in file.path.name
    lines = file.path.read_text().replace(",rounds_run,", ",").replace(",unsteady,", ",vs_naive,").splitlines()
    lines[-2:] = ["2026-01-02,abc" + "," * (len(lines[0].split(",")) - 2)]
    file.path.write_text("\n".join(lines))
    (old,) = results.read(file.path)  # of a time that knew other columns
    assert (old.commit, old.rounds_run, old.unsteady) == ("abc", None, "")
    file.path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"bench-test_.*other columns"):
        results.read(file.path)


def test_a_row_of_the_same_work_replaces_the_earlier_one(out):
    file, work = results.Results("bench-test", CPU), {"dtype": "float32", "precision": "", "batch": 1, "shape": "long"}
    for case, recipe, seconds in (("a", "x", 1.0), ("a", "y", 2.0), ("a", "x", 0.125)):
        file.add(case=case, recipe=recipe, seconds=seconds, **work)
    assert [(row.recipe, row.seconds) for row in file.rows] == [("x", 0.125), ("y", 2)]
    assert results.read(file.path) == file.rows
    file.add(case="a", recipe="x", seconds=3.0, ranks=2, **work)
    assert results.read(file.path) == file.rows
    assert len(file.rows) == 3


WORK_OF_A_STEP = {
    "case": "training step",
    "recipe": "rdn_fast",
    "dtype": "float32",
    "precision": "default",
    "batch": 8,
    "shape": f"{RDN_B_SHAPE}, 32x32",
}


def verdict(what: str, rows, place="cpu", command="1p", ranks=1) -> Verdict:
    gate = next(gate for gate in cases.gates(command) if gate.what.startswith(what))
    return gate.judge(rows, place, ranks)


@pytest.mark.parametrize(("ratio", "word"), [(2.39, "missed"), (2.4, "held"), (2.89, "held"), (2.9, "goal")])
def test_ratio_gates(ratio, word):
    assert verdict("CPU, training step, default", [make_row(vs_reference=ratio)]).word == word


@pytest.mark.parametrize(("share", "word"), [(0.41, "missed"), (0.40, "held"), (0.25, "goal")])
def test_memory_is_gated_from_above(share, word):
    assert verdict("memory", [make_row(case="memory", batch=16, peak_share=share)]).word == word


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"unsteady": "stock at 112% of its ceiling"}, "stock at 112% of its ceiling"), ({"seconds_max": 4.0}, "2.00x")],
)
def test_unsteady_rows_decide_no_gate(changes, why):
    row = make_row(**{"vs_reference": 1.0, "seconds_min": 2.0} | changes)
    found = verdict("CPU, training step, default", [row])
    assert (found.word, found.value) == ("unsteady", 1.0)
    assert found.line().startswith("unsteady         CPU, training step, default")
    assert why in found.line()


@pytest.mark.parametrize(
    ("capabilities", "place", "words"),
    [
        ({"avx2": True, "amx_bf16": False}, "cpu", ""),
        ({"avx512_bf16": True}, "cpu+bf16", ", bf16"),
        ({"avx512_bf16": True, "amx_bf16": True}, "cpu+amx", ", bf16, AMX"),
    ],
)
def test_machines_are_told_apart_by_their_instructions(capabilities, place, words, monkeypatch):
    before = results.device_words(CPU).partition(", bf16")[0].partition(", family")[0]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert results.place(CPU) == place
    assert results.device_words(CPU).partition(", family")[0] == before + words


def test_what_needs_a_kernel_of_ours_is_not_asked_where_there_is_none():
    row = make_row(dtype="bfloat16", precision="", vs_stock=0.99, note=f"rdb naive; {NO_KERNEL}")
    found = verdict("CPU, training step, bf16", [row], "cpu+bf16")
    assert (found.word, found.why) == ("not this device", NO_KERNEL)
    assert verdict("CPU, training step, bf16", [dataclasses.replace(row, note="")], "cpu+bf16").word == "missed"
    assert models.kernel_note(CPU, torch.bfloat16).endswith(NO_KERNEL) == (
        {impl.name for impl in rdb.able(CPU, torch.bfloat16, True)} <= {*models.OPERATIONS}
    )


def test_gates_look_at_their_own_rows():
    others = [
        make_row(recipe="impl winograd"),
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
    resident = dataclasses.replace(rows, recipe="rdn_fast resident", vs_reference=99.0, waited=0.0, seconds=0.1)
    assert verdict(what, [resident]).word == "not measured"


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
        (116.0, "Some CPU", "; the newest earlier row of such a machine says 130 (2026-02-02, def)"),
        (110.0, "Some CPU", ": MORE THAN 15% SHORT, the newest earlier row of such a machine says 130"),
        (110.0, "Another CPU", "; no earlier row of such a machine"),
    ],
)
def test_baselines_are_held_against_the_newest_earlier_rows(gflops, device, words):
    row = make_row(recipe="reference", device="Some CPU", gflops=90.0)
    newer = dataclasses.replace(row, date="2026-02-02T00:00:00", commit="def", gflops=130.0)
    others = [dataclasses.replace(newer, batch=4), dataclasses.replace(newer, dtype="bfloat16", gflops=300.0)]
    rows = [make_row(), dataclasses.replace(row, gflops=gflops, device=device)]
    (line,) = training_step.remarks(rows, [[row], [newer, *others]])
    assert f"reference float32 trains at {gflops:.0f} GFLOP/s{words}" in line


def test_a_stock_slower_than_the_reference_is_named():
    def lines(*ratios):
        rows = [
            make_row(recipe=recipe, vs_reference=ratio)
            for recipe, ratio in zip(("stock", "stock NCHW"), ratios, strict=True)
        ]
        return [line for line in training_step.remarks(rows, []) if "SLOWER" in line]

    (line,) = lines(0.97, 0.984)
    assert line.startswith("the strongest stock in float32, stock NCHW, is SLOWER than the reference at batch 8: 0.98x")
    assert not lines(0.97, 1.01)


def test_the_strongest_stock_of_a_run_goes_end_to_end(out):
    bench = Bench("test", CPU, "naive")
    step = {"case": "training step", "dtype": "float32", "precision": "", "batch": 8, "shape": f"{RDN_B_SHAPE}, 32x32"}
    bench.results.add(**step, recipe="stock", images_s=1.0)
    bench.results.add(**step, recipe="stock NCHW", images_s=1.02)
    assert bench.strongest_stock() == ("stock NCHW", torch.float32, {"contiguous": True})


def test_on_a_gpu_what_is_ready_has_a_row_at_once_and_the_most_wanted_come_first(out, high_ceilings, monkeypatch):
    """Compilers may take longer than the machine is there: at the interruption the rows are on disk."""
    built = []

    def entry(recipe: str) -> Entry:
        def build() -> Contender:
            built.append(recipe)
            if recipe == "stock":
                raise KeyboardInterrupt
            return Contender(lambda: time.sleep(2e-3))

        return Entry(recipe, torch.float32, build)

    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    bench, recipes = Bench("test", CPU, "naive"), ("reference", "stock", "stock compiled graphed", "rdn_fast")
    bench.on_cpu = False
    comparison = Comparison("training step", 4, "shape", [entry(recipe) for recipe in recipes], images=4, flop=10**9)
    with pytest.raises(KeyboardInterrupt):
        bench.compare(comparison, rounds=2)
    assert built == ["rdn_fast", "reference", "stock compiled graphed", "stock"]
    rows = results.read(bench.results.path)
    assert [row.recipe for row in rows] == built[:3]
    assert {(row.rounds, row.unsteady) for row in rows} == {(1, "one round, not in turn with the others")}
    assert all(row.images_s > 0 for row in rows)
    comparison.entries.pop(1)
    bench.compare(comparison, rounds=2)
    rows = [row for row in results.read(bench.results.path) if row.case == "training step"]
    assert [row.recipe for row in rows] == built[:3]  # replaced
    assert {row.rounds for row in rows} == {2}
    comparison.entries.append(entry("stock"))
    with pytest.raises(KeyboardInterrupt):
        bench.compare(comparison, rounds=2)
    assert [row for row in results.read(bench.results.path) if row.case == "training step"] == rows  # not by one round


def test_what_was_measured_before_an_interruption_is_judged(out, monkeypatch, capsys):
    def stopped(bench, command):
        bench.results.add(**WORK_OF_A_STEP, vs_reference=2.6, vs_other=1.3)
        raise KeyboardInterrupt

    monkeypatch.setattr(cases, "of_command", lambda command: [dataclasses.replace(training_step.CASE, run=stopped)])
    assert run.main(["training_step", "--device", "cpu", "--rdb", "naive"]) == 1
    printed = capsys.readouterr().out
    assert "held             CPU, training step, default precision / reference (fp32): 2.6, gate 2.4" in printed
    assert "FAILED  stopped before the end" in printed


def test_an_older_torch_cannot_tell_of_bf16(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not results.has_bf16(CPU)


def test_a_recipe_is_held_against_the_fastest_of_each_kind():
    names = {"reference": 6.0, "stock": 4.0, "stock NCHW": 5.0, "OpenVINO": 3.0, "rdn_fast": 2.0, "impl naive": 1.0}
    times = {Entry(name, torch.float32, None): Times([seconds] * 3) for name, seconds in names.items()}
    times[Entry("stock", torch.bfloat16, None)] = Times([2.5] * 3)
    ours = next(entry for entry in times if entry.recipe == "rdn_fast")
    found = {"vs_reference": 3.0, "vs_stock": 2.0, "vs_other": 1.25, "vs_rest": 0.5, "unsteady": ""}
    assert measure.ratios(ours, times) == {name: figure for name, figure in found.items() if name != "vs_rest"}
    impls = {entry: entry.recipe for entry in times if entry.ours}
    assert measure.ratios(ours, times, impls=impls) == found
    stock = next(entry for entry in times if entry.recipe == "stock")
    times[stock] = Times([4.0, 3.0, 5.0])
    assert measure.ratios(ours, times, impls=impls) == found | {"unsteady": "rounds spread 1.67x"}
    assert measure.ratios(ours, times, "disturbed", impls) == found | {"unsteady": "disturbed"}


def test_an_entry_that_computes_by_the_same_impl_is_no_other():
    seconds = {
        ("rdn_fast", "bf16"): 2.0,
        ("impl amx", "bf16"): 1.9,
        ("impl sliced", "bf16"): 3.0,
        ("stock", "bf16"): 4.0,
    }
    seconds |= {("rdn_fast", "fp32"): 5.0, ("impl sliced", "fp32"): 6.0}
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    times = {Entry(name, dtypes[dtype], None): Times([value] * 3) for (name, dtype), value in seconds.items()}
    names = ["amx", "amx", "sliced", "", "sliced", "sliced"]
    impls = dict(zip(times, names, strict=True))
    found = [measure.ratios(entry, times, impls=impls)["vs_rest"] for entry in times]
    assert found == pytest.approx([3 / 2, 3 / 1.9, 1.9 / 3, 1.9 / 4, 1.9 / 5, 1.9 / 6])


def test_a_gate_needs_the_rows_that_it_names():
    gate = Gate("ours / all", "inference", "vs_rest", 1.5, dtype="bfloat16", beside=("OpenVINO",))
    row = make_row(case="inference", dtype="bfloat16", vs_rest=1.6)
    other = dataclasses.replace(row, recipe="OpenVINO", vs_rest=0.6)
    assert gate.judge([row, other], "cpu").word == "held"
    for rows in (
        [row],
        [row, dataclasses.replace(other, kind="not measured")],
        [row, dataclasses.replace(other, dtype="float32")],
        [row, dataclasses.replace(other, shape=f"{RDN_B_SHAPE}, 96x96")],
    ):
        found = gate.judge(rows, "cpu")
        assert (found.word, found.why) == ("not measured", "without OpenVINO in bfloat16")


def test_gates_are_those_of_the_commands_that_measure_them():
    alone = {gate.what for gate in training_step.CASE.gates if gate.commands}
    everything, few = ({gate.what for gate in cases.gates(command)} for command in ("amx", "1p"))
    assert alone == {gate.what for gate in training_step.CASE.gates} & everything - few != set()


def test_a_gate_that_is_missed_or_not_measured_fails_the_run(out, capsys):
    bench = Bench("test", CPU, "naive", ranks=2)
    shape = {
        "case": "end to end",
        "recipe": "rdn_fast",
        "dtype": "float32",
        "precision": "default",
        "batch": 2,
        "shape": f"{RDN_B_SHAPE}, 32x32",
    }
    bench.results.add(**shape, vs_reference=9.0, vs_stock=9.0)
    assert bench.conclude("8p", 0.0) == 0  # no gate of this command is for a CPU
    assert "not this device  eight Ascend cards, images/s in the seed window: gate 4337" in capsys.readouterr().out
    bench.results.add(**shape | {"case": "training step", "batch": 8}, vs_reference=2.3, vs_stock=1.06, vs_other=1.0)
    bench.ranks = 1
    assert bench.conclude("1p", 0.0) == 1
    printed = capsys.readouterr().out
    assert "MISSED           CPU, training step, default precision / reference (fp32): 2.3, gate 2.4" in printed
    assert "FAILED  memory of a training step, default precision / reference: not measured" in printed


def test_too_many_ranks_are_the_users_mistake(out, capsys):
    assert run.main(["8p", "--nproc", "9999", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench: error: --nproc 9999: ")
    assert error.count("\n") == 1
