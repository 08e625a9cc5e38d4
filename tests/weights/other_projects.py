"""RDN as other projects build and save it: their modules' names, value ranges and checkpoints."""

from __future__ import annotations

import argparse
import enum
import sys
import types
from collections import OrderedDict
from unittest import mock

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

G0, G, D, C = 6, 4, 3, 2  # of all models here by default


def conv(channels_in: int, channels_out: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)


class _Layer(nn.Module):
    def __init__(self, channels_in, g):
        super().__init__()
        self.conv = conv(channels_in, g)

    def forward(self, x):
        return torch.cat([x, torch.relu(self.conv(x))], 1)


class _Block(nn.Module):
    def __init__(self, g0, g, c):
        super().__init__()
        self.layers = nn.Sequential(*(_Layer(g0 + g * i, g) for i in range(c)))
        self.lff = conv(g0 + g * c, g0, 1)

    def forward(self, x):
        return x + self.lff(self.layers(x))


class Reference(nn.Module):
    """The RDN of yjn870, torchSR, the Ascend port and mmagic."""

    top = 1  # the largest RGB value

    def __init__(self, scale, g0=G0, g=G, d=D, c=C):
        super().__init__()
        self.sfe1, self.sfe2 = conv(3, g0), conv(g0, g0)
        self.rdbs = nn.ModuleList(_Block(g0, g, c) for _ in range(d))
        self.gff = nn.Sequential(conv(g0 * d, g0, 1), conv(g0, g0))
        steps = [3] if scale == 3 else [2] * (scale // 2)
        self.upscale = nn.Sequential(*(module for r in steps for module in (conv(g0, g0 * r * r), nn.PixelShuffle(r))))
        self.output = conv(g0, 3)

    def forward(self, x):
        shallow = self.sfe1(x)
        x = self.sfe2(shallow)
        local = []
        for block in self.rdbs:
            x = block(x)
            local.append(x)
        return self.output(self.upscale(self.gff(torch.cat(local, 1)) + shallow))


class _EdsrConv(nn.Module):
    def __init__(self, channels_in, g):
        super().__init__()
        self.conv = nn.Sequential(conv(channels_in, g), nn.ReLU())

    def forward(self, x):
        return torch.cat((x, self.conv(x)), 1)


class _EdsrBlock(nn.Module):
    def __init__(self, g0, g, c):
        super().__init__()
        self.convs = nn.Sequential(*(_EdsrConv(g0 + i * g, g) for i in range(c)))
        self.LFF = conv(g0 + c * g, g0, 1)

    def forward(self, x):
        return self.LFF(self.convs(x)) + x


class Edsr(nn.Module):
    """The RDN of EDSR-PyTorch: RGB in 0..255, `u` channels after up-sampling (None: G, as it builds them)."""

    top = 255

    def __init__(self, scale, u=None, g0=G0, g=G, d=D, c=C):
        super().__init__()
        u = u or g
        self.SFENet1, self.SFENet2 = conv(3, g0), conv(g0, g0)
        self.RDBs = nn.ModuleList(_EdsrBlock(g0, g, c) for _ in range(d))
        self.GFF = nn.Sequential(conv(d * g0, g0, 1), conv(g0, g0))
        if scale == 4:
            self.UPNet = nn.Sequential(
                conv(g0, u * 4), nn.PixelShuffle(2), conv(u, u * 4), nn.PixelShuffle(2), conv(u, 3)
            )
        else:
            self.UPNet = nn.Sequential(conv(g0, u * scale**2), nn.PixelShuffle(scale), conv(u, 3))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):  # as large as after training on this range
                    parameter.mul_(255)

    def forward(self, x):
        first = self.SFENet1(x)
        x = self.SFENet2(first)
        outputs = []
        for block in self.RDBs:
            x = block(x)
            outputs.append(x)
        x = self.GFF(torch.cat(outputs, 1))
        x += first
        return self.UPNet(x)


class _LornatangLayer(nn.Module):
    def __init__(self, channels_in, g):
        super().__init__()
        self.rb = nn.Sequential(conv(channels_in, g), nn.ReLU(True))

    def forward(self, x):
        return torch.cat([x, self.rb(x)], 1)


class _LornatangBlock(nn.Module):
    def __init__(self, g0, g, c):
        super().__init__()
        self.rdb = nn.Sequential(*(_LornatangLayer(g0 + i * g, g) for i in range(c)))
        self.local_feature_fusion = conv(g0 + c * g, g0, 1)

    def forward(self, x):
        return torch.add(self.local_feature_fusion(self.rdb(x)), x)


class _LornatangUpsampling(nn.Module):
    def __init__(self, g0, r):
        super().__init__()
        self.upsample_block = nn.Sequential(conv(g0, g0 * r * r), nn.PixelShuffle(r))

    def forward(self, x):
        return self.upsample_block(x)


