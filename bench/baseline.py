"""What rdn_fast is measured against: the reference's recipe, rewritten from its description, and the strongest that stock PyTorch offers.

Independent of rdn_fast's model and rows; the parameters have the reference's names and shapes, so weights are shared with it.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import nn

from bench.parity import Results, solve_module
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


class Reference:
    """Eager, NCHW, a concatenation per layer, Adam unfused, the loss read by the host in every step; with a low `dtype` under autocast (AMP)."""

    memory_format = torch.contiguous_format
    fused: bool | None = None  # what torch.optim.Adam does unasked
    note = ""

    def __init__(
        self, config: ModelConfig, device: torch.device, dtype: torch.dtype = torch.float32, wrap=lambda model: model
    ):
        """`wrap` makes the model that is trained from the plain one: DistributedDataParallel under several ranks."""
        self.device, self.dtype = device, dtype
        self.model = RDN(config).to(device, memory_format=self.memory_format)
        self.trained = wrap(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LR, fused=self.fused)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=LOSS_SCALE, enabled=dtype == torch.float16)

    def autocast(self):
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def infer(self, lr: torch.Tensor) -> torch.Tensor:
        """lr: float32 [B, 3, H, W] in `memory_format` -> [B, 3, s*H, s*W] on the device."""
        with torch.no_grad(), self.autocast():
            return self.model(lr)

    def loss(self, lr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            return F.l1_loss(self.trained(lr), hr)

    def step(self, lr: torch.Tensor, hr: torch.Tensor) -> None:
        """One training step; lr: float32 [B, 3, p, p], hr: float32 [B, 3, s*p, s*p] on the device, in `memory_format`."""
        loss = self.loss(lr, hr)
        loss.item()  # for its running mean, as the reference does
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def solve(self, state: dict, x: torch.Tensor, upstream: torch.Tensor) -> Results:
        """Load `state`; output and gradients for the parity check."""
        self.model.load_state_dict(state)

        def forward(x):
            with self.autocast():
                return self.model(x).float()

        x = x.to(self.device).contiguous(memory_format=self.memory_format)
        return solve_module(self.model, x, upstream.to(self.device), forward)


class Stock(Reference):
    """The strongest stock recipe: channels-last, autocast where `dtype` is low, fused Adam, no waiting for the loss.

    `contiguous`: NCHW instead. `compiled`: torch.compile of every block (one compilation serves all). `graphed`: forward and backward
    captured in one CUDA graph.
    """

    fused = True

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
        wrap=lambda model: model,
        contiguous: bool = False,
        compiled: bool = False,
        graphed: bool = False,
    ):
        self.memory_format = torch.contiguous_format if contiguous else torch.channels_last
        super().__init__(config, device, dtype, wrap)
        if compiled:
            for block in self.model.rdbs:
                block.compile(dynamic=False)  # a second shape would make the graph a slower one for all shapes
        self.graphed, self._graph = graphed, None

    def step(self, lr: torch.Tensor, hr: torch.Tensor) -> None:
        if not self.graphed:
            self.optimizer.zero_grad()
            self.scaler.scale(self.loss(lr, hr)).backward()
        else:
            if self._graph is None:
                self._capture(lr, hr)
            self._lr.copy_(lr)
            self._hr.copy_(hr)
            self._graph.replay()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _capture(self, lr: torch.Tensor, hr: torch.Tensor) -> None:
        self._lr, self._hr = lr.clone(), hr.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # compilation, cuDNN's and autograd's first-time work must not be captured
                self.optimizer.zero_grad()
                self.scaler.scale(self.loss(self._lr, self._hr)).backward()
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.scaler.scale(self.loss(self._lr, self._hr)).backward()


def variants(device: torch.device, dtype: torch.dtype, training: bool) -> list[tuple[str, dict]]:
    """(suffix of the name, options) of the Stock recipes that may be the strongest on the device in `dtype`; the fastest of a run is.

    On CPUs torch.compile was seen to lose (1.24 s a step against 0.80 s, bf16), so it is not tried there.
    """
    if device.type == "cpu" and dtype == torch.float32:  # either layout may be the faster, by a few percent
        return [("", {}), (" NCHW", {"contiguous": True})]
    if device.type != "cuda":
        return [("", {})]
    if not training:
        return [("", {}), (" compiled", {"compiled": True})]
    return [
        ("", {}),
        (" graphed", {"graphed": True}),
        (" compiled", {"compiled": True}),
        (" compiled graphed", {"compiled": True, "graphed": True}),
    ]
