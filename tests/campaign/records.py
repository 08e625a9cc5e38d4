"""What came of the trials: a JSON line each in trials.jsonl, which a campaign that is started again reads first."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from datetime import datetime
from pathlib import Path

import h5py
import torch

from rdn_fast import __version__, devices
from tests.runs import ROOT


def conditions() -> dict[str, str]:
    """Return where and of what the trials are made."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "processor": devices.describe(torch.device("cpu")),
        "torch": torch.__version__,
        "h5py": f"{h5py.__version__} (HDF5 {h5py.version.hdf5_version})",
        "rdn_fast": __version__,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.now().strftime("%Y-%m-%d"),
    }


class Records:
    """The records of a folder. The newest one of a trial counts; `mended` counts failures that newer ones replaced."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "trials.jsonl"
        self._conditions = conditions()
        self.trials: dict[tuple[str, int], dict] = {}
        self.mended: Counter[str] = Counter()
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # killed while it was written
            lines.pop()
            self._path.write_bytes(b"".join(lines))
        for line in lines:
            self._count(json.loads(line))

    def _count(self, record: dict) -> None:
        key = record["kind"], record["seed"]
        if self.trials.get(key, {}).get("outcome") == "failed" and record["outcome"] != "failed":
            self.mended[record["kind"]] += 1
        self.trials[key] = record

    def add(self, kind: str, record: dict) -> None:
        record = {"kind": kind, **record, **self._conditions}
        self._count(record)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def passed(self, kind: str, seed: int) -> bool:
        return self.trials.get((kind, seed), {}).get("outcome", "failed") != "failed"

    def of(self, kind: str) -> list[dict]:
        return [record for (name, _), record in self.trials.items() if name == kind]

    def outcomes(self, kind: str) -> Counter[str]:
        return Counter(record["outcome"] for record in self.of(kind))

    def failed(self, kind: str) -> int:
        return self.outcomes(kind)["failed"]

    def failures(self) -> list[dict]:
        return [record for record in self.trials.values() if record["outcome"] == "failed"]

    def summary(self, kind: str) -> str:
        return ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(self.outcomes(kind).items())) or "none"
