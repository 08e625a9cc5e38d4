"""`rdn-fast tune` on a device with modes, and training in the mode that it found.

The device is the CPU, which gets modes here, or the simulated npu.
"""

import dataclasses
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import TINY, events, make_data, weights
from runs import cli as run

from rdn_fast import devices
from rdn_fast.commands import tune_modes
from rdn_fast.commands.tune_modes import cases_of
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.errors import UserError
from rdn_fast.rdb import able
from rdn_fast.rdb.autotune import fastest_mode, mode_key, resolve_impl
from rdn_fast.rdb.measure import Timing
from rdn_fast.rdb.rounds import Verdict
from rdn_fast.rdb.tuning import remember

CPU = torch.device("cpu")
CONFIG = ModelConfig(num_features=4, growth_rate=3, num_blocks=1, num_layers=2)
TRAIN = TrainConfig(patch_size=8, batch_size=2, opt_level="O0", device="cpu")
IN_FLOAT32 = ("--opt-level", "O0", "--device", "cpu")
SHAPE = "--num-features 4 --growth-rate 3 --num-blocks 1 --num-layers 2 --patch-size 8"
FLAGS = (*SHAPE.split(), *IN_FLOAT32)


@pytest.fixture(autouse=True)
def folder(no_choices):
    """Return the folder of choices. This process has chosen neither an impl nor a mode."""
    devices.active_modes.clear()
    yield no_choices
    devices.active_modes.clear()


@pytest.fixture
def modes(monkeypatch):
    """Give the CPU the modes `hot` and `cold`. Return the list of modes that are used from now on."""
    used = []

    def use(device, name):
        assert name in ("", "hot", "cold")
        if name:
            used.append(name)
            devices.active_modes.by_kind[device.type] = name

    monkeypatch.setattr(devices, "modes", lambda device: ("hot", "cold"))
    monkeypatch.setattr(devices, "use_mode", use)
    return used


@pytest.fixture
def processes(monkeypatch):
    """Return processes(default=..., hot=..., cold=...), which replaces the process of each mode by its result.

    A result is [Timing, Timing], or an exit code and stderr. It returns the list of what the processes are given.
    """

    def use(**results):
        given = []

        def end(command, **_):
            *_, module, mode, configs, file = command
            model, train = json.loads(configs)
            given.append((module, mode, train["device"], cases_of(ModelConfig(**model), TrainConfig(**train), CPU)))
            result = results[mode or "default"]
            if isinstance(result, list):
                Path(file).write_text(json.dumps([dataclasses.asdict(timing) for timing in result]))
                result = 0, ""
            return SimpleNamespace(returncode=result[0], stderr=result[1])

        stand_in = SimpleNamespace(run=end, DEVNULL=subprocess.DEVNULL, PIPE=subprocess.PIPE)
        monkeypatch.setattr(tune_modes, "subprocess", stand_in)
        return given

    return use


def timing(**seconds):
    return Timing({name: [one] for name, one in seconds.items()}, {})


def remembered(folder):
    return json.loads((folder / "tuning.json").read_text())


def test_every_mode_is_timed_in_a_process_and_the_fastest_training_wins(cli, folder, modes, processes):
    given = processes(
        default=[timing(naive=4e-3, sliced=5e-3), timing(naive=1e-3, sliced=2e-3)],
        hot=[timing(naive=2.5e-3, sliced=2e-3), timing(naive=5e-4, sliced=4e-4)],
        cold=[timing(naive=3e-3), Timing({"naive": [1e-4]}, {"sliced": "out of memory"})],
    )
    result = cli("tune", *FLAGS, "--batch-size", 128)
    assert (result.code, result.err) == (0, "")
    case, picture = cases = cases_of(CONFIG, dataclasses.replace(TRAIN, batch_size=128), CPU)
    assert given == [("rdn_fast.commands.tune_modes", mode, "cpu", cases) for mode in ("", "hot", "cold")]
    assert not modes, "this process must stay as it is"
    for line in ("mode 1 of 3: default", "mode 2 of 3: hot", "mode 3 of 3: cold"):
        assert line in result.out.splitlines()
    training, inference = (part.splitlines() for part in result.out.split(picture.key()))
    flop = 3 * 2 * (9 * (4 * 3 + 7 * 3) + 10 * 4) * 8 * 8 * 128
    for unit, *figures in (("ms", 4, 2.5, 3), ("ms", 5, 2), ("times naive", 1, 1.6, 4 / 3), ("times naive", 0.8, 2)):
        assert [unit, *(f"{figure:.2f}" for figure in figures)] in map(figures_of, training)
    assert ["GFLOP/s", *(f"{flop / s / 1e9:.0f}" for s in (4e-3, 2.5e-3, 3e-3))] in map(figures_of, training)
    assert ["times naive", "1.00", "2.00", "10.00"] in map(figures_of, inference)
    for part in (training, inference):
        assert "auto: sliced in mode hot; times naive: against naive in mode default" in part
    assert "sliced in mode cold: out of memory" in inference
    assert "triton_planes: runs on cuda only" in inference
    assert fastest_mode(case) == "hot"
    fastest = {"": "naive", "hot": "sliced", "cold": "naive"}
    choices = {dataclasses.replace(c, mode=mode).key(): name for mode, name in fastest.items() for c in cases}
    assert remembered(folder) == choices | {mode_key(case): "hot"}


