"""One file a benchmark.

Read training_step, small_models, inference, rdb, memory, loading, end_to_end, upscaling, minutes.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from bench.case import Case, Gate


@functools.cache
def load() -> dict[str, Case]:
    """Import every file of this folder. Return {file's name: its CASE} in their order."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found = {name: importlib.import_module(f"{__name__}.{name}").CASE for name in names}
    return dict(sorted(found.items(), key=lambda item: item[1].order))


def commands() -> list[str]:
    """Return the commands of bench/run.py: those that cases name, and the names of the cases' files."""
    return list(dict.fromkeys([*(command for case in load().values() for command in case.commands), *load()]))


def of_command(command: str) -> list[Case]:
    """Return the cases that a command runs: those that name it, or the one whose file is called so."""
    return [case for name, case in load().items() if command in (*case.commands, name)]


def gates(command: str) -> list[Gate]:
    """Return the gates of a command: those of its cases for several ranks in 8p, for one rank in all others.

    Without those that other commands measure.
    """
    several = command == "8p"
    found = [gate for case in of_command(command) for gate in case.gates if (gate.ranks > 1) == several]
    return [gate for gate in found if command in (gate.commands or (command,))]
