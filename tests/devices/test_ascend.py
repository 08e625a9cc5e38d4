"""Importing torch_npu: each failure is one line with the remedy, and a broken one does not matter on the CPU.

The packages named torch_npu are stand-ins that fail as the real one does; the last test uses its wheel. The device is
the simulated one.
"""

import functools
import os
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from runs import ROOT, TINY, assert_user_error, cli, events, make_data
from waiting import PATIENCE

from rdn_fast import ascend
from rdn_fast.distributed import process_group

RELEASE = re.match(r"\d+\.\d+\.\d+", torch.__version__)[0]
MISSING = "raise ImportError('{}: cannot open shared object file: No such file or directory')"
NO_CANN, NO_DRIVER = MISSING.format("libhccl.so"), MISSING.format("libascend_hal.so")
DEVICES = """
import torch, types
torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", types.SimpleNamespace(is_available=lambda: bool({0}), device_count=lambda: {0}))
torch.accelerator.set_device_index = print
"""
NO_DEVICE = DEVICES.format(0)
NAIVE = (*TINY, "--rdb", "naive")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Unset every variable that matters here."""
    for name in (ascend.AUTOLOAD, *ascend._DEFAULTS, "ASCEND_DEVICE_ID", "ASCEND_RT_VISIBLE_DEVICES", "RANK"):
        monkeypatch.delenv(name, raising=False)


def install(site: Path, code: str, version: str = RELEASE) -> dict[str, str]:
    """Write a torch_npu with this code to `site`, announced to torch as the real one is.

    Return the environment of processes that import it.
    """
    for file, text in {
        "torch_npu/__init__.py": f"{code}\ndef _autoload(): pass\n",
        f"torch_npu-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\n",
        f"torch_npu-{version}.dist-info/entry_points.txt": "[torch.backends]\ntorch_npu = torch_npu:_autoload\n",
    }.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)
    return {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


@pytest.fixture
def package(tmp_path):
    """Return package(code, version): install() into a folder of the test."""
    return functools.partial(install, tmp_path / "site")


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "data")


def python(program: str, environment: dict[str, str]) -> str:
    """Return what the program prints in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


WRONG = {  # torch_npu's code, its version, and words of the message
    "CANN": (
        NO_CANN,
        RELEASE,
        ("CANN is missing (libhccl.so cannot be loaded)", "source /usr/local/Ascend/ascend-toolkit/set_env.sh"),
    ),
    "driver": (
        NO_DRIVER,
        RELEASE,
        ("the Ascend driver is missing (libascend_hal.so ", "mount /usr/local/Ascend/driver", "`npu-smi info`"),
    ),
    "torch": (
        MISSING.format("libtorch_cuda.so"),
        RELEASE,
        ("importing torch_npu fails: libtorch_cuda.so: cannot open",),
    ),
    "other": (
        "raise RuntimeError('Two accelerators\\n[ERROR] 2026')",
        RELEASE,
        ("importing torch_npu fails: Two accelerators; ",),
    ),
    "versions": (
        "open('imported', 'w')",
        "1.2.3.post4",
        (
            f"torch_npu 1.2.3.post4 does not go with torch {torch.__version__}",
            f"pip install torch-npu=={RELEASE}, or torch==1.2.3",
        ),
    ),
    "no device": (
        NO_DEVICE,
        RELEASE + "rc1",
        ("torch_npu finds no device", "`npu-smi info`", "--device /dev/davinci0", "ASCEND_RT_VISIBLE_DEVICES=7 must"),
    ),
}
SLOW = ("driver", "torch", "other")  # the others of their kind


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in WRONG])
def test_what_is_wrong_is_one_line(package, tmp_path, kind):
    code, version, words = WRONG[kind]
    environment = package(code, version) | {"ASCEND_RT_VISIBLE_DEVICES": "7"}
    ended = cli("train", "--device", "npu", env=environment, cwd=tmp_path)
    assert_user_error(ended, "--device npu: ", *words, "--device cpu works everywhere")
    assert not (tmp_path / "imported").exists()


@pytest.mark.skipif(ascend.installed(), reason="torch_npu is installed")
def test_not_installed_is_one_line_when_asked_for_and_nothing_else():
    program = """
from rdn_fast import devices
devices.resolve("auto")
try:
    devices.resolve("npu")
except devices.select.UserError as error:
    print(error)
"""
    message = (
        f"--device npu: torch_npu is not installed; pip install torch-npu=={RELEASE}, the one for this torch; "
        "--device cpu works everywhere\n"
    )
    assert python(program, {"PYTHONPATH": str(ROOT)}) == message


