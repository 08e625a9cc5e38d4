"""The command line: every spelling of flags that users know, and mistakes that are one line and exit code 2."""

import dataclasses
import os
import subprocess

import h5py
import numpy as np
import pytest
import torch
from runs import ROOT, TINY, assert_user_error, cli, command, make_data
from waiting import PATIENCE

from rdn_fast import RDN, ModelConfig
from rdn_fast import cli as command_line
from rdn_fast.config import PRESETS, TrainConfig
from rdn_fast.flags import make_parser


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def parsed(monkeypatch):
    """Return parsed(*flags): the (ModelConfig, TrainConfig) that `rdn-fast train FLAGS` would train."""

    def parse(*flags):
        seen = []
        monkeypatch.setattr("rdn_fast.training.run.train", lambda model, config, preset: seen.extend([model, config]))
        assert command_line.main(["train", *flags]) == 0
        return tuple(seen)

    return parse


# The flags of the Ascend port and of the reference, as their users type them.
LEGACY = [
    ("--data_path=/data/x/", "data_path", "/data/x/"),
    ("--device_id=3", "device_id", 3),
    ("--epochs=7", "num_epochs", 7),
    ("--batch-size=9", "batch_size", 9),
    ("--batch_size=9", "batch_size", 9),
    ("--lr=5e-4", "lr", 5e-4),
    ("--weight_decay=0.1", "weight_decay", 0.1),
    ("--weight-decay=0.1", "weight_decay", 0.1),
    ("--seed=5", "seed", 5),
    ("--loss_scale_value=32", "loss_scale", 32.0),
    ("--loss-scale-value=32", "loss_scale", 32.0),
    ("--apex_opt_level=O2", "opt_level", "O2"),
    ("--apex-opt-level=O1", "opt_level", "O1"),
    ("--train-file=a.h5", "train_file", "a.h5"),
    ("--eval-file=b.h5", "eval_file", "b.h5"),
    ("--outputs-dir=o_u_t", "outputs_dir", "o_u_t"),
    ("--weights-file=w.pth", "weights_file", "w.pth"),
    ("--patch-size=24", "patch_size", 24),
    ("--num-epochs=3", "num_epochs", 3),
    ("--num-workers=16", "num_workers", 16),
    ("--scale=4", "scale", 4),
    ("--num-features=32", "num_features", 32),
    ("--growth-rate=16", "growth_rate", 16),
    ("--num-blocks=4", "num_blocks", 4),
    ("--num-layers=3", "num_layers", 3),
]


@pytest.mark.parametrize(("flag", "name", "value"), LEGACY, ids=[flag for flag, *_ in LEGACY])
def test_legacy_flags(parsed, flag, name, value):
    shape = ["--num-blocks=16"] if name == "weights_file" else []  # else the file is read for it
    for words in ([flag], flag.split("=")):
        model, config = parsed(*words, *shape)
        assert getattr(model if hasattr(model, name) else config, name) == value


def test_every_field_is_a_flag(parsed):
    names = [field.name for cls in (ModelConfig, TrainConfig) for field in dataclasses.fields(cls)]
    assert len(names) == len(set(names))
    help_text = " ".join(make_parser()._subparsers._group_actions[0].choices["train"].format_help().split())
    for name in names:
        assert f"--{name.replace('_', '-')}" in help_text


def test_flags_win_over_the_preset(parsed):
    model, config = parsed("--preset", "train-full-8p", "--lr", "1e-3", "--num-blocks", "2")
    assert (config.lr, config.batch_size, config.loss_scale) == (1e-3, 64, 32.0)
    assert (model.num_blocks, model.num_layers) == (2, 8)


@pytest.mark.parametrize(
    ("preset", "epochs", "lr", "loss_scale"),
    [
        ("train-full-1p", 800, 4e-4, 1024),
        ("train-performance-1p", 1, 4e-4, 1024),
        ("train-full-8p", 800, 5e-4, 32),
        ("train-performance-8p", 1, 5e-4, 32),
        ("train-finetune-1p", 100, 1e-4, 32),
    ],
)
def test_the_seeds_recipes(parsed, preset, epochs, lr, loss_scale):
    model, config = parsed("--preset", preset)
    assert model == ModelConfig(2, 64, 64, 16, 8)
    assert (config.num_epochs, config.lr, config.loss_scale) == (epochs, lr, loss_scale)
    assert (config.batch_size, config.patch_size, config.seed) == (64, 32, 123)
    assert (config.lr_schedule, config.lr_step, config.lr_gamma) == ("step", 600, 0.1)
    assert (config.eval_every, config.opt_level) == (1, "auto")


