"""--amp-backend apex with a stand-in for apex on the simulated npu: trains as torch does; errors are one line."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from runs import TINY, assert_same_run, assert_user_error, cli, events, make_data

from rdn_fast.training import apex as apex_module
from rdn_fast.training.apex import missing_apex

TESTS = Path(__file__).parents[1]
HUGE = 2.0**22
RUNS = {
    "O1": ("--opt-level", "O1", "--clip-grad", "0.1"),
    "O2": ("--opt-level", "O2", "--weight-decay", "0.1"),
    # 27 steps, most of them skipped while the loss scale is halved.
    "overflow": ("--opt-level", "O1", "--epochs", 9, "--loss-scale-value", HUGE),
}
# Runs that are stopped at these steps and resumed; (): resumed to the end.
STOPS = [
    (name, stop)
    for name, steps in (("O1", (2, 3)), ("overflow", (17, 22)))
    for stop in (*(("--max-steps", step) for step in steps), ())
]


@pytest.fixture(scope="module")
def environment(npu_environment):
    """environment(**more): variables of processes that can import the stand-ins for torch_npu and apex."""
    paths = os.pathsep.join([str(TESTS / "fake_apex"), npu_environment["PYTHONPATH"]])
    return lambda **more: npu_environment | {"PYTHONPATH": paths} | more


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), images=9)


def train(data: Path, out: Path, backend: str, *flags, device: str = "npu") -> list[str]:
    always = shlex.split("--batch-size 4 --epochs 2 --rdb naive --eval-every 50")
    words = ("train", "--data-path", data, "--outputs-dir", out, *TINY, *always, "--device", device)
    return [str(word) for word in (*words, "--amp-backend", backend, *flags)]


def recorded_calls(file: Path) -> list[list[dict]]:
    """The recorded calls of apex, a list for each `initialize` and what follows it."""
    runs = []
    for call in map(json.loads, file.read_text().splitlines()):
        if call["call"] == "initialize":
            runs.append([])
        runs[-1].append(call)
    return runs


@pytest.fixture(scope="module")
def folders(environment, data, tmp_path_factory):
    """Outputs of the runs: "torch", "1" by a build of apex that can combine gradients, "0" by one that cannot."""
    folders, processes = {"torch": tmp_path_factory.mktemp("torch")}, []
    for combines in "10":
        folder = folders[combines] = tmp_path_factory.mktemp("apex")
        commands = [train(data, folder / name, "apex", *flags) for name, flags in RUNS.items()]
        commands += [
            train(data, folder / "resumed" / name, "apex", *RUNS[name], "--resume", "auto", *stop)
            for name, stop in STOPS
        ]
        commands += [train(data, folder / "O0", "apex", "--opt-level", "O0")]
        commands += [
            train(data, folders["torch"] / name, "torch", *flags) for name, flags in RUNS.items() if combines == "0"
        ]
        words = [sys.executable, str(TESTS / "training/npu_reference.py"), "npu", json.dumps(commands)]
        variables = environment(FAKE_APEX_CALLS=str(folder / "calls"), FAKE_APEX_COMBINE_GRAD=combines)
        processes.append(
            subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, ""), out + err
        assert "Selected optimization level" not in out  # apex is silent
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("combines", "10")
@pytest.mark.parametrize("name", RUNS)
def test_equals_torch_bit_for_bit(folders, combines, name):
    # Unscaling by a power of two is exact.
    ours = folders[combines] / name
    assert_same_run(ours, folders["torch"] / name)
    skipped = [bool(record.get("skipped")) for record in events(ours, "step")]
    if name == "overflow":
        assert all(skipped[:10])
        assert not all(skipped)
        assert events(ours, "loss_scale")[0] == {"event": "loss_scale", "step": 10, "loss_scale": HUGE / 2}
    else:
        assert skipped == [False] * 6


@pytest.mark.slow
@pytest.mark.parametrize("combines", "10")
@pytest.mark.parametrize("name", ["O1", "overflow"])
def test_resuming_is_exact(folders, combines, name):
    resumed = folders[combines] / "resumed" / name
    stops = [stop[1] for run, stop in STOPS if run == name and stop]
    assert [record["step"] for record in events(resumed, "resume")] == stops
    # The epochs in which --max-steps ended it were validated twice.
    assert_same_run(resumed, folders[combines] / name, kinds=("step", "loss_scale"))


@pytest.mark.slow
@pytest.mark.parametrize("combines", "10")
def test_calls_of_apex(folders, combines):
    runs = recorded_calls(folders[combines] / "calls")
    assert len(runs) == len(RUNS) + len(STOPS)  # none at O0
    for first, *later in runs:
        assert first["opt_level"] == "O1"  # at O2 as well: the model casts by itself
        assert first["patch_torch_functions"] is False
        assert first["cast_model_type"] is first["master_weights"] is None
        assert first["combine_grad"] is (True if combines == "1" else None)
        assert {call["loss_scale"] for call in later if call["call"] == "scale_loss"} >= {first["loss_scale"]}
    scales = [call["loss_scale"] for call in runs[list(RUNS).index("overflow")] if call["call"] == "scale_loss"]
    assert scales[:11] == [HUGE] * 10 + [HUGE / 2]


@pytest.mark.slow
def test_two_ranks_equal_torch(environment, data, tmp_path):
    calls = tmp_path / "calls"
    for backend in ("apex", "torch"):
        words = train(data, tmp_path / backend, backend, *RUNS["O1"], "--batch-size", 2, "--nproc", 2)
        result = cli(*words, env=environment(FAKE_APEX_CALLS=str(calls)))
        assert (result.returncode, result.stderr) == (0, ""), result
    assert_same_run(tmp_path / "apex", tmp_path / "torch")
    assert calls.read_text().count('"initialize"') == 2


def test_cpu_is_a_user_error(environment, data, tmp_path):
    result = cli(*train(data, tmp_path / "out", "apex", "--opt-level", "O1", device="cpu"), env=environment())
    assert_user_error(result, "--amp-backend apex", "leave --amp-backend at torch")


OTHER_PACKAGES = {  # files of a package `apex`, and words of the error about it
    "PyPI's, as pip installs it": (
        {"__init__.py": "from no_such_mailer.interfaces import IMailer\n", "forms.py": ""},
        ("PyPI", "pip uninstall apex"),
    ),
    "PyPI's, with its requirements": (
        {"__init__.py": "from apex import forms\n", "forms.py": ""},
        ("PyPI", "pip uninstall apex"),
    ),
    "without its requirements": (
        {"__init__.py": "", "amp.py": "import no_such_library\n"},
        ("does not import", "no_such_library"),
    ),
    "failing import": (
        {"__init__.py": "raise RuntimeError('built for another torch\\nin two lines')\n", "amp.py": ""},
        ("built for another torch",),
    ),
}


@pytest.mark.parametrize(("files", "words"), OTHER_PACKAGES.values(), ids=OTHER_PACKAGES)
def test_other_packages_named_apex_are_recognized(tmp_path, monkeypatch, files, words):
    (tmp_path / "apex").mkdir()
    for name, text in files.items():
        (tmp_path / "apex" / name).write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        reason = missing_apex()
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
            del sys.modules[name]
    assert "\n" not in reason
    assert all(word in reason for word in (*words, "leave --amp-backend at torch")), reason


def test_apex_is_never_our_own_module():
    spec = importlib.util.find_spec("apex")
    assert spec is None or Path(spec.origin).resolve() != Path(apex_module.__file__).resolve()


def test_missing_apex_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    assert "apex is not installed" in missing_apex()


def test_other_package_named_apex_is_a_user_error(environment, npu_environment, data, tmp_path):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex/__init__.py").write_text(OTHER_PACKAGES["PyPI's, as pip installs it"][0]["__init__.py"])
    variables = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), npu_environment["PYTHONPATH"]]))
    assert_user_error(
        cli(*train(data, tmp_path / "out", "apex", "--opt-level", "O1"), env=variables), "--amp-backend apex", "PyPI"
    )
