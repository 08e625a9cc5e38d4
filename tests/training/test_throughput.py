"""ThroughputMeter and ResultBuffer on a stand-in for a device that computes later than the host asks."""

import pytest
import torch

from rdn_fast.devices import streams
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.training.step import ResultBuffer
from rdn_fast.training.throughput import WARM_UP, ThroughputMeter

CPU = torch.device("cpu")


class Queue:
    """Moments of a device whose steps take a second each. The host asks for work at once and waits for moments only."""

    def __init__(self, monkeypatch):
        self.computed = self.waited_for = 0.0  # the time of all that is queued; up to which the host has waited
        monkeypatch.setattr(streams.torch, "Event", lambda device, enable_timing: self.Moment(self))
        monkeypatch.setattr(streams.torch.accelerator, "synchronize", lambda device: pytest.fail("waits for all"))

    class Moment:
        def __init__(self, queue):
            self.queue = queue

        def record(self):
            self.at = self.queue.computed

        def synchronize(self):
            self.queue.waited_for = max(self.queue.waited_for, self.at)

        def elapsed_time(self, other):
            assert max(self.at, other.at) <= self.queue.waited_for, "the event is not over"
            return 1e3 * (other.at - self.at)


def test_the_meter_waits_for_no_step_behind_the_lap(monkeypatch):
    queue = Queue(monkeypatch)
    meter = ThroughputMeter(torch.device("cuda"))

    def steps(count: int) -> None:
        for _ in range(count):
            queue.computed += 0.25  # waiting for data
            meter.start_step()
            queue.computed += 1
            meter.end_step(8)

    steps(WARM_UP + 2)
    assert queue.waited_for == 0
    meter.end_lap()
    ended = queue.computed
    steps(1)
    meter.read()
    assert queue.waited_for == ended < queue.computed
    warm_up = [WARM_UP * 8, WARM_UP * 1.25, WARM_UP]
    assert meter.totals == [warm_up, [16, 2.5, 2.0]]
    meter.end_lap()
    meter.read()
    assert meter.totals == [warm_up, [24, 3.75, 3.0]]
    assert meter.measured() == [24, 3.75, 3.0]
    again = ThroughputMeter(torch.device("cuda"), meter.totals)
    assert again.measured() == [24, 3.75, 3.0]


def test_steps_after_the_beginning_of_a_read_are_not_in_it(seed):
    generator, buffer = torch.Generator().manual_seed(seed), ResultBuffer(CPU)
    expected = [[torch.rand((), generator=generator) for _ in range(3)] for _ in range(2 * buffer.SIZE)]
    read = buffer.read(Ranks())
    assert read == []
    for i, results in enumerate(expected):
        if buffer.is_full or i in (5, 6):
            read += buffer.read(Ranks())
            buffer.begin_read()
        buffer.add(i + 1, 0, 1e-3, *results)
        assert len(read) <= i
    for _ in range(2):
        read += buffer.read(Ranks())
        buffer.begin_read()
    assert buffer.read(Ranks()) == []
    assert [result.step for result in read] == list(range(1, len(expected) + 1))
    for result, (share, skipped, scale) in zip(read, expected, strict=True):
        assert (result.loss, result.skipped, result.loss_scale) == (share.item(), bool(skipped), scale.item())
