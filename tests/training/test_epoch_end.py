"""How often the host waits until the device has nothing left to do, and what a run writes meanwhile."""

import json
import math

import pytest
from runs import TINY, assert_same_run, make_data

from rdn_fast import devices
from rdn_fast.cli import main
from rdn_fast.training import run as run_module
from rdn_fast.training.step import TrainStep

EPOCHS = 4  # of three steps


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(data, tmp_path):
    def run(*flags, to="out"):
        words = "train", "--data-path", data, "--outputs-dir", tmp_path / to, *TINY, "--batch-size", 8, "--rdb", "naive"
        assert main([str(word) for word in (*words, "--epochs", EPOCHS, *flags)]) == 0
        return tmp_path / to

    return run


@pytest.fixture
def waits(monkeypatch):
    """Return a list of the step at which each wait for the steps' results left the device without work."""
    enqueued, found, step = [0], [], TrainStep.__call__

    class HostCopy(devices.HostCopy):
        def __init__(self, values):
            super().__init__(values)
            self.after = enqueued[0]

        def read(self):
            if self.after == enqueued[0]:
                found.append(self.after)
            return super().read()

    def counted(*arguments, **options):
        enqueued[0] += 1
        return step(*arguments, **options)

    monkeypatch.setattr(devices, "HostCopy", HostCopy)
    monkeypatch.setattr(TrainStep, "__call__", counted)
    return found


@pytest.mark.parametrize("seconds", [pytest.param(0.0, marks=pytest.mark.slow), math.inf])
@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (("--eval-every", 9), [12]),  # the run's end
        pytest.param(("--eval-every", 1), [3, 6, 9, 12], marks=pytest.mark.slow),
        (("--eval-every", 9, "--keep-every", 3), [9, 12]),
    ],
)
def test_an_epochs_end_leaves_the_device_its_work_unless_weights_are_wanted(
    flags, steps, seconds, train, waits, monkeypatch
):
    monkeypatch.setattr(run_module, "_READ_SECONDS", seconds)
    out = train(*flags)
    assert waits == steps
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    order = [(record["event"], record["epoch"]) for record in records if record["event"] in ("step", "epoch")]
    assert order == [(event, epoch) for epoch in range(EPOCHS) for event in ("step", "step", "step", "epoch")]
    for epoch in range(EPOCHS):
        of_steps = [r["loss"] for r in records if (r["event"], r.get("epoch")) == ("step", epoch)]
        (ended,) = [r for r in records if (r["event"], r.get("epoch")) == ("epoch", epoch)]
        assert ended["loss"] == pytest.approx(sum(of_steps) / 3)
        assert ended["step"] == 3 * (epoch + 1)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [5, 6, 7])
def test_a_resume_around_an_epochs_end_is_exact(stop, train, monkeypatch):
    """Checkpoints after every step: among them one between an epoch's last step and what ends it."""
    whole = train("--eval-every", 9, to="whole")
    flags = "--eval-every", 9, "--checkpoint-every", "1e-9"
    train(*flags, to="parts")
    kept = sorted((train(*flags, "--max-steps", stop, to=f"until {stop}") / "checkpoints").glob("*.pt"))
    train(*flags, "--resume", kept[-1], to=f"until {stop}")
    assert_same_run(whole, whole.with_name("parts"))
    assert (whole / "last.pth").read_bytes() == (whole.with_name(f"until {stop}") / "last.pth").read_bytes()
