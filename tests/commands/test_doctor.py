"""`rdn-fast doctor`: works on every machine, is quick, and is right about whether training can run."""

import os
import re
from pathlib import Path

import pytest
import torch
from runs import ROOT
from runs import cli as process
from test_ascend import NO_CANN, install

from rdn_fast import ascend, auto_level, devices, native, precision
from rdn_fast.commands.tune_modes import cases_of
from rdn_fast.config import make_configs
from rdn_fast.rdb import IMPLS, tuning
from rdn_fast.rdb.rounds import Verdict

LABELS = [
    "tested",
    "python",
    "torch",
    "torch_npu",
    "CANN",
    "drivers",
    "devices",
    "apex",
    "triton",
    "h5py",
    "C compiler",
]
LABELS += ["opt-level", "rdb", "rdb auto", "cache folder", "training"]


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    monkeypatch.setenv(ascend.AUTOLOAD, "0")  # doctor sets it


@pytest.fixture
def remembered(monkeypatch, tmp_path):
    """Return remembered(impl, level=None), which adds tuning results for doctor's case on the CPU in float32."""
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    case, _ = cases_of(*make_configs({"device": "cpu", "opt_level": "O0"}, "rdn-b"), torch.device("cpu"))

    low = precision.resolve("O1", "bf16", case.device)

    def remember(impl: str, level: str | None = None) -> None:
        verdicts = {case.key(): impl, auto_level.level_key(case, low, "auto"): level}
        tuning.remember({key: Verdict(choice, True) for key, choice in verdicts.items() if choice})

    return remember


def table(text: str) -> dict[str, str]:
    """Return the table's states by label. The table must be wide enough for its lines."""
    rows = re.findall(r"^│ (.{,12}?) +│ (.*?) *│$", text, re.MULTILINE)
    told = {}
    for label, state in rows:
        name = label or next(reversed(told))
        told[name] = "\n".join(filter(None, (told.get(name), state)))
    return told


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_tells_all_and_compiles_and_times_nothing(tmp_path):
    ended = process("doctor", "--device", "cpu", env={"XDG_CACHE_HOME": str(tmp_path)})
    assert (ended.returncode, ended.stderr) == (0, "")
    told = table(ended.stdout)
    assert list(told) == LABELS
    assert torch.__version__ in told["torch"]
    assert " GB free" in told["devices"]
    assert told["cache folder"] == f"{tmp_path}/rdn_fast, 0 files, 0.0 MB"
    assert told["rdb auto"].startswith("not timed yet for 8 patches of 32x32 in ")
    assert told["training"] == "can run on cpu"
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_says_which_impls_can_run_and_why_others_cannot(cli):
    can, *cannot = table(cli("doctor", "--device", "cpu").out)["rdb"].splitlines()
    assert can.startswith("naive, ")
    assert "compiled runs on cuda only" in cannot
    assert {*can.removesuffix(" can run").split(", "), *(line.split()[0] for line in cannot)} == set(IMPLS)


def test_says_what_auto_would_take(cli, remembered):
    assert "not timed yet" in table(cli("doctor", "--device", "cpu").out)["rdb auto"]
    remembered("sliced")
    state = table(cli("doctor", "--device", "cpu").out)["rdb auto"]
    assert state.startswith("sliced: the fastest when 8 patches of 32x32 in ")
    remembered("compiled")  # which cannot run there
    assert "not timed yet" in table(cli("doctor", "--device", "cpu").out)["rdb auto"]


def test_says_which_level_auto_takes(cli, remembered, monkeypatch):
    def told() -> str:
        return table(cli("doctor", "--device", "cpu").out)["opt-level"]

    monkeypatch.setattr(devices, "has_instructions", lambda *_: False)
    assert told() == "auto: O0, since this CPU emulates bfloat16"
    monkeypatch.setattr(devices, "has_instructions", lambda *_: True)
    assert told() == "auto: not timed yet for 8 patches of 32x32 in float32 and bfloat16"
    remembered("summed", "O1")
    assert told() == "auto: O1, by timing 8 patches of 32x32 in float32 and bfloat16"
    assert table(cli("doctor", "--device", "cpu").out)["rdb auto"].startswith(
        "not timed yet for 8 patches of 32x32 in bf"
    )


