"""TensorBoard event files without SummaryWriter, whose own thread ends with a traceback when the disk is full."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_NAME = re.compile(r"events\.out\.tfevents\.(\d+(?:\.\d+)?)\.")  # with the seconds of its beginning


class EventWriter:
    """Writes scalars and pictures to a new event file of `folder`, in the calling thread."""

    def __init__(self, folder: Path, step: int):
        """step: where the run starts or resumes. TensorBoard drops what earlier files hold of later steps."""
        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names, and the clock may have been set back.
        names = [_NAME.match(path.name) for path in folder.iterdir()]
        began = max([time.time(), *(float(name[1]) + 1e-3 for name in names if name)])
        name = f"events.out.tfevents.{began:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        if step:
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Append {tag: value} at `step`."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(step=step, summary=Summary(value=values))

    def add_picture(self, step: int, tag: str, png: bytes) -> None:
        """Append an RGB picture, a whole PNG file."""
        width, height = struct.unpack(">II", png[16:24])  # of its header
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write(self, **fields) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
