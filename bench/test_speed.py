"""`pytest --benchmark-only`: the cases at small sizes, every contender checked before it is timed."""

import pytest
import torch

from bench import cases
from bench.measure import dtypes_of, warm_ups
from bench.recipe import CannotRun
from bench.results import device_words
from rdn_fast import devices
from rdn_fast.precision import dtype_name

DEVICE = devices.pick()


def _parameters():
    for case in cases.load().values():
        for comparison in case.quick(DEVICE, dtypes_of(DEVICE)):
            for entry in comparison.entries:
                words = f"{comparison.case}-{entry.recipe}-{dtype_name(entry.dtype)}"
                yield pytest.param(comparison, entry, id=words.replace(" ", "_"))


@pytest.fixture(autouse=True)
def _all_cores():
    """tests/ takes one thread where it is collected, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(devices.count("cpu"))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("comparison", "entry"), list(_parameters()))
def test_speed(benchmark, comparison, entry):
    try:
        contender = entry.build()
        contender.check()
    except CannotRun as reason:
        pytest.skip(str(reason))
    benchmark.group = f"{comparison.case}, batch {comparison.batch}, {comparison.shape}"

    def run(*inputs):
        contender.run(*inputs)
        devices.synchronize(DEVICE)

    benchmark.pedantic(run, setup=lambda: (contender.fresh(), {}), rounds=3, warmup_rounds=warm_ups(DEVICE))
    contender.verify()
    seconds = benchmark.stats.stats.median
    counts = {"GFLOP": comparison.flop and comparison.flop / 1e9, "images": comparison.images}
    speeds = {f"{what}/s": round(count / seconds, 3) for what, count in counts.items() if count}
    benchmark.extra_info |= speeds | {"device": device_words(DEVICE), "dtype": str(entry.dtype), "note": contender.note}