def test_fits_on_a_terminal(cli, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in cli("doctor", "--device", "cpu").out.splitlines()]
    rows = [line for line in lines if line.startswith("│")]
    assert len(rows) >= len(LABELS)
    assert max(map(len, rows)) <= 100
    assert len(lines) < 50


@pytest.mark.parametrize("device", ["tpu", "cpu:1"])
def test_a_name_of_no_device_is_a_mistake(cli, device):
    assert f"--device {device}: " in cli("doctor", "--device", device).user_error()


@pytest.mark.parametrize("device", ["cuda:99"])
def test_a_device_that_is_not_there_fails_and_is_told_once(cli, device):
    ended = cli("doctor", "--device", device)
    assert (ended.code, ended.err) == (1, "")
    assert list(table(ended.out)) == LABELS
    assert ended.out.count(f"- opt-level, rdb, rdb auto, training: --device {device}: ") == 1


def test_asks_the_drivers_tools(cli, tmp_path, monkeypatch):
    program(tmp_path / "bin", "npu-smi", "echo '| npu-smi 24.1.rc3     Version: 24.1.rc3     |'")
    program(tmp_path / "bin", "nvidia-smi", "echo 'Failed to initialize NVML'; exit 18")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin")
    ended = cli("doctor", "--device", "cpu")
    assert table(ended.out)["drivers"] == "24.1.rc3 (npu-smi), unknown (nvidia-smi)"
    assert "- drivers: `nvidia-smi --query-gpu=driver_version` ends with 18; install the driver" in ended.out
    assert ended.code == 0


def test_without_a_compiler_training_can_run_all_the_same(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)  # which may be a path
    ended = cli("doctor", "--device", "cpu")
    assert f"- C compiler: {native.NO_COMPILER}" in ended.out
    assert ended.code == 0


BROKEN = {
    "torch.py": "raise OSError('libtorch_cpu.so: file too short')",
    "h5py.py": "raise ImportError('libhdf5.so.310: cannot open shared object file')",
    "triton/__init__.py": "",  # an old one
    "triton/tools/__init__.py": "",
    "apex/__init__.py": "",
}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["torch.py", "h5py.py"], ["- torch, devices, ", ", training: libtorch_cpu.so: file too short\n"]),
        (["h5py.py"], ["h5py, training: libhdf5.so.310: cannot open"]),
    ],
    ids=["torch", "h5py"],
)
def test_whatever_is_broken_the_rest_is_told_and_the_exit_is_1(tmp_path, files, words):
    for name in files:
        (tmp_path / name).write_text(BROKEN[name])
    (tmp_path / "file").touch()
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "XDG_CACHE_HOME": str(tmp_path / "file")}
    ended = process("doctor", env=environment)
    assert (ended.returncode, ended.stderr) == (1, "")
    told = table(ended.stdout)
    assert list(told) == LABELS
    assert told["C compiler"] == (native.compiler() or "no")
    for word in (*words, "- cache folder: it cannot be written"):
        assert word in ended.stdout


def test_what_is_broken_and_not_needed_is_told_and_the_exit_is_0(tmp_path):
    for name in ("triton/__init__.py", "triton/tools/__init__.py", "apex/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(BROKEN[name])
    ended = process("doctor", env=install(tmp_path, NO_CANN) | {ascend.AUTOLOAD: "1"})
    assert (ended.returncode, ended.stderr) == (0, "")
    for words in (
        "- torch_npu: CANN is missing (libhccl.so cannot be loaded)",
        f"{ascend.AUTOLOAD}=1 makes the other commands fail, too: unset it",
        "- triton: needs the package triton",
        "- apex: the installed `apex` has no apex.amp: it is PyPI's package of that name",
    ):
        assert words in ended.stdout
    assert table(ended.stdout)["torch_npu"] == "does not load"
