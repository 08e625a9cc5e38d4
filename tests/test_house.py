"""The shape of the house: imports go one way through the rooms, no circles, no file of more than 300 lines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import ROOT

PACKAGE = ROOT / "rdn_fast"

# A room imports only from rooms of the lines above its own, and from itself. A room is a folder or a single file.
FLOORS = (
    ("errors", "cache", "ordered_map"),
    ("files", "config"),
    ("native", "ascend", "terminal"),
    ("devices",),
    ("precision",),
    ("data",),
    ("rdb",),
    ("tail",),
    ("model",),
    ("auto_level",),
    ("weights",),
    ("pictures", "spandrel"),
    ("evaluation",),
    ("distributed",),
    ("training",),
    ("report",),
    ("commands",),
    ("flags",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

LONGEST = 300  # lines of a Python file
EXCEPTIONS: dict[str, str] = {}  # file: why it stays whole


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of every import of the package, those inside functions included.

    `from rdn_fast.a import b` counts as rdn_fast.a.b. Modules named in a string for import_module() count, too.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names if alias.name.startswith("rdn_fast"))
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "rdn_fast":
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.ImportFrom(level=1 | 2):
                yield node.lineno, "rdn_fast.relative"  # no room's name: whole names are found by a search
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"), args=[first, *_]):
                if isinstance(first, ast.Constant) and str(first.value).startswith("rdn_fast"):
                    yield node.lineno, first.value


def room_of(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def wrong(room: str, tree: ast.AST) -> list[tuple[int, str]]:
    """Return the imports of a file of `room` that do not come from above it."""
    found = []
    for line, name in imports(tree):
        other = name.partition(".")[2].partition(".")[0]
        if other in ("", "__version__", room):
            continue
        if other not in FLOOR or FLOOR[other] >= FLOOR[room]:
            found.append((line, name))
    return found


PYTHON = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_a_floor():
    assert {room_of(file) for file in PYTHON} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("file", PYTHON, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_come_from_rooms_above(file: Path):
    if file == PACKAGE / "__init__.py":
        # Only type checkers see its imports: it imports a name's module when the name is first used.
        executed = [node for node in ast.parse(file.read_text()).body if not isinstance(node, ast.If)]
        assert list(imports(ast.Module(executed, []))) == []
        return
    assert wrong(room_of(file), ast.parse(file.read_text())) == []


@pytest.mark.parametrize(
    ("room", "code", "refused"),
    [
        ("data", "from rdn_fast import devices", []),
        ("data", "from rdn_fast.data.h5 import PairedH5", []),
        ("data", "from rdn_fast import __version__", []),
        ("data", "def late():\n    from rdn_fast.training import run", [(2, "rdn_fast.training.run")]),
        ("devices", "import rdn_fast.data.h5", [(1, "rdn_fast.data.h5")]),
        ("devices", "from rdn_fast import model, errors", [(1, "rdn_fast.model")]),
        ("rdb", "import_module('rdn_fast.commands.tune')", [(1, "rdn_fast.commands.tune")]),
        ("config", "from rdn_fast.files import lock", [(1, "rdn_fast.files.lock")]),  # of the same floor
        ("data", "from . import h5", [(1, "rdn_fast.relative")]),
        ("data", "from rdn_fast.attic import x", [(1, "rdn_fast.attic.x")]),
    ],
)
def test_the_check_sees_what_it_should(room, code, refused):
    assert wrong(room, ast.parse(code)) == refused


def test_no_two_modules_import_each_other():
    files = [file for file in PYTHON if file != PACKAGE / "__init__.py"]
    graph = {module_name(file): {*map(defining_module, imports_of(file))} - {module_name(file)} for file in files}
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}  # what is left stands in a circle, or needs one


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: Path) -> list[str]:
    return [name for _, name in imports(ast.parse(file.read_text()))]


def defining_module(name: str) -> str:
    """Return the module that a dotted name of an import is, or is defined in."""
    path = ROOT.joinpath(*name.split("."))
    is_module = path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
    return name if is_module else name.rpartition(".")[0]


def test_folders_are_one_level_deep_and_say_how_to_read_them():
    folders = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert folders
    for folder in folders:
        assert not [path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"], folder
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert docstring, folder


def test_files_are_short():
    too_long = {str(file.relative_to(PACKAGE)) for file in PYTHON if len(file.read_text().splitlines()) > LONGEST}
    assert too_long == set(EXCEPTIONS)


def test_only_terminal_prints():
    """Names of files are escaped there."""
    for file in PYTHON:
        printing = [node for node in ast.walk(ast.parse(file.read_text())) if getattr(node, "id", "") == "print"]
        assert not printing or file.name == "terminal.py", file


def test_no_two_test_files_have_one_name():
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert len({*names}) == len(names)  # pytest would not collect the second one


def test_only_devices_and_the_table_know_the_kernels_for_ascend():
    knowing = {room_of(file) for file in PYTHON if "npu_conv" in file.read_text()}
    assert knowing == {"rdb"}
