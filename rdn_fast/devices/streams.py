"""Streams, events and device time, through torch.accelerator, which serves cuda and npu with the same calls."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from rdn_fast.devices.memory import pinned_empty


class SideStream:
    """A stream of an accelerator beside the compute stream (the current one)."""

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.Stream(device)

    def run(self, work: Callable[[], None]) -> torch.Event:
        """Enqueue work() on the side stream after everything queued on both streams. Return its completion event."""
        self._stream.wait_stream(torch.accelerator.current_stream(self._device))
        with self._stream:
            work()
        return self._stream.record_event()

    def join(self, done: torch.Event) -> None:
        """Make the compute stream wait for the event. The host does not wait."""
        torch.accelerator.current_stream(self._device).wait_event(done)


def side_stream(device: torch.device) -> SideStream | None:
    """Return a new side stream of the device; None for a CPU, where nothing has to be copied."""
    return None if device.type == "cpu" else SideStream(device)


def synchronize(device: torch.device) -> None:
    """Block the host until the device has finished all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class HostCopy:
    """The values of a tensor as they are when what is queued now has been computed. Making one does not wait."""

    def __init__(self, values: torch.Tensor):
        self._host = pinned_empty(values.shape, values.dtype, values.device).copy_(values, non_blocking=True)
        self._done = None
        if values.device.type != "cpu":
            self._done = torch.Event(device=values.device)
            self._done.record()

    def read(self) -> torch.Tensor:
        """Wait for the values, and for nothing that was queued later, and return them, a tensor on the host."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


class DeviceTimer:
    """Sums spans of device time. Reading waits for the end of the last span; starting and stopping do not wait.

    On an accelerator a span lies between two events of the current stream, so the time that the device waits for the
    host between spans is not counted. On a CPU a span is wall time.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._spans: list[tuple] = []  # finished ones: start, end
        self._start = None  # of the span that is open

    def start(self) -> None:
        self._start = self._now()

    def stop(self) -> None:
        """End the span. Raise RuntimeError when none is open."""
        if self._start is None:
            raise RuntimeError("DeviceTimer.stop() without start()")
        self._spans.append((self._start, self._now()))
        self._start = None

    def read(self) -> float:
        """Return the seconds of the spans that ended since the last read. An open one counts after its end, whole."""
        if self._device.type == "cpu":
            total = sum(end - start for start, end in self._spans)
        else:
            for _, end in self._spans[-1:]:
                end.synchronize()
            total = sum(start.elapsed_time(end) for start, end in self._spans) / 1e3
        self._spans.clear()
        return total

    def _now(self):
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(device=self._device, enable_timing=True)
        event.record()
        return event
