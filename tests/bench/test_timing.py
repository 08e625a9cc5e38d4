"""Clocks: contenders are timed in turn."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import ceilings, timing
from bench.ceilings import Ceiling
from bench.timing import Times

CPU = torch.device("cpu")


class Clock:
    """A contender whose runs take the seconds that it is told; the log says who did what."""

    def __init__(self, name, seconds, log, now):
        self.name, self.seconds, self.log, self.now = name, iter(seconds), log, now

    def fresh(self):
        self.log.append(f"fresh {self.name}")
        self.now[0] += 100  # is not on the clock
        return ()

    def run(self):
        self.log.append(self.name)
        self.now[0] += next(self.seconds)


def test_contenders_are_timed_in_turn(monkeypatch):
    log, now = [], [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    a, b = Clock("a", [4.0, 3.5, 3.75], log, now), Clock("b", [1.0, 1.25, 1.25], log, now)
    times = timing.interleave({"a": a, "b": b}, CPU, rounds=3)
    assert log == ["fresh a", "a", "fresh b", "b"] * 3
    assert times["a"].every == [4, 3.5, 3.75]
    assert times["a"].median == 3.75
    assert times["b"].over(times["a"]) == 3


@pytest.mark.parametrize(
    ("slow", "counted", "spread"),
    [
        ([5.0, 1.0, 1.0, 5.0, 1.125], [1, 1, 1.125], 1.125),  # two rounds more, and three are quiet
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [1, 2, 3], 3),  # never: three times as many at most
    ],
)
def test_rounds_are_added_until_the_quietest_agree(monkeypatch, slow, counted, spread):
    log, now = [], [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    a, b = Clock("a", [1.0] * 9, log, now), Clock("b", slow, log, now)
    times = timing.interleave({"a": a, "b": b}, CPU, rounds=3)
    assert times["b"].every == slow
    assert times["b"].rounds == counted
    assert times["b"].spread == spread
    assert len(times["a"].every) == len(slow)  # as many chances for all
    assert timing.steady(times) == (spread < timing.STEADY)


def test_no_round_is_added_after_the_patience_ends(monkeypatch):
    now, turns = [0.0], []
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])

    def turn():
        turns.append(now[0])
        now[0] += 50

    timing.repeat(turn, 2, lambda: False)
    assert turns == [0, 50, 100, 150]  # 160 s is the end


def test_the_ceiling_of_a_dtype_is_the_fastest_round_of_its_fastest_kind():
    product, conv = (Ceiling(what, torch.float32, 100) for what in ("product", "conv"))
    times = {product: Times([4.0, 2.0]), conv: Times([5.0, 1.0]), "a recipe": Times([0.1, 0.1])}
    assert ceilings.rates(times) == {torch.float32: (conv, 100.0)}


def test_ceilings_are_products_convolutions_and_a_copy(monkeypatch):
    monkeypatch.setattr(ceilings, "once", lambda *_: None)
    found = ceilings.contenders(CPU, [torch.float32, torch.bfloat16, torch.float32])
    assert [(each.what.split()[0], each.dtype) for each in found] == [
        ("product", torch.float32),
        ("conv", torch.float32),
        ("product", torch.bfloat16),
        ("conv", torch.bfloat16),
    ]
    for ceiling, contender in ((each, found[each]) for each in list(found)[:2]):
        inputs = contender.fresh()
        with FlopCounterMode(display=False) as counted:
            contender.run(*inputs)
        assert counted.get_total_flops() == pytest.approx(ceiling.work, rel=0.08)  # the conv's zeros around count too


def test_short_runs_are_repeated_within_one_reading(monkeypatch):
    log, now = [], [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    times = timing.interleave({"a": Clock("a", [0.25] + [0.125, 0.375] * 4, log, now)}, CPU, rounds=2, span=1.0)
    assert log.count("a") == 1 + 2 * 4
    assert log.count("fresh a") == 3
    assert times["a"].every == [0.25, 0.25]
