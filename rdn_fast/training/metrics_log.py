"""Metrics of a run: JSON lines, and TensorBoard where that package is installed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rdn_fast.files import finite


class MetricsLog:
    """Writes outputs/metrics.jsonl, and outputs/tensorboard where TensorBoard is installed."""

    def __init__(self, outputs: Path, keep_bytes: int, step: int):
        """Open the log of a run that starts or resumes at `step`.

        keep_bytes: size of metrics.jsonl when the checkpoint was saved. Of later lines only `resume` events are kept.
        """
        self._file = (outputs / "metrics.jsonl").open("a+b")
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
        self._tensorboard = EventWriter(outputs / "tensorboard", step)

    def write(self, record: dict) -> None:
        """Append one record as a line; the numbers of step and epoch records also go to TensorBoard, as `event/key`.

        Flushes after an epoch.
        """
        event = record["event"]
        self._file.write((json.dumps(finite(record)) + "\n").encode())
        if self._tensorboard and event in ("step", "epoch"):
            scalars = {f"{event}/{key}": value for key, value in record.items() if key != "step" and _is_number(value)}
            self._tensorboard.add_scalars(record["step"], scalars)
        if event == "epoch":
            self._file.flush()
            if self._tensorboard:
                self._tensorboard.flush()

    def write_picture(self, step: int, png: bytes) -> None:
        """Show TensorBoard a sheet of crops. metrics.jsonl does not get it."""
        if self._tensorboard:
            self._tensorboard.add_picture(step, "validation/bicubic, RDN, HR", png)

    def synced_size(self) -> int:
        """Flush and fsync metrics.jsonl; return its size in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
