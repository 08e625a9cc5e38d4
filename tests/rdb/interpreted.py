"""Run blocks of triton_planes in Triton's interpreter: `python interpreted.py IN OUT`.

The interpreter must be chosen before triton is imported. IN holds a list of (number of the kernels' configuration,
arguments, upstream), made by test_rdb.problem. OUT receives a list of test_rdb.solve's results.
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
    """Multiply bfloat16 by value: the interpreter stores it as integers, and multiplies those."""
    a, b = (from_bits(operand) if operand.dtype.scalar == tl.bfloat16 else operand for operand in (a, b))
    return plain(builder, a, b, *rest)


def from_bits(operand):
    return interpreter.TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def convert(data, source, target, mode, plain=interpreter._convert_float):
    """Round float32 to the nearest bfloat16, as a GPU does: the interpreter truncates."""
    if (source, target) != (tl.float32, tl.bfloat16):
        return plain(data, source, target, mode)
    return torch.from_numpy(data.copy()).bfloat16().view(torch.uint16).numpy()


if __name__ == "__main__":
    interpreter.InterpreterBuilder.create_dot = dot
    interpreter._convert_float = convert
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN
    results = []
    for number, arguments, upstream in torch.load(sys.argv[1]):
        triton_planes.configs.restrict(number)
        results.append(solve(triton_planes.rdb, arguments, upstream, torch.channels_last))
    torch.save(results, sys.argv[2])
