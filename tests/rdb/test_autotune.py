"""`--rdb auto`: what is timed, what is remembered, and what happens on failures."""

import ast
import errno
import json
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch

from rdn_fast import rdb
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError, what_failed
from rdn_fast.model import RDN
from rdn_fast.rdb import FLOATS, Impl, autotune, naive, tuning
from rdn_fast.rdb import measure as measure_module
from rdn_fast.rdb.autotune import measure, resolve_impl
from rdn_fast.rdb.case import Case
from rdn_fast.training import resume

SMALL = ModelConfig(num_features=4, growth_rate=3, num_blocks=2, num_layers=2)
CPU = torch.device("cpu")


def impl(name, function=naive.rdb, devices=("cpu",)):
    return Impl(name, SimpleNamespace(rdb=function), devices, FLOATS, True, "for tests")


def slow(*arguments):
    time.sleep(0.1)  # longer than a busy machine keeps the others from computing
    return naive.rdb(*arguments)


def no_memory(*arguments):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 999 bytes")


def case(training=True, dtype=torch.float32):
    return Case.of(SMALL, (2, 3, 16, 16), CPU, dtype, training)


@pytest.fixture
def table(monkeypatch):
    """table(*impls): replace the table of impls by these."""

    def use(*impls):
        monkeypatch.setattr(rdb, "IMPLS", {impl.name: impl for impl in impls})

    return use


@pytest.fixture
def timings(monkeypatch):
    """Return a list to which each measured case is appended."""
    measured = []

    def counted(c):
        measured.append(c)
        return measure(c)

    monkeypatch.setattr(autotune, "measure", counted)
    return measured


def test_auto_is_the_fastest_impl(no_choices, table):
    table(impl("slow", slow), impl("quick"), impl("elsewhere", devices=("npu",)))
    for training in (True, False):
        assert resolve_impl("auto", case(training)) == "quick"
    timing = autotune.autotune(case())
    assert timing.seconds["slow"] > timing.seconds["quick"] > 0
    assert set(timing.seconds) == {"slow", "quick"}


def test_the_choice_is_remembered_across_processes(no_choices, table, timings):
    table(impl("slow", slow), impl("quick"))
    resolve_impl("auto", case())
    resolve_impl("auto", case())
    autotune.winners.clear()
    assert resolve_impl("auto", case()) == "quick"
    assert len(timings) == 1
    resolve_impl("auto", case(training=False))
    resolve_impl("auto", case(dtype=torch.bfloat16))
    assert len(timings) == 3
    assert len(json.loads((no_choices / "tuning.json").read_text())) == 3


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"key": 3}', b"\xff\xfe", b""])
def test_a_damaged_cache_file_is_removed_with_a_note_and_rebuilt(content, no_choices, table, timings, capsys):
    table(impl("slow", slow), impl("quick"))
    (no_choices / "tuning.json").write_bytes(content)
    assert resolve_impl("auto", case()) == "quick"
    out = capsys.readouterr().out
    assert "tuning.json" in out
    assert out.count("\n") == 1
    autotune.winners.clear()
    assert resolve_impl("auto", case()) == "quick"
    assert len(timings) == 1
    assert not capsys.readouterr().out


def test_a_remembered_impl_that_cannot_run_is_not_used(no_choices, table, timings):
    table(impl("slow", slow), impl("quick"))
    resolve_impl("auto", case())
    autotune.winners.clear()
    table(impl("slow", slow), impl("other"))
    assert resolve_impl("auto", case()) == "other"
    assert len(timings) == 2


def test_an_impl_without_memory_is_left_out_and_the_others_are_timed(no_choices, table):
    table(impl("greedy", no_memory), impl("quick"))
    timing = autotune.autotune(case())
    assert timing.failed == {"greedy": "out of memory"}
    assert timing.verdict.choice == "quick"


def test_an_impl_that_refuses_the_shape_is_left_out(no_choices, table):
    def refuses(*arguments):
        raise UserError("--rdb narrow: takes G up to 2")

    table(impl("narrow", refuses), impl("quick"))
    timing = autotune.autotune(case())
    assert timing.failed == {"narrow": "fails: --rdb narrow: takes G up to 2"}
    assert timing.verdict.choice == "quick"


def test_no_impl_with_memory_is_a_user_error(no_choices, table):
    table(impl("greedy", no_memory), impl("greedier", no_memory))
    with pytest.raises(UserError, match="smaller --batch-size"):
        resolve_impl("auto", case())


def test_an_impl_that_fails_is_left_out_with_a_note(no_choices, table, capsys):
    def broken(*arguments):
        raise RuntimeError("no compiler\nand much more")

    table(impl("broken", broken), impl("quick"))
    assert resolve_impl("auto", case()) == "quick"
    assert capsys.readouterr().out == "note: --rdb auto leaves out broken, which fails: no compiler\n"


