"""`make gpu-check`, as far as a machine without a GPU can tell: the order of its parts, and their limits."""

from __future__ import annotations

import io
import time
from importlib.util import find_spec

import pytest
from runs import ROOT

from bench import gpu_check
from bench.gpu_check import Part, check


def part(name: str, program: str, least: float = 0, usual: float = 10, most: float = 60) -> Part:
    return Part(name, ("-c", program), least, usual, most)


def test_parts_run_in_turn_after_failures_too():
    log = io.StringIO()
    parts = (
        part("huge", "print('never')", least=1000),
        part("two", "print('first')"),
        part("three", "raise SystemExit(3)"),
        part("four", "print('last')"),
    )
    assert check(parts, 60, log) == 1
    words = log.getvalue()
    assert "\nnever\n" not in words
    found = [
        words.index(word)
        for word in (
            "huge: not measured",
            "\nfirst\n",
            "three: FAILED with 3",
            "\nlast\n",
            "2 of 4 parts done; not: huge, three",
        )
    ]
    assert found == sorted(found)


def test_all_done_is_success():
    assert check((part("one", "pass"),), 60, io.StringIO()) == 0


def test_what_takes_too_long_is_stopped_with_its_children_after_its_last_words():
    log = io.StringIO()
    program = "import subprocess\ntry: subprocess.run(['sleep', '300'])\nexcept KeyboardInterrupt: print('last words')"
    began = time.monotonic()
    assert check((part("slow", program, most=3), part("next", "print('went on')")), 60, log) == 1
    assert time.monotonic() - began < 200  # a child that lived would hold the pipe open
    words = log.getvalue()
    assert words.index("\nlast words\n") < words.index("slow: STOPPED after 3 s") < words.index("\nwent on\n")


@pytest.mark.slow
def test_what_does_not_stop_is_killed(monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 1)
    log = io.StringIO()
    assert (
        check(
            (
                part(
                    "deaf", "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(300)", most=2
                ),
            ),
            60,
            log,
        )
        == 1
    )
    assert "deaf: STOPPED after 2 s" in log.getvalue()


def timeline(*parts: Part, budget: float) -> tuple[int, list[str]]:
    """Return the exit code and the lines, times and words, of a check under the stand-in clock."""
    dry, log = gpu_check.DryRun(), io.StringIO()
    code = check(parts, budget, log, dry.clock, dry.run)
    lines = [line.removeprefix("====").partition(": python")[0].split() for line in log.getvalue().splitlines()]
    return code, [" ".join(words) for words in lines if words]


def test_when_time_runs_out_what_comes_later_is_cut():
    """Nothing is started, and the clock is a stand-in."""
    quick, slow = part("quick", "", usual=20), part("slow", "", usual=100, most=90)
    long, late = part("long", "", least=30, usual=80, most=120), part("late", "", least=50)
    small = part("small", "", least=5, usual=5)
    code, lines = timeline(quick, slow, long, late, small, budget=180)
    assert code == 1
    assert lines == [
        "0 s quick",
        "20 s quick: done, 20 s",
        "20 s slow",
        "110 s slow: STOPPED after 90 s, 90 s",
        "110 s long",
        "180 s long: STOPPED after 70 s, 70 s",
        "180 s late: not measured, 0 of 180 s are left",
        "180 s small: not measured, 0 of 180 s are left",
        "gpu-check: 1 of 5 parts done; not: slow, long, late, small",
    ]
    code, lines = timeline(quick, late, small, budget=60)  # a part that still fits is run
    assert lines[2:] == [
        "20 s late: not measured, 40 of 60 s are left",
        "20 s small",
        "25 s small: done, 5 s",
        "gpu-check: 2 of 3 parts done; not: late",
    ]
    assert timeline(quick, small, budget=60)[0] == 0


def test_the_dry_run_tells_what_is_cut_and_needs_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.devices, "count", lambda kind: 0)
    monkeypatch.setattr(gpu_check.subprocess, "Popen", None)  # nothing is started
    assert gpu_check.main(["--dry-run", "--budget", "300"]) == 0
    out = capsys.readouterr().out
    assert "====    0 s  end to end: python -m bench.run end_to_end\n" in out
    assert "loading: not measured" in out
    assert gpu_check.main(["--dry-run", "--budget", "9000"]) == 0
    parts = len(gpu_check.PARTS)
    out = capsys.readouterr().out
    assert "last convolution: python -m profiling.kernels tail\n" in out
    assert f"gpu-check: {parts} of {parts} parts done\n" in out


def test_the_most_wanted_come_first():
    names = [part.name for part in gpu_check.PARTS]
    assert names[:3] == ["end to end", "tests of the implementations", "training step"]
    _, lines = timeline(*gpu_check.PARTS, budget=gpu_check.BUDGET)
    done = [line for line in lines if ": done, " in line]
    assert [line.partition(" s ")[2].partition(":")[0] for line in done[:5]] == names[:5]


def test_without_a_gpu_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.devices, "count", lambda kind: 0)
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().err.startswith("gpu-check: error: no CUDA GPU")


def test_parts_name_what_exists_and_fit_into_the_budget():
    assert sum(part.least for part in gpu_check.PARTS) < gpu_check.BUDGET < 540 - gpu_check.GRACE
    for one in gpu_check.PARTS:
        assert one.least < one.usual < one.most
        assert one.command[0] == "-m"
        assert find_spec(one.command[1])
        for word in one.command:
            assert not word.startswith("tests/") or (ROOT / word).is_file()
