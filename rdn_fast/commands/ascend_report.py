"""`rdn-fast doctor --ascend-report FILE`: run what there is on an Ascend card in about ten minutes; write one file.

The file is for an issue: its reader has no card. Each part runs in a process of its own (ascend_parts.py), within a
limit, and costs only itself when it fails. The file is written anew after each part, so that a report that is stopped
keeps what it has.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rdn_fast import devices
from rdn_fast.commands.ascend_page import KIND, Row, page
from rdn_fast.config import make_configs
from rdn_fast.errors import Terminated, UserError
from rdn_fast.files import check_replaceable, check_writable, write_result
from rdn_fast.rdb import IMPLS
from rdn_fast.terminal import Bar, print_line

TOTAL = 600.0  # seconds for all parts
NO_CARD = "not run: no card"


def shape(preset: str) -> dict:
    """Return a preset's model, batch and patch, as parts take them."""
    model_config, train_config = make_configs({}, preset)
    sizes = {"batch": train_config.batch_size, "patch": train_config.patch_size}
    return {"model_config": dataclasses.asdict(model_config), **sizes}


SHAPES = {"rdn-b": shape("train-full-1p"), "small": shape("small")}  # of the step, the first


@dataclass
class Part:
    """A function of ascend_parts.py, its limit in seconds, and what came of it. state: "done", or why it is not."""

    title: str
    function: str
    limit: float
    arguments: Callable[[], dict]  # called when the parts before it have ended
    needs_card: bool = True
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    state: str = "not run"


class _Plan:
    """The parts in order, the most wanted first, and what later ones take from earlier ones."""

    def __init__(self, device: str, autoload: bool):
        first = next(iter(SHAPES))
        self.card = Part("card", "card", 60, lambda: {"device": device}, needs_card=False)
        self.able = Part("implementations and self-test", "implementations", 150, self._on_first)
        self.default = self._timings("")
        self.parts = [
            Part("versions", "versions", 60, lambda: {"autoload": autoload}, needs_card=False),
            self.card,
            Part("compiler and library", "library", 30, lambda: {"device": self.device}, needs_card=False),
            Part("compiling", "compilation", 150, self._on_all, needs_card=False),
            self.able,
            self.default,
            Part(f"training step and profile, {first}", "step", 90, lambda: self._on_first(impl=self._fastest())),
            *map(self._timings, devices.modes_by_name(device)),
        ]

    @property
    def device(self) -> str | None:
        return self.card.rows[0]["device"] if self.card.rows else None

    def _on_first(self, **more) -> dict:
        return {"device": self.device, **next(iter(SHAPES.values())), **more}

    def _on_all(self, **more) -> dict:
        return {"device": self.device, "shapes": SHAPES, **more}

    def _timings(self, mode: str) -> Part:
        title = f"timings in mode {mode or 'default'}"
        return Part(title, "timings", 100, lambda: self._on_all(mode=mode, impls=self._able()))

    def _able(self) -> dict[str, list[str]]:
        """Return the names of the impls that can run, by use."""
        uses: dict[str, list[str]] = {}
        for row in self.able.rows:
            if row["runs"]:
                uses.setdefault(row["for"], []).append(row["impl"])
        return uses

    def _fastest(self) -> str:
        """Return the impl that trained the first shape's block fastest, or the oracle where none was timed."""
        first = next(iter(SHAPES))
        timed = [row for row in self.default.rows if (row["shape"], row["for"]) == (first, "training") and "ms" in row]
        return min(timed, key=lambda row: row["ms"])["impl"] if timed else next(iter(IMPLS))


def ascend_report(file: str, device: str, autoload: bool) -> int:
    """Write the report to `file`, a line for each part to the screen. Return 0, or 1 where no card was found.

    autoload: whether the user lets `import torch` import torch_npu. Raises UserError for a file or a device that will
    not do. Ctrl-C leaves in the file what has been found so far.
    """
    devices.check_name(device)
    if not devices.modes_by_name(device):
        raise UserError(f"--device {device}: --ascend-report is for Ascend cards; leave --device out")
    name = f"--ascend-report {file}"
    check_replaceable(file, KIND, name)
    check_writable(file, name)
    if Path(file).is_file() and Path(file).stat().st_size:
        print_line(f"note: {file} is an earlier report, which this one replaces after its first part; Ctrl-C keeps it")
    plan, began = _Plan(device, autoload), time.monotonic()

    def write(state: str) -> None:
        content = page(plan.parts, time.monotonic() - began, state).encode(errors="backslashreplace")
        write_result(file, content, name, KIND)

    try:
        with Bar("report (s)", round(TOTAL)) as bar:
            for number, part in enumerate(plan.parts):
                _run(plan, number, TOTAL - (time.monotonic() - began), bar)
                if part.state != NO_CARD:
                    bar.say(f"{part.title}: {part.state}, {part.seconds:.0f} s")
                write("not complete yet")
    except KeyboardInterrupt as error:
        if plan.parts[0].state == "done":
            write(f"stopped by {'SIGTERM' if isinstance(error, Terminated) else 'Ctrl-C'}")
            print_line(f"written to {file} as far as it came")
        raise
    write("complete")
    print_line(f"written to {file}: look through it, and attach it to an issue")
    if plan.device is None:
        print_line(f"no card: {plan.card.state.removeprefix('failed: ')}")
        return 1
    return 0


def _run(plan: _Plan, number: int, left: float, bar: Bar) -> None:
    """Run a part, within its limit and the seconds that are left for all."""
    part, limits = plan.parts[number], [part.limit for part in plan.parts]
    limit = min(part.limit, left)

    def done(seconds: float) -> float:
        """Return how much is done, in seconds of TOTAL: the time that has passed, or more where parts ended early."""
        return max(TOTAL - left + seconds, TOTAL * (sum(limits[:number]) + seconds) / sum(limits))

    if part.needs_card and plan.device is None:
        part.state = NO_CARD
    elif limit <= 0:
        part.state = f"not run: the {TOTAL / 60:.0f} minutes were over"
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows, errors = Path(folder) / "rows", Path(folder) / "errors"
            command = [sys.executable, "-m", "rdn_fast.commands.ascend_parts", part.function]
            command += [json.dumps(part.arguments()), str(rows)]
            began, part.state = time.monotonic(), "stopped"
            # stdout is dropped: compilers write dots to it. A session of its own: what it starts ends with it.
            with errors.open("wb") as stderr:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
                )
            try:
                while process.poll() is None and (seconds := time.monotonic() - began) < limit:
                    bar.set_done(done(seconds + 1e-3), f"part {number + 1} of {len(plan.parts)}: {part.title}")
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(min(0.5, limit - seconds + 0.01))
                part.state = _state(process.poll(), limit, errors)
            finally:
                _end(process)
                part.seconds = time.monotonic() - began
                part.rows += _read(rows)
    bar.set_done(TOTAL * sum(limits[: number + 1]) / sum(limits) + 1e-3)


def _state(code: int | None, limit: float, errors: Path) -> str:
    if code is None:
        return f"cut after {limit:.0f} s"
    if code < 0:
        return f"failed: its process was killed by signal {-code}"
    lines = errors.read_text(encoding="utf-8", errors="replace").split("\n") if code else []
    told = [line.strip() for line in lines if line.strip()]
    return f"failed: {told[-1] if told else f'its process ended with code {code}'}" if code else "done"


def _read(rows: Path) -> list[Row]:
    """Return the rows of a file; its last line may be half written."""
    text = rows.read_text(encoding="utf-8") if rows.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _end(process: subprocess.Popen) -> None:
    """End a process that still runs, and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
