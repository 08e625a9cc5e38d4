"""Clocks: contenders are timed in turn."""

from __future__ import annotations

import torch

from bench import timing

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