def test_what_pip_leaves_behind_is_not_installed(tmp_path):
    (tmp_path / "torch_npu/__pycache__").mkdir(parents=True)
    program = (
        "from importlib.util import find_spec; from rdn_fast import ascend; "
        "print(find_spec('torch_npu') is None, ascend.installed())"
    )
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    if find_spec("torch_npu") is None:
        assert python(program, environment).split() == ["False", "False"]


@pytest.mark.parametrize(
    "code", [NO_CANN, pytest.param(NO_DEVICE, marks=pytest.mark.slow)], ids=["broken", "no device"]
)
def test_auto_goes_on_without_and_says_so_once(package, code):
    program = """
import os
from rdn_fast import devices
for os.environ["RANK"] in ("1", "0"):
    devices.select._note.cache_clear()
    print(*{devices.resolve("auto") for _ in range(3)})
"""
    kind, note, again = python(program, package(code) | {ascend.AUTOLOAD: "0"}).splitlines()
    assert note.startswith(f"note: --device auto takes {kind}: ")
    assert again == kind


@pytest.mark.slow
def test_cpu_needs_no_torch_npu(package, data, tmp_path):
    environment = package(NO_CANN)
    flags = (*NAIVE, "--data-path", data, "--outputs-dir", tmp_path / "out", "--batch-size", 8, "--max-steps", 2)
    ended = cli("train", *flags, "--device", "cpu", env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "note: " not in ended.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is a GPU here, of which there may be one only")
def test_ranks_are_told_what_auto_is(package, data, tmp_path):
    flags = (*NAIVE, "--data-path", data, "--outputs-dir", tmp_path / "out", "--batch-size", 4, "--max-steps", 2)
    ended = cli("train", *flags, "--nproc", 2, env=package(NO_CANN))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("note: --device auto takes cpu: CANN is missing")
    assert ended.stdout.count("CANN is missing") == 1


def test_an_autoload_that_the_user_asked_for_and_fails_is_one_line(package):
    ended = cli("train", "--device", "cpu", env=package(NO_CANN) | {ascend.AUTOLOAD: "1"})
    assert_user_error(
        ended,
        "TORCH_DEVICE_BACKEND_AUTOLOAD=1 makes `import torch` fail: CANN is missing (libhccl.so ",
        "set_env.sh",
        "unset it",
    )


def test_other_runtime_errors_are_no_autoload_failures():
    assert ascend.autoload_failure(RuntimeError("out of memory")) is None


def test_help_and_version_do_not_import_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for words in (["--help"], ["--version"], ["train", "--help"]):
        ended = cli(*words, env=environment)
        assert (ended.returncode, ended.stderr) == (0, "")
    assert "torch was imported" in cli("train", env=environment).stderr  # the stand-in is in the way


def test_the_library_leaves_the_environment_alone(package):
    program = """
import os
before = dict(os.environ)
import rdn_fast.cli, rdn_fast.devices, rdn_fast.training.launch
print(set(os.environ.items()) ^ set(before.items()))
"""
    assert python(program, package(NO_CANN) | {ascend.AUTOLOAD: "0"}) == "set()\n"


def test_torch_npu_finds_what_it_wants_in_the_environment_unless_the_user_set_it(package):
    names = sorted(ascend._DEFAULTS)
    code = f"import os; print([os.environ.get(name) for name in {names}])"
    environment = package(code) | {ascend.AUTOLOAD: "0", "TASK_QUEUE_ENABLE": "1", "HCCL_EXEC_TIMEOUT": "9"}
    expected = [{**ascend._DEFAULTS, "TASK_QUEUE_ENABLE": "1", "HCCL_EXEC_TIMEOUT": "9"}[name] for name in names]
    assert python("from rdn_fast import ascend; print(ascend.load())", environment) == f"{expected}\nNone\n"


def test_hccl_gives_up_before_the_process_group_does():
    assert int(ascend._DEFAULTS["HCCL_EXEC_TIMEOUT"]) < process_group.TIMEOUT
    assert int(ascend._DEFAULTS["HCCL_CONNECT_TIMEOUT"]) + 20 < process_group.TIMEOUT  # HCCL itself adds 20 s


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "variable"),
    [(("--device", "npu:1"), "0"), (("--device-id", "1"), "0"), ((), "1")],
    ids=["--device", "--device-id", "ASCEND_DEVICE_ID"],
)
def test_a_run_is_on_the_device_that_is_named(npu_environment, data, tmp_path, flags, variable):
    words = (*NAIVE, "--data-path", data, "--outputs-dir", tmp_path / "out", "--max-steps", 1)
    ended = cli("train", *words, *flags, env=npu_environment | {"ASCEND_DEVICE_ID": variable})
    assert ended.returncode == 0, ended.stderr
    assert events(tmp_path / "out", "start")[0]["device"].startswith("npu:1 ")


