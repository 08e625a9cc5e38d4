"""`make gpu-check`, as far as a machine without a GPU can tell: the order of its parts, and their limits."""

from __future__ import annotations

import io
import time
from importlib.util import find_spec

import pytest
from runs import ROOT

from bench import gpu_check
from bench.gpu_check import Part, check


def part(name: str, program: str, least: float = 0, most: float = 60) -> Part:
    return Part(name, ("-c", program), least, most)


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


def test_what_later_parts_need_is_kept_for_them():
    log = io.StringIO()
    check((part("greedy", "import time; time.sleep(300)"), part("next", "pass", least=100)), 102, log)
    assert "greedy: STOPPED after 2 s" in log.getvalue()


def test_without_a_gpu_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.devices, "count", lambda kind: 0)
    assert gpu_check.main() == 2
    assert capsys.readouterr().err.startswith("gpu-check: error: no CUDA GPU")


def test_parts_name_what_exists_and_fit_into_the_budget():
    assert sum(part.least for part in gpu_check.PARTS) < gpu_check.BUDGET < 540 - gpu_check.GRACE
    for one in gpu_check.PARTS:
        assert one.least < one.most
        assert one.command[0] == "-m"
        assert find_spec(one.command[1])
        for word in one.command:
            assert not word.startswith("tests/") or (ROOT / word).is_file()