def figures_of(line):
    """Return the cells of a table's line, without the first and empty ones."""
    return [cell.strip() for cell in line.split("│")[2:] if cell.strip()]


def test_the_devices_own_mode_may_be_the_fastest(cli, modes, processes):
    slow = [timing(naive=2.0)] * 2
    processes(default=[timing(naive=1.0)] * 2, hot=slow, cold=slow)
    assert "auto: naive in mode default" in cli("tune", *FLAGS).out
    assert fastest_mode(cases_of(CONFIG, TRAIN, CPU)[0]) == ""


def test_a_mode_whose_process_fails_is_left_out_with_its_reason(cli, folder, modes, processes):
    failed = (1, "Traceback ...\nRuntimeError: no compiler\n")
    processes(default=failed, hot=(-9, "a warning"), cold=[timing(sliced=1.0)] * 2)
    result = cli("tune", *FLAGS)
    assert result.code == 0, result
    lines = result.out.splitlines()
    assert lines[lines.index("mode 1 of 3: default") + 1] == "left out: RuntimeError: no compiler"
    assert lines[lines.index("mode 2 of 3: hot") + 1] == "left out: its process was killed by signal 9"
    assert "auto: sliced in mode cold" in result.out
    assert len(remembered(folder)) == 3


def test_no_mode_at_all_is_a_user_error(cli, folder, modes, processes):
    processes(default=(3, ""), hot=(1, "hot fails"), cold=(1, "cold fails"))
    result = cli("tune", *FLAGS)
    assert "could be timed in no mode" in result.user_error()
    for reason in ("its process ended with code 3", "hot fails", "cold fails"):
        assert f"left out: {reason}" in result.out
    assert not (folder / "tuning.json").exists()


def test_a_device_without_modes_needs_no_process(cli, folder, processes):
    assert not devices.modes(CPU)
    given = processes()
    assert cli("tune", *FLAGS, "--batch-size", 2).code == 0
    assert not given
    cases = cases_of(CONFIG, dataclasses.replace(TRAIN, batch_size=2), CPU)
    assert set(remembered(folder)) == {case.key() for case in cases}


def test_the_process_times_all_impls():
    configs = json.dumps([dataclasses.asdict(CONFIG), dataclasses.asdict(TRAIN)])
    timings = tune_modes._time_in_process("", configs)
    for case, timed in zip(cases_of(CONFIG, TRAIN, CPU), timings, strict=True):
        assert set(timed.seconds) == {impl.name for impl in able(CPU, case.dtype, case.training)}
        assert not timed.failed
        assert all(0 < seconds < 60 for seconds in timed.seconds.values())


@pytest.mark.slow
def test_the_process_reports_an_error_in_one_line():
    configs = json.dumps([dataclasses.asdict(CONFIG), dataclasses.asdict(dataclasses.replace(TRAIN, device="npu:0"))])
    with pytest.raises(RuntimeError, match=r"^--device npu:0: .*torch_npu"):
        tune_modes._time_in_process("", configs)


def test_a_choice_holds_in_its_mode_alone(modes):
    config = dataclasses.replace(CONFIG, num_layers=1)
    keys = []
    for mode in ("", "hot"):
        devices.use_mode(CPU, mode)
        case = cases_of(config, TRAIN, CPU)[0]
        keys.append(case.key())
        remember({case.key(): Verdict({"": "sliced", "hot": "summed"}[mode], True)})
        assert resolve_impl("auto", case) == {"": "sliced", "hot": "summed"}[mode]
    assert keys[1] == keys[0].replace(", torch 2", ", mode hot, torch 2")


@pytest.mark.parametrize("known", ["", "elsewhere", None])
def test_a_mode_that_the_device_lacks_is_not_taken(known, modes):
    case = cases_of(CONFIG, TRAIN, CPU)[0]
    remember({} if known is None else {mode_key(case): Verdict(known, True)})
    assert fastest_mode(case) == ""


