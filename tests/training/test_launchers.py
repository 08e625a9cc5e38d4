"""The seed's commands, verbatim from the project's root."""

import re
import subprocess

import pytest
from runs import ROOT, TINY, cli, events, make_data

from rdn_fast import devices

LAUNCHERS = ("train_full_1p", "train_performance_1p", "train_full_8p", "train_performance_8p", "train_finetune_1p")

GREPPED = (
    r"^epoch:\d+ FPS: \d+\.\d{3}$",
    r"^best epoch: \d+, psnr: -?\d+\.\d{2}$",
    r"^Final Performance images/sec : \d+\.\d+$",
    r"^Final Train Accuracy : -?\d+\.\d+$",
    r"^E2E Training Duration sec : \d+\.\d+$",
)


def launch(name: str, *flags, timeout: float = 300) -> subprocess.CompletedProcess:
    words = ["bash", f"./test/{name}.sh", *map(str, flags)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), images=9)


@pytest.mark.parametrize("name", [pytest.param("train_performance_1p", marks=pytest.mark.slow), "train_performance_8p"])
def test_prints_what_tools_grep(data, tmp_path, name):
    ranks = ("--nproc", 2) if name.endswith("8p") else ()
    if ranks and devices.count("cpu") < 2:
        pytest.skip("two ranks need two cores")
    result = launch(name, f"--data_path={data}/", "--outputs-dir", tmp_path, *TINY, "--batch-size", 2, *ranks)
    assert result.returncode == 0, result
    for pattern in GREPPED:
        assert len(re.findall(pattern, result.stdout, re.M)) == 1, (pattern, result.stdout)
    assert len(events(tmp_path, "epoch")) == 1


@pytest.mark.parametrize(
    "name", [*LAUNCHERS[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in LAUNCHERS[2:])]
)
def test_keeps_exit_codes_and_errors(tmp_path, name):
    result = launch(name, f"--data_path={tmp_path}/none", "--nproc", 1)
    assert result.returncode == 2
    remedy = "give that of DIV2K_x2.h5 and Set5_x2.h5"
    assert result.stderr == f"rdn-fast: error: --data-path {tmp_path}/none: no such folder; {remedy}\n"


@pytest.mark.skipif(
    devices.count("cuda") + devices.count("npu") >= 8 or devices.count("cpu") >= 8, reason="eight devices are here"
)
def test_eight_cards_on_a_smaller_machine(data):
    result = launch("train_full_8p", f"--data_path={data}")
    assert result.returncode == 2
    assert re.fullmatch(
        r"rdn-fast: error: --nproc 8: this machine has .*; ask for that many with --nproc \d+\n", result.stderr
    )


@pytest.mark.slow
def test_fine_tuning_takes_weights(data, tmp_path):
    assert cli("train", "--data-path", data, "--outputs-dir", tmp_path / "a", *TINY, "--max-steps", 1).returncode == 0
    flags = ("--weights-file", tmp_path / "a/last.pth", "--outputs-dir", tmp_path / "b", *TINY, "--epochs", 1)
    result = launch("train_finetune_1p", f"--data_path={data}", *flags)
    assert result.returncode == 0, result


@pytest.mark.slow
def test_the_full_model_by_the_seeds_command(data, tmp_path):
    result = launch(
        "train_performance_1p", f"--data_path={data}", "--outputs-dir", tmp_path, "--patch-size", 16, timeout=900
    )
    assert result.returncode == 0, result
    assert "22.12 M parameters" in result.stdout
    for pattern in GREPPED:
        assert len(re.findall(pattern, result.stdout, re.M)) == 1, (pattern, result.stdout)
