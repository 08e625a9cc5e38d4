"""The trial of kernels in a process of its own: what it says of faults that would end or stop the process of a run."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from runs import ROOT

from rdn_fast.errors import UserError
from rdn_fast.rdb import naive, select, trial, triton_planes, triton_trial, tuning
from rdn_fast.rdb.trial import flaw_on

CPU = torch.device("cpu")
MODULE = "rdn_fast.rdb.triton_trial"


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Use an empty cache folder; no trial was made by this process. Return the folder, from which modules can run."""
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    flaw_on.cache_clear()
    yield tmp_path
    flaw_on.cache_clear()


def fault(folder, program: str) -> str | None:
    """Return what flaw_on() tells of a trial that is this program; it may append to the file `runs`."""
    (folder / "stand_in.py").write_text(f"open({str(folder / 'runs')!r}, 'a').write('x')\n{program}")
    flaw_on.cache_clear()  # another process
    return flaw_on(CPU, "--rdb planes", "stand_in", "1")


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import os; os.kill(os.getpid(), 11)", "it was ended by signal 11"),
        ("print('CUDA error: an illegal memory access was encountered'); exit(1)", "CUDA error: an illegal memory .*"),
        pytest.param("import time; time.sleep(300)", "it did not end within 3 s", marks=pytest.mark.slow),
        ("raise SystemExit(9)", "it ended with 9"),
        ("import ctypes; ctypes.string_at(0)", "it was ended by signal 11"),
    ],
)
def test_a_fault_is_one_line_and_is_tried_again_by_the_next_process(program, told, folder, monkeypatch, capfd):
    monkeypatch.setattr(trial, "PATIENCE", 3.0)
    for _ in range(2):
        flaw = fault(folder, program)
        assert re.fullmatch(f"fails in a trial on this card: {told}", flaw)
        assert flaw_on(CPU, "--rdb planes", "stand_in", "1") == flaw  # known by this process
        assert capfd.readouterr().out == f"note: --rdb planes {flaw}\n"
    assert (folder / "runs").read_text() == "xx"


def test_what_passes_is_remembered_for_these_kernels(folder):
    assert [fault(folder, "") for _ in range(3)] == [None] * 3
    assert (folder / "runs").read_text() == "x"
    flaw_on(CPU, "--rdb planes", "stand_in", "2")
    assert (folder / "runs").read_text() == "xx"


def test_where_the_process_gets_no_device_nothing_is_known(folder):
    """A card may serve one process at a time: the run's."""
    assert fault(folder, f"exit({trial.NO_DEVICE})") is None
    assert not (folder / "tuning.json").exists()


def test_the_real_trial_passes_in_the_interpreter(monkeypatch, folder):
    triton = pytest.importorskip("triton")
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0" and triton.__version__.startswith("3.6."):
        pytest.skip(f"the interpreter of triton {triton.__version__} needs numpy < 2.4")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert flaw_on(CPU, "--rdb triton_planes", MODULE, "1") is None
    assert set(json.loads((folder / "tuning.json").read_text()).values()) == {trial.PASSED}


def test_the_real_trial_tells_what_triton_raises():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", MODULE, "cpu"]  # it has no driver for a CPU
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 1, ended
    assert ended.stdout.startswith("RuntimeError: 0 active drivers"), ended
    assert ended.stdout.count("\n") == 1


def test_the_real_trial_ends_without_a_verdict_where_there_is_no_device():
    if torch.cuda.is_available():
        pytest.skip("here is one")
    ended = subprocess.run([sys.executable, "-m", MODULE, "cuda:0"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (trial.NO_DEVICE, ""), ended


def test_wrong_results_are_a_flaw():
    assert triton_trial.flaw(CPU, naive.rdb) is None

    def wrong_output(x, *weights):
        return naive.rdb(x, *weights) * 1.1

    def wrong_gradient(x, conv_w, *weights):
        return naive.rdb(x, [conv_w[0].detach(), conv_w[1]], *weights) + 0 * conv_w[0].sum()

    def not_a_number(x, *weights):
        return naive.rdb(x, *weights) * float("nan")

    assert triton_trial.flaw(CPU, wrong_output) == "the output is wrong by 0.1"
    assert triton_trial.flaw(CPU, wrong_gradient) == "the gradient of weights (3) is wrong by 1"
    assert triton_trial.flaw(CPU, not_a_number) == "the output is wrong by nan"


def test_an_impl_with_a_flaw_cannot_be_selected(monkeypatch, capsys):
    """auto goes on without it; its name is refused in one line."""
    pytest.importorskip("triton")
    monkeypatch.setattr(triton_planes, "current_gpu", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(trial, "hardware", lambda device: "Some card")
    monkeypatch.setattr(trial, "_run", lambda command: (1, "the output is wrong by 0.3"))
    with pytest.raises(UserError) as told:
        select("triton_planes", torch.device("cuda"), torch.float16, training=True)
    assert str(told.value) == (
        "--rdb triton_planes fails in a trial on this card: the output is wrong by 0.3; "
        "on cuda in float16 can run: naive, summed, sliced, compiled"
    )
    assert capsys.readouterr().out.count("\n") == 1
