"""`--opt-level auto`: by the device's nature, by timing in the same rounds, remembered; kept by a resume."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from runs import TINY, events, make_data
from runs import cli as process

from rdn_fast import devices, rdb
from rdn_fast.commands import tune
from rdn_fast.config import ModelConfig
from rdn_fast.precision import Precision
from rdn_fast.rdb import Impl, auto_level, autotune, measure, naive, tuning
from rdn_fast.rdb.auto_level import compare, known_level, level_key, resolve_precision
from rdn_fast.rdb.autotune import resolve_impl
from rdn_fast.rdb.case import Case
from rdn_fast.rdb.tuning import TRUSTED

CPU, BF16, FP16 = torch.device("cpu"), torch.bfloat16, torch.float16
SMALL = ModelConfig(num_features=4, growth_rate=3, num_blocks=2, num_layers=2)
SHAPE = 2, 3, 16, 16
CASE = Case.of(SMALL, SHAPE, CPU, torch.float32, True)
LOW_CASE = dataclasses.replace(CASE, dtype=BF16)


@pytest.fixture
def fixed_level():
    """Nothing is fixed here."""


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Use an empty cache folder and no choice of this process, on a CPU with bf16 instructions."""
    monkeypatch.setattr(devices, "has_instructions", lambda device, dtype: dtype == BF16)
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    autotune.winners.clear()
    yield tmp_path
    autotune.winners.clear()


@pytest.fixture
def clock(monkeypatch):
    """Return clock(float32={impl: seconds}, bf16={...}), which makes a table of such impls. It returns what was timed.

    Instead of seconds a list has those of each call, the warm-up first.
    """

    def use(float32: dict, bf16: dict) -> list[tuple[str, torch.dtype]]:
        script = {torch.float32: float32, BF16: bf16}
        timed = []

        def table_row(name):
            dtypes = tuple(dtype for dtype, of_dtype in script.items() if name in of_dtype)
            return Impl(name, SimpleNamespace(rdb=naive.rdb), ("cpu",), dtypes, True, "for tests")

        def seconds(name, case, repeats):
            given = script[case.dtype][name]
            timed.append((name, case.dtype))
            return given[min(timed.count(timed[-1]), len(given)) - 1] if isinstance(given, list) else given

        names = dict.fromkeys([*float32, *bf16])
        for module in (rdb, tune):
            monkeypatch.setattr(module, "IMPLS", {name: table_row(name) for name in names})
        monkeypatch.setattr(measure, "_Call", lambda name, case, arguments: partial(seconds, name, case))
        return timed

    return use


def level(rdb="auto", amp_dtype="auto", shape=SHAPE) -> str:
    return resolve_precision("auto", amp_dtype, CPU, SMALL, shape, rdb).level


def stored(folder) -> dict:
    return json.loads((folder / "tuning.json").read_text())


def test_a_level_that_is_given_needs_no_timing(clock):
    timed = clock({"a": 1.0}, {"a": 2.0})
    assert resolve_precision("O2", "fp16", CPU, SMALL, SHAPE) == Precision("O2", FP16, FP16)
    assert resolve_precision("O0", "auto", CPU, SMALL, SHAPE).level == "O0"
    assert not timed


def test_accelerators_and_cpus_that_emulate_are_not_timed(clock):
    timed = clock({"a": 1.0}, {"a": 0.1})
    assert level(amp_dtype="fp16") == "O0"
    for kind in ("cuda", "npu"):
        accelerator = SimpleNamespace(type=kind)
        assert known_level(SimpleNamespace(device=accelerator), FP16) == "O1"
    assert not timed


@pytest.mark.parametrize(("bf16", "chosen"), [(0.5, "O1"), (2.0, "O0"), (0.98, "O0"), (1.02, "O0")])
def test_the_faster_dtype_is_taken_and_float32_where_it_is_noise(clock, folder, bf16, chosen):
    clock({"wino": 1.0, "naive": 3.0}, {"naive": bf16, "other": 3.0})
    assert level() == chosen
    clear = bf16 in (0.5, 2.0)
    assert isinstance(stored(folder)[level_key(CASE, BF16, "auto")], str) is clear


def test_both_dtypes_are_timed_in_turn_once_and_the_impls_with_them(clock, folder):
    timed = clock({"wino": 1.0, "naive": 3.0}, {"naive": 0.4, "other": 0.5})
    assert level() == "O1"
    first_round = [("wino", torch.float32), ("naive", torch.float32), ("naive", BF16), ("other", BF16)]
    assert timed[:8] == first_round * 2
    count = len(timed)
    for _ in range(2):
        assert level() == "O1"
        assert (resolve_impl("auto", LOW_CASE), resolve_impl("auto", CASE)) == ("naive", "wino")
        autotune.winners.clear()  # another process reads the file
    assert len(timed) == count
    assert level(shape=(2, 3, 24, 24)) == "O1"
    assert len(timed) > count


def test_a_preempted_round_does_not_decide(clock):
    clock({"wino": [1.0, 40.0, 1.0]}, {"naive": 1.3})
    assert level() == "O0"
    clock({"wino": 1.3}, {"naive": [1.0, 40.0, 1.0]})
    autotune.winners.clear()
    tuning.remember({})
    assert compare(CASE, BF16).verdict == ("O1", True)


def test_an_explicit_impl_is_compared_with_itself(clock, folder):
    timed = clock({"wino": 1.0, "naive": 3.0}, {"naive": 2.0, "other": 0.5})
    assert level("naive") == "O1"
    assert {name for name, _ in timed} == {"naive"}
    assert set(stored(folder)) == {level_key(CASE, BF16, "naive")}
    count = len(timed)
    assert (level("wino"), level("other"), level("unknown")) == ("O0", "O1", "O0")
    assert len(timed) == count


