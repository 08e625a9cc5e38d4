"""`python -m bench.run 1p|8p|upscale|amx|all|CASE`: check, then time, then judge.

1p: one device, a few minutes: reference, strongest stock and rdn_fast in turn. 8p: several ranks, and how they scale.
upscale: pictures, beside other runtimes. amx: models in bf16 on a CPU with AMX, every implementation and other runtime.
all: every case. CASE: one file of bench/cases by name. Exit code 1 if a gate is missed or a result was wrong, 2 for a
user's mistake.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time

import torch

from bench import cases, results
from bench.measure import Bench
from rdn_fast import devices
from rdn_fast.errors import UserError


def main(argv: list[str] | None = None) -> int:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__, formatter_class=kind)
    parser.add_argument("command", choices=cases.commands())
    parser.add_argument("--nproc", type=int, default=8, help="ranks of 8p (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or npu[:i]")
    parser.add_argument("--rdb", default="auto", help="rdn_fast's RDB implementation (default: what it chooses itself)")
    options = parser.parse_args(argv)
    command, began, seed = options.command, time.monotonic(), secrets.randbits(31)
    ranks = options.nproc if command == "8p" else 1
    try:
        device = devices.pick(options.device)
        most = devices.count(device.type)
        if command == "8p" and not 2 <= ranks <= most:
            raise UserError(f"--nproc {ranks}: this machine serves 2 to {most} ranks on {device.type}")
        torch.manual_seed(seed)
        bench = Bench(command, device, options.rdb, ranks)
        words = f"{results.device_words(device)}; torch {torch.__version__}; seed of all inputs {seed}"
        print(f"{words}; rows go to {bench.results.path}")
        try:
            for case in cases.of_command(command):
                case.run(bench, command)
            bench.revisit(command)
        except KeyboardInterrupt:  # the time that bench/gpu_check.py gives is over: what was measured is judged
            bench.fail("stopped before the end")
    except UserError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    return bench.conclude(command, began)


if __name__ == "__main__":
    sys.exit(main())
