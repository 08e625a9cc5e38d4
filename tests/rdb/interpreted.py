"""Run blocks of the row `triton_planes` in Triton's interpreter, which must be chosen before triton is imported: python interpreted.py IN OUT.

IN holds a list of (number of the configuration, arguments, upstream, out) as test_rdb.problem makes them, OUT gets a list of (results, out).
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from test_rdb import solve
from triton.runtime import interpreter

from rdn_fast.rdb import triton_planes


def dot(builder, a, b, *rest, plain=interpreter.InterpreterBuilder.create_dot):
    """The interpreter keeps bfloat16 as bits, and multiplies the bits; a GPU multiplies what they stand for."""
    return plain(
        builder, *(from_bits(operand) if operand.dtype.scalar == tl.bfloat16 else operand for operand in (a, b)), *rest
    )


def from_bits(operand):
    return interpreter.TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def convert(data, source, target, mode, plain=interpreter._convert_float):
    """The interpreter cuts float32 off to bfloat16; a GPU rounds to the nearest."""
    if (source, target) != (tl.float32, tl.bfloat16):
        return plain(data, source, target, mode)
    return torch.from_numpy(data.copy()).bfloat16().view(torch.uint16).numpy()


if __name__ == "__main__":
    interpreter.InterpreterBuilder.create_dot = dot
    interpreter._convert_float = convert
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN
    every, results = triton_planes.CONFIGS, []
    for number, arguments, upstream, out in torch.load(sys.argv[1]):
        triton_planes._chosen.clear()
        triton_planes.CONFIGS = {name: (configs[min(number, len(configs) - 1)],) for name, configs in every.items()}
        results.append((solve(triton_planes.rdb, arguments, upstream, torch.channels_last, out=out), out))
    torch.save(results, sys.argv[2])