def test_every_preset_is_valid(parsed):
    for preset in PRESETS:
        parsed("--preset", preset)


@pytest.mark.parametrize("tail", ["shuffle", "espcn"])
def test_the_model_is_the_weights_files_where_no_flag_says_otherwise(parsed, tmp_path, tail):
    config, path = ModelConfig(3, 6, 4, 2, 2, None, tail), tmp_path / "w.pth"
    torch.save(RDN(config).state_dict(), path)
    file = ("--weights-file", str(path))
    assert parsed(*file, "--lr", "1e-3")[0] == parsed(*file, "--scale", "3")[0] == config
    assert parsed(*file, "--num-blocks", "5")[0] == ModelConfig(num_blocks=5)
    assert parsed(*file, "--preset", "demo")[0].num_blocks == PRESETS["demo"]["num_blocks"]
    assert parsed(*file, "--scale", "2")[0] == dataclasses.replace(config, scale=2)


NONSENSE = [
    ("--batch-size", "0"),
    ("--batch-size", "-1"),
    ("--patch-size", "0"),
    ("--max-steps", "0"),
    ("--num-epochs", "0"),
    ("--lr", "0"),
    ("--lr", "nan"),
    ("--lr", "-1"),
    ("--scale", "5"),
    ("--scale", "1"),
    ("--num-blocks", "0"),
    ("--growth-rate", "-3"),
    ("--weight-decay", "-1"),
    ("--clip-grad", "0"),
    ("--ema", "1"),
    ("--num-workers", "-1"),
    ("--seed", "-1"),
    ("--loss-scale", "inf"),
    ("--checkpoint-every", "0"),
    ("--eval-every", "0"),
    ("--num-epochs", "many"),
    ("--opt-level", "O5"),
    ("--preset", "none"),
    ("--device", "tpu"),
    ("--device", "cpu:1"),
    ("--rdb", "magic"),
    ("--nproc", "0"),
    ("--data-mode", "tape"),
    ("--no-such-flag", "1"),
]


