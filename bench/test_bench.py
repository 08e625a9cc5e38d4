"""`pytest --benchmark-only`: a quick version of the benchmarks. Each group holds the reference and every row that runs here; parity comes first."""

import pytest
import torch

from bench import cases
from bench.cases import RDN_B
from bench.measure import _warm_ups
from bench.results import has_bf16, name
from rdn_fast import devices

DEVICE = devices.pick()
DTYPES = (
    [torch.float32, torch.bfloat16][: 1 + has_bf16(DEVICE)] if DEVICE.type == "cpu" else [devices.low_precision(DEVICE)]
)

CASES = [
    *(cases.block(training, RDN_B, (2, 32, 32), DEVICE, dtype) for dtype in DTYPES for training in (False, True)),
    cases.inference(RDN_B, 32, 32, DEVICE, DTYPES, "auto", rows=True),
    cases.training_step(RDN_B, 1, DEVICE, DTYPES, "auto", rows=True),
]


def _parameters():
    for case in CASES:
        for entry in case.entries:
            words = f"{case.name}-{entry.recipe}-{str(entry.dtype).removeprefix('torch.')}"
            yield pytest.param(case, entry, id=words.replace(" ", "_"))


@pytest.fixture(autouse=True)
def _all_cores():
    """tests/ takes one thread where it is collected, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(devices.count("cpu"))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("case", "entry"), list(_parameters()))
def test_speed(benchmark, case, entry):
    contender = entry.make()
    case.check(contender, entry.recipe)
    benchmark.group = f"{case.name}, batch {case.batch}, {case.shape}" + (
        f", {entry.dtype}" if case.name.startswith("RDB") else ""
    )

    def run():
        contender.run()
        devices.synchronize(DEVICE)

    benchmark.pedantic(run, setup=contender.fresh, rounds=3, warmup_rounds=_warm_ups(DEVICE))
    contender.verify()
    seconds = benchmark.stats.stats.median
    speeds = {"GFLOP/s": round(case.flop / seconds / 1e9, 1), "images/s": round(case.images / seconds, 3)}
    benchmark.extra_info |= {**speeds, "device": name(DEVICE), "dtype": str(entry.dtype), "rdb": contender.note}
