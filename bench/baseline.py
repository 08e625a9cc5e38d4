"""What rdn_fast is measured against: the reference's recipe, rewritten from its description, and stock PyTorch's best.

Independent of rdn_fast's model and implementations. The parameters have the reference's names and shapes, so weights
are shared with it.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from bench.recipe import Recipe
from rdn_fast import devices
from rdn_fast.config import ModelConfig

LR = 1e-4
LOSS_SCALE = 1024.0  # the seed system's, on one card


class DenseLayer(nn.Module):
    def __init__(self, channels_in: int, growth_rate: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, growth_rate, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, F.relu(self.conv(x))], dim=1)


class RDB(nn.Module):
    """Residual dense block: x [B, G0, H, W] -> [B, G0, H, W], with a concatenation per layer."""

    def __init__(self, g0: int, g: int, num_layers: int):
        super().__init__()
        self.layers = nn.Sequential(*(DenseLayer(g0 + j * g, g) for j in range(num_layers)))
        self.lff = nn.Conv2d(g0 + num_layers * g, g0, 1)

    def forward(self, x):
        return x + self.lff(self.layers(x))


class RDN(nn.Module):
    """The network of arXiv:1802.08797: x [B, 3, H, W] in 0..1 -> [B, 3, scale*H, scale*W]."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        g0, u = c.num_features, c.tail_channels
        self.sfe1 = nn.Conv2d(3, g0, 3, padding=1)
        self.sfe2 = nn.Conv2d(g0, g0, 3, padding=1)
        self.rdbs = nn.ModuleList(RDB(g0, c.growth_rate, c.num_layers) for _ in range(c.num_blocks))
        self.gff = nn.Sequential(nn.Conv2d(c.num_blocks * g0, g0, 1), nn.Conv2d(g0, g0, 3, padding=1))
        factors = (2, 2) if c.scale == 4 else (c.scale,)
        ups = ((nn.Conv2d(u if i else g0, f * f * u, 3, padding=1), nn.PixelShuffle(f)) for i, f in enumerate(factors))
        self.upscale = nn.Sequential(*(part for pair in ups for part in pair))
        self.output = nn.Conv2d(u, 3, 3, padding=1)

    def forward(self, x):
        shallow = self.sfe1(x)
        y = self.sfe2(shallow)
        local = []
        for rdb in self.rdbs:
            y = rdb(y)
            local.append(y)
        return self.output(self.upscale(self.gff(torch.cat(local, dim=1)) + shallow))


def reference(model_config: ModelConfig, device: torch.device, dtype=torch.float32, wrap=None) -> Recipe:
    """Eager, NCHW, Adam unfused, the loss read by the host in every step; with a low `dtype` under autocast (AMP).

    wrap(model) makes the model that is trained from the plain one: DistributedDataParallel under several ranks.
    """
    return _recipe(model_config, device, dtype, wrap, torch.contiguous_format)


def stock(
    model_config: ModelConfig, device: torch.device, dtype, wrap=None, contiguous=False, compiled=False, graphed=False
) -> Recipe:
    """The strongest stock recipe: channels-last, autocast if `dtype` is low, fused Adam, no waiting for the loss.

    `contiguous`: NCHW instead. `compiled`: torch.compile of every block (one compilation serves all). `graphed`:
    forward and backward captured in one CUDA graph.
    """
    memory_format = torch.contiguous_format if contiguous else torch.channels_last
    recipe = _recipe(model_config, device, dtype, wrap, memory_format, stock=True, graphed=graphed)
    for block in recipe.model.rdbs if compiled else ():
        block.compile(dynamic=False)  # a second shape would make the graph a slower one for all shapes
    return recipe


def plain(model_config: ModelConfig, device: torch.device, dtype: torch.dtype) -> list[Recipe]:
    """Return recipes of plain PyTorch, one in each memory format that is used on the device."""
    recipes = [reference(model_config, device, dtype)]
    if devices.memory_format(device) == torch.channels_last:
        recipes.append(stock(model_config, device, dtype))
    return recipes


def _recipe(model_config, device, dtype, wrap, memory_format, stock=False, graphed=False) -> Recipe:
    model = RDN(model_config).to(device, memory_format=memory_format)
    replica = wrap(model) if wrap else model
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True if stock else None)
    scaler = torch.amp.GradScaler(device.type, init_scale=LOSS_SCALE, enabled=dtype == torch.float16)

    def autocast():
        return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)

    def forward(lr: torch.Tensor) -> torch.Tensor:
        with autocast():
            return model(lr)

    def backward(lr: torch.Tensor, hr: torch.Tensor) -> None:
        optimizer.zero_grad()
        with autocast():
            loss = F.l1_loss(replica(lr), hr)
        if not stock:
            loss.item()  # for its running mean, as the reference does
        scaler.scale(loss).backward()

    def update() -> None:
        scaler.step(optimizer)
        scaler.update()

    gradients = devices.CudaGraphed(backward, device) if graphed else backward

    def step(lr: torch.Tensor, hr: torch.Tensor) -> None:
        gradients(lr, hr)
        update()

    return Recipe(model, device, dtype, memory_format, torch.no_grad()(forward), step, forward, update)


def stock_variants(device: torch.device, dtype: torch.dtype, training: bool) -> dict[str, dict]:
    """Return {suffix of the name: options} of the stock recipes of which one may be the strongest on the device.

    On CPUs torch.compile was seen to lose (1.24 s a step against 0.80 s, bf16), so it is not tried there.
    """
    if device.type == "cpu" and dtype == torch.float32:  # either memory format may be the faster, by a few percent
        return {"": {}, " NCHW": {"contiguous": True}}
    if device.type != "cuda":
        return {"": {}}
    found = {"": {}, " compiled": {"compiled": True}}
    if training:
        found |= {" graphed": {"graphed": True}, " compiled graphed": {"compiled": True, "graphed": True}}
    return found
