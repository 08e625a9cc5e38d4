"""Result rows: one CSV file per run, its name says the conditions, every row is on disk as soon as it is measured."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from rdn_fast import __version__, devices

HERE = Path(__file__).resolve().parent
KINDS = ("measured", "published", "simulated", "not measured")


@dataclass(frozen=True)
class Row:
    """One recipe in one case. Speeds are GFLOP/s of the direct convolutions' arithmetic, whatever the algorithm; empty = not known."""

    # the run
    date: str
    commit: str
    command: str
    place: str  # class of machine that the gates know: results.place
    device: str
    threads: int
    torch: str
    rdn_fast: str
    # what
    case: str
    recipe: str
    dtype: str
    precision: str  # "default": what `--opt-level auto` chooses there
    batch: int  # of all ranks
    shape: str
    ranks: int = 1
    # how fast; seconds per run, medians of interleaved rounds
    rounds: int | None = None
    seconds: float | None = None
    seconds_min: float | None = None
    seconds_max: float | None = None
    images_s: float | None = None  # end-to-end where the case is
    seed_images_s: float | None = None  # seed window
    gflops: float | None = None
    ceiling_share: float | None = None  # of the ceiling measured in the same run, in the same dtype
    vs_reference: float | None = None  # how many times as fast as the reference recipe, in the same run
    vs_stock: float | None = None  # as the fastest stock recipe, in the same dtype unless the case is end to end
    peak_mb: float | None = (
        None  # 10^6 bytes: of a step, less what was resident before it; of pictures: what the note says
    )
    vs_naive: float | None = None  # that, as a share of the naive row's
    efficiency: float | None = None  # images/s over (ranks x images/s of one rank)
    waited: float | None = None  # share of the time in which a steady consumer, or the model, waited for data
    kind: str = "measured"
    note: str = ""

    def line(self) -> str:
        """The row as it is printed while the run goes on."""
        head = f"{self.recipe:<24} {self.dtype:<9}"
        if self.kind == "not measured":
            return f"{head} not measured: {self.note}"
        words = [f"{self.ranks} ranks"] if self.ranks > 1 else []
        if self.seconds is not None:
            words.append(f"{self.seconds:.4g} s ({self.seconds_min:.4g} to {self.seconds_max:.4g})")
        for column, form in (
            ("images_s", "{:.4g} img/s"),
            ("seed_images_s", "{:.4g} img/s in the seed window"),
            ("gflops", "{:.0f} GFLOP/s"),
            ("ceiling_share", "{:.0%} of the ceiling"),
            ("vs_reference", "{:.2f}x reference"),
            ("vs_stock", "{:.2f}x stock"),
            ("peak_mb", "{:.0f} MB"),
            ("vs_naive", "{:.1%} of naive"),
            ("efficiency", "{:.1%} scaling efficiency"),
            ("waited", "{:.2%} of the time waited"),
        ):
            if getattr(self, column) is not None:
                words.append(form.format(getattr(self, column)))
        return f"{head} {', '.join(words)}" + (f" [{self.note}]" if self.note else "")


def read(path: Path) -> list[Row]:
    """The rows of a file, numbers as numbers. ValueError names the file when its columns are others."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        names = [field.name for field in dataclasses.fields(Row)]
        if lines.fieldnames != names:
            raise ValueError(
                f"{path}: has other columns than bench/results.py; run the benchmark again or remove the file"
            )
        return [
            Row(**{field.name: _value(field, line[field.name]) for field in dataclasses.fields(Row)}) for line in lines
        ]


def _value(field: dataclasses.Field, text: str):
    if field.type == "str":
        return text
    if not text:
        return None
    return int(text) if field.type.startswith("int") else float(text)


class Results:
    """The file of one run, in $OUT where that is set, else in bench/results."""

    def __init__(self, command: str, device: torch.device):
        now = datetime.now()
        self.rows: list[Row] = []
        self._run = {
            "date": now.isoformat(timespec="seconds"),
            "commit": commit(),
            "command": command_line(),
            "place": place(device),
            "device": name(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rdn_fast": __version__,
        }
        folder = Path(os.environ.get("OUT") or HERE / "results")
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{command}_{_slug(name(device))}_torch-{_slug(torch.__version__)}_{now:%Y-%m-%d}.csv"
        self._file = self.path.open("w", encoding="utf-8", newline="")
        self._csv = csv.DictWriter(self._file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
        self._csv.writeheader()

    def add(self, **values) -> Row:
        row = Row(
            **self._run,
            **{key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in values.items()},
        )
        self.rows.append(row)
        self._csv.writerow(dataclasses.asdict(row))
        self._file.flush()
        return row


def command_line() -> str:
    """What was typed to get here."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def place(device: torch.device) -> str:
    """The class of machine that gates speak of: cpu, cpu+bf16 (with bf16 instructions), h100, or another accelerator's kind."""
    if device.type == "cpu":
        return "cpu+bf16" if has_bf16(device) else "cpu"
    return "h100" if "H100" in devices.describe(device) else device.type


def has_bf16(device: torch.device) -> bool:
    """Whether a CPU has bf16 instructions; without them bf16 is emulated, 10 to 100 times slower."""
    capabilities = (
        getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    )  # older torch cannot tell
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def name(device: torch.device) -> str:
    """The device in words that tell machines apart: its model, and a CPU's family, threads and instructions."""
    words = re.search(r"\((.*)\)", devices.describe(device))[1]
    if device.type != "cpu":
        return words
    family = (
        re.search(r"^cpu family\s*: (\d+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if Path("/proc/cpuinfo").is_file()
        else None
    )
    return words + (", bf16" if has_bf16(device) else "") + (f", family {family[1]}" if family else "")


def commit() -> str:
    """The commit that is measured, with + where files were changed since; empty outside of git."""
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changes else "")


def _slug(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-")
