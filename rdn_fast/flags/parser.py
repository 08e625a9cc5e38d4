"""The parser of the command line: names with dashes, the nearest name of a mistyped flag, errors of one line."""

from __future__ import annotations

import argparse
import difflib
import itertools
from collections.abc import Iterable

from rdn_fast.errors import UserError


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to the help of a flag that has one, unless the help already tells it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default is None or "default" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=Help, **options)

    def parse_known_args(self, args=None, namespace=None):
        """Parse, but raise UserError here, where the command and so its --help is known, for what is not understood."""
        if self._subparsers is None:
            self._check_names(args)  # first: argparse would call a mistyped required flag missing
        options, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return options, rest

    def _check_names(self, words: list[str]) -> None:
        known = self._option_string_actions
        for word in itertools.takewhile(lambda word: word != "--", words):
            name = word.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
                self.error(f"{name}: no such flag" + "".join(f" (did you mean {flag}?)" for flag in nearest))

    def error(self, message: str):
        raise UserError(f"{message}; `{self.prog} --help` lists the flags")


def with_dashes(words: Iterable[str]) -> list[str]:
    """Return the arguments with dashes in flag names: --loss_scale_value=1 -> --loss-scale-value=1."""
    return [_with_dashes(word) for word in words]


def _with_dashes(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value
