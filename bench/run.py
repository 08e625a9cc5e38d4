"""`python -m bench.run 1p|8p|upscale|all`: check, then time, then judge. Exit code 1 when a gate is missed or a result was wrong, 2 for a user's mistake.

1p: one device, a few minutes: reference, strongest stock and rdn_fast in turn. 8p: several ranks, and how they scale. upscale:
pictures, beside other runtimes. all: every case.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time

import torch

from bench import cases, end_to_end, results
from bench.cases import RDN_A, RDN_B
from bench.end_to_end import Plan
from bench.measure import Bench
from rdn_fast import devices
from rdn_fast.errors import UserError


def one_device(bench: Bench, full: bool = False) -> None:
    """What the gates ask for, a few minutes on two CPU cores; `full`: beside every row of the RDB table."""
    cpu = bench.device.type == "cpu"
    bench.ceilings()
    rounds = 3 if cpu else 10
    bench.case(cases.training_step(RDN_B, 8 if cpu else 64, bench.device, bench.dtypes, bench.rdb, full), rounds)
    bench.case(cases.inference(RDN_B, 96, 96, bench.device, bench.dtypes, bench.rdb, full), rounds)
    bench.memory(16)
    bench.loading(rounds=3)
    bench.end_to_end(
        [Plan("rdn-b", 2 if cpu else 64, 3 if cpu else 60, 1, str(bench.device), end_to_end.threads(1))], rounds=2
    )


def several_devices(bench: Bench, ranks: int) -> None:
    """`ranks` ranks against one; on a CPU a reduced model, since its ranks share the cores and the memory."""
    cpu = bench.device.type == "cpu"
    bench.ceilings()
    sizes = ("demo", 8, 8) if cpu else ("rdn-b", 64, 60)
    bench.end_to_end(
        [Plan(*sizes, n, bench.device.type, end_to_end.threads(ranks)) for n in (1, ranks)], rounds=2 if cpu else 3
    )


def pictures(bench: Bench, edge: int = 128) -> None:
    """A picture through rdn-b, with the other runtimes on the exported model; then `rdn-fast upscale` with the model that is shipped."""
    case = cases.inference(RDN_B, edge, edge, bench.device, bench.dtypes, bench.rdb)
    case.entries.extend(bench.others(edge, edge))
    bench.case(case, rounds=3 if bench.device.type == "cpu" else 10)
    bench.upscaling()


def everything(bench: Bench) -> None:
    """All cases; longer."""
    one_device(bench, full=True)
    pictures(bench)
    batch = 8 if bench.device.type == "cpu" else 64
    for training in (False, True):
        for config, shape in (
            (RDN_B, (batch, 32, 32)),
            (RDN_A, (batch, 32, 32)),
            (RDN_B, (1, 96, 96)),
            (RDN_B, (3, 37, 41)),
        ):
            for dtype in bench.dtypes:
                bench.case(cases.block(training, config, shape, bench.device, dtype), rounds=5)
    for config, small in ((RDN_A, batch), (RDN_B, 1)):
        bench.case(cases.training_step(config, small, bench.device, bench.dtypes, bench.rdb, rows=True), rounds=3)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("1p", "8p", "upscale", "all"))
    parser.add_argument("--nproc", type=int, default=8, help="ranks of 8p (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:i] or npu[:i]")
    parser.add_argument(
        "--rdb",
        default="auto",
        help="the row of the RDB table that rdn_fast uses (default: the one that it chooses itself)",
    )
    options = parser.parse_args(argv)
    began, seed = time.monotonic(), secrets.randbits(31)
    try:
        device = devices.pick(options.device)
        if options.command == "8p" and not 2 <= options.nproc <= devices.count(device.type):
            raise UserError(
                f"--nproc {options.nproc}: this machine serves 2 to {devices.count(device.type)} ranks on {device.type}"
            )
        torch.manual_seed(seed)
        bench = Bench(f"bench-{options.command}", device, options.rdb)
        print(
            f"{results.name(device)}; torch {torch.__version__}; seed of all inputs {seed}; rows go to {bench.results.path}"
        )
        if options.command == "8p":
            several_devices(bench, options.nproc)
        elif options.command == "upscale":
            bench.ceilings()
            pictures(bench)
        else:
            (one_device if options.command == "1p" else everything)(bench)
    except UserError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    return bench.conclude(options.command, options.nproc if options.command == "8p" else 1, began)


if __name__ == "__main__":
    sys.exit(main())
