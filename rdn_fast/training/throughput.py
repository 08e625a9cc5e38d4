"""The two speeds of an epoch in images per second over all ranks; never mixed.

End-to-end: patches over wall time, waiting for data and the optimizer step included.
Seed window: the clock of the seed implementation, from a batch's arrival to the end of its step. Loading is left out;
here both ends are synchronized.
Both leave out the first WARM_UP steps of a process or epoch.
"""

from __future__ import annotations

import time

import torch

from rdn_fast.devices import DeviceTimer, synchronize

WARM_UP = 3  # steps


class ThroughputMeter:
    """Counts images and seconds of an epoch, the warm-up apart.

    totals: [warm-up, steps after it], each [images, end-to-end seconds, seed-window seconds]; pass those of a
    checkpoint to continue its epoch.
    """

    def __init__(self, device: torch.device, totals: list[list] | None = None):
        self.totals = totals or [[0, 0.0, 0.0], [0, 0.0, 0.0]]
        self._device, self._timer, self._steps = device, DeviceTimer(device), 0
        synchronize(device)
        self._last_sync = time.perf_counter()

    def start_step(self) -> None:
        """Call when a batch has arrived. Does not synchronize."""
        self._timer.start()

    def end_step(self, images: int) -> None:
        """Call when a step over `images` patches of all ranks is enqueued. Synchronizes once, after the warm-up."""
        self._timer.stop()
        self._steps += 1
        self.totals[self._steps > WARM_UP][0] += images
        if self._steps == WARM_UP:
            self.synchronize()

    def synchronize(self) -> None:
        """Synchronize the device and add the seconds since the last call to `totals`."""
        window = self._timer.read()
        now = time.perf_counter()
        total = self.totals[self._steps > WARM_UP]
        total[1] += now - self._last_sync
        total[2] += window
        self._last_sync = now

    def measured(self) -> list:
        """Return [images, end-to-end seconds, seed-window seconds] after the warm-up, or of it if nothing followed."""
        return self.totals[1] if self.totals[1][0] else self.totals[0]


def per_second(images: int, seconds: float) -> float:
    return images / seconds if seconds else 0.0
