"""`rdn-fast tune` on a device with modes (device.modes): all rows are timed in every mode, each mode in a process of its own.

    python -m rdn_fast.commands.tune_modes MODE '[CONFIG, TRAIN]' FILE.json

is such a process: it takes the fields of ModelConfig and TrainConfig as JSON, and writes a list of Timings, one for each case.
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

from rdn_fast import devices, precision
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.errors import UserError
from rdn_fast.rdb import IMPLS, refusal
from rdn_fast.rdb.autotune import PICTURE, Case, Timing, measure, mode_key, remember
from rdn_fast.terminal import print_table


def cases_of(config: ModelConfig, train: TrainConfig, device: torch.device) -> tuple[Case, Case]:
    """What `rdn-fast tune` times: a training run's steps, and evaluation in float32."""
    patch = train.batch_size, 3, train.patch_size, train.patch_size
    dtype = precision.resolve(train.opt_level, train.amp_dtype, device).compute
    return Case.of(config, patch, device, dtype, True), Case.of(
        config, (1, 3, PICTURE, PICTURE), device, torch.float32, False
    )


def sweep(config: ModelConfig, train: TrainConfig, device: torch.device) -> None:
    """Time all rows in every mode, print the tables, and remember the fastest row of each mode and the mode with the fastest training.

    A mode whose process fails is left out, and that is said; UserError when all do.
    """
    cases, timings = cases_of(config, train, device), {}
    settings = json.dumps(
        [dataclasses.asdict(config), dataclasses.asdict(dataclasses.replace(train, device=str(device), device_id=None))]
    )
    modes = ("", *devices.modes(device))
    print(
        "a process cannot change its mode: each mode is timed in a process of its own, one after the other and not in turn,"
    )
    print("so small differences between modes may be chance; a mode that compiles (jit) takes minutes")
    for number, mode in enumerate(modes, 1):
        print(f"mode {number} of {len(modes)}: {_title(mode)}", flush=True)
        try:
            timings[mode] = _measured(mode, settings)
        except RuntimeError as error:
            print(f"left out: {error}", flush=True)
    if not timings:
        raise UserError(
            f"--device {device}: the block's implementations could be timed in no mode (the lines above say why)"
        )
    best = min(timings, key=lambda mode: min(timings[mode][0].seconds.values()))
    for number, case in enumerate(cases):
        _show(case, {mode: of_cases[number] for mode, of_cases in timings.items()}, best)
    rows = {
        dataclasses.replace(case, mode=mode).key(): timing.fastest
        for mode in timings
        for case, timing in zip(cases, timings[mode], strict=True)
    }
    remember(rows | {mode_key(cases[0]): best})


def _title(mode: str) -> str:
    return mode or "default"


def _measured(mode: str, settings: str) -> list[Timing]:
    """The Timings of a new process in that mode; RuntimeError with its last words when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "timings.json"
        command = [sys.executable, "-m", "rdn_fast.commands.tune_modes", mode, settings, str(file)]
        # Compilers write dots to stdout; why rows fail is in the Timings.
        ended = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", check=False
        )
        if ended.returncode < 0:
            raise RuntimeError(f"its process was killed by signal {-ended.returncode}")
        if ended.returncode:
            raise RuntimeError(
                (ended.stderr.strip() or f"its process ended with code {ended.returncode}").splitlines()[-1]
            )
        return [Timing(**timing) for timing in json.loads(file.read_text())]


def _show(case: Case, timings: dict[str, Timing], best: str) -> None:
    """A table with a column for each mode and three lines for each row, and below it why others have none."""
    naive = timings[""].seconds.get("naive") if "" in timings else None
    table = Table("rdb", "")
    for mode in timings:
        table.add_column(_title(mode), justify="right")
    notes = [f"auto: {timings[best].fastest} in mode {_title(best)}; times naive: against naive in mode default"]
    for row in IMPLS.values():
        if reason := refusal(row, case.device, case.dtype, case.training):
            notes.append(f"{row.name}: {reason}")
            continue
        seconds = {mode: timing.seconds.get(row.name) for mode, timing in timings.items()}
        notes += [
            f"{row.name} in mode {_title(mode)}: {t.failed[row.name]}"
            for mode, t in timings.items()
            if row.name in t.failed
        ]
        for unit, figure in (
            ("ms", lambda s: f"{s * 1e3:.2f}"),
            ("GFLOP/s", lambda s: f"{case.flop / s / 1e9:.0f}"),
            ("times naive", lambda s: f"{naive / s:.2f}" if naive else ""),
        ):
            cells = (figure(s) if s else "" for s in seconds.values())
            table.add_row(row.name if unit == "ms" else "", unit, *cells, end_section=unit == "times naive")
    print(case.key())
    print_table(table)
    print(*notes, sep="\n")


def _main(mode: str, settings: str, file: str) -> None:
    config, train = json.loads(settings)
    config, train = ModelConfig(**config), TrainConfig(**train)
    device = devices.pick(train.device)
    devices.use_mode(device, mode)
    timings = [measure(case) for case in cases_of(config, train, device)]
    Path(file).write_text(json.dumps([dataclasses.asdict(timing) for timing in timings]))


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