TRITON = """at 12:8:
def layer(planes, weights):
    x = planes.load([0, 0])
    y = tl.dot(x, weights)
        ^
Cannot make_shape_compatible: 64 and 32"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no compiler\nand much more", "no compiler"),
        (TRITON, "Cannot make_shape_compatible: 64 and 32"),
        (f"backend='inductor' raised:\nCompilationError: {TRITON}\n", "Cannot make_shape_compatible: 64 and 32"),
        ("backend='inductor' raised:\nRuntimeError: no gcc\n\nSet TORCHDYNAMO_VERBOSE=1", "RuntimeError: no gcc"),
        ("only:", "only:"),
        ("", "ValueError('')"),
    ],
)
def test_the_note_tells_what_failed(text, told):
    assert what_failed(ValueError(text)) == told


def test_the_note_tells_what_failed_in_a_function_that_a_triton_kernel_calls():
    triton_errors = pytest.importorskip("triton.compiler.errors")
    code = "x = 1\ny = x + z"
    inner = triton_errors.CompilationError(code, ast.parse(code).body[1], "NameError('z is not defined')")
    outer = triton_errors.CompilationError(code, ast.parse(code).body[0], None)
    outer.__cause__ = inner
    assert what_failed(outer) == "NameError('z is not defined')"


def test_a_cache_that_cannot_be_written_gives_one_note(no_choices, table, timings, monkeypatch, capsys):
    table(impl("slow", slow), impl("quick"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tuning, "atomic_write", full)
    assert resolve_impl("auto", case()) == "quick"
    out = capsys.readouterr().out
    assert "cannot be written (No space left on device)" in out
    assert out.count("\n") == 1


def test_a_folder_in_the_files_place_gives_notes_only(no_choices, table, capsys):
    table(impl("slow", slow), impl("quick"))
    (no_choices / "tuning.json").mkdir()
    assert resolve_impl("auto", case()) == "quick"
    assert all(line.startswith("note: ") for line in capsys.readouterr().out.splitlines())


def on_a_card(monkeypatch):
    """Take this host's CPU for an accelerator where choices are concerned."""
    for module in (measure_module.devices, autotune.devices):
        monkeypatch.setattr(module, "is_host", lambda device: False)


def test_a_remembered_impl_that_no_longer_works_is_left_out_and_the_others_are_timed(
    no_choices, table, timings, monkeypatch, capsys
):
    """Its compiler has gone, say. What was remembered is tried before a run depends on it."""
    calls = []

    def quick(*arguments):
        calls.append(len(arguments))
        return naive.rdb(*arguments)

    def broken(*arguments):
        raise subprocess.CalledProcessError(1, ["gcc", "-I/usr/include/python3.12"])

    table(impl("slow", slow), impl("quick", quick))
    resolve_impl("auto", case())
    on_a_card(monkeypatch)
    autotune.winners.clear()
    calls.clear()
    assert resolve_impl("auto", case()) == "quick"
    assert (len(timings), len(calls)) == (1, 1)  # tried once, not timed
    table(impl("slow", slow), impl("quick", broken))
    autotune.winners.clear()
    assert resolve_impl("auto", case()) == "slow"
    told = "which fails: Command '['gcc', '-I/usr/include/python3.12']' returned non-zero exit status 1."
    assert capsys.readouterr().out.splitlines() == [
        f"note: --rdb auto no longer takes quick, {told}",
        f"note: --rdb auto leaves out quick, {told}",
    ]


class PTXASError(Exception):
    """No RuntimeError, as Triton's."""


def test_an_impl_that_fails_at_the_start_of_training_is_refused_or_replaced(no_choices, table, monkeypatch):
    """Refused where it was asked for, replaced where auto had chosen it: one line either way, no traceback."""

    def broken(*arguments):
        raise PTXASError("ptxas fatal\nmuch more")

    inputs = SimpleNamespace(validation=[])

    def start(rdb: str, before: str | None = None) -> tuple[dict, list[str]]:
        notes = []
        setup = SimpleNamespace(train_config=SimpleNamespace(rdb=rdb), validation_dtype=torch.float32, inputs=inputs)
        checkpoint = {"rows": {"training": before, "validation": before}} if before else None
        return resume.resolve_impls(setup, checkpoint, notes.append), notes

    table(impl("broken", broken), impl("quick"))
    on_a_card(monkeypatch)
    monkeypatch.setattr(resume, "_training_case", lambda setup: case())
    monkeypatch.setattr(resume, "_validation_case", lambda setup, dtype: case(training=False))
    with pytest.raises(UserError, match=r"^--rdb broken fails: ptxas fatal; choose another --rdb$"):
        start("broken")
    quick = {"training": "quick", "validation": "quick"}
    assert start("quick") == (quick, [])
    assert start("auto", before="quick") == (quick, [])
    impls, notes = start("auto", before="broken")
    assert impls == quick
    assert notes[0] == "note: broken, which computed the steps before, now fails: ptxas fatal"