@pytest.mark.parametrize(("flag", "value"), NONSENSE, ids=[" ".join(pair) for pair in NONSENSE])
def test_nonsense_is_one_line(data, tmp_path, capsys, flag, value):
    flags = ["--data-path", str(data), "--outputs-dir", str(tmp_path / "o"), *TINY, f"{flag}={value}"]
    assert command_line.main(["train", *flags]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("rdn-fast: error: ")
    assert err.count("\n") == 1
    assert flag in err
    assert "usage" not in err + out
    assert not list(tmp_path.rglob("*.pth"))


def h5(path, lr, hr, **options):
    with h5py.File(path, "w") as file:
        for group, images in (("lr", lr), ("hr", hr)):
            for i, image in enumerate(images):
                file.create_dataset(f"{group}/{i}", data=image, **options)
    return path


BAD_FILES = {
    "missing": ("no such file", "rdn-fast prepare"),
    "text": ("not a readable HDF5 file",),
    "truncated": ("truncated",),
    "no groups": ("no group `lr`",),
    "counts": ("1 lr and 2 hr images", "has no partner"),
    "sizes": ("hr 40x40 is not 2 times lr 40x40", "--scale"),
    "float": ("/lr/0 is float64", "not uint8", "rdn-fast prepare --repack"),
    "patch": ("the largest is 40x7", "--patch-size"),
    "compressed": ("--data-mode mmap", "/lr/0 is compressed (gzip)", "rdn-fast prepare --repack", "--data-mode h5py"),
    "eval set": ("image 0 is smaller than the 15 pixels",),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files_are_one_line_and_write_nothing(data, tmp_path, capsys, what):
    lr, hr = np.zeros((40, 40, 3), np.uint8), np.zeros((80, 80, 3), np.uint8)
    path = tmp_path / "bad.h5"
    if what == "text":
        path.write_text("not h5")
    elif what == "no groups":
        h5py.File(path, "w").close()
    elif what == "truncated":
        path.write_bytes((data / "DIV2K_x2.h5").read_bytes()[:-1000])
    elif what != "missing":
        pairs = {
            "counts": ([lr], [hr, hr]),
            "sizes": ([lr], [lr]),
            "float": ([lr / 2], [hr / 2]),
            "patch": ([lr[:7]], [hr[:14]]),
            "compressed": ([lr], [hr]),
            "eval set": ([lr[:7]], [hr[:14]]),
        }
        h5(path, *pairs[what], compression="gzip" if what == "compressed" else None)
    files = ("--train-file", path, "--data-mode", "mmap")
    if what == "eval set":
        files = ("--train-file", data / "DIV2K_x2.h5", "--eval-file", path)
    assert command_line.main(["train", *map(str, files), "--outputs-dir", str(tmp_path / "o"), *TINY]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(path) in err
    assert all(words in err for words in BAD_FILES[what]), err
    assert not list(tmp_path.rglob("*.pth"))


def test_bad_folders_are_one_line_and_write_nothing(data, tmp_path, capsys):
    file, empty = data / "DIV2K_x2.h5", tmp_path / "empty"
    empty.mkdir()
    for flags, words in (
        (("--train-dir", tmp_path / "none"), (f"--train-dir {tmp_path / 'none'}: no such folder",)),
        (("--train-dir", file), (f"--train-dir {file}: ", "folder of images")),
        (("--train-dir", empty), (f"--train-dir {empty}: holds no files",)),
        (
            ("--train-dir", empty, "--train-file", file),
            (f"--train-file {file} ", f"--train-dir {empty}: ", "one of them"),
        ),
    ):
        assert command_line.main(["train", *map(str, flags), "--outputs-dir", str(tmp_path / "o"), *TINY]) == 2
        err = capsys.readouterr().err
        assert err.startswith("rdn-fast: error: ")
        assert err.count("\n") == 1
        assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == [empty]


def test_weights_of_another_shape_print_the_difference(data, tmp_path, capsys):
    torch.save(RDN(ModelConfig(2, 6, 4, 3, 2)).state_dict(), tmp_path / "w.pth")
    flags = ("--data-path", data, "--outputs-dir", tmp_path / "o", *TINY, "--weights-file", tmp_path / "w.pth")
    assert command_line.main(["train", *map(str, flags)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for words in ("w.pth does not fit", "unexpected rdbs.2.* (6 keys)"):
        assert words in err
    assert "gff.0.weight is [6, 18, 1, 1], not [6, 12, 1, 1]" in err


def test_no_data_says_what_to_give(capsys):
    assert command_line.main(["train"]) == 2
    assert "--train-file" in capsys.readouterr().err


def test_names_of_any_bytes_are_told(tmp_path):
    torch.save(RDN(ModelConfig(2, 6, 4, 2, 2)).state_dict(), tmp_path / "w.pth")
    source = (tmp_path / "w.pth").rename(os.fsdecode(os.fsencode(tmp_path) + b"/w\xff.pth"))
    ended = subprocess.run(
        command("convert", source, tmp_path / "out.pth"),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"},
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"w\\xff.pth: reference layout" in ended.stdout


def test_as_a_process(data, tmp_path):
    assert_user_error(cli("train", "--data-path", tmp_path / "none"), "none")
    assert_user_error(cli("nonsense"), "nonsense")
    assert_user_error(cli())
    assert_user_error(cli("train", "--data-path", data, "--device", "cuda:99"), "cuda")
    help_text = cli("train", "--help")
    assert help_text.returncode == 0
    assert "--loss-scale-value" in help_text.stdout


def test_lists_given_twice_add_up():
    parse = make_parser().parse_args
    assert parse(["upscale", "-i", "a", "--input", "b", "c", "-o", "d"]).input == ["a", "b", "c"]
    assert parse(["eval", "--eval-file", "a", "b", "--eval-file", "c"]).eval_file == ["a", "b", "c"]
    assert parse(["convert", "a", "b", "--metadata", "k=1", "--metadata", "l=2"]).metadata == ["k=1", "l=2"]
    assert parse(["eval", "--data", "d"]).eval_file == []  # not those of the calls before
