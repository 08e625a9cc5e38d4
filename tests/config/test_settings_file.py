"""Settings as TOML: written, read back, merged with flags, and refused in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import string
import tomllib
import types
import typing

import pytest
from runs import TINY, weights
from runs import cli as command_line

from rdn_fast.config import PRESETS, ModelConfig, TrainConfig, make_configs
from rdn_fast.config.settings_file import as_toml, read_settings
from rdn_fast.errors import UserError

ODD = [*"\\\"'\n\r\t\x00\x1b\x7f\x85 #=[]{}é雪😀\u2028", *string.ascii_letters]


def _random_value(draw: random.Random, field: dataclasses.Field, kinds: tuple[type, ...]) -> object:
    """Return a value that the field may have. Names of files are made of anything."""
    if (choices := field.metadata["choices"]) is not None:
        return draw.choice(choices)
    if bool in kinds:
        return draw.random() < 0.5
    if int in kinds:
        return draw.randrange(1, 10 ** draw.randrange(1, 12))
    if float in kinds:
        return draw.random() if field.name == "ema" else draw.uniform(1, 2) * 10.0 ** draw.randrange(-9, 30)
    if field.metadata["parse"] is not None or field.name == "degradation":
        return field.default
    return "".join(draw.choices(ODD, k=draw.randrange(1, 30)))


def _random_config(draw: random.Random, cls: type, **fixed):
    hints, given = typing.get_type_hints(cls), dict(fixed)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        kinds = tuple(kind for kind in typing.get_args(hint) or (hint,) if kind is not types.NoneType)
        if field.name not in fixed and not (field.default is None and draw.random() < 0.3):
            value = _random_value(draw, field, kinds)
            with contextlib.suppress(UserError):  # out of range, or not beside the others: it keeps its default
                cls(**given, **{field.name: value})
                given[field.name] = value
    return cls(**given)


def test_what_is_written_is_read_back(tmp_path, seed):
    draw = random.Random(seed)
    for _ in range(20):
        model_config = _random_config(draw, ModelConfig, scale=draw.choice((2, 3, 4, 8)), tail="shuffle")
        train_config = _random_config(draw, TrainConfig)
        preset = draw.choice([None, *PRESETS])
        (tmp_path / "s.toml").write_bytes(as_toml(model_config, train_config, preset, ["a comment"]).encode())
        content = tomllib.loads((tmp_path / "s.toml").read_text(encoding="utf-8"))
        assert {
            name: value for name, value in dataclasses.asdict(train_config).items() if value is not None
        } == content["train"]
        given = read_settings(tmp_path / "s.toml", {})
        written = given.pop("preset", None)
        values = {**vars(model_config), **vars(train_config)}
        fills = preset is not None and any(values[name] is None for name in PRESETS[preset])
        assert written == (None if fills else preset)
        assert make_configs(given, written) == (model_config, train_config)


def test_names_may_have_dashes_and_be_aliases(tmp_path):
    lines = 'preset = "demo"', "[train]", "epochs = 7", "batch-size = 3", "lr = 1", 'loss-scale-value = "auto"'
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # as Windows' editor does
    given = read_settings(tmp_path / "a.toml", {})
    assert given == {"preset": "demo", "num_epochs": 7, "batch_size": 3, "lr": 1.0, "loss_scale": "auto"}
    assert type(given["lr"]) is float


def test_flags_win_and_replace_what_contradicts_them(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('[train]\nlr = 0.5\ntrain_dir = "a"\ntrain_lr_dir = "b"\neval_file = "c"\neval_lr_dir = "d"\n')
    assert read_settings(path, {"lr": 1.0}).keys() == {"train_dir", "train_lr_dir", "eval_file", "eval_lr_dir"}
    assert read_settings(path, {"train_file": "x.h5"}).keys() == {"lr", "eval_file", "eval_lr_dir"}
    assert read_settings(path, {"eval_file": "x.h5"}).keys() == {"lr", "train_dir", "train_lr_dir"}
    assert read_settings(path, {"data_path": "x"}).keys() == {"lr"}
    path.write_text('[train]\nlr_schedule = "multistep"\nlr_milestones = "2,4"\n')
    assert read_settings(path, {"lr_schedule": "cosine"}).keys() == set()


def test_resume_auto_is_of_a_start_and_a_name_that_is_no_text_is_left_out(tmp_path):
    text = as_toml(*make_configs({"resume": "auto", "train_file": "a\udcff.h5"}), None)
    assert "resume" not in text
    assert '# train_file = "a\\udcff.h5": not UTF-8; give --train-file' in text
    assert "train_file" not in tomllib.loads(text)["train"]
    assert 'resume = "a.pt"' in as_toml(*make_configs({"resume": "a.pt"}), None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nlrr = 1", ("lrr in [train]: no such setting (did you mean lr?)",)),
        ("[train]\nbatchsize = 1", ("batchsize in [train]: no such setting (did you mean batch_size?)",)),
        ("[trian]\nlr = 1", ("trian: no such setting (did you mean train?)",)),
        ("lr = 1", ("lr: belongs in [train]; move it there",)),
        ("[model]\nbatch_size = 1", ("batch_size in [model]: belongs in [train]",)),
        ("[train]\nscale = 2", ("scale in [train]: belongs in [model]",)),
        ("train = 1", ("train is a table; write [train]",)),
        ('preset = "dmo"', ('preset "dmo": choose one of rdn-b',)),
        ("preset = [1]", ("preset [1]: choose one of",)),
        ("[train]\nbatch_size = 1.5", ("batch_size in [train], 1.5: give a whole number",)),
        ("[train]\nbatch_size = true", ("batch_size in [train], true: give a whole number",)),
        ('[train]\nlr = "1"', ('lr in [train], "1": give a number',)),
        ("[train]\nlr = 1979-05-27", ('lr in [train], "1979-05-27": give a number',)),
        (f"[train]\nlr = {'9' * 400}", ("lr in [train], 9999", "is too large; give a smaller number")),
        (f"[train]\nlr = {'9' * 5000}", ("is not TOML (",)),
        (f"[train]\nlr = {'[' * 2000}", ("is not TOML (",)),
        ("[train]\ndrop_last = 1", ("drop_last in [train], 1: give true or false",)),
        ("[train]\ntrain_file = 1", ("train_file in [train], 1: give text in quotes",)),
        ('[train]\nrdb = ["a"]', ('rdb in [train], ["a"]: give text in quotes',)),
        ("[train]\nlr_milestones = [1, 2]", ('lr_milestones in [train], [1, 2]: give text in quotes, as "1,2"',)),
        ('[train]\ndata_mode = "fast"', ('data_mode in [train], "fast": choose one of auto, mmap',)),
        ('[train]\nloss_scale = "much"', ('loss_scale in [train], "much": give a number, or auto',)),
        ("[train]\nepochs = 1\nnum-epochs = 1", ("num-epochs in [train] is num_epochs, which is there already",)),
        ("[train]\nlr 1", ("is not TOML (", "line 2")),
        ("[train]\nlr = 1\nlr = 2", ("is not TOML (",)),
        ("[train]\ntrain_dir = '\udcff'", ("is not TOML ('utf-8' codec",)),
        # Found by the configs, which know flags only.
        ("[train]\nlr = -1", ("lr in [train], -1.0: must be greater than 0",)),
        ("[train]\nloss_scale = nan", ("loss_scale in [train], nan: must be a positive number",)),
        ("[model]\nscale = 5", ("scale in [model], 5: RDN is defined for",)),
        ('[model]\ntail = "espcn"\nupsample_channels = 3', ("upsample_channels in [model], 3: --tail espcn has",)),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(cli, tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_bytes(text.encode(errors="surrogateescape"))
    message = cli("train", "--config", "run.toml").user_error()
    assert message.startswith("--config run.toml: ")
    for word in words:
        assert word in message
    assert len(message) < 400


def test_what_is_no_file_of_settings(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.h5").write_bytes(bytes(1_000_001))
    (tmp_path / "demo.toml").write_text(as_toml(*make_configs({}, "demo"), "demo"))
    for name, told in (("none", "no such file; "), (".", "is a folder; "), ("large.h5", "is too large for settings")):
        assert cli("train", "--config", name).user_error().startswith(f"--config {name}: {told}")
    # A mistake in a flag is the flag's, whatever the file says.
    assert cli("train", "--config", "demo.toml", "--lr", "-1").user_error().startswith("--lr -1.0: ")
    message = cli("tune", "--config", "demo.toml", "--preset", "rdn-b").user_error()
    assert message.startswith("--config demo.toml: sets all that --preset rdn-b would, and wins; leave out ")
    with pytest.raises(UserError, match="no training data"):  # which it does not say
        make_configs(read_settings("demo.toml", {}))[1].files(2)


def test_a_run_writes_what_makes_the_same_run(cli, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--train-file", prepared.train, *TINY, "--max-steps", 2, "--drop-last", "--device", "cpu")
    assert cli("train", *flags, "--preset", "demo", "--outputs-dir", "a").code == 0
    file = tmp_path / "a" / "settings.toml"
    text = file.read_text()
    assert text.count("preset = ") == 1
    content = tomllib.loads(text)
    assert content["preset"] == "demo"
    assert content["train"]["max_steps"] == 2
    assert "precision O0" in text.splitlines()[1]
    assert cli("train", "--config", file, "--outputs-dir", "b").code == 0
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(value.equal(second[key]) for key, value in first.items())
    assert (tmp_path / "b" / "settings.toml").read_text() == text.replace('outputs_dir = "a"', 'outputs_dir = "b"')
    # Again in the folder of the file itself, and on from there with another setting.
    assert cli("train", "--config", file, "--no-drop-last").code == 0
    (aside,) = (tmp_path / "a").glob("earlier-*/settings.toml")
    assert aside.read_text() == text
    assert file.read_text() == text.replace("drop_last = true", "drop_last = false")
    ended = cli("train", "--config", file, "--resume", "auto", "--max-steps", 3, "--lr", "0.5")
    assert ended.code == 0
    assert "note: lr was 0.001, now 0.5" in ended.out
    assert "resume" not in file.read_text()


@pytest.mark.slow
def test_launched_ranks_take_the_file_as_it_was_at_the_start(prepared, tmp_path):
    flags = ("--train-file", prepared.train, *TINY, "--max-steps", 2, "--device", "cpu", "--outputs-dir", "a")
    assert command_line("train", "--nproc", 2, *flags, cwd=tmp_path).returncode == 0
    file, before = tmp_path / "a" / "settings.toml", weights(tmp_path / "a")
    assert "# Ranks: 2." in file.read_text()
    # The file that the ranks' own run replaces.
    again = command_line("train", "--config=a/settings.toml", "--nproc", 2, "--max-restarts", 1, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert all(value.equal(before[key]) for key, value in weights(tmp_path / "a").items())
