"""The program computes on the simulated npu what it computes on the CPU.

To the last bit, where the CPU has the npu's memory format and Adam (npu_reference.py).
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import TINY, cli, command, events, make_data, weights
from test_launchers import GREPPED, LAUNCHERS, launch
from waiting import PATIENCE

from bench.parity import SLACK, relative_error

pytestmark = pytest.mark.slow  # two processes with forty runs each

REFERENCE = Path(__file__).parent / "npu_reference.py"
O0 = ("--opt-level", "O0")
O1, O2, O1_BF16 = (
    ("--opt-level", level, "--amp-dtype", dtype) for level, dtype in (("O1", "fp16"), ("O2", "fp16"), ("O1", "bf16"))
)
ALL = ("--ema", "0.9", "--clip-grad", "0.1", "--weight-decay", "0.1")
RUNS = {
    "O0": O0,
    "O1": O1,
    "O2": O2,
    "O1 bf16": O1_BF16,
    "O0 mmap": (*O0, "--data-mode", "mmap"),
    "O0 resident": (*O0, "--data-mode", "resident"),
    "O0 h5py": (*O0, "--data-mode", "h5py"),
    "O0 ema": (*O0, "--ema", "0.9"),
    "O0 clip": (*O0, "--clip-grad", "0.1"),
    "O0 decay": (*O0, "--weight-decay", "0.1"),
    "O0 muon": (*O0, "--optimizer", "muon"),
    "O0 all": (*O0, *ALL),
    "O1 all": (*O1, *ALL),
    "O2 all": (*O2, *ALL),
    "O2 muon all": (*O2, *ALL, "--optimizer", "muon"),
}
STEPS = 6  # in two epochs, the last batch of each is one patch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), images=9)


def train(data: Path, out: Path, device: str, *flags) -> list[str]:
    recipe = ("--batch-size", 4, "--epochs", 2, "--device", device, "--rdb", "naive")
    words = ("train", "--data-path", data, "--outputs-dir", out, *TINY, *recipe, *flags)
    return [str(word) for word in words]


def reference(npu_environment, device: str, commands: list[list[str]], ranks: int = 1) -> subprocess.Popen:
    agent = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)) if ranks > 1 else ()
    words = [sys.executable, *agent, str(REFERENCE), device, json.dumps(commands)]
    return subprocess.Popen(words, env=npu_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    return err


@pytest.fixture(scope="module")
def folders(npu_environment, data, tmp_path_factory):
    """The same runs on the npu and on the CPU, each in one process: {device: folder}."""
    folders, processes = {device: tmp_path_factory.mktemp(device) for device in ("npu", "cpu")}, []
    for device, folder in folders.items():

        def run(name, *flags, device=device, folder=folder):
            return train(data, folder / name, device, *flags)

        commands = [run(name, *flags) for name, flags in RUNS.items()]
        commands += [run("impl/{impl} " + flags[1], *flags, "--rdb", "{impl}") for flags in (O0, O2)]
        commands += [
            run(f"resumed/{name}", *RUNS[name], "--resume", "auto", "--max-steps", stop)
            for name in ("O0 all", "O1")
            for stop in (2, 3, 4, STEPS)
        ]
        sets = ("--eval-file", f"{data}/Set5_x2.h5", "--device", device, "--json", f"{folder}/json")
        commands += [["eval", "--weights-file", f"{folder}/O0/last.pth", *sets]]
        processes.append(reference(npu_environment, device, commands))
    for process in processes:
        assert finished(process) == ""
    return folders


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([record["loss"] for record in events(folder, "step")])


def assert_same_bits(ours: Path, theirs: Path) -> None:
    assert [record["step"] for record in events(ours, "step")] == list(range(1, STEPS + 1))
    assert events(ours, "step") == events(theirs, "step")
    assert (ours / "last.pth").read_bytes() == (theirs / "last.pth").read_bytes()


@pytest.mark.parametrize("name", RUNS)
def test_training_is_the_cpus(folders, name):
    ours, theirs = (folders[device] / name for device in ("npu", "cpu"))
    assert events(ours, "start")[0]["device"] == "npu:0 (simulated on CPU, not run on Ascend)"
    assert events(theirs, "start")[0]["device"].startswith("cpu ")
    assert_same_bits(ours, theirs)
    assert (ours / "best.pth").read_bytes() == (theirs / "best.pth").read_bytes()
    for kind in ("psnr_y", "psnr_y_compat", "loss"):
        assert [record[kind] for record in events(ours, "epoch")] == [
            record[kind] for record in events(theirs, "epoch")
        ]


def test_flags_do_what_they_do(folders):
    weights_of = {name: (folders["npu"] / name / "last.pth").read_bytes() for name in RUNS}
    for mode in ("mmap", "resident", "h5py"):
        assert weights_of.pop(f"O0 {mode}") == weights_of["O0"]
    assert len(set(weights_of.values())) == len(weights_of)


def test_every_implementation_trains(folders):
    runs = {device: {path.name for path in (folder / "impl").iterdir()} for device, folder in folders.items()}
    assert runs["npu"] >= {f"{impl} {level}" for impl in ("naive", "sliced", "summed") for level in ("O0", "O2")}
    for name in runs["npu"]:
        impl, level = name.split()
        ours, theirs = (folders[device] / "impl" for device in ("npu", "cpu"))
        if name in runs["cpu"]:
            assert_same_bits(ours / name, theirs / name)
        assert events(ours / name, "start")[0]["rdb"]["training"] == impl
        limit = SLACK[{"O0": torch.float32, "O2": torch.float16}[level]]
        assert relative_error(losses(ours / name), losses(theirs / f"naive {level}")) <= limit


@pytest.mark.parametrize("name", ["O0 all", "O1"])
def test_resuming_is_exact(folders, name):
    resumed = folders["npu"] / "resumed" / name
    assert [record["step"] for record in events(resumed, "resume")] == [2, 3, 4]
    assert_same_bits(resumed, folders["npu"] / name)


def test_evaluation_is_the_cpus(folders):
    ours, theirs = (json.loads((folders[device] / "json").read_text()) for device in ("npu", "cpu"))
    assert ours["device"] == "npu:0 (simulated on CPU, not run on Ascend)"
    assert theirs["device"].startswith("cpu ")
    assert ours["sets"][0]["mean"]["psnr_y"] > 0
    assert ours["sets"] == theirs["sets"]


@pytest.mark.slow
def test_the_cpu_as_users_have_it_is_near(npu_environment, folders, data, tmp_path):
    """channels_last, torch's fused Adam and the C library, against the npu."""
    result = cli(*train(data, tmp_path, "cpu", *O0), env=npu_environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert relative_error(losses(folders["npu"] / "O0"), losses(tmp_path)) <= SLACK[torch.float32]
    expected = weights(tmp_path)
    for name, weight in weights(folders["npu"] / "O0").items():
        assert relative_error(weight, expected[name]) <= 100 * SLACK[torch.float32], name


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("npu", "cpu"), ("cpu", "npu")])
def test_a_run_goes_on_on_another_device(npu_environment, folders, data, tmp_path, first, then):
    for device, stop in ((first, 4), (then, STEPS)):
        result = cli(*train(data, tmp_path, device, *O0, "--max-steps", stop, "--resume", "auto"), env=npu_environment)
        assert (result.returncode, result.stderr) == (0, "")
    assert [
        record["device"].partition(":")[0].partition(" ")[0]
        for kind in ("start", "resume")
        for record in events(tmp_path, kind)
    ] == [first, then]
    assert relative_error(losses(folders["npu"] / "O0"), losses(tmp_path)) <= SLACK[torch.float32]


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly(npu_environment, data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    flags = ("--epochs", 100_000, "--checkpoint-every", 1000, "--opt-level", "auto")  # O1 in fp16, the fastest impl
    process = subprocess.Popen(
        command(*train(data, out, "npu", *flags)),
        env=npu_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "epoch:1 " not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    told, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (128 + signal.SIGTERM, "")
    saved = int(told.split("saved at step ")[1].split(";")[0])
    assert events(out, "start")[0]["precision"].startswith("O1 float16")
    runs = [train(data, folder, "npu", *flags, "--max-steps", saved + 8, "--resume", "auto") for folder in (whole, out)]
    assert finished(reference(npu_environment, "npu", runs)) == ""
    assert [record["step"] for record in events(out, "resume")] == [saved]
    assert (out / "last.pth").read_bytes() == (whole / "last.pth").read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "train_performance_8p",
        *(pytest.param(name, marks=pytest.mark.slow) for name in LAUNCHERS if name != "train_performance_8p"),
    ],
)
def test_the_seeds_commands(npu_environment, data, tmp_path, monkeypatch, name):
    for variable, value in npu_environment.items():
        monkeypatch.setenv(variable, value)
    ranks = 2 if name.endswith("8p") else 1
    flags = (*TINY, "--opt-level", "auto", "--batch-size", 2, "--epochs", 1, "--rdb", "naive")
    named = ("--preset", name.replace("_", "-"), "--data-path", data, "--outputs-dir", tmp_path / "theirs")
    words = ("train", *named, *flags, *O1, "--device", "cpu")
    theirs = reference(npu_environment, "cpu", [[str(word) for word in words]], ranks)
    result = launch(
        name, f"--data_path={data}", "--outputs-dir", tmp_path / "ours", *flags, "--device", "npu", "--nproc", ranks
    )
    finished(theirs)
    assert events(tmp_path / "ours", "step") == events(tmp_path / "theirs", "step") != []
    assert (tmp_path / "ours/last.pth").read_bytes() == (tmp_path / "theirs/last.pth").read_bytes()
    assert (result.returncode, result.stderr) == (0, ""), result
    for pattern in GREPPED:
        assert len(re.findall(pattern, result.stdout, re.M)) == 1, (pattern, result.stdout)
    start = events(tmp_path / "ours", "start")[0]
    assert start["device"].startswith("npu:0 ")
    assert start["world"] == ranks
    assert start["precision"].startswith("O1 float16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "stops"), [(O0, (STEPS,)), (O1, (4, STEPS)), (O2, (STEPS,))], ids=["O0", "O1, resumed", "O2"]
)
def test_two_ranks_are_the_cpus(npu_environment, data, tmp_path, level, stops):
    flags = (*level, *ALL, "--batch-size", 2)
    theirs = reference(npu_environment, "cpu", [train(data, tmp_path / "cpu", "cpu", *flags)], ranks=2)
    for stop in stops:
        result = cli(
            *train(data, tmp_path / "npu", "npu", *flags, "--resume", "auto", "--max-steps", stop, "--nproc", 2),
            env=npu_environment,
        )
        assert (result.returncode, result.stderr) == (0, ""), result
    finished(theirs)
    assert events(tmp_path / "npu", "start")[0]["world"] == 2
    assert_same_bits(tmp_path / "npu", tmp_path / "cpu")


WRONG = """
import sys, torch
from rdn_fast import devices as device
from rdn_fast.cli import main
{fault}
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "device.memory_format = lambda device: torch.channels_last",
            "Only c10::MemoryFormat::Contiguous is supported",
        ),
        ("device.SideStream.join = lambda self, done: None", "uses memory that another stream"),
    ],
    ids=["a layout that the device has not", "a batch that is not waited for"],
)
@pytest.mark.slow
def test_a_wrong_program_is_caught(npu_environment, data, tmp_path, fault, words):
    arguments = train(data, tmp_path, "npu", *O0, "--data-mode", "mmap")
    program = [sys.executable, "-c", WRONG.format(fault=fault), *arguments]
    result = subprocess.run(program, env=npu_environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert words in result.stderr, result
