"""Result rows: one CSV file a run, named by its conditions. Every row is on disk as soon as it is measured."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path

import torch

from rdn_fast import __version__, devices

HERE = Path(__file__).resolve().parent
STEADY = 1.3  # slowest over fastest of the rounds that count: beyond it they decide nothing


def _figure(form: str) -> float | None:
    """A column that is empty unless it is measured, and how it is printed."""
    return field(default=None, metadata={"form": form})


@dataclass(frozen=True)
class Row:
    """One recipe in one case. GFLOP/s are those of direct convolutions, whatever the algorithm; empty = unknown."""

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
    # how fast; seconds per run: the median, the fastest and the slowest of the quietest `rounds` of `rounds_run`
    rounds: int | None = None
    rounds_run: int | None = None
    seconds: float | None = None
    seconds_min: float | None = None
    seconds_max: float | None = None
    images_s: float | None = _figure("{:.4g} img/s")  # end-to-end where the case is
    seed_images_s: float | None = _figure("{:.4g} img/s in the seed window")
    gflops: float | None = _figure("{:.0f} GFLOP/s")
    ceiling_share: float | None = _figure("{:.0%} of the ceiling")  # timed in turn with it, in the same dtype
    vs_reference: float | None = _figure("{:.2f}x reference")  # as fast as the reference recipe, in the same run
    vs_stock: float | None = _figure("{:.2f}x stock")  # the fastest; of the same dtype unless the case is end to end
    vs_other: float | None = _figure("{:.2f}x the strongest other")  # neither ours nor the reference, in any dtype
    vs_rest: float | None = _figure("{:.2f}x all others")  # the fastest other row in any dtype, other impls of ours too
    peak_mb: float | None = _figure("{:.0f} MB")  # 10^6 bytes: of a step, less what was resident before; or see note
    peak_share: float | None = _figure("{:.1%} of the reference's memory")  # peak_mb over that of the reference recipe
    peak_of_naive: float | None = _figure("{:.1%} of naive's")  # peak_mb over that of impl naive in the same dtype
    efficiency: float | None = _figure("{:.1%} scaling efficiency")  # images/s over (ranks x images/s of one rank)
    waited: float | None = _figure("{:.2%} of the time waited")  # by a steady consumer, or the model, for data
    gain_db: float | None = _figure("{:+.2f} dB over bicubic")
    unsteady: str = ""  # why the row decides nothing
    kind: str = "measured"  # or "published", "simulated", "not measured"
    note: str = ""

    @property
    def shaky(self) -> str:
        """Why the row decides nothing; of rows older than `unsteady`, by their own rounds."""
        spread = self.seconds_max / self.seconds_min if self.seconds_min else 1.0
        return self.unsteady or (f"rounds spread {spread:.2f}x" if spread > STEADY else "")

    def beside(self, other: Row, recipe: str) -> bool:
        """Return whether `other` is a measured row of `recipe` for the same work in the same dtype."""
        work = ("case", "dtype", "batch", "shape", "ranks")
        same = all(getattr(self, name) == getattr(other, name) for name in work)
        return same and (other.recipe, other.kind) == (recipe, "measured")

    def line(self) -> str:
        """Return the row as it is printed while the run goes on."""
        head = f"{self.recipe:<24} {self.dtype:<9}"
        if self.kind == "not measured":
            return f"{head} not measured: {self.note}"
        words = [f"{self.ranks} ranks"] if self.ranks > 1 else []
        if self.seconds is not None:
            of = f", {self.rounds} of {self.rounds_run} rounds" if self.rounds != self.rounds_run else ""
            words.append(f"{self.seconds:.4g} s ({self.seconds_min:.4g} to {self.seconds_max:.4g}{of})")
        figures = ((column.metadata["form"], getattr(self, column.name)) for column in COLUMNS if column.metadata)
        words += [form.format(value) for form, value in figures if value is not None]
        words += [f"UNSTEADY: {self.unsteady}"] if self.unsteady else []
        return f"{head} {', '.join(words)}" + (f" [{self.note}]" if self.note else "")


COLUMNS = dataclasses.fields(Row)
NAMES = [column.name for column in COLUMNS]
NEWER = {"rounds_run", "vs_other", "vs_rest", "peak_share", "peak_of_naive", "gain_db", "unsteady"}  # older files lack
WORK = ("case", "recipe", "dtype", "batch", "shape", "ranks")  # columns that tell what a row measured
GONE = {"vs_naive"}  # not read


def read(path: Path) -> list[Row]:
    """Parse a file, numbers as numbers. ValueError names the file if its columns are others."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file)
        if not set(NAMES) - NEWER <= set(lines.fieldnames or []) <= set(NAMES) | GONE:
            remedy = "run the benchmark again or remove the file"
            raise ValueError(f"{path}: has other columns than bench/results.py; {remedy}")
        known = [column for column in COLUMNS if column.name in lines.fieldnames]
        return [Row(**{column.name: _value(column.type, line[column.name]) for column in known}) for line in lines]


