"""Many rdn-fast commands in one process: `python npu_reference.py DEVICE COMMANDS`, a JSON list of argument lists.

A command with {impl} in it is run for every impl that trains on the device in float32 and in float16. On the CPU the
program computes in the npu's memory format and with the arithmetic of its Adam, so that its results can be compared
with the npu's to the last bit. `eval` would take the fastest impl, which differs between them and from run to run; it
takes naive on both.
"""

import functools
import json
import sys

import torch

from rdn_fast import devices
from rdn_fast.__main__ import leave
from rdn_fast.cli import main
from rdn_fast.data import augment, patches, prefetch
from rdn_fast.model import RDN
from rdn_fast.rdb import able
from rdn_fast.weights import convert


def _adam(parameters, device, lr, weight_decay, *_):
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, foreach=False, fused=False)


def _gather_contiguous(flat, start, pitch, orientation, out):
    """gather_to_float() for an `out` that is not channels_last, which its C needs."""
    strides = augment.strides(start, pitch, orientation, out.shape[2])
    patches.gather_strided_to_float(flat, torch.from_numpy(strides), out)


def _naive(load_model, *arguments) -> RDN:
    model = load_model(*arguments)
    model.rdb = "naive"
    return model


def run(device: torch.device, commands: list[list[str]]) -> int:
    convert.load_model = functools.partial(_naive, convert.load_model)
    if devices.is_host(device):
        devices.adam = _adam
        devices.supports_foreach = lambda device: False
        devices.has_instructions = lambda device, dtype: True  # as the npu: validation in fp16, too
        devices.memory_format = lambda device: torch.contiguous_format
        prefetch.gather_to_float = _gather_contiguous
    impls = [impl.name for impl in able(device, torch.float32, True) if impl in able(device, torch.float16, True)]
    for command in commands:
        for impl in impls if any("{impl}" in word for word in command) else [""]:
            if code := main([word.replace("{impl}", impl) for word in command]):
                return code
    return 0


if __name__ == "__main__":
    leave(run(devices.pick(sys.argv[1]), json.loads(sys.argv[2])))
