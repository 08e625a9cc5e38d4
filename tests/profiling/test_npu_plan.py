"""profiling.npu_plan and npu_errors, and that docs/ascend.md says what the compiler plans today."""

import re

import pytest
import torch

from profiling import hivm, npu_errors, npu_plan, npu_reference
from profiling.hivm_order import Race
from rdn_fast.rdb import npu_conv_kernels
from rdn_fast.rdb.npu_conv_planes import Planes

needs_package = pytest.mark.skipif(
    hivm.package() is None, reason="needs Ascend's compiler: make setup-ascend (Python 3.11, x86-64 Linux)"
)
BLOCK = (1, 16, 16, 1, 3, 5)


def shape(name: str) -> Planes:
    batch, g0, g, layers, height, width = npu_plan.SHAPES[name]
    return Planes(batch, height, width, g0, g, layers)


def rows_of_page() -> dict[tuple[str, str], list[str]]:
    """Return the cells of the page's first table by kernel and shape."""
    text = npu_plan.PAGE.read_text(encoding="utf-8").partition(npu_plan.BEGIN)[2].partition(npu_plan.END)[0]
    found = re.findall(r"^\| `(\w+)` +\| ([\w-]+) +\| (.*) \|$", text, re.MULTILINE)
    return {(kind, name): [cell.strip() for cell in cells.split("|")] for kind, name, cells in found}


def test_the_page_has_every_kernel_and_shape_without_a_race():
    rows = rows_of_page()
    assert list(rows) == [(kind, name) for name in npu_plan.SHAPES for kind in npu_plan.KINDS]
    for _, _, _, missing, fp16, bf16, races, *seconds in rows.values():
        assert (missing, races) == ("0", "none")
        assert all(0 <= float(error) <= 1.5 for error in (fp16, bf16))
        assert len(seconds) == len(npu_plan.TARGETS) == 3


@needs_package
@pytest.mark.parametrize("kind", npu_plan.KINDS)
def test_the_page_has_the_compilers_plan(kind, seed):
    rows, name = rows_of_page(), list(npu_plan.SHAPES)[seed % len(npu_plan.SHAPES)]
    plan, seconds = npu_plan.plan(kind, shape(name))
    numbers = [list(map(int, cell.split(", "))) for cell in rows[kind, name][:4]]
    assert numbers == [list(map(int, plan[:3])), list(plan[3:6]), list(plan[6:9]), [plan.missing]]
    assert len(seconds) == 3


def test_modules_that_differ_are_told(monkeypatch):
    monkeypatch.setattr(hivm, "compile_module", lambda _, target: f"dlti.target_system_spec {target}\n{target}")
    with pytest.raises(ValueError, match="layer: the targets' modules differ"):
        npu_plan.plan("layer", shape("small"))


@pytest.mark.parametrize("name", npu_plan.SHAPES)
def test_the_executed_kernels_are_those_of_training(name):
    batch, g0, g, layers, height, width = npu_plan.executed(name)
    trained, run = shape(name), Planes(batch, height, width, g0, g, layers)
    assert (run.k, run.row, run.rows) == (trained.k, trained.row, trained.rows)
    assert run.tiles == 2


@needs_package
def test_errors_of_a_block_are_in_roundings_and_beside_naives():
    own, plain = npu_errors.of_block(BLOCK, torch.bfloat16)
    assert len(own) == len(plain) == 3
    assert all(0.1 < error < 4 for error in (*own, *plain))


@needs_package
def test_every_kernel_is_within_two_roundings_and_a_fault_is_seen(monkeypatch):
    sizes = (1, 16, 16, 2, 3, 5)
    errors = npu_errors.of_kernels(sizes, torch.float16)
    assert list(errors) == list(npu_conv_kernels.KINDS)
    assert all(0 < error < 2 for error in errors.values())
    right = npu_errors.emulate

    def with_a_fault(text, arguments, items):
        right(text, arguments, items)
        if "npu_conv_gradient" in text:
            arguments[4].mul_(1.01)

    monkeypatch.setattr(npu_errors, "emulate", with_a_fault)
    wrong = npu_errors.of_kernels(sizes, torch.float16)
    assert wrong["gradient"] > 5
    assert wrong["layer"] == errors["layer"]


def test_a_race_is_in_the_table_instead_of_errors(monkeypatch):
    def race(*_):
        raise Race("M and MTE2 touch L1 0..64 in no order")

    monkeypatch.setattr(npu_errors, "of_kernels", race)
    monkeypatch.setattr(npu_plan, "plan", lambda *_: (npu_plan.Plan("1", "2", "3", 4, 5, 6, 7, 8, 9, 0), [0.1] * 3))
    table = npu_plan.kernels_table(("small",))
    assert table.count("M and MTE2 touch L1 0..64 in no order") == len(npu_plan.KINDS)
    assert table.count(" nan ") == 2 * len(npu_plan.KINDS)


def test_nothing_but_a_number_is_an_error():
    nan = torch.tensor([1.0, torch.nan])
    assert npu_errors.roundings(nan, torch.ones(2), torch.float16) == torch.inf
    assert npu_errors.roundings(torch.ones(2), torch.ones(2), torch.float16) == 0


def test_the_definition_of_a_layer_is_a_convolution(seed):
    """A plane of one image of 3 x 5 in rows of 16 pixels."""
    generator = torch.Generator().manual_seed(seed)
    k, width, height = 16, 16, 3
    size = Planes(1, height, 5, k, k, 1).pixels * k
    planes = torch.zeros(1, size // k, k, dtype=torch.float64)
    image = torch.randn(height, 5, k, generator=generator, dtype=torch.float64)
    first = npu_conv_kernels.HEAD * width
    planes[0, first : first + height * width].view(height, width, k)[:, :5] = image
    weights = torch.randn(1, 1, 3, 3, k, k, generator=generator, dtype=torch.float64)
    y, table = torch.zeros_like(planes), torch.zeros(1, height, width, k, dtype=torch.float64)
    npu_reference.run("layer", k, width, planes, weights, table, y, y, 1, 1, 1, 1, height, size, weights.stride(0))
    kernel = weights[0, 0].permute(2, 3, 0, 1)  # [ky, kx, output, input] -> [output, input, ky, kx]
    expected = torch.nn.functional.conv2d(image.permute(2, 0, 1)[None], kernel, padding=1)[0].relu()
    found = y[0, first : first + height * width].view(height, width, k)[:, :5].permute(2, 0, 1)
    torch.testing.assert_close(found, expected)
