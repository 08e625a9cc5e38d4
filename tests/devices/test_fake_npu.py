"""The simulated npu passes tests/fake_npu/check_*.py, in a process that has the device, and rdn_fast trains on it."""

import subprocess
import sys

import pytest
import torch
from fake_npu import simulated_npu
from runs import TINY, cli, events, make_data
from waiting import PATIENCE

CHECKS = sorted(simulated_npu.HERE.glob("check_*.py"))


def python(npu_environment, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=npu_environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_the_checks_of_the_device_pass(npu_environment, tmp_path):
    assert len(CHECKS) == 6
    pytest_flags = ("-q", "--noconftest", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'checks'}")
    ended = python(npu_environment, "-m", "pytest", *pytest_flags, *CHECKS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "skipped" not in ended.stdout, ended.stdout


def test_it_refuses_to_stand_beside_another_device(npu_environment):
    program = "import torch; torch.utils.rename_privateuse1_backend('other'); import torch_npu"
    ended = python(npu_environment, "-c", program)
    assert "ImportError: torch already has the device other" in ended.stderr


def test_importing_it_where_it_cannot_be_is_an_import_error(npu_environment):
    ended = python({**npu_environment, "CXX": "no-such-compiler"}, "-c", "import torch_npu")
    assert ended.stderr.splitlines()[-1].startswith("ImportError: the simulated npu needs a C++ compiler")


def test_devices_are_as_many_as_asked_for(npu_environment):
    program = (
        "import torch, torch_npu; "
        "print(torch.npu.device_count(), torch.npu.is_available(), torch.accelerator.is_available())"
    )
    assert python({**npu_environment, "FAKE_NPU_DEVICES": "0"}, "-c", program).stdout.split() == ["0", "False", "False"]


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        (
            lambda patch: patch.setattr(torch, "__version__", "2.11.0+cu130"),
            r"written for torch 2\.13\.\*, this is 2\.11\.0\+cu130",
        ),
        (lambda patch: patch.setattr(sys, "platform", "darwin"), "written for Linux"),
        (lambda patch: patch.setenv("CXX", "no-such-compiler"), r"needs a C\+\+ compiler"),
        (
            lambda patch: patch.setattr(simulated_npu, "_installed", lambda package: package == "torch_npu"),
            "the real torch_npu is installed",
        ),
    ],
)
def test_where_it_cannot_be_used_it_says_why(lacking, words, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    lacking(monkeypatch)
    with pytest.raises(simulated_npu.CannotSimulate, match=words):
        simulated_npu.library()


def test_the_library_is_compiled_once_and_whole_or_not_at_all(npu_environment, monkeypatch):
    file = simulated_npu.library()
    before = file.stat().st_mtime_ns
    assert simulated_npu.library() == file
    assert file.stat().st_mtime_ns == before
    files = set(file.parent.iterdir())
    monkeypatch.setattr(simulated_npu, "FLAGS", ("-no-such-flag",))
    with pytest.raises(simulated_npu.CannotSimulate, match=r"could not be compiled: .*no-such-flag"):
        simulated_npu.library()
    assert set(file.parent.iterdir()) == files


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "named", "skipped"), [(1, "0:2,0:5", [2, 5]), (2, "1:3", [3])])
def test_an_overflow_that_gives_no_inf_is_a_skipped_step_on_every_rank(
    npu_environment, tmp_path, ranks, named, skipped
):
    data = make_data(tmp_path / "data")
    run_flags = ("--batch-size", 4, "--max-steps", 6, "--epochs", 6, "--nproc", ranks)
    flags = (*TINY, *run_flags, "--opt-level", "O1", "--rdb", "naive", "--device", "npu")
    variables = {"FAKE_NPU_SATURATES": "1", "FAKE_NPU_OVERFLOWS": named, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    files = ("--data-path", data, "--outputs-dir", tmp_path / "out")
    ended = cli("train", *files, *flags, env={**npu_environment, **variables})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [record["step"] for record in events(tmp_path / "out", "step") if record.get("skipped")] == skipped
