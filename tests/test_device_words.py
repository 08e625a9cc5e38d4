"""Only devices/ and the table of impls dispatch on the kind of device: no other code names cuda, npu or cpu.

Prose may use the words. What counts: a string that is exactly such a name, with or without an index, and an attribute
or an import of that name. `tensor.cpu()` and `map_location="cpu"` mean the same on every device and are allowed.
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


def device_names(tree: ast.AST, table: bool) -> Iterator[tuple[int, str]]:
    """Yield line and word of every name of a kind of device in code. table: calls of Impl(...) are left out."""
    for child in ast.iter_child_nodes(tree):
        match child:
            case ast.Call(func=ast.Name("Impl")) if table:
                continue
            case ast.keyword(arg="map_location", value=ast.Constant("cpu")):
                continue
            case ast.Call(func=ast.Attribute(value=moved, attr="cpu"), args=[], keywords=[]):
                yield from device_names(ast.Expr(moved), table)
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
        yield from device_names(child, table)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "rdn_fast").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT / "rdn_fast"))
)
def test_no_kind_of_device_is_named_outside_its_home(file: Path):
    found = list(device_names(ast.parse(file.read_text()), file == TABLE))
    assert HOME in file.parents or found == [], file


def test_every_kind_is_found_in_devices():
    found = [text for file in HOME.glob("*.py") for _, text in device_names(ast.parse(file.read_text()), False)]
    assert {*found} >= {"cpu", "cuda", "npu"}  # a search that finds nothing would pass everywhere


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
def test_dispatching_is_found_and_prose_is_not(code, seen):
    assert [text for _, text in device_names(ast.parse(code), table=False)] == seen


def test_only_the_table_may_name_devices_in_impls():
    assert list(device_names(ast.parse('Impl("naive", naive, ("cpu",))\nx = "cpu"'), table=True)) == [(2, "cpu")]