def _value(kind: str, text: str) -> str | float | None:
    if kind == "str":
        return text
    return (int if kind.startswith("int") else float)(text) if text else None


def read_all(folder: Path) -> list[list[Row]]:
    """Return the rows of every run whose file is in the folder, oldest run first."""
    runs = [rows for path in sorted(folder.glob("*.csv")) if (rows := read(path))]
    return sorted(runs, key=lambda rows: rows[0].date)


def newest(runs: list[list[Row]]) -> list[list[Row]]:
    """Return groups of rows that were timed against each other, each from the newest run that has it.

    A group is of one device, torch, case and shape, and of one batch or several numbers of ranks.
    """
    groups: dict[tuple, list[Row]] = {}
    for rows in runs:
        mine: dict[tuple, list[Row]] = {}
        several = max(row.ranks for row in rows) > 1
        for row in rows:
            key = row.device, row.torch, row.case, row.shape, "ranks" if several else row.batch
            mine.setdefault(key, []).append(row)
        groups |= mine
    return list(groups.values())


class Results:
    """The file of one run, in $OUT where that is set, else in bench/results."""

    def __init__(self, command: str, device: torch.device):
        now, self.rows = datetime.now(), []
        self._run = conditions(device) | {"date": now.isoformat(timespec="seconds")}
        self._run |= {"place": place(device), "threads": torch.get_num_threads()}
        folder = Path(os.environ.get("OUT") or HERE / "results")
        folder.mkdir(parents=True, exist_ok=True)
        machine = f"{slug(device_words(device))}_torch-{slug(torch.__version__)}"
        self.path = folder / f"{command}_{machine}_{now:%Y-%m-%d}.csv"
        self._file = self.path.open("w", encoding="utf-8", newline="")
        self._csv = csv.DictWriter(self._file, NAMES, lineterminator="\n")
        self._csv.writeheader()

    def add(self, **values) -> Row:
        """Write and return a row. It replaces an earlier one of the same work, whose rounds it holds too."""
        rounded = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in values.items()}
        row = Row(**self._run, **rounded)
        for i, earlier in enumerate(self.rows):
            if all(getattr(earlier, name) == getattr(row, name) for name in WORK):
                self.rows[i] = row
                self._rewrite()
                return row
        self.rows.append(row)
        self._csv.writerow(dataclasses.asdict(row))
        self._file.flush()
        return row

    def _rewrite(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._csv.writeheader()
        self._csv.writerows(map(dataclasses.asdict, self.rows))
        self._file.flush()


def conditions(device: torch.device) -> dict[str, str]:
    """Return what every record says of its run: date, commit, command, device and versions."""
    typed = shlex.join(["python", *sys.orig_argv[1:]])
    run = {"date": date.today().isoformat(), "commit": commit(), "command": typed, "device": device_words(device)}
    return run | {"torch": torch.__version__, "rdn_fast": __version__}


def place(device: torch.device) -> str:
    """Return the class of machine that gates name: cpu, cpu+bf16, cpu+amx (by instructions), h100 or a device type."""
    if device.type == "cpu":
        return "cpu+amx" if _has(device, "amx_bf16") else "cpu+bf16" if has_bf16(device) else "cpu"
    return "h100" if "H100" in devices.describe(device) else device.type


def has_bf16(device: torch.device) -> bool:
    """Return whether a CPU has bf16 instructions; without them bf16 is emulated, 10 to 100 times slower."""
    return _has(device, "avx512_bf16", "amx_bf16", "bf16")


def _has(device: torch.device, *names: str) -> bool:
    on_cpu = device.type == "cpu"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)() if on_cpu else {}  # older torch cannot tell
    return any(capabilities.get(name) for name in names)


def device_words(device: torch.device) -> str:
    """Return words that tell machines apart: the device's model, and a CPU's family, threads and instructions."""
    words = re.search(r"\((.*)\)", devices.describe(device))[1]
    if device.type != "cpu":
        return words
    info = Path("/proc/cpuinfo")
    family = re.search(r"^cpu family\s*: (\d+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    words += (", bf16" if has_bf16(device) else "") + (", AMX" if _has(device, "amx_bf16") else "")
    return words + (f", family {family[1]}" if family else "")


def commit() -> str:
    """Return the commit that is measured, with + where files were changed since; "" outside of git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def slug(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-")
