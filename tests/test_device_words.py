"""Only devices/ and the RDB table dispatch on the kind of device: cuda, npu and cpu appear as names nowhere else in the package.

Prose may use the words. What counts: a string that is exactly such a name (with or without an index), and an attribute or an
import of that name. `tensor.cpu()` and `map_location="cpu"` mean the same on every device and are allowed.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import ROOT

KINDS = {"cpu", "cuda", "npu"}
NAME = re.compile(r"(cpu|cuda|npu|nccl|hccl)([:_.].*)?", re.DOTALL)
HOME = ROOT / "rdn_fast/devices"
TABLE = ROOT / "rdn_fast/rdb/__init__.py"


def words(tree: ast.AST, table: bool) -> Iterator[tuple[int, str]]:
    """Line and word of all that names a kind of device in code; `table`: calls of Impl(...) may."""
    for child in ast.iter_child_nodes(tree):
        match child:
            case ast.Call(func=ast.Name("Impl")) if table:
                continue
            case ast.keyword(arg="map_location", value=ast.Constant("cpu")):
                continue
            case ast.Call(func=ast.Attribute(value=moved, attr="cpu"), args=[], keywords=[]):
                yield from words(ast.Expr(moved), table)  # what is moved
                continue
            case ast.Constant(str(text)) if NAME.fullmatch(text):
                yield child.lineno, text
            case ast.Attribute(attr=attribute) if attribute in KINDS:
                yield child.lineno, f".{attribute}"
            case ast.Import(names=names) if any(KINDS & {*alias.name.split(".")} for alias in names):
                yield child.lineno, "import"
            case ast.ImportFrom(module=module, names=names) if KINDS & {
                *(module or "").split("."),
                *(alias.name for alias in names),
            }:
                yield child.lineno, "import"
        yield from words(child, table)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "rdn_fast").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT / "rdn_fast"))
)
def test_no_kind_of_device_is_named_outside_its_home(file: Path):
    found = list(words(ast.parse(file.read_text()), file == TABLE))
    assert HOME in file.parents or found == [], file


def test_the_walk_finds_every_kind_at_home():
    found = [text for file in HOME.glob("*.py") for _, text in words(ast.parse(file.read_text()), False)]
    assert {*found} >= {"cpu", "cuda", "npu"}  # a walk that sees nothing would pass everywhere


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ('device.type == "cpu"', ["cpu"]),
        ('torch.device("cuda:1")', ["cuda:1"]),
        ('f"{x}" in ("npu", "cuda")', ["npu", "cuda"]),
        ('BACKENDS = {"npu": "hccl"}', ["npu", "hccl"]),
        ("torch.cuda.synchronize()", [".cuda"]),
        ("x = torch.version.cuda", [".cuda"]),
        ("x.npu()", [".npu"]),
        ("torch.cpu.get_capabilities()", [".cpu"]),
        ("x.cpu(memory)", [".cpu"]),
        ("import torch.cuda", ["import"]),
        ("from torch import npu", ["import"]),
        ('Impl("naive", naive, ("cpu",))', ["cpu"]),
        ("x.cpu().numpy()", []),
        ('torch.load(file, map_location="cpu")', []),
        ('torch.load(file, map_location="cuda:0")', ["cuda:0"]),
        ('move(device="cpu")', ["cpu"]),
        ('torch.device("cuda").cpu()', ["cuda"]),
        ('help = "cpu, cuda[:i] or npu[:i]"', []),
        ('run(["npu-smi", "info"])', []),
        ('"""cpu"""', ["cpu"]),
    ],
)
def test_the_walk_sees_what_dispatches_and_passes_over_sentences(code, seen):
    assert [text for _, text in words(ast.parse(code), table=False)] == seen


def test_the_walk_passes_over_rows_in_the_table_alone():
    assert list(words(ast.parse('Impl("naive", naive, ("cpu",))\nx = "cpu"'), table=True)) == [(2, "cpu")]
