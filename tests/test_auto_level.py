"""`--opt-level auto`: by the device's nature, by timing in the same rounds, remembered; kept by a resume."""

import dataclasses
import json
import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from runs import TINY, events, make_data
from runs import cli as process

from rdn_fast import auto_level, devices, model, precision, rdb
from rdn_fast.auto_level import compare, known_level, level_key, resolve_precision, timed_model, whole
from rdn_fast.commands import tune
from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.pictures import precisions
from rdn_fast.precision import Precision
from rdn_fast.rdb import Impl, autotune, measure, naive, tuning
from rdn_fast.rdb.autotune import resolve_impl
from rdn_fast.rdb.case import Case
from rdn_fast.rdb.tuning import TRUSTED

CPU, BF16, FP16 = torch.device("cpu"), torch.bfloat16, torch.float16
SMALL = ModelConfig(num_features=4, growth_rate=3, num_blocks=2, num_layers=2)
SHAPE = 2, 3, 16, 16
CASE = Case.of(SMALL, SHAPE, CPU, torch.float32, True)
LOW_CASE = dataclasses.replace(CASE, dtype=BF16)
O1 = precision.resolve("O1", "bf16", CPU)


@pytest.fixture
def fixed_level():
    """Nothing is fixed here."""


@pytest.fixture(autouse=True)
def folder(monkeypatch, no_choices):
    """Return the folder of choices, on a CPU with bf16 instructions."""
    monkeypatch.setattr(devices, "has_instructions", lambda device, dtype: dtype == BF16)
    return no_choices


@pytest.fixture
def clock(monkeypatch):
    """Return clock(float32={impl: seconds}, bf16={...}), which makes a table of such impls. It returns what was timed.

    Instead of seconds a list has those of each call, the warm-up first. rests: seconds of the rest of the model in
    float32 and in bf16; None: it fails. wholes: of the whole model, None where it fails; None: the sums of the parts.
    """

    def use(
        float32: dict, bf16: dict, rests: tuple = (1e-6, 1e-6), wholes: tuple | None = None
    ) -> list[tuple[str, torch.dtype]]:
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

        def of_model(case, computing, impl=None):
            def one(repeats):
                if impl and wholes:
                    if (taken := wholes[case.dtype == BF16]) is None:
                        raise RuntimeError("no such concatenation")
                    return taken
                if (rest := rests[case.dtype == BF16]) is None:
                    raise RuntimeError("no such convolution")
                block = script[case.dtype][impl] if impl else 0.0
                return rest + case.model_config.num_blocks * (block[-1] if isinstance(block, list) else block)

            assert computing.compute == case.dtype
            return one

        monkeypatch.setattr(measure, "timed_block", lambda name, case, *_: partial(seconds, name, case))
        monkeypatch.setattr(auto_level, "timed_model", of_model)
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
        assert known_level(SimpleNamespace(device=accelerator), O1) == "O1"
    assert not timed


@pytest.mark.parametrize(("bf16", "chosen"), [(0.5, "O1"), (2.0, "O0"), (0.98, "O0"), (1.02, "O0")])
def test_the_faster_dtype_is_taken_and_float32_where_it_is_noise(clock, folder, bf16, chosen):
    clock({"wino": 1.0, "naive": 3.0}, {"naive": bf16, "other": 3.0})
    assert level() == chosen
    clear = bf16 in (0.5, 2.0)
    assert isinstance(stored(folder)[level_key(CASE, O1, "auto")], str) is clear


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
    assert compare(CASE, O1).verdict == ("O1", True)


def test_an_explicit_impl_is_compared_with_itself(clock, folder):
    timed = clock({"wino": 1.0, "naive": 3.0}, {"naive": 2.0, "other": 0.5})
    assert level("naive") == "O1"
    assert {name for name, _ in timed} == {"naive"}
    assert set(stored(folder)) == {level_key(CASE, O1, "naive")}
    count = len(timed)
    assert (level("wino"), level("other"), level("unknown")) == ("O0", "O1", "O0")
    assert len(timed) == count


def test_a_dtype_in_which_nothing_can_be_built_is_not_taken(clock, monkeypatch, capsys):
    clock({"naive": 1.0}, {"naive": 0.5})
    working = measure.timed_block

    def broken(repeats):
        raise RuntimeError("no such instruction")

    def call(name, case, *example):
        return broken if case.dtype == BF16 else working(name, case, *example)

    monkeypatch.setattr(measure, "timed_block", call)
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
            compare(CASE, O1)
        count = len(timed)


