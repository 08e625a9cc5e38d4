"""The CPU's Adam beside torch's own."""

import copy

import torch
from torch.profiler import ProfilerActivity, profile

from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.model import RDN

CPU = torch.device("cpu")
TINY = ModelConfig(num_features=6, growth_rate=4, num_blocks=2, num_layers=2)


def test_it_computes_torchs_bits_without_copies_of_channels_last_gradients():
    model = RDN(TINY).to(memory_format=torch.channels_last)
    models = [model, copy.deepcopy(model)]
    ours = devices.adam(models[0].parameters(), CPU, 1e-2, weight_decay=0.1)
    torchs = torch.optim.Adam(models[1].parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    copies = []
    for _ in range(3):
        pairs = list(zip(*(model.parameters() for model in models), strict=True))
        for own, other in pairs:
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        for optimizer in (ours, torchs):
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                optimizer.step()
            if optimizer is ours:
                copies.append(sum(event.name == "aten::clone" for event in profiled.events()))
        for own, other in pairs:
            assert torch.equal(own, other)
            assert torch.equal(own.grad, other.grad)  # unscaled
            for key in ("exp_avg", "exp_avg_sq"):
                state, expected = ours.state[own][key], torchs.state[other][key]
                assert torch.equal(state, expected)
                assert (state.shape, state.stride()) == (own.shape, own.stride())
    assert copies == [0] * 3