def test_which_name_of_a_device_wins(package):
    program = """
import os
from rdn_fast.devices import pick
from rdn_fast.errors import UserError
for os.environ["ASCEND_DEVICE_ID"], *words in CASES:
    try:
        print(pick(*words))
    except UserError as error:
        print(error)
"""
    none = "there is no npu:{}; this machine has 2 npu devices, counted from npu:0"
    number = "must be the number of a device; set it to 0 or unset it"
    expected = {  # the variable, then pick's arguments: the name, --device-id, the local rank
        ("", "npu"): "0\nnpu:0",
        ("1", "npu"): "1\nnpu:1",
        ("1", "auto"): "1\nnpu:1",
        ("1", "npu", 0): "0\nnpu:0",
        ("0", "auto", 1): "1\nnpu:1",
        ("1", "npu:0", 1): "0\nnpu:0",
        ("0", "npu:1", 0): "1\nnpu:1",
        ("1", "npu", None, 0): "0\nnpu:0",
        ("one", "npu", 1): "1\nnpu:1",
        ("one", "npu"): f"ASCEND_DEVICE_ID=one: {number}",
        ("-1", "npu"): f"ASCEND_DEVICE_ID=-1: {number}",
        ("²", "npu"): f"ASCEND_DEVICE_ID=²: {number}",
        ("2", "npu"): f"ASCEND_DEVICE_ID=2: {none.format(2)}",
        ("", "npu", 2): f"--device-id 2: {none.format(2)}",
        ("", "npu", -1): f"--device-id -1: {none.format(-1)}",
        ("", "npu:2"): f"--device npu:2: {none.format(2)}",
        ("", "npu:²"): "--device npu:²: choose auto, cpu, cuda[:i] or npu[:i], i being a number",
        ("", "npu", None, 2): f"local rank 2: {none.format(2)}",
        ("one", "cpu"): "cpu",
    }
    environment = package(DEVICES.format(2)) | {ascend.AUTOLOAD: "0", "PYTHONUTF8": "1"}
    printed = python(f"CASES = {list(expected)}\n{program}", environment)
    assert printed == "".join(f"{line}\n" for line in expected.values())


@pytest.mark.slow
@pytest.mark.skipif("RDN_TORCH_NPU_WHEEL" not in os.environ, reason="RDN_TORCH_NPU_WHEEL names no wheel of torch_npu")
def test_the_real_wheel_without_cann(data, tmp_path):
    wheel = Path(os.environ["RDN_TORCH_NPU_WHEEL"])
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    environment = {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    said = ("CANN is missing (libhccl.so cannot be loaded)", "source /usr/local/Ascend/ascend-toolkit/set_env.sh")
    assert_user_error(cli("train", "--device", "npu", env=environment), "--device npu: ", *said)
    assert_user_error(
        cli("train", "--device", "cpu", env=environment | {ascend.AUTOLOAD: "1"}),
        "TORCH_DEVICE_BACKEND_AUTOLOAD=1",
        *said,
    )
    flags = (*NAIVE, "--data-path", data, "--outputs-dir", tmp_path / "out", "--batch-size", 8, "--max-steps", 2)
    ended = cli("train", *flags, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("note: --device auto takes ")
    weights = ("--weights-file", tmp_path / "out/last.pth", "--eval-file", data / "Set5_x2.h5")
    assert cli("eval", *weights, "--device", "cpu", env=environment).returncode == 0
    assert_user_error(cli("eval", *weights, "--device", "npu", env=environment), *said)
    doctor = cli("doctor", env=environment)
    assert (doctor.returncode, doctor.stderr) == (0, "")
    assert said[0] in doctor.stdout
    assert "npu_conv runs on npu only" in doctor.stdout
    assert_user_error(cli("train", "--data-path", data, "--device", "npu", "--rdb", "npu_conv", env=environment), *said)
    report = cli("doctor", "--ascend-report", tmp_path / "report.md", env=environment)
    assert (report.returncode, report.stderr) == (1, "")
    assert report.stdout.splitlines()[-1].startswith(f"no card: {said[0]}")
    assert "| torch_npu | does not load |" in (tmp_path / "report.md").read_text()
