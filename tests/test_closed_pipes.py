"""Files are written whoever reads the screen: `rdn-fast ... | head -1`, `rdn-fast ... | true`."""

import json
import os
import subprocess

import h5py
import pytest
import torch
from runs import ROOT, TINY, command, events, make_data
from safetensors.torch import save_file
from waiting import PATIENCE

from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN

COMMANDS = {
    "prepare": ("prepare", "--images-dir", "images", "--output-path", "made.h5"),
    "eval": ("eval", "-w", "w.safetensors", "--eval-file", "images", "--json", "r.json", "--csv", "r.csv"),
    "upscale": ("upscale", "-w", "w.safetensors", "-i", "images", "-o", "large"),
    "train": ("train", "--data-path", "data", "--outputs-dir", "out", *TINY, "--rdb", "naive", "--epochs", "2"),
}


# reads: lines before the reader goes.
@pytest.mark.parametrize(
    ("name", "reads", "closed", "unbuffered"),
    [
        ("prepare", 0, "stdout", ""),
        ("prepare", 1, "both", "1"),
        ("eval", 1, "stdout", ""),
        ("upscale", 0, "both", ""),
        ("train", 1, "stdout", "1"),
    ],
)
def test_the_work_is_done_when_the_reader_has_gone(image_folder, tmp_path, name, reads, closed, unbuffered):
    folder = image_folder(3)
    (folder / "notes.txt").write_text("skipped, which is printed")
    make_data(tmp_path / "data")
    save_file(RDN(ModelConfig(2, 6, 4, 2, 2)).state_dict(), tmp_path / "w.safetensors")
    stderr = {"stdout": subprocess.PIPE, "both": subprocess.STDOUT}[closed]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(
        command(*COMMANDS[name]), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    for _ in range(reads):
        assert process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read() if process.stderr else ""
    assert process.wait(PATIENCE) == 0, error
    assert error == ""
    if name == "prepare":
        with h5py.File(tmp_path / "made.h5") as file:
            assert len(file["hr"]) == 15
    elif name == "eval":
        assert len(json.loads((tmp_path / "r.json").read_text())["sets"][0]["images"]) == 3
        assert (tmp_path / "r.csv").read_text().count("\n") == 5
    elif name == "upscale":
        assert len([*(tmp_path / "large").iterdir()]) == 3
    else:
        assert len(events(tmp_path / "out", "epoch")) == 2
        assert torch.load(tmp_path / "out" / "best.pth", weights_only=True)


def test_help_for_a_reader_of_one_line():
    process = subprocess.Popen(command("train", "--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == ""
