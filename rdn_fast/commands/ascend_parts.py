"""The parts of `rdn-fast doctor --ascend-report`, each a process of its own that ends alone when it fails.

    python -m rdn_fast.commands.ascend_parts PART '{"argument": value, ...}' FILE

calls the function PART below and appends each row that it yields to FILE, as a line of JSON. A row is written at once,
so that a process that is killed leaves what it has found. Its last line on stderr says why it failed.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from itertools import product

import torch

from rdn_fast import ascend, devices, precision
from rdn_fast.commands.doctor import machine_checks, run_check
from rdn_fast.config import ModelConfig
from rdn_fast.devices import npu_kernels, npu_profile
from rdn_fast.errors import UserError, what_failed
from rdn_fast.model import RDN
from rdn_fast.precision import dtype_name
from rdn_fast.rdb import IMPLS, LOW, refusal
from rdn_fast.rdb.case import PICTURE, Case
from rdn_fast.rdb.measure import measure_in_turn, why_not
from rdn_fast.terminal import bytes_in_words
from rdn_fast.training.optimizer_step import make_optimizer_step
from rdn_fast.training.step import TrainStep

Row = dict[str, object]
Rows = Iterator[Row]
_COLUMNS = {  # of a row of the profile: the profiler's name of it
    "operator": "OP Type",
    "core": "Core Type",
    "calls": "Count",
    "us": "Total Time(us)",
    "%": "Ratio(%)",
}
LOSS_SCALE, TOP, STEPS = 1024.0, 40, 5  # of the profiled step; rows of the profile; steps that are timed


def versions(autoload: bool) -> Rows:
    """Yield what `rdn-fast doctor` says of the machine, and the versions of the compiler's packages."""
    for name, check in machine_checks(autoload).items():
        line = run_check(check)
        yield {"what": name, "found": line.state, "remedy": line.remedy}
    for name in ("triton-ascend", "ascendnpu-ir", "torchair"):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
        yield {"what": name, "found": found, "remedy": ""}
    yield {"what": "libc", "found": " ".join(platform.libc_ver()), "remedy": ""}


def card(device: str) -> Rows:
    """Yield the card that `device` names, "auto" the first; nothing is computed. Raises UserError if there is none."""
    if device == "auto":
        cards = [one for one in devices.all_devices() if devices.modes(one)]
        if not cards:
            raise UserError(ascend.load() or ascend.no_device())
        device = cards[0].type
    picked = devices.pick(device)
    free = bytes_in_words(devices.free_memory(picked))
    yield {"device": str(picked), "chip": devices.hardware(picked), "cards": devices.count(picked.type), "free": free}


def library(device: str | None) -> Rows:
    """Yield what the compiler of fused kernels consists of, and what it lacks on the card."""
    for program, version in npu_kernels.programs().items():
        yield {"what": program, "found": version}
    files = npu_kernels.libraries()
    having = ", ".join(name for name, has_convolution in files.items() if has_convolution)
    yield {"what": "library of macros", "found": f"{len(files)} files; the convolution is in {having or 'none'}"}


def compilation(device: str | None, shapes: dict[str, dict]) -> Rows:
    """Yield the seconds to compile each kernel of a training step; without a usable card by the compiler alone."""
    if device is not None:
        devices.pick(device)
    for_card = device is not None and npu_kernels.toolchain.missing is None
    if not for_card:
        npu_kernels.find_compiler()
    by = "triton-ascend" if for_card else f"bishengir-compile for {npu_kernels.TARGET}"
    for (shape, sizes), dtype in product(shapes.items(), reversed(LOW)):  # float16 first
        for impl in (impl for impl in IMPLS.values() if hasattr(impl.module, "compilations")):
            config = ModelConfig(**sizes["model_config"])
            kernels = impl.module.compilations(config, sizes["batch"], sizes["patch"], dtype)
            for kernel, compile_one in kernels.items():
                row = {"impl": impl.name, "kernel": kernel, "dtype": dtype_name(dtype), "shape": shape, "by": by}
                start, state = time.perf_counter(), "compiled"
                try:
                    compile_one(for_card)
                except UserError as error:
                    state = str(error)
                yield {**row, "s": round(time.perf_counter() - start, 2), "state": state}