class Lornatang(nn.Module):
    """The RDN of Lornatang, without the clamp at its end."""

    top = 1

    def __init__(self, scale, g0=G0, g=G, d=D, c=C):
        super().__init__()
        self.conv1, self.conv2 = conv(3, g0), conv(g0, g0)
        self.trunk = nn.Sequential(*(_LornatangBlock(g0, g, c) for _ in range(d)))
        self.global_feature_fusion = nn.Sequential(conv(d * g0, g0, 1), conv(g0, g0))
        steps = {2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]
        self.upsampling = nn.Sequential(*(_LornatangUpsampling(g0, r) for r in steps))
        self.conv3 = conv(g0, 3)

    def forward(self, x):
        first = self.conv1(x)
        x = self.conv2(first)
        outputs = []
        for block in self.trunk:
            x = block(x)
            outputs.append(x)
        x = torch.add(first, self.global_feature_fusion(torch.cat(outputs, 1)))
        return self.conv3(self.upsampling(x))


class _LizhengweiLayer(nn.Module):
    def __init__(self, channels_in, g):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, g, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, torch.relu(self.conv(x))], 1)


class _LizhengweiBlock(nn.Module):
    def __init__(self, g0, g, c):
        super().__init__()
        self.dense_layers = nn.Sequential(*(_LizhengweiLayer(g0 + i * g, g) for i in range(c)))
        self.conv_1x1 = nn.Conv2d(g0 + c * g, g0, 1, bias=False)

    def forward(self, x):
        return x + self.conv_1x1(self.dense_layers(x))


class Lizhengwei(nn.Module):
    """The RDN of lizhengwei1992: three blocks without biases, one pixel shuffle, BGR in 0..255 as OpenCV reads it.

    Takes and gives RGB here.
    """

    top = 255

    def __init__(self, scale, g0=G0, g=G, c=C):
        super().__init__()
        self.conv1, self.conv2 = conv(3, g0), conv(g0, g0)
        self.RDB1, self.RDB2, self.RDB3 = (_LizhengweiBlock(g0, g, c) for _ in range(3))
        self.GFF_1x1, self.GFF_3x3 = conv(3 * g0, g0, 1), conv(g0, g0)
        self.conv_up = conv(g0, g0 * scale**2)
        self.upsample = nn.PixelShuffle(scale)
        self.conv3 = conv(g0, 3)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.mul_(255)

    def forward(self, x):
        bgr = x[:, [2, 1, 0]]
        first = self.conv1(bgr)
        a = self.RDB1(self.conv2(first))
        b = self.RDB2(a)
        c = self.RDB3(b)
        y = self.GFF_3x3(self.GFF_1x1(torch.cat([a, b, c], 1))) + first
        return self.conv3(self.upsample(self.conv_up(y)))[:, [2, 1, 0]]


def wrapped(state: dict, prefix: str) -> OrderedDict:
    return OrderedDict((prefix + key, value) for key, value in state.items())


def ascend(state: dict) -> dict:
    options = argparse.Namespace(
        scale=2, lr=4e-4, train_file="DIV2K_x2.h5", loss_scale_value=1024.0, apex=True, device_list="0,1"
    )
    return {"epoch": 799, "model": wrapped(state, "module."), "args": options, "best_psnr": torch.tensor(37.97)}


class _Format(enum.IntEnum):
    NCHW = 0


class _OnNpu:
    """A tensor as torch_npu pickles it, with its format on the npu. Older versions wrote that as a number or a bool."""

    def __init__(self, rebuild, tensor: torch.Tensor, form: int):
        self._reduced = (
            rebuild,
            (
                tensor._typed_storage(),
                tensor.storage_offset(),
                tuple(tensor.size()),
                tensor.stride(),
                False,
                OrderedDict(),
                form,
            ),
        )

    def __reduce__(self):
        return self._reduced


def save_from_npu(path, state: dict, form: int = _Format.NCHW) -> None:
    """Write what torch.save writes for ascend(state) on an npu. A stand-in torch_npu exists only meanwhile."""

    def _rebuild_npu_tensor():
        pass

    names = {
        "torch_npu.utils.storage": {"_rebuild_npu_tensor": _rebuild_npu_tensor},
        "torch_npu.npu._format": {"Format": _Format},
    }
    modules = {"torch_npu": types.ModuleType("torch_npu")}
    for module, of_module in names.items():
        modules[module] = types.ModuleType(module)
        for name, named in of_module.items():
            named.__module__, named.__qualname__ = module, name
            setattr(modules[module], name, named)
    with mock.patch.dict(sys.modules, modules):
        torch.save(ascend({key: _OnNpu(_rebuild_npu_tensor, value, form) for key, value in state.items()}), path)


def lightning(state: dict, prefix: str) -> dict:
    return {
        "epoch": 3,
        "state_dict": wrapped(state, prefix) | {"loss.vgg.weight": torch.rand(3)},
        "hyper_parameters": {"lr": 1e-4},
    }


def mmagic(state: dict, average: dict | None) -> dict:
    weights = wrapped(state, "generator.")
    if average:
        weights.update(wrapped(average, "generator_ema."))
    weights["step_counter"] = torch.tensor(1000)
    return {"meta": {"epoch": 0, "iter": 1000}, "state_dict": weights}


def lornatang(model: Lornatang, average: Lornatang) -> dict:
    """Return a checkpoint of its train.py; the average is a torch AveragedModel's, with `module.` and `n_averaged`."""
    averaged = AveragedModel(average)
    averaged.update_parameters(average)
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0)}},
        "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}],
    }
    parts = {"state_dict": model.state_dict(), "ema_state_dict": averaged.state_dict(), "optimizer": optimizer}
    return {"epoch": 1, "best_psnr": 31.5, "best_ssim": 0.9, **parts}
