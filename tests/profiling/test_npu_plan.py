"""profiling.npu_plan, and that docs/ascend.md says what the compiler plans today."""

import re

import pytest
import torch
from runs import ROOT

from profiling import hivm, npu_plan
from rdn_fast.rdb import npu_conv
from rdn_fast.rdb.npu_conv_planes import Planes

needs_package = pytest.mark.skipif(
    hivm.package() is None, reason="needs Ascend's compiler: make setup-ascend (Python 3.11, x86-64 Linux)"
)


def shape(name: str) -> Planes:
    batch, g0, g, layers, height, width = npu_plan.SHAPES[name]
    return Planes(batch, height, width, g0, g, layers)


@needs_package
@pytest.mark.parametrize("kind", npu_plan.KINDS)
def test_the_page_has_the_compilers_plan(kind):
    page = (ROOT / "docs/ascend.md").read_text()
    (cells,) = re.findall(rf"^\| `{kind}` \| (.*) \|$", page, re.MULTILINE)
    *buffers, vector = (re.findall(r"\d+", cell) for cell in cells.split(" | "))
    plans = [npu_plan.plan(kind, shape(name), npu_plan.TARGETS[0]) for name in npu_plan.SHAPES]
    assert buffers == [list(plan[:3]) for plan in plans]
    assert [*map(int, vector)] == ([] if kind == "weight_gradient" else list(plans[0][6:9]))


@needs_package
def test_a_row_holds_for_all_targets():
    cells = npu_plan.plans("fusion", shape("small")).split(" | ")
    assert cells[0] == "| fusion"
    assert cells[1:-1] == [*map(str, npu_plan.plan("fusion", shape("small"), npu_plan.TARGETS[0]))]


def test_plans_that_differ_are_told(monkeypatch):
    monkeypatch.setattr(npu_plan, "plan", lambda kind, shape, target: (target,))
    with pytest.raises(ValueError, match="layer: the plans differ"):
        npu_plan.plans("layer", shape("small"))


@needs_package
def test_errors_are_in_roundings_and_beside_naives(monkeypatch):
    monkeypatch.setattr(npu_conv, "launch", npu_plan.emulate)
    cells = npu_plan.executed((1, 16, 16, 1, 3, 5), torch.bfloat16).strip("| ").split(" | ")
    assert cells[:2] == ["1 x 16 x 16 x 1 x 3 x 5", "bfloat16"]
    assert all(0.1 < float(cell) < 4 for cell in cells[2:])
