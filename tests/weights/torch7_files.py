"""yulunzhang's RDN out of Torch7's containers, computed by torch, and the binary file that torch.save of Lua writes."""

import struct

import numpy as np
import torch
from other_projects import G0, C, D, G, conv
from torch import nn

MEAN = (0.4488, 0.4371, 0.4040)


class Sequential(nn.Sequential):
    pass


class Identity(nn.Identity):
    pass


class Concat(nn.ModuleList):
    """Concatenates what its modules make of the same input."""

    def forward(self, x):
        return torch.cat([module(x) for module in self], 1)


class ConcatTable(nn.ModuleList):
    def forward(self, x):
        return [module(x) for module in self]


class CAddTable(nn.Module):
    def forward(self, xs):
        return sum(xs)


def skip(module) -> Sequential:
    return Sequential(ConcatTable([module, Identity()]), CAddTable())


def block(g0, g, c) -> Sequential:
    made = Sequential()
    for i in range(c):
        made.append(Sequential(Concat([Identity(), Sequential(conv(g0 + i * g, g), nn.ReLU())])))
    return skip(made.append(conv(g0 + c * g, g0, 1)))


def blocks(count, *shape) -> Sequential:
    """Return a network whose result is the concatenation of all blocks' results, the first block's first."""
    made = Sequential(block(*shape))
    return made.append(Concat([Identity(), blocks(count - 1, *shape)])) if count > 1 else made


def shift(sign) -> nn.Conv2d:
    made = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        made.weight.copy_(torch.eye(3)[..., None, None])
        made.bias.copy_(sign * 255 * torch.tensor(MEAN))
    return made


class Yulunzhang(nn.Module):
    """The RDN of yulunzhang for RGB in 0..255. shifted: with the convolutions that subtract and add DIV2K's mean."""

    top = 255

    def __init__(self, scale, shifted=True, g0=G0, g=G, d=D, c=C):
        super().__init__()
        body = Sequential(conv(g0, g0), blocks(d, g0, g, c), conv(g0 * d, g0, 1), conv(g0, g0))
        up = Sequential()
        for factor in {2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]:
            up.append(conv(g0, g0 * factor**2)).append(nn.PixelShuffle(factor))
        self.net = Sequential(conv(3, g0), skip(body), up, conv(g0, 3))
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                if name.endswith("bias"):
                    parameter.mul_(255)
        if shifted:
            self.net = Sequential(shift(-1), *self.net, shift(1))

    def forward(self, x):
        return self.net(x)


class Writer:
    """Writes objects as Torch7's binary format has them; the bytes grow in `content`."""

    def __init__(self, tensors="Cuda"):
        self.content, self.tensors, self.count = b"", tensors, 0

    def int(self, *values):
        self.content += struct.pack(f"<{len(values)}i", *values)

    def long(self, *values):
        self.content += struct.pack(f"<{len(values)}q", *values)

    def string(self, text):
        self.int(len(text))
        self.content += text.encode()

    def number(self):
        self.count += 1
        self.int(self.count)

    def object(self, value):
        if value is None:
            self.int(0)
        elif isinstance(value, bool):
            self.int(5, value)
        elif isinstance(value, (int, float)):
            self.int(1)
            self.content += struct.pack("<d", value)
        elif isinstance(value, str):
            self.int(2)
            self.string(value)
        elif isinstance(value, dict):
            self.int(3)
            self.number()
            self.int(len(value))
            for key, kept in value.items():
                self.object(key)
                self.object(kept)
        elif isinstance(value, torch.Tensor):
            self.tensor(value)
        else:
            self.module(value)

    def torch_class(self, name):
        self.int(4)
        self.number()
        self.string("V 1")
        self.string(name)

    def tensor(self, value):
        dtype = {"Cuda": np.float32, "Float": np.float32, "Double": np.float64, "CudaHalf": np.float16}[self.tensors]
        self.torch_class(f"torch.{self.tensors}Tensor")
        self.int(value.ndim)
        self.long(*value.shape, *value.contiguous().stride(), 3)  # its storage begins with two numbers of no use
        self.torch_class(f"torch.{self.tensors}Storage")
        numbers = np.array([7, 7, *value.detach().flatten().tolist()], dtype)
        self.long(len(numbers))
        self.content += numbers.tobytes()

    def module(self, value):
        fields = {"train": False, "_type": f"torch.{self.tensors}Tensor", "gradInput": None}
        if isinstance(value, nn.Conv2d):
            name, fields = "cudnn.SpatialConvolution", fields | convolution(value)
        elif isinstance(value, nn.ReLU):
            name, fields = "cudnn.ReLU", fields | {"inplace": True}
        elif isinstance(value, nn.PixelShuffle):
            name, fields = "nn.PixelShuffle", fields | {"upscaleFactor": value.upscale_factor}
        else:
            name = f"nn.{type(value).__name__}"
            fields["modules"] = dict(enumerate(value.children(), 1))
        self.torch_class(name)
        self.object(fields)


def convolution(layer: nn.Conv2d) -> dict:
    kernel = layer.kernel_size[0]
    shape = {"nInputPlane": layer.in_channels, "nOutputPlane": layer.out_channels, "kH": kernel, "kW": kernel}
    return shape | {"groups": 1, "weight": layer.weight, "bias": layer.bias}


def save(path, model: Yulunzhang, tensors="Cuda"):
    writer = Writer(tensors)
    writer.object(model.net)
    path.write_bytes(writer.content)
    return path
