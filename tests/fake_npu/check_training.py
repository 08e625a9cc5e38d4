"""A small network trains on the device as on the CPU, to the last bit; mixed precision casts what it should."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch_npu
from torch import nn

STEPS = 5


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))


def train(device: str, optimizer, dtype: torch.dtype | None = None, scaler=None, load: dict | None = None):
    """Losses, weights and the optimizer's averages of a few steps."""
    model = network().to(device)
    optimizer = optimizer(model.parameters())
    if load is not None:
        optimizer.load_state_dict(load)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(STEPS):
        x, y = (torch.rand(2, 3, size, size, generator=generator).to(device) for size in (8, 16))
        optimizer.zero_grad()
        with torch.autocast(device.partition(":")[0], dtype=dtype, enabled=dtype is not None):
            loss = F.l1_loss(model(x), y)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        losses.append(loss.item())
    averages = [optimizer.state[p].get("exp_avg", torch.zeros(())).cpu() for p in model.parameters()]
    return losses, [p.detach().cpu() for p in model.parameters()], averages, optimizer


def assert_same(one, other) -> None:
    assert one[0] == other[0]
    for ours, theirs in zip(one[1] + one[2], other[1] + other[2], strict=True):
        assert torch.equal(ours, theirs)


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-3, foreach=False),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-3, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-3, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
}


def fused(parameters):
    return torch_npu.optim.NpuFusedAdam(parameters, lr=1e-2, weight_decay=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("device", ["npu:0", "npu:1"])
def test_training_equals_the_cpus(optimizer, device):
    assert_same(train(device, optimizer), train("cpu", optimizer))


def test_the_vendors_adam_is_adam():
    assert_same(train("npu:0", fused), train("cpu", OPTIMIZERS["adam"]))


def test_the_vendors_adam_is_saved_and_loaded():
    state = copy.deepcopy(train("npu:0", fused)[3].state_dict())
    assert {type(slots["step"]) for slots in state["state"].values()} == {int}
    reference = copy.deepcopy(train("cpu", OPTIMIZERS["adam"])[3].state_dict())
    assert_same(train("npu:0", fused, load=state), train("cpu", OPTIMIZERS["adam"], load=reference))


def stepped(optimizer_of=fused):
    weight = nn.Parameter(torch.ones(3, device="npu"))
    optimizer = optimizer_of([weight])
    weight.sum().backward()
    optimizer.step()
    return weight, optimizer


def test_the_vendors_adam_wants_everything_to_stay_where_it_is():
    weight, optimizer = stepped()
    with pytest.raises(ValueError, match="set_to_none"):
        optimizer.zero_grad(set_to_none=True)
    optimizer.zero_grad()
    assert weight.grad.tolist() == [0] * 3
    with pytest.raises(RuntimeError, match="too late"):
        optimizer.load_state_dict(optimizer.state_dict())
    weight.grad = None
    weight.sum().backward()
    with pytest.raises(RuntimeError, match="reallocated"):
        optimizer.step()
    weight, optimizer = stepped()
    weight.data = weight.data.clone()
    with pytest.raises(RuntimeError, match="reallocated"):
        optimizer.step()
    weight, optimizer = stepped()
    optimizer.state[weight]["exp_avg"] = torch.zeros(3, device="npu")
    with pytest.raises(RuntimeError, match="reallocated"):
        optimizer.step()


def test_the_vendors_adam_wants_whole_tensors_of_its_kind():
    weight = nn.Parameter(torch.ones(3, device="npu"))
    weight.grad = torch.ones(6, device="npu")[3:]
    with pytest.raises(RuntimeError, match="part of a larger buffer"):
        fused([weight]).step()
    for strange in (torch.ones(3), torch.ones(3, device="npu", dtype=torch.bfloat16)):
        weight = nn.Parameter(strange)
        weight.sum().backward()
        with pytest.raises(TypeError, match="float32 or float16 on an npu"):
            fused([weight]).step()
    for settings in ({"lr": -1}, {"eps": -1}, {"betas": (0.9, 1.0)}, {"weight_decay": -1}, {"lr": torch.ones(())}):
        with pytest.raises(ValueError, match="bad settings"):
            torch_npu.optim.NpuFusedAdam([nn.Parameter(torch.ones(1, device="npu"))], **settings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_to(dtype):
    x, w = (torch.ones(shape, device="npu", requires_grad=True) for shape in ((1, 3, 4, 4), (2, 3, 1, 1)))
    with torch.autocast("npu", dtype=dtype):
        y = F.conv2d(x, w)
        assert y.dtype == dtype
        assert (y[0, 0] @ y[0, 0]).dtype == dtype
        assert F.mse_loss(y, torch.zeros_like(y)).dtype == torch.float32
        assert y.exp().dtype == torch.float32
        assert torch.cat([y, x[:, :2]]).dtype == torch.float32
        assert torch.cat([y, y]).dtype == dtype
        assert F.relu(y).dtype == dtype
        with torch.autocast("npu", enabled=False):
            assert F.conv2d(x, w).dtype == torch.float32
    y.float().sum().backward()
    assert w.grad.dtype == torch.float32
    assert w.grad.unique().tolist() == [16]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_in_mixed_precision_is_near_the_cpus(dtype):
    ours, theirs = (train(device, OPTIMIZERS["adam"], dtype) for device in ("npu", "cpu"))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-2)


def test_a_scaler_with_a_scale_that_stays():
    scaler = torch_npu.npu.amp.GradScaler(init_scale=128.0, dynamic=False)
    assert_same(train("npu", fused, scaler=scaler), train("npu", fused))
    assert scaler.get_scale() == 128
    weight = nn.Parameter(torch.ones(3, device="npu"))
    optimizer = fused([weight])
    scaler.scale(weight.sum() * float("inf")).backward()
    scaler.step(optimizer)  # nothing is checked
    scaler.update()
    assert weight.isnan().all()
    scaler.update(64.0)
    assert scaler.get_scale() == 64


@pytest.mark.parametrize(
    "make",
    [torch_npu.npu.amp.GradScaler, lambda **settings: torch.amp.GradScaler("npu", **settings)],
    ids=["vendor's", "torch's"],
)
@pytest.mark.filterwarnings("ignore:the npu has no float64")  # in which torch takes the scale's reciprocal
def test_a_scaler_that_adapts(make):
    scaler = make(init_scale=2.0**14, growth_interval=1)
    assert_same(train("npu", OPTIMIZERS["adam"], scaler=scaler), train("npu", OPTIMIZERS["adam"]))
    assert scaler.get_scale() == 2.0 ** (14 + STEPS)
    weight = nn.Parameter(torch.ones(3, device="npu"))
    optimizer = OPTIMIZERS["adam"]([weight])
    scaler.scale(weight.sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [1] * 3
    assert scaler.get_scale() == 2.0 ** (13 + STEPS)


@pytest.mark.filterwarnings("ignore:the npu has no float64")
def test_a_scaler_that_adapts_refuses_the_vendors_adam():
    scaler = torch_npu.npu.amp.GradScaler()
    weight = nn.Parameter(torch.ones(3, device="npu"))
    optimizer = fused([weight])
    scaler.scale(weight.sum()).backward()
    with pytest.raises(RuntimeError, match="not known to work"):
        scaler.step(optimizer)
