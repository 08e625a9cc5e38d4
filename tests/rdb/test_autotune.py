"""`--rdb auto`: what is timed, what is remembered, and what happens when neither works."""

import errno
import json
from types import SimpleNamespace

import pytest
import torch

from rdn_fast import rdb
from rdn_fast.config import ModelConfig
from rdn_fast.errors import UserError
from rdn_fast.model import RDN
from rdn_fast.rdb import FLOATS, Impl, autotune, naive
from rdn_fast.rdb.autotune import Case, choose, measure, renew

SMALL = ModelConfig(num_features=4, growth_rate=3, num_blocks=2, num_layers=2)
CPU = torch.device("cpu")


def row(name, function=naive.rdb, devices=("cpu",)):
    return Impl(name, SimpleNamespace(rdb=function), devices, FLOATS, "any", True, "for tests")


def slow(*arguments, out=None):
    for _ in range(30):
        naive.rdb(*arguments)
    return naive.rdb(*arguments)


def no_memory(*arguments, out=None):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 999 bytes")


def case(training=True, dtype=torch.float32):
    return Case.of(SMALL, (2, 3, 16, 16), CPU, dtype, training)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty cache folder, and nothing remembered in this process."""
    monkeypatch.setattr(autotune, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(autotune, "_winners", {})
    return tmp_path


@pytest.fixture
def table(monkeypatch):
    """table(*rows): these rows are all there are."""

    def use(*rows):
        named = {r.name: r for r in rows}
        monkeypatch.setattr(rdb, "IMPLS", named)

    return use


@pytest.fixture
def timings(monkeypatch):
    """A list that grows by a case whenever one is measured."""
    measured = []

    def counted(c):
        measured.append(c)
        return measure(c)

    monkeypatch.setattr(autotune, "measure", counted)
    return measured


def forget(monkeypatch):
    monkeypatch.setattr(autotune, "_winners", {})


def test_auto_is_the_fastest_row(folder, table):
    table(row("slow", slow), row("quick"), row("elsewhere", devices=("npu",)))
    for training in (True, False):
        assert choose("auto", case(training)) == "quick"
    timing = renew(case())
    assert timing.seconds["slow"] > timing.seconds["quick"] > 0
    assert set(timing.seconds) == {"slow", "quick"}


def test_the_choice_is_remembered_across_processes(folder, table, timings, monkeypatch):
    table(row("slow", slow), row("quick"))
    choose("auto", case())
    choose("auto", case())
    forget(monkeypatch)
    assert choose("auto", case()) == "quick"
    assert len(timings) == 1
    choose("auto", case(training=False))
    choose("auto", case(dtype=torch.bfloat16))
    assert len(timings) == 3
    assert len(json.loads((folder / "tuning.json").read_text())) == 3


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"key": 3}', b"\xff\xfe", b""])
def test_a_file_that_is_no_tuning_result_is_ignored_with_one_line_and_made_anew(
    content, folder, table, timings, monkeypatch, capsys
):
    table(row("slow", slow), row("quick"))
    (folder / "tuning.json").write_bytes(content)
    assert choose("auto", case()) == "quick"
    out = capsys.readouterr().out
    assert "tuning.json" in out
    assert out.count("\n") == 1
    forget(monkeypatch)
    assert choose("auto", case()) == "quick"
    assert len(timings) == 1
    assert not capsys.readouterr().out


def test_a_remembered_row_that_cannot_run_is_not_used(folder, table, timings, monkeypatch):
    table(row("slow", slow), row("quick"))
    choose("auto", case())
    forget(monkeypatch)
    table(row("slow", slow), row("other"))
    assert choose("auto", case()) == "other"
    assert len(timings) == 2


def test_a_row_without_memory_is_out_and_the_others_go_on(folder, table):
    table(row("greedy", no_memory), row("quick"))
    timing = renew(case())
    assert timing.failed == {"greedy": "out of memory"}
    assert timing.fastest == "quick"


def test_a_row_that_refuses_the_shape_is_out(folder, table):
    def refuses(*arguments, out=None):
        raise UserError("--rdb narrow: takes G up to 2")

    table(row("narrow", refuses), row("quick"))
    timing = renew(case())
    assert timing.failed == {"narrow": "fails: --rdb narrow: takes G up to 2"}
    assert timing.fastest == "quick"


def test_no_row_with_memory_is_the_users_to_know(folder, table):
    table(row("greedy", no_memory), row("greedier", no_memory))
    with pytest.raises(UserError, match="smaller --batch-size"):
        choose("auto", case())


def test_a_row_that_fails_is_out_and_said(folder, table, capsys):
    def broken(*arguments, out=None):
        raise RuntimeError("no compiler\nand much more")

    table(row("broken", broken), row("quick"))
    assert choose("auto", case()) == "quick"
    assert capsys.readouterr().out == "note: --rdb auto leaves out broken, which fails: no compiler\n"


def test_a_cache_that_cannot_be_written_costs_one_line(folder, table, timings, monkeypatch, capsys):
    table(row("slow", slow), row("quick"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(autotune, "atomic_write", full)
    assert choose("auto", case()) == "quick"
    out = capsys.readouterr().out
    assert "cannot be written (No space left on device)" in out
    assert out.count("\n") == 1


def test_a_folder_in_the_files_place_costs_one_line_each(folder, table, capsys):
    table(row("slow", slow), row("quick"))
    (folder / "tuning.json").mkdir()
    assert choose("auto", case()) == "quick"
    assert all(line.startswith("note: ") for line in capsys.readouterr().out.splitlines())


def test_a_single_row_is_not_timed(folder, table, timings):
    table(row("only"), row("elsewhere", devices=("npu",)))
    assert choose("auto", case()) == "only"
    assert not timings


def test_names_are_checked(folder, table):
    table(row("quick"), row("elsewhere", devices=("npu",)))
    assert choose("quick", case()) == "quick"
    with pytest.raises(UserError, match="elsewhere runs on npu only; on cpu in float32 can run: quick"):
        choose("elsewhere", case())


def test_pictures_of_all_sizes_share_a_few_choices():
    sizes = [(1, 3, h, w) for h in range(5, 400, 13) for w in range(5, 400, 17)]
    assert len({Case.of(SMALL, size, CPU, torch.float32, False) for size in sizes}) <= 9


def test_a_model_times_its_rows_when_first_used_under_inference_mode(folder, table, timings):
    table(row("slow", slow), row("quick"))
    model = RDN(SMALL)
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 9, 7)).shape == (1, 3, 18, 14)
        model(torch.rand(1, 3, 11, 20))
    model(torch.rand(1, 3, 9, 7)).sum().backward()
    assert [c.training for c in timings] == [False, True]


def test_tune_shows_every_row_and_renews(cli, folder, table, timings, monkeypatch):
    table(row("naive", slow), row("quick"), row("elsewhere", devices=("npu",)), row("greedy", no_memory))
    flags = (
        "--num-features",
        4,
        "--growth-rate",
        3,
        "--num-layers",
        2,
        "--patch-size",
        8,
        "--batch-size",
        2,
        "--device",
        "cpu",
        "--opt-level",
        "O0",
    )
    for _ in range(2):
        result = cli("tune", *flags)
        assert result.code == 0, result
    for words in (
        "naive",
        "quick",
        "runs on npu only",
        "out of memory",
        "auto: quick",
        "2x4x8x8 G3 C2",
        "training",
        "inference",
    ):
        assert words in result.out
    assert len(timings) == 4
    assert set(json.loads((folder / "tuning.json").read_text()).values()) == {"quick"}
