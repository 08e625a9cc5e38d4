"""The flags of train and tune. Most are built from the fields of config/."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing

from rdn_fast.config import PRESETS, ModelConfig, TrainConfig


def train(commands) -> None:
    description = "Train a model. Flags win over --config, and both over --preset."
    parser = commands.add_parser("train", help="train a model", description=description)
    flag = parser.add_argument
    flag("--nproc", type=int, default=1, help="ranks to start on this node, one per device")
    nnodes_help = "nodes that take part, each started with the same command"
    flag("--nnodes", default="1", metavar="N|MIN:MAX", help=nnodes_help)
    endpoint_help = "where the nodes meet: one of them, and a free port of it"
    flag("--rdzv-endpoint", metavar="HOST:PORT", default=argparse.SUPPRESS, help=endpoint_help)
    id_help = "tells runs apart that meet at one place"
    flag("--rdzv-id", metavar="NAME", default=argparse.SUPPRESS, help=id_help)
    restarts_help = (
        "how often the ranks are started anew, from the last checkpoint, when one is killed or a device fails"
    )
    flag("--max-restarts", type=int, default=0, metavar="K", help=restarts_help)
    _add_config(parser)


def tune(commands) -> None:
    parser = commands.add_parser(
        "tune",
        help="time the dense block's implementations here, or calibrate the loss scale",
        description="Time the dense block's implementations for a run with these flags (train's), "
        "and remember the fastest.",
        conflict_handler="resolve",  # the two flags below replace train's
    )
    _add_config(parser)
    calibrate_help = (
        "instead: choose the loss scale as --loss-scale-value auto does, "
        "and show the gradients' histogram it is chosen from"
    )
    flag = parser.add_argument
    flag("--loss-scale", dest="calibrate", action="store_true", default=argparse.SUPPRESS, help=calibrate_help)
    outputs_help = "where --loss-scale writes loss_scale.csv and loss_scale.svg"
    flag("--outputs-dir", default="outputs/tune", help=outputs_help)


def _add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config, --preset and a flag for each field of both configs. Only given flags become attributes."""
    config_help = "settings from a TOML file, as the settings.toml that every run writes beside its weights"
    parser.add_argument("--config", metavar="FILE.toml", help=config_help, default=argparse.SUPPRESS)
    preset_help = "settings by name"
    parser.add_argument("--preset", choices=tuple(PRESETS), help=preset_help, default=argparse.SUPPRESS)
    for cls in (ModelConfig, TrainConfig):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            _add_field(parser, field, hints[field.name])


def _add_field(parser: argparse.ArgumentParser, field: dataclasses.Field, hint) -> None:
    help_text = field.metadata["help"]
    if field.default not in (None, False) and "default" not in help_text:
        help_text += f" (default: {field.default})"
    names = (field.name.replace("_", "-"), *field.metadata["aliases"])
    if hint is bool:
        value = {"action": argparse.BooleanOptionalAction}  # --no-...: against --config
    else:
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType] or [hint]
        value = {"type": field.metadata["parse"] or kinds[0], "choices": field.metadata["choices"]}
    flags = (f"--{name}" for name in names)
    parser.add_argument(*flags, dest=field.name, help=help_text, default=argparse.SUPPRESS, **value)