@pytest.mark.parametrize(
    ("blocks", "rests", "num_blocks", "chosen"),
    [
        ((1.0, 1.3), (9.0, 4.0), 4, "O1"),  # 13 against 9.2: the blocks are slower in bf16, the model is faster
        ((1.0, 1.3), (5.0, 3.6), 4, "O0"),  # 9 against 8.8, which is no clear difference
        ((1.0, 1.3), (9.0, 4.0), 40, "O0"),  # 49 against 56
        ((1.3, 1.0), (4.0, 9.0), 4, "O0"),
        ((1.3, 1.0), (4.0, 9.0), 40, "O1"),
        ((1.0, 1.7), (9.0, 4.0), 4, "O1"),  # a block that would be hopeless among those of the other dtype
    ],
)
def test_the_whole_model_decides_where_its_blocks_and_the_rest_disagree(clock, blocks, rests, num_blocks, chosen):
    clock({"wino": blocks[0], "naive": 3.0}, {"naive": blocks[1]}, rests)
    config = dataclasses.replace(SMALL, num_blocks=num_blocks)
    assert resolve_precision("auto", "auto", CPU, config, SHAPE).level == chosen


@pytest.mark.parametrize(
    ("parts", "wholes", "chosen"),
    [
        ((0.080, 0.084), (0.100, 0.090), "O1"),  # close sums: the whole models decide
        ((0.084, 0.080), (0.090, 0.100), "O0"),
        ((0.080, 0.084), (0.100, 0.099), "O0"),
        ((0.080, 0.120), (0.100, 0.090), "O0"),  # clear sums: they are not timed
        ((0.80, 0.84), (0.100, 0.090), "O0"),  # long steps: neither
    ],
)
def test_close_sums_are_decided_by_whole_models(clock, folder, parts, wholes, chosen):
    blocks = [taken / 4 for taken in parts]
    clock({"wino": blocks[0], "naive": 3.0}, {"naive": blocks[1]}, [2 * block for block in blocks], wholes)
    assert level() == chosen
    assert isinstance(stored(folder)[level_key(CASE, O1, "auto")], str) is (wholes != (0.100, 0.099) and parts[0] < 0.8)


def test_parts_decide_with_a_note_where_a_whole_model_fails(clock, capsys):
    clock({"wino": 0.020}, {"naive": 0.018}, (0.040, 0.036), (0.1, None))
    assert level() == "O1"
    note = "sums of the model's parts alone, since the model in bfloat16 fails: no such concatenation"
    assert capsys.readouterr().out.count(note) == 1


def test_a_picture_does_not_wait_for_whole_models_of_long_pictures():
    for training, seconds, close in ((True, 0.3, True), (True, 0.6, False), (False, 0.05, True), (False, 0.3, False)):
        for settled in (True, False):
            assert auto_level.is_close(training, settled, [seconds], [1.1 * seconds]) is close
            assert auto_level.is_close(training, settled, [seconds], [1.3 * seconds]) is (close and not settled)
            assert not auto_level.is_close(training, settled, [seconds], [])


@pytest.mark.parametrize("training", [True, False])
def test_a_whole_model_is_that_of_a_step_or_of_pictures(training):
    case = Case.of(SMALL, SHAPE, CPU, BF16, training)
    timed = timed_model(case, O1, "naive")
    assert 0 < timed(1) < 60
    assert len(timed._inputs) == len([*RDN(SMALL).parameters()]) - (0 if training else 2 * 2 * 3)


def test_no_level_is_taken_that_is_slower_than_the_best_by_more_than_5_percent(clock, seed):
    draw = random.Random(seed)
    for _ in range(20):
        blocks, rests = ([draw.lognormvariate(0, 0.4) * scale for _ in range(2)] for scale in (1.0, 5.0))
        config = dataclasses.replace(SMALL, num_blocks=draw.randint(1, 16))
        clock({"wino": blocks[0]}, {"naive": blocks[1]}, tuple(rests))
        autotune.winners.clear()
        case = Case.of(config, SHAPE, CPU, torch.float32, True)
        float32, low = (config.num_blocks * block + rest for block, rest in zip(blocks, rests, strict=True))
        taken = {"O0": float32, "O1": low}[compare(case, O1).verdict.choice]
        assert taken <= 1.0501 * min(float32, low)


