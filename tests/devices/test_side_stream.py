"""The accelerator's path: right batches in whatever order a device works, and the calls of the real SideStream."""

from pathlib import Path

import pytest
import torch
from cutting import CPU, PATCH, by_hand, random_pairs, same
from simulated import Event, SimulatedSideStream
from waiting import in_time, until

from rdn_fast import devices
from rdn_fast.data import prefetch
from rdn_fast.data.h5 import PairedH5
from rdn_fast.data.prefetch import Batch, PrefetchLoader
from rdn_fast.data.sampler import PatchSampler
from rdn_fast.data.slot_ring import SlotRing
from rdn_fast.devices import memory

MODES = ("mmap", "resident", "h5py")
STEPS = 10  # two epochs and a half
IMAGES = random_pairs(20, 2)
SCHEDULES = pytest.mark.parametrize("eager", [False, True], ids=["late", "eager"])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, make_h5) -> PairedH5:
    return PairedH5(make_h5(tmp_path_factory.mktemp("side") / "a.h5", IMAGES), 2)


def sampler(pairs: PairedH5, batch_size: int = 6, **options) -> PatchSampler:
    return PatchSampler(pairs, PATCH, batch_size, 9, **options)


class Spoiling(SlotRing):
    """Overwrites a slot as soon as it is given back."""

    def give_back(self, step):
        slot = self._slots[step % len(self._slots)]
        for tensor in slot.tensors:
            tensor.zero_()
        super().give_back(step)


class Punctual(Spoiling):
    """Waits in ready() for the next step, so that every batch is sent while the one before it is in use."""

    def ready(self, step):
        if self._threads and step < self._stop:
            until(lambda: step in self._filled)
        return super().ready(step)


def deliver(
    monkeypatch, side: SimulatedSideStream, sampler: PatchSampler, mode="mmap", workers=1, flush=0, ring=Punctual
) -> list[Batch]:
    """Return what a training loop finds in its batches when the device computes its steps.

    flush: the host waits for the device after so many steps; 0: at the end.
    """
    monkeypatch.setattr(devices, "side_stream", lambda device: side)
    monkeypatch.setattr(prefetch, "SlotRing", ring)
    found = []

    def compute(batch: Batch) -> None:
        found.append(batch._replace(lr=batch.lr.clone(), hr=batch.hr.clone()))
        for tensor in (batch.lr, batch.hr):
            tensor.fill_(torch.nan)

    def train() -> None:
        with PrefetchLoader(sampler, CPU, mode, workers, 0, STEPS) as source:
            for step, batch in enumerate(source, 1):
                side.compute(lambda batch=batch: compute(batch))
                if flush and step % flush == 0:
                    side.flush()
            side.flush()

    in_time(train)
    return found


@SCHEDULES
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flush", [0, 1, 3])
@pytest.mark.parametrize(("workers", "ring"), [(0, Spoiling), (1, Punctual), (3, Punctual), (3, Spoiling)])
def test_a_device_finds_the_right_batches(monkeypatch, pairs, eager, mode, flush, workers, ring):
    source = sampler(pairs)
    assert same(
        deliver(monkeypatch, SimulatedSideStream(eager), source, mode, workers, flush, ring),
        by_hand(source, IMAGES, 0, STEPS),
    )


@SCHEDULES
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_finds_its_share(monkeypatch, pairs, eager, mode, rank):
    source = sampler(
        pairs, 2, rank=rank, world=3
    )  # in the last step of an epoch rank 2 has a patch that does not count
    assert same(deliver(monkeypatch, SimulatedSideStream(eager), source, mode), by_hand(source, IMAGES, 0, STEPS))


@SCHEDULES
@pytest.mark.parametrize("ahead", [2, 5])
def test_the_number_of_slots_changes_nothing(monkeypatch, pairs, eager, ahead):
    monkeypatch.setattr(prefetch, "AHEAD", ahead)
    source = sampler(pairs)
    assert same(deliver(monkeypatch, SimulatedSideStream(eager), source, workers=0), by_hand(source, IMAGES, 0, STEPS))
    assert same(deliver(monkeypatch, SimulatedSideStream(eager), source, workers=1), by_hand(source, IMAGES, 0, STEPS))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_under_way_when_the_feed_is_left(monkeypatch, pairs, mode):
    side = SimulatedSideStream(eager=False)
    monkeypatch.setattr(devices, "side_stream", lambda device: side)
    monkeypatch.setattr(prefetch, "SlotRing", Punctual)
    with PrefetchLoader(sampler(pairs), CPU, mode, 1, 0, STEPS) as source:
        next(source)
        next(source)
        assert side.pending > 0
    assert side.pending == 0


# ---- what the simulation finds: each mutant lacks one wait ----


def wrong(monkeypatch, pairs, side: SimulatedSideStream) -> bool:
    source = sampler(pairs)
    return not same(deliver(monkeypatch, side, source), by_hand(source, IMAGES, 0, STEPS))


def test_finds_a_side_stream_that_does_not_wait_for_the_computing_queue(monkeypatch, pairs):
    class Mutant(SimulatedSideStream):
        def _computed_before(self):
            return 0

    assert wrong(monkeypatch, pairs, Mutant(eager=True))


