"""The pixel shuffle of CUDA, on the CPU: F.pixel_shuffle and a cast to the last byte, in one pass each way."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rdn_fast.config import ModelConfig
from rdn_fast.devices import pixel_shuffle, shuffle
from rdn_fast.model import RDN

LAST = torch.channels_last


@pytest.fixture
def as_on_cuda(monkeypatch):
    monkeypatch.setattr(shuffle, "_one_pass", lambda x: x.is_contiguous(memory_format=LAST))


class Passes(TorchDispatchMode):
    """Counts the operators that write as many elements as the shuffled map has."""

    def __init__(self, numel: int):
        super().__init__()
        self.names, self._numel = [], numel

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        writes = not function.is_view and function is not torch.ops.aten.empty.memory_format
        if writes and isinstance(result, torch.Tensor) and result.numel() == self._numel:
            self.names.append(function.name())
        return result


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 64, 8, 8), (1, 1, 1, 1), (3, 2, 1, 7)])
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize(("low", "dtype"), [("float16", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")])
def test_values_and_gradients(as_on_cuda, seed, shape, factor, low, dtype):
    generator = torch.Generator().manual_seed(seed)
    b, c, h, w = shape
    low, dtype = getattr(torch, low), getattr(torch, dtype)
    x = torch.randn(b, c * factor**2, h, w, generator=generator).to(low, memory_format=LAST).requires_grad_()
    y = pixel_shuffle(x, factor, dtype)
    gradient = torch.randn(y.shape, generator=generator).to(dtype)
    expected = F.pixel_shuffle(x, factor).to(dtype)
    assert torch.equal(y, expected)
    assert y.is_contiguous(memory_format=LAST)
    for order in (LAST, torch.contiguous_format):
        of = gradient.to(memory_format=order)
        (mine,), (other,) = (torch.autograd.grad(each, x, of, retain_graph=True) for each in (y, expected))
        assert torch.equal(mine, other)
        assert mine.is_contiguous(memory_format=LAST)


def test_one_pass_each_way(as_on_cuda):
    x = torch.randn(2, 16, 5, 6).half().to(memory_format=LAST).requires_grad_()
    with Passes(x.numel()) as forward:
        y = pixel_shuffle(x, 2, torch.float32)
    gradient = torch.randn(y.shape).to(memory_format=LAST)
    with Passes(x.numel()) as backward:
        y.backward(gradient)
    assert forward.names == ["aten::copy_"]
    assert [name for name in backward.names if name != "aten::detach"] == ["aten::copy_"]


@pytest.mark.parametrize(
    ("scale", "tail"), [(2, "shuffle"), (3, "shuffle"), (4, "shuffle"), (4, "single"), (2, "espcn")]
)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_the_model_is_the_same_to_the_last_byte(monkeypatch, seed, scale, tail, compute):
    torch.manual_seed(seed)
    model = RDN(ModelConfig(scale, 6, 4, 1, 2, tail=tail), "naive").to(memory_format=LAST)
    model.compute_dtype, model.output_dtype = compute, torch.float32
    x, results = torch.rand(2, 3, 6, 5).to(memory_format=LAST), []
    for one_pass in (False, True):
        monkeypatch.setattr(shuffle, "_one_pass", lambda x, one_pass=one_pass: one_pass)
        y = model(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
    assert all(map(torch.equal, *results))