def test_training_is_timed_as_a_graph_and_inference_call_by_call(no_choices, table, monkeypatch):
    """So are they run. What a step captures is captured before the clock runs."""
    made = []

    class Graphed:
        def __init__(self, function, device, what):
            self.function, self.what, self.prepared = function, what, 0
            made.append(self)

        def prepare(self):
            self.prepared += 1
            self.function()

        def __call__(self):
            assert self.prepared
            self.function()

    monkeypatch.setattr(measure_module.devices, "CudaGraphed", Graphed)
    table(impl("slow", slow), impl("quick"))
    assert resolve_impl("auto", case(training=False)) == "quick"
    assert not made
    assert resolve_impl("auto", case()) == "quick"
    assert [graphed.what for graphed in made] == ["a block by slow", "a block by quick"]


def test_a_single_impl_is_not_timed(no_choices, table, timings):
    table(impl("only"), impl("elsewhere", devices=("npu",)))
    assert resolve_impl("auto", case()) == "only"
    assert not timings


def test_names_are_checked(no_choices, table):
    table(impl("quick"), impl("elsewhere", devices=("npu",)))
    assert resolve_impl("quick", case()) == "quick"
    with pytest.raises(UserError, match="elsewhere runs on npu only; on cpu in float32 can run: quick"):
        resolve_impl("elsewhere", case())


def test_pictures_of_all_sizes_share_a_few_choices():
    sizes = [(1, 3, h, w) for h in range(5, 400, 13) for w in range(5, 400, 17)]
    assert len({Case.of(SMALL, size, CPU, torch.float32, False) for size in sizes}) <= 4


def test_a_model_times_the_impls_when_first_used_under_inference_mode(no_choices, table, timings):
    table(impl("slow", slow), impl("quick"))
    model = RDN(SMALL)
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 9, 7)).shape == (1, 3, 18, 14)
        model(torch.rand(1, 3, 11, 20))
    model(torch.rand(1, 3, 9, 7)).sum().backward()
    assert [c.training for c in timings] == [False, True]


def test_impls_are_timed_on_usual_tensors_under_inference_mode(no_choices, table):
    """A compiler may refuse inference tensors."""
    seen = []

    def noting(x, conv_w, conv_b, fuse_w, fuse_b):
        seen.extend(tensor.is_inference() for tensor in (x, *conv_w, *conv_b, fuse_w, fuse_b))
        return naive.rdb(x, conv_w, conv_b, fuse_w, fuse_b)

    table(impl("noting", noting), impl("other"))
    with torch.inference_mode():
        measure(case(training=False))
    assert set(seen) == {False}


def test_tune_shows_every_impl_and_times_again(cli, no_choices, table, timings):
    table(impl("naive", slow), impl("quick"), impl("elsewhere", devices=("npu",)), impl("greedy", no_memory))
    model = "--num-features 4 --growth-rate 3 --num-layers 2"
    flags = f"{model} --patch-size 8 --batch-size 2 --device cpu --opt-level O0".split()
    for _ in range(2):
        result = cli("tune", *flags)
        assert result.code == 0, result
    reasons = ("runs on npu only", "out of memory")
    for words in ("naive", "quick", *reasons, "--rdb auto: quick", "2x4x8x8 G3 C2", "training", "inference"):
        assert words in result.out
    assert len(timings) == 4
    assert set(tuning.remembered().values()) == {"quick"}


@pytest.mark.parametrize(("training", "packings"), [(True, 3), (False, 1)])
def test_a_block_is_timed_with_the_packing_of_a_step_or_of_a_frozen_model(table, training, packings):
    packed = []

    def pack(blocks, dtype):
        packed.extend((conv_w[0].dtype, dtype) for conv_w, _ in blocks)
        return ["packed"] * len(blocks)

    def computes(x, conv_w, conv_b, fuse_w, fuse_b, given):
        assert given == "packed"
        return naive.rdb(x, *([w.to(x.dtype) for w in ws] for ws in (conv_w, conv_b)), fuse_w.to(x), fuse_b.to(x))

    module = SimpleNamespace(rdb=computes, pack=pack)
    table(Impl("packs", module, ("cpu",), FLOATS, True, "for tests"))
    c = case(training, torch.bfloat16)
    timed = measure_module.timed_block("packs", c, *measure_module._example(c))
    assert timed(1) > 0
    assert timed(2) > 0
    assert packed == [(torch.float32 if training else torch.bfloat16, torch.bfloat16)] * packings


def test_a_step_in_low_precision_is_timed_with_its_casts(table):
    seen = []

    def computes(x, conv_w, conv_b, fuse_w, fuse_b):
        seen.extend((tensor.dtype, tensor.grad_fn is not None) for tensor in (*conv_w, *conv_b, fuse_w, fuse_b))
        return naive.rdb(x, conv_w, conv_b, fuse_w, fuse_b)

    table(impl("casts", computes))
    c = case(dtype=torch.bfloat16)
    block, x = measure_module._example(c)
    assert {tensor.dtype for tensor in block.tensors} == {torch.float32}
    assert measure_module.timed_block("casts", c, block, x)(1) > 0
    assert set(seen) == {(torch.bfloat16, True)}