def implementations(device: str, model_config: dict, batch: int, patch: int) -> Rows:
    """Yield which impls can run on the card. The kernels that never ran there pass their self-test before, or not."""
    picked = devices.pick(device)
    for case in _cases(picked, model_config, batch, patch):
        for impl in IMPLS.values():
            start = time.perf_counter()
            reason = refusal(impl, picked, case.dtype, case.training)
            seconds = round(time.perf_counter() - start, 2)
            yield {"impl": impl.name, "for": _use(case), "runs": reason is None, "reason": reason or "", "s": seconds}


def timings(device: str, mode: str, impls: dict[str, list[str]], shapes: dict[str, dict]) -> Rows:
    """Yield a time of one block by each impl, one after the other, for training and forward alone.

    impls: the names for each use. mode: "" for the chip's default.
    """
    picked = devices.pick(device)
    devices.use_mode(picked, mode)
    for shape, sizes in shapes.items():
        for case in _cases(picked, **sizes):
            row = {"shape": shape, "mode": mode or "default", "for": _use(case), "dtype": dtype_name(case.dtype)}
            row["input"] = "x".join(map(str, (case.batch, case.model_config.num_features, case.height, case.width)))
            yield from ({**row, "impl": name, **_time(name, case)} for name in impls.get(_use(case), ()))


def _time(name: str, case: Case) -> Row:
    start = time.perf_counter()
    flaw = why_not(name, case)  # the first call may compile
    first = {"first call s": round(time.perf_counter() - start, 2)}
    if flaw:
        return {**first, "state": flaw}
    (timing,) = measure_in_turn([case], lambda _: True, name)
    seconds = timing.seconds[name]
    return {"ms": round(seconds * 1e3, 3), "GFLOP/s": round(case.flop / seconds / 1e9), **first, "state": "timed"}


def step(device: str, impl: str, model_config: dict, batch: int, patch: int) -> Rows:
    """Yield the speed of a whole training step, then where its time goes, longest first."""
    picked = devices.pick(device)
    config, chosen = ModelConfig(**model_config), precision.resolve("O1", "auto", picked)
    model = RDN(config, impl).to(picked, memory_format=devices.memory_format(picked))
    chosen.apply(model)
    optimizer = devices.adam(model.parameters(), picked, 1e-4, weight_decay=0.0, captured=True)
    train = TrainStep(model, optimizer, make_optimizer_step(optimizer, picked, LOSS_SCALE), picked)
    lr, hr = (torch.rand(batch, 3, side, side).to(picked) for side in (patch, config.scale * patch))
    weight = torch.full((), 1 / hr.numel(), device=picked)
    run = partial(train, lr, hr, weight)
    seconds = [_seconds(run, picked) for _ in range(1 + STEPS)]
    best = min(seconds[1:])
    speed = {"ms": round(best * 1e3, 2), "patches/s": round(batch / best, 1), "first step s": round(seconds[0], 2)}
    yield {"impl": impl, "level": str(chosen), "batch": batch, **speed}
    operators = npu_profile.operators(run, picked)
    for row in sorted(operators, key=lambda row: -float(row.get(_COLUMNS["us"], 0)))[:TOP]:
        yield {name: row.get(column, "") for name, column in _COLUMNS.items()}


def _seconds(run, device: torch.device) -> float:
    devices.synchronize(device)
    start = time.perf_counter()
    run()
    devices.synchronize(device)
    return time.perf_counter() - start


def _cases(device: torch.device, model_config: dict, batch: int, patch: int) -> tuple[Case, Case]:
    """Return a training step's block, and a picture's, both in the device's low precision."""
    low, config = devices.low_precision(device), ModelConfig(**model_config)
    picture = 1, 3, PICTURE, PICTURE
    return Case.of(config, (batch, 3, patch, patch), device, low, True), Case.of(config, picture, device, low, False)


def _use(case: Case) -> str:
    return "training" if case.training else "forward"


def main(part: str, arguments: str, file: str) -> None:
    parts = versions, card, library, compilation, implementations, timings, step
    function = {function.__name__: function for function in parts}[part]
    with open(file, "a", encoding="utf-8") as rows:
        for row in function(**json.loads(arguments)):
            rows.write(json.dumps(row) + "\n")
            rows.flush()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
    except Exception as error:  # of a driver, a compiler, a profiler: the report tells it
        sys.exit(f"{type(error).__name__}: {what_failed(error)}")
