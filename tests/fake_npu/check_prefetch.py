"""Batches arrive whole on the simulated npu, which copies only when something waits for it; every wait is needed."""

import h5py
import pytest
import torch
import torch_npu  # noqa: F401  the device
from cutting import PATCH, by_hand, random_pairs, same

from rdn_fast import devices
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.prefetch import PrefetchLoader
from rdn_fast.data.sampler import PatchSampler

NPU = torch.device("npu", 0)
IMAGES = random_pairs(20, 2)
STEPS = 30


@pytest.fixture
def sampler(tmp_path) -> PatchSampler:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for i, (lr, hr) in enumerate(IMAGES):
            file[f"lr/{i}"], file[f"hr/{i}"] = lr, hr
    return PatchSampler(PairedH5(path, 2), PATCH, 6, seed=3)


def arriving(sampler: PatchSampler, mode: str, workers: int) -> list:
    found = []
    with PrefetchLoader(sampler, NPU, mode, workers, 0, STEPS) as batches:
        for batch in batches:
            found.append(batch._replace(lr=batch.lr.clone(), hr=batch.hr.clone()))  # what a step would read
    return [batch._replace(lr=batch.lr.cpu(), hr=batch.hr.cpu()) for batch in found]


@pytest.mark.parametrize("mode", ["mmap", "resident", "h5py"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_is_whole(sampler, mode, workers):
    assert same(arriving(sampler, mode, workers), by_hand(sampler, IMAGES, 0, STEPS))


def without_join(monkeypatch):
    monkeypatch.setattr(devices.SideStream, "join", lambda self, done: None)


def without_waiting_for_the_steps(monkeypatch):
    def run(self, work):
        with self._stream:
            work()
        return self._stream.record_event()

    monkeypatch.setattr(devices.SideStream, "run", run)


def with_an_event_too_early(monkeypatch):
    def run(self, work):
        self._stream.wait_stream(torch.accelerator.current_stream(self._device))
        done = self._stream.record_event()
        with self._stream:
            work()
        return done

    monkeypatch.setattr(devices.SideStream, "run", run)


def with_slots_given_back_too_early(monkeypatch):
    class Unfinished:
        def __init__(self, event):
            self.event = event

        def synchronize(self):
            pass

    run, join = devices.SideStream.run, devices.SideStream.join
    monkeypatch.setattr(devices.SideStream, "run", lambda self, work: Unfinished(run(self, work)))
    monkeypatch.setattr(devices.SideStream, "join", lambda self, done: join(self, done.event))


@pytest.mark.filterwarnings("ignore")  # the device's own words about what it saw
@pytest.mark.parametrize(
    "fault", [without_join, without_waiting_for_the_steps, with_an_event_too_early, with_slots_given_back_too_early]
)
def test_every_wait_is_needed(sampler, monkeypatch, fault):
    expected = by_hand(sampler, IMAGES, 0, STEPS)
    fault(monkeypatch)

    def goes_unseen() -> bool:
        try:
            return same(arriving(sampler, "mmap", 2), expected)
        except RuntimeError as error:
            return "pinned" not in str(error)  # a pinned source has changed before it was copied

    try:
        assert not goes_unseen()
    finally:
        torch.accelerator.synchronize()  # nothing of it may reach the checks that follow
