"""The two speeds of an epoch in images per second over all ranks; never mixed.

End-to-end: patches over the time between two moments of the device, waiting for data and the optimizer step included.
Seed window: the clock of the seed implementation, from a batch's arrival to the end of its step. Loading is left out;
here both ends are moments of the device.
Both leave out the first WARM_UP steps of a process or epoch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from rdn_fast.devices import DeviceTimer

WARM_UP = 3  # steps


class _Lap(NamedTuple):
    """Some steps in a row that have been enqueued."""

    after_warm_up: bool
    images: int
    end_to_end: DeviceTimer
    window: DeviceTimer


class ThroughputMeter:
    """Counts images and seconds of an epoch, the warm-up apart, by the device's clock. Only read() waits for it.

    totals: [warm-up, steps after it], each [images, end-to-end seconds, seed-window seconds]; pass those of a
    checkpoint to continue its epoch.
    """

    def __init__(self, device: torch.device, totals: list[list] | None = None):
        self.totals = totals or [[0, 0.0, 0.0], [0, 0.0, 0.0]]
        self._device, self._steps, self._laps = device, 0, []
        self._start_lap()

    def _start_lap(self) -> None:
        self._images, self._end_to_end, self._window = 0, DeviceTimer(self._device), DeviceTimer(self._device)
        self._end_to_end.start()

    def start_step(self) -> None:
        """Call when a batch has arrived."""
        self._window.start()

    def end_step(self, images: int) -> None:
        """Call when a step over `images` patches of all ranks is enqueued."""
        self._window.stop()
        self._steps += 1
        self._images += images
        if self._steps == WARM_UP:
            self.end_lap()

    def end_lap(self) -> None:
        """Let the next read() count the steps until here, and none that are enqueued later."""
        self._end_to_end.stop()
        self._laps.append(_Lap(self._steps > WARM_UP, self._images, self._end_to_end, self._window))
        self._start_lap()

    def read(self) -> None:
        """Wait until the device has ended the last lap, and add all laps to `totals`."""
        for lap in self._laps:
            total = self.totals[lap.after_warm_up]
            for i, more in enumerate((lap.images, lap.end_to_end.read(), lap.window.read())):
                total[i] += more
        self._laps.clear()

    def measured(self) -> list:
        """Return [images, end-to-end seconds, seed-window seconds] after the warm-up, or of it if nothing followed."""
        return self.totals[1] if self.totals[1][0] else self.totals[0]


def per_second(images: int, seconds: float) -> float:
    return images / seconds if seconds else 0.0
