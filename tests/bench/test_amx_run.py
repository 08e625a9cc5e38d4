"""`bench amx` as on a processor with AMX, which this one need not be: plain C, tiny models, made-up runtimes."""

from __future__ import annotations

import json

import pytest
import torch

from bench import baseline, cases, measure, models, run, timing
from bench.cases import end_to_end, inference, memory, small_models, training_step
from bench.recipe import CannotRun
from bench.results import read
from rdn_fast.config import ModelConfig, TrainConfig, make_configs
from rdn_fast.rdb import amx, in_c, winograd, winograd_chunks

pytestmark = pytest.mark.slow  # ten seconds when quiet

CPU = torch.device("cpu")
PLACE, SIDE = "cpu+amx", 16
TINY = {  # of each preset whose gates are judged; one block, where rounding alone hardly ever flips a ReLU
    "rdn-b": ModelConfig(num_features=24, growth_rate=16, num_blocks=1, num_layers=2),
    "demo": ModelConfig(num_features=16, growth_rate=16, num_blocks=1, num_layers=2),
    "small": ModelConfig(num_features=16, growth_rate=32, num_blocks=1, num_layers=2),
}
NAMES = {config: models.words(make_configs({}, preset)[0]) for preset, config in TINY.items()}


def name(config, *sides):
    """Return the shape of a row: that of the preset's own model, so that gates find it."""
    return f"{NAMES[config]}, {sides[0]}x{sides[1]}" if sides else NAMES[config]


@pytest.fixture
def xeon(out, high_ceilings, monkeypatch):
    """Claim AMX, and make all that `bench amx` does small. End-to-end speeds and bytes are made up."""
    if reason := in_c.Kernels(amx.SOURCE, amx.PLAIN).missing or winograd.missing():
        pytest.skip(reason)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True, "amx_bf16": True})
    monkeypatch.setattr(amx.block, "kernels", in_c.Kernels(amx.SOURCE, amx.PLAIN))
    monkeypatch.setattr(amx.block, "chunks", winograd_chunks.Chunks())
    chosen = {torch.float32: "winograd", torch.bfloat16: "amx"}
    small = {
        "RDN_B": TINY["rdn-b"],
        "PATCH": SIDE,
        "words": name,
        "resolve_impl": lambda impl, config, lr, device, dtype, training: chosen[dtype],
        "default_dtype": lambda *_: torch.bfloat16,
    }
    for module in (models, measure, training_step, small_models, inference, memory, end_to_end):
        for attribute in small.keys() & vars(module).keys():
            monkeypatch.setattr(module, attribute, small[attribute])
    configs = lambda given, preset: (TINY[preset], TrainConfig(batch_size=2, patch_size=SIDE))  # noqa: E731
    for module in (small_models, end_to_end):
        monkeypatch.setattr(module, "make_configs", configs)
    monkeypatch.setattr(inference, "runtime", lambda config, package, start, dtype: baseline.stock(config, CPU, dtype))
    monkeypatch.setattr(memory.process, "call", lambda function, *given, **_: function(*json.loads(json.dumps(given))))
    monkeypatch.setattr(memory, "_reset_peak", lambda _: 0)
    monkeypatch.setattr(memory, "_peak", lambda _: 10**6)  # a process that has run other steps may need no new memory
    monkeypatch.setattr(end_to_end, "write_h5", lambda *_: None)
    for loop, speed in (("run_baseline", 1.0), ("run_rdn_fast", 2.0)):
        monkeypatch.setattr(end_to_end, loop, lambda *_, speed=speed, **__: end_to_end.Speeds(speed, speed))
    monkeypatch.setattr(timing, "AGAIN", 1)
    monkeypatch.setattr(measure, "SPAN", 0.01)
    return out


def test_every_gate_is_judged_at_first_contact(xeon, capsys):
    assert run.main(["amx", "--device", "cpu"]) in (0, 1)  # plain C is slow, so speeds may be missed
    printed = capsys.readouterr().out
    assert "FAILED" not in printed
    (file,) = xeon.glob("*.csv")
    rows = read(file)
    for gate in cases.gates("amx"):
        verdict = gate.judge(rows, PLACE)
        if PLACE in (gate.places or (PLACE,)):
            assert verdict.word in ("goal", "held", "missed", "unsteady"), verdict.line()
            assert verdict.line() in printed
    what = {gate.what for gate in cases.gates("amx") if PLACE in gate.places and gate.dtype == "bfloat16"}
    assert what == {
        "CPU with AMX, training step, bf16 / strongest stock bf16",
        "CPU with AMX, training step, bf16 / strongest of all others",
        "CPU with AMX, inference, bf16 / strongest stock bf16",
        "CPU with AMX, inference, bf16 / strongest of all others",
        "memory of a training step, bf16, amx / naive",
    }
    for case in ("training step", "small models", "inference"):
        recipes = {row.recipe for row in rows if (row.case, row.dtype, row.kind) == (case, "bfloat16", "measured")}
        others = {"ONNX Runtime", "OpenVINO"} if case == "inference" else set()
        assert recipes == {"stock", "rdn_fast", "impl naive", "impl sliced", "impl amx"} | others
    assert {row.recipe for row in rows if row.case == "memory"} >= {"reference", "rdn_fast", "impl naive", "impl amx"}


def test_without_openvino_the_gate_of_inference_says_so_and_fails(xeon, monkeypatch, capsys):
    def runtime(config, package, start, dtype):
        raise CannotRun(f"No module named {package!r}")

    monkeypatch.setattr(inference, "runtime", runtime)
    monkeypatch.setattr(cases, "of_command", lambda command: [inference.CASE])
    assert run.main(["amx", "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED  CPU with AMX, inference, bf16 / strongest of all others: not measured" in printed
    assert "(without OpenVINO in bfloat16)" in printed