def test_a_dtype_in_which_nothing_can_be_built_is_not_taken(clock, monkeypatch, capsys):
    clock({"naive": 1.0}, {"naive": 0.5})
    working = measure._Call

    def broken(repeats):
        raise RuntimeError("no such instruction")

    def call(name, case, arguments):
        return broken if case.dtype == BF16 else working(name, case, arguments)

    monkeypatch.setattr(measure, "_Call", call)
    assert level() == "O0"
    assert capsys.readouterr().out.count("leaves out naive, which fails: no such instruction") == 1


def test_a_choice_that_may_be_noise_is_timed_again_after_a_day(clock, monkeypatch):
    timed = clock({"a": 1.0, "b": 1.01}, {"a": 1.02})
    now = 1_800_000_000.0
    monkeypatch.setattr(tuning.time, "time", lambda: now)
    assert level() == "O0"
    count = len(timed)
    for later, again in ((TRUSTED - 1, False), (TRUSTED + 1, True), (-3600.0, True)):  # at last: the clock was set back
        autotune.winners.clear()
        monkeypatch.setattr(tuning.time, "time", lambda later=later: now + later)
        assert level() == "O0"
        assert (len(timed) > count) is again, later
        if again:
            monkeypatch.setattr(tuning.time, "time", lambda: now)
            autotune.winners.clear()
            compare(CASE, BF16)
        count = len(timed)


def test_the_real_clock_decides_between_real_impls(folder):
    comparison = compare(CASE, BF16)
    assert comparison.verdict.choice in ("O0", "O1")
    for case, timing in zip(comparison.cases, comparison.timings, strict=True):
        assert set(timing.seconds) == {impl.name for impl in rdb.able(CPU, case.dtype, True)}
        assert all(0 < seconds < 60 for seconds in timing.seconds.values())
    kept = stored(folder)
    assert {level_key(CASE, BF16, "auto"), CASE.key(), LOW_CASE.key()} == set(kept)
    assert level() == comparison.verdict.choice


# ---- training ----


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def test_tune_shows_both_dtypes_and_the_level(cli, clock):
    clock({"wino": 1.0, "naive": 3.0}, {"naive": 0.5})
    model = ("--num-features", 4, "--growth-rate", 3, "--num-layers", 2)
    ended = cli("tune", *model, "--patch-size", 16, "--batch-size", 2, "--device", "cpu")
    assert ended.code == 0, ended
    lines = ended.out.splitlines()
    assert "--opt-level auto: O1 bfloat16" in lines
    assert [line for line in lines if line.startswith("--rdb auto")] == [
        *("--rdb auto: wino", "--rdb auto: naive"),
        "--rdb auto: wino",  # of inference
    ]
    assert [key for key in (CASE.key(), LOW_CASE.key()) if key not in lines] == []


@pytest.mark.parametrize("before", ["O0", "O1"])
def test_a_resume_keeps_the_level_whatever_auto_would_be_now(cli, data, tmp_path, monkeypatch, before):
    def train(out, *flags):
        ended = cli("train", "--data-path", data, "--outputs-dir", out, *TINY, "--opt-level", "auto", *flags)
        assert ended.code == 0, ended
        return ended.out

    whole, out = tmp_path / "whole", tmp_path / "out"
    flags = ("--batch-size", 4, "--rdb", "naive")
    monkeypatch.setattr(auto_level, "auto_level", lambda *_: before)
    train(whole, *flags, "--max-steps", 6)
    train(out, *flags, "--max-steps", 3)
    monkeypatch.setattr(auto_level, "auto_level", lambda *_: {"O0": "O1", "O1": "O0"}[before])
    shown = train(out, *flags, "--max-steps", 6, "--resume", "auto")
    words = {"O0": "O0 float32", "O1": "O1 bfloat16"}
    assert f" {words[before]}, " in shown
    assert [events(out, kind)[0]["precision"] for kind in ("start", "resume")] == [words[before]] * 2
    assert (out / "last.pth").read_bytes() == (whole / "last.pth").read_bytes()
    other = {"O0": "O1", "O1": "O0"}[before]
    ended = cli(
        *("train", "--data-path", data, "--outputs-dir", out, *TINY, *flags),
        *("--max-steps", 7, "--opt-level", other, "--resume", "auto"),
    )
    assert f"precision was {words[before]}, now {words[other]}" in ended.user_error()


@pytest.mark.slow
def test_two_ranks_take_the_level_of_rank_0(data, tmp_path):
    if devices.count("cpu") < 2:
        pytest.skip("two ranks need two cores")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    flags = (
        "--batch-size",
        4,
        "--max-steps",
        2,
        "--nproc",
        2,
        "--opt-level",
        "auto",
        "--outputs-dir",
        tmp_path / "out",
    )
    ended = process("train", "--data-path", data, *TINY, *flags, env=environment)
    assert ended.returncode == 0, ended
    (start,) = events(tmp_path / "out", "start")
    chosen = start["precision"].split()[0]
    kept = json.loads((tmp_path / "cache" / "rdn_fast" / "tuning.json").read_text())
    levels = [entry for key, entry in kept.items() if "level against bfloat16" in key]
    if not any(map(torch.cpu.get_capabilities().get, ("avx512_bf16", "amx_bf16", "bf16"))):
        assert (chosen, levels) == ("O0", [])
        return
    assert [entry if isinstance(entry, str) else entry["choice"] for entry in levels] == [chosen]
    assert all(", 1 threads, " in key for key in kept)
