"""Run output_conv in Triton's interpreter: `python interpreted_output.py IN OUT`.

IN holds a list of (arguments, upstream), made by test_output_conv.problem. OUT receives a list of solve's results.
"""

import sys

import interpreted  # first: it chooses the interpreter
import torch
from interpreted import interpreter
from test_output_conv import solve

from rdn_fast.tail.output_conv import output_conv

if __name__ == "__main__":
    interpreter._convert_float = interpreted.convert
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN
    torch.save([solve(output_conv, *given) for given in torch.load(sys.argv[1])], sys.argv[2])
