"""The road from a kernel's text to a launch: what is missing is told, and triton-ascend's part of it up to hivmc."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from runs import ROOT
from waiting import PATIENCE

from profiling import hivm
from rdn_fast.devices import npu_kernels
from rdn_fast.devices.npu_kernels import Toolchain
from rdn_fast.errors import UserError
from rdn_fast.rdb import npu_conv_kernels

A2 = "Ascend910B2"
TEXT = npu_conv_kernels.sums("layer", 64, 32, 8, torch.float16)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with an Ascend910B2, triton-ascend and CANN, as Toolchain.missing sees it; attributes change it."""
    library = tmp_path / "cann/lib/meta_op.aic.bc"
    for program in ("bishengir-compile", "hivmc"):
        file = tmp_path / "cann/bin" / program
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o755)
    library.parent.mkdir()
    library.write_bytes(b"_mlir_ciface_conv2d_group_half_to_float")
    fake = SimpleNamespace(chip=A2, folder=tmp_path / "cann", library=library, error=None)

    def import_module(name):
        assert name == "triton.backends.ascend.compiler"
        if fake.error:
            raise fake.error

    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(get_device_name=lambda: fake.chip))
    monkeypatch.setattr(npu_kernels, "import_module", import_module)
    monkeypatch.setenv("PATH", str(fake.folder / "bin"))
    return fake


@pytest.mark.parametrize("chip", [A2, "Ascend910B4", "Ascend910_9392", "Ascend910_9362"])
def test_nothing_is_missing_on_an_a2_or_a3_with_everything(machine, chip):
    machine.chip = chip
    assert Toolchain().missing is None


@pytest.mark.parametrize("chip", ["Ascend910A", "Ascend910B", "Ascend910ProB", "Ascend310P3", "Ascend910_9589"])
def test_other_chips_are_refused(machine, chip):
    machine.chip = chip
    assert Toolchain().missing.endswith(f"the compiler has no target for {chip}")


def test_each_part_that_is_missing_is_named(machine):
    machine.library.write_bytes(b"of an older CANN")
    assert "has conv2d_group_half_to_float" in Toolchain().missing
    (machine.folder / "bin/hivmc").unlink()
    assert Toolchain().missing.startswith("needs CANN's hivmc, which is not in PATH; source CANN's set_env.sh")
    (machine.folder / "bin/bishengir-compile").unlink()
    assert Toolchain().missing.startswith("needs CANN's bishengir-compile")
    machine.error = ModuleNotFoundError("No module named 'triton'")
    assert Toolchain().missing.endswith("pybind11`; its import fails: No module named 'triton'")


def test_where_no_library_is_found_the_trial_decides(machine):
    machine.library.unlink()
    assert Toolchain().missing is None


def test_a_kernel_is_compiled_once_and_launched_on_as_many_cores_as_it_has_items(monkeypatch):
    launches, compiled = [], []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments: launches.append((grid, arguments))

    monkeypatch.setattr(npu_kernels, "compile_kernel", lambda text, _: compiled.append(text) or Kernel())
    toolchain = Toolchain()
    toolchain.cores = 24
    for items in (7, 100):
        toolchain.launch("text", (1, 2), items)
    assert launches == [((7, 1, 1), (1, 2)), ((24, 1, 1), (1, 2))]
    assert compiled == ["text"]


def test_a_kernel_that_cannot_be_compiled_is_one_line(monkeypatch):
    def fail(*_):
        raise RuntimeError("hivmc: no space left")

    monkeypatch.setattr(npu_kernels, "compile_kernel", fail)
    with pytest.raises(UserError, match="a kernel cannot be compiled: hivmc: no space left; choose another --rdb"):
        Toolchain().launch("text", (1, 2), 3)


# In a process of its own: triton-ascend there, and a card of which only the name is known.
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from triton.backends import backends
from triton.backends.ascend.driver import NPUUtils, generate_npu_wrapper_src

for utils in (NPUUtils, backends["ascend"].driver.__init__.__globals__["NPUUtils"]):
    utils.__init__ = lambda self: None
    utils.get_arch = lambda self: "Ascend910B2"
    utils.get_aicore_num = lambda self: 24

from rdn_fast.devices.npu_kernels import compile_kernel, toolchain

x = torch.empty(1, dtype=torch.float16)
kernel = compile_kernel(sys.stdin.read(), (x,) * 5 + (1,) * 7)
print(toolchain.cores, kernel.name, kernel.metadata.tensor_kinds, kernel.kernel)
print(generate_npu_wrapper_src({}, kernel.src.signature, kernel.metadata))
"""
HIVMC = """#!/usr/bin/env bash
[ "$1" = --version ] && exit
cp "$1" module
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
echo -n machine code > "$out.o"
"""


def test_triton_ascend_compiles_the_text_up_to_hivmc_and_prepares_its_launch(tmp_path):
    """A stand-in for hivmc gets the module, and its output is kept in the cache folder and not compiled again."""
    package = hivm.package()
    if package is None or not (package.parent / "triton/backends/ascend").is_dir():
        pytest.skip("needs triton-ascend: make setup-ascend (Python 3.11, x86-64 Linux)")
    if f"python{sys.version_info[0]}.{sys.version_info[1]}" not in str(package):
        pytest.skip("the environment of make setup-ascend is for another Python")
    for name, text in {"hivmc": HIVMC, "bisheng": "#!/usr/bin/env bash\necho hiipu64"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(package / "bin"), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_CACHE_DIR", None)
    command = [sys.executable, "-c", PROGRAM, str(package.parent)]

    def run():
        ended = subprocess.run(
            command,
            input=TEXT,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    first, *launcher = run().splitlines()
    assert first == "24 npu_conv_layer mix [0, 0, 0, 0, 1] b'machine code'"
    module = (tmp_path / "module").read_text()
    assert re.findall(r"func\.func @(\w+_mix_ai[cv])", module) == [
        "npu_conv_layer_mix_aic",
        "npu_conv_layer_mix_aiv",
    ]
    # The order in which the emulator hands over arguments, too.
    values = " ".join(launcher).partition("} args = {")[2]
    order = re.findall(r"ffts_addr|nullptr|arg\d+|grid[XYZ]", values)[:18]
    assert order == ["ffts_addr", "nullptr", "nullptr", *(f"arg{i}" for i in range(12)), "gridX", "gridY", "gridZ"]
    (tmp_path / "module").unlink()
    assert run().startswith(first)
    assert not (tmp_path / "module").exists()
    assert list((tmp_path / "cache/rdn_fast/triton").rglob("npu_conv_layer.npubin"))