def test_a_process_sets_its_mode_once(monkeypatch):
    def set_compile_mode(jit_compile):
        module.jit = jit_compile

    module = SimpleNamespace(config=SimpleNamespace(), set_compile_mode=set_compile_mode)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    npu = SimpleNamespace(type="npu")
    names = {"format+jit": (True, True), "format": (True, False), "jit": (False, True), "base": (False, False)}
    assert set(devices.modes(npu)) == set(names)
    for name, switches in names.items():
        devices.active_modes.clear()
        devices.use_mode(npu, "")
        assert devices.mode(npu) == ""
        devices.use_mode(npu, name)
        devices.use_mode(npu, name)
        assert devices.mode(npu) == name
        assert (module.config.allow_internal_format, module.jit) == switches
    for other in ("jit", ""):
        with pytest.raises(UserError, match="in mode base and cannot change"):
            devices.use_mode(npu, other)


@pytest.fixture
def train(cli, tmp_path):
    """Return train(*flags), which runs TINY on the CPU and returns the output."""
    data = make_data(tmp_path / "data")

    def run(*flags):
        data_flags = ("--data-path", data, "--batch-size", 4, "--outputs-dir", tmp_path / "out")
        result = cli("train", *data_flags, *TINY, *IN_FLOAT32, *flags)
        assert (result.code, result.err) == (0, ""), result
        return result.out

    run.config = ModelConfig(num_features=6, growth_rate=4, num_blocks=2, num_layers=2)
    run.case = cases_of(run.config, dataclasses.replace(TRAIN, batch_size=4), CPU)[0]
    return run


def test_a_run_takes_the_remembered_mode_and_a_resume_keeps_it(modes, train, tmp_path, monkeypatch):
    remember({mode_key(train.case): Verdict("hot", True)})
    assert ", rdb sliced, mode hot, torch" in train("--rdb", "sliced", "--max-steps", 3)
    assert events(tmp_path / "out", "start")[0]["mode"] == "hot"
    assert {torch.load(path, weights_only=True)["mode"] for path in tmp_path.glob("out/checkpoints/*")} == {"hot"}
    devices.active_modes.clear()
    remember({mode_key(train.case): Verdict("cold", True)})
    assert ", rdb sliced, mode hot, torch" in train("--rdb", "sliced", "--max-steps", 6, "--resume", "auto")
    assert modes == ["hot", "hot"]
    devices.active_modes.clear()
    monkeypatch.setattr(devices, "modes", lambda device: ("cold",))
    out = train("--rdb", "sliced", "--max-steps", 7, "--resume", "auto")
    assert "note: the steps before were computed in mode hot, which cpu does not have: the same but for rounding" in out
    assert "mode cold" not in out
    assert modes == ["hot", "hot"]


def test_a_run_that_began_without_a_mode_goes_on_without(modes, train):
    assert ", rdb summed, torch" in train("--rdb", "summed", "--max-steps", 3)
    remember({mode_key(train.case): Verdict("hot", True)})
    assert ", rdb summed, torch" in train("--rdb", "summed", "--max-steps", 6, "--resume", "auto")
    assert not modes


@pytest.mark.slow
def test_on_the_simulated_npu(npu_environment, tmp_path):
    log = tmp_path / "log"
    environment = npu_environment | {"FAKE_NPU_REFUSES_JIT": "1", "FAKE_NPU_LOG": str(log)}
    cache = Path(environment["XDG_CACHE_HOME"]) / "rdn_fast" / "tuning.json"
    flags = (*TINY, "--device", "npu", "--batch-size", 2)
    result = run("tune", *flags, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert log.read_text().splitlines() == [f"npu:0 format={mode} jit=False after 0" for mode in (True, False)]
    refused = "left out: npu:0 refuses mode {} (set_compile_mode: no compiler of operators was found)"
    assert [result.stdout.count(refused.format(mode)) for mode in ("jit", "format+jit")] == [1, 1]
    choices = json.loads(cache.read_text())
    (key,) = (key for key in choices if key.startswith("npu (") and key.endswith("fastest mode"))
    assert choices[key] in ("", "format", "base")
    names = ("format+jit", "format", "jit", "base")
    assert [name for name in names if any(f", mode {name}, " in key for key in choices)] == ["format", "base"]

    cache.write_text(json.dumps(choices | {key: "format"}))  # here they differ by chance alone
    # --ema and --clip-grad would use _foreach operations, which private formats do not have.
    flags = ("train", "--data-path", make_data(tmp_path / "data"), *flags, "--ema", 0.9, "--clip-grad", 1)
    for number, name in enumerate(("one", "two"), 1):
        log.unlink(missing_ok=True)
        result = run(*flags, "--outputs-dir", tmp_path / name, "--max-steps", 2, "--nproc", number, env=environment)
        assert result.returncode == 0, result
        assert ", mode format, torch" in result.stdout.splitlines()[0]
        lines = [f"npu:{rank} format=True jit=False after 0" for rank in range(number)]
        assert sorted(log.read_text().splitlines()) == lines
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "two").values())
