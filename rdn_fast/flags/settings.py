"""What flags and the file of --config come to: the configs of a run, and the command line of its ranks."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from rdn_fast.config import ModelConfig, TrainConfig, make_configs
from rdn_fast.config.settings_file import naming_key, read_settings
from rdn_fast.errors import naming_flag

_OF_LAUNCH = ("--nproc", "--nnodes", "--rdzv-endpoint", "--rdzv-id", "--max-restarts")


def make_configs_of(options: argparse.Namespace) -> tuple[ModelConfig, TrainConfig]:
    """Return the configs of the flags and --config, whose settings become attributes of options.

    The trunk's shape is that of --weights-file where no setting and no preset gives one.
    """
    given = vars(options)
    if (path := given.get("config")) is not None:
        with naming_flag("--config"):
            settings = read_settings(path, given)
        given |= settings
        with naming_key(path, settings):
            return _make_configs(given)
    return _make_configs(given)


def _make_configs(given: dict) -> tuple[ModelConfig, TrainConfig]:
    preset = given.get("preset")
    shape = {field.name for field in dataclasses.fields(ModelConfig)} - {"scale", "tail", "upsample_channels"}
    file = given.get("weights_file")
    if file is None or preset is not None or shape & given.keys():
        return make_configs(given, preset)
    from rdn_fast.weights.convert import read_weights

    theirs = dataclasses.asdict(read_weights(file).config)
    if given.get("tail") == "espcn":
        del theirs["upsample_channels"]  # this tail has its own
    return make_configs(theirs | given)


@contextmanager
def of_ranks(arguments: list[str], config: str | None) -> Iterator[list[str]]:
    """Yield the arguments of a launch as each of its ranks takes them, with a copy of --config's file `config`.

    Ranks that are started anew take what the file was, not what it is. A run's own settings.toml may be replaced.
    """
    theirs = _without_flags(arguments, _OF_LAUNCH)
    if config is None:
        yield theirs
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copyfile(config, os.path.join(folder, os.path.basename(config)))
        yield [*_without_flags(theirs, ("--config",)), "--config", copy]


def _without_flags(arguments: list[str], flags: tuple[str, ...]) -> list[str]:
    """Return the arguments without `FLAG VALUE` and `FLAG=VALUE`."""
    kept = []
    rest = iter(arguments)
    for word in rest:
        if word in flags:
            next(rest)
        elif word.partition("=")[0] not in flags:
            kept.append(word)
    return kept
