"""What a user is told of a mistyped flag, and of a folder where a file belongs or the other way round."""

from __future__ import annotations

import os
import shlex

import pytest
import runs

from rdn_fast.weights.shipped import select


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("doctor --devise cpu", "--devise: no such flag (did you mean --device?); `rdn-fast doctor --help`"),
        ("upscale --inptu a -o b", "--inptu: no such flag (did you mean --input?); `rdn-fast upscale --help`"),
        ("train --batchsize=3", "--batchsize: no such flag (did you mean --batch-size?); `rdn-fast train --help`"),
        ("train --apex_opt_lvl O1", "--apex-opt-lvl: no such flag (did you mean --apex-opt-level?); `rdn-fast train"),
        ("tune --xyz", "--xyz: no such flag; `rdn-fast tune --help`"),
        ("upscale more -i a -o b", "unrecognized arguments: more; `rdn-fast upscale --help`"),
        ("eval -z", "unrecognized arguments: -z; `rdn-fast eval --help`"),
        ("eval --eval-file", "expected at least one argument; `rdn-fast eval --help`"),
        ("trian --preset demo", "invalid choice: 'trian'"),
        ("--verbose", "`rdn-fast --help`"),
    ],
)
def test_flags_that_are_not_there(cli, words, told):
    assert told in cli(*shlex.split(words)).user_error()


def test_a_value_may_look_like_a_flag(cli, tmp_path):
    message = cli("convert", "none.pth", "out.pth", "--metadata=--note=1").user_error()
    assert message.startswith("--metadata --note=1: out.pth cannot hold it")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train --train-file folder", "folder: is a folder; give it to --train-dir, or make an h5 file of it with: "),
        ("train --train-file pipe", "pipe: is a pipe; "),
        (
            "train --train-dir file",
            "--train-dir file: is a file; give a folder of images (--train-file takes h5 ",
        ),
        ("train --data-path file", "--data-path file: is a file; --train-file takes h5 files"),
        ("train --data-path none", "--data-path none: no such folder; give that of DIV2K_x2.h5 and Set5_x2.h5"),
        ("train --train-file train.h5 --resume folder", "--resume folder: is a folder; give one of the checkpoints"),
        ("train --train-file train.h5 --weights-file folder", "folder: is a folder without model.json; name a file"),
        ("train --train-file train.h5 --eval-file none", "none: no such file; make it with: rdn-fast prepare "),
        ("eval --data file", "--data file: is a file; --eval-file takes files"),
        ("eval --eval-file pictures --json folder", "--json folder: is a folder; give a file"),
        ("eval --eval-file pictures --csv none/t", "--csv none/t: cannot be written (No such file or directory)"),
        ("eval --eval-file pictures --save-images file", "--save-images file: cannot be written (Not a directory); "),
        ("upscale -i pictures -o file", "-o file: is a file; give a folder, "),
        (
            "upscale -i pictures/picture_0.png -o file/a.png",
            "-o file: cannot be written (a file has that name); ",
        ),
        ("convert folder out.pth", "folder: is a folder without model.json; name a file"),
        ("convert WEIGHTS folder.pth", "folder.pth: is a folder; give a file"),
        ("convert WEIGHTS none/out.pth", "(No such file or directory); choose another place"),
        ("export -o folder.onnx", "--output folder.onnx: is a folder; give a file"),
        ("prepare --images-dir file --output-path o.h5", "--images-dir file: is a file; give a folder of images"),
        ("prepare --images-dir pictures --output-path folder", "--output-path folder: is a folder; give a file"),
        ("prepare --repack folder o.h5", "--repack folder: is a folder; give the h5 file to rewrite"),
        ("prepare --repack train.h5 folder", "--repack folder: is a folder; give a file"),
    ],
)
def test_a_folder_for_a_file_and_the_other_way_round(cli, prepared, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("a file")
    os.mkfifo("pipe")
    (tmp_path / "pictures").symlink_to(prepared.images)
    (tmp_path / "train.h5").symlink_to(prepared.train)
    more = {"train": (*runs.TINY, "--device", "cpu"), "eval": ("--device", "cpu"), "upscale": ("--device", "cpu")}
    words = words.replace("WEIGHTS", str(select().file)).split()
    assert told in cli(*words, *more.get(words[0], ())).user_error()
