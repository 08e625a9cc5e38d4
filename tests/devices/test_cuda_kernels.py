"""Launching compiled kernels by a driver that is not there: a stand-in tells what it was given (libcuda.c)."""

import ctypes
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rdn_fast import native
from rdn_fast.devices import cuda_kernels
from rdn_fast.devices.cuda_kernels import Boxes, Kernels

pytestmark = pytest.mark.skipif(native.compiler() is None, reason=native.NO_COMPILER)


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """Kernels whose compiler and driver are stand-ins."""
    source, library = Path(__file__).with_name("libcuda.c"), tmp_path / "libcuda.so.1"
    subprocess.run([native.compiler(), "-shared", "-fPIC", "-w", source, "-o", library], check=True)
    driver = ctypes.CDLL(str(library))
    monkeypatch.setattr(cuda_kernels, "_driver", lambda: driver)
    compiled = []

    def compile_cubin(source, header, options):
        compiled.append(options)
        return b"machine code", ""

    monkeypatch.setattr(cuda_kernels, "compile_cubin", compile_cubin)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0x7F00_1234_5678))
    made = Kernels(Path("any.cu"), Path("any.cuh"))
    made.compiled = compiled
    return made


def launch(kernels, number: int, options=("-DTYPE=f16",)):
    planes, result = torch.zeros(6, 5, 40, dtype=torch.float16), torch.zeros(3)
    kernels.launch("layer", (9, 2), 384, 228_144, (Boxes(planes, (4, 34, 144)), result, number), options)
    return planes, result


def test_the_driver_is_given_what_a_launch_means(kernels, capfd):
    planes, result = launch(kernels, 5)
    assert planes.view(torch.int16).flatten()[:2].tolist() == [7, 0]  # the map is of the tensor itself
    assert result.tolist() == [8, 0, 0]
    assert capfd.readouterr().out.splitlines() == [
        "load machine code",
        "function 1 layer",
        "attribute 1 8 228144",
        "map 0 1 3; 40 5 6; 80 400; 144 34 4; 1 1 1; 0 0 2 0",
        "launch 1; 9 2 1; 384 1 1; 228144; 0x7f0012345678 0",
        f"{'m' * 120} 5",
    ]


def test_kernels_are_compiled_and_loaded_once_for_each_set_of_options(kernels, capfd):
    for options in (["-DTYPE=f16"], ["-DTYPE=f16"], ["-DTYPE=bf16"]):
        launch(kernels, 0, options)
    assert kernels.compiled == [("-DTYPE=f16",), ("-DTYPE=bf16",)]
    words = [line.split()[0] for line in capfd.readouterr().out.splitlines()]
    assert (words.count("load"), words.count("function"), words.count("launch")) == (2, 2, 3)


def test_an_error_of_the_driver_is_raised(kernels):
    with pytest.raises(RuntimeError, match="CUDA error: an illegal access"):
        launch(kernels, -1)
