"""What may go wrong when triton_planes meets a machine: each error is raised by Triton itself, and none ends a run."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from rdn_fast.errors import UserError
from rdn_fast.rdb import triton_configs, tuning

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from hopper import Hopper  # noqa: E402
from triton.compiler.errors import CompilationError  # noqa: E402
from triton.runtime import build  # noqa: E402
from triton.runtime.errors import OutOfResources, PTXASError  # noqa: E402

PLANES = torch.empty(3, 1, 4, 4, 16)
PYTHON_H = "main.c:2:10: fatal error: Python.h: No such file or directory"


@triton.jit
def good(x):
    tl.store(x, 1.0)


@triton.jit
def wrong(x):
    tl.store(x, tl.arange(0, 4) + tl.arange(0, 8))


@triton.jit
def large(x):
    i = tl.arange(0, 256)
    a = tl.load(x + i[:, None] * 256 + i[None, :])
    tl.store(x + i[:, None] * 256 + i[None, :], tl.dot(a, a))


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """Take the CPU for a card, with Triton's driver of a Hopper GPU and empty cache folders. Return the folder."""
    monkeypatch.setattr(triton_configs, "is_host", lambda device: False)
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    good.device_caches.clear()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    build._find_compiler.cache_clear()
    yield tmp_path
    build._find_compiler.cache_clear()


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def fails_to_compile(folder, monkeypatch):
    wrong.warmup(torch.float32, grid=(1,))


def fails_to_assemble(folder, monkeypatch):
    """ptxas is older than the code, say."""
    version = "Cuda compilation tools, release 12.8, V12.8.93"
    fatal = 'echo "ptxas fatal   : no such target" >&2; exit 255'
    path = program(folder / "ptxas", f'case "$*" in *--version*) echo "{version}";; *) {fatal};; esac')
    for variable in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):  # which one depends on Triton's version
        monkeypatch.setenv(variable, path)
    good.warmup(torch.float32, grid=(1,))


def needs_more_shared_memory(folder, monkeypatch):
    large.warmup(torch.float32, grid=(1,), num_stages=1)[(1,)]


def finds_no_header(folder, monkeypatch):
    """Triton's launcher in C needs Python's headers (python3-dev)."""
    monkeypatch.setenv("CC", program(folder / "cc", f"echo '{PYTHON_H}' >&2; exit 1"))
    build.compile_module_from_src("int x;", "launcher")


def finds_no_compiler(folder, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    build.compile_module_from_src("int y;", "launcher")


def cannot_write_its_cache(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "file" / "triton"))
    good.warmup(torch.float32, grid=(1,))


FAULTS = {
    fails_to_compile: CompilationError,
    fails_to_assemble: PTXASError,
    needs_more_shared_memory: OutOfResources,
    finds_no_header: subprocess.CalledProcessError,
    finds_no_compiler: RuntimeError,
    cannot_write_its_cache: OSError,
}


def choose(*launches) -> int:
    """Let a kernel have a configuration for each launch(), choose, and return the number of the one that was taken."""
    configs = triton_configs.KernelConfigs({"layer": [{"number": i} for i in range(len(launches))]})

    def launch(config):
        launches[config["number"]]()
        return config["number"]

    return configs.run("layer", launch, PLANES)


def works():
    pass


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_configuration_that_cannot_be_launched_is_left_out(fault, machine, monkeypatch):
    with pytest.raises(FAULTS[fault]), monkeypatch.context() as patch:
        fault(machine, patch)  # the fault is real

    def launch():
        with monkeypatch.context() as patch:
            fault(machine, patch)

    assert choose(launch, works, launch) == 1
    with pytest.raises(UserError) as told:
        choose(launch, launch)
    line = str(told.value)
    assert line.startswith("--rdb triton_planes: its kernel layer cannot be built or run here (")
    assert line.endswith("); choose another --rdb")
    assert "\n" not in line


def test_running_out_of_memory_ends_the_choice():
    def greedy():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        choose(greedy, works)


class Clock:
    """Stands in for DeviceTimer: a configuration takes `seconds[number]`, as often as it is called."""

    def __init__(self, monkeypatch, *seconds):
        self.seconds, self.now, self.began, self.launched = seconds, 0.0, 0.0, []
        monkeypatch.setattr(triton_configs, "DeviceTimer", lambda device: self)

    def launches(self):
        def launch(number):
            self.launched.append(number)
            self.now += self.seconds[number]

        return [lambda number=number: launch(number) for number in range(len(self.seconds))]

    def start(self):
        self.began = self.now

    def stop(self):
        self.span = self.now - self.began

    def read(self):
        return self.span if self.began else 0.0


def test_the_fastest_is_remembered_for_other_processes_and_a_resume(monkeypatch, machine):
    clock = Clock(monkeypatch, 3.0, 1.0, 2.0)
    assert choose(*clock.launches()) == 1
    assert len(clock.launched) > 3 * triton_configs.ROUNDS
    clock = Clock(monkeypatch, 1.0, 3.0, 2.0)  # another process, in which the timing would come out otherwise
    assert choose(*clock.launches()) == 1
    assert set(clock.launched) == {1}  # nothing was timed
    (key,) = json.loads((machine / "tuning.json").read_text())
    assert f"triton {triton.__version__}" in key


def test_of_two_processes_that_time_at_once_the_first_chooses_for_both(monkeypatch, machine):
    late = Clock(monkeypatch, 1.0, 3.0)
    early = {"done": False}

    def other_process():
        if not early["done"]:
            early["done"] = True
            with monkeypatch.context() as patch:
                assert choose(*Clock(patch, 3.0, 1.0).launches()) == 1

    first, second = late.launches()
    assert choose(lambda: (other_process(), first()), second) == 1


def test_a_remembered_configuration_that_cannot_be_launched_any_more_is_replaced(monkeypatch, machine):
    assert choose(*Clock(monkeypatch, 3.0, 1.0).launches()) == 1

    def broken():
        finds_no_compiler(machine, monkeypatch)

    first, _ = Clock(monkeypatch, 3.0, 1.0).launches()
    assert choose(first, broken) == 0
    assert choose(*Clock(monkeypatch, 3.0, 1.0).launches()) == 0


def test_a_choice_of_one_is_not_remembered(monkeypatch, machine):
    """profiling/kernels.py restricts the candidates; that is no choice."""
    assert choose(works) == 0
    assert not (machine / "tuning.json").exists()
