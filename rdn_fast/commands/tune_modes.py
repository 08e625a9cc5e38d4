"""`rdn-fast tune` on a device with modes (devices.modes): each mode is timed in a process of its own.

    python -m rdn_fast.commands.tune_modes MODE '[MODEL_CONFIG, TRAIN_CONFIG]' FILE.json

is such a process. It takes the fields of ModelConfig and TrainConfig as JSON and writes a list of Timings, one a case.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.table import Table

from rdn_fast import devices
from rdn_fast.auto_level import resolve_precision
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.errors import UserError
from rdn_fast.rdb import IMPLS, refusal
from rdn_fast.rdb.autotune import mode_key
from rdn_fast.rdb.case import PICTURE, Case
from rdn_fast.rdb.measure import Timing, measure
from rdn_fast.rdb.rounds import Verdict
from rdn_fast.rdb.tuning import remember
from rdn_fast.terminal import print_line, print_table


def cases_of(model_config: ModelConfig, train_config: TrainConfig, device: torch.device) -> tuple[Case, Case]:
    """Return the two cases that `rdn-fast tune` times: a training run's step, and evaluation in float32."""
    patch = train_config.batch_size, 3, train_config.patch_size, train_config.patch_size
    asked = train_config.opt_level, train_config.amp_dtype
    dtype = resolve_precision(*asked, device, model_config, patch, train_config.rdb).compute
    training = Case.of(model_config, patch, device, dtype, True)
    evaluation = Case.of(model_config, (1, 3, PICTURE, PICTURE), device, torch.float32, False)
    return training, evaluation


def tune_modes(model_config: ModelConfig, train_config: TrainConfig, device: torch.device) -> None:
    """Time all impls in every mode, print the tables, and remember the fastest impl of each mode and the fastest mode.

    The fastest mode is the one with the fastest training. A mode whose process fails is left out, with a printed
    reason. Raises UserError when all fail.
    """
    cases = cases_of(model_config, train_config, device)
    train_config = dataclasses.replace(train_config, device=str(device), device_id=None)
    timings = _time_all_modes(device, json.dumps([dataclasses.asdict(model_config), dataclasses.asdict(train_config)]))
    if not timings:
        raise UserError(
            f"--device {device}: the block's implementations could be timed in no mode (the lines above say why)"
        )
    best = min(timings, key=lambda mode: min(timings[mode][0].seconds.values()))
    for number, case in enumerate(cases):
        _show(case, {mode: of_cases[number] for mode, of_cases in timings.items()}, best)
    verdicts = {
        dataclasses.replace(case, mode=mode).key(): timing.verdict
        for mode, of_cases in timings.items()
        for case, timing in zip(cases, of_cases, strict=True)
    }
    remember(verdicts | {mode_key(cases[0]): Verdict(best, True)})


def _time_all_modes(device: torch.device, configs: str) -> dict[str, list[Timing]]:
    """Return the Timings of each mode whose process succeeded; "" is the device's default mode."""
    modes, timings = ("", *devices.modes(device)), {}
    print_line(
        "a process cannot change its mode: each mode is timed in a process of its own, one after the other and not in "
        "turn,\nso small differences between modes may be chance; a mode that compiles (jit) takes minutes"
    )
    for number, mode in enumerate(modes, 1):
        print_line(f"mode {number} of {len(modes)}: {_title(mode)}")
        try:
            timings[mode] = _time_in_process(mode, configs)
        except RuntimeError as error:
            print_line(f"left out: {error}")
    return timings


def _title(mode: str) -> str:
    return mode or "default"


def _time_in_process(mode: str, configs: str) -> list[Timing]:
    """Return the Timings of a new process in that mode. Raises RuntimeError with its last line when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "timings.json"
        command = [sys.executable, "-m", "rdn_fast.commands.tune_modes", mode, configs, str(file)]
        # stdout is dropped: compilers write dots to it, and the reasons of impls that fail are in the Timings.
        ended = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", check=False
        )
        if ended.returncode < 0:
            raise RuntimeError(f"its process was killed by signal {-ended.returncode}")
        if ended.returncode:
            reason = ended.stderr.strip() or f"its process ended with code {ended.returncode}"
            raise RuntimeError(reason.splitlines()[-1])
        return [Timing(**timing) for timing in json.loads(file.read_text())]


def _show(case: Case, timings: dict[str, Timing], best: str) -> None:
    """Print a table with a column per mode and three lines per impl, and below it why others have none."""
    naive = timings[""].seconds.get("naive") if "" in timings else None
    table = Table("rdb", "")
    for mode in timings:
        table.add_column(_title(mode), justify="right")
    notes = [f"auto: {timings[best].verdict.choice} in mode {_title(best)}; times naive: against naive in mode default"]
    for impl in IMPLS.values():
        if reason := refusal(impl, case.device, case.dtype, case.training):
            notes.append(f"{impl.name}: {reason}")
            continue
        for mode, timing in timings.items():
            if impl.name in timing.failed:
                notes.append(f"{impl.name} in mode {_title(mode)}: {timing.failed[impl.name]}")
        seconds = [timing.seconds.get(impl.name) for timing in timings.values()]
        table.add_row(impl.name, "ms", *(f"{s * 1e3:.2f}" if s else "" for s in seconds))
        table.add_row("", "GFLOP/s", *(f"{case.flop / s / 1e9:.0f}" if s else "" for s in seconds))
        speedups = (f"{naive / s:.2f}" if naive and s else "" for s in seconds)
        table.add_row("", "times naive", *speedups, end_section=True)
    print_line(case.key())
    print_table(table)
    for note in notes:
        print_line(note)


def _main(mode: str, configs: str, file: str) -> None:
    model_fields, train_fields = json.loads(configs)
    train_config = TrainConfig(**train_fields)
    device = devices.pick(train_config.device)
    devices.use_mode(device, mode)
    timings = [measure(case) for case in cases_of(ModelConfig(**model_fields), train_config, device)]
    Path(file).write_text(json.dumps([dataclasses.asdict(timing) for timing in timings]))


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
