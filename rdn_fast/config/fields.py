"""What the fields of both configs share: the metadata of their flags, and checks of their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, fields

from rdn_fast.errors import UserError


def flag(default, help_text: str, *aliases: str, choices: tuple | None = None, parse: Callable | None = None):
    """Return a dataclass field with what flags/training.py needs: help text, further names, choices, and a parser."""
    return field(default=default, metadata={"help": help_text, "aliases": aliases, "choices": choices, "parse": parse})


def dashed(name: str) -> str:
    return name.replace("_", "-")


def check_choices(config) -> None:
    """Raise UserError for a value that is none of its field's choices."""
    for each in fields(config):
        value, choices = getattr(config, each.name), each.metadata["choices"]
        if choices and value is not None and value not in choices:
            raise UserError(f"--{dashed(each.name)} {value}: choose one of {', '.join(map(str, choices))}")


def check_positive(config, name: str) -> None:
    value = getattr(config, name)
    if not 0 < value < float("inf"):  # NaN fails too
        raise UserError(f"--{dashed(name)} {value}: must be greater than 0, and finite")
