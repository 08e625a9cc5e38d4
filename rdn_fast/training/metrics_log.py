"""Metrics of a run: JSON lines, and TensorBoard where that package is installed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rdn_fast.files import finite


class MetricsLog:
    """OUT/metrics.jsonl, and TensorBoard's OUT/tensorboard where that package is installed."""

    def __init__(self, folder: Path, keep_bytes: int, step: int):
        """Keep the first `keep_bytes` of an earlier file, what its checkpoint at `step` had written, and the resumes told after them."""
        self._file = (folder / "metrics.jsonl").open("a+b")
        self._file.seek(keep_bytes)
        resumes = [
            line for line in self._file.readlines() if line.startswith(b'{"event": "resume"') and line.endswith(b"\n")
        ]
        if self._file.tell() > keep_bytes:
            self._file.truncate(keep_bytes)
        self._file.writelines(resumes)
        self._tensorboard = None
        try:
            from rdn_fast.training.tensorboard import EventWriter
        except ImportError:
            return
        self._tensorboard = EventWriter(folder / "tensorboard", step)

    def write(self, record: dict) -> None:
        """Append one record; its numbers also go to TensorBoard under the record's `event`. Epochs can be seen at once."""
        kind = record["event"]
        self._file.write((json.dumps(finite(record)) + "\n").encode())
        if self._tensorboard and kind in ("step", "epoch"):
            numbers = {
                key: value
                for key, value in record.items()
                if isinstance(value, (int, float)) and not isinstance(value, bool)
            }
            self._tensorboard.add_scalars(
                numbers.pop("step"), {f"{kind}/{key}": value for key, value in numbers.items()}
            )
        if kind == "epoch":
            self._file.flush()
            if self._tensorboard:
                self._tensorboard.flush()

    def size(self) -> int:
        """Bytes of metrics.jsonl so far, all of them on the disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