def test_a_level_is_remembered_for_the_whole_model(clock):
    """Models with equal blocks differ in the rest, and so do the uses of a model."""
    clock({"wino": 1.0}, {"naive": 1.3}, (9.0, 4.0))
    assert level() == "O1"
    others = [{"num_blocks": 3}, {"scale": 3}, {"upsample_channels": 2}, {"tail": "espcn"}, {"mean_shift": True}]
    for change in others:
        case = Case.of(dataclasses.replace(SMALL, **change), SHAPE, CPU, torch.float32, True)
        assert case.key() == CASE.key()
        assert known_level(case, O1) is None, change
    assert known_level(CASE, O1) == "O1"
    assert known_level(CASE, precisions.BF16) is None


def test_a_level_in_which_the_rest_cannot_be_computed_is_not_taken(clock, capsys):
    clock({"wino": 1.0}, {"naive": 0.1}, (1.0, None))
    assert level() == "O0"
    note = "--opt-level auto leaves out bfloat16, in which the model without its blocks fails: no such convolution"
    assert capsys.readouterr().out.count(note) == 1


def test_a_level_is_not_kept_for_good_where_neither_could_be_timed(clock, folder):
    clock({"wino": 1.0}, {"naive": 0.1}, (None, None))
    assert level() == "O0"
    assert stored(folder)[level_key(CASE, O1, "auto")]["choice"] == "O0"


@pytest.mark.parametrize("tail", ["shuffle", "single", "espcn"])
@pytest.mark.parametrize("low", [O1, precisions.BF16, precisions.FLOAT32])
def test_the_rest_is_what_the_model_computes_besides_its_blocks(monkeypatch, low, tail):
    config, training = dataclasses.replace(SMALL, scale=4, tail=tail, mean_shift=True), low is O1
    case = Case.of(config, SHAPE, CPU, low.compute, training)
    convolve, computed = model._conv, []

    def recorded(conv, x):
        memory_format = x.is_contiguous(memory_format=torch.channels_last)
        computed.append((conv.weight.shape, x.shape, x.dtype, memory_format))
        return convolve(conv, x)

    monkeypatch.setattr(model, "_conv", recorded)
    timed = timed_model(case, low)
    assert timed(1) > 0
    of_rest, computed[:] = [*computed], []
    made = RDN(config, "naive").to(memory_format=torch.channels_last)
    x = torch.rand(case.batch, 3, case.height, case.width).to(memory_format=torch.channels_last)
    with torch.set_grad_enabled(training), made.computing(low):
        made(x)
    assert of_rest == computed
    trained = {name for name, _ in made.named_parameters() if not name.startswith("rdbs.")}
    assert len(timed._inputs) == len(trained)


def test_the_real_clock_decides_between_real_impls(folder):
    comparison = compare(CASE, O1)
    assert comparison.verdict.choice in ("O0", "O1")
    for case, timing in zip(comparison.cases, comparison.timings, strict=True):
        assert set(timing.seconds) == {impl.name for impl in rdb.able(CPU, case.dtype, True)}
        assert all(0 < seconds < 60 for seconds in timing.seconds.values())
        assert len(timing.rest) == len(timing.rounds["naive"])
        assert min(whole(case, timing)) >= 2 * min(timing.rounds[timing.verdict.choice]) + min(timing.rest)
    kept = stored(folder)
    assert {level_key(CASE, O1, "auto"), CASE.key(), LOW_CASE.key()} == set(kept)
    assert level() == comparison.verdict.choice


# ---- training ----


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def test_tune_shows_both_dtypes_and_the_level(cli, clock):
    clock({"wino": 1.0, "naive": 3.0}, {"naive": 0.5}, (2.0, 3.0))
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
    assert [line for line in lines if line.startswith("the model without")] == [
        "the model without its blocks: 2000.00 ms; with 16 by wino: 18000.00 ms",
        "the model without its blocks: 3000.00 ms; with 16 by naive: 11000.00 ms",
    ]


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
    levels = [entry for key, entry in kept.items() if "level against O1 bfloat16" in key]
    if not any(map(torch.cpu.get_capabilities().get, ("avx512_bf16", "amx_bf16", "bf16"))):
        assert (chosen, levels) == ("O0", [])
        return
    assert [entry if isinstance(entry, str) else entry["choice"] for entry in levels] == [chosen]
    assert all(", 1 threads, " in key for key in kept)
