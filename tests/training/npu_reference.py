"""Many rdn-fast commands in one process: `python npu_reference.py DEVICE COMMANDS`, a JSON list of argument lists.

A command that says {row} is run for every implementation of the dense block that trains on the device in float32 and float16. On the CPU the
program computes in the npu's layout and with its Adam's arithmetic, so that what it computes can be compared with the npu to the last bit.
`eval`, which takes the fastest implementation, takes naive on both: which one is the fastest differs between them and from run to run.
"""

import functools
import json
import sys

import torch

from rdn_fast import devices
from rdn_fast.cli import main
from rdn_fast.data import patches
from rdn_fast.model import RDN
from rdn_fast.rdb import able
from rdn_fast.weights import convert


def _adam(parameters, device, lr, weight_decay, *_):
    return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, foreach=False, fused=False)


def _naive(load_model, *arguments) -> RDN:
    model = load_model(*arguments)
    model.rdb = "naive"
    return model


def run(device: torch.device, commands: list[list[str]]) -> int:
    convert.load_model = functools.partial(_naive, convert.load_model)
    if devices.is_host(device):
        devices.adam = _adam
        for module in (devices, patches):
            module.memory_format = lambda device: torch.contiguous_format
        patches._library = lambda: None  # its C writes channels_last
    rows = [row.name for row in able(device, torch.float32, True) if row in able(device, torch.float16, True)]
    for command in commands:
        for row in rows if any("{row}" in word for word in command) else [""]:
            if code := main([word.replace("{row}", row) for word in command]):
                return code
    return 0


if __name__ == "__main__":
    sys.exit(run(devices.pick(sys.argv[1]), json.loads(sys.argv[2])))
