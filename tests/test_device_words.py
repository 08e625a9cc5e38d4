"""cuda, npu and cpu are words of rdn_fast/device.py alone: nowhere else does the package ask which kind of device there is.

What else is device-specific is a capability that device.py answers for, or a row of the RDB table. Sentences may use the words, so
only a string that is such a name, with an index or not, counts, and each attribute and import of that name. Moving results to the host
asks for no kind: `tensor.cpu()` and `map_location="cpu"` are the same everywhere.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import ROOT

KINDS = {"cpu", "cuda", "npu"}
NAME = re.compile(r"(cpu|cuda|npu|nccl|hccl)([:_.].*)?", re.DOTALL)
HOME = ROOT / "rdn_fast/device.py"
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
            case ast.ImportFrom(module=module, names=names) if KINDS & {*(module or "").split("."), *(alias.name for alias in names)}:
                yield child.lineno, "import"
        yield from words(child, table)


@pytest.mark.parametrize("file", sorted((ROOT / "rdn_fast").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT / "rdn_fast")))
def test_no_kind_of_device_is_named_outside_its_home(file: Path):
    found = list(words(ast.parse(file.read_text()), file == TABLE))
    if file == HOME:
        assert {text for _, text in found} >= KINDS  # a walk that sees nothing would pass everywhere
    else:
        assert found == [], file


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
