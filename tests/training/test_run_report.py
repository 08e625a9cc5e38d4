"""A Report prints and logs on rank 0, and does nothing elsewhere."""

import math

import pytest
import torch
from runs import events, make_data

from rdn_fast import precision
from rdn_fast.config import make_configs
from rdn_fast.errors import Stopped
from rdn_fast.model import RDN
from rdn_fast.training.inputs import open_inputs
from rdn_fast.training.report import Report, diverged
from rdn_fast.training.setup import Setup
from rdn_fast.training.state import RunState
from rdn_fast.training.step import StepResult
from rdn_fast.training.throughput import ThroughputMeter
from rdn_fast.training.validation import Validation

CPU = torch.device("cpu")
RESULT = StepResult(step=3, epoch=1, lr=1e-3, loss=0.25, skipped=True, loss_scale=4.0)

VALIDATION = Validation(29.0, 30.0, [30.0, math.inf], 1, "float32")


@pytest.fixture
def setup(tmp_path):
    data = make_data(tmp_path / "data", images=3)
    given = {"data_path": str(data), "outputs_dir": str(tmp_path), "patch_size": 8, "batch_size": 2, "num_blocks": 2}
    model_config, train_config = make_configs(given)
    inputs = open_inputs(model_config, train_config)
    return Setup(model_config, train_config, inputs, CPU, precision.resolve("O0", "auto", CPU), 1, [])


def report_everything(setup: Setup, silent: bool) -> None:
    report = Report(setup, silent)
    state, meter = RunState(step=4, epoch=1, loss_scale=4.0, best_epoch=0, best_psnr=30.0), ThroughputMeter(CPU)
    report.say("a line")
    report.open_log(0, state.step)
    impls = {"training": "naive", "validation": "naive"}
    report.introduce(RDN(setup.model_config), state, impls, "", "data: mmap")
    with report.bar(4):
        report.step(RESULT)
        report.halved_loss_scale(3, 2.0)
        report.set_status(state, RESULT, meter)
        report.advance()
        report.epoch(state, meter)
        report.validation(1, VALIDATION)
        report.log_epoch(state, meter, VALIDATION, 1.0)
    report.close()
    report.stopped(Stopped(15), 4)
    report.conclude(state, 61.0)


def test_rank_0_prints_and_logs(setup, capsys):
    report_everything(setup, silent=False)
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "a line",
        "learning rate 0.0001, times 0.1 every 640 epochs",
        "epoch 1: PSNR-Y 29.00 dB canonical, 30.00 dB reference-compatible",
        "epoch 1: 1 of 2 images left out of these means: equal to the HR image, so the PSNR is infinite",
        "epoch:1 FPS: 0.000",
        "best epoch: 0, psnr: 30.00",
        "Final Performance images/sec : 0.000",
        "Final Train Accuracy : 30.00",
        "E2E Training Duration sec : 61.0",
        "stopped by SIGTERM: saved at step 4; go on with --resume auto",
    ):
        assert line in lines
    (step,) = events(setup.outputs, "step")
    assert step == {"event": "step", "step": 3, "epoch": 1, "lr": 1e-3, "skipped": True, "loss": 0.25}
    assert [record["psnr_y"] for record in events(setup.outputs, "epoch")] == [29.0]
    assert [record["loss_scale"] for record in events(setup.outputs, "loss_scale")] == [2.0]


def test_a_validation_in_low_precision_is_labelled(setup, capsys):
    report, low = Report(setup, silent=False), VALIDATION._replace(dtype="bfloat16")
    report.open_log(0, 0)
    for each in (low, VALIDATION):
        report.validation(1, each)
        report.log_epoch(RunState(), ThroughputMeter(CPU), each, 1.0)
    report.close()
    line = "epoch 1: PSNR-Y 29.00 dB canonical, 30.00 dB reference-compatible"
    assert capsys.readouterr().out.splitlines()[::2] == [f"{line} (bfloat16)", line]
    assert [record.get("psnr_dtype") for record in events(setup.outputs, "epoch")] == ["bfloat16", None]


def test_other_ranks_are_silent(setup, capsys):
    report_everything(setup, silent=True)
    assert capsys.readouterr() == ("", "")
    assert not (setup.outputs / "metrics.jsonl").exists()


def test_a_failure_says_which_steps_were_lost():
    text = str(diverged(RESULT, skips=2))
    assert text.startswith("steps 2 to 3 had gradients that are not finite and were skipped; the loss is 0.25. ")
    assert "The weights are those of step 1;" in text
