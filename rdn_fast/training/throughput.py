"""The two speeds of an epoch, in images per second over all ranks; never mixed.

End-to-end: patches over wall time, waiting for data and the optimizer included.
Seed window: the seed system's clock, which runs from a batch's arrival to the step's end, so that loading is left out;
here synchronized at its ends. Both leave out the first steps of a process or epoch.
"""

from __future__ import annotations

import time

import torch

from rdn_fast.devices import DeviceTimer, synchronize

WARM_UP = 3  # steps


class ThroughputMeter:
    """Counts images and seconds, warm-up apart. `totals` = ([images, end-to-end s, window s] of warm-up, and of the rest)."""

    def __init__(self, device: torch.device, totals: list[list] | None = None):
        self.totals = totals or [[0, 0.0, 0.0], [0, 0.0, 0.0]]
        self._device, self._watch, self._steps = device, DeviceTimer(device), 0
        synchronize(device)
        self._mark = time.perf_counter()

    def start_step(self) -> None:
        """A batch is here; the step begins."""
        self._watch.start()

    def end_step(self, images: int) -> None:
        """The step over `images` patches (all ranks) has been asked of the device."""
        self._watch.stop()
        self._steps += 1
        self.totals[self._steps > WARM_UP][0] += images
        if self._steps == WARM_UP:
            self.synchronize()

    def synchronize(self) -> None:
        """Synchronize and book the seconds since the last time."""
        window = self._watch.read()
        now = time.perf_counter()
        row = self.totals[self._steps > WARM_UP]
        row[1] += now - self._mark
        row[2] += window
        self._mark = now

    def measured(self) -> list:
        """[images, end-to-end s, window s] that count: the warm-up's only where there is nothing else."""
        return self.totals[1] if self.totals[1][0] else self.totals[0]


def per_second(images: int, seconds: float) -> float:
    return images / seconds if seconds else 0.0