def test_finds_a_computing_queue_that_does_not_wait_for_the_batch(monkeypatch, pairs):
    class Mutant(SimulatedSideStream):
        def join(self, done):
            pass

    assert wrong(monkeypatch, pairs, Mutant(eager=False))


def test_finds_a_slot_that_is_given_back_before_it_was_read(monkeypatch, pairs):
    class Mutant(SimulatedSideStream):
        def _event(self):
            event = super()._event()
            event.synchronize = lambda: None  # the host does not wait; the computing queue does
            return event

    assert wrong(monkeypatch, pairs, Mutant(eager=False))


def test_finds_an_event_that_is_recorded_before_the_work(monkeypatch, pairs):
    class Mutant(SimulatedSideStream):
        def _event(self):
            return Event(self, len(self._copies) - 1)

    assert wrong(monkeypatch, pairs, Mutant(eager=False))


def test_finds_that_one_batch_of_floats_is_not_enough(monkeypatch, pairs):
    class Mutant(prefetch._DeviceBuffers):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self._floats[1] = self._floats[0]

    monkeypatch.setattr(prefetch, "_DeviceBuffers", Mutant)
    assert wrong(monkeypatch, pairs, SimulatedSideStream(eager=True))


# ---- the real SideStream ----


class LoggedStream:
    """A torch.Stream that only logs its calls."""

    def __init__(self, name: str, log: list[str]):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self):
        self.log.append(f"{self.name} records")
        return f"event of {self.name}"

    def __enter__(self):
        self.log.append(f"into {self.name}")

    def __exit__(self, *_):
        self.log.append(f"out of {self.name}")


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """The calls of cuda:1's streams: the current one, and new ones."""
    log = []

    def stream(device: torch.device, name: str) -> LoggedStream:
        assert device == torch.device("cuda", 1)
        return LoggedStream(name, log)

    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: stream(device, "current"))
    monkeypatch.setattr(torch, "Stream", lambda device: stream(device, "side"))
    return log


def test_a_side_stream_waits_works_and_records_in_this_order(log):
    side = devices.side_stream(torch.device("cuda", 1))
    done = side.run(lambda: log.append("work"))
    assert log == ["side waits for current", "into side", "work", "out of side", "side records"]
    assert done == "event of side"
    log.clear()
    side.join(done)
    assert log == ["current waits for event of side"]


def test_each_work_waits_for_what_was_computed_until_then(log):
    side = devices.side_stream(torch.device("cuda", 1))
    for _ in range(3):
        side.run(lambda: None)
    assert log.count("side waits for current") == log.count("side records") == 3


def test_a_cpu_has_no_side_stream():
    assert devices.side_stream(CPU) is None


def test_host_memory_is_page_locked_for_an_accelerator_only(monkeypatch):
    asked = []
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda shape, dtype, pin_memory: asked.append(pin_memory) or empty(shape, dtype=dtype)
    )
    for device in ("cpu", "cuda"):
        memory = devices.pinned_empty((2, 5), torch.int64, torch.device(device))
        assert (memory.shape, memory.dtype) == ((2, 5), torch.int64)
    assert asked == [False, True]


def test_free_memory_of_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456) if device.index == 1 else None)
    assert devices.free_memory(torch.device("cuda", 1)) == 123


@pytest.mark.parametrize("version", [1, 2])
def test_memory_that_is_left_to_a_container(tmp_path, version):
    folder, limit, used, cached = {
        1: (tmp_path / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: (tmp_path, "memory.max", "memory.current", "inactive_file"),
    }[version]
    folder.mkdir(exist_ok=True)
    assert memory._container_headroom(tmp_path) == []
    for name, text in ((limit, "8000\n"), (used, "5000\n"), ("memory.stat", f"anon 1\n{cached} 1500\n")):
        (folder / name).write_text(text)
    assert memory._container_headroom(tmp_path) == [4500]
    (folder / limit).write_text("max\n")
    assert memory._container_headroom(tmp_path) == []


def test_free_memory_of_the_host(monkeypatch):
    text = "MemTotal:       24000000 kB\nMemFree:          300000 kB\nMemAvailable:   20000000 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text if self == Path("/proc/meminfo") else "max")
    assert devices.free_memory(CPU) == 20_000_000 * 1024

    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)  # another system
    assert 1e8 < devices.free_memory(CPU) < 1e15


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", [0, 3])
def test_a_real_device_finds_the_right_batches(pairs, mode, workers):
    device, found = torch.accelerator.current_accelerator(), []
    with PrefetchLoader(sampler(pairs), device, mode, workers, 0, STEPS) as source:
        for batch in source:
            for tensor in (batch.lr, batch.hr):
                assert tensor.device.type == device.type
                assert tensor.is_contiguous(memory_format=devices.memory_format(device))
            found.append(batch._replace(lr=batch.lr.clone(), hr=batch.hr.clone()))
    assert same(
        [batch._replace(lr=batch.lr.cpu(), hr=batch.hr.cpu()) for batch in found],
        by_hand(sampler(pairs), IMAGES, 0, STEPS),
    )
