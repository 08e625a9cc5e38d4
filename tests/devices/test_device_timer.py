"""DeviceTimer on a CPU, whose clock the test sets."""

import pytest
import torch

from rdn_fast.devices import DeviceTimer, streams


@pytest.fixture
def clock(monkeypatch):
    """Return a list whose only number is the time."""
    now = [0.0]
    monkeypatch.setattr(streams.time, "perf_counter", lambda: now[0])
    return now


def test_an_open_span_counts_when_it_has_ended(clock):
    timer = DeviceTimer(torch.device("cpu"))
    for end in (1.0, 3.0):
        timer.start()
        clock[0] = end
        timer.stop()
    timer.start()
    clock[0] = 10.0
    assert timer.read() == 3.0
    assert timer.read() == 0.0
    clock[0] = 12.0
    timer.stop()
    assert timer.read() == 9.0


def test_an_end_without_a_start_is_an_error():
    timer = DeviceTimer(torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"stop\(\) without start\(\)"):
        timer.stop()
