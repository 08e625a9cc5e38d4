"""TensorBoard's event file, written in the thread that calls: SummaryWriter's own thread ends with a traceback when the disk is full."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventWriter:
    """Numbers over steps, in a new event file of `folder`. `step`: where a resumed run goes on; what earlier files tell of later ones is void."""

    def __init__(self, folder: Path, step: int):
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"  # read in this order
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        if step:
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """{name of a curve: its value at `step`}."""
        self._write(
            step=step,
            summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]),
        )

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write(self, **fields) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
