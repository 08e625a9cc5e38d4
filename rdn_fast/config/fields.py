"""What the fields of both configs share: the metadata of their flags, and checks of their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from rdn_fast.errors import UserError


def flag(default, help_text: str, *aliases: str, choices: tuple | None = None, parse: Callable | None = None):
    """Return a dataclass field with what flags/training.py needs: help text, further names, choices, and a parser."""
    return field(default=default, metadata={"help": help_text, "aliases": aliases, "choices": choices, "parse": parse})


def dashed(name: str) -> str:
    return name.replace("_", "-")


def check_positive(config, name: str) -> None:
    value = getattr(config, name)
    if not 0 < value < float("inf"):  # NaN fails too
        raise UserError(f"--{dashed(name)} {value}: must be greater than 0")
