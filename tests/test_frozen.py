"""RDN.frozen(): a copy for inference whose weights are packed once, and which no later change of weights reaches."""

import copy

import pytest
import torch

from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN
from rdn_fast.rdb import amx, in_c, winograd

TINY = ModelConfig(num_features=8, growth_rate=6, num_blocks=2, num_layers=2)
DTYPES = {"naive": torch.float32, "sliced": torch.bfloat16, "winograd": torch.float32, "amx": torch.bfloat16}


@pytest.fixture(params=DTYPES)
def impl(request, monkeypatch):
    """Return the impl's name; amx is its build in plain C, which any processor computes."""
    monkeypatch.setattr(amx.block, "kernels", in_c.Kernels(amx.SOURCE, amx.PLAIN))
    for name, block in (("winograd", winograd.block), ("amx", amx.block)):
        if name == request.param and (reason := block.missing()):
            pytest.skip(f"{name} {reason}")
    return request.param


@pytest.fixture
def model(impl, seed):
    torch.manual_seed(seed)
    made = RDN(TINY, impl).to(memory_format=torch.channels_last)
    made.compute_dtype, made.output_dtype = DTYPES[impl], torch.float32
    return made


@torch.inference_mode()
def result(model, x):
    return model(x)


def test_it_gives_the_models_own_bits_at_every_call_and_size(model):
    twin = model.frozen()
    for size in ((2, 3, 9, 7), (1, 3, 16, 20), (2, 3, 9, 7)):
        x = torch.rand(size)
        assert torch.equal(result(twin, x), result(model, x))


@pytest.mark.parametrize("impl", ["winograd", "amx"], indirect=True)
def test_weights_are_packed_once(model, monkeypatch):
    block, packed = {"winograd": winograd.block, "amx": amx.block}[model.rdb], []
    monkeypatch.setattr(block, "pack", lambda *given, pack=block.pack, **more: packed.append(1) or pack(*given, **more))
    twin, x = model.frozen(), torch.rand(1, 3, 8, 8)
    for _ in range(3):
        result(twin, x)
    assert len(packed) == TINY.num_blocks
    result(model, x)
    assert len(packed) == 2 * TINY.num_blocks


def optimize(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    model(torch.rand(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()


def load(model):
    model.load_state_dict(RDN(TINY).state_dict())


def assign(model):
    model.load_state_dict(RDN(TINY).state_dict(), assign=True)


@torch.no_grad()
def write(model):
    for parameter in model.parameters():
        parameter.mul_(1.5)


def round_off(model):
    model.to(torch.bfloat16).to(torch.float32)


@pytest.mark.parametrize("change", [optimize, load, assign, write, round_off])
def test_changed_weights_are_the_models_and_not_those_of_a_copy_made_before(model, change):
    x, twin = torch.rand(1, 3, 8, 8), model.frozen()
    before = [result(each, x) for each in (model, twin)]
    change(model)
    changed = result(model, x)
    assert not torch.equal(changed, before[0])
    assert torch.equal(changed, result(copy.deepcopy(model), x))
    assert torch.equal(changed, result(model.frozen(), x))
    assert torch.equal(before[1], result(twin, x))


@pytest.mark.parametrize("impl", ["naive", "winograd"], indirect=True)
def test_a_copy_may_be_moved_and_cast(model):
    x, twin = torch.rand(1, 3, 8, 8), model.frozen()
    result(twin, x)  # packed by now
    for each in (twin, model):
        each.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(result(twin, x), result(model, x))


def test_a_copy_takes_no_weights_and_gives_no_gradients(model):
    twin = model.frozen()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        twin.load_state_dict(model.state_dict())
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    with pytest.raises(RuntimeError, match=r"^a frozen model computes no gradients"):
        twin(torch.rand(1, 3, 8, 8, requires_grad=True))
